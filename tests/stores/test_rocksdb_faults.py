"""Damage is found and named, a failed write is neither believed nor forgotten."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from effectonce.errors import ConfigError, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.model import Already, Applied, Partition, Query, Stale, Status, Unknown
from effectonce.stores import rocksdb_partition
from effectonce.stores.encoding import (
    POSITION_KEY,
    SET_ASIDE,
    generation_key,
    outcome_key,
    packed_key,
)
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.threaded import InThread
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.owner import (
    AT,
    OTHER,
    TOPIC_ID,
    VALUE,
    Owner,
    key_bytes,
    keys_of,
    next_generation,
    tx_of,
)
from tests.stores.peer import Peer

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


class InItsThread(AsyncFacade):
    """RocksDB as coroutines have it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rocksdb = RocksDBStore(path)
        super().__init__(lambda: InThread(self.rocksdb))


OnRocksDB: TypeAlias = RocksDBStore | InItsThread


@pytest.fixture(params=[RocksDBStore, InItsThread])
def store(path: Path, request: pytest.FixtureRequest) -> Iterator[OnRocksDB]:
    store: OnRocksDB = request.param(path)
    yield store
    store.close()


def folder_of(store: OnRocksDB, at: Partition = AT) -> Path:
    return store.path / at.scope / at.group / at.topic / str(at.number)


@contextmanager
def raw(store: OnRocksDB) -> Iterator[Rdict]:
    """The database of AT without us; that it opens shows that the LOCK is free."""
    db = Rdict(str(folder_of(store)), Options(raw_mode=True))
    try:
        yield db
    finally:
        db.close()


# -- rows that cannot be read --


def some_commits(store: OnRocksDB) -> None:
    owner = Owner.open(store)
    owner.commit([1, 2], outcomes={0: VALUE})
    owner.position = next_generation(owner.position, 2, floor=1)
    owner.commit([3])
    owner.commit([4])
    store.release(AT)


def flip(db: Rdict, key: bytes) -> None:
    value = db.get(key)
    assert value is not None
    db[key] = value[:9] + bytes([value[9] ^ 1]) + value[10:]


