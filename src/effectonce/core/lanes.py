"""One partition's handlers side by side: what may come in, what may start, and what is over.

A lane is what must run in order (core/order.py); what is in memory is a stretch (core/stretch.py).

| a record                              | then                                              |
| ------------------------------------- | ------------------------------------------------- |
| comes                                 | is decided by core/plan.py, with the keys in front |
| RUN, UNPROTECTED, first of its lane   | may start; the oldest goes first                  |
| the same, another in front there      | waits until that one is over                      |
| has started                           | is in flight, and is not started meanwhile        |
| failed                                | holds its lane, no other, while it backs off      |
| failed as often as it may             | what is in front goes on, nothing behind starts   |
|                                       | or comes; once all in front is passed it stops    |
| done, ignored, BELOW, REPEAT          | is over                                           |
| LEAN                                  | holds its lane; over with the one it leans on     |
| UNIDENTIFIED, CONFLICT                | stays outside with all behind it; once all in     |
|                                       | front is passed, the partition stops              |
| WAIT                                  | the same, until another look-up may know more     |
| below `alone_below`                   | comes alone, and nothing beside it                |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from effectonce.core.order import LaneIds, Queues
from effectonce.core.plan import Columns, Decision, InFront, Pending, Plan, Unidentified, plan
from effectonce.core.stretch import Settlement, Stretch
from effectonce.model import UNSET, Ending, Known, Outcome, Partition
from effectonce.policy import Retry

STRETCH: Final = 10_000
"""Records in memory before a partition is paused. At most 65,535: one commit may mark them all, and
a packed row counts in 16 bits."""

_UNPROTECTED, _LEAN = int(Decision.UNPROTECTED), int(Decision.LEAN)
_FOR_GOOD: Final = (Decision.CONFLICT, Decision.UNIDENTIFIED)


class Start(NamedTuple):
    """A record to be given to the handler now."""

    row: int
    attempt: int
    """From 1. Above it, the record may have had its effect before it failed."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first `size` records are in, as rows from `first` on; the others are for later."""

    first: int
    size: int
    blocked_by: Decision | None
    """What keeps the next one out, if it is not for want of room."""


