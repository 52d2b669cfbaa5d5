"""Sync stores keep their contract in a thread of their own, and calls keep their order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from effectonce.errors import ConfigError, NotOpen, StoreLocked, TransactionClosed
from effectonce.model import Already, Applied, Commit, CommitResult, Known, OnExisting, Query
from effectonce.ports import AsyncKeyValueTx, Store
from effectonce.stores import open_async_store, open_store
from effectonce.stores.memory import MemoryStore
from effectonce.stores.redis_aio import AsyncRedisStore
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.threaded import InThread
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.contract import StoreContract
from effectonce.testing.owner import AT, OTHER, TOPIC_ID, Owner, keys_of


class TestRocksDBInThread(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: InThread(RocksDBStore(folder / "state")))


class TestMemoryInThread(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: InThread(MemoryStore()))

    def reopen(self, store: Store, folder: Path) -> Store:
        return store


# -- one thread, in order, to the end --------------------------------------------------------------


class Gated(MemoryStore):
    """Its commits wait until the gate is open; it notes who calls what."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.gate = threading.Event(), threading.Event()
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()

    def _note(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.current_thread())

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        self._note("commit")
        self.reached.set()
        assert self.gate.wait(10)
        return super().commit(commits)

    def lookup(self, queries: Sequence[Query]) -> list[Any]:
        self._note("lookup")
        return super().lookup(queries)

    def close(self) -> None:
        self._note("close")
        super().close()


@pytest.fixture
def gated() -> Gated:
    return Gated()


def prepared(store: Store, *numbers: int) -> Commit:
    """A commit of an owner of a partition, begun already."""
    return Owner.open(store).prepared(numbers, on_existing=OnExisting.REFUSE)


def begun(gated: Gated, *numbers: int) -> Commit:
    gated.gate.set()
    commit = prepared(gated, *numbers)
    gated.gate.clear()
    gated.reached.clear()
    gated.calls.clear()
    gated.threads.clear()
    return commit


async def reached(gated: Gated) -> None:
    while not gated.reached.is_set():
        await asyncio.sleep(0)


def test_a_cancelled_commit_takes_effect_before_the_next_call(gated: Gated) -> None:
    commit = begun(gated, 1)

    async def scene() -> None:
        store = InThread(gated)
        sent = asyncio.ensure_future(store.commit([commit]))
        await reached(gated)
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        looked = asyncio.ensure_future(store.lookup([Query(AT, keys_of(1), 0)]))
        await asyncio.sleep(0)
        assert gated.calls == ["commit"], "the loop goes on while the store is busy"
        gated.gate.set()
        (known,) = await looked
        assert isinstance(known, Known)
        assert known.seen.tolist() == [True]
        assert await store.commit([commit]) == [Already()]
        await store.close()

    asyncio.run(scene())


def test_a_commit_cancelled_while_it_waits_its_turn_is_not_dropped(gated: Gated) -> None:
    first = begun(gated, 1)
    gated.gate.set()
    second = Owner.open(gated, OTHER).prepared([2])
    gated.gate.clear()
    gated.calls.clear()
    gated.reached.clear()

    async def scene() -> None:
        store = InThread(gated)
        one = asyncio.ensure_future(store.commit([first]))
        await reached(gated)
        other = asyncio.ensure_future(store.commit([second]))
        await asyncio.sleep(0)
        other.cancel()
        await asyncio.wait([other])
        assert other.cancelled()
        gated.gate.set()
        assert await one == [Applied()]
        assert await store.commit([second]) == [Already()]
        await store.close()

    asyncio.run(scene())


