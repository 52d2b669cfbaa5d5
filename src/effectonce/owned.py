"""One partition while it is ours: what the driver knows of it beyond the stored position.

    OPENING  -> RUNNING     the store is open, the start table has said where, Kafka was told
    RUNNING  -> OPENING     a commit was stale, the topic was recreated, the position is gone
    any      -> STOPPED     a record, a refusal or a corrupt row holds it; paused, still assigned
    any      -> forgotten   revoked or lost

Records wait in `held` while something must come first: a backoff, a commit without an answer.
Behind them, in `partial`, those of a batch wait that is not whole yet (width.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from effectonce.core.plan import Columns, Decisions, Plan
from effectonce.core.rival import NOT_KNOWN, RIVALS
from effectonce.core.settle import FIRST_SERIAL, SERIAL_BITS, resolved_rows
from effectonce.core.stretch import Settlement
from effectonce.event import Work
from effectonce.identity import Identified
from effectonce.in_lanes import InLanes
from effectonce.model import UNSET, Commit, CommitResult, Known, Opened, Partition, Position
from effectonce.ports import Records, TopicPartition, Transaction

__all__ = [
    "AsyncPool",
    "Flight",
    "Health",
    "Owned",
    "Partial",
    "PartitionHealth",
    "Pool",
    "Stage",
    "Task",
    "Unsent",
]


def _serial_base() -> int:
    """What the serials of an ownership period begin at: nobody else's are the same."""
    return int.from_bytes(os.urandom(3)) << SERIAL_BITS


class Stage(Enum):
    """Where a partition stands in the diagram above."""

    OPENING = "opening"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(slots=True, eq=False)
class Task:
    """One partition's records, decided and about to run."""

    owned: Owned
    records: Records
    identified: Identified
    columns: Columns
    plan: Plan
    work: Work
    known: Known
    transaction: Transaction | None
    handler_seconds: float = 0.0
    halted: bool = False
    """It ends after the event in the handler: the partition goes, or the consumer stops."""
    failed_together: bool = False
    """A batch handler failed, and which of its events is to blame is not known yet."""
    said: bool = False
    """That it is waited for."""
    thread: None = None

    @property
    def offset(self) -> int:
        """Of the event in the handler; of a batch, the first that has not ended."""
        open_from = min(resolved_rows(self.plan, self.work.endings), self.plan.size - 1)
        return int(self.columns.offsets[open_from])

    def kill(self) -> None:
        """Whatever its handler does from now on, it cannot be committed."""
        self.halted = True
        if self.transaction is not None:
            self.transaction.kill()


