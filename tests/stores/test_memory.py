"""The memory store keeps the contract of every store."""

from pathlib import Path

from effectonce.ports import Store
from effectonce.stores.memory import MemoryStore
from effectonce.testing.contract import StoreContract


class TestMemory(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return MemoryStore()

    def reopen(self, store: Store, folder: Path) -> Store:
        return store
