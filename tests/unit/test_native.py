"""What is written in C: the same answers as its twins, and no length that it trusts."""

from __future__ import annotations

import gc
import uuid
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from effectonce.core.plan import Columns, may_repeat_inside, may_repeat_sorted, plan
from effectonce.identity import only_header
from effectonce.identity.identify import fingerprints_in_python
from effectonce.identity.keys import uuid_keys_at_once
from effectonce.model import Keys, Known, Partition
from effectonce.native import native
from effectonce.stores.encoding import columns_in_numpy

AT = Partition("scope", "group", "topic", 0)


def keys_of(raw: bytes) -> Keys:
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


# -- UUIDs -----------------------------------------------------------------------------------------

UUIDS = st.uuids().map(lambda each: str(each).encode())


@st.composite
def nearly(draw: st.DrawFn) -> bytes:
    """A UUID with one byte that may be another."""
    text = bytearray(draw(UUIDS))
    text[draw(st.integers(0, 35))] = draw(st.integers(0, 255))
    return bytes(text)


IDS = st.lists(UUIDS | nearly() | st.binary(max_size=40) | st.none(), max_size=6)


@settings(max_examples=500)
@given(IDS)
def test_an_id_is_a_uuid_in_c_where_it_is_one_in_python(ids: list[bytes | None]) -> None:
    assert native is not None
    made, twin = native.uuid_keys(ids), uuid_keys_at_once(ids)
    assert (made is None) == (twin is None)
    assert made is None or twin is None or made == twin.tobytes()


def test_every_byte_at_every_place_of_a_uuid_is_judged_as_in_python() -> None:
    assert native is not None
    text = str(uuid.UUID("3f0a1c64-9a3c-4d7e-8f52-0c1f5d9e7a10")).encode()
    for at in range(36):
        for byte in range(256):
            ids: list[bytes | None] = [text[:at] + bytes([byte]) + text[at + 1 :]]
            twin = uuid_keys_at_once(ids)
            assert native.uuid_keys(ids) == (None if twin is None else twin.tobytes()), ids


# -- repeats inside a batch ------------------------------------------------------------------------


@given(st.lists(st.sampled_from(range(300)), max_size=200))
def test_a_repeat_is_seen_wherever_it_stands(numbers: list[int]) -> None:
    assert native is not None
    keys = keys_of(b"".join(n.to_bytes(16, "big") for n in numbers))
    assert native.may_repeat(keys) == (len(set(numbers)) < len(numbers))


def test_keys_that_crowd_one_place_are_called_equal_and_not_compared_for_ever() -> None:
    assert native is not None
    words = np.arange(1, 50_001, dtype=np.uint64)
    odd = np.uint64(0x9E3779B97F4A7C15)
    crowded = np.stack([words * odd, words], axis=1)  # all mix to nothing
    assert may_repeat_sorted(crowded)
    assert native.may_repeat(crowded)


def test_a_batch_beyond_sixteen_bits_is_looked_at_in_numpy() -> None:
    keys = np.arange(2 * 70_000, dtype=np.uint64).reshape(-1, 2)
    assert not may_repeat_inside(keys[:3])
    assert may_repeat_inside(np.concatenate([keys, keys[:1]]))


# -- fingerprints, decisions, columns --------------------------------------------------------------


@given(st.lists(st.binary(max_size=300) | st.none(), max_size=20))
def test_a_fingerprint_is_the_same_in_c_and_a_null_value_is_left_to_python(
    values: list[bytes | None],
) -> None:
    assert native is not None
    found = native.fingerprints(values, xxh3_64_intdigest)
    twin = fingerprints_in_python(values)
    assert (
        found is None
        if None in values
        else np.frombuffer(found or b"", np.uint32).tolist() == twin.tolist()
    )


@pytest.mark.parametrize("digest", [str, lambda value: 1 // 0], ids=["text", "error"])
def test_what_a_digest_raises_is_let_through(digest: Any) -> None:
    assert native is not None
    with pytest.raises((TypeError, ZeroDivisionError)):
        native.fingerprints([b"a"], digest)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 2)), max_size=70))
def test_a_batch_is_planned_in_c_as_in_python(rows: list[tuple[bool, int, int]]) -> None:
    keys = np.arange(2 * len(rows), dtype=np.uint64).reshape(-1, 2)
    columns = Columns(AT, np.arange(len(rows)), keys, np.array([r[1] for r in rows], np.uint32))
    known = Known(
        np.array([r[0] for r in rows], np.bool_), np.array([r[2] for r in rows], np.uint32)
    )
    fast, slow = plan(columns, known, 0), plan(columns, known, 0, in_front={b"": (0, 0)})
    assert fast.decisions.tolist() == slow.decisions.tolist()
    assert fast.runs.tolist() == slow.runs.tolist()
    assert (fast.size, fast.blocked_by) == (slow.size, slow.blocked_by)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float64])