@dataclass(frozen=True, slots=True, eq=False)
class Unsent:
    """A commit without an answer, to be sent again as it is."""

    commit: Commit
    passed: Decisions
    """What was decided of the records that it passes."""
    handler_seconds: float
    sent_at: float
    task: Task | None
    """None where nothing stands behind those records: they are not kept. A batch that lived while
    the next one was fetched made Python's collector run in full: 1,250 ns a message."""
    receipt: Callable[[], Awaitable[CommitResult]] | None = None
    """It is on its way for the first time, and this brings the answer."""
    settlement: Settlement | None = None
    """What it settles of the partition's lanes."""


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Records that wait for more of their partition."""

    records: Records
    since: float


@dataclass(slots=True, eq=False)
class Owned:
    """One of our partitions."""

    at: Partition
    assigned_at: float
    stage: Stage = Stage.OPENING
    error: Exception | None = None
    """Why it stopped, or what it waits for."""
    opened: Opened | None = None
    position: Position | None = None
    serial_base: int = field(default_factory=_serial_base)
    serial: int = FIRST_SERIAL
    counted: bool = False
    """The first start of this ownership period is in the row (core/stall.py)."""
    log_end: int = UNSET
    """The log's end when the partition began: where a job ends."""
    end_asked: float = 0.0
    """When the client was last asked how far it has come."""
    known_end: int = UNSET
    """The log's end as the client last heard of it, for the lag."""
    maybe_repeated_below: int = UNSET
    held: deque[Records] = field(default_factory=deque)
    partial: Partial | None = None
    unsent: Unsent | None = None
    due: float = 0.0
    """Monotonic time before which nothing is tried."""
    failures: int = 0
    """Failures of the store in a row."""
    outage_since: float = 0.0
    attempt_offset: int = UNSET
    attempts: int = 0
    alone_below: int = UNSET
    """Former owners died: below this offset records run one at a time, each attempt counted."""
    singly_below: int = UNSET
    """A batch handler failed: below this offset events are handed over one by one."""
    untouched: int = UNSET
    """Where a batch began of which a loop of the user's entered no event."""
    told: int = UNSET
    """What Kafka was last told."""
    epoch: int = NOT_KNOWN
    """The last one that we were given (core/rival.py)."""
    outbid: int = 0
    """How often in a row Kafka had seen an epoch as high as ours."""
    counted_at: int = UNSET
    """Where the position stood when a first start was last noted, answered or not."""
    ran: bool = False
    """Something was started here before the partition began anew."""
    refused: Position | None = None
    """Of the last commit that was stale and yet left its markers."""
    rivals: deque[float] = field(default_factory=lambda: deque(maxlen=RIVALS))
    """When we found that someone else had opened it since."""
    settled_at: float = 0.0
    """When the store last said that it stands where we do."""
    paused: bool = True
    leaving: bool = False
    released: bool = False
    anew: bool = False
    """To begin anew, as soon as nothing of it is in a handler or without an answer."""
    dropped: bool = False
    """The same, for a commit that was stale: nothing starts, what has ended is told as a fact."""
    lanes: InLanes | None = None
    """What it has in memory where handlers run side by side."""

    @property
    def key(self) -> TopicPartition:
        return (self.at.topic, self.at.number)

    @property
    def unanswered(self) -> bool:
        """It is to be sent again before anything else."""
        return self.unsent is not None and self.unsent.receipt is None

    @property
    def row(self) -> Position:
        """The position of a partition that has begun."""
        assert self.position is not None, f"{self.at} has not begun"
        return self.position

    @property
    def is_unsettled(self) -> bool:
        """Something of it is in a lane's handler, or ended there and is not settled yet."""
        return self.lanes is not None and self.lanes.is_unsettled

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial_base + self.serial - 1

    def refuse(self, position: Position) -> None:
        """A commit was stale and has left its markers; so has another before it, perhaps."""
        before = self.refused.marked_until if self.refused is not None else UNSET
        self.refused = replace(position, marked_until=max(position.marked_until, before))

    def reopen(self) -> None:
        """Begin anew: the next owner of this partition is, once more, this one."""
        self.stage = Stage.OPENING
        self.ran = self.ran or self.counted
        self.serial_base = _serial_base()
        self.opened = self.position = self.unsent = self.lanes = self.partial = None
        self.held.clear()
        self.serial, self.counted, self.due = FIRST_SERIAL, False, 0.0
        self.anew = self.dropped = False


@dataclass(slots=True, eq=False)
class Flight:
    """One record of a lane, in the handler. How it ended stands in `work`."""

    owned: Owned
    lanes: InLanes
    """Those that it was started from: the partition may have others by now."""
    work: Work
    index: int
    row: int
    attempt: int
    began: float
    seconds: float = 0.0
    thread: int | None = None
    """Where a thread runs it, its ident."""
    escaping: BaseException | None = None
    """What must be let through, once all is settled."""

    @property
    def offset(self) -> int:
        return int(self.work.records.offsets()[self.index])

    def kill(self) -> None:
        """It has no transaction, and what it says later is a fact."""

    @property
    def is_late(self) -> bool:
        """The partition was given up, or has begun anew, meanwhile."""
        return self.owned.released or self.owned.lanes is not self.lanes


class Pool(Protocol):
    """Whoever runs the handlers of lanes. Flights come back as they end."""

    def start(self, flight: Flight) -> None: ...
    def ended(self, seconds: float) -> Sequence[Flight]:
        """All that have ended since; waits for the first at most so long."""
        ...

    def stop(self) -> None:
        """Nothing is started any more; a handler that hangs is not waited for."""
        ...


class AsyncPool(Protocol):
    """As `Pool`, for coroutines."""

    def start(self, flight: Flight) -> None: ...
    async def ended(self, seconds: float) -> Sequence[Flight]: ...


@dataclass(frozen=True, slots=True)
class PartitionHealth:
    """`error`: why it stopped, or what it is waiting for; None where all is well."""

    at: Partition
    stage: str
    next: int
    error: str | None
    held: int = 0
    """Records of its lanes in memory: from `next`, the oldest that is not over, on."""


@dataclass(frozen=True, slots=True)
class Health:
    """`ok` is false as soon as one partition has stopped or waits for the store."""

    ok: bool
    partitions: tuple[PartitionHealth, ...]


def health_of(owned: Owned) -> PartitionHealth:
    position, in_lanes = owned.position, owned.lanes
    return PartitionHealth(
        at=owned.at,
        stage=owned.stage.value,
        next=position.next if position else UNSET,
        error=str(owned.error) if owned.error else None,
        held=len(in_lanes.lanes) if in_lanes else 0,
    )
