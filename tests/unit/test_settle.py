"""The table of `core/settle.py`, a test a row; an oracle; and a whole life of crashes on top."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from effectonce.core.plan import Decision, Unidentified
from effectonce.core.settle import (
    FIRST_SERIAL,
    Moment,
    commit_id,
    marked_rows,
    resolved_rows,
    serial_of,
)
from effectonce.model import UNSET, Commit, Outcome, OutcomeKind, Position
from tests.unit.builders import (
    AT,
    HALF_MS,
    NOW,
    ROW,
    WALL_MS,
    batch,
    endings,
    key,
    marked,
    planned,
    reached,
    settled,
)

OUTCOME = Outcome(OutcomeKind.VALUE, b"\x2a")


# -- the rows --------------------------------------------------------------------------------------


def test_what_lies_below_is_passed_or_the_position_would_stand_before_it_for_ever() -> None:
    records = batch("a b c", first=3)
    commit = settled(
        records, planned(records, position_next=5), "u u d", position=replace(ROW, next=5)
    )
    assert (reached(commit), marked(commit)) == (6, [5])


def test_a_repeat_is_passed_and_leaves_no_second_marker() -> None:
    records = batch("a b")
    commit = settled(records, planned(records, "a b"), "u u")
    assert (reached(commit), marked(commit)) == (2, [])


def test_a_record_that_is_done_is_passed_and_marked_or_its_repeat_would_run() -> None:
    records = batch("a b'")
    commit = settled(records, planned(records), "d d", outcomes={1: OUTCOME})
    assert commit is not None
    assert commit.markers is not None
    assert (reached(commit), marked(commit)) == (2, [0, 1])
    assert commit.markers.keys.tobytes() == key("a") + key("b")
    assert commit.markers.fingerprints.tolist() == [0, 1]
    assert commit.markers.outcomes == {1: OUTCOME}


def test_an_ignored_record_is_passed_and_leaves_no_marker() -> None:
    records = batch("a b")
    commit = settled(records, planned(records), "i d")
    assert (reached(commit), marked(commit)) == (2, [1])


def test_an_unprotected_record_is_passed_and_leaves_no_marker_under_a_key_that_is_noise() -> None:
    records = batch("? ? a")
    made = planned(records, unidentified=Unidentified.RUNS_UNPROTECTED)
    commit = settled(records, made, "d i d")
    assert (reached(commit), marked(commit)) == (3, [2])


@pytest.mark.parametrize(("ending", "passed"), [("d", 3), ("i", 3), ("f", 0), ("u", 0)])
def test_a_copy_shares_the_fate_of_the_one_it_leans_on_or_it_would_be_lost_with_it(
    ending: str, passed: int
) -> None:
    records = batch("a a b")
    made = planned(records)
    assert resolved_rows(made, endings(f"{ending} u d")) == passed
    assert marked_rows(made, endings(f"{ending} u d")).tolist() == (
        [0, 2] if ending == "d" else [2]
    )


@pytest.mark.parametrize("ending", ["f", "u"])
@pytest.mark.parametrize("record", ["b", "?"])
def test_a_failed_or_untouched_record_holds_the_position_or_it_would_be_lost(
    ending: str, record: str
) -> None:
    records = batch(f"a {record} c")
    made = planned(records, unidentified=Unidentified.RUNS_UNPROTECTED)
    assert reached(settled(records, made, f"d {ending} d")) == 1


def test_what_lies_beyond_the_plan_is_not_passed_or_it_would_be_lost() -> None:
    records = batch("a ? c")
    commit = settled(records, planned(records), "d d d")
    assert (reached(commit), marked(commit)) == (1, [0])


def test_what_is_done_behind_a_gap_is_marked_all_the_same_or_the_replay_would_run_it_again() -> (
    None
):
    records = batch("a b c")
    commit = settled(records, planned(records), "f d d")
    assert commit is not None
    assert (reached(commit), marked(commit)) == (0, [1, 2])
    assert commit.position.marked_until == 3


def test_a_gap_before_another_hides_no_marker_or_its_generation_would_go_too_early() -> None:
    row = replace(ROW, marked_until=9)
    records = batch("a b")
    for ended, marked_until in (("f d", 9), ("d d", 9)):
        commit = settled(records, planned(records), ended, position=row)
        assert commit is not None
        assert commit.position.marked_until == marked_until


# -- the commit ------------------------------------------------------------------------------------


def test_holes_in_the_offsets_are_passed_or_a_compacted_log_would_stand_still() -> None:
    records = batch("a b c", offsets=[2, 5, 11])
    assert reached(settled(records, planned(records), "d d d")) == 12
    assert reached(settled(records, planned(records), "d d f")) == 6


@pytest.mark.parametrize("ended", ["f f", "u u", "f u"])
def test_where_nothing_happened_nothing_is_committed(ended: str) -> None:
    records = batch("a b")
    assert settled(records, planned(records), ended) is None


def test_a_batch_below_the_position_commits_nothing_or_it_would_go_back() -> None:
    records = batch("a b", first=3)
    made = planned(records, position_next=9)
    assert settled(records, made, "u u", position=replace(ROW, next=9)) is None


def test_the_commit_names_the_position_it_expects_or_the_store_could_not_refuse_a_late_one() -> (
    None
):
    records = batch("a", first=7)
    row = replace(ROW, next=7, epoch=3)
    commit = settled(records, planned(records, position_next=7), "d", position=row, serial=9)
    assert commit is not None
    assert (commit.at, commit.follows, commit.position.epoch) == (AT, ROW.commit_id, 3)
    assert commit.position.commit_id == commit_id(3, 9)


def test_a_first_commit_that_only_marks_begins_log_time_with_its_records() -> None:
    """By the wall clock, days of downtime would end the window of what is marked there."""
    records = batch("a b")
    moment = Moment(record_ms=1_000, wall_ms=1_000_000_000)
    row = replace(ROW, log_time_ms=UNSET)
    commit = settled(records, planned(records), "f d", position=row, moment=moment)
    assert commit is not None
    assert (marked(commit), commit.position.log_time_ms) == ([1], 1_000)


def test_effects_travel_with_their_markers_or_one_could_be_there_without_the_other() -> None:
    records = batch("a b")
    commit = settled(records, planned(records), "f d", writes=((b"k", b"v"),))
    assert commit is not None
    assert (marked(commit), commit.writes) == ([1], ((b"k", b"v"),))


def test_an_advance_forgets_what_was_known_of_the_record_that_stalled() -> None:
    stalled = replace(ROW, stalled_opens=3, attempt_offset=0, attempts=2)
    records = batch("a b")
    moved = settled(records, planned(records), "d f", position=stalled)
    assert moved is not None
    new = moved.position
    assert (new.stalled_opens, new.attempt_offset, new.attempts) == (0, UNSET, 0)
    ahead = settled(records, planned(records), "f d", position=stalled)
    assert ahead is not None
    new = ahead.position
    assert (new.stalled_opens, new.attempt_offset, new.attempts) == (3, 0, 2)


def test_a_marker_behind_a_gap_goes_into_the_generation_of_its_records_time() -> None:
    records = batch("a b c")
    moment = replace(NOW, ahead_ms=WALL_MS + 4 * HALF_MS, wall_ms=WALL_MS + 9 * HALF_MS)
    commit = settled(records, planned(records), "d f d", moment=moment)
    assert commit is not None
    first, second = commit.position.generations
    assert second.generation - first.generation == 4
    assert (second.until, commit.position.next, commit.position.marked_until) == (3, 1, 3)
    assert commit.position.log_time_ms == WALL_MS


def test_log_time_waits_for_the_position_or_a_record_ahead_would_shorten_the_window() -> None:
    row = replace(ROW, log_time_ms=WALL_MS - 1_000)
    records = batch("a b")
    ahead = settled(records, planned(records), "f d", position=row)
    moved = settled(records, planned(records), "d f", position=row)
    assert ahead is not None
    assert moved is not None
    assert ahead.position.log_time_ms == WALL_MS - 1_000
    assert moved.position.log_time_ms == WALL_MS


def test_the_leader_epoch_is_that_of_the_last_record_passed() -> None:
    row = replace(ROW, leader_epoch=4)
    records, moment = batch("a b"), Moment(WALL_MS, WALL_MS, leader_epoch=5)
    for ended, leader_epoch in (("d f", 5), ("f d", 4)):
        commit = settled(records, planned(records), ended, position=row, moment=moment)
        assert commit is not None
        assert commit.position.leader_epoch == leader_epoch


def test_without_timestamps_log_time_rises_from_commit_to_commit() -> None:
    row = replace(ROW, log_time_ms=WALL_MS, wall_ms=WALL_MS)
    for offset in range(3):
        records = batch("a", first=offset)
        commit = settled(
            records,
            planned(records, position_next=offset),
            "d",
            position=row,
            moment=Moment(UNSET, row.wall_ms + 1_000),
        )
        assert commit is not None
        row = commit.position
    assert row.log_time_ms == WALL_MS + 3_000


def test_a_start_and_a_commit_never_share_an_id() -> None:
    ids = {commit_id(epoch, serial) for epoch in range(4) for serial in range(4)}
    assert len(ids) == 16
    assert [serial_of(commit_id(5, serial)) for serial in (0, FIRST_SERIAL)] == [0, FIRST_SERIAL]


# -- the oracle ------------------------------------------------------------------------------------

RECORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "a'", "b'", "?"]), max_size=10)


@given(
    records=RECORDS,
    markers=st.sets(st.sampled_from(["a", "b", "c"])),
    ended=st.lists(st.sampled_from("difu"), min_size=10, max_size=10),
    gaps=st.lists(st.integers(1, 3), min_size=10, max_size=10),
    position_next=st.integers(0, 9),
    unidentified=st.sampled_from(Unidentified),
)
@example(  # done behind a gap, and nothing but what lies below the position is resolved
    records=["a", "a", "b"],
    markers=set(),
    ended=list("dfdddddddd"),
    gaps=[1, 2, *[1] * 8],
    position_next=3,
    unidentified=Unidentified.BLOCKS,
)
def test_every_commit_is_the_table_read_row_by_row(
    records: list[str],
    markers: set[str],
    ended: list[str],
    gaps: list[int],
    position_next: int,
    unidentified: Unidentified,
) -> None:
    offsets = [int(offset) for offset in np.cumsum(gaps)][: len(records)]
    columns = batch(" ".join(records), offsets=offsets)
    made = planned(
        columns, " ".join(markers), position_next=position_next, unidentified=unidentified
    )
    row = replace(ROW, next=position_next)
    commit = settled(columns, made, " ".join(ended[: len(records)]), position=row)

    expected_next, open_before, expected_markers = position_next, False, []
    for i in range(made.size):
        decision, offset = Decision(int(made.decisions[i])), offsets[i]
        ending = ended[made.leans.get(i, i)]
        to_run = decision in (Decision.RUN, Decision.UNPROTECTED, Decision.LEAN)
        if to_run and ending not in "di":
            open_before = True
        if not open_before:
            expected_next = max(expected_next, offset + 1)
        if decision is Decision.RUN and ending == "d":
            expected_markers.append(offset)
    assert marked(commit) == expected_markers
    if commit is None:
        assert expected_next == position_next
    else:
        assert commit.position.next == expected_next


# -- a life ----------------------------------------------------------------------------------------


@dataclass
class Life:
    """One partition's log, and a store that a crash may cut off before or after a commit."""

    log: list[str]
    row: Position = ROW
    markers: dict[str, int] = field(default_factory=dict)
    effects: Counter[str] = field(default_factory=Counter)
    serial: int = FIRST_SERIAL

    def batch(self, size: int, ended: str, commits: bool) -> None:
        """Read from the position, run, and commit: or die just before that."""
        first = self.row.next
        columns = batch(" ".join(self.log[first : first + size]), first=first)
        made = planned(columns, " ".join(self.markers), position_next=first)
        ended = " ".join(ended[: len(columns)])
        commit = settled(columns, made, ended, position=self.row, serial=self.serial)
        if commits and commit is not None:
            self.apply(commit)

    def apply(self, commit: Commit) -> None:
        assert commit.follows == self.row.commit_id
        for offset in marked(commit):
            self.effects[self.log[offset]] += 1
            self.markers[self.log[offset]] = offset
        self.row = commit.position
        self.serial += 1


@given(
    log=st.lists(st.sampled_from("abcdefgh"), max_size=25),
    steps=st.lists(
        st.tuples(st.integers(1, 6), st.text("dddfu", min_size=6, max_size=6), st.booleans()),
        max_size=30,
    ),
)
def test_whatever_fails_or_crashes_every_event_takes_effect_once(
    log: list[str], steps: list[tuple[int, str, bool]]
) -> None:
    life = Life(log)
    for size, ended, commits in steps:
        before = life.row.next
        life.batch(size, ended, commits)
        assert life.row.next >= before
        assert all(life.effects[event_id] == 1 for event_id in log[: life.row.next])
    while life.row.next < len(log):
        life.batch(4, "dddd", commits=True)
    assert life.effects == Counter(set(log))
