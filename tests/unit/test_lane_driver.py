"""Lanes in the driver: `run(handler, lanes=...)` on a client that lives in this process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

import effectonce as eo
from effectonce.errors import StoreUnavailable
from effectonce.hooks import BatchCommitted, HookEvent, PartitionStalled, Retrying
from effectonce.model import Commit, CommitResult, Position, Stale, Unknown
from effectonce.ports import Records
from effectonce.stores.memory import MemoryStore
from tests.unit.lone import Log, LogClient, SomeRecords, consumer_of

pytestmark = pytest.mark.timeout(30)

PATIENCE = 10.0
OUTSIDE = eo.Outside("repeat")
TWICE = eo.Retry(2, wait_initial=timedelta(0), wait_max=timedelta(0))


class KeyedRecords(SomeRecords):
    """An ID is written `key/n`, or `n` alone for a record without a key."""

    def keys(self) -> Sequence[bytes | None]:
        return [each.encode().rpartition(b"/")[0] or None for _, each in self.rows]

    def part(self, start: int, stop: int | None = None) -> Records:
        return KeyedRecords(self.rows[start:stop])


class KeyedLog(Log):
    def read(self, offset: int, limit: int) -> SomeRecords:
        return KeyedRecords(super().read(offset, limit).rows)


def log_of(*ids: str) -> KeyedLog:
    return KeyedLog(dict(enumerate(ids)))


def key_of(event: eo.Event) -> str:
    return event.id.rpartition("/")[0]


class Kept(MemoryStore):
    """What its position and its markers are."""

    def row(self) -> Position:
        (row,) = self._tables.positions.values()
        return row


def lanes_of(log: Log, store: MemoryStore | None = None, **policy: Any) -> eo.OnceConsumer:
    usual: dict[str, Any] = {"effects": OUTSIDE, "retry": TWICE}
    return consumer_of(LogClient(log, a_poll=100), store or MemoryStore(), **{**usual, **policy})


@contextmanager
def watched() -> Iterator[list[HookEvent]]:
    seen: list[HookEvent] = []
    eo.hooks.set_hooks([seen.append])
    try:
        yield seen
    finally:
        eo.hooks.set_hooks([])


class Gate:
    """Who waits at it, in which order they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.came: list[str] = []
        self._open: set[str] = set()

    def pass_through(self, name: str) -> None:
        with self._changed:
            self.came.append(name)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: name in self._open, PATIENCE), name

    def note(self, name: str) -> None:
        with self._changed:
            self.came.append(name)
            self._changed.notify_all()

    def open(self, *names: str) -> None:
        with self._changed:
            self._open.update(names)
            self._changed.notify_all()

    def until(self, what: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(what, PATIENCE), self.came


# -- order ------------------------------------------------------------------------------------------


def test_records_of_one_key_run_in_order_and_others_beside_them() -> None:
    ids = [f"{'abcd'[n % 4]}/{n}" for n in range(80)]
    ran: dict[str, list[int]] = {}
    most, now, lock = 0, Counter[str](), threading.Lock()

    def handler(event: eo.Event) -> None:
        nonlocal most
        key = key_of(event)
        with lock:
            now[key] += 1
            assert now[key] == 1, "two of a lane at once"
            most = max(most, now.total())
            ran.setdefault(key, []).append(event.offset)
        time.sleep(0.001)
        with lock:
            now[key] -= 1

    with lanes_of(log_of(*ids)) as consumer:
        consumer.run(handler, until=eo.END, lanes=8)
    assert {key: sorted(offsets) for key, offsets in ran.items()} == ran
    assert sum(map(len, ran.values())) == 80
    assert 2 <= most <= 4


def test_a_stuck_key_holds_up_its_own_lane_and_no_other() -> None:
    gate = Gate()

    def handler(event: eo.Event) -> None:
        if event.id == "a/0":
            gate.pass_through("a/0")
        else:
            gate.note(event.id)

    with lanes_of(log_of("a/0", "b/1", "a/2", "c/3", "4")) as consumer:
        thread = threading.Thread(target=lambda: consumer.run(handler, until=eo.END, lanes=3))
        thread.start()
        gate.until(lambda: set(gate.came) == {"a/0", "b/1", "c/3", "4"})
        gate.open("a/0")
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert gate.came[-1] == "a/2"
