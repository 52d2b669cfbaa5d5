"""What Redis holds, key by key and byte by byte.

TAG is the scope, or with layout="partition" scope:group:topic:number, each percent-encoded, and
behind that :packed with index="local"; the braces put all keys of a TAG into one slot of a Cluster.
RUN and GENERATION are decimal.

| key                                      | type   | holds                                        |
| ---------------------------------------- | ------ | -------------------------------------------- |
| effectonce:id                            | string | the store's id, 16 random bytes              |
| effectonce:{TAG}                         | hash   | `generations`: (run u32, generation u32)*,   |
|                                          |        | those that hold markers; `mark`: 8 random    |
|                                          |        | bytes, new with every commit of markers      |
| effectonce:{TAG}:positions               | hash   | partition -> its row, as below               |
| effectonce:{TAG}:markers:RUN:GENERATION  | hash   | key, 16 bytes -> marker, 33 bytes            |
|   where the TAG ends in :packed          | list   | a commit's markers each: seq u64, at random, |
|                                          |        | and row `01` of encoding.py of that seq      |
| effectonce:{TAG}:outcomes:RUN:GENERATION | hash   | key -> outcome, where there is one           |
| effectonce:{TAG}:rows:PARTITION          | hash   | the rows of a `tx`                           |
| effectonce:{SCOPE}:partitions            | set    | layout="partition" only: all ever opened     |
| effectonce:{TAG}:held                    | string | nothing: written before WAIT and WAITAOF     |

PARTITION is group:topic:number, percent-encoded.

A row of positions begins with what the scripts compare as bytes: incarnation 8, epoch u64, commit
id 16, the incarnation that wrote it 8, floor u32. Then row `00` of encoding.py, the starts of its
generations (u32, i64, i64, i64, i64)*, and the XXH3-64 of it all, seeded with PARTITION's.
The incarnation is random, new with each open. A failover that lost a suffix hands out an epoch, and
with it commit ids, a second time: only the incarnation tells their owners apart.

A marker is fingerprint u32, status u8, offset i64, epoch u32, log time i64, wall i64. 33 bytes are
the most that fit into Valkey's entries of 71 bytes a key; with 16 it would be 54 (measured).
Packed it takes 24 (batches of 1000; 25 with 100), and nobody can look one up there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from struct import Struct
from typing import Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from effectonce.errors import StoreCorrupt
from effectonce.model import GenerationStart, Marker, Markers, Partition, Position, Status
from effectonce.stores.commits import status_of
from effectonce.stores.encoding import (
    POSITION_BYTES,
    PackedRow,
    PositionRow,
    decode_packed,
    decode_position,
    encode_packed,
    encode_position,
    packed_key,
    seal,
    unseal,
)
from effectonce.values import dataclass

PREFIX: Final = "effectonce"
NO_INCARNATION: Final = bytes(8)

_HEAD: Final = Struct(">8sQ16s8sI")
_START: Final = Struct(">Iqqqq")
_PAIR: Final = Struct(">II")
_FENCE: Final = Struct(">8sQ")
_MARKER: Final = Struct(">IBqIqq")
MARKER_BYTES: Final = _MARKER.size
MARK_BYTES: Final = 8
_COLUMNS: Final = np.dtype(
    [
        ("key", "V16"),
        ("fingerprint", ">u4"),
        ("status", "u1"),
        ("offset", ">i8"),
        ("epoch", ">u4"),
        ("log_time", ">i8"),
        ("wall", ">i8"),
    ]
)
_STATUSES: Final = frozenset(Status)


# -- keys ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Space:
    """The keys of one TAG; all of them share a slot."""

    prefix: str
    tag: str
    is_packed: bool = False
    """Whether markers lie in lists, by commit, instead of in hashes, by key."""

    @property
    def scope(self) -> str:
        return f"{self.prefix}:{{{self.tag}}}"

    @property
    def positions(self) -> str:
        return f"{self.scope}:positions"

    def markers(self, pair: tuple[int, int]) -> str:
        """Where the markers of a run and a generation are."""
        return f"{self.scope}:markers:{pair[0]}:{pair[1]}"

    def outcomes(self, pair: tuple[int, int]) -> str:
        return f"{self.scope}:outcomes:{pair[0]}:{pair[1]}"

    def rows(self, at: Partition) -> str:
        return f"{self.scope}:rows:{partition_name(at)}"


@lru_cache(maxsize=4096)
def quoted(name: str) -> str:
    """Any name, without a brace, a colon or a byte beyond ASCII; no two names alike."""
    return quote(name, safe="")


def topic_name(group: str, topic: str) -> str:
    """What the names of a topic's partitions begin with."""
    return f"{quoted(group)}:{quoted(topic)}:"


@lru_cache(maxsize=4096)
def partition_name(at: Partition) -> str:
    """The PARTITION of the table."""
    return f"{topic_name(at.group, at.topic)}{at.number}"


def pairs_of(answer: list[bytes]) -> dict[bytes, bytes]:
    """A hash, as HGETALL in a script answers it."""
    return dict(zip(answer[::2], answer[1::2], strict=True))


def rows_under(answer: list[bytes], prefix: bytes) -> list[tuple[bytes, bytes]]:
    """The user's rows whose key begins with `prefix`, in key order: Redis keeps none."""
    return sorted(row for row in pairs_of(answer).items() if row[0].startswith(prefix))


