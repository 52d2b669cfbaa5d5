"""The table of `core/lanes.py`, a test a row."""

from datetime import timedelta

import pytest

from effectonce.core.lanes import STRETCH, Lanes, Start, deal
from effectonce.core.plan import Decision, Unidentified
from effectonce.model import UNSET
from effectonce.policy import Retry
from tests.unit.builders import AT, batch, key, marked, pending, reached
from tests.unit.hand import RETRY, Hand


def room_of(hand: Hand) -> int:
    return hand.lanes.room(hand.come)


# -- what comes ------------------------------------------------------------------------------------


def test_a_copy_leans_on_what_is_in_memory_or_its_effect_would_happen_twice() -> None:
    hand = Hand()
    hand.admit("a b")
    assert hand.start() == [0, 1]
    hand.admit("a b c")
    assert hand.start() == [4]


def test_a_copy_leans_on_what_is_done_and_not_yet_committed_or_it_would_run_again() -> None:
    hand = Hand()
    hand.admit("x a")
    hand.start()
    hand.done(1)
    hand.admit("a")
    assert hand.start() == []
    hand.send()
    hand.admit("a")
    assert hand.start() == []


def test_a_copy_with_another_payload_waits_for_the_first_or_its_payload_would_be_lost() -> None:
    hand = Hand()
    hand.admit("x a")
    admitted = hand.admit("b a' c")
    assert (admitted.first, admitted.size, admitted.blocked_by) == (2, 1, Decision.WAIT)
    assert room_of(hand) == 0
    hand.start()
    hand.done(1)
    assert room_of(hand) == 0
    hand.commit()
    assert room_of(hand) > 0
    assert hand.admit("a' c").blocked_by is Decision.CONFLICT


def test_a_copy_with_another_payload_of_what_was_ignored_runs_once_that_is_passed() -> None:
    hand = Hand()
    hand.admit("a")
    assert hand.admit("a'").blocked_by is Decision.WAIT
    hand.start()
    hand.lanes.ignored(0)
    assert room_of(hand) == 0
    hand.commit()
    assert hand.admit("a'").size == 1
    assert hand.start() == [1]


def test_what_waits_for_another_partition_may_be_looked_up_again_or_it_would_wait_for_ever() -> (
    None
):
    hand = Hand()
    admitted = hand.admit("b a", pending=pending("a"))
    assert (admitted.size, admitted.blocked_by) == (1, Decision.WAIT)
    assert room_of(hand) > 0
    assert not hand.lanes.is_halted
    assert hand.admit("a").blocked_by is None
    assert hand.lanes.blocked_by is None
    assert room_of(hand) > 0


@pytest.mark.parametrize("record", ["?", "m'"])
def test_nothing_behind_what_blocks_comes_in_or_the_position_would_pass_it(record: str) -> None:
    hand = Hand(store={key("m"): 0})
    admitted = hand.admit(f"a {record} b")
    assert admitted.size == 1
    assert admitted.blocked_by in (Decision.UNIDENTIFIED, Decision.CONFLICT)
    assert room_of(hand) == 0
    assert hand.admit("b").size == 0
    assert hand.start() == [0]
    assert not hand.lanes.is_halted
    hand.done(0)
    assert not hand.lanes.is_halted
    hand.send()
    assert not hand.lanes.is_halted
    hand.answer()
    assert hand.lanes.is_halted


def test_a_partition_that_waits_is_not_halted_or_it_would_stop_for_an_event_in_the_handler() -> (
    None
):
    hand = Hand()
    assert hand.admit("a", pending=pending("a")).blocked_by is Decision.WAIT
    assert not hand.lanes.is_halted


def test_what_blocks_halts_only_once_all_in_front_is_passed_or_the_front_would_be_left() -> None:
    hand = Hand()
    hand.admit("a ?")
    assert hand.lanes.news == 0
    assert not hand.lanes.is_halted


