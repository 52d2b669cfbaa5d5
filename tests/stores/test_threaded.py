"""Sync stores keep their contract in a thread of their own, and calls keep their order."""

from __future__ import annotations

from pathlib import Path

from effectonce.ports import Store
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.threaded import InThread
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.contract import StoreContract


class TestRocksDBInThread(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: InThread(RocksDBStore(folder / "state")))


class TestMemoryInThread(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: InThread(MemoryStore()))

    def reopen(self, store: Store, folder: Path) -> Store:
        return store
