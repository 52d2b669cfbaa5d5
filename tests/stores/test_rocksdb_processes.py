"""A partition's database moves between processes, and no kill of one of them loses a commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from threading import Barrier, Thread

import pytest

from effectonce.errors import StoreLocked
from effectonce.model import Applied, Stale
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_files import store_id
from effectonce.testing.owner import AT, OTHER, TOPIC_ID, Owner, tx_of
from tests.stores.peer import COUNTER, Peer, numbers_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def store(path: Path) -> Iterator[RocksDBStore]:
    store = RocksDBStore(path)
    yield store
    store.close()


@pytest.mark.parametrize("sync", [False, True])
def test_a_killed_writer_loses_no_acknowledged_commit(path: Path, sync: bool) -> None:
    random = Random(7)
    for _ in range(5):
        with Peer(path, sync=sync) as peer:
            peer.tell("loop")
            acknowledged = [int(peer.line()) for _ in range(random.randint(20, 150))]
            acknowledged += [int(row) for row in peer.kill().split()]
        store = RocksDBStore(path)
        owner = Owner.open(store)
        last = acknowledged[-1]
        rows, part = divmod(owner.position.next, len(numbers_of(0)))
        assert part == 0
        assert rows in (last + 1, last + 2)  # the one in the air is whole, or not there
        assert all(owner.seen(*range(numbers_of(rows).start)))
        assert not any(owner.seen(*numbers_of(rows), *numbers_of(rows + 1)))
        assert owner.rows() == [(COUNTER, b"%d" % rows)]
        store.close()


def test_a_frozen_owner_is_named_and_its_lock_free_once_it_is_killed(
    store: RocksDBStore, path: Path
) -> None:
    with Peer(path) as peer:
        assert peer.ask("open").startswith("epoch 1")
        peer.freeze()
        with pytest.raises(StoreLocked, match=rf"orders\[0\].* held by process {peer.pid} on host"):
            store.open(AT, TOPIC_ID)
        assert Owner.open(store, OTHER).commit([1]) == Applied()
        peer.kill()
        assert store.open(AT, TOPIC_ID).epoch == 2


def test_a_thawed_owner_goes_on_as_if_nothing_had_been(store: RocksDBStore, path: Path) -> None:
    with Peer(path) as peer:
        peer.ask("open")
        peer.freeze()
        with pytest.raises(StoreLocked):
            store.open(AT, TOPIC_ID)
        peer.thaw()
        assert peer.ask("commit 1") == "Applied"


def test_a_partition_moves_back_and_forth(store: RocksDBStore, path: Path) -> None:
    with Peer(path) as peer:
        for turn in range(4):
            ours = Owner.open(store)
            assert ours.position.next == 2 * turn
            assert all(ours.seen(*range(2 * turn)))
            assert ours.commit([2 * turn]) == Applied()
            store.release(AT)
            assert peer.ask("open") == f"epoch {2 * turn + 2} next {2 * turn + 1}"
            assert peer.ask(f"commit {2 * turn + 1}") == "Applied"
            assert ours.commit([99]) == Stale()
            assert peer.ask("release") == "released"


def test_both_processes_see_one_store(store: RocksDBStore, path: Path) -> None:
    with Peer(path) as peer:
        assert peer.ask("prepare") == store.prepare().hex()


def test_a_second_store_object_is_told_that_it_waits_for_itself(
    store: RocksDBStore, path: Path
) -> None:
    Owner.open(store)
    rival = RocksDBStore(path)
    with pytest.raises(StoreLocked, match="this very process"):
        rival.open(AT, TOPIC_ID)


def test_a_release_from_another_thread_frees_the_lock(store: RocksDBStore, path: Path) -> None:
    owner = Owner.open(store)
    owner.put(*((b"%04d" % i, b"") for i in range(1_000)))
    rows = tx_of(store.transaction(AT)).scan()
    next(rows)  # a scan in mid-air must not hold it
    thread = Thread(target=store.release, args=(AT,))
    thread.start()
    thread.join()
    with Peer(path) as peer:
        assert peer.ask("open").startswith("epoch 2")


def test_the_owner_is_named_only_while_it_owns(store: RocksDBStore, path: Path) -> None:
    folder = path / "payments" / "billing" / "orders" / "0"
    Owner.open(store)
    assert (folder / "OWNER").exists()
    store.release(AT)
    assert not (folder / "OWNER").exists()


def test_whoever_comes_first_names_the_store_for_all(tmp_path: Path) -> None:
    for attempt in range(40):
        root = tmp_path / str(attempt)
        barrier = Barrier(6)
        ids: list[bytes] = []

        def name(root: Path = root, barrier: Barrier = barrier, ids: list[bytes] = ids) -> None:
            barrier.wait()
            ids.append(store_id(root))

        threads = [Thread(target=name) for _ in range(barrier.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == barrier.parties
        assert len(set(ids)) == 1
        assert [each.name for each in root.iterdir()] == ["STORE"]


def test_positions_are_found_beside_a_running_owner(store: RocksDBStore, path: Path) -> None:
    with Peer(path) as peer:
        peer.ask("open")
        assert store.has_positions(AT.scope, AT.group, AT.topic)
        assert not store.has_positions(AT.scope, AT.group, "returns")
        assert peer.ask("commit 1") == "Applied"
