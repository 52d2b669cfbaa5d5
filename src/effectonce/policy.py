"""What the user decides, as frozen values: where effects live, how often to try, how long to keep.

Nothing here is guessed. `problems()` of each value lists what cannot be kept, so that `Once` can
refuse a bad configuration whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from numbers import Real
from typing import Final, Literal, TypeAlias, get_args

import numpy as np

__all__ = ["IGNORED", "InStore", "Limits", "Outside", "Retry", "Window"]


_OnDoubt: TypeAlias = Literal["repeat"]


@dataclass(frozen=True, slots=True)
class InStore:
    """The effect is a write to the same store, through the `tx` that the handler is handed.

    Effect, marker and position commit together: one committed effect an event ID.
    """


@dataclass(frozen=True, slots=True)
class Outside:
    """The effect is somewhere else: a bank, an e-mail, another database.

    `on_doubt="repeat"`: the marker is written after the handler. Nothing is lost; a crash or a
    failure between effect and marker runs the event again, with the same `event.key_for(...)`.
    """

    on_doubt: _OnDoubt

    def problems(self) -> Iterator[str]:
        if self.on_doubt not in get_args(_OnDoubt):
            yield f'Outside(on_doubt={self.on_doubt!r}): this version knows on_doubt="repeat"'


Effects: TypeAlias = InStore | Outside


@dataclass(frozen=True, slots=True)
class Retry:
    """Attempts at one record in place, with its partition paused between them.

    The wait before attempt n + 1 is `wait_initial * 2 ** (n - 1)`, at most `wait_max`, less a
    random part of up to `jitter` of it (so that members that failed together spread out).
    """

    attempts: int = 5
    wait_initial: timedelta = timedelta(milliseconds=200)
    wait_max: timedelta = timedelta(seconds=30)
    jitter: float = 0.2

    def problems(self) -> Iterator[str]:
        if not _is(int, self.attempts) or self.attempts < 1:
            yield f"Retry(attempts={self.attempts!r}): at least 1, the first run counts"
        waits = (timedelta(0), self.wait_initial, self.wait_max)
        if not _is(timedelta, *waits) or sorted(waits) != list(waits):
            yield "Retry: needs timedeltas with 0 <= wait_initial <= wait_max"
        if not _is(Real, self.jitter) or not 0 <= self.jitter <= 1:
            yield f"Retry(jitter={self.jitter!r}): a share, from 0 to 1"

    def wait_seconds(self, attempts_made: int, chance: float) -> float:
        """Seconds to wait after `attempts_made` failures; `chance` is uniform in [0, 1)."""
        doublings = min(attempts_made - 1, 32)
        full = min(
            self.wait_initial.total_seconds() * 2.0**doublings, self.wait_max.total_seconds()
        )
        return full * (1.0 - self.jitter * chance)


MIN_WINDOW: Final = timedelta(seconds=10)
"""Generations are half a window in whole milliseconds and their number must fit 32 bits until
the year 2400; ten seconds leaves room for both and is shorter than any sensible window."""

MAX_WINDOW: Final = timedelta(days=36_500)
"""Its seconds are stored in 32 bits."""


@dataclass(frozen=True, slots=True)
class Window:
    """How long a marker is kept, in log time: at least `length`, at most 1.5 times that."""

    length: timedelta = timedelta(days=7)

    def problems(self) -> Iterator[str]:
        if not _is(timedelta, self.length) or not MIN_WINDOW <= self.length <= MAX_WINDOW:
            yield f"window={self.length!r}: a timedelta from {MIN_WINDOW} to {MAX_WINDOW}"

    @property
    def half_ms(self) -> int:
        return self.seconds * 500

    @property
    def seconds(self) -> int:
        return int(self.length.total_seconds())


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that keep a consumer healthy; the defaults suit most."""

    batch: int = 500
    """Records of one partition that are decided at once: also what a crash can leave in flight."""
    commit_seconds: float = 0.2
    """`run` commits at least this often while handlers are slow, so that a crash replays less."""
    outcome_bytes: int = 64 * 1024
    handler_timeout_seconds: float = 300.0
    """A handler that runs longer is cut off: what Kafka's max.poll.interval.ms allows a plain
    consumer by default."""
    drain_seconds: float = 10.0
    """How long a revoke waits for the record in the handler."""
    held: int = 10_000
    """Records of one partition in memory while its lanes run, before it is paused: also how far
    they may run ahead of a record that is stuck."""

    def problems(self) -> Iterator[str]:
        # the packed row counts its records in 16 bits
        for name in ("batch", "held"):
            value = getattr(self, name)
            if not _is(int, value) or not 1 <= value <= np.iinfo(np.uint16).max:
                yield f"Limits({name}={value!r}): from 1 to 65535"
        for name in ("commit_seconds", "outcome_bytes", "handler_timeout_seconds", "drain_seconds"):
            value = getattr(self, name)
            if not _is(Real, value) or not value > 0:
                yield f"Limits({name}={value!r}): must be a number above 0"


def _is(kind: type, *values: object) -> bool:
    """Whether they have the type that they are annotated with: users need not run mypy."""
    return all(isinstance(value, kind) for value in values)


class Ignored(Enum):
    """The type of `IGNORED`."""

    IGNORED = "ignored"


IGNORED: Final = Ignored.IGNORED
"""Returned by a handler: nothing to do for this event. The position moves, no marker is left."""


class OnReset(Enum):
    """Somebody reset the group's offsets in Kafka (row 11 of the start table)."""

    REFUSE = "refuse"
    DEDUPE = "dedupe"
    """Go there; what took effect within the window is answered as a repeat."""
    REPROCESS = "reprocess"
    """Go there and run everything again, as a new run."""
    SKIP = "skip"
    """Follow a reset forward; ignore one backward."""


class Moved(Enum):
    """Kafka's witness names another store (row 2)."""

    REFUSE = "refuse"
    ACCEPT = "accept"


class Gap(Enum):
    """Records between the position and the log's start are gone by retention."""

    REFUSE = "refuse"
    ACCEPT = "accept"


class OnUnidentified(Enum):
    """A record without a usable event ID."""

    RAISE = "raise"
    """Its partition stops."""
    PROCESS = "process"
    """It runs on every delivery, unprotected; counted."""


class StartAt(Enum):
    """Where a partition begins that neither the store nor Kafka has heard of."""

    EARLIEST = "earliest"
    LATEST = "latest"
