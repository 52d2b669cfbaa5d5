"""The edges of the library as Protocols: everything with I/O, a clock or a thread behind it.

The core decides, the drivers carry out, and what they carry it out on is one of these. A
simulator that replaces them drives the real driver.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self, TypeAlias, runtime_checkable

from effectonce.errors import StoreError
from effectonce.model import (
    Commit,
    CommitResult,
    Committed,
    Known,
    LogEnds,
    Marker,
    Offsets,
    Opened,
    Partition,
    Query,
    Write,
)

Headers: TypeAlias = Sequence[tuple[str, bytes | None]] | None
TopicPartition: TypeAlias = tuple[str, int]


class Records(Protocol):
    """One partition's records in delivered order, column by column, as the client gave them.

    A column is read when it is first asked for. `part(i, j)` is rows i to j, as records again, and
    `then(behind)` these and those that came behind them.
    """

    topic: str
    partition: int

    def __len__(self) -> int: ...
    def offsets(self) -> Offsets: ...
    def values(self) -> Sequence[bytes | None]: ...
    def keys(self) -> Sequence[bytes | None]: ...
    def headers(self) -> Sequence[Headers]: ...
    def only_header(self, name: str) -> list[bytes | None] | None:
        """Its value of each record; None unless each has this header and no other.

        Keeps no list of headers: a batch of them, alive, has the collector run all the time.
        """
        ...

    def timestamp_ms(self, row: int) -> int:
        """The record's timestamp, or UNSET where it has none."""
        ...

    def leader_epoch(self, row: int) -> int: ...
    def part(self, start: int, stop: int | None = None) -> Records: ...
    def then(self, behind: Self) -> Records: ...


# -- store ---------------------------------------------------------------------------------------


class Reach(Enum):
    """Who else sees this store."""

    EMBEDDED = "embedded"
    """Processes of this host, one at a time a partition; an event ID must keep its partition."""
    KEYED = "keyed"
    """Every member of the group; an event ID must keep its partition."""
    SHARED = "shared"
    """Every member of the group; one ID in two partitions is caught."""


class Durability(Enum):
    """What a commit survives once it was answered."""

    NONE = "none"
    PROCESS = "process"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Traits:
    """What a store can promise; `Once` checks the policy against it."""

    name: str
    reach: Reach
    durability: Durability
    in_store_effects: bool


@runtime_checkable
class KeyValueTx(Protocol):
    """The `tx` of a key-value store: the partition's own rows, as this event sees them.

    Keys and values are bytes. Valid while its event lasts; then it raises TransactionClosed.
    """

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key begins with `prefix`, in key order."""
        ...


@runtime_checkable
class AsyncKeyValueTx(Protocol):
    """As `KeyValueTx`, for coroutines: what reads is awaited; what writes is only collected.

    balance = await tx.get(key)
    tx.put(key, b"...")
    async for key, value in tx.scan(b"account:"): ...
    """

    async def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def scan(self, prefix: bytes = b"") -> AsyncIterator[tuple[bytes, bytes]]:
        """Rows whose key begins with `prefix`, in key order."""
        ...


class Transaction(Protocol):
    """The effects of one batch in one partition, event by event, until they are committed.

    What `begin` returns is the `tx` that a handler is given. Nothing reaches the store before
    the `Commit` that carries `writes()`.
    """

    def begin(self) -> object: ...
    def keep(self, tx: object) -> None:
        """The event ended well: its writes join the batch's. The `tx` is dead from now on."""
        ...

    def discard(self, tx: object) -> None:
        """The event failed: its writes are forgotten. The `tx` is dead from now on."""
        ...

    def writes(self) -> tuple[Write, ...]: ...
    def kill(self) -> None:
        """From any thread: every `tx` of this batch raises TransactionClosed from now on."""
        ...


