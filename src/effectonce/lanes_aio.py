"""Lanes in tasks: a task a flight, each under its own deadline, and the run of them all.

| a handler               | its event                                                         |
| ----------------------- | ----------------------------------------------------------------- |
| is past its deadline    | failed, in doubt: it holds its lane, and is tried again           |
| swallows that           | the group is left, as with a thread that hangs                    |
| is cancelled, with the  | untouched; `maybe_repeated` the next time                         |
| run                     |                                                                   |
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from effectonce.event import Event
from effectonce.handlers import check_ran
from effectonce.handlers_aio import NOT_AWAITED, AsyncHandler, Calls, Interrupted, through
from effectonce.hooks import BatchStarted, around_batch
from effectonce.lane_run import LaneRun
from effectonce.owned import Flight


class Tasks:
    """The `AsyncPool` of an event loop."""

    def __init__(self, handler: AsyncHandler, deadline_seconds: float) -> None:
        self._handler = handler
        self._deadline_seconds = deadline_seconds
        self._flying: dict[Calls, asyncio.Task[None]] = {}
        self._ended: deque[Flight] = deque()
        self._news = asyncio.Event()
        self._interrupted = False

    def start(self, flight: Flight) -> None:
        call = Calls(self._deadline_seconds)
        self._flying[call] = asyncio.create_task(self._fly(flight, call), name="effectonce-lane")

    async def ended(self, seconds: float) -> Sequence[Flight]:
        if not self._ended and seconds > 0:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def interrupt(self) -> None:
        """Cancel every handler that runs; none begins any more."""
        self._interrupted = True
        for call in self._flying:
            call.interrupt()

    def holds(self, task: asyncio.Task[object] | None) -> bool:
        """Whether it is one of ours: a handler's."""
        return task is not None and task in self._flying.values()

    async def _fly(self, flight: Flight, call: Calls) -> None:
        began = time.monotonic()
        try:
            if self._interrupted:
                flight.escaping = Interrupted()
            else:
                await run_flight(flight, self._handler, call)
        finally:
            flight.seconds = time.monotonic() - began
            del self._flying[call]
            self._ended.append(flight)
            self._news.set()


async def run_flight(flight: Flight, handler: AsyncHandler, call: Calls) -> None:
    """Run one event of a lane; raises nothing."""
    work, row = flight.work, flight.index
    event = Event(work, row)
    try:
        with around_batch(BatchStarted(flight.owned.at, 1, 1, 0)):
            outcome = await call(handler, event)
        check_ran(outcome, NOT_AWAITED)
        if work.is_untouched(row):
            work.done(row, outcome)
    except Interrupted as interrupted:
        flight.escaping = interrupted
    except BaseException as error:  # noqa: BLE001 - sys.exit too is let through once settled
        work.failed(row, error)
        flight.escaping = through(error)


async def run_lanes(
    run: LaneRun, done: Callable[[], Awaitable[bool]], drain_seconds: float
) -> None:
    """Turn until it is done, and settle what runs. Raises what must be let through."""
    try:
        while not (await done() or run.escaping):
            await run.turn()
        await run.finish(drain_seconds)
    except BaseException:
        run.broken_off()
        raise
    if run.escaping is not None and not isinstance(run.escaping, Interrupted):
        raise run.escaping
