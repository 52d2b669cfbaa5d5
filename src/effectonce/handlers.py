"""How a task's events are given to the user's handler, and how each of them ended.

| handler            | returns                  | raises                                      |
| ------------------ | ------------------------ | ------------------------------------------- |
| an event, in-store | done, its `tx` kept      | failed, its `tx` discarded; the slice ends  |
| an event, outside  | done                     | failed (in doubt); the slice ends           |
| a batch, in-store  | unmarked done, `tx` kept | all rolled back; then one event at a time   |
| a batch, outside   | unmarked done            | unmarked in doubt; then one event at a time |

In-store, `event.failed` inside a batch counts as raising: one `tx` is kept whole or not at all.
What is not an Exception (sys.exit, Ctrl-C) fails its event like one and is then let through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Final, TypeAlias

from effectonce.errors import ConfigError
from effectonce.event import Batch, Event
from effectonce.hooks import BatchStarted, around_batch
from effectonce.model import UNSET, Ending, Rows
from effectonce.owned import Flight, Task
from effectonce.ports import Keeper
from effectonce.values import dataclass

# as plain numbers: an enum's member is looked up by name each time
_UNTOUCHED, _DONE, _FAILED = int(Ending.UNTOUCHED), int(Ending.DONE), int(Ending.FAILED)

Handler: TypeAlias = Callable[..., object]
Check: TypeAlias = Callable[[], bool]
"""Asked after each call: whether to end the slice here."""


@dataclass(frozen=True, slots=True)
class Slice:
    """So many of a task's events run before the store hears of them; asked after each.

    The clock is asked for each event, for 50 ns; what it says is the keeper's sign of life. Asked
    for every eighth, a process that was frozen and thawed ran up to seven more that its successor
    had run (make crash, seed 1128).
    """

    task: Task
    keeper: Keeper
    monotonic: Callable[[], float]
    end: float

    def ends(self) -> bool:
        self.keeper.progress = at = self.monotonic()
        return self.task.halted or at >= self.end


_LAZY: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
"""What a function returns that has not begun to run: its event would be done, without effect."""


def check_handler(handler: object, first: str, *, in_store: bool) -> None:
    """Refuse what cannot be called with `first` (and `tx`), or whose call would run nothing."""
    if not callable(handler):
        raise ConfigError([f"handler={handler!r}: must be callable"])
    for function in (handler, type(handler).__call__):
        if (
            inspect.iscoroutinefunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise ConfigError([_RUNS_NOTHING])
    check_takes(handler, first, in_store=in_store)


def check_takes(handler: Handler, first: str, *, in_store: bool) -> None:
    """Refuse what cannot be called with `first` (and `tx`)."""
    given = (first, "tx") if in_store else (first,)
    try:
        inspect.signature(handler).bind(*given)
    except ValueError:
        pass  # a built-in one shows no signature
    except TypeError as error:
        raise ConfigError([f"handler: is called with ({', '.join(given)}): {error}"]) from error


_RUNS_NOTHING: Final = (
    "handler: a coroutine or a generator runs nothing when it is called; this consumer takes plain "
    "functions"
)


def check_ran(outcome: object, why: str = _RUNS_NOTHING) -> None:
    """Refuse an outcome that has not begun to run."""
    if isinstance(outcome, _LAZY):
        if not isinstance(outcome, AsyncGeneratorType):
            outcome.close()
        raise ConfigError([why])


def check_batch(outcome: object, why: str = _RUNS_NOTHING) -> None:
    """Refuse what a batch handler returns: a list of failures, say, would count as all done."""
    check_ran(outcome, why)
    if outcome is not None:
        raise ConfigError(
            [
                f"handler: returned {type(outcome).__name__}; a batch handler returns nothing, "
                "which means all done. Say event.done(outcome) or event.failed(error) of an event, "
                "or raise"
            ]
        )


def let_through(error: BaseException) -> BaseException | None:
    """What no second attempt would mend: sys.exit, Ctrl-C, a handler that runs nothing."""
    ordinary = isinstance(error, Exception) and not isinstance(error, ConfigError)
    return None if ordinary else error


def run_events(task: Task, handler: Handler, part: Slice) -> BaseException | None:
    """Run event by event until one fails or the slice ends; returns what must be let through.

    `Event(work, row)` and `part.ends()` are written out: 40 ns less each.
    """
    work, marks, new = task.work, task.work.marks, object.__new__
    outside = task.transaction is None
    keeper, monotonic, end = part.keeper, part.monotonic, part.end
    for row in work.runs.tolist():
        event = new(Event)
        event._work, event._row = work, row  # noqa: SLF001 - as `Event` itself does
        try:
            outcome = handler(event) if outside else handler(event, work.begin(row))
            if outcome is not None:
                check_ran(outcome)
        except BaseException as error:  # noqa: BLE001 - sys.exit too is let through once settled
            work.failed(row, error)
            work.leave(row)
            return let_through(error)
        if marks[row] == _UNTOUCHED:
            if outcome is None:
                marks[row] = _DONE
            else:
                work.done(row, outcome)
        if not outside:
            work.leave(row)
        keeper.progress = at = monotonic()
        if at >= end or task.halted or marks[row] == _FAILED:
            return None
    return None


def run_flight(flight: Flight, handler: Handler) -> None:
    """Run one event of a lane, outside; raises nothing, be it in another thread."""
    work, row = flight.work, flight.index
    event = Event(work, row)
    try:
        with around_batch(BatchStarted(flight.owned.at, 1, 1, 0)):
            outcome = handler(event)
        if outcome is not None:
            check_ran(outcome)
        if work.is_untouched(row):
            work.done(row, outcome)
    except BaseException as error:  # noqa: BLE001 - sys.exit too is let through once settled
        work.failed(row, error)
        flight.escaping = let_through(error)


def run_batch(task: Task, handler: Handler, part: Slice) -> BaseException | None:
    """Run what failed in a batch before one by one, then the rest at once."""
    owned = task.owned
    for rows in portions(task):
        failure = _hand_over(task, rows, handler)
        if failure is not None:
            if len(rows) > 1:
                owned.singly_below = int(task.columns.offsets[rows[-1]]) + 1
                task.failed_together = True
            return let_through(failure)
        if part.ends():
            return None
    owned.singly_below = UNSET
    return None


def portions(task: Task) -> list[Rows]:
    """What a batch handler is given at once, call by call."""
    runs, owned, offsets = task.work.runs, task.owned, task.columns.offsets
    singles: list[Rows] = []
    if owned.singly_below != UNSET:
        count = int((offsets[runs] < owned.singly_below).sum())
        singles = [runs[i : i + 1] for i in range(count)]
    rest = runs[len(singles) :]
    return [*singles, rest] if len(rest) else singles


def _hand_over(task: Task, rows: Rows, handler: Handler) -> BaseException | None:
    """Give these events to a batch handler; returns what failed any of them."""
    work, effects = task.work, task.transaction
    batch = Batch(work, rows)
    work.in_batch = True
    tx = None if effects is None else effects.begin()
    failure: BaseException | None = None
    try:
        check_batch(handler(batch) if effects is None else handler(batch, tx))
        failure = next(iter(work.failures.values()), None)
    except BaseException as error:  # noqa: BLE001 - as above
        failure = error
        work.fail_rest(rows, error)
    if effects is None or failure is None:
        work.finish(rows)
    if effects is not None:
        if failure is None:
            effects.keep(tx)
        else:
            effects.discard(tx)
            work.undo(rows, failure)
    work.in_batch = False
    return failure
