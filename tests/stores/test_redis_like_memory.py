"""The same history in Redis and in memory: partitions that share a scope, answer for answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from redis import Redis

from effectonce.model import Applied, OnExisting, Partition
from effectonce.ports import Store
from effectonce.stores.memory import MemoryStore
from effectonce.stores.redis import RedisStore
from effectonce.testing.owner import AT, UNSTORABLE, VALUE, Owner, key_bytes, next_generation
from effectonce.testing.servers import ValkeyServer

NUMBERS = 60
PARTITIONS = [
    replace(AT, number=0),
    replace(AT, number=1),
    replace(AT, topic="returns"),
    replace(AT, group="audit"),
]


@pytest.fixture
def stores(valkey_server: ValkeyServer) -> Iterator[list[Store]]:
    with Redis.from_url(valkey_server.url) as client:
        client.flushall()
    redis = RedisStore(valkey_server.url)
    yield [MemoryStore(), redis]
    redis.close()


class Twins:
    """One partition's owners, one a store: whatever is asked of one is asked of the other."""

    def __init__(self, stores: list[Store], at: Partition) -> None:
        self.owners = [Owner.open(store, at) for store in stores]

    def commit(
        self, draw: Random, *, stale: bool = False, turn: int = 0, rerun: bool = False
    ) -> None:
        numbers = draw.sample(range(NUMBERS), draw.randint(0, 8))
        kept = {row: draw.choice([VALUE, UNSTORABLE]) for row in range(0, len(numbers), 3)}
        on_existing = draw.choice(list(OnExisting))
        lag, trusts = draw.randint(0, 2), draw.random() < 0.5
        answers = []
        for owner in self.owners:
            to = replace(owner.position, next=owner.position.next + len(numbers))
            if turn:
                current = to.generations[-1].generation + turn
                to = next_generation(to, current, max(to.floor, current - 2 - lag))
            if rerun:
                to = replace(to, run=to.run + 1)
            commit = owner.prepared(numbers, outcomes=kept, on_existing=on_existing)
            commit = replace(commit, position=replace(to, commit_id=commit.position.commit_id))
            if stale:
                commit = replace(commit, follows=bytes(15) + b"?")
            known = owner.known(*numbers, run=to.run)
            if trusts and not known.seen.any():
                commit = replace(commit, as_of=known.as_of)
            answers.append(owner.send(commit))
            if isinstance(answers[-1], Applied):
                owner.position = commit.position
        assert answers[0] == answers[1]

    def reopen(self) -> None:
        self.owners = [Owner.open(owner.store, owner.at) for owner in self.owners]

    def compare(self, number: int) -> None:
        one, other = self.owners
        assert one.seen(*range(NUMBERS)) == other.seen(*range(NUMBERS))
        assert replace(one.position, store_id=b"") == replace(other.position, store_id=b"")
        assert one.store.find(one.at, key_bytes(number)) == other.store.find(
            other.at, key_bytes(number)
        )


@pytest.mark.parametrize("seed", range(6))
def test_partitions_of_a_scope_get_the_answers_that_memory_gives(
    stores: list[Store], seed: int
) -> None:
    draw = Random(seed)
    everybody = [Twins(stores, at) for at in PARTITIONS]
    for _ in range(250):
        twins = draw.choice(everybody)
        match draw.choice(["commit"] * 8 + ["stale", "turn", "turn", "rerun", "reopen"]):
            case "stale":
                twins.commit(draw, stale=True)
            case "turn":
                twins.commit(draw, turn=draw.choice([1, 1, 4]))
            case "rerun":
                twins.commit(draw, rerun=True)
            case "reopen":
                twins.reopen()
            case _:
                twins.commit(draw)
        for each in everybody:
            each.compare(draw.randrange(NUMBERS))
