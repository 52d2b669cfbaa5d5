"""As handlers.py, for coroutines, which can be broken off: a third way for a call to end.

| a call was              | in-store                   | outside                                   |
| ----------------------- | -------------------------- | ----------------------------------------- |
| past its deadline       | failed: its `tx` discarded | failed, in doubt                          |
| cancelled, with the run | untouched, `tx` discarded  | untouched; `maybe_repeated` the next time |

Whoever cancels the run says nothing of the event: it is not an attempt that failed. A handler that
returns all the same, though cancelled, has finished; one that returns past its deadline has failed.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from effectonce.errors import ConfigError
from effectonce.event import Batch, Event
from effectonce.handlers import Check, check_batch, check_ran, check_takes, let_through, portions
from effectonce.model import UNSET, Ending, Rows
from effectonce.owned import Task

AsyncHandler: TypeAlias = Callable[..., Awaitable[object]]

_PLAIN: Final = (
    "handler: a plain function; this consumer awaits its handlers: write `async def`, or use "
    "OnceConsumer"
)
NOT_AWAITED: Final = "handler: it returned a coroutine or a generator, which has not run: await it"


class Interrupted(BaseException):
    """The run was cancelled while a handler ran. Never leaves the driver."""


def check_async_handler(handler: object, first: str, *, in_store: bool) -> None:
    """Refuse what cannot be awaited with `first` (and `tx`)."""
    if not callable(handler):
        raise ConfigError([f"handler={handler!r}: must be callable"])
    if not any(map(inspect.iscoroutinefunction, (handler, type(handler).__call__))):
        raise ConfigError([_PLAIN])
    check_takes(handler, first, in_store=in_store)


class Calls:
    """Awaits handlers, each under its deadline, and can break one off from outside."""

    def __init__(self, deadline_seconds: float) -> None:
        self._deadline_seconds = deadline_seconds
        self._running: asyncio.Task[object] | None = None
        self._interrupted = False

    @property
    def running(self) -> asyncio.Task[object] | None:
        """Whose step a handler is."""
        return self._running

    def interrupt(self) -> None:
        """Cancel the handler that runs, if one does; nothing of the driver's."""
        if self._running is not None:
            self._interrupted = True
            self._running.cancel()

    async def __call__(self, handler: AsyncHandler, *args: object) -> object:
        """What the handler returned. Raises Interrupted, TimeoutError, or what it raised."""
        self._running, self._interrupted = asyncio.current_task(), False
        limit = asyncio.timeout(self._deadline_seconds)
        try:
            async with limit:
                outcome = await handler(*args)
        except BaseException as error:
            if self._interrupted:
                raise Interrupted from error
            if limit.expired() and isinstance(error, TimeoutError):
                raise self._too_long() from error
            raise
        finally:
            if self._interrupted and self._running is not None:
                self._running.uncancel()
            self._running = None
        if limit.expired():
            raise self._too_long()
        return outcome

    def _too_long(self) -> TimeoutError:
        return TimeoutError(
            f"the handler ran longer than {self._deadline_seconds:g} s (handler_timeout_seconds) "
            "and was cancelled"
        )


AsyncRun: TypeAlias = Callable[[Task, AsyncHandler, Calls, Check], Awaitable[BaseException | None]]
"""Gives a task's events to a handler; returns what must be let through."""


async def run_events(
    task: Task, handler: AsyncHandler, call: Calls, ends_slice: Check
) -> BaseException | None:
    """Run event by event until one fails or the slice ends."""
    work = task.work
    for row in work.runs.tolist():
        tx = work.begin(row)
        event = Event(work, row)
        try:
            outcome = await (
                call(handler, event) if work.effects is None else call(handler, event, tx)
            )
            check_ran(outcome, NOT_AWAITED)
        except Interrupted:
            _untouch(task, [row])
            work.leave(row)
            return None
        except BaseException as error:  # noqa: BLE001 - sys.exit too is let through once settled
            work.failed(row, error)
            work.leave(row)
            return through(error)
        if work.is_untouched(row):
            work.done(row, outcome)
        work.leave(row)
        if ends_slice() or work.has_failed(row):
            return None
    return None


async def run_batch(
    task: Task, handler: AsyncHandler, call: Calls, ends_slice: Check
) -> BaseException | None:
    """Run what failed in a batch before one by one, then the rest at once."""
    owned = task.owned
    for rows in portions(task):
        failure = await _hand_over(task, rows, handler, call)
        if isinstance(failure, Interrupted):
            return None
        if failure is not None:
            if len(rows) > 1:
                owned.singly_below = int(task.columns.offsets[rows[-1]]) + 1
                task.failed_together = True
            return through(failure)
        if ends_slice():
            return None
    owned.singly_below = UNSET
    return None


async def _hand_over(
    task: Task, rows: Rows, handler: AsyncHandler, call: Calls
) -> BaseException | None:
    """Give these events to a batch handler; returns what failed any of them."""
    work, effects = task.work, task.transaction
    batch = Batch(work, rows)
    work.in_batch = True
    tx = None if effects is None else effects.begin()
    failure: BaseException | None = None
    try:
        outcome = await (call(handler, batch) if effects is None else call(handler, batch, tx))
        check_batch(outcome, NOT_AWAITED)
        failure = next(iter(work.failures.values()), None)
    except Interrupted as interrupted:
        failure = interrupted
        _untouch(task, rows.tolist())
    except BaseException as error:  # noqa: BLE001 - as above
        failure = error
        work.fail_rest(rows, error)
    broken_off = isinstance(failure, Interrupted)
    if failure is None or (effects is None and not broken_off):
        work.finish(rows)
    if effects is not None and failure is None:
        effects.keep(tx)
    elif effects is not None and failure is not None:
        effects.discard(tx)
        if not broken_off:
            work.undo(rows, failure)
    work.in_batch = False
    return failure


def _untouch(task: Task, rows: list[int]) -> None:
    """The call was broken off. Outside, what it said of its events stands; the rest is in doubt."""
    work, owned = task.work, task.owned
    if work.effects is not None:
        for row in rows:
            work.marks[row] = Ending.UNTOUCHED
            work.outcomes.pop(row, None)
            work.failures.pop(row, None)
        return
    doubt = [row for row in rows if work.is_untouched(row)]
    if doubt:
        behind = int(task.columns.offsets[doubt[-1]]) + 1
        owned.maybe_repeated_below = max(owned.maybe_repeated_below, behind)


def through(error: BaseException) -> BaseException | None:
    """As `let_through`; a CancelledError of the handler's own is a failure like another."""
    return None if isinstance(error, asyncio.CancelledError) else let_through(error)