def test_unprotected_records_run_and_are_never_marked_nor_leant_on() -> None:
    hand = Hand(Lanes(AT, RETRY, unidentified=Unidentified.RUNS_UNPROTECTED))
    hand.admit("x ? ?")
    assert set(hand.lanes.keys) == {key("x")}
    assert hand.start() == [0, 1, 2]
    hand.done(1, 2)
    assert marked(hand.commit()) == []
    hand.done(0)
    assert marked(hand.commit()) == [0]
    assert reached(hand.commit()) == UNSET
    assert (hand.position.next, len(hand.lanes)) == (3, 0)


def test_no_more_come_than_have_room_or_a_slow_record_would_fill_the_memory() -> None:
    hand = Hand(Lanes(AT, RETRY, limit=3))
    assert room_of(hand) == 3
    admitted = hand.admit("a b c d")
    assert (admitted.size, admitted.blocked_by, room_of(hand)) == (3, None, 0)
    hand.start()
    hand.done(1, 2)
    hand.commit()
    assert room_of(hand) == 0
    hand.done(0)
    hand.commit()
    assert room_of(hand) == 3


def test_what_blocks_beyond_the_room_is_not_known_yet_or_it_would_block_where_it_is_not() -> None:
    hand = Hand(Lanes(AT, RETRY, limit=1))
    assert hand.admit("a b ?").blocked_by is None
    assert hand.lanes.blocked_by is None


def test_what_one_commit_may_mark_fits_a_packed_row() -> None:
    assert STRETCH < 1 << 16


def test_a_suspect_comes_alone_or_nobody_would_know_which_record_kills() -> None:
    hand = Hand(Lanes(AT, RETRY, alone_below=2))
    assert room_of(hand) == 1
    assert hand.admit("a b c").size == 1
    assert room_of(hand) == 0
    hand.start()
    hand.done(0)
    hand.commit()
    assert hand.admit("b c").size == 1
    assert (room_of(hand), hand.admit("c").size) == (0, 0)
    hand.start()
    hand.done(1)
    hand.commit()
    assert hand.admit("c d").size == 2


def test_an_answer_from_before_a_commit_is_refused_or_what_it_passed_would_run_again() -> None:
    hand = Hand()
    hand.admit("a")
    asked, columns = hand.lanes.commits, batch("a", first=1)
    known = hand.known(columns)
    hand.start()
    hand.done(0)
    hand.commit()
    with pytest.raises(ValueError, match="since the store was asked"):
        hand.lanes.admit(columns, known, hand.position.next, asked=asked)


def test_a_record_that_comes_twice_is_below_or_it_would_take_the_position_back() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.admit_columns(batch("a", first=0))
    hand.start()
    hand.done(0, 1)
    commit = hand.lanes.settlement()
    assert commit.passed.tolist() == [Decision.RUN, Decision.RUN, Decision.BELOW]


# -- what starts -----------------------------------------------------------------------------------


def test_others_start_at_once_and_those_of_a_lane_in_order() -> None:
    hand = Hand()
    hand.admit("a b c d e", "k k l . k")
    assert hand.start() == [0, 2, 3]
    hand.done(2, 3)
    assert hand.start() == []
    hand.done(0)
    assert hand.start() == [1]
    hand.done(1)
    assert hand.start() == [4]


def test_a_lane_goes_on_in_what_comes_later_or_the_next_batch_would_overtake() -> None:
    hand = Hand()
    hand.admit("a", "k")
    hand.start()
    hand.admit("b c", "k l")
    assert hand.start() == [2]
    hand.done(0)
    hand.commit()
    hand.admit("d", "k")
    assert hand.start() == [1]
    hand.done(1)
    assert hand.start() == [3]


def test_a_record_that_is_over_holds_nothing_up() -> None:
    hand = Hand(store={key("m"): 0})
    hand.admit("m a m b", "k k l l")
    assert hand.start() == [1, 3]


def test_a_copy_holds_its_lane_as_long_as_the_one_it_leans_on_or_its_lane_would_overtake() -> None:
    hand = Hand()
    hand.admit("a a b", "k l l")
    assert hand.start() == [0]
    hand.done(0)
    assert hand.start() == [2]


def test_a_copy_in_the_middle_of_a_lane_is_stepped_over_or_the_lane_would_stand_still() -> None:
    hand = Hand()
    hand.admit("a b a a c", "k l l l l")
    assert hand.start() == [0, 1]
    hand.done(0)
    assert hand.start() == []
    hand.done(1)
    assert hand.start() == [4]