def test_calls_come_in_order_and_from_one_thread_which_close_ends(gated: Gated) -> None:
    commit = begun(gated, 1)
    gated.gate.set()

    async def scene() -> None:
        store = InThread(gated)
        query = Query(AT, keys_of(1), 0)
        before, _, after, _ = await asyncio.gather(
            store.lookup([query]), store.commit([commit]), store.lookup([query]), store.close()
        )
        assert [each.seen.tolist() for each in (*before, *after) if isinstance(each, Known)] == [
            [False],
            [True],
        ]

    asyncio.run(scene())
    assert gated.calls == ["lookup", "commit", "lookup", "close"]
    (thread,) = gated.threads
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_a_close_that_is_cancelled_closes_all_the_same(tmp_path: Path) -> None:
    async def scene() -> None:
        store = InThread(RocksDBStore(tmp_path))
        await store.open(AT, TOPIC_ID)
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await store.close()

    asyncio.run(scene())
    heir = RocksDBStore(tmp_path)
    heir.open(AT, TOPIC_ID)
    heir.close()


def test_a_loop_that_ends_amid_a_commit_leaves_it_whole(
    gated: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    """As with Ctrl-C: asyncio.run cancels what still runs, and closes the loop."""
    commit = begun(gated, 1)
    store = InThread(gated)

    async def interrupted() -> None:
        sent = asyncio.ensure_future(store.commit([commit]))
        await reached(gated)
        raise KeyboardInterrupt(sent)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())
    gated.gate.set()
    assert asyncio.run(store.commit([commit])) == [Already()]
    asyncio.run(store.close())
    assert not caplog.records


# -- errors, rows, construction --------------------------------------------------------------------


def test_an_error_comes_out_as_it_was_raised(tmp_path: Path) -> None:
    here = RocksDBStore(tmp_path)
    here.open(AT, TOPIC_ID)

    async def scene() -> None:
        store = InThread(RocksDBStore(tmp_path))
        with pytest.raises(StoreLocked):
            await store.open(AT, TOPIC_ID)
        with pytest.raises(NotOpen):
            await store.find(AT, bytes(16))
        await store.close()

    asyncio.run(scene())
    here.close()


def test_a_tx_reads_rows_in_the_thread_and_what_it_wrote_at_once(tmp_path: Path) -> None:
    async def scene(store: InThread) -> tuple[tuple[bytes, bytes | None], ...]:
        transaction = store.transaction(AT)
        tx, other = transaction.begin(), transaction.begin()
        assert isinstance(tx, AsyncKeyValueTx)
        assert isinstance(other, AsyncKeyValueTx)
        assert await tx.get(b"a1") == b"stored"
        tx.put(b"a2", b"new")
        tx.delete(b"a1")
        seen = tx.scan(b"a")
        tx.put(b"a9", b"after the scan began")
        assert [row async for row in seen] == [(b"a2", b"new"), (b"a3", b"stored")]
        assert await other.get(b"a2") is None
        transaction.keep(tx)
        assert await other.get(b"a2") == b"new"
        assert [key async for key, _ in other.scan()] == [b"a2", b"a3", b"a9", b"b"]
        transaction.discard(other)
        with pytest.raises(TransactionClosed):
            await tx.get(b"a2")
        return transaction.writes()

    facade = AsyncFacade(lambda: InThread(RocksDBStore(tmp_path)))
    owner = Owner.open(facade)
    owner.put((b"a1", b"stored"), (b"a3", b"stored"), (b"b", b"stored"))
    assert isinstance(facade.inner, InThread)
    writes = facade.run(scene(facade.inner))
    assert owner.commit([1], writes=writes) == Applied()
    assert [key for key, _ in owner.rows()] == [b"a2", b"a3", b"a9", b"b"]
    facade.close()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory:", InThread),
        ("rocksdb:///state", InThread),
        ("redis://localhost?layout=partition", AsyncRedisStore),
        ("unix:///run/valkey.sock?durability=host", AsyncRedisStore),
    ],
)
def test_a_url_names_an_async_store_with_the_same_promise(url: str, kind: type) -> None:
    store = open_async_store(url)
    assert isinstance(store, kind)
    assert store.traits == open_store(url).traits


def test_an_async_store_passes_through_and_a_sync_one_gets_a_thread() -> None:
    store = AsyncRedisStore("redis://localhost")
    assert open_async_store(store) is store
    inner = MemoryStore()
    assert isinstance(open_async_store(inner), InThread)
    with pytest.raises(ConfigError, match="not dict"):
        open_async_store({})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'sink' is unknown"):
        open_async_store("redis://localhost?sink=1")
