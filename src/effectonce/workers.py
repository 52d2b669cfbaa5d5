"""The real `Pool`: threads that run the handlers of lanes, and nothing else.

The caller's thread alone touches the store, the client and what is decided. A worker makes the
event, calls the handler and says how it ended; one that hangs is left behind (it is a daemon).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Final

from effectonce.handlers import Handler, run_flight
from effectonce.owned import Flight, Pool

JOIN_SECONDS: Final = 5.0


class PoolNow:
    """`AsyncPool` over a `Pool` (now.py)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.start = pool.start

    async def ended(self, seconds: float) -> Sequence[Flight]:
        return self._pool.ended(seconds)


class Workers:
    """At most `lanes` threads, made as they are needed."""

    def __init__(self, handler: Handler, lanes: int) -> None:
        self._handler = handler
        self._lanes = lanes
        self._started: SimpleQueue[Flight | None] = SimpleQueue()
        self._ended: SimpleQueue[Flight] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._flying = 0

    def start(self, flight: Flight) -> None:
        self._flying += 1
        if self._flying > len(self._threads) < self._lanes:
            name = f"effectonce-lane-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        self._started.put(flight)

    def ended(self, seconds: float) -> Sequence[Flight]:
        ended: list[Flight] = []
        try:
            ended.append(
                self._ended.get(timeout=seconds) if seconds > 0 else self._ended.get_nowait()
            )
            while True:
                ended.append(self._ended.get_nowait())
        except Empty:
            pass
        self._flying -= len(ended)
        return ended

    def stop(self) -> None:
        for _ in self._threads:
            self._started.put(None)
        if not self._flying:
            for thread in self._threads:
                thread.join(JOIN_SECONDS)

    def _work(self) -> None:
        handler, started, ended = self._handler, self._started, self._ended
        while (flight := started.get()) is not None:
            began, flight.thread = time.monotonic(), threading.get_ident()
            run_flight(flight, handler)
            flight.seconds = time.monotonic() - began
            ended.put(flight)
            del flight  # else its records are kept until the next one comes