class Store(Protocol):
    """Where positions, markers and in-store effects live.

    Looking up never marks. Every method may raise StoreUnavailable (try again later) or
    StoreCorrupt, except `lookup` and `commit`, which answer for each partition by itself, so that
    one partition's trouble never touches another's.
    """

    @property
    def traits(self) -> Traits: ...

    def prepare(self) -> bytes:
        """Create what is missing; the store's random id (16 bytes), the same for ever after."""
        ...

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        """Begin an ownership period: bump the epoch, durably, and return the row as it was.

        The new epoch is higher than the row's, and than `above`: a store that lost its last
        moments would hand one out twice that Kafka has seen.

        A partition never seen gets a row with `next` UNSET; `Opened.row` is then None. Fences
        every earlier owner. Raises StoreLocked while another process holds an embedded one.
        """
        ...

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        """Whether any partition of the topic has a pinned position (row 5)."""
        ...

    def newest_ms(self, scope: str) -> int:
        """The newest log time of the partitions that share the scope's markers, or UNSET.

        Asked only where `traits.reach` is SHARED.
        """
        ...

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]: ...

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]: ...

    def find(self, at: Partition, key: bytes) -> Marker | None:
        """Everything known of one key: for people, not for the hot path."""
        ...

    def transaction(self, at: Partition) -> Transaction:
        """A transaction over the user's own rows; only where `traits.in_store_effects`."""
        ...

    def release(self, at: Partition) -> None:
        """Give a partition up, so that another process may open it. Safe to call twice."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class SendsAhead(Protocol):
    """A store that need not be waited for: its answer is on its way while records are fetched."""

    def send(self, commit: Commit) -> Callable[[], CommitResult]:
        """Send `commit`, and return what waits for its answer.

        A `lookup` after it sees what it has done, or says NotOpen. At most one a consumer is on its
        way; what is returned is called once, before any other call of that consumer's but that one.
        """
        ...

    def ask(self, query: Query) -> Callable[[], Known | StoreError] | None:
        """Send a look-up, and return what waits for its answer; None: here that saves nothing.

        It sees what has been sent by the time that its answer is taken, before it or behind; of
        others, what there was when it was sent. What is returned is called at most once, before
        any other call of that consumer's but `send`, its ends, and `ask` for what comes next.
        """
        ...


@runtime_checkable
class AsyncSendsAhead(Protocol):
    """As `SendsAhead`: to send is not to wait, what it returns is awaited."""

    def send(self, commit: Commit) -> Callable[[], Awaitable[CommitResult]]: ...
    def ask(self, query: Query) -> Callable[[], Awaitable[Known | StoreError]] | None: ...


class AsyncStore(Protocol):
    """As `Store`, for coroutines of one event loop: all that waits is awaited.

    Calls of several partitions may be under way at once; of one partition, one at a time. A call
    that is cancelled may take effect all the same: a commit is then as one without an answer
    (send the identical one again), an open as one of a former owner's (open again).
    """

    @property
    def traits(self) -> Traits: ...
    async def prepare(self) -> bytes: ...
    async def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened: ...
    async def has_positions(self, scope: str, group: str, topic: str) -> bool: ...
    async def newest_ms(self, scope: str) -> int: ...
    async def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]: ...
    async def commit(self, commits: Sequence[Commit]) -> list[CommitResult]: ...
    async def find(self, at: Partition, key: bytes) -> Marker | None: ...
    def transaction(self, at: Partition) -> Transaction:
        """As `Store.transaction`: collecting asks nobody. Its `tx` is an AsyncKeyValueTx."""
        ...

    async def release(self, at: Partition) -> None: ...
    async def close(self) -> None: ...


# -- Kafka ---------------------------------------------------------------------------------------


class CommitMode(Enum):
    """Whether a commit to Kafka is waited for."""

    SYNC = "sync"
    ASYNC = "async"
    LAST = "last"
    """Before its partitions are given back, and in order with that: Kafka is left with it."""


@dataclass(frozen=True, slots=True)
class KafkaOffset:
    """What is told to Kafka after the store has it."""

    topic: str
    partition: int
    offset: int
    metadata: str


class Listener(Protocol):
    """What the driver hears from its client; called inside `Client.fetch` and `Client.close`."""

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These are ours now; the client has assigned them *paused*."""
        ...

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """These are about to go: drain, and commit what can be committed."""
        ...

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """These are gone already: Kafka refuses commits from now on, the store's fence decides."""
        ...

    def on_position_gone(self, partition: TopicPartition, reason: str) -> None:
        """The log no longer has the client's position: retention passed it, or it was cut off."""
        ...

    def on_topic_gone(self, topic: str, reason: str) -> None: ...
    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None:
        """An ASYNC commit of these was answered with an error: Kafka does not know."""
        ...


