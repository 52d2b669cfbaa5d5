"""The plan: everything that a seed decides."""

from collections import Counter
from itertools import pairwise
from uuid import RFC_4122, UUID

import pytest

from effectonce.testing.chaos.plan import Fault, Spec, deliveries, event_ids, score

SPEC = Spec(seed=3, delivered=20_000, distinct=18_000)


def test_a_seed_gives_the_same_run_again_and_another_seed_another() -> None:
    other = Spec(seed=4, delivered=20_000, distinct=18_000)
    for draw in (event_ids, deliveries, score):
        assert draw(SPEC) == draw(SPEC)
        assert draw(SPEC) != draw(other)


def test_every_event_is_delivered_and_a_tenth_comes_again() -> None:
    order = deliveries(SPEC)
    assert len(order) == 20_000
    assert set(order) == set(range(18_000))


def test_repeats_come_both_near_and_far() -> None:
    last_seen: dict[int, int] = {}
    gaps = []
    for place, event in enumerate(deliveries(SPEC)):
        if event in last_seen:
            gaps.append(place - last_seen[event])
        last_seen[event] = place
    assert sum(gap <= 60 for gap in gaps) > len(gaps) / 3
    assert sum(gap > 2_000 for gap in gaps) > len(gaps) / 4


def test_event_ids_are_distinct_random_uuids() -> None:
    ids = [UUID(bytes=raw) for raw in event_ids(SPEC)]
    assert len(set(ids)) == 18_000
    assert all(each.version == 4 and each.variant == RFC_4122 for each in ids)


def test_the_score_holds_every_demanded_fault_in_the_order_of_the_stream() -> None:
    steps = score(SPEC)
    counts = Counter(step.fault for step in steps)
    assert counts == {Fault.KILL: 50, Fault.FREEZE: 5, Fault.LEAVE: 8}
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    assert all(0 < step.at < 20_000 for step in steps)


def test_no_worker_is_struck_twice_in_a_row() -> None:
    assert all(one.slot != two.slot for one, two in pairwise(score(SPEC)))


def test_most_kills_strike_before_the_effect_is_answered_and_some_do_not() -> None:
    at_once = [s.delay_seconds == 0 for s in score(SPEC) if s.fault is Fault.KILL]
    assert 0.4 < sum(at_once) / len(at_once) < 0.8


def test_a_freeze_without_a_second_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="second worker"):
        Spec(seed=1, workers=1)
