"""The table of `core/generation.py`, a test a row, and a random life of the window."""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effectonce.core.generation import (
    MAX_AHEAD_MS,
    advance_log_time,
    generation_of,
    reach,
    turn,
)
from effectonce.core.plan import Columns, plan
from effectonce.core.settle import Ended, Moment, resolved_rows, settle
from effectonce.core.start import Begin, Situation, StartPolicy, start
from effectonce.model import UNSET, Commit, Committed, Known, LogEnds, OnExisting, Position
from effectonce.policy import OnReset
from tests.unit.builders import AT, HALF_MS, ROW, WALL_MS, batch, endings, marked, planned, settled

WINDOW_MS: Final = 2 * HALF_MS


def turned(row: Position, *halves: int) -> Position:
    """The row after a commit in each of these generations, ten records each."""
    for half in halves:
        row = turn(row, WALL_MS + half * HALF_MS, HALF_MS)
        row = replace(row, next=row.next + 10)
    return row


def numbers(row: Position) -> list[int]:
    """Its generations, counted from the one at WALL_MS."""
    return [g.generation - generation_of(WALL_MS, HALF_MS) for g in row.generations]


# -- the rows --------------------------------------------------------------------------------------


def test_log_time_rises_to_the_record_or_the_window_would_never_move() -> None:
    assert advance_log_time(1_000, 5_000, WALL_MS, WALL_MS) == 5_000


def test_log_time_follows_no_clock_from_the_future_or_one_record_would_drop_every_marker() -> None:
    assert advance_log_time(1_000, 9 * WALL_MS, WALL_MS, WALL_MS) == WALL_MS + MAX_AHEAD_MS


def test_log_time_never_goes_back_or_a_late_record_would_reopen_a_dropped_generation() -> None:
    assert advance_log_time(5_000, 1_000, WALL_MS, WALL_MS) == 5_000


def test_downtime_does_not_count_or_eight_days_of_it_would_eat_a_window_of_seven() -> None:
    assert advance_log_time(5_000, 5_001, 10 * WALL_MS, 0) == 5_001


def test_without_timestamps_log_time_rises_by_the_wall_or_markers_would_stay_for_ever() -> None:
    assert advance_log_time(1_000, UNSET, WALL_MS + 70, WALL_MS) == 1_070
    assert advance_log_time(UNSET, UNSET, WALL_MS, 0) == WALL_MS


def test_without_timestamps_downtime_counts_for_little_or_it_would_eat_the_window() -> None:
    assert advance_log_time(1_000, UNSET, 2 * WALL_MS, WALL_MS) == 1_000 + MAX_AHEAD_MS


def test_a_wall_clock_that_is_set_back_and_forth_leaves_log_time_near_it() -> None:
    log_time = advance_log_time(UNSET, 2 * WALL_MS, WALL_MS, 0)
    for wall_ms, last_wall_ms in ((WALL_MS - 10**7, WALL_MS), (WALL_MS, WALL_MS - 10**7)) * 9:
        log_time = advance_log_time(log_time, UNSET, wall_ms, last_wall_ms)
    assert log_time == WALL_MS + MAX_AHEAD_MS


def test_a_generation_begins_before_its_first_commit_or_the_horizon_would_hide_its_markers() -> (
    None
):
    row = turned(ROW, 0, 0, 1)
    assert [(g.offset, g.log_time_ms) for g in row.generations] == [
        (0, WALL_MS),
        (20, WALL_MS + HALF_MS),
    ]


def test_two_generations_behind_the_current_one_are_kept_or_a_marker_would_live_less_than_w() -> (
    None
):
    row = turned(ROW, 0, 1, 2)
    assert (numbers(row), row.horizon) == ([0, 1, 2], 0)


def test_three_generations_on_the_floor_and_the_horizon_rise_or_markers_would_stay_for_ever() -> (
    None
):
    row = turned(ROW, 0, 1, 2, 3)
    assert (numbers(row), row.horizon) == ([1, 2, 3], 10)
    assert row.floor == row.generations[0].generation


def test_a_newcomer_keeps_two_generations_too_or_a_shared_store_would_drop_its_neighbours() -> None:
    row = turned(ROW, 0)
    assert row.floor == row.generations[0].generation - 2


