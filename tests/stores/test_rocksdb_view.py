"""People see one moment of a partition, whole or said not to be, and its owner does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from effectonce.errors import StoreCorrupt, StoreUnavailable
from effectonce.model import OutcomeKind, Partition, Status
from effectonce.stores import rocksdb_beside
from effectonce.stores.encoding import outcome_key, packed_key
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_beside import holder
from effectonce.stores.rocksdb_files import Folder
from effectonce.stores.rocksdb_options import Shared, open_database
from effectonce.stores.rocksdb_view import View, look, partitions
from effectonce.testing.owner import (
    AT,
    OTHER,
    TOPIC_ID,
    UNSTORABLE,
    VALUE,
    Owner,
    key_bytes,
    next_generation,
)
from tests.stores.busy_owner import HUNDRED, BusyOwner, generation_of
from tests.stores.peer import Peer

LOOKS = 300
LOOKS_AT_LEAST = 30
LOOKING_SECONDS = 8


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksDBStore]:
    store = RocksDBStore(tmp_path / "state")
    yield store
    store.close()


def folder_of(store: RocksDBStore) -> Folder:
    return Folder(store.path, AT)


def seen(store: RocksDBStore, number: int | None = None) -> View:
    return look(folder_of(store), Shared(), None if number is None else key_bytes(number))


def some_commits(store: RocksDBStore) -> Owner:
    owner = Owner.open(store)
    owner.commit([1, 2], outcomes={0: VALUE, 1: UNSTORABLE})
    owner.position = next_generation(owner.position, 2, floor=1)
    owner.commit([3])
    owner.put((b"balance", b"7"))
    owner.commit([4, 5])
    return owner


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.iterdir()}


# -- what is told --


def test_position_generations_and_markers_are_those_of_the_owner(store: RocksDBStore) -> None:
    owner = some_commits(store)
    view = seen(store)
    assert view.row is not None
    assert replace(view.row.position, generations=owner.position.generations) == replace(
        owner.position, commit_id=view.row.position.commit_id
    )
    assert [start for start, _ in view.starts.values()] == list(owner.position.generations)
    assert view.markers == {1: 2, 2: 3}
    assert view.whole


@pytest.mark.parametrize(
    ("number", "offset", "status"),
    [(1, 0, Status.HAS_OUTCOME), (2, 1, Status.UNSTORABLE), (3, 2, Status.DONE)],
)
def test_the_marker_of_a_key_is_the_one_that_its_owner_finds(
    store: RocksDBStore, number: int, offset: int, status: Status
) -> None:
    owner = some_commits(store)
    (marker,) = seen(store, number).found
    assert marker == owner.marker(number)
    assert (marker.offset, marker.status) == (offset, status)
    if status is not Status.DONE:
        assert marker.outcome is not None
        assert marker.outcome.kind is OutcomeKind(status - 1)


def test_a_key_without_a_marker_has_none_in_a_whole_view(store: RocksDBStore) -> None:
    some_commits(store)
    view = seen(store, 99)
    assert not view.found
    assert view.whole


def test_a_key_that_ran_again_in_a_later_run_is_shown_in_both(store: RocksDBStore) -> None:
    owner = some_commits(store)
    owner.position = replace(owner.position, run=1)
    owner.commit([1])
    assert [marker.run for marker in seen(store, 1).found] == [0, 1]


def test_a_partition_that_was_opened_and_never_begun_is_whole(store: RocksDBStore) -> None:
    store.open(AT, TOPIC_ID)
    view = seen(store, 1)
    assert view.row is not None
    assert view.whole


def test_every_partition_is_listed_whatever_its_names(store: RocksDBStore) -> None:
    odd = [
        AT,
        OTHER,
        Partition("..", ".", "a/b", 0),
        Partition("", "STORE", "50%", 11),
        Partition("%", "ä ö", "%2F", 2),
        Partition("x:y*?", "\n", "~", 3),
    ]
    for at in odd:
        store.open(at, TOPIC_ID)
    assert sorted(partitions(store.path)) == sorted(odd)


# -- what is not hidden --


def test_a_damaged_row_is_told_and_what_it_may_hold_is_not_said_to_be_absent(
    store: RocksDBStore,
) -> None:
    some_commits(store)
    store.close()
    db = open_database(folder_of(store).path, Shared())
    value = db.get(packed_key(2, 1))
    assert value is not None
    db[packed_key(2, 1)] = value[:-1] + bytes([value[-1] ^ 1])
    db.close()
    view = seen(store, 3)
    assert not view.found
    assert not view.whole
    assert [each.why for each in view.unreadable] == [
        "the packed row 1 of generation 2 is damaged: its checksum does not fit its 96 bytes"
    ]
    assert seen(store, 4).found


@pytest.mark.parametrize(("seq", "generation"), [(0, 1), (1, 2), (2, 2)])
def test_a_missing_row_is_told_wherever_it_was(
    store: RocksDBStore, seq: int, generation: int
) -> None:
    some_commits(store)
    store.close()
    db = open_database(folder_of(store).path, Shared())
    del db[packed_key(generation, seq)]
    db.close()
    view = seen(store, 99)
    assert view.missing == [range(seq, seq + 1)]
    assert not view.whole


def test_a_missing_outcome_is_told_beside_its_marker(store: RocksDBStore) -> None:
    some_commits(store)
    store.close()
    db = open_database(folder_of(store).path, Shared())
    del db[outcome_key(1, key_bytes(1))]
    db.close()
    view = seen(store, 1)
    assert [marker.outcome for marker in view.found] == [None]
    assert [each.why for each in view.unreadable] == ["an outcome of generation 1 is missing"]


def test_a_row_of_a_kind_that_only_a_newer_release_knows_is_told(store: RocksDBStore) -> None:
    some_commits(store)
    store.close()
    db = open_database(folder_of(store).path, Shared())
    db[b"\x04" + key_bytes(9)] = b"STARTED"
    db.close()
    view = seen(store, 9)
    assert not view.whole
    assert "newer" in view.unreadable[0].why


def test_a_damaged_table_is_an_error_and_no_shorter_view(store: RocksDBStore) -> None:
    some_commits(store)
    store.close()
    db = open_database(folder_of(store).path, Shared())
    db.flush()
    db.close()
    (table, *_) = sorted(folder_of(store).path.glob("*.sst"))
    raw = bytearray(table.read_bytes())
    raw[40] ^= 1
    table.write_bytes(raw)
    with pytest.raises(StoreCorrupt, match=r"orders\[0\]"):
        seen(store, 1)


# -- beside the owner --


def test_nothing_in_the_owners_folder_is_touched(store: RocksDBStore) -> None:
    owner = some_commits(store)
    path = folder_of(store).path
    before = contents(path)
    assert seen(store, 1).found
    assert contents(path) == before
    assert owner.seen(1, 99) == [True, False]


def test_a_look_and_the_question_who_holds_it_leave_the_lock_where_it_is(
    store: RocksDBStore, tmp_path: Path
) -> None:
    some_commits(store)
    seen(store)
    assert holder(folder_of(store)) == folder_of(store).owner()
    with Peer(tmp_path / "state") as peer:
        assert peer.ask("open").startswith("StoreLocked")


def test_the_holder_is_the_process_that_has_the_lock_and_nobody_once_it_is_killed(
    store: RocksDBStore, tmp_path: Path
) -> None:
    with Peer(tmp_path / "state") as peer:
        assert peer.ask("open").startswith("epoch")
        assert (holder(folder_of(store)) or "").startswith(f"process {peer.pid} on host ")
        (folder_of(store).path / "OWNER").write_text("1 elsewhere\n")  # signed by a former one
        assert holder(folder_of(store)) == f"process {peer.pid}"
    assert holder(folder_of(store)) is None


def test_a_commit_that_was_acknowledged_is_found_however_busy_its_owner_is(
    tmp_path: Path,
) -> None:
    shared, folder = Shared(), Folder(tmp_path / "state", AT)
    looks = 0
    with BusyOwner(folder.root) as owner:
        deadline = monotonic() + LOOKING_SECONDS
        while looks < LOOKS and (looks < LOOKS_AT_LEAST or monotonic() < deadline):
            row = owner.rows - 1
            view = look(folder, shared, key_bytes(HUNDRED * row + looks % HUNDRED))
            assert view.row is not None
            if generation_of(row) < view.row.position.floor:
                continue  # dropped since, as it should be
            assert view.whole
            assert [marker.offset for marker in view.found] == [HUNDRED * row + looks % HUNDRED]
            looks += 1


def test_an_owner_that_is_too_busy_all_the_time_is_told_as_that_and_not_as_damage(
    store: RocksDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_commits(store)
    attempts = 0

    def fail(*_: object) -> None:
        nonlocal attempts
        attempts += 1
        raise Exception("Corruption: Can't access /1.sst: IO error: No such file or directory")

    monkeypatch.setattr(rocksdb_beside, "_attempt", fail)
    with pytest.raises(StoreUnavailable, match="kept changing"):
        seen(store)
    assert attempts == rocksdb_beside.OPENS
    store.close()
    with pytest.raises(StoreCorrupt):  # nobody there who could have changed them
        seen(store)


def test_positions_are_found_beside_their_owner_without_writing_into_its_folder(
    store: RocksDBStore, tmp_path: Path
) -> None:
    some_commits(store)
    before = contents(folder_of(store).path)
    another = RocksDBStore(tmp_path / "state")
    assert another.has_positions(AT.scope, AT.group, AT.topic)
    assert contents(folder_of(store).path) == before
