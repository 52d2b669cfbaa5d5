"""The table of `core/stretch.py`, a test a row: through `Lanes`, as a driver settles."""

from collections.abc import Collection

import numpy as np
import pytest

from effectonce.core.lanes import Lanes
from effectonce.core.order import Queues
from effectonce.core.plan import Decision, Unidentified
from effectonce.core.stretch import Stretch
from effectonce.model import UNSET, Ending, Known, Outcome, OutcomeKind
from tests.unit.builders import AT, batch, key, marked, reached
from tests.unit.hand import RETRY, Hand

OUTCOME = Outcome(OutcomeKind.VALUE, b"\x2a")


def test_the_position_passes_what_is_over_up_to_the_first_that_is_open() -> None:
    hand = Hand(store={key("m"): 0})
    hand.admit("a m b c")
    hand.start()
    hand.done(0, 3)
    commit = hand.commit()
    assert (reached(commit), marked(commit)) == (2, [0, 3])
    assert (hand.lanes.first, len(hand.lanes)) == (2, 2)


def test_what_is_marked_behind_a_gap_is_not_marked_again_or_its_generation_would_change() -> None:
    hand = Hand()
    hand.admit("a b c")
    hand.start()
    hand.lanes.done(1, OUTCOME)
    first = hand.commit()
    assert first is not None
    assert first.markers is not None
    assert (marked(first), dict(first.markers.outcomes)) == ([1], {0: OUTCOME})
    assert hand.commit() is None
    hand.done(2)
    assert marked(hand.commit()) == [2]
    hand.done(0)
    last = hand.commit()
    assert last is not None
    assert last.markers is not None
    assert (reached(last), marked(last), dict(last.markers.outcomes)) == (3, [0], {})


def test_a_copy_is_passed_with_the_one_it_leans_on_or_it_would_hold_the_position() -> None:
    hand = Hand()
    hand.admit("a")
    hand.start()
    hand.admit("a b")
    assert hand.start() == [2]
    hand.done(2)
    assert reached(hand.commit()) == 0
    hand.done(0)
    assert hand.lanes.news == 2
    commit = hand.commit()
    assert (reached(commit), marked(commit)) == (3, [0])


def test_what_is_ignored_behind_a_gap_leaves_no_marker_and_is_passed_later() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.lanes.ignored(1)
    assert hand.commit() is None
    hand.done(0)
    assert marked(hand.commit()) == [0]
    assert hand.position.next == 2


def test_what_ends_while_a_commit_has_no_answer_is_for_the_next_one_or_it_would_be_unmarked() -> (
    None
):
    hand = Hand()
    hand.admit("a b c")
    hand.start()
    hand.done(0)
    sent = hand.send()
    hand.done(1)
    hand.admit("d")
    with pytest.raises(ValueError, match="no answer yet"):
        hand.send()
    assert (marked(sent), hand.answer() is sent) == ([0], True)
    assert hand.lanes.news == 1
    assert marked(hand.commit()) == [1]


def test_an_answer_is_taken_once_or_what_ended_since_would_count_as_marked() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.done(0)
    old = hand.lanes.settlement()
    hand.lanes.committed(old)
    with pytest.raises(ValueError, match="not the settlement"):
        hand.lanes.committed(old)
    hand.lanes.settlement()
    with pytest.raises(ValueError, match="not the settlement"):
        hand.lanes.committed(old)


def test_news_are_what_a_commit_would_tell() -> None:
    hand = Hand(store={key("m"): 0})
    hand.admit("m a")
    assert hand.lanes.news == 1
    hand.start()
    hand.done(1)
    assert hand.lanes.news == 2
    hand.commit()
    assert hand.lanes.news == 0


def test_what_lies_below_is_forgotten_without_a_commit() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.done(0, 1)
    hand.commit()
    hand.admit_columns(batch("a b", first=0))
    assert hand.commit() is None
    assert (len(hand.lanes), hand.position.next) == (0, 2)


