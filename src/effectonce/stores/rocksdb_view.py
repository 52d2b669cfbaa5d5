"""What a partition's database holds, for people: read beside its owner, or without one.

| seen                                    | told as                         |
| --------------------------------------- | ------------------------------- |
| a row that does not decode              | `unreadable`                    |
| a row that others say must be there     | `unreadable`, with no value     |
| packed rows not numbered without a gap  | `missing`                       |
| a row that was set aside (`0F`)         | no gap; it is counted           |

No row that cannot be read is passed over, and only a view that is `whole` can say that an event ID
has no marker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from rocksdict import Rdict

from effectonce.errors import StoreCorrupt
from effectonce.model import GenerationStart, Marker, Partition, Status
from effectonce.stores.encoding import (
    GENERATION,
    OUTCOME,
    PACKED,
    POSITION_KEY,
    SET_ASIDE,
    PositionRow,
    decode_generation,
    decode_outcome,
    decode_packed,
    decode_position,
    describe,
    generation_key,
    outcome_key,
    packed_place,
)
from effectonce.stores.rocksdb_beside import read_beside_owner
from effectonce.stores.rocksdb_files import Folder, partition_numbers
from effectonce.stores.rocksdb_image import all_rows, read_rows, set_aside
from effectonce.stores.rocksdb_options import Shared

_BEYOND_OUTCOMES: Final = bytes([OUTCOME[0] + 1])


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that does not decode, or does not fit the rows beside it."""

    key: bytes
    why: str
    value: bytes = b""


@dataclass(slots=True)
class View:
    """One moment of a partition's database."""

    row: PositionRow | None = None
    starts: dict[int, tuple[GenerationStart, int]] = field(default_factory=dict)
    """Of each generation: where it begins, and the number of its first packed row."""
    markers: Counter[int] = field(default_factory=Counter)
    """Of each generation: how many."""
    first_seqs: dict[int, int] = field(default_factory=dict)
    """Of each generation with packed rows, readable or set aside or not: the lowest number."""
    found: list[Marker] = field(default_factory=list)
    """The markers of the key that was asked for, in the order of their commits: one a run."""
    unreadable: list[Unreadable] = field(default_factory=list)
    missing: list[range] = field(default_factory=list)
    """Numbers of packed rows."""
    set_aside: int = 0

    @property
    def whole(self) -> bool:
        """Whether what does not stand here stands nowhere in the database."""
        return not (self.missing or self.unreadable)


# -- which partitions ------------------------------------------------------------------------------


def partitions(root: Path) -> Iterator[Partition]:
    """Every partition that has a database under `root`."""
    for topic in sorted(root.glob("*/*/*")):
        scope, group, name = map(_unquoted, topic.relative_to(root).parts)
        for number in sorted(partition_numbers(topic)):
            yield Partition(scope, group, name, number)


def _unquoted(name: str) -> str:
    return "" if name == "%" else unquote(name)


# -- a view ----------------------------------------------------------------------------------------


def look(folder: Folder, shared: Shared, key: bytes | None = None) -> View:
    """The partition as it is now, with the markers of `key`.

    Raises StoreUnavailable or StoreCorrupt if RocksDB itself cannot read its files.
    """
    return read_beside_owner(folder, shared, lambda db: read(db, key))


def read(db: Rdict, key: bytes | None = None) -> View:
    """All of an open database but the user's rows and other keys' outcomes."""
    view = View()
    aside = {each[len(SET_ASIDE) :] for each, _ in all_rows(db, SET_ASIDE)}
    view.set_aside = len(aside)
    _read_position(view, db)
    for row_key, value in all_rows(db, GENERATION):
        with _noting(view, row_key, value):
            start, first_seq = decode_generation(row_key, value)
            view.starts[start.generation] = start, first_seq
    _note_gaps(view, [*_read_markers(view, db, key), *set_aside(db)])
    view.found = [_with_outcome(view, db, marker, aside) for marker in view.found]
    for row_key, value in read_rows(db, b"", _BEYOND_OUTCOMES, limit=1):
        if row_key < SET_ASIDE:
            why = f"{describe(row_key)}: was it written by a newer release?"
            view.unreadable.append(Unreadable(row_key, why, value))
    return view


def unreadable_outcomes(db: Rdict) -> Iterator[Unreadable]:
    """Every outcome that does not decode. There may be gigabytes of them to read."""
    for key, value in all_rows(db, OUTCOME):
        try:
            decode_outcome(key, value)
        except StoreCorrupt as error:
            yield Unreadable(key, str(error), value)


def _read_position(view: View, db: Rdict) -> None:
    value = db.get(POSITION_KEY)
    if value is not None:
        with _noting(view, POSITION_KEY, value):
            view.row = decode_position(value)
    elif read_rows(db, b"", b"", limit=1):
        why = "the position is missing, though other rows are there"
        view.unreadable.append(Unreadable(POSITION_KEY, why))


def _read_markers(view: View, db: Rdict, key: bytes | None) -> list[tuple[int, int]]:
    """Notes markers; returns generation and seq of each packed row, readable or not."""
    places = []
    for row_key, value in all_rows(db, PACKED):
        if (place := packed_place(row_key)) is not None:
            places.append(place)
        with _noting(view, row_key, value):
            packed = decode_packed(row_key, value)
            view.markers[packed.generation] += packed.count
            at = packed.row_of(key) if key is not None else None
            if at is not None:
                view.found.append(packed.marker(at))
    return places


def _note_gaps(view: View, places: list[tuple[int, int]]) -> None:
    for generation, seq in places:
        view.first_seqs[generation] = min(seq, view.first_seqs.get(generation, seq))
    noted = {each.key for each in view.unreadable}
    for generation in sorted(view.markers.keys() - view.starts.keys()):
        if (key := generation_key(generation)) not in noted:
            view.unreadable.append(Unreadable(key, f"{describe(key)} is missing"))
    if view.row is None:
        return
    next_seq = view.row.next_seq
    seqs = {seq for _, seq in places}
    if seqs and max(seqs) >= next_seq:
        why = f"the position is older than the packed row {max(seqs)}"
        view.unreadable.append(Unreadable(POSITION_KEY, why))
    firsts = [first for _, first in view.starts.values()]
    # rows set aside stay behind when their generation is dropped: they begin nothing
    kept = (seq for generation, seq in places if generation >= view.row.position.floor)
    view.missing = _gaps(min([*firsts, *kept], default=next_seq), next_seq, seqs)


def _gaps(first: int, stop: int, known: set[int]) -> list[range]:
    gaps, expected = [], first
    for number in [*sorted(n for n in known if first <= n < stop), stop]:
        if number > expected:
            gaps.append(range(expected, number))
        expected = number + 1
    return gaps


def _with_outcome(view: View, db: Rdict, marker: Marker, aside: set[bytes]) -> Marker:
    if marker.status is Status.DONE:
        return marker
    key = outcome_key(marker.generation, marker.key)
    value = db.get(key)
    if value is not None:
        with _noting(view, key, value):
            return replace(marker, outcome=decode_outcome(key, value))
    elif key not in aside:
        view.unreadable.append(Unreadable(key, f"{describe(key)} is missing"))
    return marker


@contextmanager
def _noting(view: View, key: bytes, value: bytes) -> Iterator[None]:
    try:
        yield
    except StoreCorrupt as error:
        view.unreadable.append(Unreadable(key, str(error), value))
