"""Stored bytes come back as they went in, or are refused: never another value, never a crash."""

from collections.abc import Callable
from dataclasses import replace
from struct import error as StructError  # noqa: N812  an exception, though its name is small

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from effectonce.errors import StoreCorrupt
from effectonce.model import GenerationStart, Markers, Outcome, OutcomeKind, Position, Status
from effectonce.stores.encoding import (
    POSITION_KEY,
    PackedRow,
    PositionRow,
    decode_generation,
    decode_outcome,
    decode_packed,
    decode_position,
    describe,
    encode_generation,
    encode_outcome,
    encode_packed,
    encode_position,
    generation_key,
    join_columns,
    outcome_key,
    packed_key,
)
from effectonce.testing.owner import EVERY_FIELD, VALUE, markers_of

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
i64 = st.integers(-(2**63), 2**63 - 1)
ids = st.binary(min_size=16, max_size=16)
eight = st.binary(min_size=8, max_size=8)

positions = st.builds(
    Position,
    store_id=ids,
    topic_id=ids,
    epoch=u64,
    next=i64,
    leader_epoch=st.integers(-(2**31), 2**31 - 1),
    commit_id=ids,
    run=u32,
    horizon=i64,
    log_time_ms=i64,
    floor=u32,
    marked_until=i64,
    stalled_opens=u32,
    attempt_offset=i64,
    attempts=u32,
    pinned_start=i64,
    identify_fingerprint=eight,
    window_seconds=u32,
    wall_ms=i64,
    in_flight=st.booleans(),
)
position_rows = st.builds(PositionRow, positions, incarnation=eight, next_seq=u64)
outcomes = st.builds(Outcome, st.sampled_from(OutcomeKind), st.binary(max_size=99))
starts = st.builds(GenerationStart, generation=u32, offset=i64, until=i64, log_time_ms=i64)


@st.composite
def marker_columns(draw: st.DrawFn) -> Markers:
    count = draw(st.integers(1, 40))
    spread = draw(st.sampled_from([3, 2**32 - 1, 2**34]))
    offsets = draw(st.integers(0, 2**40)) + draw(
        hnp.arrays(np.int64, count, elements=st.integers(0, spread))
    )
    return Markers(
        keys=draw(hnp.arrays(np.uint64, (count, 2))),
        fingerprints=draw(hnp.arrays(np.uint32, count)),
        offsets=offsets,
        outcomes=draw(st.dictionaries(st.integers(0, count - 1), outcomes, max_size=3)),
    )


def in_generation(generation: int) -> Position:
    return replace(EVERY_FIELD, generations=(GenerationStart(generation, 0, 0, 0),))


def packed(markers: Markers, generation: int = 7, seq: int = 3) -> list[tuple[bytes, bytes]]:
    return list(encode_packed(in_generation(generation), markers, seq))


def resealed(key: bytes, body: bytes) -> bytes:
    return body + xxh3_64_digest(body, xxh3_64_intdigest(key))


