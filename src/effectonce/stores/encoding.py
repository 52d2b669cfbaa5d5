"""What an embedded store writes, byte by byte.

Big-endian throughout. Every value carries its own version and checksum, and a reader that does not
understand a byte says so instead of guessing.

| key                                    | value                                                   |
| -------------------------------------- | ------------------------------------------------------- |
| `00`                                   | the partition's position, next_seq, incarnation         |
| `01` class u8, generation u32, seq u64 | a commit's markers, packed: header, then columns        |
| `02` class u8, generation u32          | where a generation begins, and the seq of its first row |
| `03` class u8, generation u32, key 16  | the outcome of one marker, where there is one           |
| `0F` a row's key                       | that row as it was: unreadable, set aside by a person   |
| `10` the user's key                    | the user's value, as it is                              |

Classes keep windows of different length apart; there is one so far, 0. Rows `01` are numbered by
`seq` without a gap, so a missing row is found as surely as a damaged one; one that was set aside
leaves none.

The checksum is XXH3-64 of the value, seeded with that of the key: a sound value under another's
key does not pass either. (The library is here for fingerprints already; 2 µs for a row of 500.)

Packed row: version u8, flags u8, n u16, run u32, epoch u64, base offset i64, log time i64, wall
i64, trace id and span id 24 (zero so far); keys n × 16, fingerprints n × u32, offsets less the
base n × u32, statuses n × u8 only where one is not DONE; checksum u64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from effectonce.errors import StoreCorrupt
from effectonce.model import (
    Fingerprints,
    GenerationStart,
    Keys,
    Marker,
    Markers,
    Offsets,
    Outcome,
    OutcomeKind,
    Position,
    Status,
)
from effectonce.native import native
from effectonce.stores.commits import generation_of, status_of
from effectonce.values import dataclass

VERSION: Final = 1
MAX_ROWS: Final = 2**16 - 1
MAX_DELTA: Final = 2**32 - 1

POSITION_KEY: Final = b"\x00"
PACKED: Final = b"\x01"
GENERATION: Final = b"\x02"
OUTCOME: Final = b"\x03"
SET_ASIDE: Final = b"\x0f"
USER: Final = b"\x10"

_CLASS: Final = 0
_KEY: Final = 16
_CHECKSUM: Final = 8
_GENERATION_KEY: Final = Struct(">cBI")
_PACKED_KEY: Final = Struct(">cBIQ")
_OUTCOME_KEY: Final = Struct(">cBI16s")

_POSITION: Final = Struct(
    ">BB"  # version, flags
    "16s16s8s"  # store id, topic id, incarnation
    "Qqi16sI"  # epoch, next, leader epoch, commit id, run
    "qqIq"  # horizon, log time, floor, marked until
    "IqIq"  # stalled opens, attempt offset, attempts, pinned start
    "8sIqQ"  # identify fingerprint, window seconds, wall, next seq
)
POSITION_BYTES: Final = _POSITION.size + _CHECKSUM
_PACKED: Final = Struct(">BBHIQqqq24s")  # as above
_GENERATION: Final = Struct(">BQqqqq")  # version, first seq, offset, until, log time, entered
_OUTCOME: Final = Struct(">BB")  # version, kind; then the data

_IN_FLIGHT: Final = 1
_HAS_STATUS: Final = 1
_NO_TRACE: Final = bytes(24)

_U32: Final = np.dtype(">u4")
_STATUSES: Final = frozenset(Status)
_OUTCOME_KINDS: Final = frozenset(OutcomeKind)


# -- checksum and version --------------------------------------------------------------------------


def seal(key: bytes, body: bytes) -> bytes:
    """The value of `key`: its body and the checksum of both."""
    return body + xxh3_64_digest(body, xxh3_64_intdigest(key))


def unseal(key: bytes, value: bytes, name: str) -> memoryview:
    """The body of a value, which its checksum proves whole; `name` is for people."""
    if len(value) <= _CHECKSUM:
        raise StoreCorrupt(f"{name} is cut off: {len(value)} bytes")
    body = memoryview(value)[:-_CHECKSUM]
    if xxh3_64_digest(body, xxh3_64_intdigest(key)) != value[-_CHECKSUM:]:
        raise StoreCorrupt(f"{name} is damaged: its checksum does not fit its {len(value)} bytes")
    return body


def _unseal(key: bytes, value: bytes) -> memoryview:
    """As `unseal`, and a version that this release reads."""
    body = unseal(key, value, describe(key))
    if body[0] != VERSION:
        raise StoreCorrupt(
            f"{describe(key)} has version {body[0]}, this release reads version {VERSION}: "
            "was it written by a newer one?"
        )
    return body


def _unpack(layout: Struct, key: bytes, body: memoryview) -> tuple[Any, ...]:
    if len(body) != layout.size:
        raise StoreCorrupt(f"{describe(key)} has {len(body)} bytes instead of {layout.size}")
    return layout.unpack(body)


def _known_flags(key: bytes, flags: int, known: int) -> int:
    if flags & ~known:
        raise StoreCorrupt(f"{describe(key)} has unknown flags {flags:#04x}")
    return flags


def describe(key: bytes) -> str:
    """Which row a key names, without anything of an event ID."""
    kind, rest = key[:1], key[1:]
    generation = int.from_bytes(rest[1:5], "big")
    if kind == PACKED and len(key) == _PACKED_KEY.size:
        seq = int.from_bytes(rest[5:], "big")
        return f"the packed row {seq} of generation {generation}"
    if kind == GENERATION and len(key) == _GENERATION_KEY.size:
        return f"the start of generation {generation}"
    if kind == OUTCOME and len(key) == _OUTCOME_KEY.size:
        return f"an outcome of generation {generation}"
    return "the position" if key == POSITION_KEY else f"a row of unknown kind {kind.hex()}"


# -- 00: the position ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PositionRow:
    """Row `00`: the position without its generations, and what only the store needs."""

    position: Position
    incarnation: bytes
    """Random, new with each epoch: tells an owner's row from that of a restored copy."""
    next_seq: int = 0
    """The number that the next packed row will get."""


