"""The decisions together, under any schedule: two members that open, begin, tell Kafka, work, lose
answers, die and come back as zombies; operators that reset offsets and delete the group.

An effect is a count in the store, committed with its marker. Kafka is the worst that it can be: it
lets a zombie commit an offset, too.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from effectonce.core.plan import Columns, plan
from effectonce.core.settle import FIRST_SERIAL, Ended, Moment, settle
from effectonce.core.stall import first_start, rest
from effectonce.core.start import Refuse, Situation, StartPolicy, start, witness_of
from effectonce.errors import StoreError
from effectonce.model import (
    UNSET,
    Already,
    Applied,
    Commit,
    Committed,
    LogEnds,
    OnExisting,
    Opened,
    Position,
    Query,
    Stale,
)
from effectonce.policy import Gap, OnReset
from effectonce.stores.memory import MemoryStore
from tests.unit.builders import AT, HALF_MS, ROW, WALL_MS, endings, keys_of

TOPIC: Final = ROW.topic_id
POLICY: Final = StartPolicy(
    identify_fingerprint=ROW.identify_fingerprint,
    accepted_identities=frozenset(),
    window_seconds=ROW.window_seconds,
)
MEMBERS: Final = st.sampled_from(["one", "two"])


@dataclass
class Member:
    """What a process knows; it may be wrong about all of it by now."""

    opened: Opened
    position: Position | None = None
    working: bool = False
    unsent: Commit | None = None
    serial: int = FIRST_SERIAL

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial


class Schedules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.kafka: Committed | None = None
        self.log: list[str] = []
        self.log_start = 0
        self.policy = POLICY
        self.epoch = 0
        self.members: dict[str, Member] = {}
        self.effects: Counter[tuple[int, str]] = Counter()
        self.excused: set[int] = set()
        """Offsets that somebody decided to pass over."""

    # -- what members do --

    @rule(who=MEMBERS)
    def open(self, who: str) -> None:
        self.members[who] = Member(self.store.open(AT, TOPIC))
        self.epoch = self.members[who].opened.epoch

    @rule(who=MEMBERS)
    def begin(self, who: str) -> None:
        member = self.members.get(who)
        if member is None or member.position is not None:
            return
        row = member.opened.row
        situation = Situation(
            at=AT,
            row=row,
            epoch=member.opened.epoch,
            store_id=self.store.prepare(),
            topic_id=TOPIC,
            committed=self.kafka,
            log=LogEnds(self.log_start, len(self.log)),
            shared=True,
        )
        decided = start(situation, self.policy)
        if isinstance(decided, Refuse):
            assert member.opened.epoch < self.epoch, decided
            self.die(who)  # opened by the other meanwhile: what it holds of the row is old
            return
        if decided.write:
            expected = row.next if row else UNSET
            if not self.commit(who, Commit(AT, expected, decided.position)):
                return
        member.position = decided.position
        if row is not None:
            self.excused |= set(range(row.next, decided.position.next))
        elif self.kafka is not None:
            self.excused |= set(range(decided.position.next))

    @rule(who=MEMBERS)
    def tell_kafka(self, who: str) -> None:
        member = self.members.get(who)
        if member is None or member.position is None:
            return
        self.kafka = Committed(member.position.next, witness_of(member.position))
        if not member.working:
            note = first_start(AT, member.position, member.next_serial())
            if self.commit(who, note):
                member.position, member.working = note.position, True

    @rule(
        who=MEMBERS,
        size=st.integers(1, 5),
        ended=st.text("dddf", min_size=5, max_size=5),
        answered=st.booleans(),
    )
    def work(self, who: str, size: int, ended: str, answered: bool) -> None:
        member = self.members.get(who)
        if member is None or not member.working or member.unsent or member.position is None:
            return
        columns = self.read(member.position.next, size)
        (known,) = self.store.lookup([Query(AT, columns.keys, member.position.run)])
        assert not isinstance(known, StoreError)
        commit = settle(
            member.position,
            columns,
            plan(columns, known, member.position.next),
            Ended(endings(" ".join(ended[: len(columns)]))),
            moment=Moment(WALL_MS, WALL_MS),
            half_ms=HALF_MS,
            serial=member.next_serial(),
            on_existing=OnExisting.REFUSE,
        )
        if commit is None:
            return
        applied = self.commit(who, commit)
        if not answered:
            member.unsent = commit
        elif applied:
            member.position = commit.position

    @rule(who=MEMBERS)
    def send_again(self, who: str) -> None:
        member = self.members.get(who)
        if member is None or member.unsent is None:
            return
        commit, member.unsent = member.unsent, None
        if self.commit(who, commit):
            member.position = commit.position

    @rule(who=MEMBERS)
    def leave(self, who: str) -> None:
        member = self.members.pop(who, None)
        if member is None or member.position is None or member.unsent:
            return
        note = rest(AT, member.position, member.next_serial())
        if note is not None:
            self.commit(who, note)

    @rule(who=MEMBERS)
    def die(self, who: str) -> None:
        self.members.pop(who, None)

    # -- what happens to them --

    @rule(ids=st.lists(st.sampled_from("abcdefghij"), max_size=8))
    def produce(self, ids: list[str]) -> None:
        self.log.extend(ids)

    @rule()
    def delete_group(self) -> None:
        self.members.clear()
        self.kafka = None

    @precondition(lambda self: self.log)
    @rule(
        data=st.data(), on_reset=st.sampled_from([OnReset.DEDUPE, OnReset.REPROCESS, OnReset.SKIP])
    )
    def reset(self, data: st.DataObject, on_reset: OnReset) -> None:
        row = self.store.open(AT, TOPIC).row
        self.members.clear()
        lowest = self.log_start
        if row is not None and on_reset is OnReset.DEDUPE:
            lowest = max(lowest, row.horizon)
        self.kafka = Committed(data.draw(st.integers(lowest, len(self.log))))
        self.policy = replace(self.policy, on_reset=on_reset)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        """Records go by retention, and the user knows it."""
        self.log_start = data.draw(st.integers(self.log_start, len(self.log)))
        self.excused |= set(range(self.log_start))
        self.policy = replace(self.policy, gap=Gap.ACCEPT)
        self.members.clear()

    # -- what must hold --

    @invariant()
    def no_effect_twice(self) -> None:
        assert max(self.effects.values(), default=0) <= 1

    def teardown(self) -> None:
        """Whoever comes last brings everything to its end, and nothing is missing."""
        self.die("one")
        self.open("one")
        self.begin("one")
        self.tell_kafka("one")
        member = self.members["one"]
        while member.position is not None and member.position.next < len(self.log):
            before = member.position.next
            self.work("one", 5, "ddddd", answered=True)
            assert member.position.next > before
        self.no_effect_twice()
        missing = {
            event_id
            for offset, event_id in enumerate(self.log)
            if offset not in self.excused
            and not any(self.effects[run, event_id] for run in range(10))
        }
        assert not missing

    # -- how --

    def read(self, first: int, size: int) -> Columns:
        offsets = np.arange(first, min(first + size, len(self.log)), dtype=np.int64)
        ids = [self.log[offset] for offset in offsets]
        return Columns(AT, offsets, keys_of(ids), np.zeros(len(ids), np.uint32))

    def commit(self, who: str, commit: Commit) -> bool:
        """Whether it holds; a member whose commit is stale has lost the partition."""
        (result,) = self.store.commit([commit])
        if isinstance(result, Applied) and commit.markers is not None:
            for offset in commit.markers.offsets.tolist():
                self.effects[commit.position.run, self.log[offset]] += 1
        if isinstance(result, Stale):
            self.members.pop(who, None)
        return isinstance(result, Applied | Already)


Schedules.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_whatever_the_schedule_every_event_takes_effect_once_and_no_start_is_refused = (
    Schedules.TestCase
)