def test_what_another_store_knows_in_other_types_is_planned_all_the_same(kind: type) -> None:
    keys, own = np.arange(6, dtype=np.uint64).reshape(-1, 2), np.array([7, 8, 9], np.uint32)
    columns = Columns(AT, np.arange(3), keys, np.array([7, 0, 8, 0, 9, 0], np.uint32)[::2])
    known: Any = Known(np.array([True, False, True]), own.astype(kind))
    assert plan(columns, known, 0).runs.tolist() == [1]


ROWS = st.tuples(
    st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
)


@given(st.lists(ROWS, min_size=1, max_size=40))
def test_a_packed_row_has_the_same_bytes_in_c(rows: list[tuple[bytes, int, int]]) -> None:
    assert native is not None
    keys = keys_of(b"".join(row[0] for row in rows))
    fingerprints = np.array([row[1] for row in rows], np.uint32)
    offsets = np.array([row[2] for row in rows], np.int64)
    assert native.columns(keys, fingerprints, offsets) == columns_in_numpy(
        keys, fingerprints, offsets
    )


@pytest.mark.parametrize(("seen", "known", "own"), [(3, 8, 12), (3, 12, 11), (0, 4, 0), (1, 4, 8)])
def test_fingerprints_of_other_rows_are_refused(seen: int, known: int, own: int) -> None:
    assert native is not None
    given = (np.zeros(length, np.uint8) for length in (seen, known, own))
    with pytest.raises(ValueError, match="fingerprints"):
        native.repeats(next(given), next(given), next(given), 3)


@pytest.mark.parametrize(
    ("keys", "prints", "offsets"), [(0, 0, 0), (15, 4, 8), (16, 8, 8), (16, 4, 16), (32, 4, 8)]
)
def test_columns_of_other_lengths_are_refused(keys: int, prints: int, offsets: int) -> None:
    assert native is not None
    with pytest.raises(ValueError, match="no keys"):
        native.columns(*(np.zeros(length, np.uint8) for length in (keys, prints, offsets)))


# -- messages --------------------------------------------------------------------------------------

NAMES = st.sampled_from(["event-id", "event-ID", "", "\u00e9"])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=3) | st.none()), max_size=2)
ODD = st.sampled_from(
    [None, (), [()], [("event-id",)], [["event-id", b"a"]], [(b"event-id", b"a")], [(1, b"a")]]
)


@given(st.lists(HEADERS, max_size=5))
def test_the_only_header_is_found_in_c_where_it_is_in_python(columns: list[Any]) -> None:
    assert native is not None
    twin = only_header(columns, "event-id", len(columns))
    assert native.only_header(columns, lambda headers: headers, "event-id") == twin


@given(st.lists(HEADERS | ODD, max_size=5))
def test_what_no_client_gives_is_left_to_the_general_path(columns: list[Any]) -> None:
    assert native is not None
    found = native.only_header(columns, lambda headers: headers, "event-id")
    assert found is None or found == only_header(columns, "event-id", len(columns))


