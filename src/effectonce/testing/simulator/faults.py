"""Which faults fire, and at which step of the protocol; all from one seed.

Around every port call a process may be killed or frozen, before it and after it; every call may
fail before it does anything, or be done and not answered. The rest happens to all of them.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Final

from effectonce.testing.simulator.process import Fate, HandlerRaised

KINDS: Final = (
    *("crash", "freeze", "fails", "done but unanswered", "store full", "clock step"),
    *("handler raises", "handler raises after its effect", "slow handler", "zombie"),
    *("late revoke", "lost", "old backup", "operator reset", "group deleted", "topic recreated"),
    *("retention", "log gap", "producer retry", "days of downtime", "member leaves"),
)
"""Every fault that a run may have; the report names those that never fired."""

FINE: Final = Fate()
FAILS: Final = Fate(before=True)
UNANSWERED: Final = Fate(after=True)


class Faults:
    """Fires them, and counts them by the step that they fell upon."""

    def __init__(self, world: Any, chance: Random) -> None:
        self._world = world
        self._chance = chance
        self.on = True
        self.full_until = 0.0
        self.counts: Counter[tuple[str, str]] = Counter()
        # some runs are stormy, some nearly calm: rare faults need both
        self._crash = chance.choice([0.0, 0.001, 0.005])
        self._freeze = chance.choice([0.0, 0.001, 0.005])
        self._fails = chance.choice([0.0, 0.01, 0.05])
        self._raises = chance.choice([0.0, 0.01, 0.05])
        self._slow = chance.choice([0.0, 0.004, 0.01])

    def fired(self, kind: str, step: str) -> None:
        self.counts[kind, step] += 1

    def around(self, process: Any, step: str) -> None:
        if not self.on:
            return
        drawn = self._chance.random()
        if drawn < self._crash:
            self.fired("crash", step)
            self._world.tell(process.name, f"CRASH at {step}")
            process.kill()
        elif drawn < self._crash + self._freeze:
            self.fired("freeze", step)
            self._world.freeze(process, self._chance.choice([0.3, 1.0, 3.0]))

    def fate(self, process: Any, step: str) -> Fate:
        if not self.on:
            return FINE
        if step == "store.commit" and self._world.schedule.now < self.full_until:
            self.fired("store full", step)
            return FAILS
        if step in ("handler", "fetch", "revoke", "leave", "store.release"):
            return FINE
        drawn = self._chance.random()
        if drawn >= self._fails:
            return FINE
        if drawn < self._fails / 2:
            self.fired("fails", step)
            self._world.tell(process.name, f"{step} FAILS")
            return FAILS
        self.fired("done but unanswered", step)
        self._world.tell(process.name, f"{step} is done but UNANSWERED")
        return UNANSWERED

    def handler_raises(self, process: Any, kind: str) -> None:
        if self.on and self._chance.random() < self._raises:
            self.fired(kind, "handler")
            self._world.judge.raised(process.name)
            raise HandlerRaised

    def handler_seconds(self, process: Any) -> float:
        del process
        if self.on and self._chance.random() < self._slow:
            return self._chance.choice([0.3, 1.5, 3.0, 12.0])
        return 0.0005
