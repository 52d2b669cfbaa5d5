"""Lanes of a simulated member: handlers are greenlets, so that they end in an order from the seed.

| a seed draws        | from                                                                 |
| ------------------- | -------------------------------------------------------------------- |
| how many at once    | 2 to 16                                                              |
| what runs in order  | records of one key (mostly), of a partition, of a lane, or none      |
| what may be held    | a few records, so that partitions are paused; or as many as come     |
| how long one drains | hardly at all, so that handlers are late; or a second                |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from greenlet import getcurrent, greenlet

from effectonce.event import Event
from effectonce.handlers import Handler, run_flight
from effectonce.owned import Flight

KEYS: Final = 7
SLOW_SECONDS: Final = 0.1
LOOKS_SECONDS: Final = 0.002
"""Between two looks at who has ended."""


def lasts(seconds: float, chance: Random) -> float:
    """How long a handler takes; none ends like another, but for those that a fault made slow."""
    return seconds if seconds > SLOW_SECONDS else seconds * chance.uniform(0.2, 20.0)


def key_for(event: str) -> bytes | None:
    """The record key of an event; a few have none."""
    number = int(event.removeprefix("e") or 0) % KEYS
    return b"key %d" % number if number else None


@dataclass(frozen=True, slots=True)
class LanesOf:
    """What a seed has drawn."""

    lanes: int
    order: str
    held: int
    drain_seconds: float

    @classmethod
    def drawn(cls, chance: Random) -> LanesOf:
        return cls(
            chance.choice([2, 3, 5, 16]),
            chance.choice(["key", "key", "key", "partition", "lane", "none"]),
            chance.choice([3, 12, 10_000]),
            chance.choice([0.02, 1.0]),
        )

    def settings(self) -> dict[str, Any]:
        """What `run` is told."""
        if self.order == "lane":
            return {"lanes": self.lanes, "lane": self.lane_of}
        return {"lanes": self.lanes, "order": self.order}

    def lane_of(self, event: Event) -> bytes | None:
        """What `event` must run in order with, within its partition, as a judge sees it."""
        if self.order == "partition":
            return b"all"
        if self.order == "none":
            return None
        return key_for((event.value or b"").decode())


class SimPool:
    """`ports.Pool` of one process."""

    def __init__(self, process: Any, handler: Handler, lanes: int) -> None:
        self._process = process
        self._handler = handler
        self._lanes = lanes
        self._flying = 0
        self._ended: list[tuple[Flight, object]] = []

    def start(self, flight: Flight) -> None:
        self._flying += 1
        if self._flying > self._lanes:
            self._process.world.judge.broken("too many at once", f"{self._flying}")
        schedule = self._process.world.schedule
        delay = 0.001 * self._process.chance.random()
        schedule.at(delay, greenlet(lambda: self._run(flight), schedule.hub))

    def _run(self, flight: Flight) -> None:
        process = self._process
        began = process.world.schedule.now
        try:
            run_flight(flight, self._handler)
        finally:
            process.world.judge.lanes.ends()
        flight.seconds = process.world.schedule.now - began
        self._flying -= 1
        self._ended.append((flight, getcurrent()))

    def ended(self, seconds: float) -> Sequence[Flight]:
        process = self._process
        until = process.world.schedule.now + seconds
        while not self._ended and (left := until - process.world.schedule.now) > 0:
            process.sleep(min(left, LOOKS_SECONDS))
        ended, self._ended = self._ended, []
        for _, runner in ended:  # until it is taken, the driver cannot know that it has ended
            process.running.pop(runner, None)
        return [flight for flight, _ in ended]

    def stop(self) -> None:
        """Greenlets end by themselves, or with their process."""
