"""Who says whether a run kept its promise. Each invariant has a name, and a line of why.

| invariant              | broken when                                                          |
| ---------------------- | -------------------------------------------------------------------- |
| lost                   | all is calm, all positions are at the end, an event has no effect    |
| repeated               | in-store: an event has a second committed effect within its window   |
| undoubted repeat       | outside: an effect came again, and no doubt explains it              |
| not told               | outside: who ran it again could know, and `maybe_repeated` was false |
| stuck                  | faults have stopped, and a position does not reach the end           |
| wrongly stopped        | a consumer raised what nothing in this run explains                  |
| moved back             | a position went back, and no operator or store fault moved it        |
| stale applied          | a commit of a former epoch was applied                               |
| epoch handed out twice | two ownership periods of a partition cannot be told apart            |
| out of order           | in one ownership, a lane's effects are not in delivered order, or    |
|                        | two of its records run at once; across a crash they only replay      |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from greenlet import getcurrent

from effectonce.core.settle import serial_of
from effectonce.errors import EffectOnceError, HandlerTimeout
from effectonce.event import Event
from effectonce.model import Already, Applied, Commit, CommitResult, Partition, Position, Stale
from effectonce.ports import Reach
from effectonce.stores.commits import are_facts
from effectonce.testing.simulator.schedule import Schedule

WINDOW_DAYS: Final = 7
DAY_MS: Final = 86_400_000
WINDOW_MS: Final = WINDOW_DAYS * DAY_MS


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken invariant."""

    invariant: str
    why: str


@dataclass(slots=True)
class Effect:
    """One effect outside: who made it, and whether it may be made again."""

    process: str
    partition: int
    marked_at: float | None = None
    marked_by: str | None = None
    doubt: bool = False
    offset: int = -1
    known: bool = False
    """Its maker was killed, or its handler raised, while the partition was its own: whoever runs it
    again can know, and `maybe_repeated` says so."""
    given_up: bool = False
    """Its maker has given the partition up since, in good order: that may not leave a doubt."""


Place = tuple[str, int, bytes]
"""A lane: whose, in which partition."""


@dataclass(slots=True)
class LaneJudge:
    """What ran in each lane. A handler is known by the greenlet that runs it."""

    broken: Callable[[str, str], None]
    running: dict[object, Place] = field(default_factory=dict)
    last: dict[Place, int] = field(default_factory=dict)
    """The last offset that took effect, in this ownership."""

    def begins(self, process: str, event: Event, lane: bytes | None) -> None:
        if lane is None:
            return
        place = process, event.partition, lane
        if place in self.running.values():
            self.broken("out of order", f"two at once in {place}, one at {event.offset}")
        self._look(place, event.offset)
        self.running[getcurrent()] = place

    def takes_effect(self, offset: int) -> None:
        if (place := self.running.get(getcurrent())) is not None:
            self._look(place, offset)
            self.last[place] = offset

    def _look(self, place: Place, offset: int) -> None:
        if offset < self.last.get(place, offset):
            self.broken("out of order", f"{offset} after {self.last[place]} in {place}")

    def ends(self) -> None:
        self.running.pop(getcurrent(), None)

    def opened(self, process: str, partition: int) -> None:
        """Another ownership begins."""
        for place in [place for place in self.last if place[:2] == (process, partition)]:
            del self.last[place]