def test_a_leap_in_log_time_drops_all_that_was_before_it() -> None:
    row = turned(ROW, 0, 1, 90)
    assert (numbers(row), row.horizon) == ([90], 20)


def test_the_horizon_covers_the_commit_that_entered_or_a_reset_would_repeat_a_zombies_record() -> (
    None
):
    """What it passed may have been marked by a frozen owner, in the generation before."""
    row = replace(turn(turned(ROW, 0), WALL_MS + HALF_MS, HALF_MS, end=17), next=17)
    assert row.horizon == ROW.horizon
    assert turn(row, WALL_MS + 3 * HALF_MS, HALF_MS, end=20).horizon == 17
    entered_late = turn(reach(turned(ROW, 0), WALL_MS + HALF_MS, HALF_MS), WALL_MS, HALF_MS)
    assert entered_late.generations[-1].entered == UNSET
    entered_late = turn(entered_late, WALL_MS + HALF_MS, HALF_MS, end=19)
    assert entered_late.generations[-1].entered == 19


def test_repeats_in_a_rows_first_generation_are_below_the_horizon_for_nobody_knows_their_age() -> (
    None
):
    records = batch("a b c")
    commit = settled(records, planned(records, "a b"), "u u d")
    assert commit is not None
    assert commit.position.horizon == 2
    later = settled(records, planned(records, "a b"), "u u d", position=turned(ROW, 0))
    assert later is not None
    assert later.position.horizon == ROW.horizon


def test_a_marker_ahead_is_as_young_as_its_record_or_another_partition_would_drop_it_first() -> (
    None
):
    row = replace(turn(ROW, WALL_MS, HALF_MS), next=10)
    reached = reach(replace(row, marked_until=20), WALL_MS + 10 * HALF_MS, HALF_MS)
    assert numbers(reached) == [0, 10]
    assert (reached.log_time_ms, reached.floor) == (row.log_time_ms, row.floor)
    assert reached.generations[-1].until == 20
    assert reach(reached, WALL_MS + 9 * HALF_MS, HALF_MS) == reached
    passed = replace(turn(reached, WALL_MS + 10 * HALF_MS, HALF_MS), next=20)
    assert numbers(passed) == [0, 10], "its neighbours' generation waits for it too"
    assert numbers(turn(passed, WALL_MS + 12 * HALF_MS, HALF_MS)) == [0, 10, 12]
    assert numbers(turn(passed, WALL_MS + 13 * HALF_MS, HALF_MS)) == [13]


def test_a_generation_with_a_marker_ahead_stays_or_the_replay_would_repeat_its_effect() -> None:
    row = turned(replace(turned(ROW, 0), marked_until=1_000), 1, 2, 7)
    assert (numbers(row), row.horizon) == ([0, 1, 2, 7], 0)


def test_a_passed_marker_is_kept_a_whole_window_more_or_its_repeat_would_run() -> None:
    row = turned(replace(turned(ROW, 0), marked_until=15), 4)
    assert numbers(turned(row, 5, 6)) == [0, 4, 5, 6]
    row = turned(row, 5, 6, 7)
    assert (numbers(row), row.horizon) == ([5, 6, 7], 20)


def test_of_several_gaps_each_keeps_its_own_generations() -> None:
    row = replace(turned(ROW, 0), marked_until=12)
    row = replace(turned(row, 1), marked_until=45)
    assert numbers(turned(row, 2, 3)) == [0, 1, 2, 3]
    assert numbers(turned(row, 2, 3, 4)) == [1, 2, 3, 4]
    assert numbers(turned(row, 2, 3, 4, 5, 6)) == [1, 2, 3, 4, 5, 6]
    assert numbers(turned(row, 2, 3, 4, 5, 6, 7)) == [5, 6, 7]


def test_a_horizon_never_falls_or_a_reset_to_where_nothing_was_marked_would_be_allowed() -> None:
    adopted = replace(turned(ROW, 0, 1, 2), horizon=25)
    assert turned(adopted, 3).horizon == 25
    assert turned(adopted, 9).horizon == 30


