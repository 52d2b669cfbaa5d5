"""The table of `core/plan.py`, a test a row, and the whole of it against a slow oracle."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effectonce.core.plan import (
    Columns,
    Decision,
    Pending,
    Plan,
    Unidentified,
    may_repeat_inside,
    may_repeat_sorted,
)
from tests.unit.builders import AT, ELSEWHERE, batch, key, keys_of, payload, pending, planned

RUN, LEAN, REPEAT, BELOW = Decision.RUN, Decision.LEAN, Decision.REPEAT, Decision.BELOW


def decided(made: Plan) -> list[Decision]:
    return [Decision(decision) for decision in made.decisions[: made.size].tolist()]


def runs(made: Plan) -> list[int]:
    return [int(row) for row in made.runs]


# -- the rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("records", ["a", "a'", "?"], ids=["marked", "reused", "unidentified"])
def test_below_the_position_is_skipped_whatever_else_is_true_or_the_partition_would_stop_there(
    records: str,
) -> None:
    made = planned(batch(f"{records} b", first=4), "a", position_next=5)
    assert (decided(made), runs(made), made.blocked_by) == ([BELOW, RUN], [1], None)


def test_below_the_position_is_skipped_without_a_marker_or_an_old_record_would_run_again() -> None:
    made = planned(batch("a b c", first=3), position_next=5)
    assert decided(made) == [BELOW, BELOW, RUN]


def test_an_unidentified_record_ends_the_plan_or_it_would_run_unprotected() -> None:
    made = planned(batch("a ? b"))
    assert (decided(made), runs(made)) == ([RUN], [0])
    assert made.blocked_by is Decision.UNIDENTIFIED


def test_an_unidentified_record_runs_where_the_user_asked_or_it_would_block_for_ever() -> None:
    made = planned(batch("a ? b ?"), unidentified=Unidentified.RUNS_UNPROTECTED)
    assert decided(made) == [RUN, Decision.UNPROTECTED, RUN, Decision.UNPROTECTED]
    assert (runs(made), made.blocked_by) == ([0, 1, 2, 3], None)


def test_the_key_of_an_unidentified_record_is_noise_or_a_chance_marker_would_swallow_it() -> None:
    made = planned(batch("? ?"), "?", unidentified=Unidentified.RUNS_UNPROTECTED)
    assert decided(made) == [Decision.UNPROTECTED] * 2
    assert made.leans == {}


def test_a_marked_key_is_a_repeat_or_its_effect_would_happen_twice() -> None:
    made = planned(batch("a b a"), "a")
    assert (decided(made), runs(made)) == ([REPEAT, RUN, REPEAT], [1])


def test_a_marked_key_with_another_payload_ends_the_plan_or_an_event_would_be_lost() -> None:
    made = planned(batch("b a' c"), "a")
    assert (decided(made), runs(made)) == ([RUN], [0])
    assert made.blocked_by is Decision.CONFLICT


def test_a_copy_of_what_stands_in_front_leans_on_it_or_both_would_run() -> None:
    made = planned(batch("a b a b"), front="x a")
    assert (decided(made), runs(made)) == ([LEAN, RUN, LEAN, LEAN], [1])
    assert (made.leans, made.leans_in_front) == ({3: 1}, {0: 1, 2: 1})


def test_a_copy_with_another_payload_than_in_front_waits_or_its_payload_would_be_lost() -> None:
    made = planned(batch("b a' b b"), front="a")
    assert (decided(made), made.blocked_by) == ([RUN], Decision.WAIT)


def test_a_marker_speaks_before_what_stands_in_front_or_a_conflict_would_wait_for_ever() -> None:
    assert decided(planned(batch("a"), "a", front="a")) == [REPEAT]
    assert planned(batch("a'"), "a", front="a").blocked_by is Decision.CONFLICT


def test_nothing_behind_the_end_leans_on_what_stands_in_front_or_it_would_be_passed() -> None:
    made = planned(batch("? a"), front="a")
    assert (made.size, made.leans_in_front) == (0, {})


def test_a_key_pending_in_another_partition_is_waited_for_or_both_would_run() -> None:
    made = planned(batch("b a c"), waiting=pending("a"))
    assert (decided(made), runs(made)) == ([RUN], [0])
    assert made.blocked_by is Decision.WAIT


def test_a_key_pending_here_in_an_earlier_batch_is_waited_for_or_it_would_be_new_twice() -> None:
    made = planned(batch("a"), waiting=pending("a", AT))
    assert (made.size, made.blocked_by) == (0, Decision.WAIT)


def test_a_copy_in_the_batch_leans_on_the_one_that_runs_or_both_would_run() -> None:
    made = planned(batch("a b a a b"))
    assert (decided(made), runs(made)) == ([RUN, RUN, LEAN, LEAN, LEAN], [0, 1])
    assert made.leans == {2: 0, 3: 0, 4: 1}


def test_a_copy_with_another_payload_never_leans_or_its_payload_would_be_lost() -> None:
    made = planned(batch("a b a'"))
    assert (decided(made), made.blocked_by) == ([RUN, RUN], Decision.WAIT)


def test_a_pending_key_is_no_conflict_yet_or_an_ignored_event_would_stop_the_partition() -> None:
    made = planned(batch("a'"), waiting=pending("a"))
    assert (made.size, made.blocked_by) == (0, Decision.WAIT)
    ignored, done = planned(batch("a'")), planned(batch("a'"), "a")
    assert (decided(ignored), done.blocked_by) == ([RUN], Decision.CONFLICT)


def test_a_marker_speaks_before_a_pending_key_or_a_repeat_would_wait() -> None:
    made = planned(batch("a"), "a", waiting=pending("a"))
    assert (decided(made), made.blocked_by) == ([REPEAT], None)


def test_everything_else_runs_or_it_would_be_lost() -> None:
    made = planned(batch("a b c"), "x y", waiting=pending("z"))
    assert (decided(made), runs(made), made.blocked_by) == ([RUN] * 3, [0, 1, 2], None)


# -- the edges -------------------------------------------------------------------------------------


def test_nothing_behind_the_end_of_the_plan_leans_or_its_answer_would_be_given_too_early() -> None:
    made = planned(batch("a ? a b b"))
    assert (made.size, made.leans) == (1, {})
    assert made.count(LEAN) == 0


def test_an_empty_batch_is_a_plan_too() -> None:
    made = planned(batch(""))
    assert (made.size, runs(made), made.blocked_by) == (0, [], None)


def test_distinct_keys_with_one_mixed_word_stay_distinct_or_one_of_them_would_be_lost() -> None:
    assert may_repeat_sorted(keys_of("bd"))
    assert decided(planned(batch("b d f"))) == [RUN] * 3


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=40))
def test_the_quick_look_never_denies_a_repeat(keys: list[bytes]) -> None:
    columns = np.frombuffer(b"".join(keys), np.uint64).reshape(-1, 2)
    assert may_repeat_sorted(columns) or len(set(keys)) == len(keys)
    assert may_repeat_inside(columns) or len(set(keys)) == len(keys)


# -- the whole, against the table read aloud -------------------------------------------------------


@dataclass(frozen=True)
class Case:
    records: list[str]
    offsets: list[int]
    markers: list[str]
    pending: dict[str, int]
    front: list[str]
    position_next: int
    unidentified: Unidentified

    @property
    def columns(self) -> Columns:
        return batch(" ".join(self.records), offsets=self.offsets)

    @property
    def waiting(self) -> Mapping[bytes, Pending]:
        return {key(i): Pending(ELSEWHERE, found) for i, found in self.pending.items()}

    def plan(self) -> Plan:
        return planned(
            self.columns,
            " ".join(self.markers),
            position_next=self.position_next,
            waiting=self.waiting,
            unidentified=self.unidentified,
            front=" ".join(self.front),
        )


RECORD = st.sampled_from(["a", "b", "c", "d", "e", "f", "a'", "b'", "d'", "?"])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    records = draw(st.lists(RECORD, max_size=12))
    gaps = draw(st.lists(st.integers(1, 3), min_size=len(records), max_size=len(records)))
    return Case(
        records=records,
        offsets=[int(offset) for offset in np.cumsum(gaps)],
        markers=draw(st.lists(RECORD, max_size=3, unique_by=lambda record: record[0])),
        pending=draw(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1), max_size=2)),
        front=draw(st.lists(RECORD, max_size=2, unique_by=lambda record: record[0])),
        position_next=draw(st.integers(0, 12)),
        unidentified=draw(st.sampled_from(Unidentified)),
    )


def oracle(case: Case) -> tuple[list[Decision], dict[int, int], Decision | None]:
    """The table, row by row, on dictionaries."""
    markers = {marker[0]: payload(marker) for marker in case.markers}
    leaders: dict[str, int] = {}
    leans: dict[int, int] = {}
    found: list[Decision] = []
    for row, record in enumerate(case.records):
        decision = decide(case, row, markers, leaders)
        if decision is Decision.LEAN:
            leans[row] = leaders.get(record[0], row)
        elif decision is Decision.RUN:
            leaders[record[0]] = row
        if decision in (Decision.UNIDENTIFIED, Decision.CONFLICT, Decision.WAIT):
            return found, leans, decision
        found.append(decision)
    return found, leans, None


def decide(case: Case, row: int, markers: dict[str, int], leaders: dict[str, int]) -> Decision:
    record = case.records[row]
    event_id, fingerprint = record[0], payload(record)
    if case.offsets[row] < case.position_next:
        return Decision.BELOW
    if record == "?":
        blocks = case.unidentified is Unidentified.BLOCKS
        return Decision.UNIDENTIFIED if blocks else Decision.UNPROTECTED
    if event_id in markers:
        return Decision.REPEAT if markers[event_id] == fingerprint else Decision.CONFLICT
    front = {one[0]: payload(one) for one in case.front}
    if event_id in front:
        return Decision.LEAN if front[event_id] == fingerprint else Decision.WAIT
    if event_id in case.pending:
        return Decision.WAIT
    if event_id in leaders:
        leader = payload(case.records[leaders[event_id]])
        return Decision.LEAN if leader == fingerprint else Decision.WAIT
    return Decision.RUN


@given(cases())
def test_every_plan_is_the_table_read_row_by_row(case: Case) -> None:
    made = case.plan()
    found, leans, blocked_by = oracle(case)
    assert decided(made) == found
    assert made.leans == {row: leader for row, leader in leans.items() if leader != row}
    front = [one[0] for one in case.front]
    assert made.leans_in_front == {
        row: front.index(case.records[row][0]) for row, leader in leans.items() if leader == row
    }
    assert made.blocked_by is blocked_by
    assert runs(made) == [
        row for row, d in enumerate(found) if d in (Decision.RUN, Decision.UNPROTECTED)
    ]
    assert {d: made.count(d) for d in Decision} == {d: found.count(d) for d in Decision}


@given(cases())
def test_a_plan_is_the_same_for_the_same_question(case: Case) -> None:
    one, other = case.plan(), case.plan()
    assert (one.size, decided(one), one.leans) == (other.size, decided(other), other.leans)
