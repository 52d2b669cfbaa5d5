"""The decisions together, under any schedule: two members that open, begin, tell Kafka, work, lose
answers, die and come back as zombies; operators that reset offsets and delete the group.

An effect is a count in the store, committed with its marker. Kafka is the worst that it can be: it
lets a zombie commit an offset, too.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

import numpy as np
import pytest

from effectonce.core.plan import Columns, plan
from effectonce.core.settle import FIRST_SERIAL, Ended, Moment, settle
from effectonce.core.stall import first_start, rest
from effectonce.core.start import Refuse, Reopen, Situation, StartPolicy, start, witness_of
from effectonce.errors import StoreError
from effectonce.model import (
    NO_ID,
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

POLICY: Final = StartPolicy(
    identify_fingerprint=ROW.identify_fingerprint,
    accepted_identities=frozenset(),
    window_seconds=ROW.window_seconds,
)


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


class World:
    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.store = MemoryStore()
        self.epoch = 0
        self.kafka: Committed | None = None
        self.log = list("abcdefgh")
        self.log_start = 0
        self.policy = POLICY
        self.members: dict[str, Member] = {}
        self.effects: Counter[tuple[int, str]] = Counter()
        self.excused: set[int] = set()
        """Offsets that somebody decided to pass over."""
        self.run_began = 0
        """Where the newest reprocessing run began: from there on all must run again."""

    def step(self) -> None:
        (act,) = self.chance.choices(list(CHANCES), list(CHANCES.values()))
        act(self, self.chance.choice(["one", "two"]))
        assert max(self.effects.values(), default=0) <= 1, "an effect happened twice"

    def finish(self) -> None:
        """Whoever comes last brings everything to its end, and nothing is missing."""
        self.join("one", steps=2)
        member = self.members["one"]
        while member.position is not None and member.position.next < len(self.log):
            before = member.position.next
            self.run("one", 5, "ddddd", answered=True)
            assert member.position.next > before, "stuck"
        assert max(self.effects.values(), default=0) <= 1, "an effect happened twice"
        runs = {run for run, _ in self.effects}
        for offset, event_id in enumerate(self.log):
            if offset not in self.excused:
                counts = {max(runs)} if offset >= self.run_began else runs
                assert any(self.effects[run, event_id] for run in counts), f"lost: {offset}"

    # -- what members do --

    def open(self, who: str) -> None:
        """Open, and be cut short at any step: it may go on when another has opened."""
        self.join(who, steps=self.chance.choice([0, 1, 2, 2, 2]))

    def join(self, who: str, steps: int) -> None:
        self.members[who] = Member(self.store.open(AT, ROW.topic_id))
        self.epoch = self.members[who].opened.epoch
        for _ in range(steps):
            self.go_on(who)

    def go_on(self, who: str) -> None:
        member = self.members.get(who)
        if member is not None and member.position is None:
            self.begin(who, member)
        elif member is not None and member.position is not None:
            self.tell_kafka(who, member, member.position)

    def begin(self, who: str, member: Member) -> None:
        row = member.opened.row
        situation = Situation(
            at=AT,
            row=row,
            epoch=member.opened.epoch,
            store_id=self.store.prepare(),
            topic_id=ROW.topic_id,
            committed=self.kafka,
            log=LogEnds(self.log_start, len(self.log)),
            shared=True,
        )
        decided = start(situation, self.policy)
        if isinstance(decided, Reopen):  # it was told of already: begin once more, above that
            again = self.store.open(AT, ROW.topic_id, above=decided.above)
            self.members[who] = Member(again)
            self.epoch = again.epoch
            return
        if isinstance(decided, Refuse):
            assert member.opened.epoch < self.epoch, decided
            del self.members[who]  # the other has opened: what this one holds of the row is old
            return
        if decided.write:
            follows = row.commit_id if row else NO_ID
            if not self.commit(who, Commit(AT, follows, decided.position)):
                return
        member.position = decided.position
        if row is not None and decided.position.run > row.run:
            self.run_began = decided.position.next
        if row is not None:
            self.excused |= set(range(row.next, decided.position.next))
        elif self.kafka is not None:
            self.excused |= set(range(decided.position.next))

    def tell_kafka(self, who: str, member: Member, position: Position) -> None:
        self.kafka = Committed(position.next, witness_of(position))
        if not member.working:
            note = first_start(AT, position, member.next_serial())
            if self.commit(who, note):
                member.position, member.working = note.position, True

    def work(self, who: str) -> None:
        ended = "".join(self.chance.choices("ddddf", k=5))
        self.run(who, self.chance.randint(1, 5), ended, self.chance.random() < 0.8)

    def run(self, who: str, size: int, ended: str, answered: bool) -> None:
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

    def send_again(self, who: str) -> None:
        member = self.members.get(who)
        if member is None or member.unsent is None:
            return
        commit, member.unsent = member.unsent, None
        if self.commit(who, commit):
            member.position = commit.position
        else:
            assert member.opened.epoch < self.epoch, "the owner's own commit was refused"

    def leave(self, who: str) -> None:
        member = self.members.pop(who, None)
        if member is None or member.position is None or member.unsent:
            return
        note = rest(AT, member.position, member.next_serial())
        if note is not None:
            self.commit(who, note)

    def die(self, who: str) -> None:
        self.members.pop(who, None)

    # -- what happens to all of them --

    def produce(self, _: str) -> None:
        self.log += self.chance.choices("acegijklmnopqrstuvwxyz", k=4)

    def delete_group(self, _: str) -> None:
        self.members.clear()
        self.kafka = None

    def reset(self, _: str) -> None:
        meaning = self.chance.choice([OnReset.DEDUPE, OnReset.REPROCESS, OnReset.SKIP])
        row = self.store.open(AT, ROW.topic_id).row
        self.members.clear()
        lowest = self.log_start
        if row is not None and meaning is OnReset.DEDUPE:
            lowest = max(lowest, row.horizon)
        self.kafka = Committed(self.chance.randint(lowest, len(self.log)))
        self.policy = replace(self.policy, on_reset=meaning)

    def retain(self, _: str) -> None:
        """Records go by retention, and the user knows it."""
        self.members.clear()
        self.log_start = self.chance.randint(self.log_start, len(self.log))
        self.excused |= set(range(self.log_start))
        self.policy = replace(self.policy, gap=Gap.ACCEPT)

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


CHANCES: Final[dict[Callable[[World, str], None], float]] = {
    World.open: 5,
    World.go_on: 2,
    World.work: 12,
    World.send_again: 3,
    World.leave: 1,
    World.die: 1,
    World.produce: 2,
    World.delete_group: 0.3,
    World.reset: 0.5,
    World.retain: 0.3,
}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_schedule_no_effect_is_lost_or_repeated_and_no_owner_is_refused(
    seed: int,
) -> None:
    for number in range(500):
        world = World(Random(f"{seed}.{number}"))
        try:
            for _ in range(40):
                world.step()
            world.finish()
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}.{number}") from error
