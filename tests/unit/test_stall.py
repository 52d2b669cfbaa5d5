"""The table of `core/stall.py`, a test a row."""

from dataclasses import replace

import pytest

from effectonce.core.settle import commit_id
from effectonce.core.stall import Pace, attempt, first_start, pace, rest
from effectonce.model import UNSET, Commit, Position
from tests.unit.builders import AT, ROW, batch, planned, settled


def deaths(row: Position, count: int) -> Position:
    """Owners that begin, and die before anything is committed."""
    for epoch in range(2, count + 2):
        row = first_start(AT, replace(row, epoch=epoch), 2).position
    return row


@pytest.mark.parametrize("count", [0, 1, 2])
def test_up_to_two_deaths_run_as_usual_or_a_deployment_would_slow_a_partition(count: int) -> None:
    assert pace(deaths(ROW, count)) is Pace.USUAL


@pytest.mark.parametrize("count", [3, 4, 40])
def test_after_three_deaths_records_run_one_by_one_or_one_would_kill_the_group_for_ever(
    count: int,
) -> None:
    assert pace(deaths(ROW, count)) is Pace.ONE_BY_ONE


def test_an_owner_that_starts_nothing_does_not_count_or_an_idle_partition_would_stall() -> None:
    opened = [replace(ROW, epoch=epoch) for epoch in range(2, 9)]
    assert {pace(row) for row in opened} == {Pace.USUAL}


def test_any_advance_starts_the_count_anew_or_healthy_partitions_would_slow_down_one_day() -> None:
    records = batch("a b")
    commit = settled(records, planned(records), "d f", position=deaths(ROW, 3))
    assert commit is not None
    assert pace(commit.position) is Pace.USUAL
    assert deaths(commit.position, 1).stalled_opens == 1


def test_each_attempt_is_counted_before_it_or_the_record_that_kills_would_never_be_found() -> None:
    row = deaths(ROW, 3)
    for made in (1, 2, 3):
        row = attempt(AT, replace(row, epoch=row.epoch + 1), 7, 3).position
        assert (row.attempt_offset, row.attempts) == (7, made)


def test_another_record_is_counted_from_one_or_it_would_pay_for_its_neighbour() -> None:
    row = attempt(AT, attempt(AT, ROW, 7, 2).position, 8, 3).position
    assert (row.attempt_offset, row.attempts) == (8, 1)


def test_counts_end_where_a_byte_layout_may_end() -> None:
    row = replace(ROW, stalled_opens=0xFFFF, attempt_offset=7, attempts=0xFFFF)
    assert first_start(AT, row, 2).position.stalled_opens == 0xFFFF
    assert attempt(AT, row, 7, 2).position.attempts == 0xFFFF


def test_from_the_first_start_to_the_rest_records_may_be_in_flight() -> None:
    started = first_start(AT, ROW, 2).position
    assert started.in_flight
    rested = rest(AT, started, 3)
    assert rested is not None
    assert not rested.position.in_flight


def test_a_partition_that_ran_nothing_has_nothing_to_note() -> None:
    assert rest(AT, ROW, 2) is None


@pytest.mark.parametrize(("stored", "counted"), [(0, 1), (1, 1), (2, 2)])
def test_a_first_start_that_was_not_answered_is_counted_once_or_it_would_be_a_death(
    stored: int, counted: int
) -> None:
    """Whether the row has it or not."""
    row = replace(ROW, next=5, stalled_opens=stored)
    assert first_start(AT, row, 6, counted_at=5).position.stalled_opens == counted
    assert first_start(AT, row, 6, counted_at=4).position.stalled_opens == stored + 1


@pytest.mark.parametrize(
    "note",
    [
        first_start(AT, replace(ROW, next=5, epoch=4), 6),
        attempt(AT, replace(ROW, next=5, epoch=4), 5, 6),
        rest(AT, replace(ROW, next=5, epoch=4, in_flight=True), 6),
    ],
    ids=["first start", "attempt", "rest"],
)
def test_a_note_moves_and_marks_nothing_and_is_fenced_like_any_commit(note: Commit | None) -> None:
    assert note is not None
    assert (note.at, note.follows, note.position.next, note.position.epoch) == (
        *(AT, ROW.commit_id),
        *(5, 4),
    )
    assert note.position.commit_id == commit_id(4, 6)
    assert (note.markers, note.writes) == (None, ())
    assert note.position.log_time_ms == UNSET


def test_a_counted_attempt_at_the_head_keeps_it_alone_or_each_needs_three_deaths_more() -> None:
    suspected = replace(ROW, attempt_offset=ROW.next, attempts=1, stalled_opens=0)
    assert pace(suspected) is Pace.ONE_BY_ONE
    assert pace(replace(suspected, next=ROW.next + 1)) is Pace.USUAL
