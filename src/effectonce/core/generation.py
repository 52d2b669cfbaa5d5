"""The window: how long a marker is kept, in log time.

    generation = floor(log time / half a window) + 1; three are kept, so a marker lives W to 1.5 W.

| log time                                  | generation                                         |
| ----------------------------------------- | -------------------------------------------------- |
| a record's timestamp is higher            | rises to it, at most to wall clock + 5 minutes     |
| a record's timestamp is lower             | stays: log time is monotonic                       |
| a record has no timestamp                 | rises by the wall time since the last commit, both |
|                                           | that rise and log time clamped to 5 minutes        |
| the commit enters a new generation        | it begins at the position before the commit        |
| three generations on                      | the floor rises, the horizon with it: up to where  |
|                                           | that commit came, since a frozen owner may have    |
|                                           | marked its records too, in an older generation     |
| a marker stands ahead of the position     | its generation stays until it is passed, and then  |
|                                           | a whole window more: that starts there             |
| and its record is of a later time         | it goes into the generation of that time           |

Log time, because eight days of downtime must not eat a seven-day window: measured by the wall
clock that repeats effects, measured by the log it does not. A marker exists until its generation
is dropped whole; no expiry time is ever compared, since a look-up that says "new" beside a unique
key that says "exists" would never end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from effectonce.model import UNSET, GenerationStart, Position

KEPT: Final = 3
"""Generations kept: the current one and two whole halves behind it."""

MAX_AHEAD_MS: Final = 5 * 60 * 1000
"""A producer's clock may be this far ahead before it no longer moves the window; Kafka's own
guard against future timestamps is an hour (log.message.timestamp.after.max.ms), clocks under NTP
are within seconds."""


def advance_log_time(log_time_ms: int, record_ms: int, wall_ms: int, last_wall_ms: int) -> int:
    """Log time once the position has passed a record with the timestamp `record_ms` (or UNSET)."""
    if record_ms == UNSET and log_time_ms == UNSET:
        return wall_ms
    if record_ms == UNSET:
        record_ms = log_time_ms + min(wall_ms - last_wall_ms, MAX_AHEAD_MS)
    return max(log_time_ms, min(record_ms, wall_ms + MAX_AHEAD_MS))


def generation_of(log_time_ms: int, half_ms: int) -> int:
    """Counted from 1: 0 is no generation."""
    return max(log_time_ms, 0) // half_ms + 1


def turn(
    position: Position,
    log_time_ms: int,
    half_ms: int,
    *,
    end: int = UNSET,
    repeated_until: int = UNSET,
) -> Position:
    """`position` with its generations, floor and horizon as they are at `log_time_ms`.

    Call it with the position *before* the commit: a generation begins where the position stood
    when its first markers were written. `end` is the one after it. `repeated_until`: below it lie
    records that it passes as repeats. In the first generation of a row nobody knows where their
    markers are (a frozen owner's, in one that is over: simulated, 11007283).
    """
    current = generation_of(log_time_ms, half_ms)
    known, horizon = position.generations, position.horizon
    entered = max(end, position.next)
    if not known:
        horizon = max(horizon, repeated_until)
    if not known or known[-1].generation < current:
        until = max(position.next, position.marked_until)
        known = (*known, GenerationStart(current, position.next, until, log_time_ms, entered))
    elif known[-1].generation == current and known[-1].entered == UNSET:
        known = (*known[:-1], replace(known[-1], entered=entered))
    kept = known
    while len(kept) > 1 and _is_over(kept, position.next, current):
        kept = kept[1:]
    dropped = len(kept) < len(known)
    return replace(
        position,
        log_time_ms=log_time_ms,
        floor=max(position.floor, min(current - KEPT + 1, kept[0].generation)),
        generations=kept,
        horizon=max(horizon, kept[0].until, kept[0].entered) if dropped else horizon,
    )


def reach(position: Position, record_ms: int, half_ms: int) -> Position:
    """`position` with a generation for markers ahead of it, whose last record is of `record_ms`.

    The pin above is this partition's alone. In the generation of the position's own time they were
    dropped by another one that shares them, before it came to a copy (seed 4007274).
    """
    generation = generation_of(record_ms, half_ms)
    if position.generations[-1].generation >= generation:
        return position
    until = max(position.next, position.marked_until)
    begun = GenerationStart(generation, position.next, until, record_ms)
    return replace(position, generations=(*position.generations, begun))


def _is_over(kept: tuple[GenerationStart, ...], position_next: int, current: int) -> bool:
    """Whether the oldest generation was passed, all of it, a whole window ago."""
    until = kept[1].until
    if position_next < until:
        return False
    # the position went past `until` in the last generation that it entered below it
    passed = max((g.generation for g in kept if g.offset < until), default=kept[0].generation)
    return current >= passed + KEPT
