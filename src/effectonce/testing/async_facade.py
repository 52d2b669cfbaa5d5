"""A sync `Store` over an `AsyncStore`, whose event loop runs in a thread: for tests alone.

    class TestMyStore(StoreContract):
        def make_store(self, folder):
            return AsyncFacade(lambda: MyAsyncStore(folder / "db"))

One list of tests for every store: what holds for the sync ones holds for the async ones too. Each
call of a test is one coroutine of that loop. Drivers await the store itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from threading import Thread
from typing import Any, TypeVar

from effectonce.errors import StoreError
from effectonce.model import (
    Commit,
    CommitResult,
    Known,
    Marker,
    Opened,
    Partition,
    Query,
    Write,
)
from effectonce.ports import AsyncKeyValueTx, AsyncStore, Traits, Transaction

T = TypeVar("T")


class AsyncFacade:
    """The store that `make` returns, made in the loop that it will live in."""

    def __init__(self, make: Callable[[], AsyncStore]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="store-loop", daemon=True)
        self._thread.start()
        self.inner = self.run(_made(make))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine of the store's loop returns, or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def prepare(self) -> bytes:
        return self.run(self.inner.prepare())

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        return self.run(self.inner.open(at, topic_id, above=above))

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        return self.run(self.inner.has_positions(scope, group, topic))

    def newest_ms(self, scope: str) -> int:
        return self.run(self.inner.newest_ms(scope))

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        return self.run(self.inner.lookup(queries))

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return self.run(self.inner.commit(commits))

    def find(self, at: Partition, key: bytes) -> Marker | None:
        return self.run(self.inner.find(at, key))

    def transaction(self, at: Partition) -> Transaction:
        return _Transaction(self, self.inner.transaction(at))

    def release(self, at: Partition) -> None:
        self.run(self.inner.release(at))

    def close(self) -> None:
        """Close the store and end its loop. Safe to call twice."""
        if self._loop.is_closed():
            return
        self.run(self.inner.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Transaction:
    """Hands out a sync `tx` for each one of the store's."""

    def __init__(self, facade: AsyncFacade, inner: Transaction) -> None:
        self._facade = facade
        self._inner = inner

    def begin(self) -> object:
        inner = self._inner.begin()
        assert isinstance(inner, AsyncKeyValueTx)
        return _Tx(self._facade, inner)

    def keep(self, tx: object) -> None:
        self._inner.keep(tx.inner if isinstance(tx, _Tx) else tx)

    def discard(self, tx: object) -> None:
        self._inner.discard(tx.inner if isinstance(tx, _Tx) else tx)

    def writes(self) -> tuple[Write, ...]:
        return self._inner.writes()

    def kill(self) -> None:
        self._inner.kill()


class _Tx:
    """A KeyValueTx; what else the store's own `tx` can do, it can do too."""

    def __init__(self, facade: AsyncFacade, inner: AsyncKeyValueTx) -> None:
        self._facade = facade
        self.inner = inner

    def get(self, key: bytes) -> bytes | None:
        return self._facade.run(_awaited(self.inner, key))

    def put(self, key: bytes, value: bytes) -> None:
        self.inner.put(key, value)

    def delete(self, key: bytes) -> None:
        self.inner.delete(key)

    def scan(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        return iter(self._facade.run(_scanned(self.inner, prefix)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def _made(make: Callable[[], AsyncStore]) -> AsyncStore:
    return make()


async def _awaited(tx: AsyncKeyValueTx, key: bytes) -> bytes | None:
    return await tx.get(key)


async def _scanned(tx: AsyncKeyValueTx, prefix: bytes) -> list[tuple[bytes, bytes]]:
    return [row async for row in tx.scan(prefix)]
