"""How records become batches: one test a row of the table, and what it must never do."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

import effectonce as eo
from effectonce.model import Committed, Partition
from effectonce.now import now
from effectonce.owned import Partial
from effectonce.ports import Records, TopicPartition
from effectonce.stores.memory import MemoryStore
from effectonce.width import MOST, SLOW_SECONDS, WAIT_SECONDS, Width
from tests.unit.lone import CONFIG, TOPIC, Log, LogClient, LogsClient, SomeRecords, consumer_of

LIMIT = 100
GROUP = CONFIG["group.id"]
Sizes = list[tuple[int, int]]


class Queue:
    """What a client has fetched, and a consumer that has polled before: 10 ms ago."""

    def __init__(self, *runs: tuple[int, int], holds_cheaply: bool = True) -> None:
        """So many records of one partition, then of the next."""
        self.holds_cheaply = holds_cheaply
        client: Any = self
        self.waiting: list[tuple[int, int]] = []
        self.ends = Counter[int]()
        self.at = 9.99
        self.width = Width(client, lambda: self.at)
        self.partials: Mapping[TopicPartition, Partial] = {}
        self.came: list[Records] = []
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

    def gather(self, *, limit: int = LIMIT, behind_seconds: float = 0.01) -> Sizes:
        self.asked, self.waited = list[int](), list[float]()
        self.at += behind_seconds
        found = now(self.width.gather, limit, 0.1, self.partials)
        self.partials = found.partials
        self.came += found.batches
        return [(each.partition, len(each)) for each in found.batches]

    def kept(self) -> Sizes:
        return [(number, len(each.records)) for (_, number), each in self.partials.items()]

    def all_in_order(self) -> bool:
        """What has come of each partition, and what is kept, is all there was, in its order."""
        came = [*self.came, *(each.records for each in self.partials.values())]
        return all(
            [int(at) for each in came if each.partition == number for at in each.offsets()]
            == [*range(end - sum(partition == number for partition, _ in self.waiting))]
            for number, end in self.ends.items()
        )


def in_turn(*, of: int, records: int) -> Sizes:
    """One record of each partition, then of each the next."""
    return [(n % of, 1) for n in range(records)]


# -- the last poll brought less than was asked -----------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "batches"),
    [([], []), ([(0, 99)], [(0, 99)]), ([(0, 20), (1, 30)], [(0, 20), (1, 30)])],
    ids=["nothing", "one", "two"],
)
def test_all_that_is_there_goes_at_once_or_live_records_would_wait(
    runs: Sizes, batches: Sizes
) -> None:
    queue = Queue(*runs)
    assert queue.gather() == batches
    assert queue.kept() == []
    assert (queue.asked, queue.waited) == ([LIMIT], [0.1])


def test_what_waited_goes_with_the_last_records_of_a_backlog() -> None:
    queue = Queue((0, 80), (1, 30))
    assert queue.gather() == [(0, 80), (1, 30)]
    queue.add((0, 80), (1, 120))
    assert queue.gather() == [(1, 100)]
    assert queue.kept() == [(0, 80)]
    assert queue.gather() == [(0, 80), (1, 20)]
    assert queue.waited == [0.0], "records in hand waited for others to come"
    assert queue.all_in_order()


# -- it came late ----------------------------------------------------------------------------------


def test_where_handlers_are_slow_all_goes_or_a_partition_would_wait_for_all_the_others() -> None:
    queue = Queue((0, 80), (1, 1000))
    queue.gather()
    assert queue.kept() == [(0, 80)]
    late = queue.gather(behind_seconds=SLOW_SECONDS + 0.01)
    assert late[0] == (0, 80)
    assert (queue.kept(), queue.asked) == ([], [LIMIT])


# -- it was full -----------------------------------------------------------------------------------


def test_whole_batches_go_and_the_rest_waits_for_more_of_its_partition() -> None:
    queue = Queue((0, 20), (1, 150), (0, 1000))
    assert queue.gather() == [(1, 100)]
    assert (queue.asked, queue.kept()) == ([100, 20], [(0, 20)])
    assert queue.gather() == [(0, 100), (0, 100)]
    assert queue.kept() == [(0, 70), (1, 50)]
    assert queue.all_in_order()


def test_a_batch_is_filled_exactly_or_what_is_too_much_of_each_would_be_carried_along() -> None:
    queue = Queue((0, 30), (1, 1000))
    assert (queue.gather(), queue.asked) == ([(1, 100)], [100, 30])
    assert (queue.gather(), queue.asked) == ([(1, 100)], [100])
    assert queue.kept() == [(0, 30)]


def test_nearly_a_whole_batch_is_one() -> None:
    queue = Queue((0, 90), (1, 1000))
    assert queue.gather() == [(0, 90)]
    assert queue.kept() == [(1, 10)]


def test_a_partition_of_which_no_more_comes_is_not_left_waiting_while_others_flow() -> None:
    queue = Queue((0, 20), (1, 10_000))
    queue.gather()
    polls = 1
    while (0, 20) not in queue.gather():
        polls += 1
        assert polls < 10
    assert WAIT_SECONDS <= polls * 0.01 <= WAIT_SECONDS + 0.02
    assert queue.all_in_order()


def test_what_waits_counts_from_when_it_came_and_not_from_the_batch_before_it() -> None:
    queue = Queue(*[(0, 120)] * 40)
    assert [queue.gather() for _ in range(20)] == [[(0, 100)]] * 20


def test_a_poll_asks_for_a_batch_of_each_where_the_last_one_was_of_several_alike() -> None:
    queue = Queue(*in_turn(of=4, records=2000))
    queue.gather()
    queue.gather()
    assert queue.asked == [4 * LIMIT]
    assert queue.all_in_order()


@pytest.mark.parametrize("runs", [[(0, 100)], [(0, 10), (1, 90)]], ids=["one", "unlike"])
def test_else_for_a_batch_or_more_would_be_in_memory_than_caches_hold(runs: Sizes) -> None:
    queue = Queue(*runs, (1, 5000))
    queue.gather()
    queue.gather()
    assert queue.asked == [LIMIT]


def test_the_first_poll_asks_for_a_batch_or_one_partition_would_be_handed_too_much() -> None:
    queue = Queue((0, 1000))
    assert (queue.gather(), queue.asked) == ([(0, 100)], [LIMIT])


def test_many_partitions_do_not_bring_more_than_memory_should_hold() -> None:
    queue = Queue(*in_turn(of=200, records=4 * MOST))
    for _ in range(20):
        queue.gather()
        assert max(queue.asked, default=0) <= MOST
        assert sum(size for _, size in queue.kept()) <= MOST + LIMIT
    assert queue.all_in_order()


def test_a_batch_may_be_larger_than_that_if_asked_for() -> None:
    queue = Queue((0, 2 * MOST))
    assert queue.gather(limit=MOST + 1) == [(0, MOST + 1)]


def test_no_batch_is_larger_than_was_asked_for_though_it_is_less_by_now() -> None:
    queue = Queue((0, 80), (1, 1000))
    queue.gather()
    assert max(size for _, size in queue.gather(limit=30)) == 30
    assert queue.all_in_order()


def test_nothing_waits_where_the_collector_would_walk_it_each_time() -> None:
    queue = Queue((0, 20), (1, 80), *in_turn(of=4, records=1000), holds_cheaply=False)
    assert queue.gather() == [(0, 20), (1, 80)]
    assert queue.gather() == [(0, 25), (1, 25), (2, 25), (3, 25)]
    assert queue.gather() == [(0, 85), (1, 85), (2, 85), (3, 85)]
    assert queue.all_in_order()


# -- in a consumer ---------------------------------------------------------------------------------


class InTurn(LogsClient):
    """Partitions whose records come in turn: so many of the first, so many of the next."""

    def __init__(self, *turn: int) -> None:
        ids = iter(str(uuid.UUID(int=n)) for n in range(200 * len(turn)))
        super().__init__(
            {(TOPIC, n): Log({at: next(ids) for at in range(200)}) for n in range(len(turn))}
        )
        self.turn = turn

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if not self._assigned and self._listener is not None:
            self._assigned = True
            self._listener.on_assigned([*self.logs])
            return ()
        got: dict[TopicPartition, list[tuple[int, str]]] = {}
        while limit > 0:
            before = limit
            for home in (home for home in self.logs if home not in self.paused):
                found = self.logs[home].read(self.next[home], min(limit, self.turn[home[1]]))
                got.setdefault(home, []).extend(found.rows)
                self.next[home] += len(found.rows)
                limit -= len(found.rows)
            if limit == before:
                break
        return [SomeRecords(rows, partition=home[1]) for home, rows in got.items() if rows]


def consumed(
    *turn: int, store: MemoryStore | None = None, steals: int = 0
) -> list[list[tuple[int, int]]]:
    """Partitions and offsets, batch by batch; in so many of them somebody else opens the first."""
    store, batches = store or MemoryStore(), list[list[tuple[int, int]]]()

    def handler(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        batches.append([(event.partition, event.offset) for event in batch])
        if len(batches) <= steals:
            store.open(Partition(GROUP, GROUP, TOPIC, batch[0].partition), LogClient.topic_id)

    with consumer_of(InTurn(*turn), store) as consumer:
        consumer.run_batches(handler, size=20, until=eo.END)
    return batches


def test_batches_of_mixed_partitions_are_nearly_whole_and_never_larger_than_was_asked_for() -> None:
    batches = consumed(2, 2, 2, 2)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= 20
    assert sum(sizes) / len(sizes) > 19
    seen = [event for batch in batches for event in batch]
    assert sorted(seen) == [(number, offset) for number in range(4) for offset in range(200)]
    for number in range(4):
        of_one = [offset for partition, offset in seen if partition == number]
        assert of_one == sorted(of_one)


def test_what_waits_behind_a_batch_that_is_refused_comes_after_it_or_the_batch_would_be_lost() -> (
    None
):
    refused, *batches = consumed(3, 2, steals=1)
    assert refused == [(0, offset) for offset in range(20)]
    for number in range(2):
        of_one = [offset for batch in batches for partition, offset in batch if partition == number]
        assert of_one == [*range(200)]


def test_batches_are_no_larger_than_asked_for_though_a_larger_one_was_left_by_the_run_before() -> (
    None
):
    sizes: list[int] = []

    def breaks_off(event: eo.Event, tx: eo.KeyValueTx) -> None:
        if event.offset == 5:
            raise KeyboardInterrupt

    with consumer_of(InTurn(1), MemoryStore()) as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.run(breaks_off)
        consumer.run_batches(lambda batch, tx: sizes.append(len(batch)), size=7, until=eo.END)
    assert max(sizes) == 7
    assert sum(sizes) == 195


def test_a_run_that_is_refused_changes_nothing_for_the_one_that_goes_on() -> None:
    sizes: list[int] = []

    def handler(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        sizes.append(len(batch))
        with pytest.raises(RuntimeError, match="in a handler"):
            consumer.run(lambda event, tx: None)

    with consumer_of(InTurn(1), MemoryStore()) as consumer:
        consumer.run_batches(handler, size=7, until=eo.END)
    assert max(sizes) == 7


class StaleClient(LogClient):
    """Behind the first records of a poll come some from before the seek, as librdkafka's did."""

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        found = [
            each for each in super().fetch(limit, timeout_seconds) if isinstance(each, SomeRecords)
        ]
        stale = self._log.read(0, 4).rows
        return [replace(each, rows=[*each.rows[:1], *stale, *each.rows[1:]]) for each in found]


@pytest.mark.parametrize("lanes", [1, 3])
def test_records_from_before_the_position_do_not_run_wherever_in_a_poll_they_come(
    lanes: int,
) -> None:
    log, ran = Log({n: f"event-{n}" for n in range(9)}), list[int]()
    log.committed = Committed(4)  # by a group without a store of ours: no marker says what ran
    client = StaleClient(log, a_poll=3)
    with consumer_of(client, MemoryStore(), effects=eo.Outside("repeat")) as consumer:
        consumer.run(lambda event: ran.append(event.offset), until=eo.END, lanes=lanes)
    assert sorted(ran) == [4, 5, 6, 7, 8]