# one value of each kind, and what reads it
Decoder = Callable[[bytes, bytes], object]
PACKED_KEY, PACKED_VALUE = packed(markers_of([1, 2, 3], 9, {1: VALUE}))[0]
GENERATION_KEY, GENERATION_VALUE = encode_generation(GenerationStart(7, 5, 5, 6), 3)
OUTCOME_KEY = outcome_key(7, bytes(range(16)))
KINDS: dict[str, tuple[bytes, bytes, Decoder]] = {
    "position": (
        POSITION_KEY,
        encode_position(PositionRow(EVERY_FIELD, b"12345678", 9)),
        lambda _, value: decode_position(value),
    ),
    "packed": (PACKED_KEY, PACKED_VALUE, decode_packed),
    "generation": (GENERATION_KEY, GENERATION_VALUE, decode_generation),
    "outcome": (OUTCOME_KEY, encode_outcome(OUTCOME_KEY, VALUE), decode_outcome),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


# -- round trips --


@given(position_rows)
def test_every_field_of_a_position_comes_back(row: PositionRow) -> None:
    assert decode_position(encode_position(row)) == row


def test_the_example_position_leaves_no_field_at_its_default() -> None:
    plain = Position(store_id=b"", topic_id=b"", epoch=0)
    same = [
        f for f in Position.__dataclass_fields__ if getattr(EVERY_FIELD, f) == getattr(plain, f)
    ]
    assert same == ["commit_id"]


@given(marker_columns(), u32, st.integers(0, 2**60))
def test_every_column_of_a_packed_row_comes_back(
    markers: Markers, generation: int, seq: int
) -> None:
    encoded = packed(markers, generation, seq)
    rows = [decode_packed(key, value) for key, value in encoded]
    assert [row.seq for row in rows] == list(range(seq, seq + len(rows)))
    assert sum(row.count for row in rows) == len(markers)
    keys, fingerprints = join_columns(rows)
    assert keys.tobytes() == markers.keys.tobytes()
    assert fingerprints.tolist() == markers.fingerprints.tolist()
    back = [row.marker(i) for row in rows for i in range(row.count)]
    assert [m.offset for m in back] == markers.offsets.tolist()
    kinds = {None: Status.DONE, OutcomeKind.VALUE: Status.HAS_OUTCOME}
    for i, marker in enumerate(back):
        outcome = markers.outcomes.get(i)
        expected = kinds.get(outcome.kind if outcome else None, Status.UNSTORABLE)
        assert (marker.status, marker.generation) == (expected, generation)
        assert marker.key == markers.keys[i].tobytes()
        assert (marker.run, marker.epoch) == (EVERY_FIELD.run, EVERY_FIELD.epoch)


@given(starts, u64)
def test_a_generations_start_comes_back(start: GenerationStart, seq: int) -> None:
    assert decode_generation(*encode_generation(start, seq)) == (start, seq)


@given(outcomes, u32, ids)
def test_an_outcome_comes_back(outcome: Outcome, generation: int, event_key: bytes) -> None:
    key = outcome_key(generation, event_key)
    assert decode_outcome(key, encode_outcome(key, outcome)) == outcome


def test_a_batch_too_large_or_too_wide_for_one_row_is_split() -> None:
    assert len(packed(markers_of(range(65_535), 0))) == 1
    assert len(packed(markers_of(range(65_536), 0))) == 2
    wide = replace(markers_of([1, 2], 0), offsets=np.array([2**32, 0]))
    assert [decode_packed(*row).base_offset for row in packed(wide)] == [2**32, 0]
    widest = replace(wide, offsets=np.array([2**32 - 1, 0]))
    assert len(packed(widest)) == 1


def test_the_status_column_is_there_only_when_needed() -> None:
    plain, flagged = (packed(markers_of([1, 2], 0, o))[0][1] for o in ({}, {0: VALUE}))
    assert len(flagged) - len(plain) == 2


def test_a_key_is_found_only_where_a_key_begins() -> None:
    markers = markers_of([1, 2], 0)
    row = decode_packed(*packed(markers)[0])
    raw = markers.keys.tobytes()
    assert (row.row_of(raw[:16]), row.row_of(raw[16:])) == (0, 1)
    assert row.row_of(raw[8:24]) is None
    straddled = np.frombuffer(b"a" * 8 + b"b" * 16 + b"c" * 8 + b"b" * 16, np.uint64)
    three = replace(markers_of([1, 2, 3], 0), keys=straddled.reshape(-1, 2))
    assert decode_packed(*packed(three)[0]).row_of(b"b" * 16) == 2


def test_packed_rows_sort_by_generation_then_seq() -> None:
    keys = [packed_key(g, s) for g in (0, 1, 255, 256, 2**32 - 1) for s in (0, 255, 256, 2**63)]
    assert keys == sorted(keys)
    assert packed_key(2**32 - 1, 2**64 - 1) < generation_key(0)


# -- refusals --


@each_kind
def test_a_value_of_each_kind_is_read(kind: str) -> None:
    key, value, decode = KINDS[kind]
    assert decode(key, value) is not None


@each_kind
@given(data=st.data())
def test_a_flipped_bit_is_refused(kind: str, data: st.DataObject) -> None:
    key, value, decode = KINDS[kind]
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    flipped = bytearray(value)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoreCorrupt):
        decode(key, bytes(flipped))


