"""RocksDB keeps the contract of every store, whether or not it waits for the disk."""

from pathlib import Path

from effectonce.ports import Store
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.testing.contract import StoreContract


class TestRocksDB(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return RocksDBStore(folder / "state")


class TestRocksDBSynced(StoreContract):
    def make_store(self, folder: Path) -> Store:
        return RocksDBStore(folder / "state", sync=True)
