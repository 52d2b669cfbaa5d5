"""Whole lives of a partition in lanes, against a model that looks at every record every time.

Held after each step: records of a lane start in order and one by one, at most as many are in flight
as may be, none starts twice unless it failed or its owner died, the position passes nothing that is
open, what is done is marked once, copies share the fate of the one they lean on. At the end nothing
fails any more, and all comes to an end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from effectonce.core.lanes import Lanes
from effectonce.core.plan import Decision, Pending, Unidentified
from effectonce.model import UNSET
from tests.unit.builders import AT, ELSEWHERE, batch, key, marked, payload
from tests.unit.hand import RETRY, Hand

LANES: Final = 3
OVER: Final = ("done", "ignored")
RECORDS: Final = st.lists(
    st.tuples(
        st.sampled_from([*("abcdefgh" * 4), "a'", "b'", "?"]),
        st.sampled_from("kkl.m"),
        st.integers(1, 2),
    ),
    max_size=6,
)
ENDINGS: Final = st.lists(
    st.tuples(
        st.sampled_from(["done"] * 4 + ["failed"] * 3 + ["ignored", "put back"]),
        st.integers(0, LANES - 1),
    ),
    max_size=LANES,
)


@dataclass(eq=False)
class Row:
    """One admitted record, as the model sees it."""

    number: int
    offset: int
    record: str
    lane: str
    decision: Decision
    leader: "Row | None" = None
    state: str = "new"
    failures: int = 0
    due: float = 0.0
    sent: bool = False
    durable: bool = False
    passed: bool = False

    @property
    def runs(self) -> bool:
        return self.decision in (Decision.RUN, Decision.UNPROTECTED)

    @property
    def is_open(self) -> bool:
        if self.leader is not None:
            return self.leader.is_open
        return self.runs and self.state not in OVER


@dataclass
class Model:
    """All rows since the partition began anew."""

    rows: list[Row] = field(default_factory=list)
    exhausted: Row | None = None
    blocked_by: Decision | None = None
    waits_for: str | None = None

    @property
    def here(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]

    def in_state(self, *states: str) -> list[Row]:
        return [row for row in self.here if row.runs and row.state in states]

    def leader_of(self, event_id: str) -> Row | None:
        found = [r for r in self.here if r.decision is Decision.RUN and r.record[0] == event_id]
        assert len(found) <= 1, "two of one key run"
        return found[0] if found else None

    def startable(self, now: float) -> Iterator[Row]:
        for row in self.here:
            if self.exhausted is not None and row.number >= self.exhausted.number:
                return
            ready = row.state == "new" or (row.state == "later" and row.due <= now)
            if row.runs and ready and not self.is_behind(row):
                yield row

    def is_behind(self, row: Row) -> bool:
        lane = [r for r in self.here if r.lane == row.lane != "." and r.number < row.number]
        return any(r.is_open for r in lane)


class Life(RuleBasedStateMachine):
    """One partition, its owner, its store."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.offsets: list[int] = []
        self.lane: list[str] = []
        self.markers: dict[int, int] = {}
        self.now = 0.0
        self.limit, self.alone_below = 8, UNSET
        self.unidentified = Unidentified.BLOCKS
        self.cursor = 0
        self.model = Model()
        self.hand = Hand()
        self.passing: list[Row] = []

    @initialize(
        limit=st.sampled_from([12, 12, 6, 2, 1]),
        alone=st.sampled_from([UNSET, UNSET, UNSET, UNSET, 3]),
        unidentified=st.sampled_from(Unidentified),
    )
    def begin(self, limit: int, alone: int, unidentified: Unidentified) -> None:
        self.limit, self.alone_below, self.unidentified = limit, alone, unidentified
        self.hand.lanes = self.fresh()

    def fresh(self) -> Lanes:
        return Lanes(
            AT,
            RETRY,
            limit=self.limit,
            alone_below=self.alone_below,
            unidentified=self.unidentified,
        )

    # -- what happens --------------------------------------------------------------------------

    @rule(
        records=RECORDS,
        elsewhere=st.sampled_from(["", "", "", "a", "b"]),
        lanes=st.sampled_from([LANES, LANES, 1, 0]),
        endings=ENDINGS,
        commit=st.sampled_from(["send, answer", "answer, send", "send", "answer", ""]),
        seconds=st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0]),
    )
    def turn(
        self,
        records: list[tuple[str, str, int]],
        elsewhere: str,
        lanes: int,
        endings: list[tuple[str, int]],
        commit: str,
        seconds: float,
    ) -> None:
        """A driver's turn, in which anything may not happen.

        One rule: of several, hypothesis leaves out some in each life, and it would stand still.
        """
        if records:
            self.admit(records, elsewhere)
        self.start(lanes)
        for ending, choice in endings:
            if flying := self.model.in_state("flight"):
                self.ends(flying[choice % len(flying)], ending)
        for step in commit.split(", "):
            if step == "send" and self.hand.underway is None:
                self.send()
            elif step == "answer" and self.hand.underway is not None:
                self.answer()
        self.now += seconds

    def admit(self, records: list[tuple[str, str, int]], elsewhere: str) -> None:
        """What came before comes once more; else the log goes on."""
        if self.cursor == len(self.log):
            for record, lane, step in records:
                self.log.append(record)
                self.lane.append(lane)
                self.offsets.append((self.offsets[-1] if self.offsets else -1) + step)
        self.come(len(records), elsewhere)

    def come(self, most: int, elsewhere: str = "") -> None:
        part = slice(self.cursor, self.cursor + most)
        records, lanes = self.log[part], self.lane[part]
        columns = batch(" ".join(records), offsets=self.offsets[part])
        expected = self.expect(records, lanes, self.offsets[part], elsewhere)
        pending = {key(elsewhere): Pending(ELSEWHERE, 0)} if elsewhere else None
        own = [None if lane == "." else lane for lane in lanes]
        admitted = self.hand.admit_columns(columns, own, pending)
        assert admitted.size == len(expected)
        if admitted.size:
            assert admitted.first == expected[0].number
        self.cursor += admitted.size

    def expect(
        self, records: list[str], lanes: list[str], offsets: list[int], elsewhere: str
    ) -> list[Row]:
        """What comes in, as the tables say; the model takes it in too."""
        model, came = self.model, list[Row]()
        room = self.room(offsets[0])
        if not room:
            return came
        model.blocked_by = model.waits_for = None
        for record, lane, offset in zip(records, lanes, offsets, strict=True):
            decision, leader = self.decide(record, offset, elsewhere)
            fits = len(came) < room
            if decision >= Decision.WAIT and (fits or len(came) == room):
                model.blocked_by = decision
                model.waits_for = record[0] if decision is Decision.WAIT else None
            if decision >= Decision.WAIT or not fits:
                break
            row = Row(len(model.rows), offset, record, lane, decision, leader)
            model.rows.append(row)
            came.append(row)
        return came

    def decide(self, record: str, offset: int, elsewhere: str) -> tuple[Decision, Row | None]:
        if offset < self.hand.position.next:
            return Decision.BELOW, None
        if record == "?":
            blocks = self.unidentified is Unidentified.BLOCKS
            return (Decision.UNIDENTIFIED if blocks else Decision.UNPROTECTED), None
        marker = self.hand.store.get(key(record[0]))
        if marker is not None:
            same = marker == payload(record)
            return (Decision.REPEAT if same else Decision.CONFLICT), None
        leader = self.model.leader_of(record[0])
        if leader is not None:
            same = payload(leader.record) == payload(record)
            return (Decision.LEAN, leader) if same else (Decision.WAIT, None)
        return (Decision.WAIT if record[0] == elsewhere else Decision.RUN), None

    def room(self, offset: int) -> int:
        model, here = self.model, self.model.here
        blocked = model.blocked_by in (Decision.CONFLICT, Decision.UNIDENTIFIED)
        leader = model.leader_of(model.waits_for) if model.waits_for else None
        if model.exhausted or blocked or (leader is not None and not leader.durable):
            return 0
        if offset < self.alone_below:
            return 0 if here else 1
        if here and here[0].offset < self.alone_below:
            return 0
        return max(self.limit - len(here), 0)

    def start(self, lanes: int = LANES) -> None:
        free = lanes - len(self.model.in_state("flight"))
        expected = list(self.model.startable(self.now))[: max(free, 0)]
        starts = self.hand.lanes.starts(free, self.now)
        assert [start.row for start in starts] == [row.number for row in expected]
        assert [start.attempt for start in starts] == [row.failures + 1 for row in expected]
        for row in expected:
            row.state = "flight"

    def flying(self, choice: int) -> Row:
        flying = self.model.in_state("flight")
        return flying[choice % len(flying)]

    def ends(self, row: Row, ending: str) -> None:
        lanes = self.hand.lanes
        if ending == "failed":
            self.fails(row)
        elif ending == "put back":
            row.state = "new"
            lanes.put_back(row.number)
        else:
            row.state = ending
            (lanes.done if ending == "done" else lanes.ignored)(row.number)

    def fails(self, row: Row) -> None:
        row.failures += 1
        row.state = "later"
        exhausted = self.model.exhausted
        is_last = row.failures >= RETRY.attempts
        if is_last and (exhausted is None or row.number < exhausted.number):
            exhausted = self.model.exhausted = row
        wait = self.hand.lanes.failed(row.number, self.now, 0.0)
        if exhausted is not None and row.number >= exhausted.number:
            assert wait is None
        else:
            assert wait == RETRY.wait_seconds(row.failures, 0.0)
            row.due = self.now + wait

    def send(self) -> None:
        commit = self.hand.send()
        here = self.model.here
        first_open = next((i for i, row in enumerate(here) if row.is_open), len(here))
        done = [r for r in here if r.decision is Decision.RUN and r.state == "done"]
        fresh = [row for row in done if not row.durable]
        assert marked(commit) == [row.offset for row in fresh]
        if first_open and here[first_open - 1].offset >= self.hand.position.next:
            assert commit is not None
            assert commit.position.next == here[first_open - 1].offset + 1
        elif commit is not None:
            assert commit.position.next == self.hand.position.next
        for row in fresh:
            row.sent = True
        self.passing = here[:first_open]

    def answer(self) -> None:
        """Applied, or Already, after who knows how many sendings."""
        for row in self.model.here:
            if row.sent and not row.durable:
                row.durable = True
                self.markers[row.offset] = self.markers.get(row.offset, 0) + 1
        for row in self.passing:
            row.passed = True
        self.hand.answer()

    @rule(applied=st.booleans(), chance=st.integers(0, 7))
    def crash(self, applied: bool, chance: int) -> None:
        """The process dies, now and then; the store says where the next one goes on."""
        if chance < 7:
            return
        if self.hand.underway is not None and applied:
            self.answer()
        self.hand.underway = None
        self.hand.lanes = self.fresh()
        self.model = Model()
        reached = max(self.hand.position.next, 0)
        self.cursor = sum(offset < reached for offset in self.offsets)

    # -- what holds ----------------------------------------------------------------------------

    @invariant()
    def no_more_than_may_be_are_in_flight(self) -> None:
        assert self.hand.lanes.in_flight == len(self.model.in_state("flight")) <= LANES

    @invariant()
    def nothing_is_marked_twice(self) -> None:
        assert set(self.markers.values()) <= {1}

    @invariant()
    def what_is_in_memory_is_what_is_not_passed(self) -> None:
        here = self.model.here
        assert len(self.hand.lanes) == len(here)
        assert self.hand.lanes.first == (here[0].number if here else len(self.model.rows))
        running = [row for row in here if row.decision is Decision.RUN]
        assert set(self.hand.lanes.keys) == {key(row.record[0]) for row in running}

    @invariant()
    def what_may_come_is_what_has_room(self) -> None:
        if self.cursor < len(self.log):
            offset = self.offsets[self.cursor]
            assert self.hand.lanes.room(offset) == self.room(offset)

    @invariant()
    def it_halts_only_where_nothing_more_can_happen(self) -> None:
        if not self.hand.lanes.is_halted:
            return
        here = self.model.here
        assert self.hand.underway is None
        assert not self.model.in_state("flight")
        assert all(r.durable for r in self.model.in_state("done") if r.decision is Decision.RUN)
        if self.model.exhausted is not None:
            assert here[0] is self.model.exhausted
        else:
            assert not here
            assert self.model.blocked_by in (Decision.CONFLICT, Decision.UNIDENTIFIED)

    def teardown(self) -> None:
        """Nothing fails any more: all ends, or the partition stops and says why."""
        lanes = self.hand.lanes
        for _ in range(4 * len(self.log) + 8):
            self.now += 60.0
            if self.cursor < len(self.log):
                self.come(3)
            self.start()
            for row in self.model.in_state("flight"):
                self.ends(row, "done")
            if self.hand.underway is None:
                self.send()
            self.answer()
        stopped = self.model.exhausted or self.model.blocked_by
        assert lanes.is_halted == bool(stopped)
        assert lanes.in_flight == lanes.news == 0
        if stopped is None:
            assert (len(lanes), self.cursor) == (0, len(self.log))
        elif self.model.exhausted is None:
            assert len(lanes) == 0
        else:
            assert lanes.exhausted == lanes.first


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)
