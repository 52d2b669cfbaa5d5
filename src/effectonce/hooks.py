"""What happened, as frozen events for whoever wants to watch.

Hooks are called a batch at a time, never a skipped message at a time. One that raises is logged
once and changes nothing.

    def on_event(event: eo.hooks.HookEvent) -> None: ...
    eo.hooks.set_hooks([on_event])            # process-wide, as stamina does; [] is silence

Hooks may also wrap a batch: an object with `around_batch(BatchStarted)` that returns a context
manager gets one entered while the handlers run, so that its spans enclose theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, TypeAlias

from effectonce.model import Partition

__all__ = [
    "BatchCommitted",
    "BatchStarted",
    "HookEvent",
    "PartitionAssigned",
    "PartitionBegan",
    "PartitionReleased",
    "PartitionStalled",
    "Retrying",
    "StoreOutage",
    "get_hooks",
    "set_hooks",
]

log = logging.getLogger("effectonce")


@dataclass(frozen=True, slots=True)
class PartitionAssigned:
    """The group gave this member the partition; where it begins is not known yet."""

    at: Partition


@dataclass(frozen=True, slots=True)
class PartitionBegan:
    """A partition begins at `offset`; `row` names the row of the start table that said so."""

    at: Partition
    row: str
    offset: int
    epoch: int
    open_seconds: float
    """From the assignment to the first possible record, waiting for a LOCK included."""


@dataclass(frozen=True, slots=True)
class PartitionReleased:
    """The partition is not this member's any more."""

    at: Partition
    reason: str
    """"revoked", "lost", "closed", "late" (its handler was at work), "cut off"."""


@dataclass(frozen=True, slots=True)
class PartitionStalled:
    """The partition stopped at a record; `error` says why."""

    at: Partition
    offset: int
    error: Exception


@dataclass(frozen=True, slots=True)
class BatchStarted:
    """Decided, and about to run. Counts are of records."""

    at: Partition
    delivered: int
    fresh: int
    repeats: int


@dataclass(frozen=True, slots=True)
class BatchCommitted:
    """Durable: markers, position and effects. Counts are of records passed or marked."""

    at: Partition
    delivered: int
    fresh: int
    """Ran and left a marker now."""
    repeats: int
    """Answered from a marker, or copies of one that ran in the same batch."""
    below: int
    """Skipped below the stored position."""
    unprotected: int
    existing: int
    """Ran although a marker came first from elsewhere (outside effects): repeats that happened."""
    next: int
    handler_seconds: float
    commit_seconds: float
    lag: int
    """Records behind the log's end, as far as it is known without asking; -1: not known."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """Attempt `attempt` at one record failed; the next comes after `wait_seconds`."""

    at: Partition
    offset: int
    attempt: int
    wait_seconds: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class StoreOutage:
    """The first failure of an outage (`over` false), and its end."""

    at: Partition
    over: bool
    error: Exception | None
    lasted_seconds: float


HookEvent: TypeAlias = (
    PartitionAssigned
    | PartitionBegan
    | PartitionReleased
    | PartitionStalled
    | BatchStarted
    | BatchCommitted
    | Retrying
    | StoreOutage
)
Hook: TypeAlias = Callable[[HookEvent], None]

_hooks: tuple[Hook, ...] = ()
_failed: set[int] = set()


def set_hooks(hooks: Iterable[Hook]) -> None:
    """Replace all hooks of this process."""
    global _hooks  # noqa: PLW0603 - one for the process, and swapped whole
    _hooks = tuple(hooks)
    _failed.clear()


def get_hooks() -> tuple[Hook, ...]:
    """The hooks of this process, in the order in which they are called."""
    return _hooks


def emit(event: HookEvent) -> None:
    """Tell every hook."""
    for hook in _hooks:
        with _contained(hook):
            hook(event)


def around_batch(event: BatchStarted) -> AbstractContextManager[None]:
    """Enter every hook's context manager around the handlers of a batch.

    Each sees an exception that passes through; none can swallow it, or add one of its own.
    """
    return _around(event) if _hooks else _UNWATCHED


_UNWATCHED: Final = nullcontext()


@contextmanager
def _around(event: BatchStarted) -> Iterator[None]:
    with ExitStack() as stack:
        for hook in _hooks:
            with _contained(hook):
                around = getattr(hook, "around_batch", None)
                if around is not None:
                    manager: AbstractContextManager[object] = around(event)
                    manager.__enter__()
                    stack.push(partial(_leave, hook, manager))
        yield


def _leave(
    hook: Hook,
    manager: AbstractContextManager[object],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    # the answer is dropped: a hook does not decide an exception's fate
    with _contained(hook):
        manager.__exit__(kind, error, trace)


@contextmanager
def _contained(hook: Hook) -> Iterator[None]:
    """Whatever the hook raises in here is reported once, and forgotten."""
    try:
        yield
    except Exception:
        if id(hook) not in _failed:
            _failed.add(id(hook))
            log.exception("a hook raised, once reported: %r", hook)
