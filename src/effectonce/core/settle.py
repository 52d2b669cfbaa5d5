"""From what became of the records to one `Commit`: markers, position and effects together.

| row in delivered order                    | resolved | leaves a marker         |
| ----------------------------------------- | -------- | ----------------------- |
| BELOW, REPEAT                             | yes      | has one                 |
| RUN, done                                 | yes      | yes, with its outcome   |
| RUN, ignored                              | yes      | no                      |
| UNPROTECTED, done or ignored              | yes      | no                      |
| LEAN                                      | with the record it leans on | shares that one's |
| RUN or UNPROTECTED, untouched or failed   | no       | no                      |
| beyond the plan                           | no       | no                      |

Only the contiguous resolved prefix moves the position. A record that is done behind a gap leaves
its marker all the same, so that the replay of the gap skips it; its generation is kept until the
position has passed it. "Contiguous" means in delivered order: compaction and control records leave
holes in the offsets that no record will ever fill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from effectonce.core.generation import advance_log_time, reach, turn
from effectonce.core.plan import Columns, Decision, Plan
from effectonce.model import (
    UNSET,
    Commit,
    Ending,
    Markers,
    OnExisting,
    Outcome,
    Position,
    Rows,
    Write,
)
from effectonce.values import dataclass

FIRST_SERIAL: Final = 2
"""Serials 0 and 1 are a start's own writes, on an untouched row and on one that has run."""

_DONE, _RUN, _REPEAT = int(Ending.DONE), int(Decision.RUN), int(Decision.REPEAT)
_OVER: Final = bytes((Ending.DONE, Ending.IGNORED))

Endings: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Ended:
    """A plan carried out: `endings` has a row a record; only rows in `plan.runs` count."""

    endings: Endings
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    writes: tuple[Write, ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """When: the wall clock at a commit, and what the last record passed says of its own.

    Where none was passed it is the first one's: a partition whose very first commit only marks
    behind a gap has no log time yet, and the wall clock may be a window ahead of it (simulated).
    """

    record_ms: int
    wall_ms: int
    leader_epoch: int = UNSET
    ahead_ms: int = UNSET
    """Of the last record that is marked behind a gap, where there is one."""


SERIAL_BITS: Final = 40
"""Of a serial: 34 years of a thousand commits a second. Above them, three bytes that an ownership
period draws at random."""


def commit_id(epoch: int, serial: int) -> bytes:
    """16 bytes that no other commit of this partition has.

    The epoch does not do alone: a store that went back hands it out again, and where Kafka's
    offsets are gone too, nobody knows better (a frozen owner's commit was then applied over its
    successor's, simulated).
    """
    return epoch.to_bytes(8, "big") + serial.to_bytes(8, "big")


def serial_of(commit_id: bytes) -> int:
    """0 for a start's own write: nothing has run since. A driver begins at FIRST_SERIAL."""
    return int.from_bytes(commit_id[8:], "big") % (1 << SERIAL_BITS)


def resolved_rows(plan: Plan, endings: Endings) -> int:
    """Length of the contiguous resolved prefix."""
    ended = endings.take(plan.runs).tobytes()
    if ended.count(_DONE) == len(ended):
        return plan.size
    still_open = ended.lstrip(_OVER)
    # a copy always stands behind the record it leans on, so the first open run bounds both
    return int(plan.runs[-len(still_open)]) if still_open else plan.size


def marked_rows(plan: Plan, endings: Endings) -> Rows:
    """Rows that leave a marker, in delivered order."""
    leaves = (endings == _DONE) & (plan.decisions == _RUN)
    marked: Rows = leaves[: plan.size].nonzero()[0]
    return marked


def settle(
    position: Position,
    columns: Columns,
    plan: Plan,
    ended: Ended,
    *,
    moment: Moment,
    half_ms: int,
    serial: int,
    on_existing: OnExisting,
    as_of: int | None = None,
) -> Commit | None:
    """The commit that makes true what happened; None where nothing did.

    `as_of` is that of the `Known` that the plan was made from.
    """
    resolved = resolved_rows(plan, ended.endings)
    rows = marked_rows(plan, ended.endings)
    end = int(columns.offsets[resolved - 1]) + 1 if resolved else position.next
    moved = end > position.next
    if not moved and not len(rows) and not ended.writes:
        return None
    new = turn(
        position,
        _log_time(position, moment, moved),
        half_ms,
        end=end,
        repeated_until=UNSET if position.generations else _repeated_until(columns, plan, resolved),
    )
    marked_until = int(columns.offsets[rows[-1]]) + 1 if len(rows) else UNSET
    marked_until = max(new.marked_until, marked_until)
    if moment.ahead_ms != UNSET:
        ahead_ms = advance_log_time(new.log_time_ms, moment.ahead_ms, moment.wall_ms, UNSET)
        new = reach(replace(new, marked_until=marked_until), ahead_ms, half_ms)
    new = replace(
        new,
        marked_until=marked_until,
        next=end if moved else position.next,
        leader_epoch=moment.leader_epoch if moved else new.leader_epoch,
        commit_id=commit_id(position.epoch, serial),
        wall_ms=moment.wall_ms,
        stalled_opens=0 if moved else new.stalled_opens,
        attempt_offset=UNSET if moved else new.attempt_offset,
        attempts=0 if moved else new.attempts,
    )
    return Commit(
        at=columns.at,
        follows=position.commit_id,
        position=new,
        as_of=as_of,
        markers=_markers(columns, rows, ended.outcomes),
        writes=ended.writes,
        on_existing=on_existing,
    )


def _repeated_until(columns: Columns, plan: Plan, resolved: int) -> int:
    repeats = (plan.decisions[:resolved] == _REPEAT).nonzero()[0]
    return int(columns.offsets[repeats[-1]]) + 1 if len(repeats) else UNSET


def _log_time(position: Position, moment: Moment, moved: bool) -> int:
    if not moved and position.log_time_ms != UNSET:
        return position.log_time_ms
    return advance_log_time(
        position.log_time_ms, moment.record_ms, moment.wall_ms, position.wall_ms
    )


def _markers(columns: Columns, rows: Rows, outcomes: Mapping[int, Outcome]) -> Markers | None:
    if not len(rows):
        return None
    if len(rows) == len(columns) and not outcomes:
        return Markers(columns.keys, columns.fingerprints, columns.offsets)
    return Markers(
        keys=columns.keys.take(rows, axis=0),
        fingerprints=columns.fingerprints.take(rows),
        offsets=columns.offsets.take(rows),
        outcomes={i: outcomes[row] for i, row in enumerate(rows.tolist()) if row in outcomes}
        if outcomes
        else {},
    )
