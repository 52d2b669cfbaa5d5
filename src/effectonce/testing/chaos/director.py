"""The director: plays the score, one fault after the other, and holds the producer back meanwhile.

A step is due by count of produced records. It is over when the witness has struck; a victim that
makes no effects, because it has no partitions or is not back yet, is replaced by whoever makes one
next. The producer never runs far past a step that is not over: every fault meets a working group.
"""

from __future__ import annotations

import signal
import time

from effectonce.testing.chaos.crew import Crew
from effectonce.testing.chaos.journal import Kind
from effectonce.testing.chaos.plan import Fault, Spec, Step, score
from effectonce.testing.chaos.producer import Producer
from effectonce.testing.chaos.tally import Tally
from effectonce.testing.chaos.witness import ANY_WORKER, WitnessProcess

_SIGNALS = {
    Fault.KILL: (signal.SIGKILL, Kind.KILLED),
    Fault.FREEZE: (signal.SIGSTOP, Kind.FROZEN),
    Fault.LEAVE: (signal.SIGTERM, Kind.ASKED),
}

PATIENCE_SECONDS = 1.0
AHEAD_SECONDS = 4.0
RESERVE = 0.02
"""The share of the records that is kept back for the last faults."""
TRICKLE = 50
"""Records for a group that has caught up while a step waits for an effect to strike at."""


class Director:
    """`tick` often; it never waits."""

    def __init__(
        self, spec: Spec, producer: Producer, crew: Crew, witness: WitnessProcess, tally: Tally
    ) -> None:
        self._spec = spec
        self._producer = producer
        self._crew = crew
        self._witness = witness
        self._tally = tally
        self._steps = score(spec)
        self._current: Step | None = None
        self._struck_before = 0
        self._patience_ends = 0.0
        self._calm_ends = 0.0

    def tick(self) -> None:
        if self._current is not None:
            self._follow(self._current)
        elif self._steps and self._due(self._steps[0]):
            self._begin(self._steps.pop(0))
        self._producer.gate = self._gate()

    def _due(self, step: Step) -> bool:
        return step.at <= self._producer.produced and time.monotonic() >= self._calm_ends

    def _begin(self, step: Step) -> None:
        self._current = step
        self._struck_before = self._tally.strikes[_SIGNALS[step.fault][1]]
        self._crew.absent_seconds = step.absent_seconds
        self._arm(step, self._crew.places[step.slot].worker)

    def _follow(self, step: Step) -> None:
        if self._tally.strikes[_SIGNALS[step.fault][1]] > self._struck_before:
            self._current = None
            self._calm_ends = time.monotonic() + self._spec.calm_seconds
        elif time.monotonic() > self._patience_ends:
            self._arm(step, ANY_WORKER)

    def _arm(self, step: Step, worker: int) -> None:
        self._patience_ends = time.monotonic() + PATIENCE_SECONDS + step.delay_seconds
        effects = step.effects if worker != ANY_WORKER else 1
        self._witness.arm(_SIGNALS[step.fault][0], worker, effects, step.delay_seconds)

    def _gate(self) -> int:
        pending = self._current or (self._steps[0] if self._steps else None)
        if pending is None:
            return self._spec.delivered
        ahead = pending.at + int(AHEAD_SECONDS * self._spec.rate)
        held = min(ahead, int((1 - RESERVE) * self._spec.delivered))
        return max(held, self._tally.passed + TRICKLE)
