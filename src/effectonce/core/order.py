"""What must run in order, and who stands behind whom.

| order     | a record's lane                                                     |
| --------- | ------------------------------------------------------------------- |
| KEY       | its record key; without one it has no order, and a lane of its own  |
| PARTITION | the partition                                                       |
| NONE      | its own                                                             |

| a record        | then                                                          |
| --------------- | ------------------------------------------------------------- |
| enters a lane   | is its head if nobody is in it, else stands behind the last   |
| leaves it       | the one behind it is the head                                 |
| has no lane     | is a head, and nobody stands behind it                        |
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import TypeAlias

LaneIds: TypeAlias = Sequence[Hashable | None]
"""A lane a record; None is one of its own."""


class Order(Enum):
    """What a handler may rely on."""

    KEY = "key"
    PARTITION = "partition"
    NONE = "none"


def lanes_of(order: Order, record_keys: Sequence[bytes | None]) -> LaneIds | None:
    """The lanes of these records of one partition; None where each has its own."""
    if order is Order.KEY:
        return record_keys
    return [True] * len(record_keys) if order is Order.PARTITION else None


class Queues:
    """The lanes of one partition. A link a record: nearly all lanes have one record in them."""

    def __init__(self) -> None:
        self._last: dict[Hashable, int] = {}
        self._lane: dict[int, Hashable] = {}
        self._behind: dict[int, int] = {}
        self._waiting: set[int] = set()

    def enter(self, row: int, lane: Hashable | None) -> bool:
        """Whether it is the head of its lane now."""
        if lane is None:
            return True
        last = self._last.get(lane)
        self._last[lane] = row
        self._lane[row] = lane
        if last is None:
            return True
        self._behind[last] = row
        self._waiting.add(row)
        return False

    def is_head(self, row: int) -> bool:
        return row not in self._waiting

    def leave(self, head: int) -> int | None:
        """The head of its lane now, if there is one."""
        following = self._behind.pop(head, None)
        lane = self._lane.pop(head, None)
        if following is not None:
            self._waiting.remove(following)
        elif lane is not None:
            del self._last[lane]
        return following

    def __len__(self) -> int:
        """Records in lanes that others may enter."""
        return len(self._lane)