@given(st.integers(0, 2**42), st.integers(1, 2**32))
def test_generations_are_half_windows_one_after_another(log_time: int, half_ms: int) -> None:
    number = generation_of(log_time, half_ms)
    assert number > 0
    assert generation_of(log_time + half_ms, half_ms) == number + 1
    assert generation_of(UNSET, half_ms) == generation_of(0, half_ms)


def test_a_generation_fits_32_bits_until_2400_even_for_the_shortest_window() -> None:
    assert generation_of(13_569_465_600_000, 5_000) < 2**32


# -- a life ----------------------------------------------------------------------------------------


@dataclass
class Life:
    """A partition whose every record is an event of its own, and a store that drops as told."""

    stamps: list[int]
    row: Position = ROW
    wall_ms: int = WALL_MS
    kept: dict[int, int] = field(default_factory=dict)
    """Offset of a marked record -> generation of its marker."""
    passed: dict[int, int] = field(default_factory=dict)
    """Offset -> log time at which the position passed it."""
    ran: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    serial: int = 2

    def batch(self, size: int, ended: str, elapsed_ms: int) -> None:
        """Read from the position, run what is new, commit."""
        self.wall_ms += elapsed_ms
        first = self.row.next
        offsets = np.arange(first, min(first + size, len(self.stamps)), dtype=np.int64)
        keys = np.stack([offsets, offsets], axis=1).astype(np.uint64)
        columns = Columns(AT, offsets, keys, np.zeros(len(offsets), np.uint32))
        seen = np.array([offset in self.kept for offset in offsets.tolist()], np.bool_)
        made = plan(columns, Known(seen, columns.fingerprints), first)
        how = endings(" ".join(ended[: len(offsets)]))
        resolved = resolved_rows(made, how)
        record_ms = self.stamps[first + resolved - 1] if resolved else UNSET
        commit = settle(
            self.row,
            columns,
            made,
            Ended(how),
            moment=Moment(record_ms, self.wall_ms),
            half_ms=HALF_MS,
            serial=self.serial,
            on_existing=OnExisting.REFUSE,
        )
        if commit is not None:
            self.apply(commit)

    def apply(self, commit: Commit) -> None:
        before, after = self.row, commit.position
        assert after.next >= before.next
        assert after.floor >= before.floor
        assert after.log_time_ms >= before.log_time_ms
        assert after.log_time_ms <= max(before.log_time_ms, self.wall_ms + MAX_AHEAD_MS)
        assert before.horizon <= after.horizon <= after.next
        for offset in marked(commit):
            assert offset not in self.ran, "ran twice"
            self.ran.add(offset)
            self.kept[offset] = after.generations[-1].generation
        self.drop(after)
        for offset in range(before.next, after.next):
            self.passed[offset] = after.log_time_ms
        self.row = after
        self.serial += 1

    def drop(self, after: Position) -> None:
        for offset in [o for o, generation in self.kept.items() if generation < after.floor]:
            del self.kept[offset]
            self.dropped.add(offset)
            assert offset < self.row.next, "dropped ahead of the position"
            assert after.log_time_ms >= self.passed[offset] + WINDOW_MS, "dropped too early"
            assert offset < after.horizon, "a reset to here would repeat it"

    def overdue(self) -> list[int]:
        """The oldest generation's markers, where all of them were passed 1.5 W ago."""
        oldest = [o for o, number in self.kept.items() if number == min(self.kept.values())]
        due = self.row.log_time_ms - 3 * HALF_MS
        return oldest if all(self.passed.get(o, due + 1) <= due for o in oldest) else []

    def reset(self, to: int) -> None:
        """An operator sets the group's offset; on_reset="dedupe"."""
        situation = Situation(
            at=AT,
            row=self.row,
            epoch=self.row.epoch + 1,
            store_id=self.row.store_id,
            topic_id=self.row.topic_id,
            committed=Committed(to),
            log=LogEnds(0, len(self.stamps)),
            shared=False,
        )
        policy = StartPolicy(
            identify_fingerprint=self.row.identify_fingerprint,
            accepted_identities=frozenset(),
            window_seconds=self.row.window_seconds,
            on_reset=OnReset.DEDUPE,
        )
        begin = start(situation, policy)
        assert isinstance(begin, Begin) is (to >= self.row.horizon)
        if isinstance(begin, Begin):
            self.row = begin.position