# -- generations -----------------------------------------------------------------------------------


def encode_pairs(pairs: list[tuple[int, int]]) -> bytes:
    """The value of `generations`."""
    return b"".join(_PAIR.pack(*pair) for pair in pairs)


def decode_pairs(packed: bytes, where: str) -> list[tuple[int, int]]:
    """Runs and generations that hold markers. Raises StoreCorrupt."""
    if len(packed) % _PAIR.size:
        raise StoreCorrupt(f"{where}: the list of its generations has {len(packed)} bytes")
    return [(run, generation) for run, generation in _PAIR.iter_unpack(packed)]


# -- positions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One partition's row: the position, whose it is, and who wrote it last."""

    position: Position
    incarnation: bytes = NO_INCARNATION
    writer: bytes = NO_INCARNATION


@dataclass(frozen=True, slots=True)
class Ownership:
    """What this process knows of a row that it has opened."""

    incarnation: bytes
    epoch: int
    commit_id: bytes | None
    """As it stands in the row; None after a commit without an answer."""

    @property
    def fence(self) -> bytes:
        """What the row begins with while this ownership period lasts."""
        return _FENCE.pack(self.incarnation, self.epoch)

    @property
    def whole_fence(self) -> bytes:
        """As `fence`, and a row that has lost its last commits does not begin so."""
        return self.fence + (self.commit_id or b"")


def encode_row(name: str, row: Row) -> bytes:
    """The value under `name`. Raises struct.error for a number beyond its column."""
    p = row.position
    head = _HEAD.pack(row.incarnation, p.epoch, p.commit_id, row.writer, p.floor)
    starts = [
        _START.pack(g.generation, g.offset, g.until, g.log_time_ms, g.entered)
        for g in p.generations
    ]
    position = encode_position(PositionRow(p, row.incarnation))
    return seal(name.encode(), b"".join((head, position, *starts)))


def decode_row(name: str, value: bytes) -> Row:
    """Raises StoreCorrupt."""
    body = unseal(name.encode(), value, f"the position of {name}")
    starts = body[_HEAD.size + POSITION_BYTES :]
    if len(body) < _HEAD.size + POSITION_BYTES or len(starts) % _START.size:
        raise StoreCorrupt(f"the position of {name} has {len(body)} bytes")
    found = decode_position(bytes(body[_HEAD.size : _HEAD.size + POSITION_BYTES]))
    generations = tuple(GenerationStart(*each) for each in _START.iter_unpack(starts))
    writer = _HEAD.unpack_from(body)[3]
    return Row(replace(found.position, generations=generations), found.incarnation, writer)


# -- markers ---------------------------------------------------------------------------------------


def encode_markers(markers: Markers, position: Position) -> bytes:
    """A commit's markers, each behind its key."""
    rows: NDArray[np.void] = np.empty(len(markers), _COLUMNS)
    rows["key"] = np.ascontiguousarray(markers.keys).view("V16")[:, 0]
    rows["fingerprint"] = markers.fingerprints
    rows["status"] = Status.DONE
    rows["offset"] = markers.offsets
    rows["epoch"] = position.epoch
    rows["log_time"] = position.log_time_ms
    rows["wall"] = position.wall_ms
    for row, outcome in markers.outcomes.items():
        rows["status"][row] = status_of(outcome)
    return rows.tobytes()


def encode_elements(markers: Markers, position: Position, mark: bytes) -> list[bytes]:
    """A commit's markers, packed: one element, unless a packed row cannot hold them all."""
    seq = int.from_bytes(mark[:-1]) << 8  # and so many more behind it
    return [key[-MARK_BYTES:] + value for key, value in encode_packed(position, markers, seq)]


def decode_element(element: bytes, generation: int, where: str) -> PackedRow:
    """Raises StoreCorrupt."""
    seq, value = element[:MARK_BYTES], element[MARK_BYTES:]
    try:
        return decode_packed(packed_key(generation, int.from_bytes(seq)), value)
    except StoreCorrupt as error:
        raise StoreCorrupt(f"the key {where}: {error}") from error


def decode_marker(key: bytes, value: bytes, pair: tuple[int, int]) -> Marker:
    """The marker of `key`, without its outcome. Raises StoreCorrupt."""
    where = f"a marker of generation {pair[1]}, run {pair[0]},"
    if len(value) != _MARKER.size:
        raise StoreCorrupt(f"{where} has {len(value)} bytes instead of {_MARKER.size}")
    fingerprint, status, offset, epoch, log_time, wall = _MARKER.unpack(value)
    if status not in _STATUSES:
        raise StoreCorrupt(f"{where} has the unknown status {status}")
    return Marker(
        key=key,
        fingerprint=fingerprint,
        status=Status(status),
        offset=offset,
        generation=pair[1],
        run=pair[0],
        epoch=epoch,
        log_time_ms=log_time,
        wall_ms=wall,
    )


def outcome_gone(pair: tuple[int, int]) -> StoreCorrupt:
    """A marker names an outcome that is not there."""
    return StoreCorrupt(f"an outcome of generation {pair[1]}, run {pair[0]}, is gone")