@each_kind
def test_a_value_cut_off_anywhere_is_refused(kind: str) -> None:
    key, value, decode = KINDS[kind]
    for length in range(len(value)):
        with pytest.raises(StoreCorrupt):
            decode(key, value[:length])
        with pytest.raises(StoreCorrupt):
            decode(key, resealed(key, value[:-8][:length])[:length])


@each_kind
@given(tail=st.binary(min_size=1, max_size=40))
def test_a_value_with_a_tail_is_refused(kind: str, tail: bytes) -> None:
    key, value, decode = KINDS[kind]
    with pytest.raises(StoreCorrupt):
        decode(key, value + tail)
    if kind != "outcome":  # its data may have any length
        with pytest.raises(StoreCorrupt):
            decode(key, resealed(key, value[:-8] + tail))


@each_kind
def test_another_version_is_refused_with_advice(kind: str) -> None:
    key, value, decode = KINDS[kind]
    with pytest.raises(StoreCorrupt, match="version 2, this release reads version 1"):
        decode(key, resealed(key, b"\x02" + value[1:-8]))


@pytest.mark.parametrize("kind", ["packed", "generation", "outcome"])
def test_a_sound_value_under_anothers_key_is_refused(kind: str) -> None:
    key, value, decode = KINDS[kind]
    other = key[:-1] + bytes([key[-1] ^ 1])
    with pytest.raises(StoreCorrupt):
        decode(other, value)


@each_kind
@given(body=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(kind: str, body: bytes) -> None:
    key, value, decode = KINDS[kind]
    for candidate in (body, resealed(key, body), resealed(key, value[:1] + body)):
        try:
            decoded = decode(key, candidate)
        except StoreCorrupt:
            continue
        assert kind != "packed" or isinstance(decoded, PackedRow)


@given(st.binary(max_size=30))
def test_a_strange_key_is_refused(key: bytes) -> None:
    assume(key not in (PACKED_KEY, GENERATION_KEY))
    for decode in (decode_packed, decode_generation):
        with pytest.raises(StoreCorrupt):
            decode(key, resealed(key, PACKED_VALUE[:-8]))


@pytest.mark.parametrize(("kind", "at"), [("position", 1), ("packed", 1)])
def test_an_unknown_flag_is_refused(kind: str, at: int) -> None:
    key, value, decode = KINDS[kind]
    body = bytearray(value[:-8])
    body[at] |= 0x80
    with pytest.raises(StoreCorrupt, match="unknown flags"):
        decode(key, resealed(key, bytes(body)))


def test_an_unknown_status_kind_or_class_is_refused() -> None:
    body = bytearray(PACKED_VALUE[:-8])
    body[-1] = 9
    row = decode_packed(PACKED_KEY, resealed(PACKED_KEY, bytes(body)))
    with pytest.raises(StoreCorrupt, match="unknown status 9"):
        row.marker(2)
    with pytest.raises(StoreCorrupt, match="unknown kind 9"):
        decode_outcome(OUTCOME_KEY, resealed(OUTCOME_KEY, b"\x01\x09"))
    other_class = PACKED_KEY[:1] + b"\x01" + PACKED_KEY[2:]
    with pytest.raises(StoreCorrupt, match="window class 1"):
        decode_packed(other_class, resealed(other_class, PACKED_VALUE[:-8]))


def test_what_does_not_fit_its_column_is_not_written() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        encode_position(PositionRow(replace(EVERY_FIELD, topic_id=b"short"), bytes(8)))
    with pytest.raises(ValueError, match="8 bytes"):
        encode_position(PositionRow(EVERY_FIELD, b"short"))
    with pytest.raises(StructError):
        encode_position(PositionRow(replace(EVERY_FIELD, run=2**32), bytes(8)))


def test_a_description_never_shows_an_event_key() -> None:
    assert describe(OUTCOME_KEY) == "an outcome of generation 7"
    assert describe(PACKED_KEY) == "the packed row 3 of generation 7"
    assert describe(GENERATION_KEY) == "the start of generation 7"
    assert describe(POSITION_KEY) == "the position"
    assert describe(b"\x10secret") == "a row of unknown kind 10"