def test_once_a_gap_has_healed_markers_go_again_or_a_store_would_only_grow() -> None:
    life = Life([WALL_MS + n * HALF_MS for n in range(12)])
    life.batch(1, "d", 0)
    life.batch(3, "fdd", 0)
    for _ in range(8):
        life.batch(1, "d", WINDOW_MS)
    assert life.overdue() == []
    assert len(life.kept) == 3


def test_where_there_is_always_a_gap_markers_go_all_the_same_or_a_store_would_only_grow() -> None:
    life = Life([WALL_MS + n * HALF_MS // 5 for n in range(200)])
    for _ in range(90):
        life.batch(4, "ddfd", HALF_MS)
        assert life.overdue() == []
    assert len(life.kept) < 25


def test_markers_that_a_reset_puts_ahead_stay_or_they_would_go_before_they_are_met() -> None:
    life = Life([UNSET] * 15)
    for elapsed_ms in (0, HALF_MS, HALF_MS):
        life.batch(5, "ddddd", elapsed_ms)
    life.reset(0)
    for elapsed_ms in (WINDOW_MS, WINDOW_MS, 0):
        life.batch(5, "ddddd", elapsed_ms)


def test_a_generation_entered_below_the_old_end_does_not_hide_what_an_older_one_holds() -> None:
    stamps = [WALL_MS] * 4 + [WALL_MS + HALF_MS, WALL_MS + 3 * HALF_MS]
    life = Life(stamps)
    life.batch(4, "dddd", 0)
    life.reset(3)
    life.batch(2, "dd", 0)
    life.batch(1, "d", 0)


def test_what_is_passed_again_after_a_reset_keeps_its_marker_for_a_window_from_there() -> None:
    life = Life([WALL_MS - 1] * 8 + [WALL_MS + 1] * 2 + [WALL_MS + 2 * HALF_MS] * 3)
    life.batch(4, "dddd", 0)
    life.batch(5, "ddddd", 0)  # in the next generation
    life.reset(0)
    for _ in range(3):
        life.batch(5, "ddddd", 0)


@st.composite
def logs(draw: st.DrawFn) -> list[int]:
    """Timestamps that wander forward, stray back, leap into the future, or are missing."""
    at, stamps = WALL_MS, []
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.integers(-HALF_MS // 2, 3 * HALF_MS // 2))
        strays = st.sampled_from([UNSET, 0, at - 2 * WINDOW_MS, at + 100 * WINDOW_MS])
        stamps.append(draw(st.one_of(st.just(at), st.just(at), st.just(at), strays)))
    return stamps


def batches(letters: str) -> st.SearchStrategy[tuple[int, str, int]]:
    """How many records, how they end, and how long it took."""
    ended = st.text(letters, min_size=5, max_size=5)
    return st.tuples(st.integers(1, 5), ended, st.integers(-HALF_MS, 2 * HALF_MS))


@given(logs(), st.lists(batches("dddi"), max_size=30))
def test_without_gaps_a_marker_lives_from_w_to_one_and_a_half(
    stamps: list[int], steps: list[tuple[int, str, int]]
) -> None:
    life = Life(stamps)
    for step in steps:
        life.batch(*step)
        assert life.overdue() == []


@given(logs(), st.lists(batches("dddif"), max_size=40))
def test_with_gaps_no_marker_is_dropped_before_its_window_is_over(
    stamps: list[int], steps: list[tuple[int, str, int]]
) -> None:
    life = Life(stamps)
    for step in steps:
        life.batch(*step)
        assert life.overdue() == []


@given(
    logs(),
    st.lists(st.one_of(batches("ddddf"), st.integers(0, 30)), max_size=40),
)
def test_after_a_reset_above_the_horizon_no_effect_is_repeated(
    stamps: list[int], steps: list[tuple[int, str, int] | int]
) -> None:
    life = Life(stamps)
    for step in steps:
        if isinstance(step, int):
            life.reset(min(step, life.row.next))
        else:
            life.batch(*step)