def encode_position(row: PositionRow) -> bytes:
    """The value of row `00`. Raises struct.error for a number beyond its column."""
    p = row.position
    _ids_fit(p, row.incarnation)
    body = _POSITION.pack(
        VERSION,
        _IN_FLIGHT if p.in_flight else 0,
        p.store_id,
        p.topic_id,
        row.incarnation,
        p.epoch,
        p.next,
        p.leader_epoch,
        p.commit_id,
        p.run,
        p.horizon,
        p.log_time_ms,
        p.floor,
        p.marked_until,
        p.stalled_opens,
        p.attempt_offset,
        p.attempts,
        p.pinned_start,
        p.identify_fingerprint,
        p.window_seconds,
        p.wall_ms,
        row.next_seq,
    )
    return seal(POSITION_KEY, body)


def decode_position(value: bytes) -> PositionRow:
    """Row `00`, with no generations yet: they are rows `02`. Raises StoreCorrupt."""
    fields = _unpack(_POSITION, POSITION_KEY, _unseal(POSITION_KEY, value))
    flags = _known_flags(POSITION_KEY, fields[1], _IN_FLIGHT)
    position = Position(
        store_id=fields[2],
        topic_id=fields[3],
        epoch=fields[5],
        next=fields[6],
        leader_epoch=fields[7],
        commit_id=fields[8],
        run=fields[9],
        horizon=fields[10],
        log_time_ms=fields[11],
        floor=fields[12],
        marked_until=fields[13],
        stalled_opens=fields[14],
        attempt_offset=fields[15],
        attempts=fields[16],
        pinned_start=fields[17],
        identify_fingerprint=fields[18],
        window_seconds=fields[19],
        wall_ms=fields[20],
        in_flight=bool(flags & _IN_FLIGHT),
    )
    return PositionRow(position, incarnation=fields[4], next_seq=fields[21])


def _ids_fit(position: Position, incarnation: bytes) -> None:
    """Struct would pad and cut in silence."""
    ids = (position.store_id, position.topic_id, position.commit_id)
    if any(len(each) != 16 for each in ids):
        raise ValueError("store id, topic id and commit id have 16 bytes each")
    if len(position.identify_fingerprint) != 8 or len(incarnation) != 8:
        raise ValueError("identify fingerprint and incarnation have 8 bytes each")


