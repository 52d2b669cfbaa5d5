"""Which faults fire, and at which step of the protocol; all from one seed.

Around every port call a process may be killed or frozen, before it and after it; every call may
fail before it does anything, or be done and not answered. The rest happens to all of them.

Whatever fires passes one gate, `Faults.falls`, which numbers it. A fault is known by its place: on
whom, what, and at which time of taking that step; a schedule that is cut down fires what it lists,
there and nowhere else. How long it lasts is drawn from its place, so that to leave one out
changes no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from effectonce.ports import Reach
from effectonce.testing.simulator.process import Fate, HandlerRaised

KINDS: Final = (
    *("crash", "freeze", "fails", "done but unanswered", "store full", "clock step"),
    *("handler raises", "handler raises after its effect", "slow handler", "zombie"),
    *("late revoke", "lost", "old backup", "operator reset", "group deleted", "topic recreated"),
    *("retention", "log gap", "producer retry", "copy within the window", "copy elsewhere"),
    *("days of downtime", "member leaves", "suffix lost"),
)
"""Every fault that a run may have; the report names those that never fired."""

IMPOSSIBLE: Final = {
    Reach.EMBEDDED: frozenset(("copy elsewhere", "suffix lost")),
    Reach.KEYED: frozenset(("copy elsewhere",)),
    Reach.SHARED: frozenset[str](),
}
"""Kinds that a store cannot meet: most promise nothing of other partitions, and an embedded one
goes back only where somebody puts an old copy in its place."""

LEAST: Final = 5
"""So many fall in every run, those of the log left out: one that is too calm becomes stormy."""
STIR_SECONDS: Final = 0.5

FINE: Final = Fate()
FAILS: Final = Fate(before=True)
UNANSWERED: Final = Fate(after=True)


Place = tuple[str, str, str, int]
"""On whom, which kind, at which step, at which time of taking it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that fell. Its number is its turn in the whole run of its seed."""

    number: int
    who: str
    kind: str
    step: str
    time: int

    @property
    def place(self) -> Place:
        return self.who, self.kind, self.step, self.time

    def __str__(self) -> str:
        return f"#{self.number} {self.kind.upper()} at {self.step} no. {self.time}"


class Faults:
    """Fires them, and counts them by the step that they fell upon."""

    def __init__(self, world: Any, chance: Random, only: Iterable[Fault] | None = None) -> None:
        self._world = world
        self._chance = chance
        self._listed = None if only is None else {fault.place: fault for fault in only}
        self._times: Counter[tuple[str, str]] = Counter()
        self.fell: list[Fault] = []
        self.on = True
        self.full_until = 0.0
        self.counts: Counter[tuple[str, str]] = Counter()
        # some runs are stormy, some nearly calm: rare faults need both
        self._crash = chance.choice([0.0, 0.001, 0.005])
        self._freeze = chance.choice([0.0, 0.001, 0.005])
        self._fails = chance.choice([0.0, 0.01, 0.05, 0.2])
        self._drawn = self._crash, self._freeze, self._fails
        self._raises = chance.choice([0.0, 0.01, 0.05])
        self._slow = chance.choice([0.0, 0.004, 0.01])

    def fired(self, kind: str, step: str) -> None:
        self.counts[kind, step] += 1

    def too_few(self) -> bool:
        return sum(count for (_, step), count in self.counts.items() if step != "log") < LEAST

    def stir(self) -> None:
        """Looked at more than once. Calls fail, mostly: a crash leaves few that could."""
        if not self.on:
            return
        if self.too_few():
            self._crash = self._freeze = 0.02 * self._world.schedule.now
            self._fails = 0.6
        else:
            self._crash, self._freeze, self._fails = self._drawn
        self._world.schedule.at(STIR_SECONDS, self.stir)

    def falls(self, who: str, kind: str, step: str, time: int, *, drawn: bool) -> Random | None:
        """The one gate: drawn, or listed where a list is given. Answers what its length is for."""
        if self._listed is not None:
            listed = self._listed.get((who, kind, step, time))
            if listed is None:
                return None
            fault = listed
        elif not drawn:
            return None
        else:
            fault = Fault(len(self.fell) + 1, who, kind, step, time)
        self.fell.append(fault)
        self._world.tell(who, str(fault))
        return Random(f"{self._world.name} {fault.place}")

    def around(self, process: Any, step: str) -> None:
        if not self.on:
            return
        who, drawn = process.name, self._chance.random()
        self._times[who, step] += 1
        if self._listed is None and drawn >= self._crash + self._freeze:
            return  # as nearly always
        time = self._times[who, step]
        if self.falls(who, "crash", step, time, drawn=drawn < self._crash):
            self.fired("crash", step)
            process.kill()
            return
        freezes = self._crash <= drawn < self._crash + self._freeze
        if length := self.falls(who, "freeze", step, time, drawn=freezes):
            self.fired("freeze", step)
            self._world.freeze(process, length.choice([0.3, 1.0, 3.0]))

    def fate(self, process: Any, step: str) -> Fate:
        if not self.on:
            return FINE
        if step == "store.commit" and self._world.schedule.now < self.full_until:
            self.fired("store full", step)
            return FAILS
        if step in ("handler", "fetch", "revoke", "leave", "store.answer", "store.release"):
            return FINE
        drawn = self._chance.random()
        if self._listed is None and drawn >= self._fails:
            return FINE
        who, time = process.name, self._times[process.name, step]
        if self.falls(who, "fails", step, time, drawn=drawn < self._fails / 2):
            self.fired("fails", step)
            return FAILS
        unanswered = self._fails / 2 <= drawn < self._fails
        if self.falls(who, "done but unanswered", step, time, drawn=unanswered):
            self.fired("done but unanswered", step)
            return UNANSWERED
        return FINE

    def handler_raises(self, process: Any, kind: str, name: str) -> None:
        """The handler of the event `name` raises."""
        if not self.on:
            return
        time = self._asked(process, kind)
        drawn = self._chance.random() < self._raises
        if self.falls(process.name, kind, "handler", time, drawn=drawn):
            self.fired(kind, "handler")
            self._world.judge.raised(process.name, name)
            raise HandlerRaised

    def _asked(self, process: Any, kind: str) -> int:
        """How often by now: calls of the handler are no number where lanes run side by side."""
        self._times[process.name, kind] += 1
        return self._times[process.name, kind]

    def handler_seconds(self, process: Any) -> float:
        if self.on:
            time = self._asked(process, "slow handler")
            drawn = self._chance.random() < self._slow
            if length := self.falls(process.name, "slow handler", "handler", time, drawn=drawn):
                return length.choice([0.3, 1.5, 3.0, 12.0])
        return 0.0005
