"""The words of the library as frozen values: no behaviour beyond what a value knows of itself.

Hot data travels as columns, one numpy array a field and one row a record. A key is 16 bytes held
as two u64, so `keys` has the shape (n, 2); `keys.tobytes()` gives the n keys one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from effectonce import values

Keys: TypeAlias = NDArray[np.uint64]
Fingerprints: TypeAlias = NDArray[np.uint32]
Offsets: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Rows: TypeAlias = NDArray[np.intp]
"""Numbers of rows in the columns of a batch."""

UNSET: Final = -1
"""An offset that is not there: no position yet, no attempt, no pinned start."""

NO_ID: Final = bytes(16)
"""A topic id that the broker does not have (the mock broker), a commit id not yet written."""


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """Whose position: one partition of one topic, as one group reads it, for one scope."""

    scope: str
    group: str
    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


@dataclass(frozen=True, slots=True)
class GenerationStart:
    """Where a generation of markers begins."""

    generation: int
    offset: int
    """Where the position stood: it passed whatever is above in this generation, or later."""
    until: int
    """Below this offset lie the markers of all older ones: the horizon once they are dropped."""
    log_time_ms: int
    entered: int = UNSET
    """Where the position stood once it was in it: below, another's marker may be of an older one.
    """


@values.dataclass(frozen=True, slots=True)
class Position:
    """The row behind one partition: stored with its markers, and the truth.

    Kafka's committed offset follows it and is its witness.
    """

    store_id: bytes
    topic_id: bytes
    epoch: int
    next: int = UNSET
    """The offset that the next record must at least have; UNSET before the first start."""
    leader_epoch: int = UNSET
    commit_id: bytes = NO_ID
    """Epoch and serial of the commit that wrote this row; serial 0 is a start's own write."""
    run: int = 0
    """Reprocessing run: markers of earlier runs say nothing."""
    horizon: int = 0
    """Below this offset markers may be gone, so a reset to there may repeat effects."""
    log_time_ms: int = UNSET
    """Highest record timestamp passed: the clock that the window runs on."""
    floor: int = 0
    """Lowest generation kept."""
    marked_until: int = UNSET
    """All markers lie below this offset. Some are ahead of `next` where it is higher."""
    stalled_opens: int = 0
    """Starts since the position last advanced."""
    attempt_offset: int = UNSET
    attempts: int = 0
    """Durable attempts at the record at `attempt_offset`, once it has stalled three opens."""
    pinned_start: int = UNSET
    """What a start of an untouched row answered: Kafka's foreign offset, or the beginning."""
    identify_fingerprint: bytes = bytes(8)
    window_seconds: int = 0
    wall_ms: int = 0
    in_flight: bool = False
    """A record above `next` may have been started since this row was written."""
    generations: tuple[GenerationStart, ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """A new ownership period. `row` is the position as the former owner left it."""

    row: Position | None
    epoch: int


class Status(IntEnum):
    """How a record's effect ended, as a marker keeps it."""

    DONE = 0
    HAS_OUTCOME = 1
    UNSTORABLE = 2


class Ending(IntEnum):
    """What became of a record that was to run."""

    UNTOUCHED = 0
    DONE = 1
    IGNORED = 2
    FAILED = 3


class OutcomeKind(IntEnum):
    """Whether what a handler returned could be kept."""

    VALUE = 0
    """`data` is the msgpack of what the handler returned."""
    UNSTORABLE = 1
    """Too large, or not to be serialised: `data` is msgpack of (reason, size, digest)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the handler returned, encoded; kept, and answered again to a repeat."""

    kind: OutcomeKind
    data: bytes


@values.dataclass(frozen=True, slots=True)
class Markers:
    """New markers of one commit, as columns. `outcomes` maps a row number to its outcome."""

    keys: Keys
    fingerprints: Fingerprints
    offsets: Offsets
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Marker:
    """One marker, read back: everything that is known of one event ID that took effect."""

    key: bytes
    fingerprint: int
    status: Status
    offset: int
    generation: int
    run: int
    epoch: int
    log_time_ms: int
    wall_ms: int
    outcome: Outcome | None = None


@values.dataclass(frozen=True, slots=True)
class Query:
    """A look-up: which of these keys has a marker of this run?"""

    at: Partition
    keys: Keys
    run: int


@values.dataclass(frozen=True, slots=True)
class Known:
    """The answer to a `Query`, row for row. Where `seen` is false the fingerprint is noise."""

    seen: Mask
    fingerprints: Fingerprints
    as_of: int | None = None
    """A store's own name for what was marked by now, for `Commit.as_of`. It tells nothing else."""


class OnExisting(Enum):
    """What a commit does with a key that already has a marker."""

    REFUSE = "refuse"
    """In-store effects: roll back and plan again, or the effect would happen twice."""
    KEEP_FIRST = "keep-first"
    """Outside effects: they happened, and that is a fact; the first marker stays."""


Write: TypeAlias = tuple[bytes, bytes | None]
"""A user's row: key and value; None deletes."""


@values.dataclass(frozen=True, slots=True)
class Commit:
    """Markers, position and in-store effects of one partition: all or nothing.

    Applied only while the row still has `position.epoch` and the commit id that this one `follows`.
    (Its `next` would not do: a store that lost its last moments may have lost markers ahead of the
    position, and stand at the same offset without them. Simulated: effects lost in silence.)
    Sending the identical commit again is safe: `position.commit_id` gives it away.
    """

    at: Partition
    follows: bytes
    position: Position
    markers: Markers | None = None
    writes: tuple[Write, ...] = ()
    on_existing: OnExisting = OnExisting.KEEP_FIRST
    as_of: int | None = None
    """All of `markers` were absent when a look-up answered with this: where nothing was marked
    since, a store need not look again."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Now durable. `existing` counts keys that had a marker already (KEEP_FIRST)."""

    existing: int = 0


@dataclass(frozen=True, slots=True)
class Already:
    """This very commit is in the row: a re-send of one whose answer was lost."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The row moved on, or back, without us: drop the work, and open again if still assigned.

    With KEEP_FIRST a store that all reach keeps the markers all the same: the effects happened.
    """


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows of `markers` whose key has a marker already; nothing was written."""

    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer: applied or not. Send the identical commit again."""

    error: Exception


CommitResult: TypeAlias = Applied | Already | Stale | Conflict | Unknown


@dataclass(frozen=True, slots=True)
class Committed:
    """Kafka's committed offset of one partition: the witness of the position."""

    offset: int
    metadata: str = ""
    leader_epoch: int = UNSET


@dataclass(frozen=True, slots=True)
class LogEnds:
    """The first offset that the log still has, and the one its next record will get."""

    start: int
    end: int