def test_a_copy_becomes_the_head_of_its_lane_and_still_waits_for_the_one_it_leans_on() -> None:
    hand = Hand()
    hand.admit("a b a c", "k l l l")
    hand.start()
    hand.done(1)
    assert hand.start() == []
    hand.done(0)
    assert hand.start() == [3]


def test_a_copy_of_what_is_over_holds_nothing_or_its_lane_would_wait_for_ever() -> None:
    hand = Hand()
    hand.admit("x a", ". k")
    hand.start()
    hand.done(1)
    hand.admit("a b", "k k")
    assert hand.start() == [3]


def test_a_copy_of_what_was_ignored_holds_nothing_or_its_lane_would_wait_for_ever() -> None:
    hand = Hand()
    hand.admit("x a", ". k")
    hand.start()
    hand.lanes.ignored(1)
    hand.admit("a b", "k k")
    assert hand.start() == [3]


def test_a_copy_of_what_failed_holds_its_lane_or_its_lane_would_overtake() -> None:
    hand = Hand()
    hand.admit("a", "k")
    hand.start()
    hand.fail(0)
    hand.admit("a b", "l l")
    assert hand.start() == []
    assert hand.start(now=1.0) == [0]
    hand.done(0)
    assert hand.start() == [2]


def test_a_copy_leans_on_a_record_of_its_own_batch_or_it_would_share_anothers_fate() -> None:
    hand = Hand()
    hand.admit("x y")
    hand.start()
    hand.done(0, 1)
    hand.admit("a a b", ". k k")
    assert hand.start() == [2]
    hand.done(2)
    assert hand.start() == [4]


def test_the_oldest_go_first_or_the_position_would_lag() -> None:
    hand = Hand()
    hand.admit("a b c d", "k k l m")
    assert hand.start(2) == [0, 2]
    hand.done(0)
    assert hand.start(1) == [1]
    assert hand.start(0) == []
    assert hand.lanes.in_flight == 2


def test_what_is_in_flight_is_not_started_again_or_it_would_run_twice() -> None:
    hand = Hand()
    hand.admit("a")
    assert (hand.start(), hand.start(), hand.lanes.in_flight) == ([0], [], 1)


def test_what_never_reached_its_handler_starts_again_or_it_would_be_lost() -> None:
    hand = Hand()
    hand.admit("a b", "k k")
    hand.start()
    hand.lanes.put_back(0)
    assert hand.lanes.in_flight == 0
    assert hand.lanes.starts(9, 0.0) == [Start(0, 1)]


@pytest.mark.parametrize("end", ["done", "ignored", "put_back"])
def test_only_what_is_in_flight_can_end_or_a_late_answer_would_be_taken_for_another(
    end: str,
) -> None:
    hand = Hand()
    hand.admit("a b", "k k")
    hand.start()
    with pytest.raises(KeyError):
        getattr(hand.lanes, end)(1)
    with pytest.raises(KeyError):
        hand.fail(1)


def test_partitions_share_the_lanes_or_one_would_starve_the_others() -> None:
    many, few, none = Hand(), Hand(), Hand()
    many.admit("a b c d e f")
    few.admit("a b")
    dealt = deal([many.lanes, few.lanes, none.lanes], 6, 0.0)
    assert [(one is many.lanes, start.row) for one, start in dealt] == [
        (True, 0),
        (True, 1),
        (False, 0),
        (False, 1),
        (True, 2),
        (True, 3),
    ]
    assert deal([few.lanes, many.lanes], 6, 0.0) == []
    many.done(0)
    assert [start.row for _, start in deal([few.lanes, many.lanes], 6, 0.0)] == [4]


# -- what fails ------------------------------------------------------------------------------------


