"""What one simulated member sees of Kafka and of the store, in plain Python: no threads, no waits.

    Cluster        what outlives every process: the log, the store's contents, Kafka's offsets
    SampleClient   `ports.Client`: the only partition is given to whoever asks last
    MemberStore    `ports.Store`: an in-memory one with the traits of the user's
    NoKeeper       `ports.Keeper`: no handler is slow here

Each call is a step (steps.py). Whatever it meets in the store is decided by stores/memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from effectonce.errors import BrokerError, NotOpen, StoreError, StoreLocked, StoreUnavailable
from effectonce.model import (
    Applied,
    Commit,
    CommitResult,
    Committed,
    Known,
    LogEnds,
    Marker,
    Opened,
    Partition,
    Query,
    Unknown,
)
from effectonce.ports import (
    Charge,
    CommitMode,
    KafkaOffset,
    Listener,
    Reach,
    Records,
    TopicPartition,
    Traits,
)
from effectonce.stores.memory import MemoryStore
from effectonce.stores.overlay import KeyValueTransaction
from effectonce.testing.exercises.samples import Sample, SampleLog
from effectonce.testing.exercises.steps import CRASHES, ERRORS, FREEZES, Ending

POLL_RECORDS: Final = 2
"""So that three samples show both: events that commit together, and events that do not."""
POLL_SECONDS: Final = 1.0
"""So long that Kafka is told after each poll's records, and not at the end alone."""
TOPIC_ID: Final = b"exercised-topic!"

READ: Final = (Ending.KILLED_BEFORE, Ending.FAILED)
LOOK: Final = (Ending.KILLED_BEFORE, Ending.FAILED, *FREEZES)
WRITE: Final = (*CRASHES, *ERRORS, *FREEZES)
POLL: Final = (Ending.KILLED_BEFORE, Ending.FROZEN_BEFORE)
OWNED_POLL: Final = (*POLL, Ending.REVOKED)
STOP: Final = (Ending.KILLED_BEFORE,)


@dataclass(slots=True)
class Cluster:
    """What outlives every process."""

    topic: str
    samples: Sequence[Sample]
    store: MemoryStore = field(default_factory=MemoryStore)
    committed: Committed | None = None
    lock: object = None
    """The member that holds the partition's LOCK, where the store is embedded."""
    next: int = 0

    def names(self, start: int, stop: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(sample.id for sample in self.samples[max(start, 0) : stop]))


class Process(Protocol):
    """What the ports need of the process that they belong to."""

    def enter(
        self, what: str, endings: Sequence[Ending], about: tuple[str, ...] = ()
    ) -> Ending | None: ...
    def leave(self, ending: Ending | None) -> None: ...
    def take_over(self) -> None: ...
    def idle(self, seconds: float) -> None: ...


class SampleClient:
    """`ports.Client` of one member."""

    holds_cheaply = True

    def __init__(self, process: Process, cluster: Cluster) -> None:
        self._process, self._cluster = process, cluster
        self._home: TopicPartition = (cluster.topic, 0)
        self._listener: Listener | None = None
        self._assigned = False
        self._paused = True
        self._next = 0
        self.expelled = False
        """Another member took over while this one was frozen; it has not heard of it yet."""

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        del topics
        self._listener = listener

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        listener = self._listener
        assert listener is not None
        owns = self._assigned and not self.expelled
        ending = self._process.enter("kafka.fetch", OWNED_POLL if owns else POLL)
        if self.expelled:
            self.expelled = False
            if self._assigned:
                self._assigned = False
                listener.on_lost([self._home])
        elif ending is Ending.REVOKED:
            listener.on_revoked([self._home])
            self._assigned = False
            self._process.take_over()
        elif not self._assigned:
            self._assigned, self._paused, self._next = True, True, 0
            listener.on_assigned([self._home])
        elif not self._paused and self._next < len(self._cluster.samples):
            return [self._read(min(limit, POLL_RECORDS))]
        self._process.idle(timeout_seconds)
        return ()

    def _read(self, limit: int) -> Records:
        found = SampleLog(
            self._cluster.topic, self._cluster.samples[self._next : self._next + limit], self._next
        )
        self._next += len(found)
        self._process.idle(POLL_SECONDS)
        return found

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused = self._paused or self._home in partitions

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused = self._paused and self._home not in partitions

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._ask("kafka.seek")
        if not self._assigned or self.expelled:
            raise BrokerError(f"seek: {partition} is not assigned")
        self._next = offset

    def position(self, partition: TopicPartition) -> int:
        del partition
        return self._next

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        if not offsets:
            return
        (offset,) = offsets
        names = self._cluster.names(0, offset.offset)
        ending = self._process.enter("kafka.commit", WRITE, names)
        if self.expelled and mode is CommitMode.ASYNC:
            return  # refused, and the answer comes after the partition is lost
        if ending is Ending.FAILED or self.expelled:
            raise BrokerError("no commit: simulated")
        self._cluster.committed = Committed(offset.offset, offset.metadata)
        self._process.leave(ending)
        if ending is Ending.UNANSWERED:
            raise BrokerError("committed, not answered: simulated")

    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        self._ask("kafka.committed")
        return dict.fromkeys(partitions, self._cluster.committed)

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        del partition
        self._ask("kafka.log_ends")
        return LogEnds(0, len(self._cluster.samples))

    def known_end(self, partition: TopicPartition) -> int:
        del partition
        return len(self._cluster.samples)

    def partitions_of(self, topic: str) -> Sequence[int]:
        del topic
        return [0]

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        self._ask("kafka.topic_ids")
        return dict.fromkeys(topics, TOPIC_ID)

    def close(self) -> None:
        self._process.enter("kafka.close", STOP)

    def _ask(self, what: str) -> None:
        if self._process.enter(what, READ) is Ending.FAILED:
            raise BrokerError(f"{what}: no answer: simulated")


