"""What to do with each record of one partition, once the store has said what it knows.

First match wins:

| the record                                            | decision      |
| ----------------------------------------------------- | ------------- |
| lies below the stored position                        | BELOW         |
| has no usable event ID                                | UNIDENTIFIED, or UNPROTECTED if asked |
| its key has a marker, same fingerprint                | REPEAT        |
| its key has a marker, another fingerprint             | CONFLICT      |
| its key runs earlier in this batch, same payload      | LEAN on that one |
| its key runs earlier in this batch, another payload   | WAIT          |
| its key stands in front of this batch                 | the same two  |
| its key is pending elsewhere                          | WAIT          |
| else                                                  | RUN           |

A pending key is neither new nor seen: its copy shares the fate of the one that runs. With another
payload it is no conflict yet either: that one may fail or be ignored, and the next look-up knows.
BELOW stands first: whatever became of its marker, the position has passed it. Nothing here marks
anything.

A record that cannot be decided in its favour (UNIDENTIFIED, CONFLICT, WAIT) ends the plan: the
records behind it are left for later, since the position could not pass them anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field
from enum import Enum, IntEnum
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from effectonce.model import Fingerprints, Keys, Known, Offsets, Partition, Rows
from effectonce.native import native
from effectonce.values import dataclass

Decisions: TypeAlias = NDArray[np.uint8]
InFront: TypeAlias = Mapping[bytes, tuple[int, int]]
"""Keys that were planned before and are not passed yet: the caller's row, and the fingerprint."""


class Decision(IntEnum):
    """What to do with one record; the order tells what the position can pass."""

    RUN = 0
    UNPROTECTED = 1
    """Runs on every delivery and leaves no marker."""
    BELOW = 2
    REPEAT = 3
    LEAN = 4
    WAIT = 5
    CONFLICT = 6
    UNIDENTIFIED = 7


# as plain numbers: numpy looks an enum over for 6 us before it takes its value
_REPEAT, _LEAN, _WAIT = int(Decision.REPEAT), int(Decision.LEAN), int(Decision.WAIT)
_RUN, _UNPROTECTED, _BELOW = int(Decision.RUN), int(Decision.UNPROTECTED), int(Decision.BELOW)
_CONFLICT, _UNIDENTIFIED = int(Decision.CONFLICT), int(Decision.UNIDENTIFIED)
_REPEAT_IF: Final = np.array((_CONFLICT, _REPEAT), np.uint8)
"""By whether the fingerprint is the same."""


_MOST_NATIVE: Final = 2**16
"""Keys that `native.may_repeat` takes: it counts them in 16 bits."""


class Unidentified(Enum):
    """What becomes of a record without a usable event ID."""

    BLOCKS = "blocks"
    RUNS_UNPROTECTED = "runs-unprotected"


@dataclass(frozen=True, slots=True)
class Pending:
    """A key whose record has been planned and not yet committed."""

    at: Partition
    fingerprint: int


@dataclass(frozen=True, slots=True)
class Columns:
    """One partition's records in delivered order, as far as decisions need them.

    Their offsets rise; whoever makes batches sees to it (width.py).
    """

    at: Partition
    offsets: Offsets
    keys: Keys
    fingerprints: Fingerprints
    unidentified: Collection[int] = ()
    """Rows without a usable event ID; their key and fingerprint are noise."""

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions for the first `size` records; the ones behind are for a later plan.

    `blocked_by` is the decision of the record at row `size`, where one ended the plan early.
    """

    size: int
    decisions: Decisions
    runs: Rows
    """Rows to hand to the handler, in delivered order."""
    leans: Mapping[int, int] = field(default_factory=dict)
    """Row of a copy -> row of the record whose fate it shares; always an earlier one."""
    leans_in_front: Mapping[int, int] = field(default_factory=dict)
    """The same, where that record was planned before: the caller's number of it."""
    blocked_by: Decision | None = None

    def count(self, decision: Decision) -> int:
        return int(np.count_nonzero(self.decisions[: self.size] == decision))