def test_an_outcome_stays_with_its_record_or_another_would_be_answered_with_it() -> None:
    hand = Hand()
    hand.admit("a b c")
    hand.start()
    hand.done(0)
    hand.commit()
    hand.done(1)
    hand.lanes.done(2, OUTCOME)
    commit = hand.commit()
    assert commit is not None
    assert commit.markers is not None
    assert (marked(commit), dict(commit.markers.outcomes)) == ([1, 2], {1: OUTCOME})


def test_what_ran_here_is_no_repeat_when_it_is_passed_or_the_counts_would_lie() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.done(1)
    hand.commit()
    hand.done(0)
    assert hand.lanes.settlement().passed.tolist() == [Decision.RUN, Decision.RUN]


def test_the_rows_of_a_settlement_name_the_records_whose_times_count() -> None:
    hand = Hand()
    hand.admit("a b c d e")
    hand.start()
    hand.done(3)
    made = hand.lanes.settlement()
    assert (made.last_passed, made.last_ahead) == (0, 3)
    hand.lanes.committed(made)
    hand.done(0, 1)
    made = hand.lanes.settlement()
    assert (made.last_passed, made.last_ahead) == (1, UNSET)
    hand.lanes.committed(made)
    hand.done(4)
    made = hand.lanes.settlement()
    assert (made.first, made.last_passed, made.last_ahead) == (2, 2, 4)


def test_a_settlement_stays_as_it_was_sent_or_a_second_sending_would_differ() -> None:
    hand = Hand()
    hand.admit("a b")
    hand.start()
    hand.done(0, 1)
    made = hand.lanes.settlement()
    before = (made.columns.keys.tobytes(), made.ended.endings.tolist(), len(made.plan.decisions))
    hand.admit("c d")
    hand.start()
    hand.done(2)
    hand.lanes.committed(made)
    hand.admit("e f")
    after = (made.columns.keys.tobytes(), made.ended.endings.tolist(), len(made.plan.decisions))
    assert before == after
    assert made.ended.endings.tolist() == [Ending.DONE, Ending.DONE]


@pytest.mark.parametrize(
    ("answers", "one"),
    [((5, 7), None), ((7, 5), None), ((5, None), None), ((None, None), None), ((5, 5), 5)],
)
def test_a_commit_is_as_of_no_answer_where_two_differ_or_a_store_would_not_look_again(
    answers: tuple[int | None, ...], one: int | None
) -> None:
    """Redis draws its marks at random: which of two is the older one nobody can say."""
    hand = Hand()
    for i, as_of in enumerate(answers):
        columns = batch("ab"[i], first=i)
        known = Known(np.zeros(1, np.bool_), np.zeros(1, np.uint32), as_of)
        hand.lanes.admit(columns, known, 0, asked=0)
    hand.start()
    hand.done(0)
    made = hand.lanes.settlement()
    assert made.as_of == one
    hand.lanes.committed(made)
    hand.done(1)
    assert hand.lanes.settlement().as_of == answers[1]


def test_keys_are_forgotten_with_what_is_passed_or_memory_would_grow() -> None:
    hand = Hand()
    hand.admit("a b a", "k k l")
    hand.start()
    assert set(hand.lanes.keys) == {key("a"), key("b")}
    hand.done(0)
    hand.commit()
    assert set(hand.lanes.keys) == {key("b")}


def test_nothing_is_kept_of_what_is_passed_or_memory_would_grow() -> None:
    hand = Hand(Lanes(AT, RETRY, unidentified=Unidentified.RUNS_UNPROTECTED))
    hand.admit("a ? b a c b", "k k . l l .")
    hand.start()
    hand.fail(0)
    hand.lanes.done(2, OUTCOME)
    hand.commit()
    while started := hand.start(now=9.0):
        hand.done(*started)
    hand.commit()
    assert hand.position.next == 6
    assert kept(hand.lanes) == {}


def kept(one: object) -> dict[str, object]:
    """All that is not empty, here and in parts that keep something themselves."""
    found: dict[str, object] = {}
    for name, value in vars(one).items():
        if isinstance(value, bytearray | Collection) and len(value):
            found[name] = value
        elif isinstance(value, Queues | Stretch):
            found |= kept(value)
    found.pop("_at", None)
    return found