# -- 01: a commit's markers, packed ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Row `01`: the header decoded, the columns where they lie."""

    generation: int
    seq: int
    count: int
    run: int
    epoch: int
    base_offset: int
    log_time_ms: int
    wall_ms: int
    has_status: bool
    value: bytes

    def key_bytes(self) -> bytes:
        """The keys, 16 bytes each, one after another."""
        return self.value[_PACKED.size : self._column(_KEY)]

    def fingerprint_bytes(self) -> bytes:
        """The fingerprints, big-endian u32, one after another."""
        return self.value[self._column(_KEY) : self._column(_KEY + 4)]

    def row_of(self, key: bytes) -> int | None:
        """The row in which `key` stands."""
        start, end = _PACKED.size, self._column(_KEY)
        at = self.value.find(key, start, end)
        while at >= 0 and (at - start) % _KEY:
            at = self.value.find(key, at + 1, end)
        return (at - start) // _KEY if at >= 0 else None

    def marker(self, row: int) -> Marker:
        """The marker in `row`, without its outcome."""
        at = _PACKED.size + _KEY * row
        deltas = np.frombuffer(self.value, _U32, self.count, self._column(_KEY + 4))
        fingerprints = np.frombuffer(self.value, _U32, self.count, self._column(_KEY))
        status = self.value[self._column(_KEY + 8) + row] if self.has_status else 0
        if status not in _STATUSES:
            raise StoreCorrupt(f"{self} has unknown status {status}")
        return Marker(
            key=self.value[at : at + _KEY],
            fingerprint=int(fingerprints[row]),
            status=Status(status),
            offset=self.base_offset + int(deltas[row]),
            generation=self.generation,
            run=self.run,
            epoch=self.epoch,
            log_time_ms=self.log_time_ms,
            wall_ms=self.wall_ms,
        )

    def __str__(self) -> str:
        return f"the packed row {self.seq} of generation {self.generation}"

    def _column(self, bytes_before: int) -> int:
        return _PACKED.size + bytes_before * self.count


def packed_key(generation: int, seq: int = 0) -> bytes:
    """The key of a packed row; without a seq, where the generation's rows begin."""
    return _PACKED_KEY.pack(PACKED, _CLASS, generation, seq)


def packed_place(key: bytes) -> tuple[int, int] | None:
    """Generation and seq of the packed row that `key` names; None if it names no such row."""
    if not key.startswith(PACKED) or len(key) != _PACKED_KEY.size:
        return None
    _, _, generation, seq = _PACKED_KEY.unpack(key)
    return generation, seq


def most_keys(value: bytes) -> int:
    """How many keys a packed row of this length can hold, whatever it says itself."""
    return max(len(value) - _PACKED.size - _CHECKSUM, 0) // (_KEY + 8)