class Lanes:
    """One partition's lanes. For one thread at a time; times are handed in."""

    def __init__(
        self,
        at: Partition,
        retry: Retry,
        *,
        limit: int = STRETCH,
        alone_below: int = UNSET,
        unidentified: Unidentified = Unidentified.BLOCKS,
    ) -> None:
        self._at, self._retry, self._limit = at, retry, limit
        self._alone_below, self._unidentified = alone_below, unidentified
        self._stretch = Stretch(at)
        self.news = 0
        """Records that are over since the last settlement."""
        self.blocked_by: Decision | None = None
        """What the record behind was found to be, the last time."""
        self.exhausted: int | None = None
        """The first row that has failed as often as it may."""
        self._waits_for: bytes | None = None
        self._failures: dict[int, int] = {}
        self._queues = Queues()
        self._leads: dict[int, int] = {}
        """Copies that hold a lane, and the rows that they lean on."""
        self._copies: dict[int, list[int]] = {}
        self._ready: list[int] = []
        self._later: list[tuple[float, int]] = []
        self._in_flight: set[int] = set()

    def __len__(self) -> int:
        """Records in memory."""
        return len(self._stretch)

    @property
    def first(self) -> int:
        """The row of the first record that is not passed: what lies before it may be forgotten."""
        return self._stretch.first

    @property
    def commits(self) -> int:
        """To be read before the store is asked, and given to `admit` with its answer."""
        return self._stretch.commits

    @property
    def keys(self) -> InFront:
        """Keys that are neither new nor seen, for the plans of partitions that share the store."""
        return self._stretch.in_front

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def pending(self, key: bytes) -> int | None:
        """The fingerprint of the record that runs under this key, until a commit has marked it."""
        one = self.keys.get(key)
        return None if one is None or self._stretch.has_marker(one[0]) else one[1]

    # -- coming in -----------------------------------------------------------------------------

    def room(self, offset: int) -> int:
        """How many records from `offset` on may come in now; at 0 the partition is paused."""
        held = len(self._stretch)
        if self.exhausted is not None or self.blocked_by in _FOR_GOOD or self._still_waits():
            return 0
        if offset < self._alone_below:
            return 0 if held else 1
        if held and self._stretch.first_offset() < self._alone_below:
            return 0
        return max(self._limit - held, 0)

    def admit(
        self,
        columns: Columns,
        known: Known,
        position_next: int,
        *,
        asked: int,
        lanes: LaneIds | None = None,
        pending: Mapping[bytes, Pending] | None = None,
    ) -> Admitted:
        """Decide these records, and take in what is decided in its favour and has room.

        `asked` is what `commits` was when the store was asked for `known`: what a later one passed
        is no longer in front, and not in that answer either, so it would run twice.
        """
        stretch = self._stretch
        if asked != stretch.commits:
            raise ValueError(f"{self._at}: a commit was answered since the store was asked")
        first = stretch.first + len(stretch)
        room = self.room(int(columns.offsets[0])) if len(columns) else 0
        if not room:
            return Admitted(first, 0, None)
        # a record that comes twice is not to take the position back
        position_next = max(position_next, stretch.end)
        made = plan(columns, known, position_next, pending, self._unidentified, stretch.in_front)
        size = min(made.size, room)
        stretch.take_in(columns, made, size, known.as_of)
        self._line_up(first, made, size, lanes)
        self.blocked_by = made.blocked_by if size == made.size else None
        self._waits_for = None
        if self.blocked_by is Decision.WAIT:
            self._waits_for = columns.keys[size].tobytes()
        return Admitted(first, size, self.blocked_by)

    def _line_up(self, first: int, made: Plan, size: int, lanes: LaneIds | None) -> None:
        """Into their lanes go the records that run, and the copies of such as are open."""
        for i, decision in enumerate(made.decisions[:size].tolist()):
            row = first + i
            runs = decision <= _UNPROTECTED
            if runs or (decision == _LEAN and self._leans(row, _leader(made, first, i))):
                is_head = self._queues.enter(row, None if lanes is None else lanes[i])
                if is_head and runs:
                    heappush(self._ready, row)
            else:
                self.news += 1

    def _leans(self, copy: int, leader: int) -> bool:
        """Whether the copy is open, as its leader is."""
        if self._stretch.is_over(leader):
            return False
        self._leads[copy] = leader
        self._copies.setdefault(leader, []).append(copy)
        return True

    def _still_waits(self) -> bool:
        """Whether the record behind waits for one of ours, so that a look-up would not help yet."""
        return self._waits_for is not None and self.pending(self._waits_for) is not None

    # -- starting ------------------------------------------------------------------------------

    def starts(self, free: int, now: float) -> list[Start]:
        """At most `free` records to start now; they are in flight from here on."""
        while self._later and self._later[0][0] <= now:
            heappush(self._ready, heappop(self._later)[1])
        started: list[Start] = []
        while self._ready and len(started) < free:
            row = heappop(self._ready)
            self._in_flight.add(row)
            started.append(Start(row, self._failures.get(row, 0) + 1))
        return started

    @property
    def due(self) -> float | None:
        """When the next backoff is over."""
        return self._later[0][0] if self._later else None

    def put_back(self, row: int) -> None:
        """It was started and never reached the handler."""
        self._in_flight.remove(row)
        if self._may_start(row):
            heappush(self._ready, row)

    def _may_start(self, row: int) -> bool:
        return self.exhausted is None or row < self.exhausted

    # -- ending --------------------------------------------------------------------------------

    def done(self, row: int, outcome: Outcome | None = None) -> None:
        """It took effect."""
        self._ends(row, Ending.DONE, outcome)

    def ignored(self, row: int) -> None:
        """There was nothing to do."""
        self._ends(row, Ending.IGNORED, None)

    def failed(self, row: int, now: float, chance: float) -> float | None:
        """It did not, or nobody knows. Seconds until it may run again; None if it may not."""
        self._in_flight.remove(row)
        self._stretch.ends(row, Ending.FAILED)
        self._failures[row] = failures = self._failures.get(row, 0) + 1
        if failures >= self._retry.attempts:
            self._exhaust(row)
        if not self._may_start(row):
            return None
        wait = self._retry.wait_seconds(failures, chance)
        heappush(self._later, (now + wait, row))
        return wait

    def _ends(self, row: int, ending: Ending, outcome: Outcome | None) -> None:
        self._in_flight.remove(row)
        self._stretch.ends(row, ending, outcome)
        self._failures.pop(row, None)
        self.news += 1
        self._over(row)

    def _over(self, row: int) -> None:
        """Let the next of its lane start, and of the lanes that a copy of it has held."""
        over = [row]
        while over:
            row = over.pop()
            copies = self._copies.pop(row, ())
            self.news += len(copies)
            over += [copy for copy in copies if self._queues.is_head(copy)]
            self._leads.pop(row, None)
            following = self._queues.leave(row)
            if following is None:
                continue
            leader = self._leads.get(following)
            if leader is None:
                if self._may_start(following):
                    heappush(self._ready, following)
            elif self._stretch.is_over(leader):
                over.append(following)

    def _exhaust(self, row: int) -> None:
        if not self._may_start(row):
            return
        self.exhausted = row
        self._ready = [ready for ready in self._ready if ready < row]
        self._later = [later for later in self._later if later[1] < row]
        heapify(self._ready)
        heapify(self._later)

    # -- settling ------------------------------------------------------------------------------

    def settlement(self) -> Settlement:
        """What has become of the records by now; `committed` comes before the next one."""
        made = self._stretch.settlement()
        self.news = 0
        return made

    def committed(self, settlement: Settlement) -> None:
        """Its commit was applied, or there was nothing to commit."""
        self._stretch.committed(settlement)

    @property
    def is_halted(self) -> bool:
        """Whether the partition is to stop: at `exhausted`, or at what it is `blocked_by`.

        All in front is passed, and what had ended behind is marked.
        """
        if self._in_flight or self.news or self._stretch.is_settling:
            return False
        if self.exhausted is not None:
            return self.exhausted == self.first
        return self.blocked_by in _FOR_GOOD and not len(self)


def _leader(made: Plan, first: int, copy: int) -> int:
    inside = made.leans.get(copy)
    return made.leans_in_front[copy] if inside is None else first + inside


def deal(partitions: Sequence[Lanes], lanes: int, now: float) -> list[tuple[Lanes, Start]]:
    """What starts now, at most `lanes` in flight over all: a share each, then what is left.

    The caller turns the sequence, or the first would have the odd ones every time.
    """
    free = lanes - sum(one.in_flight for one in partitions)
    dealt: list[tuple[Lanes, Start]] = []
    for rest in (False, True):
        for left, one in zip(range(len(partitions), 0, -1), partitions, strict=True):
            started = one.starts(free if rest else -(-free // left), now)
            dealt += [(one, start) for start in started]
            free -= len(started)
    return dealt
