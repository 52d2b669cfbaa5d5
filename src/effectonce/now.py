"""How a driver without an event loop runs what both drivers share.

What happens to a partition (desk.py, begin.py, assignment.py) is written once, as coroutines over
an AsyncStore and an AsyncClient. Here those are a Store and a Client whose calls have their answers
when they return: such a coroutine never waits, and `now` runs it to its end in one step, on the
thread that calls. An await of that kind costs 60 ns, and a batch has a dozen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from effectonce.errors import StoreError
from effectonce.model import (
    Commit,
    CommitResult,
    Committed,
    Known,
    LogEnds,
    Marker,
    Opened,
    Partition,
    Query,
)
from effectonce.ports import (
    AsyncStore,
    Client,
    CommitMode,
    KafkaOffset,
    Records,
    SendsAhead,
    Store,
    TopicPartition,
    Traits,
    Transaction,
)

P = ParamSpec("P")
T = TypeVar("T")


def now(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """What the coroutine returns, or raises. It must not wait for anything but the ports below."""
    try:
        function(*args, **kwargs).send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise RuntimeError(f"{function.__qualname__} waits for an event loop, and there is none")


def store_now(store: Store) -> AsyncStore:
    """An AsyncStore that answers at once; it sends ahead if `store` does."""
    return StoreSendsAheadNow(store, store) if isinstance(store, SendsAhead) else StoreNow(store)


class StoreNow:
    """`AsyncStore` over a `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def traits(self) -> Traits:
        return self._store.traits

    async def prepare(self) -> bytes:
        return self._store.prepare()

    async def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        return self._store.open(at, topic_id, above=above)

    async def has_positions(self, scope: str, group: str, topic: str) -> bool:
        return self._store.has_positions(scope, group, topic)

    async def newest_ms(self, scope: str) -> int:
        return self._store.newest_ms(scope)

    async def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        return self._store.lookup(queries)

    async def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return self._store.commit(commits)

    async def find(self, at: Partition, key: bytes) -> Marker | None:
        return self._store.find(at, key)

    def transaction(self, at: Partition) -> Transaction:
        return self._store.transaction(at)

    async def release(self, at: Partition) -> None:
        self._store.release(at)

    async def close(self) -> None:
        self._store.close()


class StoreSendsAheadNow(StoreNow):
    """As that, and `AsyncSendsAhead` over a `SendsAhead`."""

    def __init__(self, store: Store, ahead: SendsAhead) -> None:
        super().__init__(store)
        self._ahead = ahead

    def send(self, commit: Commit) -> Callable[[], Awaitable[CommitResult]]:
        receipt = self._ahead.send(commit)

        async def answer() -> CommitResult:
            return receipt()

        return answer

    def ask(self, query: Query) -> Callable[[], Awaitable[Known | StoreError]] | None:
        receipt = self._ahead.ask(query)
        if receipt is None:
            return None

        async def answer() -> Known | StoreError:
            return receipt()

        return answer


class ClientNow:
    """`AsyncClient` over a `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.holds_cheaply = client.holds_cheaply

    async def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        return self._client.fetch(limit, timeout_seconds)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._client.pause(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._client.resume(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._client.seek(partition, offset)

    async def position(self, partition: TopicPartition) -> int:
        return self._client.position(partition)

    async def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        self._client.commit(offsets, mode)

    async def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        return self._client.committed(partitions)

    async def log_ends(self, partition: TopicPartition) -> LogEnds:
        return self._client.log_ends(partition)

    def known_end(self, partition: TopicPartition) -> int:
        return self._client.known_end(partition)

    async def partitions_of(self, topic: str) -> Sequence[int]:
        return self._client.partitions_of(topic)

    async def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        return self._client.topic_ids(topics)

    async def close(self) -> None:
        self._client.close()


class Ours(Protocol):
    """An `Assignment`, as its client and its keeper know it."""

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    async def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    async def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_position_gone(self, partition: TopicPartition, reason: str) -> None: ...
    def on_topic_gone(self, topic: str, reason: str) -> None: ...
    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None: ...
    async def tend(self) -> None: ...
    async def cut_off(self) -> None: ...


class OursNow:
    """`Listener` and `Charge` over it: called inside `Client.fetch`, and by the keeper."""

    def __init__(self, ours: Ours) -> None:
        self._ours = ours
        self.on_assigned = ours.on_assigned
        self.on_position_gone = ours.on_position_gone
        self.on_topic_gone = ours.on_topic_gone
        self.on_commit_refused = ours.on_commit_refused

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        now(self._ours.on_revoked, partitions)

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        now(self._ours.on_lost, partitions)

    def tend(self) -> None:
        now(self._ours.tend)

    def cut_off(self) -> None:
        now(self._ours.cut_off)
