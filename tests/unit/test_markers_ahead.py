"""Markers ahead of the position, as the driver leaves them; core decides how long they live."""

from __future__ import annotations

import pytest

import effectonce as eo
from effectonce.model import Position
from effectonce.stores.memory import MemoryStore
from tests.unit.lone import (
    IDS,
    Log,
    LogClient,
    SomeRecords,
    StoreWithBackup,
    consumer_of,
)

pytestmark = pytest.mark.timeout(30)

DAYS_MS = 30 * 86_400_000
OUTSIDE = eo.Outside("repeat")


def row_of(store: MemoryStore) -> Position:
    (row,) = store._tables.positions.values()
    return row


def test_what_a_refused_commit_left_ahead_is_known_to_the_next_ownership_period() -> None:
    """Without that its generation was dropped as soon as the log jumped, and copies ran again."""
    store, log = StoreWithBackup(), Log(dict(enumerate(IDS[:4])))
    ran: list[str] = []

    def handler(event: eo.Event) -> None:
        ran.append(event.id)
        if ran == IDS[:1]:
            store.back_up()
        if ran == IDS[:4]:
            store.go_back()

    with consumer_of(LogClient(log), store, effects=OUTSIDE) as consumer:
        consumer.run(handler, until=eo.END)
    assert ran == [*IDS[:4], *IDS[:2]]
    assert row_of(store).marked_until == 4


class RecordsOfTwoTimes(SomeRecords):
    def timestamp_ms(self, row: int) -> int:
        return super().timestamp_ms(row) + (DAYS_MS if self.rows[row][0] >= 2 else 0)


class LogOfTwoTimes(Log):
    def read(self, offset: int, limit: int) -> SomeRecords:
        return RecordsOfTwoTimes(super().read(offset, limit).rows)


def test_a_marker_behind_a_failed_record_is_kept_by_its_own_records_time() -> None:
    """Another partition that shares it would drop it first, and run its copy."""
    store, log = MemoryStore(), LogOfTwoTimes(dict(enumerate(IDS[:3])))
    with consumer_of(LogClient(log, a_poll=3), store, effects=OUTSIDE) as consumer:
        for event in next(iter(consumer)):
            if event.id == IDS[1]:
                event.failed(ValueError())
            else:
                event.done()
    row = row_of(store)
    assert (row.next, row.marked_until) == (1, 3)
    assert row.log_time_ms < DAYS_MS
    assert [g.generation for g in row.generations] == [1, (1_000_002 + DAYS_MS) // 302_400_000 + 1]
