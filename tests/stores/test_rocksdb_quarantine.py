"""Rows that cannot be read are set aside, what may repeat is said, and nothing else is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rocksdict import Rdict

from effectonce.errors import StoreCorrupt, StoreLocked
from effectonce.model import Applied, Stale
from effectonce.stores.encoding import (
    GENERATION,
    OUTCOME,
    PACKED,
    POSITION_KEY,
    SET_ASIDE,
    generation_key,
    outcome_key,
    packed_key,
)
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_files import Folder
from effectonce.stores.rocksdb_image import all_rows
from effectonce.stores.rocksdb_options import Shared, open_database
from effectonce.stores.rocksdb_quarantine import Quarantine, quarantine
from effectonce.stores.rocksdb_view import look
from effectonce.testing.owner import AT, TOPIC_ID, VALUE, Owner, key_bytes, next_generation
from tests.stores.peer import Peer

NEXT = 9
NUMBERS = range(1, NEXT + 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksDBStore]:
    store = RocksDBStore(tmp_path / "state")
    yield store
    store.close()


def folder_of(store: RocksDBStore) -> Folder:
    return Folder(store.path, AT)


def set_aside(store: RocksDBStore, *, dry_run: bool = False) -> Quarantine:
    return quarantine(folder_of(store), Shared(), dry_run=dry_run)


def nine_events(store: RocksDBStore) -> None:
    """Packed rows 0 to 4 in three generations: 1 2 3, 4, 5 6, 7, 8 9; outcomes of 1 and 8."""
    owner = Owner.open(store)
    owner.commit([1, 2, 3], outcomes={0: VALUE})
    owner.commit([4])
    owner.position = next_generation(owner.position, 2, floor=1)
    owner.commit([5, 6])
    owner.position = next_generation(owner.position, 3, floor=1)
    owner.commit([7])
    owner.commit([8, 9], outcomes={0: VALUE})
    store.close()


@contextmanager
def raw(store: RocksDBStore) -> Iterator[Rdict]:
    db = open_database(folder_of(store).path, Shared())
    try:
        yield db
    finally:
        db.close()


def rows(store: RocksDBStore) -> dict[bytes, bytes]:
    with raw(store) as db:
        return dict(all_rows(db, b""))


def flip(db: Rdict, *keys: bytes) -> None:
    for key in keys:
        value = db.get(key)
        assert value is not None
        db[key] = value[:9] + bytes([value[9] ^ 1]) + value[10:]


def seen(store: RocksDBStore) -> list[int]:
    owner = Owner.open(store)
    return [n for n, known in zip(NUMBERS, owner.seen(*NUMBERS), strict=True) if known]


Damage = Callable[[Rdict], object]

# what is broken, the events whose markers are gone, how many keys that is said to be, and whether
# their rows are missing altogether
DAMAGES: dict[str, tuple[Damage, set[int], int, int]] = {
    "row damaged": (lambda db: flip(db, packed_key(2, 2)), {5, 6}, 2, 0),
    "row cut off": (lambda db: db.put(packed_key(1, 0), b"\x01" * 9), {1, 2, 3}, 0, 0),
    "row of a newer release": (lambda db: db.put(packed_key(1, 1), b"\x02" * 96), {4}, 1, 0),
    "row under another's key": (
        lambda db: db.put(packed_key(2, 2), db[packed_key(3, 4)]),
        {5, 6},
        2,
        0,
    ),
    "first row gone": (lambda db: db.delete(packed_key(1, 0)), {1, 2, 3}, 0, 1),
    "inner row gone": (lambda db: db.delete(packed_key(2, 2)), {5, 6}, 0, 1),
    "last row gone": (lambda db: db.delete(packed_key(3, 4)), {8, 9}, 0, 1),
    "all rows gone": (lambda db: db.delete_range(packed_key(0), packed_key(9)), {*NUMBERS}, 0, 5),
    "start damaged": (lambda db: flip(db, generation_key(2)), set(), 0, 0),
    "start gone": (lambda db: db.delete(generation_key(1)), set(), 0, 0),
    "all starts gone": (
        lambda db: db.delete_range(generation_key(0), generation_key(9)),
        set(),
        0,
        0,
    ),
    "start and first row damaged": (
        lambda db: flip(db, generation_key(1), packed_key(1, 0)),
        {1, 2, 3},
        3,
        0,
    ),
    "start damaged and all its rows": (
        lambda db: flip(db, generation_key(3), packed_key(3, 3), packed_key(3, 4)),
        {7, 8, 9},
        3,
        0,
    ),
    "outcome damaged": (lambda db: flip(db, outcome_key(3, key_bytes(8))), set(), 0, 0),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_cannot_be_read_is_set_aside_and_the_rest_goes_on(
    store: RocksDBStore, name: str
) -> None:
    damage, gone, keys, missing = DAMAGES[name]
    nine_events(store)
    with raw(store) as db:
        damage(db)
    damaged = rows(store)

    proposed = set_aside(store, dry_run=True)
    assert rows(store) == damaged
    done = set_aside(store)
    assert (done.keys, done.missing) == (keys, missing) == (proposed.keys, proposed.missing)
    assert done.rows == proposed.rows

    after = rows(store)
    for each in done.rows:
        assert after[SET_ASIDE + each.key] == damaged.get(each.key, b"")
    view = look(folder_of(store), Shared())
    assert view.whole
    assert view.set_aside == len(done.rows)
    assert seen(store) == [n for n in NUMBERS if n not in gone]
    owner = Owner.open(store)
    assert owner.position.next == NEXT
    assert owner.position.horizon == (NEXT if gone else 0)
    assert owner.commit([*sorted(gone), 100]) == Applied()
    store.close()
    assert seen(store) == [*NUMBERS]


def test_nothing_is_done_where_everything_can_be_read(store: RocksDBStore) -> None:
    nine_events(store)
    before = rows(store)
    assert not set_aside(store).rows
    assert rows(store) == before


def test_it_is_enough_once(store: RocksDBStore) -> None:
    nine_events(store)
    with raw(store) as db:
        flip(db, packed_key(2, 2))
        del db[packed_key(1, 0)]
    assert len(set_aside(store).rows) == 2
    assert not set_aside(store).rows


def test_rows_set_aside_do_not_come_into_the_way_once_their_generation_is_dropped(
    store: RocksDBStore,
) -> None:
    nine_events(store)
    with raw(store) as db:
        flip(db, packed_key(1, 0), packed_key(3, 4))
    set_aside(store)
    owner = Owner.open(store)
    owner.position = next_generation(owner.position, 4, floor=3)
    owner.commit([100])
    store.close()
    view = look(folder_of(store), Shared())
    assert view.whole
    assert view.set_aside == 2
    assert Owner.open(store).seen(5, 7, 9, 100) == [False, True, False, True]


def test_a_generation_written_anew_lets_the_horizon_rise_early_rather_than_late(
    store: RocksDBStore,
) -> None:
    nine_events(store)
    with raw(store) as db:
        flip(db, generation_key(2))
    set_aside(store)
    starts = Owner.open(store).position.generations
    assert [(start.generation, start.until) for start in starts] == [(1, 0), (2, NEXT), (3, 6)]


def test_an_owner_that_had_lost_its_database_meanwhile_is_stale_and_cannot_lower_the_horizon(
    store: RocksDBStore,
) -> None:
    nine_events(store)
    before = Owner.open(store)
    store._partitions[AT]._disconnect()  # as after a write that failed: it would open again
    with raw(store) as db:
        flip(db, packed_key(2, 2))
    set_aside(store)
    assert before.commit([100]) == Stale()
    assert Owner.open(store).position.horizon == NEXT


def test_a_horizon_that_is_higher_already_stays(store: RocksDBStore) -> None:
    nine_events(store)
    owner = Owner.open(store)
    owner.commit(to=replace(owner.position, horizon=50))
    store.close()
    with raw(store) as db:
        flip(db, packed_key(2, 2))
    assert set_aside(store).horizon == 50


def test_nothing_is_set_aside_under_an_owner(store: RocksDBStore, tmp_path: Path) -> None:
    nine_events(store)
    with Peer(tmp_path / "state") as peer:
        assert peer.ask("open").startswith("epoch")
        with pytest.raises(StoreLocked, match=rf"orders\[0\].*process {peer.pid} on host .*stop"):
            set_aside(store)
    assert not set_aside(store).rows


HOPELESS: dict[str, tuple[Damage, str]] = {
    "position damaged": (lambda db: flip(db, POSITION_KEY), "the position is damaged"),
    "position gone": (lambda db: db.delete(POSITION_KEY), "the position is missing"),
    "position of an old copy": (
        lambda db: db.put(packed_key(3, 7), db[packed_key(3, 4)]),
        "the position is older than the packed row 7",
    ),
    "a kind of row from a newer release": (lambda db: db.put(b"\x04x", b""), "newer release"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_where_setting_aside_does_not_help_nothing_is_changed_and_the_way_out_is_told(
    store: RocksDBStore, name: str
) -> None:
    damage, says = HOPELESS[name]
    nine_events(store)
    with raw(store) as db:
        damage(db)
        flip(db, packed_key(2, 2))
    before = rows(store)
    with pytest.raises(StoreCorrupt, match=rf"orders\[0\]: .*{says}.*Put back a copy"):
        set_aside(store)
    assert rows(store) == before


def test_a_damaged_table_is_no_row_to_set_aside(store: RocksDBStore) -> None:
    nine_events(store)
    with raw(store) as db:
        db.flush()
    (table, *_) = sorted(folder_of(store).path.glob("*.sst"))
    content = bytearray(table.read_bytes())
    content[40] ^= 1
    table.write_bytes(content)
    with pytest.raises(StoreCorrupt, match=r"orders\[0\]: .*Put back a copy") as told:
        set_aside(store)
    assert "effectonce quarantine" not in str(told.value)  # this was it


def test_the_error_of_a_damaged_row_names_the_command_that_sets_it_aside(
    store: RocksDBStore,
) -> None:
    nine_events(store)
    with raw(store) as db:
        flip(db, packed_key(2, 2))
    command = (
        f"effectonce quarantine rocksdb://{store.path} --scope payments --group billing "
        "--topic orders --partition 0"
    )
    with pytest.raises(StoreCorrupt) as told:
        store.open(AT, TOPIC_ID)
    assert str(told.value).endswith(command)


@pytest.mark.parametrize("seed", range(40))
def test_after_any_damage_but_the_positions_exactly_the_rows_that_were_lost_are_new(
    store: RocksDBStore, seed: int
) -> None:
    chance = random.Random(seed)
    owner = Owner.open(store)
    held: dict[bytes, set[int]] = {}
    for seq in range(12):
        if seq and chance.random() < 0.3:
            entered = owner.position.generations[-1].generation + chance.randint(1, 2)
            owner.position = next_generation(owner.position, entered, floor=1)
        numbers = range(seq * 10, seq * 10 + chance.randint(1, 9))
        held[packed_key(owner.position.generations[-1].generation, seq)] = {*numbers}
        owner.commit(numbers, outcomes={0: VALUE} if chance.random() < 0.5 else None)
    store.close()
    lost: set[int] = set()
    with raw(store) as db:
        for key, old in list(all_rows(db, b"")):
            if key[:1] in (PACKED, GENERATION, OUTCOME) and chance.random() < 0.4:
                lost |= held.get(key, set())
                value = bytearray(old)
                if chance.random() < 0.5:
                    del db[key]
                else:
                    value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
                    db[key] = bytes(value[: chance.choice((len(value), chance.randrange(1, 60)))])
    done = set_aside(store)
    everything = sorted(set.union(*held.values()))
    kept = Owner.open(store).seen(*everything)
    assert {n for n, known in zip(everything, kept, strict=True) if not known} == lost
    assert done.missing or done.keys <= len(lost)
    store.close()
    assert not set_aside(store).rows
