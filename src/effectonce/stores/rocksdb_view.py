"""What a partition's database holds, for people: read beside its owner, or without one.

A database is opened for reading only, which takes no LOCK and writes nothing. What then comes to
light is told as it is; no row that cannot be read is passed over.

| seen                                    | told as                                              |
| --------------------------------------- | ---------------------------------------------------- |
| a row that does not decode              | `unreadable`                                         |
| packed rows not numbered without a gap  | `missing`                                            |
| files that vanish during the open       | opened again, at most 20 times; then `torn`          |
| a row that was set aside (`0F`)         | no gap; it is counted                                |

Beside a writer, an open reads the list of files first and the logs after. If the owner turns a log
into a table in between, its rows are in neither: missing, in 56 of 619 opens at 20,000 rows a
second, without an error. A gap in the middle shows in the numbers; one at the beginning need not,
so the oldest log must be there before the open and after: logs go oldest first. Only a view that is
`whole` can say that an event ID has no marker.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
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
    packed_seq,
)
from effectonce.stores.rocksdb_files import Folder, failure, partition_numbers
from effectonce.stores.rocksdb_image import all_rows, read_rows
from effectonce.stores.rocksdb_options import Shared, open_beside_owner

OPENS: Final = 20
"""Nearly half of them fail beside a writer that does nothing but write."""

_BEYOND_OUTCOMES: Final = bytes([OUTCOME[0] + 1])

# struct flock, its members' order and the places of l_type and l_pid
_FLOCK, _TYPE, _PID = ("qqihh", 3, 2) if sys.platform == "darwin" else ("hhqqi0q", 0, 4)


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
    found: list[Marker] = field(default_factory=list)
    """The markers of the key that was asked for, in the order of their commits: one a run."""
    unreadable: list[Unreadable] = field(default_factory=list)
    missing: list[range] = field(default_factory=list)
    """Numbers of packed rows."""
    set_aside: int = 0
    torn: bool = False

    @property
    def whole(self) -> bool:
        """Whether what does not stand here stands nowhere in the database."""
        return not (self.torn or self.missing or self.unreadable)


# -- which partitions, and whose -------------------------------------------------------------------


def partitions(root: Path) -> Iterator[Partition]:
    """Every partition that has a database under `root`."""
    for topic in sorted(root.glob("*/*/*")):
        scope, group, name = map(_unquoted, topic.relative_to(root).parts)
        for number in sorted(partition_numbers(topic)):
            yield Partition(scope, group, name, number)


def _unquoted(name: str) -> str:
    return "" if name == "%" else unquote(name)


def holder(folder: Folder) -> str | None:
    """Who holds the LOCK, without taking it for a moment; None where it is free.

    The kernel knows, and OWNER adds the host. But of our own LOCK the kernel tells us nothing, and
    drops it when we close any handle of that file: then OWNER must do.
    """
    try:
        signed = (folder.path / "OWNER").read_text().split()
    except OSError:
        signed = []
    if signed == [str(os.getpid()), socket.gethostname()]:
        return folder.owner()
    asked = [0] * 5
    asked[_TYPE] = fcntl.F_WRLCK
    try:
        with (folder.path / "LOCK").open("rb") as lock:
            answer = fcntl.fcntl(lock, fcntl.F_GETLK, struct.pack(_FLOCK, *asked))
    except OSError:
        return None
    told = struct.unpack(_FLOCK, answer)
    if told[_TYPE] == fcntl.F_UNLCK:
        return None
    pid = str(told[_PID])
    return folder.owner() if signed[:1] == [pid] or pid == "0" else f"process {pid}"


# -- a view ----------------------------------------------------------------------------------------


def look(folder: Folder, shared: Shared, key: bytes | None = None) -> View:
    """The partition as it is now, with the markers of `key`.

    Raises StoreUnavailable or StoreCorrupt if RocksDB itself cannot read its files.
    """
    view: View | None = None
    problem: Exception | None = None
    for _ in range(OPENS):
        try:
            view = _open_and_read(folder.path, shared, key)
        except Exception as error:  # noqa: BLE001  rocksdict knows no better type
            problem = error
            continue
        if not (view.torn or view.missing):
            return view
    if view is not None:
        return view
    assert problem is not None
    raise failure(problem, folder.at, folder.path) from problem


def _open_and_read(path: Path, shared: Shared, key: bytes | None) -> View:
    before = _oldest_log(path)
    db = open_beside_owner(path, shared)
    try:
        torn = before != _oldest_log(path)
        view = read(db, key)
    finally:
        db.close()
    view.torn = torn
    return view


def _oldest_log(path: Path) -> str | None:
    return min((each.name for each in path.glob("*.log")), default=None)


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
    seqs = _read_markers(view, db, key)
    _note_gaps(view, seqs, aside)
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


def _read_markers(view: View, db: Rdict, key: bytes | None) -> list[int]:
    seqs = []
    for row_key, value in all_rows(db, PACKED):
        seq = packed_seq(row_key)
        if seq is not None:
            seqs.append(seq)
        with _noting(view, row_key, value):
            packed = decode_packed(row_key, value)
            view.markers[packed.generation] += packed.count
            at = packed.row_of(key) if key is not None else None
            if at is not None:
                view.found.append(packed.marker(at))
    return seqs


def _note_gaps(view: View, seqs: list[int], aside: Iterable[bytes]) -> None:
    noted = {each.key for each in view.unreadable}
    for generation in sorted(view.markers.keys() - view.starts.keys()):
        if (key := generation_key(generation)) not in noted:
            view.unreadable.append(Unreadable(key, f"{describe(key)} is missing"))
    if view.row is None:
        return
    next_seq = view.row.next_seq
    if seqs and max(seqs) >= next_seq:
        why = f"the position is older than the packed row {max(seqs)}"
        view.unreadable.append(Unreadable(POSITION_KEY, why))
    first = min([*(seq for _, seq in view.starts.values()), *seqs], default=next_seq)
    known = {*seqs, *(seq for each in aside if (seq := packed_seq(each)) is not None)}
    view.missing = _gaps(first, next_seq, known)


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
