"""The keeper in virtual time."""

from __future__ import annotations

from typing import Any

from greenlet import getcurrent, greenlet

from effectonce.errors import BrokerError
from effectonce.ports import Charge
from effectonce.testing.simulator.schedule import Dead


class SimKeeper:
    """`ports.Keeper` without a thread: a greenlet that tends while a handler is slow."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._charge: Charge | None = None
        self._after = self._deadline = 0.0
        self._in_handler = False
        self._ended = 0
        self._since = 0.0
        self._tending = False
        self._greenlet: object = None

    def start(self, charge: Charge, *, after_seconds: float, deadline_seconds: float) -> None:
        self._charge, self._after, self._deadline = charge, after_seconds, deadline_seconds

    def entered(self) -> None:
        self._in_handler = True
        self.progress = 0.0

    @property
    def progress(self) -> float:
        return self._ended

    @progress.setter
    def progress(self, now: float) -> None:
        """Counted: here, time may stand still between two calls."""
        del now
        self._ended += 1
        self._since = self._process.world.schedule.now

    def expect(self, seconds: float) -> None:
        """A handler call is about to last that long: past `after_seconds` the keeper wakes."""
        if seconds > self._after and not self._tending:
            schedule = self._process.world.schedule
            hub = greenlet(lambda seen=self._ended: self._tend(seen), schedule.hub)
            schedule.at(self._after, hub)

    def left(self) -> None:
        self._in_handler = False
        while self._tending:
            self._process.sleep(0.01)

    def await_left(self, seconds: float) -> None:
        if getcurrent() is not self._greenlet:
            return
        until = self._process.world.schedule.now + seconds
        while self._in_handler and self._process.world.schedule.now < until:
            self._process.sleep(0.02)

    def stop(self) -> None:
        self._in_handler = False

    def _is_still(self, seen: int) -> bool:
        return self._in_handler and self._ended == seen

    def _tend(self, seen: int) -> None:
        if not self._in_handler or self._ended != seen or self._charge is None:
            return
        self._tending, self._greenlet = True, getcurrent()
        self._process.world.faults.fired("slow handler", "handler")
        try:
            while self._is_still(seen):
                if self._process.world.schedule.now - self._since >= self._deadline:
                    self._process.world.judge.killed(self._process.name)
                    self._charge.cut_off()
                    return
                try:
                    self._charge.tend()
                except BrokerError:
                    self._process.sleep(0.1)
        except Dead:
            pass
        finally:
            self._tending, self._greenlet = False, None
