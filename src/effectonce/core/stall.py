"""Finding the record that kills the process: nobody survives to report it, so opens are counted.

| since the last advance                | the next owner                                        |
| ------------------------------------- | ----------------------------------------------------- |
| 0, 1 or 2 owners began, none advanced | runs as usual; its own first start is counted durably |
| 3 or more                             | one record at a time, each attempt counted before it, |
|                                       | for as many records as can have been in flight        |
| an attempt at its head is counted     | the same: that record is the suspect                  |
| any advance                           | back to 0                                             |

An owner that held an idle partition did not stall: the count is of first *starts*, written just
before the first record of an ownership period runs.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Final

from effectonce.core.settle import commit_id
from effectonce.model import UNSET, Commit, Partition, Position

STALLS: Final = 3
"""Two deaths can be a deployment and a node; a third start without an advance is a pattern."""


class Pace(Enum):
    """How a partition is run."""

    USUAL = "usual"
    ONE_BY_ONE = "one-by-one"


def pace(position: Position) -> Pace:
    """The row above that fits."""
    suspected = position.attempts and position.attempt_offset == position.next
    if suspected or position.stalled_opens >= STALLS:
        return Pace.ONE_BY_ONE
    return Pace.USUAL


def first_start(at: Partition, position: Position, serial: int, counted_at: int = UNSET) -> Commit:
    """To be committed before the first record of an ownership period runs.

    `counted_at`: where this process last counted one, answered or not. At the same offset it is
    that one again: a note without an answer is no death.
    """
    again = counted_at == position.next
    stalled = max(position.stalled_opens, 1) if again else position.stalled_opens + 1
    stalled = min(stalled, 0xFFFF)
    return _note(at, replace(position, stalled_opens=stalled, in_flight=True), serial)


def attempt(at: Partition, position: Position, offset: int, serial: int) -> Commit:
    """To be committed before the record at `offset` runs, at a pace of ONE_BY_ONE."""
    before = position.attempts if position.attempt_offset == offset else 0
    counted = replace(position, attempt_offset=offset, attempts=min(before + 1, 0xFFFF))
    return _note(at, counted, serial)


def rest(at: Partition, position: Position, serial: int) -> Commit | None:
    """To be committed when a partition is given up in good order: nothing is in flight."""
    if not position.in_flight:
        return None
    return _note(at, replace(position, in_flight=False), serial)


def _note(at: Partition, position: Position, serial: int) -> Commit:
    new = replace(position, commit_id=commit_id(position.epoch, serial))
    return Commit(at=at, follows=position.commit_id, position=new)