def test_a_message_that_cannot_be_read_is_named_and_every_other_error_is_let_through() -> None:
    assert native is not None

    def read(number: int) -> object:
        if number == 2:
            raise SystemError("a hole")
        return [("event-id", b"a")]

    assert native.only_header([0, 1, 2, 3], read, "event-id") == 2
    with pytest.raises(ZeroDivisionError):
        native.only_header([0, 1], lambda number: 1 // number, "event-id")
    with pytest.raises(TypeError):
        native.only_header((), read, "event-id")  # type: ignore[arg-type]


def test_what_the_collector_no_longer_walks_is_freed_as_ever() -> None:
    assert native is not None
    gone: list[int] = []

    class Message:
        def __init__(self, number: int) -> None:
            self.headers = [("event-id", b"%d" % number)]
            self.number = number

        def __del__(self) -> None:
            gone.append(self.number)

    messages: list[Any] = [Message(number) for number in range(3)]
    assert native.survey([*messages, b"no container", object], nothing_of, type) is not None
    found = native.only_header(messages, attrgetter("headers"), "event-id")
    assert found == [b"0", b"1", b"2"]
    assert not any(map(gc.is_tracked, messages))
    assert not any(gc.is_tracked(message.headers) for message in messages)
    del messages
    assert gone == [2, 1, 0]


def nothing_of(message: object) -> None:
    """No error."""


@pytest.mark.parametrize(
    ("partitions", "found"),
    [
        ([], None),
        ([3], 3),
        ([3, 3, 3], 3),
        ([300, 300], [300, 300]),
        ([0, 0, 1, 0], [0, 0, 1, 0]),
        ([0, 1], [0, 1]),
    ],
)
def test_each_message_has_its_own_partition_whether_they_are_one_or_many(
    partitions: list[int], found: object
) -> None:
    assert native is not None
    messages = [[int(str(partition))] for partition in partitions]
    assert native.survey(messages, nothing_of, lambda message: message[0]) == found


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_error_among_messages_is_never_taken_for_a_message(at: int) -> None:
    assert native is not None
    messages = [["", 0], ["", 1], ["", 1], ["", 0]]
    messages[at][0] = "error"
    assert native.survey(messages, lambda m: m[0] or None, lambda m: m[1]) is None


@pytest.mark.parametrize("at", [0, 1])
def test_what_asking_a_message_raises_is_let_through(at: int) -> None:
    assert native is not None
    messages = [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(ZeroDivisionError):
        native.survey(messages, nothing_of, lambda m: 1 // (m is not messages[at]))
    with pytest.raises(ZeroDivisionError):
        native.survey(messages, lambda m: None if 1 // (m is not messages[at]) else m, len)
    with pytest.raises(TypeError):
        native.survey((), nothing_of, len)  # type: ignore[arg-type]


# -- buffers that do not fit -----------------------------------------------------------------------


def table(**other: Any) -> dict[str, Any]:
    """Arguments of `put` for a table of two buckets and ten keys."""
    return {
        "keys": np.zeros((3, 2), np.uint64),
        "secret": bytes(24),
        "tags": np.zeros(2 * 16, np.uint16),
        "rows": np.zeros(2 * 16, np.uint32),
        "log": np.zeros((10, 2), np.uint64),
        "fill": np.zeros(2, np.uint8),
        "spilled": np.zeros(4, np.uint32),
        "start": 0,
        **other,
    }


@pytest.mark.parametrize(
    "other",
    [
        {"keys": np.zeros(3, np.uint8)},
        {"secret": bytes(23)},
        {"tags": np.zeros(16, np.uint16)},
        {"tags": np.zeros(0, np.uint16), "rows": np.zeros(0, np.uint32)},
        {"rows": np.zeros(31, np.uint32)},
        {"log": np.zeros(17, np.uint8)},
        {"log": np.zeros((2, 2), np.uint64)},
        {"fill": np.zeros(3, np.uint8)},
        {"spilled": np.zeros(3, np.uint32)},
        {"spilled": np.zeros(17, np.uint8)[1:]},
        {"start": 8},
        {"start": -1},
    ],
)
def test_a_buffer_of_another_length_is_refused_and_nothing_beyond_it_written(other: Any) -> None:
    assert native is not None
    with pytest.raises(ValueError, match=r"index|table"):
        native.put(*table(**other).values())


def test_a_table_that_was_written_over_is_not_read_beyond_its_log() -> None:
    assert native is not None
    damaged = table(tags=np.ones(32, np.uint16), rows=np.full(32, 2**32 - 1, np.uint32))
    keys, secret, tags, rows, log = list(damaged.values())[:5]
    found, full = native.find(keys, secret, tags, rows, log, 0, 0)
    assert np.frombuffer(found, np.int64).tolist() == [-1] * 3
    assert len(full) == 3 * 4


def test_a_bucket_that_says_it_holds_more_than_it_can_is_full() -> None:
    assert native is not None
    full = table(fill=np.full(2, 255, np.uint8))
    native.put(*full.values())
    assert full["spilled"].tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("of", [9, 11, 0])
def test_fingerprints_of_another_table_are_refused(of: int) -> None:
    assert native is not None
    keys, secret, tags, rows, log = list(table().values())[:5]
    with pytest.raises(ValueError, match="table"):
        native.marked(keys, secret, tags, rows, log, np.zeros(of, np.uint32), 0)
    seen, found = native.marked(keys, secret, tags, rows, log, np.zeros(10, np.uint32), 0)
    assert (seen, found) == (bytearray(3), bytearray(12))


@pytest.mark.parametrize("ids", [(), None, {}])
def test_what_is_no_list_is_refused(ids: Any) -> None:
    assert native is not None
    with pytest.raises(TypeError):
        native.uuid_keys(ids)