def encode_packed(position: Position, markers: Markers, seq: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a commit's packed rows, numbered from `seq`.

    One, unless the batch is larger, or reaches over more offsets, than a row's columns hold.
    """
    generation = generation_of(position)
    statuses = _statuses(markers)
    for number, (rows, base, columns) in enumerate(_pieces(markers)):
        key = packed_key(generation, seq + number)
        head = _PACKED.pack(
            VERSION,
            0 if statuses is None else _HAS_STATUS,
            len(markers.offsets[rows]),
            position.run,
            position.epoch,
            base,
            position.log_time_ms,
            position.wall_ms,
            _NO_TRACE,
        )
        behind = b"" if statuses is None else statuses[rows].tobytes()
        yield key, seal(key, b"".join((head, columns, behind)))


def count_packed(markers: Markers) -> int:
    """How many packed rows `encode_packed` makes of them."""
    return sum(1 for _ in _spans(markers.offsets, 0, len(markers)))


def decode_packed(key: bytes, value: bytes) -> PackedRow:
    """Row `01`. Raises StoreCorrupt."""
    generation, seq = _numbers(_PACKED_KEY, key)
    body = _unseal(key, value)
    if len(body) < _PACKED.size:
        raise StoreCorrupt(f"{describe(key)} has no whole header: {len(body)} bytes")
    _, flags, count, run, epoch, base, log_time, wall, _ = _PACKED.unpack_from(body)
    has_status = bool(_known_flags(key, flags, _HAS_STATUS))
    if not count or len(body) != _PACKED.size + count * (_KEY + 8 + has_status):
        raise StoreCorrupt(f"{describe(key)} has {len(body)} bytes for {count} keys")
    return PackedRow(generation, seq, count, run, epoch, base, log_time, wall, has_status, value)


def join_columns(rows: Sequence[PackedRow]) -> tuple[Keys, Fingerprints]:
    """The keys and fingerprints of many rows as two arrays."""
    keys = np.frombuffer(b"".join([row.key_bytes() for row in rows]), np.uint64)
    fingerprints = np.frombuffer(b"".join([row.fingerprint_bytes() for row in rows]), _U32)
    return keys.reshape(-1, 2), fingerprints.astype(np.uint32)


def _statuses(markers: Markers) -> NDArray[np.uint8] | None:
    if not markers.outcomes:
        return None
    statuses = np.zeros(len(markers), np.uint8)
    for row, outcome in markers.outcomes.items():
        statuses[row] = status_of(outcome)
    return statuses


def _spans(offsets: Offsets, first: int, stop: int) -> Iterator[slice]:
    """Rows that fit into one packed row each."""
    part = offsets[first:stop]
    if _fits(len(part), int(part.min()), int(part.max())):
        yield slice(first, stop)
    else:
        middle = (first + stop) // 2
        yield from _spans(offsets, first, middle)
        yield from _spans(offsets, middle, stop)


def _fits(rows: int, least: int, greatest: int) -> bool:
    return rows <= MAX_ROWS and greatest - least <= MAX_DELTA


def _pieces(markers: Markers) -> Iterator[tuple[slice, int, bytes]]:
    """Rows that go into one packed row, its base offset and its columns up to the offsets'."""
    keys, fingerprints, offsets = markers.keys, markers.fingerprints, markers.offsets
    least, greatest, columns = _columns(keys, fingerprints, offsets)
    if _fits(len(markers), least, greatest):
        yield slice(None), least, columns
        return
    for rows in _spans(offsets, 0, len(markers)):
        least, _, columns = _columns(keys[rows], fingerprints[rows], offsets[rows])
        yield rows, least, columns


def _columns(keys: Keys, fingerprints: Fingerprints, offsets: Offsets) -> tuple[int, int, bytes]:
    """The least offset, the greatest, and the columns; those are of no use if it is too far."""
    if native is None:
        return columns_in_numpy(keys, fingerprints, offsets)
    whole = np.ascontiguousarray
    return native.columns(whole(keys), whole(fingerprints), whole(offsets))


def columns_in_numpy(
    keys: Keys, fingerprints: Fingerprints, offsets: Offsets
) -> tuple[int, int, bytes]:
    """The same, without C."""
    least = int(offsets.min())
    deltas = (offsets - least).astype(_U32)
    columns = keys.tobytes() + fingerprints.astype(_U32).tobytes() + deltas.tobytes()
    return least, int(offsets.max()), columns


# -- 02: where a generation begins -----------------------------------------------------------------


def generation_key(generation: int) -> bytes:
    """The key of a generation's start."""
    return _GENERATION_KEY.pack(GENERATION, _CLASS, generation)


def encode_generation(start: GenerationStart, first_seq: int) -> tuple[bytes, bytes]:
    """Key and value of row `02`; `first_seq` numbers the generation's first packed row."""
    key = generation_key(start.generation)
    numbers = (start.offset, start.until, start.log_time_ms, start.entered)
    body = _GENERATION.pack(VERSION, first_seq, *numbers)
    return key, seal(key, body)


def decode_generation(key: bytes, value: bytes) -> tuple[GenerationStart, int]:
    """Row `02` and its first seq. Raises StoreCorrupt."""
    (generation,) = _numbers(_GENERATION_KEY, key)
    _, first_seq, *numbers = _unpack(_GENERATION, key, _unseal(key, value))
    return GenerationStart(generation, *numbers), first_seq


def _numbers(layout: Struct, key: bytes) -> list[int]:
    """What follows kind and class in a key."""
    if len(key) != layout.size:
        raise StoreCorrupt(f"{describe(key)} has a key of {len(key)} bytes")
    _, window_class, *numbers = layout.unpack(key)
    if window_class != _CLASS:
        raise StoreCorrupt(f"{describe(key)} has the unknown window class {window_class}")
    return numbers


# -- 03: an outcome --------------------------------------------------------------------------------


def outcome_key(generation: int, key: bytes) -> bytes:
    """The key of the outcome that belongs to the marker of `key`."""
    return _OUTCOME_KEY.pack(OUTCOME, _CLASS, generation, key)


def encode_outcome(key: bytes, outcome: Outcome) -> bytes:
    """The value of row `03` under `key`."""
    return seal(key, _OUTCOME.pack(VERSION, outcome.kind) + outcome.data)


def decode_outcome(key: bytes, value: bytes) -> Outcome:
    """Row `03`. Raises StoreCorrupt."""
    body = _unseal(key, value)
    if len(body) < _OUTCOME.size:
        raise StoreCorrupt(f"{describe(key)} is cut off: {len(body)} bytes")
    _, kind = _OUTCOME.unpack_from(body)
    if kind not in _OUTCOME_KINDS:
        raise StoreCorrupt(f"{describe(key)} is of unknown kind {kind}")
    return Outcome(OutcomeKind(kind), bytes(body[_OUTCOME.size :]))
