"""Handlers side by side: takes in, starts, takes back, settles. Touches the store, not the client.

`core/lanes.py` decides for each partition; the pool runs what is started; desk.py knows the rest.

| what                                | then                                                     |
| ----------------------------------- | -------------------------------------------------------- |
| records came, there is room         | look up, take in what is decided in its favour            |
| a lane is free                      | the oldest that may start; partitions take turns          |
| a handler ended                     | its lane goes on at once; the news waits for a commit     |
| news enough, or old, or no other    | one commit for each partition, all in one call            |
| a commit without an answer          | nothing of that partition comes in or starts meanwhile    |
| a stale one                         | nothing starts; once nothing is in a handler, what ended  |
|                                     | since is told as a fact, and the partition begins anew    |
| the partition goes                  | the same, under a deadline; what is late is in doubt      |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from effectonce.arguments import LaneOf
from effectonce.core.lanes import Lanes, Start, deal
from effectonce.core.order import LaneIds, Order, lanes_of
from effectonce.core.outcome import encode_outcome
from effectonce.core.plan import Columns, Decision, Pending, Unidentified
from effectonce.core.stretch import Settlement
from effectonce.desk import STORE_WAIT_SECONDS, Desk
from effectonce.errors import HandlerFailed, PartitionStopped, StoreError
from effectonce.event import Event, Work
from effectonce.identity import Identified
from effectonce.in_lanes import InLanes
from effectonce.model import UNSET, Commit, Ending, Known, Partition, Rows
from effectonce.once import Once
from effectonce.owned import AsyncPool, Flight, Owned, Stage, Unsent
from effectonce.ports import AsyncStore, Clock, Reach, Records
from effectonce.words import blocked, gave_up, raised

NO_ROWS: Final[Rows] = np.zeros(0, np.intp)
_DONE, _IGNORED = int(Ending.DONE), int(Ending.IGNORED)


class LaneDesk:
    """Lanes of all partitions. `lanes` handlers run at once, at most."""

    def __init__(
        self,
        once: Once,
        store: AsyncStore,
        clock: Clock,
        desk: Desk,
        partitions: Callable[[], Iterable[Owned]],
        pool: AsyncPool,
        *,
        lanes: int,
        order: Order,
        lane: LaneOf | None,
    ) -> None:
        self._once = once
        self._store = store
        self._clock = clock
        self._desk = desk
        self._partitions = partitions
        self._pool = pool
        self._lanes, self._order, self._lane = lanes, order, lane
        self._shared = store.traits.reach is Reach.SHARED
        self._turn = 0
        self.flights: dict[Flight, None] = {}
        """In the handlers, the oldest first; late ones too."""
        self.halted = False
        """Nothing is started any more: the consumer stops."""
        self.escaping: BaseException | None = None
        """What a handler raised that must be let through: sys.exit, Ctrl-C."""
        self.was_waited_for = False
        """The run has ended, and what is in a handler still had its time: it is late."""

    # -- coming in -----------------------------------------------------------------------------

    async def admit(self) -> None:
        """Take in what there is, as far as there is room."""
        now = self._clock.monotonic()
        for owned in self._partitions():
            while owned.held and self._goes_on(owned) and owned.due <= now:
                if not self._in_lanes(owned).room() or not await self._take_in(owned):
                    break

    def _goes_on(self, owned: Owned) -> bool:
        """Whether its records may come in and start."""
        if self.halted or owned.stage is not Stage.RUNNING or owned.unsent is not None:
            return False
        return not (owned.leaving or owned.anew or owned.dropped)

    def _in_lanes(self, owned: Owned) -> InLanes:
        if owned.lanes is None:
            lanes = Lanes(
                owned.at,
                self._once.retry,
                limit=self._once.limits.held,
                alone_below=owned.alone_below,
                unidentified=self._once.unidentified,
            )
            owned.lanes = InLanes(lanes, owned.row.next)
        return owned.lanes

    async def _take_in(self, owned: Owned) -> bool:
        """The next records, at most as many as there is room for; false where none came in."""
        mine = self._in_lanes(owned)
        records, room = owned.held.popleft(), mine.room()
        if room < len(records):
            owned.held.appendleft(records.part(room))
            records = records.part(0, room)
        identified, columns = self._desk.columns_of(owned, records)
        asked = mine.lanes.commits
        known = await self._desk.look_up(owned, columns)
        if owned.lanes is not mine or not self._goes_on(owned) or asked != mine.lanes.commits:
            if owned.lanes is mine:  # else it begins anew, and they come once more
                owned.held.appendleft(records)
            return False
        if isinstance(known, StoreError):
            self._desk.look_up_failed(owned, records, known)
            return False
        work = self._work(owned, records, identified)
        lanes, wall = self._lanes_of(owned, work, identified)
        columns, known = _first(columns, known, len(records) if wall is None else wall[0])
        admitted = mine.lanes.admit(
            columns,
            known,
            owned.row.next,
            asked=asked,
            lanes=lanes,
            pending=self._pending(owned, columns),
        )
        size = admitted.size
        if size:
            mine.keep(admitted.first, size, work, int(columns.offsets[size - 1]) + 1)
        if size == len(records):
            return True
        owned.held.appendleft(records.part(size))
        offset = int(records.offsets()[size])
        if admitted.blocked_by is Decision.WAIT:
            owned.due = self._clock.monotonic() + STORE_WAIT_SECONDS
        elif admitted.blocked_by is not None:
            mine.wall = offset, blocked(owned.at, identified, size, offset)
        elif wall is not None and size == wall[0]:
            mine.wall = offset, wall[1]
        return size > 0

    def _work(self, owned: Owned, records: Records, identified: Identified) -> Work:
        return Work(
            records,
            identified,
            NO_ROWS,
            size=len(records),
            scope=owned.at.scope,
            effects=None,
            maybe_repeated_below=owned.maybe_repeated_below,
        )

    def _lanes_of(
        self, owned: Owned, work: Work, identified: Identified
    ) -> tuple[LaneIds | None, tuple[int, PartitionStopped] | None]:
        """A lane a record; and the first record that the user's own `lane` cannot say one for."""
        if self._lane is None:
            return lanes_of(self._order, work.records.keys()), None
        lanes: list[Hashable | None] = []
        runs_all = self._once.unidentified is Unidentified.RUNS_UNPROTECTED
        for row in range(len(identified)):
            if row in identified.problems and not runs_all:
                lanes.append(None)
                continue
            try:
                lane = self._lane(Event(work, row))
                hash(lane)
            except Exception as error:  # noqa: BLE001 - the user's own; the partition stops at it
                offset = int(work.records.offsets()[row])
                failed = HandlerFailed(
                    f"{owned.at} offset {offset}: lane=... raised {raised(error)}. Everything "
                    "before it is committed; the record stays in Kafka. Mend it and restart"
                )
                failed.__cause__ = error
                return lanes, (row, failed)
            lanes.append(lane)
        return lanes, None

    def _pending(self, owned: Owned, columns: Columns) -> dict[bytes, Pending] | None:
        """Keys of these columns that run in other partitions, where those share the store."""
        if not self._shared:
            return None
        others = [
            o for o in self._partitions()
            if o is not owned and o.lanes is not None and o.stage is Stage.RUNNING
        ]  # fmt: skip
        late = [flight for flight in self.flights if flight.is_late]
        raw = columns.keys.tobytes() if others or late else b""
        found: dict[bytes, Pending] = {}
        for i in range(0, len(raw), 16):
            key = raw[i : i + 16]
            for other in others:
                assert other.lanes is not None
                fingerprint = other.lanes.lanes.pending(key)
                if fingerprint is not None:
                    found[key] = Pending(other.at, fingerprint)
        for flight in late:
            with suppress(LookupError):  # one without an ID runs unprotected
                found[flight.work.identified.key(flight.index)] = Pending(flight.owned.at, 0)
        return found

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Give free lanes to what may start."""
        going = [o for o in self._partitions() if o.lanes is not None and self._goes_on(o)]
        if not going:
            return
        self._turn = (self._turn + 1) % len(going)
        going = going[self._turn :] + going[: self._turn]
        lanes = {id(o.lanes.lanes): o for o in going if o.lanes is not None}
        # what runs in a partition that is going, or was, takes its lane from the others
        elsewhere = len(self.flights) - sum(
            o.lanes.lanes.in_flight for o in going if o.lanes is not None
        )
        now = self._clock.monotonic()
        dealt = deal(
            [o.lanes.lanes for o in going if o.lanes is not None], self._lanes - elsewhere, now
        )
        for one, start in dealt:
            await self._start(lanes[id(one)], one, start)

    async def _start(self, owned: Owned, lanes: Lanes, start: Start) -> None:
        mine = owned.lanes
        if mine is None or mine.lanes is not lanes:  # it begins anew, just now
            return
        work, index = mine.find(start.row)
        offset = int(work.records.offsets()[index])
        if (not owned.counted or offset < owned.alone_below) and not (
            self._goes_on(owned) and await self._desk.count_start(owned, offset)
        ):
            lanes.put_back(start.row)
            return
        now = self._clock.monotonic()
        flight = Flight(owned, mine, work, index, start.row, start.attempt, now)
        self.flights[flight] = None
        self._pool.start(flight)

    def is_flying(self, at: Partition) -> bool:
        """Whether a handler has a record of it still, be it a late one."""
        return any(flight.owned.at == at for flight in self.flights)

    # -- ending --------------------------------------------------------------------------------

    async def take(self, seconds: float) -> bool:
        """Take what has ended, waiting for the first at most so long; false if there is nothing."""
        ended = await self._pool.ended(seconds)
        for flight in ended:
            self._land(flight)
        return bool(ended)

    def _land(self, flight: Flight) -> None:
        self.flights.pop(flight, None)
        if flight.escaping is not None:
            self.escaping = self.escaping or flight.escaping
            self.halted = True  # else what is put back below is started at once
        if flight.is_late:
            return  # in doubt: whoever owns it by now is told so
        owned, mine, row, i = flight.owned, flight.lanes, flight.row, flight.index
        mine.handler_seconds += flight.seconds
        ending = flight.work.marks[i]
        if flight.escaping is not None:
            self._in_doubt(owned, flight.offset)
            mine.lanes.put_back(row)
        elif ending == _DONE:
            value = flight.work.outcomes.pop(i, None)
            mine.lanes.done(row, encode_outcome(value, self._once.limits.outcome_bytes))
        elif ending == _IGNORED:
            mine.lanes.ignored(row)
        else:
            self._failed(flight)

    def _failed(self, flight: Flight) -> None:
        owned, mine, offset = flight.owned, flight.lanes, flight.offset
        error = flight.work.try_again(flight.index)
        assert error is not None
        self._in_doubt(owned, offset)
        wait = mine.lanes.failed(flight.row, self._clock.monotonic(), random.random())
        if wait is not None:
            self._desk.retrying(owned, offset, flight.attempt, wait, error)
        elif flight.attempt >= self._once.retry.attempts:
            mine.errors[flight.row] = error

    def _in_doubt(self, owned: Owned, offset: int) -> None:
        """It may have had its effect: until it is passed, the partition does not rest."""
        owned.attempt_offset = max(owned.attempt_offset, offset)

    # -- settling ------------------------------------------------------------------------------

    async def settle(self, only: Sequence[Owned] | None = None) -> None:
        """Commit what there is enough of; of `only` these partitions, whatever there is."""
        now = self._clock.monotonic()
        sent: list[tuple[Owned, Commit, Settlement]] = []
        for owned in self._partitions() if only is None else only:
            mine = owned.lanes
            if mine is None or not self._may_settle(owned, mine):
                continue
            if only is None and not self._is_due(mine, now):
                continue
            made = mine.lanes.settlement()
            mine.news_since = None
            commit = self._settled(owned, mine, made)
            if commit is None:
                mine.answered(made)
            else:
                sent.append((owned, commit, made))
        if sent:
            await self._send(sent)
        if only is None:
            for owned in self._partitions():
                self._halt(owned)

    def _may_settle(self, owned: Owned, mine: InLanes) -> bool:
        if owned.unsent is not None or owned.released or owned.position is None:
            return False
        if owned.stage is Stage.STOPPED and isinstance(owned.error, StoreError):
            return False
        return mine.lanes.news > 0

    def _is_due(self, mine: InLanes, now: float) -> bool:
        limits, lanes = self._once.limits, mine.lanes
        if mine.news_since is None:
            mine.news_since = now
        if not lanes.in_flight or lanes.news >= limits.batch:
            return True
        return now - mine.news_since >= limits.commit_seconds or not mine.room()

    def _settled(self, owned: Owned, mine: InLanes, made: Settlement) -> Commit | None:
        ahead = None if made.last_ahead == UNSET else mine.find(made.last_ahead)
        last = mine.find(made.last_passed)
        moment = self._desk.moment(
            (last[0].records, last[1]), None if ahead is None else (ahead[0].records, ahead[1])
        )
        return self._desk.settled(owned, made.columns, made.plan, made.ended, moment, made.as_of)

    async def _send(self, sent: Sequence[tuple[Owned, Commit, Settlement]]) -> None:
        at = self._clock.monotonic()
        results = await self._store.commit([commit for _, commit, _ in sent])
        for (owned, commit, made), result in zip(sent, results, strict=True):
            assert owned.lanes is not None
            seconds, owned.lanes.handler_seconds = owned.lanes.handler_seconds, 0.0
            unsent = Unsent(commit, made.passed, seconds, at, None, settlement=made)
            self._desk.answered(owned, unsent, result)

    def _halt(self, owned: Owned) -> None:
        """Stop the partition where nothing behind may come, once all in front is passed."""
        mine = owned.lanes
        if mine is None or not self._goes_on(owned) or mine.is_unsettled:
            return
        if mine.is_walled and mine.wall is not None:
            offset, why = mine.wall
        elif mine.lanes.is_halted and mine.lanes.exhausted is not None:
            row = mine.lanes.exhausted
            offset, attempts = mine.offset(row), self._once.retry.attempts
            why = gave_up(owned.at, offset, attempts, mine.errors[row], in_lanes=True)
        else:
            return
        self._desk.stop(owned, why, offset)
        owned.lanes = None

    # -- going ---------------------------------------------------------------------------------

    async def drain(self, going: Sequence[Owned], seconds: float) -> None:
        """Nothing of these is started any more: wait for what runs, settle, name what is late."""
        until = self._clock.monotonic() + (0.0 if self.was_waited_for else seconds)
        while any(f.owned in going and not f.is_late for f in self.flights):
            left = until - self._clock.monotonic()
            # what has ended is taken, be it late: else it was in doubt for nothing (simulated)
            if not await self.take(max(left, 0.0)) and left <= 0:
                break
        await self.settle(going)
        for flight in self.flights:
            if flight.owned in going and not flight.is_late:
                self._in_doubt(flight.owned, flight.offset)

    def wakes_at(self) -> float | None:
        """When something is due by itself: the next backoff, or news that grew old."""
        due: list[float] = []
        for owned in self._partitions():
            if owned.lanes is None or not self._goes_on(owned):
                continue
            if owned.lanes.lanes.due is not None:
                due.append(owned.lanes.lanes.due)
            if owned.lanes.news_since is not None:
                due.append(owned.lanes.news_since + self._once.limits.commit_seconds)
        return min(due, default=None)

    def ended(self) -> bool:
        """Another run begins: what did not run comes again. False while a handler runs still."""
        if not self.halted or self.flights:
            return False
        for owned in self._partitions():
            if owned.lanes is None or owned.stage is not Stage.RUNNING:
                owned.lanes = None
            elif owned.unsent is not None:
                owned.dropped = True
            elif len(owned.lanes.lanes):
                owned.reopen()
            else:
                owned.lanes = None
        return True


def _first(columns: Columns, known: Known, size: int) -> tuple[Columns, Known]:
    """What stands in front of a record whose lane nobody can tell."""
    if size == len(columns):
        return columns, known
    in_front = Columns(
        columns.at,
        columns.offsets[:size],
        columns.keys[:size],
        columns.fingerprints[:size],
        [row for row in columns.unidentified if row < size],
    )
    return in_front, Known(known.seen[:size], known.fingerprints[:size], known.as_of)
