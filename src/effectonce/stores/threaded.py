"""Any sync store for coroutines, in one thread of its own.

For embedded stores: RocksDB must be closed by the thread that uses it, and its calls are short.
The thread takes one call after another, in the order in which they were awaited.

A call that was begun by an `await` runs to its end, even where the waiting is cancelled: a commit
then has its effect, and no answer; the next call comes after it.
"""

from __future__ import annotations

from asyncio import shield, wrap_future
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from effectonce.errors import StoreError
from effectonce.model import Commit, CommitResult, Known, Marker, Opened, Partition, Query
from effectonce.ports import KeyValueTx, Store, Traits, Transaction
from effectonce.stores.overlay import Row
from effectonce.stores.overlay_aio import AsyncKeyValueTransaction

T = TypeVar("T")


class InThread:
    """An AsyncStore over a Store whose `tx` is a KeyValueTx; nobody else uses that store.

    With `closes=False` it is the user's: closing ends the thread and leaves the store open.
    """

    def __init__(self, store: Store, *, closes: bool = True) -> None:
        self._store = store
        self._closes = closes
        self._thread = Thread()

    @property
    def traits(self) -> Traits:
        return self._store.traits

    async def prepare(self) -> bytes:
        return await self._thread.run(self._store.prepare)

    async def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        return await self._thread.run(lambda: self._store.open(at, topic_id, above=above))

    async def has_positions(self, scope: str, group: str, topic: str) -> bool:
        return await self._thread.run(lambda: self._store.has_positions(scope, group, topic))

    async def newest_ms(self, scope: str) -> int:
        return await self._thread.run(lambda: self._store.newest_ms(scope))

    async def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        return await self._thread.run(lambda: self._store.lookup(queries))

    async def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return await self._thread.run(lambda: self._store.commit(commits))

    async def find(self, at: Partition, key: bytes) -> Marker | None:
        return await self._thread.run(lambda: self._store.find(at, key))

    def transaction(self, at: Partition) -> Transaction:
        tx = self._store.transaction(at).begin()
        if not isinstance(tx, KeyValueTx):
            raise TypeError(f"{type(tx).__name__} is no KeyValueTx: it cannot be awaited")
        return AsyncKeyValueTransaction(_RowsInThread(tx, self._thread))

    async def release(self, at: Partition) -> None:
        await self._thread.run(lambda: self._store.release(at))

    async def close(self) -> None:
        """Close the store in its thread, and end that; a call after that starts another."""
        await self._thread.end(self._store.close if self._closes else _nothing)


class Thread:
    """Calls, one after another. Used by one event loop."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """The call's answer, or what it raised."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "effectonce-store")
        return await shield(wrap_future(self._pool.submit(call)))

    async def end(self, last: Callable[[], None]) -> None:
        """Run `last` behind all calls so far, and wait for the thread to end."""
        await self.run(last)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()  # its last call is over: there is nothing left to wait for


class _RowsInThread:
    """The committed rows of a partition: what a `tx` that writes nothing reads."""

    def __init__(self, tx: KeyValueTx, thread: Thread) -> None:
        self._tx = tx
        self._thread = thread

    async def get(self, key: bytes) -> bytes | None:
        return await self._thread.run(lambda: self._tx.get(key))

    async def scan(self, prefix: bytes) -> Sequence[Row]:
        return await self._thread.run(lambda: list(self._tx.scan(prefix)))


def _nothing() -> None:
    """The store is the user's to close."""