class Client(Protocol):
    """A Kafka consumer, as the driver needs it. One thread at a time, see `Keeper`.

    holds_cheaply: whether records may be held while others are fetched. Python's collector walks
    thousands of messages each time, unless C keeps them from it: 600 ns a message.
    """

    holds_cheaply: bool

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None: ...
    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        """Up to `limit` records, waiting for the first at most `timeout_seconds`.

        Serves rebalances and heartbeats. Grouped by partition, each in delivered order.
        """
        ...

    def pause(self, partitions: Sequence[TopicPartition]) -> None: ...
    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def position(self, partition: TopicPartition) -> int:
        """The next offset that the client would deliver: passes gaps that records never fill."""
        ...

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None: ...
    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]: ...
    def log_ends(self, partition: TopicPartition) -> LogEnds: ...
    def known_end(self, partition: TopicPartition) -> int:
        """The log's end as last heard with a fetch, without asking; UNSET before the first."""
        ...

    def partitions_of(self, topic: str) -> Sequence[int]: ...
    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        """16 bytes a topic; NO_ID where the broker has none. A topic that is gone is missing."""
        ...

    def close(self) -> None: ...


class AsyncClient(Protocol):
    """As `Client`, for coroutines: all that may wait is awaited.

    Of `fetch` and the calls of a listener, one is under way at a time.
    """

    holds_cheaply: bool

    async def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]: ...
    def pause(self, partitions: Sequence[TopicPartition]) -> None: ...
    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    async def position(self, partition: TopicPartition) -> int: ...
    async def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None: ...
    async def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]: ...
    async def log_ends(self, partition: TopicPartition) -> LogEnds: ...
    def known_end(self, partition: TopicPartition) -> int: ...
    async def partitions_of(self, topic: str) -> Sequence[int]: ...
    async def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]: ...
    async def close(self) -> None: ...


# -- time and threads ------------------------------------------------------------------------------


class Clock(Protocol):
    """The two clocks of a driver; only durations are taken from `monotonic`."""

    def wall_ms(self) -> int: ...
    def monotonic(self) -> float: ...


class Charge(Protocol):
    """What a keeper does while the handler has the thread."""

    def tend(self) -> None:
        """Keep the membership: pause everything and poll once. Holds the client."""
        ...

    def cut_off(self) -> None:
        """The handler is past its deadline. Kill its transaction, free the store, leave."""
        ...


class Keeper(Protocol):
    """Keeps the group's membership while a handler is slow, and says who may touch the client.

    The caller's thread owns the client except between `entered()` and `left()`; before `left()`
    it has settled with the store whatever the handler finished.
    """

    progress: float
    """Set to any other number as a handler call ends: the deadline runs anew. No method, since it
    is told of each event: 45 ns."""

    def start(self, charge: Charge, *, after_seconds: float, deadline_seconds: float) -> None: ...
    def entered(self) -> None: ...
    def left(self) -> None:
        """The client is the caller's again; waits for a poll of the keeper's to end."""
        ...

    def await_left(self, seconds: float) -> None:
        """Called inside a revoke: wait until the handler's thread has settled with the store.

        Returns at once on the handler's own thread: it polls, so nothing is running.
        """
        ...

    def stop(self) -> None: ...