DAMAGES: dict[str, tuple[Callable[[Rdict], object], str]] = {
    "position damaged": (lambda db: flip(db, POSITION_KEY), "the position is damaged"),
    "position gone": (lambda db: db.delete(POSITION_KEY), "the position is missing"),
    "row damaged": (lambda db: flip(db, packed_key(2, 1)), "packed row 1 of .* 2 is damaged"),
    "first row gone": (lambda db: db.delete(packed_key(1, 0)), "packed row 0 is missing, 1 comes"),
    "inner row gone": (lambda db: db.delete(packed_key(2, 1)), "packed row 1 is missing, 2 comes"),
    "last row gone": (lambda db: db.delete(packed_key(2, 2)), "packed rows 2 to 2 are missing"),
    "row moved": (
        lambda db: db.put(packed_key(2, 1), db[packed_key(2, 2)]),
        "packed row 1 of .* is damaged",
    ),
    "row too many": (
        lambda db: db.put(packed_key(2, 3), db[packed_key(2, 2)]),
        "packed row 3 of .* is damaged",
    ),
    "generation damaged": (lambda db: flip(db, generation_key(2)), "start of generation 2 is dam"),
    "generation gone": (lambda db: db.delete(generation_key(2)), "outside of its generation"),
    "all generations gone": (
        lambda db: db.delete_range(generation_key(0), generation_key(9)),
        "outside of its generation",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_stops_the_partition_and_frees_its_lock(store: OnRocksDB, name: str) -> None:
    damage, says = DAMAGES[name]
    some_commits(store)
    with raw(store) as db:
        backup = dict(db.items())
        damage(db)
    with pytest.raises(StoreCorrupt, match=rf"orders\[0\]: .*{says}") as kept:
        store.open(AT, TOPIC_ID)
    with raw(store) as db:  # while the error, and its traceback, is still held
        assert kept.value.__traceback__ is not None
        for key in list(db.keys()):
            del db[key]
        for key, value in backup.items():
            db[key] = value
    assert Owner.open(store).seen(1, 2, 3, 4, 5) == [True, True, True, True, False]


def test_a_missing_outcome_is_not_taken_for_none(store: OnRocksDB) -> None:
    some_commits(store)
    with raw(store) as db:
        db.delete(outcome_key(1, key_bytes(1)))
    owner = Owner.open(store)
    with pytest.raises(StoreCorrupt, match="an outcome of generation 1 is missing"):
        store.find(AT, key_bytes(1))
    assert owner.marker(2).outcome is None


def test_an_outcome_that_was_set_aside_leaves_its_marker_readable(store: OnRocksDB) -> None:
    some_commits(store)
    key = outcome_key(1, key_bytes(1))
    with raw(store) as db:
        db.put(SET_ASIDE + key, db.get(key))
        db.delete(key)
    marker = Owner.open(store).marker(1)
    assert (marker.status, marker.outcome) == (Status.HAS_OUTCOME, None)


def damage_largest_file(store: OnRocksDB) -> None:
    table = max(folder_of(store).glob("*.sst"), key=lambda file: file.stat().st_size)
    damaged = bytearray(table.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    table.write_bytes(damaged)


def test_a_damaged_file_is_not_the_end_of_a_scan(store: OnRocksDB) -> None:
    keys = [b"%06d" % i for i in range(20_000)]
    owner = Owner.open(store)
    owner.put(*((key, os.urandom(100)) for key in keys))
    store.release(AT)
    damage_largest_file(store)
    owner = Owner.open(store)
    tx = tx_of(store.transaction(AT))
    with pytest.raises(StoreCorrupt, match="checksum mismatch"):
        list(tx.scan())
    with pytest.raises(StoreCorrupt, match="checksum mismatch"):
        [tx.get(key) for key in keys]


def test_a_damaged_file_of_markers_stops_the_partition_and_frees_its_lock(
    store: OnRocksDB,
) -> None:
    owner = Owner.open(store)
    owner.commit(range(100_000))
    store.release(AT)
    damage_largest_file(store)
    with pytest.raises(StoreCorrupt, match="checksum mismatch") as kept:
        store.open(AT, TOPIC_ID)
    with raw(store):  # while the error, and its traceback, is still held
        assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("content", [b"", b"effectonce store 1\n", b"\xff" * 40, b"something else"])
def test_a_damaged_store_id_is_not_replaced(path: Path, content: bytes) -> None:
    path.mkdir()
    (path / "STORE").write_bytes(content)
    with pytest.raises(StoreCorrupt, match="STORE does not hold a store's id"):
        RocksDBStore(path).prepare()
    assert (path / "STORE").read_bytes() == content


# -- writes whose fate is unknown --


class Fails:
    """Stands for a database whose next write fails, before or after it reached the disk."""

    def __init__(self, db: Rdict, *, lands: bool) -> None:
        self._db = db
        self._lands = lands

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def write(self, batch: WriteBatch, options: object) -> None:
        if self._lands:
            self._db.write(batch)
        raise Exception("IO error: While fsync: a wire fell out: Input/output error")


def break_next_write(store: OnRocksDB, *, lands: bool) -> None:
    rocksdb = store.rocksdb if isinstance(store, InItsThread) else store
    partition = rocksdb._partitions[AT]
    assert partition._db is not None
    partition._db = Fails(partition._db, lands=lands)  # type: ignore[assignment]


@pytest.mark.parametrize("lands", [False, True])
def test_a_write_without_an_answer_is_settled_by_sending_it_again(
    store: OnRocksDB, lands: bool
) -> None:
    here, there = Owner.open(store, AT), Owner.open(store, OTHER)
    here.commit([1])
    commit = here.prepared([1, 2, 3], writes=((b"k", b"v"),))
    break_next_write(store, lands=lands)
    unknown, applied = store.commit([commit, there.prepared([5])])
    assert isinstance(unknown, Unknown)
    assert isinstance(unknown.error, StoreUnavailable)
    assert applied == Applied()  # the other partition is not touched
    again = here.send(commit)
    assert again == (Already() if lands else Applied(existing=1))
    assert here.seen(1, 2, 3, 4) == [True, True, True, False]
    assert here.rows() == [(b"k", b"v")]
    here.position = commit.position
    assert here.commit([4]) == Applied()


@pytest.mark.parametrize("lands", [False, True])
def test_a_lookup_after_a_lost_answer_tells_what_the_disk_holds(
    store: OnRocksDB, lands: bool
) -> None:
    owner = Owner.open(store)
    owner.commit([1])
    break_next_write(store, lands=lands)
    assert isinstance(owner.commit([2]), Unknown)
    assert owner.seen(1, 2) == [True, lands]


def test_an_interrupt_after_the_write_forgets_no_marker(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RocksDBStore(path)
    owner = Owner.open(store)
    commit = owner.prepared([1, 2])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rocksdb_partition, "_follow", interrupted)
        with pytest.raises(KeyboardInterrupt):
            owner.send(commit)
    assert owner.seen(1, 2, 3) == [True, True, False]
    assert owner.send(commit) == Already()
    store.close()


def test_whoever_opened_after_a_failed_write_owns_the_partition(
    store: OnRocksDB, path: Path
) -> None:
    owner = Owner.open(store)
    commit = owner.prepared([1])
    break_next_write(store, lands=False)
    assert isinstance(owner.send(commit), Unknown)
    with Peer(path) as peer:
        assert peer.ask("open").startswith("epoch 2")
        stuck = owner.send(commit)
        assert isinstance(stuck, Unknown)
        assert f"process {peer.pid}" in str(stuck.error)
        assert peer.ask("commit 7") == "Applied"
        assert peer.ask("release") == "released"
    assert owner.send(commit) == Stale()
    assert Owner.open(store).seen(1, 7) == [False, True]


def test_an_old_copy_with_the_same_epoch_is_not_taken_for_ours(
    store: OnRocksDB, tmp_path: Path
) -> None:
    Owner.open(store)
    store.release(AT)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", folder_of(store), copy], check=True)
    owner = Owner.open(store)
    break_next_write(store, lands=False)
    assert isinstance(owner.commit([1]), Unknown)
    subprocess.run(["rm", "-r", folder_of(store)], check=True)
    subprocess.run(["mv", copy, folder_of(store)], check=True)
    heir = RocksDBStore(store.path)
    assert heir.open(AT, TOPIC_ID).epoch == owner.position.epoch
    heir.close()
    assert owner.commit([1]) == Stale()


def test_a_failed_open_changes_nothing_that_counts(
    store: OnRocksDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner.open(store)
    owner.commit([1])
    break_next_write(store, lands=True)
    with pytest.raises(StoreUnavailable, match="the disk reports errors"):
        store.open(AT, TOPIC_ID)
    assert owner.commit([2]) == Stale()
    assert Owner.open(store).seen(1, 2) == [True, False]


class Notes:
    """Stands for a database, and notes of each write whether it waits for the disk."""

    def __init__(self, db: Rdict) -> None:
        self._db = db
        self.synced: list[bool] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def write(self, batch: WriteBatch, options: WriteOptions) -> None:
        self.synced.append(options.sync)
        self._db.write(batch, options)


@pytest.mark.parametrize("sync", [False, True])
def test_an_epoch_is_on_the_disk_even_where_commits_need_not_be(path: Path, sync: bool) -> None:
    store = RocksDBStore(path, sync=sync)
    Owner.open(store)
    partition = store._partitions[AT]
    assert partition._db is not None
    notes = Notes(partition._db)
    partition._db = notes  # type: ignore[assignment]
    Owner.open(store).commit([1])
    assert notes.synced == [True, sync]
    store.close()


def test_what_is_dropped_leaves_the_disk(store: OnRocksDB) -> None:
    owner = Owner.open(store)
    owner.commit([1, 2], outcomes={0: VALUE, 1: VALUE})
    owner.position = next_generation(owner.position, 9, floor=7)
    owner.commit([3])
    store.release(AT)
    with raw(store) as db:
        assert list(db.keys()) == [POSITION_KEY, packed_key(9, 1), generation_key(9)]


# -- disks --


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A small disk of its own, mounted and remounted with the options given."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_a_commit_whole_and_room_heals_it(disk: Callable[[str], Path]) -> None:
    store = RocksDBStore(disk("size=4m") / "state")
    owner = Owner.open(store)
    value = os.urandom(50_000)
    for row in range(1_000):
        commit = owner.prepared([row], writes=((b"last", b"%d" % row), (b"%d" % row, value)))
        result = owner.send(commit)
        if isinstance(result, Unknown):
            break
        owner.position = commit.position
    else:
        pytest.fail("the disk took 50 MB")
    assert isinstance(result.error, StoreUnavailable)
    assert "the disk is full: make room" in str(result.error)
    assert isinstance(owner.send(commit), Unknown)
    (answer,) = store.lookup([Query(AT, keys_of(0), 0)])
    assert isinstance(answer, StoreUnavailable)  # not "new": nothing can be said
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        store.open(OTHER, TOPIC_ID)
    disk("size=64m")
    assert owner.send(commit) == Applied()
    assert all(owner.seen(*range(row + 1)))
    assert owner.seen(row + 1) == [False]
    assert dict(owner.rows())[b"last"] == b"%d" % row
    assert store.open(OTHER, TOPIC_ID).row is None
    store.close()


def test_a_read_only_disk_says_so(disk: Callable[[str], Path]) -> None:
    store = RocksDBStore(disk("size=64m") / "state")
    Owner.open(store).commit([1])
    store.close()
    disk("ro")
    store = RocksDBStore(store.path)
    store.prepare()
    for at in (AT, OTHER):
        with pytest.raises(StoreUnavailable, match="read-only: mount it writable"):
            store.open(at, TOPIC_ID)
    with pytest.raises(StoreUnavailable, match="read-only: mount it writable"):
        RocksDBStore(store.path.parent / "another").prepare()
    disk("rw")
    assert Owner.open(store).seen(1) == [True]
    store.close()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    for path in (tmp_path / "state", tmp_path / "state" / "deeper"):
        with pytest.raises(StoreUnavailable, match="a file is in the way"):
            RocksDBStore(path).prepare()


def test_a_name_too_long_for_a_folder_is_the_users_to_change(store: OnRocksDB) -> None:
    with pytest.raises(ConfigError, match=r"the group .* is too long"):
        store.open(replace(AT, group="é" * 43), TOPIC_ID)
    assert Owner.open(store, replace(AT, group="é" * 42)).commit([1]) == Applied()


# -- what is not open --


def test_what_was_released_answers_nothing(store: OnRocksDB) -> None:
    owner = Owner.open(store)
    owner.commit([1])
    tx = tx_of(store.transaction(AT))
    store.release(AT)
    assert owner.commit([2]) == Stale()
    (answer,) = store.lookup([Query(AT, keys_of(1), 0)])
    assert isinstance(answer, StoreUnavailable)
    for ask in (
        lambda: tx.get(b"k"),
        lambda: list(tx.scan()),
        lambda: store.find(AT, key_bytes(1)),
    ):
        with pytest.raises(StoreError, match="not open in this process"):
            ask()


def test_what_was_never_opened_answers_nothing(store: OnRocksDB) -> None:
    (answer,) = store.lookup([Query(AT, keys_of(1), 0)])
    assert isinstance(answer, StoreUnavailable)
    with pytest.raises(StoreUnavailable, match="never opened"):
        store.transaction(AT)
    assert not store.path.exists()


def test_reopening_leaves_no_heap_of_files(store: OnRocksDB) -> None:
    for _ in range(20):
        Owner.open(store).commit([1])
        store.release(AT)
    assert len(list(folder_of(store).iterdir())) < 25
