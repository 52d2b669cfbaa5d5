"""How much is asked of the client at once, and how it is cut."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest

import effectonce as eo
from effectonce.ports import Records, TopicPartition
from effectonce.stores.memory import MemoryStore
from effectonce.width import MOST, SLOW_SECONDS, Width
from tests.unit.lone import TOPIC, Log, LogsClient, SomeRecords, consumer_of

LIMIT = 100


def came(*sizes: int) -> list[Records]:
    return [
        SomeRecords([(n, "x") for n in range(size)], partition=i) for i, size in enumerate(sizes)
    ]


def polled(*sizes: int) -> Width:
    """One poll at 10.0 that brought so many of each partition."""
    width = Width()
    width.wanted(LIMIT, 9.99)
    width.wanted(LIMIT, 10.0)
    width.cut(came(*sizes), LIMIT)
    return width


def test_the_first_poll_asks_for_a_batch_or_one_partition_would_be_handed_too_much() -> None:
    assert Width().wanted(LIMIT, 1000.0) == LIMIT


def test_after_a_full_poll_of_four_partitions_a_batch_of_each_is_asked_for() -> None:
    assert polled(25, 25, 25, 25).wanted(LIMIT, 10.01) == 340


@pytest.mark.parametrize("sizes", [(100,), (25, 25, 25, 24), ()], ids=["one", "not full", "none"])
def test_else_it_is_a_batch(sizes: Sequence[int]) -> None:
    assert polled(*sizes).wanted(LIMIT, 10.01) == LIMIT


def test_where_handlers_are_slow_it_is_a_batch_or_a_partition_would_wait_for_all_the_others() -> (
    None
):
    assert polled(25, 25, 25, 25).wanted(LIMIT, 10.01 + SLOW_SECONDS) == LIMIT


def test_many_partitions_do_not_bring_more_than_memory_should_hold() -> None:
    assert polled(*[1] * LIMIT).wanted(LIMIT, 10.01) == MOST
    assert polled(*[1] * LIMIT).wanted(MOST + 1, 10.01) == MOST + 1


def test_who_asks_for_one_is_given_one_or_a_tending_keeper_would_take_more() -> None:
    assert polled(25, 25, 25, 25).wanted(1, 10.01) == 1


def test_what_is_longer_than_a_batch_is_cut_and_nothing_is_left_out() -> None:
    parts = Width().cut(came(250, 100, 1), LIMIT)
    assert [(each.partition, len(each)) for each in parts] == [
        *((0, 100), (0, 100), (0, 50), (1, 100), (2, 1)),
    ]
    assert [int(each.offsets()[0]) for each in parts] == [0, 100, 200, 0, 0]


class Mixed(LogsClient):
    """Four partitions, two records of each in turn, as they come from a broker."""

    def __init__(self) -> None:
        ids = [str(uuid.UUID(int=n)) for n in range(800)]
        super().__init__({(TOPIC, n): Log(dict(enumerate(ids[n::4]))) for n in range(4)})

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if not self._assigned and self._listener is not None:
            self._assigned = True
            self._listener.on_assigned([*self.logs])
            return ()
        got: dict[TopicPartition, list[tuple[int, str]]] = {}
        while limit > 0:
            before = limit
            for home in (home for home in self.logs if home not in self.paused):
                found = self.logs[home].read(self.next[home], min(limit, 2))
                got.setdefault(home, []).extend(found.rows)
                self.next[home] += len(found.rows)
                limit -= len(found.rows)
            if limit == before:
                break
        return [SomeRecords(rows, partition=home[1]) for home, rows in got.items() if rows]


def test_batches_of_mixed_partitions_are_nearly_whole_and_never_larger_than_was_asked_for() -> None:
    sizes, seen = list[int](), list[tuple[int, int]]()

    def handler(batch: eo.Batch) -> None:
        sizes.append(len(batch))
        seen.extend((event.partition, event.offset) for event in batch)

    with consumer_of(Mixed(), MemoryStore(), effects=eo.Outside(on_doubt="repeat")) as consumer:
        consumer.run_batches(handler, size=20, until=eo.END)
    assert max(sizes) <= 20
    assert sum(sizes) / len(sizes) > 15
    assert sorted(seen) == [(number, offset) for number in range(4) for offset in range(200)]
    for number in range(4):
        of_one = [offset for partition, offset in seen if partition == number]
        assert of_one == sorted(of_one)
