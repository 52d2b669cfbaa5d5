"""Who says whether a run kept its promise. Each invariant has a name, and a line of why.

| invariant          | broken when                                                             |
| ------------------ | ----------------------------------------------------------------------- |
| lost               | faults have stopped, all positions are at the end, an event has no effect |
| repeated           | in-store: an event has more than one committed effect                   |
| undoubted repeat   | outside: an effect came again, and no doubt explains it                 |
| stuck              | faults have stopped, and a position does not reach the end              |
| wrongly stopped    | a consumer raised what nothing in this run explains                     |
| moved back         | a position went back, and no operator or store fault moved it           |
| stale applied      | a commit of a former epoch was applied                                  |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from effectonce.errors import EffectOnceError, HandlerTimeout
from effectonce.event import Event
from effectonce.model import Already, Applied, Commit, CommitResult, Partition, Position, Stale


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
    marked: bool = False
    doubt: bool = False


@dataclass(slots=True)
class Judge:
    """What a run did, as the target and the disk saw it."""

    violations: list[Violation] = field(default_factory=list)
    deliveries: int = 0
    effects: dict[str, list[Effect]] = field(default_factory=lambda: defaultdict(list))
    keys: dict[bytes, str] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def broken(self, invariant: str, why: str) -> None:
        self.violations.append(Violation(invariant, why))

    def effect(self, name: str, process: str, event: Event) -> None:
        before = self.effects[name]
        # a zombie looked up before its successor marked: who no longer owns repeats with a doubt
        owns = self.owners.get(event.partition) == process
        for effect in before if owns else ():
            if effect.partition != event.partition or effect.doubt:
                continue
            what = "though it was marked" if effect.marked else "without a doubt"
            self.broken("undoubted repeat", f"{name} by {process} {what}, first {effect.process}")
        before.append(Effect(process, event.partition, doubt=not owns))

    def raised(self, process: str) -> None:
        """The handler raised after its effect: in doubt."""
        self._doubt(lambda effect: effect.process == process)

    def killed(self, process: str) -> None:
        self._doubt(lambda effect: effect.process == process)

    def opened(self, at: Partition, process: str, epoch: int) -> None:
        """What a former owner has made and not marked is in doubt from now on."""
        del epoch
        self.owners[at.number] = process
        self._doubt(lambda effect: effect.partition == at.number)

    def store_lost(self) -> None:
        for effects in self.effects.values():
            for effect in effects:
                effect.doubt = True

    def _doubt(self, which: object) -> None:
        assert callable(which)
        for effects in self.effects.values():
            for effect in effects:
                if not effect.marked and which(effect):
                    effect.doubt = True

    def committed(
        self, process: str, commit: Commit, before: Position | None, result: CommitResult
    ) -> None:
        new, at = commit.position, commit.at
        if isinstance(result, Stale):
            self._doubt(lambda e: e.process == process and e.partition == at.number)
        if not isinstance(result, Applied | Already) or before is None:
            return
        if isinstance(result, Applied) and before.epoch != new.epoch:
            self.broken("stale applied", f"{process}, epoch {new.epoch} of {before.epoch}")
        if commit.markers is not None:
            raw = commit.markers.keys.tobytes()
            names = [self.keys.get(raw[i : i + 16], "") for i in range(0, len(raw), 16)]
            self.mark(names, at.number)
        serial = int.from_bytes(new.commit_id[8:], "big")
        if new.next < before.next and serial > 1:
            self.broken("moved back", f"{at} from {before.next} to {new.next}")

    def mark(self, names: Sequence[str], number: int) -> None:
        for name in names:
            for effect in self.effects.get(name, ()):
                if effect.partition == number:
                    effect.marked = True

    def stopped(self, process: str, error: EffectOnceError) -> None:
        self.errors.append(f"{process}: {type(error).__name__}: {error}")
        if not isinstance(error, HandlerTimeout):
            self.broken("wrongly stopped", self.errors[-1][:300])
