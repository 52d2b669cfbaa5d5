"""What a chaos run does, drawn from its seed before it starts: options, deliveries, faults.

Pure: the same `Spec` gives the same events, the same repeats in the same order, and the same score
of faults. Faults stand at counts of produced records and strike at an effect, not at times, so that
a slow machine meets them at the same places of the stream. What the scheduler adds in between is
real, and differs from run to run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Mode(Enum):
    """Where the effects live, and so what is promised."""

    IN_STORE = "in-store"
    OUTSIDE_REPEAT = "outside-repeat"


class Assignor(Enum):
    """How the group hands out its partitions."""

    RANGE = "range"
    COOPERATIVE_STICKY = "cooperative-sticky"
    KIP848 = "kip848"


class Fault(Enum):
    """What happens to a worker."""

    KILL = "kill"
    """SIGKILL; a new worker takes its place."""
    FREEZE = "freeze"
    """SIGSTOP past the session, then SIGCONT: it wakes up believing that it owns its partitions."""
    LEAVE = "leave"
    """SIGTERM: it leaves the group as in a deployment; a new worker takes its place."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One run. The demanded faults are part of it: a run that did not see them has failed."""

    seed: int
    mode: Mode = Mode.IN_STORE
    store: str = "rocksdb"
    driver: str = "confluent"
    assignor: Assignor = Assignor.RANGE
    delivered: int = 200_000
    distinct: int = 180_000
    rate: float = 2_000.0
    """Records produced a second."""
    partitions: int = 6
    workers: int = 3
    kills: int = 50
    freezes: int = 5
    leaves: int = 8
    batch: int = 200
    """Records that a worker takes at once: the most that one kill may leave in doubt."""
    session_seconds: float = 1.0
    calm_seconds: float = 0.5
    """At least so long from one strike to the next order, or kills would hit a group at rest."""
    stuck_seconds: float = 60.0
    """Without any progress for so long the run ends, and what is missing counts as lost."""

    def __post_init__(self) -> None:
        if not 0 < self.distinct <= self.delivered:
            raise ValueError(f"needs 0 < distinct <= delivered: {self.distinct}, {self.delivered}")
        if self.workers < 2 and self.freezes:
            raise ValueError("a freeze needs a second worker, which takes its partitions over")

    @property
    def kills_near_effect(self) -> int:
        """How many of the kills must follow an effect of the victim within 200 ms."""
        return self.kills * 4 // 5

    @property
    def kills_between_effect_and_commit(self) -> int:
        """How many of the kills must undo an effect."""
        return self.kills // 5

    @property
    def frozen_seconds(self) -> float:
        """Long enough for the session to end, the group to rebalance, and another to be waiting."""
        return 2 * self.session_seconds + 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of the score: due once `at` records are produced.

    It waits for the `effects`-th effect from then on by the worker in `slot`, then `delay_seconds`.
    With a delay of 0 the worker is struck before its effect is answered: between effect and commit.
    """

    at: int
    fault: Fault
    slot: int
    effects: int
    delay_seconds: float
    absent_seconds: float
    """How long its place stays empty afterwards."""


NEAR_GAP = 50
"""Every second repeat follows its event within so many: a producer's retry, often in one batch."""

AT_ONCE_SHARE = 0.6
"""Of the kills; the rest come up to `MAX_DELAY_SECONDS` after an effect, wherever that may be: in a
commit, a look-up, a rebalance, the opening of a partition."""

MAX_DELAY_SECONDS = 0.15


def event_ids(spec: Spec) -> list[bytes]:
    """The distinct events, as the 16 bytes of random (version 4) UUIDs."""
    random_bytes = random.Random(f"{spec.seed}/ids").randbytes(16 * spec.distinct)
    ids = []
    for start in range(0, len(random_bytes), 16):
        raw = bytearray(random_bytes[start : start + 16])
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        ids.append(bytes(raw))
    return ids


def deliveries(spec: Spec) -> list[int]:
    """The records in the order of their production, each as the number of its event."""
    rng = random.Random(f"{spec.seed}/deliveries")
    order: list[tuple[float, int]] = [(float(n), n) for n in range(spec.distinct)]
    for _ in range(spec.delivered - spec.distinct):
        event = rng.randrange(spec.distinct)
        reach = spec.distinct - event
        gap = rng.uniform(0, min(NEAR_GAP, reach) if rng.random() < 0.5 else reach)
        order.append((event + gap, event))
    order.sort()
    return [event for _, event in order]


def score(spec: Spec) -> list[Step]:
    """Every fault in order, spread evenly with some jitter; start and end are left alone."""
    rng = random.Random(f"{spec.seed}/score")
    faults = _mixed(rng, spec)
    first, last = 0.03 * spec.delivered, 0.94 * spec.delivered
    spacing = (last - first) / max(1, len(faults))
    slots = _slots(rng, spec.workers, len(faults))
    return [
        Step(
            at=int(first + spacing * (n + rng.uniform(0.1, 0.9))),
            fault=fault,
            slot=slot,
            effects=rng.randint(1, 40),
            delay_seconds=_delay(rng, fault),
            absent_seconds=rng.uniform(0.0, 0.6),
        )
        for n, (fault, slot) in enumerate(zip(faults, slots, strict=True))
    ]


def _mixed(rng: random.Random, spec: Spec) -> list[Fault]:
    """The kills in a row, freezes and leaves spread evenly among them."""
    faults: list[tuple[float, Fault]] = []
    for fault, count in (
        (Fault.KILL, spec.kills),
        (Fault.FREEZE, spec.freezes),
        (Fault.LEAVE, spec.leaves),
    ):
        faults += [((n + rng.uniform(0.2, 0.8)) / count, fault) for n in range(count)]
    return [fault for _, fault in sorted(faults, key=lambda pair: pair[0])]


def _slots(rng: random.Random, workers: int, count: int) -> Sequence[int]:
    """Never the same worker twice in a row: it has hardly come back."""
    slots = [rng.randrange(workers)]
    while len(slots) < count:
        slots.append(rng.choice([s for s in range(workers) if s != slots[-1]] or slots))
    return slots[:count]


def _delay(rng: random.Random, fault: Fault) -> float:
    at_once = fault is Fault.FREEZE or rng.random() < AT_ONCE_SHARE
    return 0.0 if at_once else rng.uniform(0.0, MAX_DELAY_SECONDS)
