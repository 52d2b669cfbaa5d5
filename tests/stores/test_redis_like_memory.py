"""The same history in Redis and in memory: partitions that share a scope, answer for answer.

And partitions that share nothing, whose owners keep an index of their own: those before them go on
committing, answers are lost, connections cut, scripts forgotten, and whatever was marked in time is
seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from redis import Redis

from effectonce.errors import StoreUnavailable
from effectonce.model import (
    Already,
    Applied,
    Commit,
    CommitResult,
    OnExisting,
    Partition,
    Query,
    Unknown,
)
from effectonce.ports import Store
from effectonce.stores import redis_index
from effectonce.stores.memory import MemoryStore
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_scripts import COMMIT, COMMIT_PACKED, Script
from effectonce.testing.owner import (
    AT,
    UNSTORABLE,
    VALUE,
    Owner,
    key_bytes,
    keys_of,
    next_generation,
)
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order

NUMBERS = 60
WAYS = ["alone", "alone", "ahead", "unanswered", "forgotten", "cut before", "cut behind"]
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


# -- an index of one's own -------------------------------------------------------------------------


class Succession:
    """One partition's owners, in two processes and in memory; those before them have not heard."""

    def __init__(
        self,
        processes: list[RedisStore],
        at: Partition,
        draw: Random,
        admin: Redis,
        *,
        checks: bool,
    ) -> None:
        self.processes, self.at, self.draw, self.checks = processes, at, draw, checks
        self.admin = admin
        self.memory = MemoryStore()
        self.zombies: list[list[Owner]] = []
        self.unheard: set[int] = set()
        """What zombies noted since the owner was last answered."""
        self.pair = self._opened()

    def _opened(self) -> list[Owner]:
        stores: list[Store] = [self.memory, self.draw.choice(self.processes)]
        return [Owner.open(store, self.at) for store in stores]

    def hand_over(self) -> None:
        self.zombies = [*self.zombies, self.pair][-3:]
        self.pair, self.unheard = self._opened(), set()

    def step(self) -> None:
        match self.draw.choice(["commit"] * 6 + ["zombie"] * 3 + ["turn", "rerun", "hand over"]):
            case "hand over":
                self.hand_over()
            case "zombie" if self.zombies:
                self.commit(self.draw.choice(self.zombies), is_zombie=True)
            case "turn":
                self.commit(self.pair, turn=self.draw.choice([1, 1, 4]))
            case "rerun":
                self.commit(self.pair, rerun=True)
            case _:
                self.commit(self.pair)
        self.compare()

    def commit(
        self,
        pair: list[Owner],
        *,
        is_zombie: bool = False,
        turn: int = 0,
        rerun: bool = False,
    ) -> None:
        draw = self.draw
        numbers = draw.sample(range(NUMBERS), draw.randint(0, 8))
        on_existing = draw.choice(list(OnExisting))
        trusts, way = draw.random() < 0.7, draw.choice(WAYS)
        answers = []
        for owner in pair:
            to = replace(owner.position, next=owner.position.next + len(numbers))
            if turn:
                current = to.generations[-1].generation + turn
                to = next_generation(to, current, max(to.floor, current - 2))
            if rerun:
                to = replace(to, run=to.run + 1)
            commit = owner.prepared(numbers, on_existing=on_existing)
            commit = replace(commit, position=replace(to, commit_id=commit.position.commit_id))
            if trusts and not is_zombie:
                known = owner.known(*numbers, run=to.run)
                commit = commit if known.seen.any() else replace(commit, as_of=known.as_of)
            answers.append(sent(owner, commit, way, self.admin))
            if isinstance(answers[-1], Applied | Already):
                owner.position = commit.position
        by_memory, answer = answers
        assert answer == by_memory or (answer, type(by_memory)) == (Already(), Applied)
        if not is_zombie:
            self.unheard = set()
        elif not self.checks and on_existing is OnExisting.KEEP_FIRST:
            self.unheard |= set(numbers)

    def compare(self) -> None:
        of_memory, here = self.pair
        marked = of_memory.seen(*range(NUMBERS))
        for number, (there, seen) in enumerate(
            zip(marked, here.seen(*range(NUMBERS)), strict=True)
        ):
            assert seen == there or (there and number in self.unheard), number


def sent(owner: Owner, commit: Commit, way: str, admin: Redis) -> CommitResult:
    """A commit, as the driver sends it; to Redis also ahead, or so that its answer is lost."""
    store = owner.store
    if not isinstance(store, RedisStore) or way == "alone":
        return owner.send(commit)
    if way == "forgotten":
        admin.script_flush()
    if way == "cut before":
        order(admin, "CLIENT KILL TYPE normal SKIPME yes")
    if way != "unanswered":
        receipt = store.send(commit)
        if way == "cut behind":
            order(admin, "CLIENT KILL TYPE normal SKIPME yes")
        store.lookup([Query(owner.at, keys_of(*range(NUMBERS)), owner.position.run)])
        return receipt()
    with pytest.MonkeyPatch.context() as patch:
        run = store._link.run

        def unanswered(script: Script, *call: Any) -> Any:
            answer = run(script, *call)
            if script in (COMMIT, COMMIT_PACKED):
                raise StoreUnavailable("no answer")
            return answer

        patch.setattr(store._link, "run", unanswered)
        assert isinstance(owner.send(commit), Unknown)
    return owner.send(commit)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("check_seconds", [0, math.inf], ids=["checked", "not checked"])
def test_an_index_of_ones_own_says_what_memory_does_but_for_facts_not_heard_of_yet(
    valkey_server: ValkeyServer, seed: int, check_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_index, "CHECK_SECONDS", check_seconds)
    with Redis.from_url(valkey_server.url) as client:
        client.flushall()
    processes = [RedisStore(valkey_server.url, layout="partition", index="local") for _ in range(2)]
    draw = Random(seed)
    checks = check_seconds == 0
    with Redis.from_url(valkey_server.url) as admin:
        everybody = [Succession(processes, at, draw, admin, checks=checks) for at in PARTITIONS[:2]]
        for _ in range(200):
            draw.choice(everybody).step()
    for store in processes:
        store.close()
