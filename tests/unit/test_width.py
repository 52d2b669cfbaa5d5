"""How much is asked of the client at once, and how it is cut."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence

import pytest

import effectonce as eo
from effectonce.now import now
from effectonce.ports import Records, TopicPartition
from effectonce.stores.memory import MemoryStore
from effectonce.width import MOST, SLOW_SECONDS, Width
from tests.unit.lone import TOPIC, Log, LogsClient, SomeRecords, consumer_of

LIMIT = 100


class Queue:
    """What a client has fetched, and a consumer that has polled before: 10 ms ago."""

    def __init__(self, *runs: tuple[int, int]) -> None:
        """So many records of one partition, then of the next."""
        self.waiting: list[tuple[int, int]] = []
        self.ends = Counter[int]()
        self.at = 9.99
        self.width = Width(self.fetch, lambda: self.at)
        self.gather()
        self.add(*runs)

    def add(self, *runs: tuple[int, int]) -> None:
        for partition, size in runs:
            at = self.ends[partition]
            self.waiting += [(partition, at + n) for n in range(size)]
            self.ends[partition] += size

    async def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.asked.append(limit)
        self.waited.append(timeout_seconds)
        got: dict[int, list[tuple[int, str]]] = {}
        for partition, offset in self.waiting[:limit]:
            got.setdefault(partition, []).append((offset, "x"))
        del self.waiting[:limit]
        return [SomeRecords(rows, partition=partition) for partition, rows in got.items()]

    def gather(self, *, limit: int = LIMIT, behind_seconds: float = 0.01) -> Sequence[Records]:
        self.asked, self.waited = list[int](), list[float]()
        self.at += behind_seconds
        return now(self.width.gather, limit, 0.1)


def sizes(batches: Sequence[Records]) -> list[tuple[int, int]]:
    return [(each.partition, len(each)) for each in batches]


def in_turn(*, of: int, records: int) -> list[tuple[int, int]]:
    """One record of each partition, then of each the next."""
    return [(n % of, 1) for n in range(records)]


def test_the_first_poll_asks_for_a_batch_or_one_partition_would_be_handed_too_much() -> None:
    queue = Queue((0, 1000))
    queue.gather()
    assert queue.asked == [LIMIT]


def test_after_a_full_poll_of_four_partitions_a_batch_of_each_is_asked_for() -> None:
    queue = Queue(*in_turn(of=4, records=1000))
    queue.gather()
    queue.gather()
    assert queue.asked[0] == 340


@pytest.mark.parametrize(
    "runs", [[(0, 100)], in_turn(of=4, records=99), []], ids=["one", "not full", "none"]
)
def test_else_it_is_a_batch(runs: Sequence[tuple[int, int]]) -> None:
    queue = Queue(*runs)
    queue.gather()
    queue.add((0, 1000))
    queue.gather()
    assert queue.asked == [LIMIT]


def test_where_handlers_are_slow_it_is_a_batch_or_a_partition_would_wait_for_all_the_others() -> (
    None
):
    queue = Queue(*in_turn(of=4, records=1000))
    queue.gather()
    queue.gather(behind_seconds=SLOW_SECONDS + 0.01)
    assert queue.asked == [LIMIT], "what a batch lacked was asked for, too"


def test_many_partitions_do_not_bring_more_than_memory_should_hold() -> None:
    queue = Queue(*in_turn(of=LIMIT, records=3 * MOST))
    queue.gather()
    assert sum(map(len, queue.gather())) == MOST
    queue.gather(limit=MOST + 1)
    assert queue.asked == [MOST + 1]


def test_who_asks_for_one_is_given_one_or_a_tending_keeper_would_take_more() -> None:
    queue = Queue(*in_turn(of=4, records=1000))
    queue.gather()
    assert len(queue.gather(limit=1)) == 1
    assert queue.asked == [1]


def test_a_batch_that_came_in_part_is_filled_or_many_would_be_small() -> None:
    queue = Queue((0, 20), (1, 1000))
    batches = queue.gather()
    assert sizes(batches) == [(0, 20), (1, 100)]
    assert queue.asked == [100, 20]
    assert queue.waited == [0.1, 0.0], "records in hand waited for others to come"
    assert batches[1].offsets().tolist() == [*range(100)]


def test_what_fills_one_partition_may_begin_another() -> None:
    queue = Queue((0, 20), (1, 85), (2, 1000))
    assert sizes(queue.gather()) == [(0, 20), (1, 85), (2, 100)]


def test_a_partition_that_came_before_and_comes_again_stays_in_order() -> None:
    queue = Queue((0, 20), (1, 90), (0, 1000))
    batches = queue.gather()
    assert sizes(batches) == [(1, 90), (0, 100)]
    assert batches[1].offsets().tolist() == [*range(100)]


@pytest.mark.parametrize("more", [0, 15], ids=["nothing", "too little"])
def test_what_is_not_there_is_not_asked_for_twice(more: int) -> None:
    queue = Queue((0, 20), (1, 80 + more))
    assert sizes(queue.gather()) == [(0, 20), (1, 80 + more)]
    assert queue.asked == [100, 20]


def test_of_mixed_partitions_what_is_asked_for_more_is_of_all_of_them_and_makes_none_too_long() -> (
    None
):
    queue = Queue(*in_turn(of=4, records=1000))
    queue.gather()
    assert [size for _, size in sizes(queue.gather())] == [97, 97, 97, 97]
    assert queue.asked == [340, 48]


def test_for_the_last_few_records_of_a_batch_no_poll_is_spent() -> None:
    queue = Queue((0, 10), (1, 1000))
    assert sizes(queue.gather()) == [(0, 10), (1, 90)]


def test_what_is_longer_than_a_batch_is_cut_and_nothing_is_left_out() -> None:
    queue = Queue(*in_turn(of=4, records=100))
    queue.gather()
    queue.add((0, 240), (1, 90), (2, 1))
    batches = queue.gather()
    assert sizes(batches) == [(0, 100), (0, 100), (0, 40), (1, 90), (2, 1)]
    assert [int(each.offsets()[0]) for each in batches] == [25, 125, 225, 25, 25]


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
    batches, seen = list[int](), list[tuple[int, int]]()

    def handler(batch: eo.Batch) -> None:
        batches.append(len(batch))
        seen.extend((event.partition, event.offset) for event in batch)

    with consumer_of(Mixed(), MemoryStore(), effects=eo.Outside(on_doubt="repeat")) as consumer:
        consumer.run_batches(handler, size=20, until=eo.END)
    assert max(batches) <= 20
    assert sum(batches) / len(batches) > 17
    assert sorted(seen) == [(number, offset) for number in range(4) for offset in range(200)]
    for number in range(4):
        of_one = [offset for partition, offset in seen if partition == number]
        assert of_one == sorted(of_one)
