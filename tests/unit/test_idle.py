"""A partition without traffic: the table of `core/idle.py`, a test a row, and the driver."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

import effectonce as eo
from effectonce.core.generation import turn
from effectonce.core.idle import let_time_pass
from effectonce.model import UNSET, Applied, Commit, LogEnds, Partition, Position
from effectonce.ports import TopicPartition
from effectonce.stores.memory import MemoryStore
from effectonce.testing.owner import Owner, next_generation
from tests.unit.builders import AT, HALF_MS, ROW, WALL_MS
from tests.unit.lone import Log, SlowPolls, consumer_of

NOW_MS: Final = WALL_MS + 10 * HALF_MS
PASSED: Final = replace(turn(ROW, WALL_MS, HALF_MS), next=10, wall_ms=WALL_MS)
"""A row that has passed records up to WALL_MS, by both clocks."""


def passes(row: Position, newest_ms: int, wall_ms: int = NOW_MS) -> Commit | None:
    return let_time_pass(AT, row, newest_ms=newest_ms, wall_ms=wall_ms, half_ms=HALF_MS, serial=7)


def test_log_time_rises_with_the_wall_or_a_shared_scope_would_keep_its_markers_for_ever() -> None:
    commit = passes(PASSED, newest_ms=NOW_MS)
    assert commit is not None
    assert (commit.position.log_time_ms, commit.position.wall_ms) == (NOW_MS, NOW_MS)
    assert commit.position.floor == PASSED.floor + 10
    assert (commit.position.next, commit.follows, commit.markers) == (10, PASSED.commit_id, None)


def test_log_time_rises_no_further_than_the_scopes_or_a_wrong_clock_would_drop_markers() -> None:
    commit = passes(PASSED, newest_ms=WALL_MS + HALF_MS)
    assert commit is not None
    assert commit.position.log_time_ms == WALL_MS + HALF_MS
    assert passes(PASSED, newest_ms=WALL_MS) is None
    assert passes(PASSED, newest_ms=UNSET) is None


def test_log_time_rises_no_further_than_the_wall_or_old_records_that_pause_would_lose_theirs() -> (
    None
):
    commit = passes(PASSED, newest_ms=NOW_MS, wall_ms=WALL_MS + HALF_MS)
    assert commit is not None
    assert commit.position.log_time_ms == WALL_MS + HALF_MS


def test_a_wall_clock_that_goes_back_moves_nothing() -> None:
    assert passes(PASSED, newest_ms=NOW_MS, wall_ms=0) is None


def test_a_partition_that_never_had_a_record_is_as_old_as_the_scope() -> None:
    commit = passes(replace(ROW, next=0), newest_ms=NOW_MS)
    assert commit is not None
    assert commit.position.log_time_ms == NOW_MS
    assert commit.position.floor == commit.position.generations[-1].generation - 2


def test_nothing_is_written_within_a_generation_or_idle_partitions_would_cost_writes() -> None:
    assert passes(PASSED, newest_ms=WALL_MS + 1, wall_ms=WALL_MS + 1) is None


# -- the driver ------------------------------------------------------------------------------------

DAYS: Final = 30
BUSY: Final = Partition("billing", "billing", "orders", 1)


class HoldsMore(SlowPolls):
    """Its log has a record that has not come yet."""

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        return LogEnds(0, self._log.end + 1)


class HoldsOther(SlowPolls):
    """The topic was made anew, which nobody has noticed yet."""

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        return LogEnds(0, self._log.end - (1 if self._polls > 5 else 0))


class HoldsOtherOfTheSameLength(SlowPolls):
    """The same, just before it is asked where its log ends; the consumer is stopped then."""

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        if self._polls >= 10:
            self.topic_id = b"U" * 16
            self.at_poll = {self._polls + 1: self.at_poll[20]}
        return super().log_ends(partition)


@pytest.mark.parametrize(
    "client_type", [SlowPolls, HoldsMore, HoldsOther, HoldsOtherOfTheSameLength]
)
def test_an_idle_partition_lets_go_of_old_generations_unless_records_wait_in_its_log(
    client_type: type[SlowPolls],
) -> None:
    """A copy among those that wait is within the window of the log, whatever the wall says."""
    store, client = MemoryStore(), client_type(Log(), seconds=20.0)
    busy = Owner.open(store, BUSY)
    assert busy.commit([100]) == Applied()

    def days_pass() -> None:
        client.handmade.days += DAYS
        passed = replace(busy.position, log_time_ms=1_000_000 + DAYS * 86_400_000)
        busy.position = next_generation(passed, 2 * DAYS // 7 + 1, floor=2 * DAYS // 7 - 1)
        assert busy.commit([101]) == Applied()

    with consumer_of(client, store, effects=eo.Outside("repeat")) as consumer:
        client.at_poll = {10: days_pass, 20: consumer.stop}
        consumer.run(lambda event: None)
    assert busy.commit(to=replace(busy.position, floor=busy.position.floor + 1)) == Applied()
    assert busy.seen(100, 101) == [client_type is not SlowPolls, True]
