"""A store that is away, answers late or is opened by somebody else, in mid-run on Apache Kafka."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

import effectonce as eo
from effectonce.errors import StoreError
from effectonce.hooks import BatchCommitted, PartitionBegan, StoreOutage
from effectonce.model import (
    Commit,
    CommitResult,
    Known,
    Marker,
    Opened,
    Partition,
    Query,
    Unknown,
)
from effectonce.stores.memory import MemoryStore
from effectonce.stores.overlay import KeyValueTransaction
from tests.bad_input.kit import count, once_each
from tests.proofs.kit import RealFlow

AWAY = eo.StoreUnavailable("the store is away")
OUTAGES = 4


class Shaken:
    """A MemoryStore on whose commits and look-ups trouble can be laid, call by call."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.traits = self.inner.traits
        self.on_commit: Callable[[Sequence[Commit]], list[CommitResult] | None] = lambda _: None
        self.on_lookup: Callable[[Sequence[Query]], list[Known | StoreError] | None] = lambda _: (
            None
        )

    def prepare(self) -> bytes:
        return self.inner.prepare()

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        return self.inner.open(at, topic_id, above=above)

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        return self.inner.has_positions(scope, group, topic)

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        return self.on_lookup(queries) or self.inner.lookup(queries)

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return self.on_commit(commits) or self.inner.commit(commits)

    def find(self, at: Partition, key: bytes) -> Marker | None:
        return self.inner.find(at, key)

    def transaction(self, at: Partition) -> KeyValueTransaction:
        return self.inner.transaction(at)

    def release(self, at: Partition) -> None:
        self.inner.release(at)

    def close(self) -> None:
        self.inner.close()

    def effects(self, at: Partition) -> Counter[str]:
        """By event ID: how often it took effect, as committed."""
        tx = self.inner.transaction(at).begin()
        return Counter({key.decode(): int(value) for key, value in tx.scan(b"")})


def passed(flow: RealFlow, events: int) -> Callable[[], bool]:
    return lambda: sum(batch.fresh for batch in flow.watch.of(BatchCommitted)) >= events


def unanswered(store: Shaken, *, applied: bool) -> Callable[[Sequence[Commit]], list[CommitResult]]:
    def answer(commits: Sequence[Commit]) -> list[CommitResult]:
        if applied:
            store.inner.commit(commits)
        return [Unknown(AWAY) for _ in commits]

    return answer


def away(queries: Sequence[Query]) -> list[Known | StoreError]:
    return [AWAY for _ in queries]


@pytest.mark.parametrize("trouble", ["applied", "not applied", "look-up"])
def test_an_outage_in_mid_run_is_waited_out_with_nothing_lost_or_repeated(
    flow: RealFlow, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Shaken()
    left = [0]

    def in_turn(answer: Callable[[Sequence[Commit]], list[CommitResult]]) -> None:
        def some(commits: Sequence[Commit]) -> list[CommitResult] | None:
            if not left[0] or commits[0].markers is None:
                return None
            left[0] -= 1
            return answer(commits)

        store.on_commit = some

    def look(queries: Sequence[Query]) -> list[Known | StoreError] | None:
        if not left[0]:
            return None
        left[0] -= 1
        return away(queries)

    if trouble == "look-up":
        store.on_lookup = look
    else:
        in_turn(unanswered(store, applied=trouble == "applied"))
    with caplog.at_level(logging.WARNING, "effectonce"), flow.member(store=store):
        for round_ in range(1, 3):
            flow.send(3)
            flow.watch.until(passed(flow, 6 * round_ - 3))
            left[0] = OUTAGES
            flow.send(3)
            flow.watch.until(passed(flow, 6 * round_))
    assert store.effects(flow.at()) == once_each(flow.ids)
    assert [each.over for each in flow.watch.of(StoreOutage)] == [False, True] * 2
    said = [record.getMessage() for record in caplog.records]
    assert sum("waiting for the store" in line for line in said) == 2
    assert sum("the store answers again" in line for line in said) == 2


def test_a_partition_opened_by_somebody_else_is_dropped_and_opened_again(
    flow: RealFlow,
) -> None:
    store, stolen = Shaken(), threading.Event()

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if not stolen.is_set():
            stolen.set()
            store.open(flow.at(), b"")

    flow.send(5)
    with flow.member(handler, store=store):
        flow.watch.until(passed(flow, 5))
    assert store.effects(flow.at()) == once_each(flow.ids)
    assert len(flow.watch.of(PartitionBegan)) == 2


@pytest.mark.confluent  # ten seconds, and nothing in it is the driver's
def test_a_rival_stops_the_partition_or_two_groups_would_fence_each_other_for_ever(
    flow: RealFlow,
) -> None:
    store = Shaken()

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        store.open(flow.at(), b"")

    flow.send(3)
    with flow.member(handler, store=store) as member:
        flow.watch.until(lambda: member in flow.watch.of(type(member)))
        error, member.error = member.error, None
    assert isinstance(error, eo.Rival)
    assert not store.effects(flow.at())
    flow.job(store=store)
    assert store.effects(flow.at()) == once_each(flow.ids)


def test_a_conflict_on_a_shared_store_rolls_back_and_is_decided_again(
    flow: RealFlow, caplog: pytest.LogCaptureFixture
) -> None:
    """Another group of the same scope takes effect while the copy is in the handler here."""
    store, scope = Shaken(), "shared"
    other = RealFlow(flow.server, flow.topic, flow.state, flow.watch)
    ran: list[str] = []

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if not ran:
            other.job(store=store, scope=scope)
        ran.append(event.id)

    ids = flow.send(3)
    with caplog.at_level(logging.INFO, "effectonce"):
        flow.job(handler, store=store, scope=scope)
    # it ran here, with those behind it if the other group was quick, and was rolled back
    assert ran == ids[: len(ran)]
    assert f"{len(ran)} events took effect elsewhere meanwhile" in caplog.text
    assert store.effects(Partition(scope, other.group, flow.topic, 0)) == once_each(ids)
    assert not store.effects(Partition(scope, flow.group, flow.topic, 0))
