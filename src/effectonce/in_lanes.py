"""What of one partition is in memory while its handlers run side by side.

`core/lanes.py` knows rows; here are the records behind them, a chunk as they were taken in.

| a chunk                         | is                                               |
| ------------------------------- | ------------------------------------------------ |
| taken in                        | kept, with the endings of its records             |
| passed whole by a commit        | forgotten, except by a handler that still has it |
"""

from __future__ import annotations

from bisect import bisect_right

from effectonce.core.lanes import Lanes
from effectonce.core.stretch import Settlement
from effectonce.event import Work


class InLanes:
    """One partition's lanes and their records. Dropped whole when the partition begins anew."""

    def __init__(self, lanes: Lanes, next_offset: int) -> None:
        self.lanes = lanes
        self.next = next_offset
        """Behind the last record that was taken in."""
        self.errors: dict[int, BaseException] = {}
        """What the rows that may not run again failed with, the last time."""
        self.wall: tuple[int, Exception] | None = None
        """The offset that comes in no more, and what is to be said once all in front is passed."""
        self.handler_seconds = 0.0
        """Since the last settlement."""
        self.news_since: float | None = None
        self._firsts: list[int] = []
        self._chunks: list[Work] = []

    def keep(self, first: int, size: int, work: Work, next_offset: int) -> None:
        """The first `size` records of `work` were taken in, as rows from `first` on."""
        if size:
            self._firsts.append(first)
            self._chunks.append(work)
            self.next = next_offset

    def find(self, row: int) -> tuple[Work, int]:
        """The chunk of a row that is not passed, and where it stands there."""
        at = bisect_right(self._firsts, row) - 1
        return self._chunks[at], row - self._firsts[at]

    def offset(self, row: int) -> int:
        work, i = self.find(row)
        return int(work.records.offsets()[i])

    def answered(self, settlement: Settlement) -> None:
        """Its commit was applied or refused for good, or there was nothing to commit."""
        self.lanes.committed(settlement)
        passed = bisect_right(self._firsts, self.lanes.first) - 1
        if not len(self.lanes):
            passed = len(self._firsts)
        if passed > 0:
            del self._firsts[:passed], self._chunks[:passed]

    def room(self) -> int:
        """How many records may come in now."""
        return 0 if self.wall is not None else self.lanes.room(self.next)

    def is_full(self, limit: int, *, paused: bool) -> bool:
        """Whether no more is to be fetched. Once paused, until there is room for half of it all.

        Each resume has its price: a question to the broker.
        """
        room = self.room()
        return not room or (paused and len(self.lanes) > 0 and room < limit // 2)

    @property
    def is_unsettled(self) -> bool:
        """Something is in a handler, or has ended since the last settlement."""
        return bool(self.lanes.in_flight or self.lanes.news)

    @property
    def is_walled(self) -> bool:
        """All in front of what comes in no more is passed."""
        return self.wall is not None and not len(self.lanes) and not self.is_unsettled
