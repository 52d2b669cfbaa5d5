"""The driver where a broker cannot easily be brought: on a client that lives in this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import effectonce as eo
from effectonce.errors import BrokerError, StoreUnavailable
from effectonce.handlers import run_events
from effectonce.model import Commit, CommitResult, Committed, LogEnds, Stale, Unknown
from effectonce.ports import CommitMode, KafkaOffset, Records, TopicPartition
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore
from tests.unit.lone import HOME, IDS, Log, LogClient, SlowPolls, consumer_of, count, effects_in

pytestmark = pytest.mark.timeout(30)

# -- what a run is told ----------------------------------------------------------------------------


def test_all_that_is_wrong_with_a_run_is_told_at_once() -> None:
    wrong: Any = {"handler": None, "until": "end", "lanes": 0}
    with consumer_of(LogClient(Log()), MemoryStore()) as consumer:
        with pytest.raises(eo.ConfigError) as refused:
            consumer.run(**wrong)
        said = [each.split("=")[0] for each in refused.value.problems]
        assert said == ["handler", "until", "lanes"]
        with pytest.raises(eo.ConfigError, match="2 problems"):
            consumer.run_batches(wrong["handler"], size=0)


class Asked(LogClient):
    """Remembers how many records were asked for."""

    limits: set[int]

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.limits.add(limit)
        return super().fetch(limit, timeout_seconds)


def test_the_size_of_batches_is_theirs_alone_or_the_next_run_crawls() -> None:
    def break_off(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        raise KeyboardInterrupt

    client = Asked(Log())
    with consumer_of(client, MemoryStore()) as consumer:
        client.limits = set()
        with pytest.raises(KeyboardInterrupt):
            consumer.run_batches(break_off, size=1)
        assert client.limits == {1}
        client.limits = set()
        consumer.run(lambda event, tx: None, until=eo.END)
        assert client.limits == {eo.Limits().batch}


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_that_failed_is_no_attempt_at_its_first_record() -> None:
    """With a single attempt allowed, its neighbours would be blamed, and never run."""
    store = MemoryStore()

    def handler(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        for event in batch:
            count(event, tx)
            if event.id == IDS[1]:
                raise ValueError

    with (
        consumer_of(LogClient(Log()), store, retry=eo.Retry(attempts=1)) as consumer,
        pytest.raises(eo.HandlerFailed, match="offset 1: the handler failed with ValueError"),
    ):
        consumer.run_batches(handler, until=eo.END)
    assert effects_in(store) == IDS[:1]


# -- a position that is gone -----------------------------------------------------------------------


class LogThatLosesThePosition(LogClient):
    """Says so in the middle of a handler, as the keeper polls."""

    said = False

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if self.asked_by_keeper() and not self.said:
            assert self._listener is not None
            self._listener.on_position_gone(HOME, "offset out of range")
            self.said = True
        return super().fetch(limit, timeout_seconds)

    @staticmethod
    def asked_by_keeper() -> bool:
        return threading.current_thread().name == "effectonce-keeper"


@pytest.mark.parametrize("effects", [eo.InStore(), eo.Outside("repeat")], ids=["in-store", "out"])
def test_a_position_that_is_gone_while_a_handler_runs_costs_the_event_nothing(
    effects: object,
) -> None:
    client, ran = LogThatLosesThePosition(Log()), list[str]()

    def handler(event: eo.Event, *tx: eo.KeyValueTx) -> None:
        ran.append(event.id)
        while not client.said:
            pass

    store = MemoryStore()
    quick = {"max.poll.interval.ms": 200, "session.timeout.ms": 100, "heartbeat.interval.ms": 30}
    with consumer_of(client, store, quick, effects=effects) as consumer:
        consumer.run(handler, until=eo.END)
    assert ran == IDS


# -- a partition that somebody else opened ---------------------------------------------------------


def test_a_partition_that_was_opened_by_another_between_two_batches_is_opened_again(
    tmp_path: Path,
) -> None:
    """A look-up comes first then, and its answer is no outage that ends by itself."""
    store, other = RocksDBStore(tmp_path), RocksDBStore(tmp_path)
    ran: list[str] = []
    try:
        with consumer_of(LogClient(Log()), store) as consumer:
            for batch in consumer:
                for event in batch:
                    with event:
                        ran.append(event.id)
                if len(ran) == 2:
                    consumer._settle_loan()
                    (owned,) = consumer._assignment.partitions()
                    store.release(owned.at)
                    other.open(owned.at, b"T" * 16)
                    other.close()
                if len(ran) == 5:
                    break
        assert ran == IDS
    finally:
        store.close()


class StoreThatIsStaleOnce(MemoryStore):
    """Somebody opens the partition just before the first start of it is counted."""

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        first = commits[0]
        if first.markers is None and first.position.in_flight and not self.was_stale:
            self.was_stale = True
            return [Stale()]
        return super().commit(commits)

    was_stale = False


def test_records_from_before_a_partition_was_opened_again_are_not_kept() -> None:
    """They are handed out once more; and should the topic be another by then, they are not its."""
    log, store = Log(), StoreThatIsStaleOnce()

    class LogThatIsAnotherByThen(LogClient):
        def log_ends(self, partition: TopicPartition) -> LogEnds:
            if store.was_stale:
                log.ids = {0: "another-event"}
            return super().log_ends(partition)

    with consumer_of(LogThatIsAnotherByThen(log), store) as consumer:
        consumer.run(count, until=eo.END)
    assert effects_in(store) == ["another-event"]


# -- Kafka says no ---------------------------------------------------------------------------------


class LogThatRefuses(LogClient):
    """The commit of the end, once; the answer comes with the next poll."""

    refused = False

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        ends = [each.offset for each in offsets if each.offset == self._log.end]
        if ends and not self.refused:
            self.refused = True
        else:
            super().commit(offsets, mode)

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if self.refused and self._listener is not None:
            self._listener.on_commit_refused([HOME])
        return super().fetch(limit, timeout_seconds)


def test_a_commit_that_kafka_refused_is_told_again_or_an_idle_partition_shows_a_lag_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("effectonce.assignment.TELL_SECONDS", 0.0)
    log = Log()
    client = LogThatRefuses(log)
    with consumer_of(client, MemoryStore()) as consumer:
        for _ in range(20):
            consumer._start()
            task = consumer._turn(1)
            if task is not None:
                consumer._carry_out(task, run_events, count)
        assert client.refused
        assert log.committed is not None
        assert log.committed.offset == log.end


class LogThatFailsOnce(LogClient):
    """With an error that ends a run, in the middle of records that it has handed over."""

    failed = False

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        found = super().fetch(limit, timeout_seconds)
        if found and not self.failed:
            self.failed = True
            raise BrokerError("Kafka: topic authorization failed")
        return found


def test_records_that_an_error_of_kafkas_swallowed_come_again_in_a_second_run() -> None:
    store = MemoryStore()
    with consumer_of(LogThatFailsOnce(Log()), store) as consumer:
        with pytest.raises(BrokerError):
            consumer.run(count, until=eo.END)
        consumer.run(count, until=eo.END)
    assert effects_in(store) == IDS


# -- troubles of a start ---------------------------------------------------------------------------


class StoreThatCannotSayAtOnce(MemoryStore):
    asked = False

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        if not self.asked:
            self.asked = True
            raise StoreUnavailable("down")
        return super().has_positions(scope, group, topic)


def test_a_store_that_is_down_when_a_new_group_asks_who_came_before_is_waited_for() -> None:
    store, log = StoreThatCannotSayAtOnce(), Log()
    with consumer_of(LogClient(log), store, start="latest") as consumer:
        consumer.run(count, until=eo.END)
    assert store.asked
    assert effects_in(store) == []


def test_an_event_that_failed_here_is_told_that_it_may_have_run_or_it_is_charged_twice() -> None:
    said: list[tuple[str, bool]] = []

    def fails_once(event: eo.Event) -> None:
        said.append((event.id, event.maybe_repeated))
        if event.id == IDS[1] and said.count((IDS[1], True)) == 0:
            raise ValueError

    outside: dict[str, Any] = {"effects": eo.Outside("repeat")}
    log = Log(dict(enumerate(IDS[:3])))
    retry = eo.Retry(wait_initial=timedelta(0))
    with consumer_of(LogClient(log), MemoryStore(), retry=retry, **outside) as consumer:
        consumer.run(fails_once, until=eo.END)
    assert said == [(IDS[0], False), (IDS[1], False), (IDS[1], True), (IDS[2], False)]


class RebalancedTwice(LogClient):
    """While a handler runs its partition is taken, given again, taken and given."""

    def rebalance(self) -> None:
        assert self._listener is not None
        for _ in range(2):
            self._listener.on_revoked([HOME])
            self._listener.on_assigned([HOME])
        self._paused = True


def test_a_handler_that_outlives_two_rebalances_can_still_mark_or_its_effect_comes_again(
    tmp_path: Path,
) -> None:
    client, ran = RebalancedTwice(Log()), list[str]()

    def handler(event: eo.Event) -> None:
        ran.append(event.id)
        if len(ran) == 1:
            client.rebalance()

    store = RocksDBStore(tmp_path)
    with consumer_of(client, store, effects=eo.Outside("repeat")) as consumer:
        consumer.run(handler, until=eo.END)
    store.close()
    assert ran == IDS


class StoreThatFailsOnce(RocksDBStore):
    fails = False

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        if self.fails:
            self.fails = False
            return [Unknown(StoreUnavailable("full")) for _ in commits]
        return super().commit(commits)


def test_a_commit_that_failed_under_a_revoked_handler_goes_out_again_before_the_lock_is_freed(
    tmp_path: Path,
) -> None:
    """Given again meanwhile, and revoked once more by the poll in which the keeper leaves."""
    client, store, ran = RebalancedTwice(Log()), StoreThatFailsOnce(tmp_path), list[str]()
    with consumer_of(client, store, effects=eo.Outside("repeat")) as consumer:
        left = consumer._keeper.left

        def leaves_late() -> None:
            consumer._keeper.left = left  # type: ignore[method-assign]
            client.rebalance()
            left()

        def handler(event: eo.Event) -> None:
            ran.append(event.id)
            if len(ran) == 1:
                client.rebalance()
                store.fails = True
                consumer._keeper.left = leaves_late  # type: ignore[method-assign]

        consumer.run(handler, until=eo.END)
    store.close()
    assert ran == IDS


# -- a job's end -----------------------------------------------------------------------------------


class OneOfTwoPartitions(LogClient):
    """A killed member holds the other one, and its session is not over yet."""

    asked = 0

    def partitions_of(self, topic: str) -> Sequence[int]:
        return [0, 1]

    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        if HOME in partitions:
            return super().committed(partitions)
        self.asked += 1
        return dict.fromkeys(partitions, Committed(5) if self.asked == 3 else Committed(1))


def test_a_job_does_not_end_while_a_partition_that_another_holds_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("effectonce.assignment.TELL_SECONDS", 0.0)
    client, store = OneOfTwoPartitions(Log()), MemoryStore()
    with consumer_of(client, store) as consumer:
        consumer.run(count, until=eo.END)
    assert client.asked == 3
    assert effects_in(store) == IDS


# -- in good order ---------------------------------------------------------------------------------


def test_after_a_failure_behind_a_hole_in_the_log_the_next_owner_says_maybe_repeated() -> None:
    """The hole is a control record: the position stands at 2, the failed record at 3."""
    log, store, said = Log({0: IDS[0], 1: IDS[1], 3: IDS[2]}), MemoryStore(), list[bool]()

    def fails(event: eo.Event) -> None:
        if event.id == IDS[2]:
            raise ValueError

    def says(event: eo.Event) -> None:
        said.append(event.maybe_repeated)

    outside: dict[str, Any] = {"effects": eo.Outside("repeat")}
    with (
        consumer_of(LogClient(log), store, retry=eo.Retry(attempts=1), **outside) as consumer,
        pytest.raises(eo.HandlerFailed),
    ):
        consumer.run(fails, until=eo.END)
    with consumer_of(LogClient(log), store, **outside) as consumer:
        consumer.run(says, until=eo.END)
    assert said[0]


class Counted(MemoryStore):
    """How often it was asked to commit."""

    commits = 0

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        self.commits += 1
        return super().commit(commits)


@pytest.mark.parametrize("thawed_in", range(5))
def test_a_process_that_was_frozen_in_a_handler_runs_nothing_more_before_it_asks_the_store(
    thawed_in: int,
) -> None:
    """Its successor may have run all of it meanwhile, and the store's fence knows."""
    client, store, at = SlowPolls(Log(), seconds=0.0), Counted(), list[int]()
    client._a_poll = len(IDS)

    def handler(event: eo.Event) -> None:
        at.append(store.commits)
        if event.offset == thawed_in:
            client.handmade.now += 60.0

    with consumer_of(client, store, effects=eo.Outside("repeat")) as consumer:
        consumer.run(handler, until=eo.END)
    before, after = at[: thawed_in + 1], at[thawed_in + 1 :]
    assert len(set(before)) == 1, "until then they are one slice"
    assert all(commits > before[0] for commits in after)