def test_a_failure_holds_its_lane_and_no_other_until_its_backoff_is_over() -> None:
    hand = Hand()
    hand.admit("a b c d", "k k l l")
    assert hand.start() == [0, 2]
    assert hand.fail(0, now=10.0) == 1.0
    assert (hand.lanes.due, hand.start(now=10.9)) == (11.0, [])
    hand.done(2)
    assert hand.start(now=10.9) == [3]
    assert hand.lanes.starts(9, 11.0) == [Start(0, 2)]
    assert hand.lanes.due is None
    assert hand.fail(0, now=11.0) == 2.0
    assert hand.lanes.starts(9, 13.0) == [Start(0, 3)]
    hand.done(0)
    assert hand.lanes.starts(9, 13.0) == [Start(1, 1)]


def test_a_failure_is_not_passed_or_it_would_be_lost() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.done(1)
    hand.fail(0)
    commit = hand.commit()
    assert (reached(commit), marked(commit)) == (0, [1])


def test_with_attempts_used_up_nothing_behind_starts_or_comes_and_what_is_in_front_goes_on() -> (
    None
):
    hand = Hand()
    hand.admit("a b c d e f", "k k l l m m")
    assert hand.start() == [0, 2, 4]
    hand.exhaust(2)
    assert (hand.lanes.exhausted, room_of(hand)) == (2, 0)
    assert hand.admit("g").size == 0
    hand.done(4)
    assert hand.start(now=99.0) == []
    hand.done(0)
    assert hand.start(now=99.0) == [1]
    assert not hand.lanes.is_halted
    hand.done(1)
    assert not hand.lanes.is_halted
    commit = hand.send()
    assert (reached(commit), marked(commit)) == (2, [0, 1, 4])
    assert not hand.lanes.is_halted
    hand.answer()
    assert hand.lanes.is_halted


def test_what_stood_ready_or_backed_off_behind_never_starts_once_attempts_are_used_up() -> None:
    hand = Hand(Lanes(AT, Retry(2, wait_initial=timedelta(seconds=1), jitter=0.0)))
    hand.admit("a b c d")
    hand.start()
    for row, now in ((1, 0.0), (3, 50.0)):
        hand.fail(row, now)
    for row in (0, 2):
        hand.lanes.put_back(row)
    assert hand.start(2, now=1.0) == [0, 1]
    assert hand.fail(1, now=1.0) is None
    assert (hand.lanes.due, hand.start(now=99.0)) == (None, [])
    hand.done(0)
    hand.commit()
    assert hand.lanes.is_halted


def test_what_stood_ready_in_front_still_starts_once_attempts_are_used_up() -> None:
    hand = Hand(Lanes(AT, Retry(1)))
    hand.admit("a b")
    hand.start()
    hand.lanes.put_back(0)
    assert hand.fail(1) is None
    assert (hand.lanes.in_flight, hand.lanes.news, hand.lanes.is_halted) == (0, 0, False)
    assert hand.start() == [0]


def test_what_was_passed_in_front_is_committed_before_it_halts_or_it_would_be_replayed() -> None:
    hand = Hand(Lanes(AT, Retry(1)))
    hand.admit("a b")
    hand.start()
    hand.fail(0)
    assert not hand.lanes.is_halted
    hand.done(1)
    assert not hand.lanes.is_halted
    hand.send()
    assert not hand.lanes.is_halted
    hand.answer()
    assert hand.lanes.is_halted


def test_what_fails_behind_one_that_is_used_up_gets_no_other_attempt() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.fail(1)
    hand.start(now=1.0)
    hand.exhaust(0)
    assert not hand.lanes.is_halted
    assert hand.fail(1) is None
    assert (hand.lanes.exhausted, hand.lanes.due, hand.start(now=99.0)) == (0, None, [])
    assert hand.lanes.is_halted


def test_of_two_that_are_used_up_the_first_counts_or_the_wrong_one_would_be_named() -> None:
    hand = Hand()
    hand.admit("a b c")
    hand.start()
    for now in (10.0, 20.0):
        hand.fail(2, now)
        hand.start(now=99.0)
    hand.exhaust(1)
    assert hand.fail(2) is None
    assert hand.lanes.exhausted == 1
    hand.exhaust(0)
    assert hand.lanes.exhausted == 0


def test_what_never_reached_its_handler_behind_one_that_is_used_up_is_left() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.exhaust(0)
    hand.lanes.put_back(1)
    assert hand.start() == []
