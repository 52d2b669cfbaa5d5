"""What memory holds of one partition's database, and how it is read from the disk.

Read whole or not at all: every packed row that is kept is decoded, and they must be numbered from
the first of the oldest generation to `next_seq` without a gap, or the reading is StoreCorrupt. So a
key that is not in the index is proven to have no marker, but for rows that a person set aside.

Iterators are read to their end inside one function, and dropped there: RocksDB's LOCK stays held
as long as one lives, be it only in the traceback of an error that somebody keeps. And only their
`status()` tells a damaged block from the end of the rows: rocksdict's `items()` ends in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from rocksdict import Rdict

from effectonce.errors import StoreCorrupt
from effectonce.model import Marker, Status
from effectonce.stores.encoding import (
    GENERATION,
    PACKED,
    POSITION_KEY,
    SET_ASIDE,
    PackedRow,
    PositionRow,
    decode_generation,
    decode_outcome,
    decode_packed,
    decode_position,
    join_columns,
    outcome_key,
    packed_place,
)
from effectonce.stores.marked import MarkedKeys, new_index, room_for
from effectonce.stores.overlay import Row

CHUNK: Final = 256
"""Rows read at once: 3 MB of packed rows, and a short hold of the partition's lock in a scan."""


@dataclass(slots=True)
class Image:
    """One partition in memory: complete, exact, and thrown away whole when in doubt."""

    row: PositionRow
    marked: MarkedKeys = field(default_factory=MarkedKeys)
    first_seqs: dict[int, int] = field(default_factory=dict)
    """Of each generation: its first packed row. A start may move where a generation lies in the
    log (topic recreated), never where its rows begin."""

    def drop_below(self, floor: int) -> None:
        """Forget the generations below `floor`."""
        self.first_seqs = {g: seq for g, seq in self.first_seqs.items() if g >= floor}
        self.marked.drop_below(floor)


def load(db: Rdict) -> Image | None:
    """All of a partition; None where nothing was ever written. Raises StoreCorrupt."""
    value = db.get(POSITION_KEY)
    if value is None:
        if read_rows(db, b"", b"", limit=1):
            raise StoreCorrupt("the position is missing, though other rows are there")
        return None
    row = decode_position(value)
    starts = [decode_generation(*each) for each in all_rows(db, GENERATION)]
    generations = tuple(start for start, _ in starts)
    row = replace(row, position=replace(row.position, generations=generations))
    image = Image(row, first_seqs={start.generation: seq for start, seq in starts})
    _fill(image, db)
    return image


def read_position(db: Rdict) -> PositionRow | None:
    """The position alone, without its generations."""
    value = db.get(POSITION_KEY)
    return None if value is None else decode_position(value)


def find(db: Rdict, key: bytes) -> Marker | None:
    """The youngest marker of `key`, with its outcome unless that was set aside: a whole scan."""
    found: Marker | None = None
    for packed in packed_rows(db):
        at = packed.row_of(key)
        if at is not None:
            found = packed.marker(at)
    if found is None or found.status is Status.DONE:
        return found
    row_key = outcome_key(found.generation, key)
    value = db.get(row_key)
    if value is not None:
        return replace(found, outcome=decode_outcome(row_key, value))
    if db.get(SET_ASIDE + row_key) is not None:
        return found
    raise StoreCorrupt(f"an outcome of generation {found.generation} is missing")


def packed_rows(db: Rdict) -> Iterator[PackedRow]:
    """Every packed row in the order in which they were written."""
    for key, value in all_rows(db, PACKED):
        yield decode_packed(key, value)


def set_aside(db: Rdict) -> Iterator[tuple[int, int]]:
    """Generation and seq of each packed row that a person set aside."""
    for key, _ in all_rows(db, SET_ASIDE):
        place = packed_place(key[len(SET_ASIDE) :])
        if place is not None:
            yield place


def all_rows(db: Rdict, prefix: bytes) -> Iterator[Row]:
    """Rows whose key begins with `prefix`, in key order."""
    start = prefix
    while rows := read_rows(db, prefix, start, CHUNK):
        yield from rows
        start = rows[-1][0] + b"\0"


def read_rows(db: Rdict, prefix: bytes, start: bytes, limit: int) -> list[Row]:
    """At most `limit` rows from the key `start` on, while their key begins with `prefix`."""
    rows: list[Row] = []
    cursor = db.iter()
    try:
        cursor.seek(start)
        while len(rows) < limit and cursor.valid():
            key = cursor.key()
            if not key.startswith(prefix):
                break
            rows.append((key, cursor.value()))
            cursor.next()
        cursor.status()
    finally:
        del cursor
    return rows


def _fill(image: Image, db: Rdict) -> None:
    """Build the index from the packed rows of this run, and prove that none is missing."""
    next_seq, first_seqs = image.row.next_seq, image.first_seqs
    expected = min(first_seqs.values(), default=next_seq)
    rows_left = next_seq - expected
    aside = {seq for _, seq in set_aside(db)}
    chunk: list[PackedRow] = []
    for packed in packed_rows(db):
        expected = _past(aside, expected)
        _check_place(packed, expected, first_seqs.get(packed.generation))
        expected += 1
        chunk.append(packed)
        if len(chunk) == CHUNK:
            _insert(image, chunk, rows_left)
            rows_left -= CHUNK
            chunk.clear()
    _insert(image, chunk, rows_left)
    expected = _past(aside, expected)
    if expected != next_seq:
        raise StoreCorrupt(f"the packed rows {expected} to {next_seq - 1} are missing")


def _past(aside: set[int], seq: int) -> int:
    while seq in aside:
        seq += 1
    return seq


def _check_place(packed: PackedRow, expected: int, first: int | None) -> None:
    if first is None or packed.seq < first:
        raise StoreCorrupt(f"{packed} stands outside of its generation")
    if packed.seq != expected:
        raise StoreCorrupt(f"the packed row {expected} is missing, {packed.seq} comes instead")


def _insert(image: Image, chunk: list[PackedRow], rows_left: int) -> None:
    rows = [packed for packed in chunk if packed.run == image.row.position.run]
    if not rows:
        return
    keys, fingerprints = join_columns(rows)
    marked = image.marked
    if not len(marked.index):
        # room for all at once, guessed from the first rows, so that the table need not grow
        marked.index = new_index(capacity=room_for(len(keys) * rows_left // len(rows)))
    position = marked.index.insert(keys, fingerprints)
    for packed in rows:
        marked.first_position.setdefault(packed.generation, position)
        position += packed.count