class MemberStore:
    """`ports.Store` of one member, over the contents that all of them share."""

    def __init__(self, process: Process, cluster: Cluster, traits: Traits) -> None:
        self._process, self._cluster = process, cluster
        self._store = cluster.store
        self._locks = traits.reach is Reach.EMBEDDED
        self.traits = traits

    def prepare(self) -> bytes:
        return self._store.prepare()

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        ending = self._process.enter("store.open", WRITE)
        if ending is Ending.FAILED:
            raise StoreUnavailable("not opened: simulated")
        if self._locks and self._cluster.lock not in (None, self):
            raise StoreLocked("another member holds it")
        self._cluster.lock = self
        opened = self._store.open(at, topic_id, above=above)
        self._process.leave(ending)
        if ending is Ending.UNANSWERED:
            raise StoreUnavailable("opened, not answered: simulated")
        return opened

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        return self._store.has_positions(scope, group, topic)

    def newest_ms(self, scope: str) -> int:
        return self._store.newest_ms(scope)

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        ending = self._process.enter("store.lookup", LOOK)
        if ending is Ending.FAILED:
            return [StoreUnavailable("no answer: simulated") for _ in queries]
        known = self._store.lookup(queries)
        self._process.leave(ending)
        return known

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return [self._commit(commit) for commit in commits]

    def _commit(self, commit: Commit) -> CommitResult:
        markers = commit.markers
        names = (
            tuple(self._cluster.samples[offset].id for offset in markers.offsets.tolist())
            if markers is not None
            else ()
        )
        what = "store.commit" if names else "store.note"
        ending = self._process.enter(what, WRITE, names)
        if ending is Ending.FAILED:
            return Unknown(StoreUnavailable("no answer, not applied: simulated"))
        if self._locks and self._cluster.lock is not self:
            return Unknown(NotOpen("released"))
        (result,) = self._store.commit([commit])
        if isinstance(result, Applied):
            self._cluster.next = commit.position.next
        self._process.leave(ending)
        if ending is Ending.UNANSWERED:
            return Unknown(StoreUnavailable("no answer, applied: simulated"))
        return result

    def find(self, at: Partition, key: bytes) -> Marker | None:
        return self._store.find(at, key)

    def transaction(self, at: Partition) -> KeyValueTransaction:
        return self._store.transaction(at)

    def release(self, at: Partition) -> None:
        del at
        self._process.enter("store.release", STOP)
        self.unlock()

    def unlock(self) -> None:
        """As the operating system does when the process is gone."""
        if self._cluster.lock is self:
            self._cluster.lock = None

    def close(self) -> None:
        """Nothing of its own to close."""


class NoKeeper:
    """`ports.Keeper`: time stands still while a handler runs, so none is slow."""

    progress = 0.0

    def start(self, charge: Charge, *, after_seconds: float, deadline_seconds: float) -> None: ...
    def entered(self) -> None: ...
    def left(self) -> None: ...
    def await_left(self, seconds: float) -> None: ...
    def stop(self) -> None: ...