@dataclass(slots=True)
class Judge:
    """What a run did, as the target and the disk saw it."""

    schedule: Schedule
    reach: Reach
    violations: list[Violation] = field(default_factory=list)
    deliveries: int = 0
    effects: dict[str, list[Effect]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[bytes, str] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    made_ms: dict[str, int] = field(default_factory=dict)
    """When each event was first produced."""
    first_opened_ms: dict[int, int] = field(default_factory=dict)
    """How far the log time of any partition was when each was opened for the first time."""
    aged: set[str] = field(default_factory=set)
    """Delivered once more when their window was over: a position went back, and they may repeat."""
    ran: dict[str, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))
    """The records (partition and offset) in which each event was handed to a handler."""
    running: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The record that each process last handed to a handler."""
    unanswered: dict[tuple[str, int], int] = field(default_factory=dict)
    """At which of its steps each process last sent a commit that was not answered, by partition."""
    unheard: set[int] = field(default_factory=set)
    """Partitions whose store went back under their owner: what he noted there before, that he has
    begun, may be gone, and Kafka hears of him but once a second."""
    looked_for: dict[tuple[str, int, str], float] = field(default_factory=dict)
    """When each process asked the store for an event, by the partition that its record came in."""
    errors: list[str] = field(default_factory=list)
    lanes: LaneJudge = field(init=False)

    def __post_init__(self) -> None:
        self.lanes = LaneJudge(self.broken)

    def broken(self, invariant: str, why: str) -> None:
        self.violations.append(Violation(invariant, why))

    def runs(self, process: str, name: str, place: tuple[int, int], log_time_ms: int) -> None:
        """A handler is called with the event at `place`, and this is its partition's log time.

        A partition that no one had opened holds up no other's window: the others' counts for it.
        The very record that ran before is never excused: where its marker is gone, below the
        horizon, a reset is refused.
        """
        log_time_ms = max(log_time_ms, self.first_opened_ms.get(place[0], 0))
        ran = self.ran[name]
        if log_time_ms - self.made_ms[name] > WINDOW_MS and place not in ran:
            self.aged.add(name)
        ran.add(place)
        self.running[process] = place

    def effect(self, name: str, process: str, event: Event) -> None:
        before = self.effects[name]
        # a zombie looked up before its successor marked: who no longer owns repeats with a doubt
        owns = self.owners.get(event.partition) == process
        for effect in before if owns and name not in self.aged else ():
            if not effect.doubt and self._excludes(effect, process, event.partition, name):
                what = "was not marked" if effect.marked_at is None else "was marked"
                why = f"{name} by {process}; the first, by {effect.process}, {what}"
                self.broken("undoubted repeat", why)
            same = (effect.partition, effect.offset) == (event.partition, event.offset)
            if effect.known and same and not event.maybe_repeated:
                self.broken("not told", f"{name} by {process}; the first, by {effect.process}")
        before.append(Effect(process, event.partition, doubt=not owns, offset=event.offset))

    def _excludes(self, effect: Effect, process: str, partition: int, name: str) -> bool:
        """Whether `process` could know of that effect: else two copies ran at the same time."""
        looked = self.looked_for.get((process, partition, name), 0.0)
        if effect.partition != partition and self.reach is not Reach.SHARED:
            return False
        if effect.partition == partition or effect.process == process:
            # somebody else may have marked it since (a zombie; whoever ran it again, having been
            # given the other partition): after the owner, slow or frozen himself, had looked
            late = effect.marked_at is not None and effect.marked_at >= looked
            return effect.marked_by == process or not late
        return effect.marked_at is not None and effect.marked_at < looked

    def asked_for(
        self, process: str, at: Partition, keys: Iterable[bytes], when: float, *, in_lanes: bool
    ) -> None:
        """It was told of these keys what the store knew `when` it asked.

        In lanes the first time counts: a copy may be asked for again while the record waits.
        """
        for key in keys:
            place = (process, at.number, self.keys.get(key, ""))
            if not (in_lanes and place in self.looked_for):
                self.looked_for[place] = when

    def raised(self, process: str, name: str) -> None:
        """The handler of that event raised: if it had its effect, that is in doubt.

        And it was not this record that had it: another may, and this one pass as its copy.
        """
        self.ran[name].discard(self.running.get(process, (-1, -1)))
        for effect in self.effects.get(name, ()):
            if effect.process == process and effect.marked_at is None:
                heard = effect.partition not in self.unheard
                effect.known = effect.known or (heard and not effect.doubt)
                effect.doubt = True

    def killed(self, process: str) -> None:
        for effects in self.effects.values():
            for e in effects:
                mine = e.process == process and self.owners.get(e.partition) == process
                mine = mine and e.partition not in self.unheard
                e.known = e.known or (mine and e.marked_at is None and not e.doubt)
        self._doubt(lambda effect: effect.process == process)

    def opened(self, at: Partition, process: str, epoch: int, log_time_ms: int) -> None:
        """What a former owner has made and not marked is in doubt from now on."""
        self.first_opened_ms.setdefault(at.number, log_time_ms)
        if epoch <= self.epochs.get(at.number, 0):
            self.broken("epoch handed out twice", f"{epoch} of {at} to {process}")
        self.epochs[at.number] = epoch
        self.lanes.opened(process, at.number)
        for asked in [a for a in self.looked_for if a[:2] == (process, at.number)]:
            del self.looked_for[asked]
        self.owners[at.number] = process
        self.unheard.discard(at.number)
        # whoever opens it once more himself has been told why (stale), and that is counted there
        self._doubt(lambda e: e.partition == at.number and e.process != process and not e.given_up)

    def answered(self, at: Partition, process: str, step: int, *, answered: bool) -> None:
        """A commit was, or was not, answered."""
        if answered:
            self.unanswered.pop((process, at.number), None)
        else:
            self.unanswered[process, at.number] = step

    def released(
        self,
        at: Partition,
        process: str,
        step: int,
        *,
        busy: bool,
        late: Collection[int] | None = None,
    ) -> None:
        """What it tried to commit in vain, as it gave the partition up, is in doubt.

        What it did not even try at that moment is not; but for `late` records, which lanes have in
        their handlers still.
        """
        if late is not None:
            here = [(process, at.number, offset) for offset in late]
            self._doubt(lambda e: (e.process, e.partition, e.offset) in here)
            if self.owners.get(at.number) == process:
                del self.owners[at.number]
        if self.unanswered.get((process, at.number)) == step - 1:
            self._doubt(lambda e: e.process == process and e.partition == at.number)
        for effects in self.effects.values() if not busy else ():  # a late one says so itself
            for effect in effects:
                if effect.process == process and effect.partition == at.number:
                    effect.given_up = True

    def store_lost(self, kept: Iterable[bytes]) -> None:
        """It went back to these keys: other markers, and its count of epochs, are gone.

        A record whose marker is gone may pass as another one's copy from now on.
        """
        names = {self.keys.get(key) for key in kept}
        for name, places in self.ran.items():
            if name not in names:
                places.clear()
        self.epochs.clear()
        self.unheard = set(self.owners)
        for effects in self.effects.values():
            for effect in effects:
                effect.doubt, effect.marked_at, effect.known = True, None, False

    def _doubt(self, which: Callable[[Effect], bool]) -> None:
        for effects in self.effects.values():
            for effect in effects:
                if effect.marked_at is None and which(effect):
                    effect.doubt = True

    def committed(
        self, process: str, commit: Commit, before: Position | None, result: CommitResult
    ) -> None:
        new, at = commit.position, commit.at
        if before is not None and before.topic_id != new.topic_id:
            # what ran before that was noticed ran under the old topic's window
            for ran in self.ran.values():
                ran.difference_update([place for place in ran if place[0] == at.number])
        if isinstance(result, Stale) and self.reach is not Reach.EMBEDDED and are_facts(commit):
            self._marked_by(process, commit)
        elif isinstance(result, Stale):
            self._doubt(lambda e: e.process == process and e.partition == at.number)
        if not isinstance(result, Applied | Already) or before is None:
            return
        if isinstance(result, Applied) and before.epoch != new.epoch:
            self.broken("stale applied", f"{process}, epoch {new.epoch} of {before.epoch}")
        if commit.markers is not None and isinstance(result, Applied):
            self._marked_by(process, commit)
        serial = serial_of(new.commit_id)
        if new.next < before.next and serial > 1:
            self.broken("moved back", f"{at} from {before.next} to {new.next}")

    def _marked_by(self, process: str, commit: Commit) -> None:
        assert commit.markers is not None
        raw = commit.markers.keys.tobytes()
        names = [self.keys.get(raw[i : i + 16], "") for i in range(0, len(raw), 16)]
        for effect in (e for name in names for e in self.effects.get(name, ())):
            if effect.partition == commit.at.number:
                effect.marked_at, effect.doubt = self.schedule.now, False
                effect.marked_by = process

    def stopped(self, process: str, error: EffectOnceError) -> None:
        self.errors.append(f"{process}: {type(error).__name__}: {error}")
        if not isinstance(error, HandlerTimeout):
            self.broken("wrongly stopped", self.errors[-1][:300])
