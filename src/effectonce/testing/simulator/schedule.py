"""Virtual time. One greenlet runs at a time; it hands over only where it waits.

Nothing sleeps: the clock jumps to the next thing that is due. A process that is killed is unwound
by `Dead` at its next wait, and every port of it raises `Dead` from then on, so it touches nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from greenlet import getcurrent, greenlet

TICK_SECONDS: Final = 0.25


class Dead(BaseException):
    """Raised in every port of a process that was killed."""


class Schedule:
    """What is due when. `now` is in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._due: list[tuple[float, int, greenlet | Callable[[], None]]] = []
        self._count = 0
        self.hub = getcurrent()
        self._over = False

    def at(self, seconds: float, what: greenlet | Callable[[], None]) -> None:
        """Resume or call `what` in that many seconds."""
        self._count += 1
        heapq.heappush(self._due, (self.now + seconds, self._count, what))

    def wait(self, seconds: float) -> None:
        """Let that time pass for the greenlet that calls."""
        self.steps += 1
        if self._over:
            raise Dead
        if self._due and self._due[0][0] > self.now + seconds:
            self.now += seconds  # nobody else has anything to do meanwhile
            return
        self.at(seconds, getcurrent())
        self.hub.switch()
        if self._over:
            raise Dead

    def spawn(self, run: Callable[[], None]) -> None:
        self.at(0.0, greenlet(run, self.hub))

    def run(self, over: Callable[[], bool], limit_seconds: float) -> bool:
        """Until `over`; False if that is not so by `limit_seconds`. Then nothing goes on."""
        self._tick()
        while self._due and not over():
            if self._due[0][0] > limit_seconds:
                return False
            self.now, _, what = heapq.heappop(self._due)
            if isinstance(what, greenlet):
                what.switch()
            else:
                what()
        return over()

    def _tick(self) -> None:
        """A waiter that nobody interrupts goes on by itself: at times, the hub must look."""
        self.at(TICK_SECONDS, self._tick)

    def end(self) -> None:
        """Unwind whoever still waits."""
        self._over = True
        while self._due:
            _, _, what = heapq.heappop(self._due)
            if isinstance(what, greenlet) and not what.dead:
                what.switch()
