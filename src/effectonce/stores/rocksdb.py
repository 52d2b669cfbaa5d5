"""The embedded store: RocksDB, one database a partition, all under one folder.

A partition's folder moves between the processes of one host with its LOCK, as Kafka Streams keeps
its state. Positions, markers, outcomes and the user's rows of a partition are one database, so a
commit is one write; look-ups are answered by an index in memory. Encoding.py has the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from effectonce.errors import NotOpen, StoreError
from effectonce.model import (
    UNSET,
    Commit,
    CommitResult,
    Known,
    Marker,
    Opened,
    Partition,
    Position,
    Query,
    Stale,
)
from effectonce.ports import Durability, Reach, Traits
from effectonce.stores.overlay import KeyValueTransaction
from effectonce.stores.rocksdb_beside import read_beside_owner
from effectonce.stores.rocksdb_files import (
    Folder,
    failure,
    partition_numbers,
    store_id,
    topic_folder,
)
from effectonce.stores.rocksdb_image import read_position
from effectonce.stores.rocksdb_options import Shared
from effectonce.stores.rocksdb_partition import PartitionDatabase


class RocksDBStore:
    """Positions, markers and rows under `path`, which it creates.

    With `sync` a commit is answered when the disk has it, and survives a crash of the host;
    without, when the kernel has it, and survives a crash of the process.
    """

    def __init__(self, path: str | Path, *, sync: bool = False) -> None:
        self.path = Path(path).absolute()
        self._sync = sync
        self._shared = Shared()
        self._lock = Lock()
        self._id: bytes | None = None
        self._partitions: dict[Partition, PartitionDatabase] = {}

    @property
    def traits(self) -> Traits:
        return Traits(
            name="rocksdb",
            reach=Reach.EMBEDDED,
            durability=Durability.HOST if self._sync else Durability.PROCESS,
            in_store_effects=True,
        )

    def prepare(self) -> bytes:
        with self._lock:
            if self._id is None:
                try:
                    self._id = store_id(self.path)
                except OSError as error:
                    raise failure(error, "the store", self.path) from error
            return self._id

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        return self._partition(at).open(topic_id, above)

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        numbers = partition_numbers(topic_folder(self.path, scope, group, topic))
        rows = (self._position(Partition(scope, group, topic, number)) for number in numbers)
        return any(row is not None and row.next != UNSET for row in rows)

    def newest_ms(self, scope: str) -> int:
        """Each partition has markers of its own here."""
        return UNSET

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        return [self._lookup(query) for query in queries]

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return [self._commit(commit) for commit in commits]

    def find(self, at: Partition, key: bytes) -> Marker | None:
        return self._opened(at).find(key)

    def transaction(self, at: Partition) -> KeyValueTransaction:
        return KeyValueTransaction(self._opened(at))

    def release(self, at: Partition) -> None:
        with self._lock:
            partition = self._partitions.get(at)
        if partition is not None:
            partition.close()

    def close(self) -> None:
        with self._lock:
            partitions = list(self._partitions.values())
        for partition in partitions:
            partition.close()

    def _lookup(self, query: Query) -> Known | StoreError:
        try:
            return self._opened(query.at).lookup(query.keys, query.run)
        except StoreError as error:
            return error

    def _commit(self, commit: Commit) -> CommitResult:
        partition = self._partitions.get(commit.at)
        return Stale() if partition is None else partition.commit(commit)

    def _opened(self, at: Partition) -> PartitionDatabase:
        partition = self._partitions.get(at)
        if partition is None:
            raise NotOpen(f"{at} was never opened in this process")
        return partition

    def _partition(self, at: Partition) -> PartitionDatabase:
        identity = self.prepare()
        with self._lock:
            partition = self._partitions.get(at)
            if partition is None:
                folder = Folder(self.path, at)
                partition = PartitionDatabase(
                    folder, self._shared, store_id=identity, sync=self._sync
                )
                self._partitions[at] = partition
            return partition

    def _position(self, at: Partition) -> Position | None:
        """The row of a partition, whoever has it open."""
        partition = self._partitions.get(at)
        position = partition.position() if partition is not None else None
        return position if position is not None else self._peek(Folder(self.path, at))

    def _peek(self, folder: Folder) -> Position | None:
        row = read_beside_owner(folder, self._shared, read_position)
        return None if row is None else row.position