def plan(
    columns: Columns,
    known: Known,
    position_next: int,
    pending: Mapping[bytes, Pending] | None = None,
    unidentified: Unidentified = Unidentified.BLOCKS,
    in_front: InFront | None = None,
) -> Plan:
    """Decide for every record. `known` answers `columns.keys`, row for row."""
    is_below = len(columns) > 0 and columns.offsets[0] < position_next
    leans_inside = bool(pending) or may_repeat_inside(columns.keys)
    if not (is_below or columns.unidentified or leans_inside or in_front):
        plain = _plan_plain(columns, known)
        if plain is not None:
            return plain
    decisions = np.zeros(len(columns), np.uint8)
    seen = known.seen.nonzero()[0]
    if len(seen):
        same = known.fingerprints.take(seen) == columns.fingerprints.take(seen)
        decisions[seen] = _REPEAT_IF.take(same)
    if columns.unidentified:
        decisions[list(columns.unidentified)] = (
            _UNIDENTIFIED if unidentified is Unidentified.BLOCKS else _UNPROTECTED
        )
    if is_below:
        decisions[columns.offsets < position_next] = _BELOW
    leans: dict[int, int] = {}
    leans_in_front: dict[int, int] = {}
    if in_front:
        leans_in_front = _lean_in_front(columns, decisions, in_front)
    if leans_inside:
        leans = _lean(columns, decisions, pending or {})
    return _cut(decisions, leans, leans_in_front)


def _plan_plain(columns: Columns, known: Known) -> Plan | None:
    """Where all are new, or repeats of the same payload, as nearly always; else None."""
    if native is None:
        return None
    was, now = map(np.ascontiguousarray, (known.fingerprints, columns.fingerprints))
    try:
        found = native.repeats(np.ascontiguousarray(known.seen), was, now, _REPEAT)
    except ValueError:  # columns of other types or lengths: a store of somebody else's
        return None
    if found is None:
        return None
    decisions, runs = found
    return Plan(len(columns), np.frombuffer(decisions, np.uint8), np.frombuffer(runs, np.int64))


def may_repeat_inside(keys: Keys) -> bool:
    """False only where all keys are provably distinct."""
    if native is None or len(keys) >= _MOST_NATIVE:
        return may_repeat_sorted(keys)
    return native.may_repeat(np.ascontiguousarray(keys))


def may_repeat_sorted(keys: Keys) -> bool:
    """The same, without C.

    Sorting half a mixed word a key costs 9 ns a record (900 a batch), a whole one 15, an exact set
    90. Of 1000 distinct keys two agree in it once in 9000 batches.
    """
    words = keys[:, 0] ^ (keys[:, 1] * np.uint64(0x9E3779B97F4A7C15))
    mixed = (words >> np.uint64(32)).astype(np.uint32)
    mixed.sort()
    return bool((mixed[1:] == mixed[:-1]).any())


def _lean(
    columns: Columns, decisions: Decisions, pending: Mapping[bytes, Pending]
) -> dict[int, int]:
    """Settle the records whose key is pending, in this batch or elsewhere; exact, row by row."""
    raw = columns.keys.tobytes()
    fingerprints = columns.fingerprints.tolist()
    first: dict[bytes, int] = {}
    leans: dict[int, int] = {}
    for row in np.flatnonzero(decisions == _RUN).tolist():
        key = raw[16 * row : 16 * row + 16]
        leader = first.get(key)
        if leader is not None and fingerprints[leader] == fingerprints[row]:
            decisions[row] = _LEAN
            leans[row] = leader
        elif leader is not None or key in pending:
            decisions[row] = _WAIT
        else:
            first[key] = row
    return leans


def _lean_in_front(columns: Columns, decisions: Decisions, in_front: InFront) -> dict[int, int]:
    """Settle the records whose key stands in front of these columns; exact, row by row."""
    raw = columns.keys.tobytes()
    leans: dict[int, int] = {}
    for row in np.flatnonzero(decisions == _RUN).tolist():
        leader = in_front.get(raw[16 * row : 16 * row + 16])
        if leader is None:
            continue
        if leader[1] == columns.fingerprints[row]:
            decisions[row] = _LEAN
            leans[row] = leader[0]
        else:
            decisions[row] = _WAIT
    return leans


def _cut(decisions: Decisions, leans: dict[int, int], leans_in_front: dict[int, int]) -> Plan:
    """End the plan at the first record that the position cannot pass."""
    size, blocked_by = len(decisions), None
    if not decisions.any():
        return Plan(size, decisions, np.arange(size))
    blocked = (decisions >= _WAIT).nonzero()[0]
    if len(blocked):
        size = int(blocked[0])
        blocked_by = Decision(int(decisions[size]))
        leans = {row: leader for row, leader in leans.items() if row < size}
        leans_in_front = {row: leader for row, leader in leans_in_front.items() if row < size}
    runs = (decisions[:size] <= _UNPROTECTED).nonzero()[0]
    return Plan(size, decisions, runs, leans, leans_in_front, blocked_by)
