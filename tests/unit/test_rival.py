"""The table of `core/rival.py`, a test a row."""

from effectonce.core.rival import (
    NOT_KNOWN,
    RIVAL_SECONDS,
    RIVALS,
    is_rival,
    opened_between,
)

EACH_SECOND = [float(at) for at in range(RIVALS)]


def test_the_next_epoch_is_ours_alone_or_each_opening_would_accuse_somebody() -> None:
    assert not opened_between(7, 8)


def test_an_epoch_in_between_was_somebody_elses() -> None:
    assert opened_between(7, 9)


def test_where_our_last_epoch_is_not_known_nobody_is_accused() -> None:
    assert not opened_between(NOT_KNOWN, 9)


def test_as_many_within_a_minute_are_a_rival_or_two_would_fence_each_other_for_ever() -> None:
    assert is_rival(EACH_SECOND)
    assert is_rival([-1e6, *EACH_SECOND]), "what lies further back counts for nothing"


def test_fewer_or_slower_ones_are_zombies_that_awake() -> None:
    assert not is_rival(EACH_SECOND[1:])
    assert not is_rival([*EACH_SECOND[:-1], RIVAL_SECONDS])
