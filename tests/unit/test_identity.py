"""Identity: keys that are stored for ever, two paths that must agree, and bytes from strangers."""

import json
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from operator import or_

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

import effectonce.identity as eo
from effectonce.identity import (
    Columns,
    Headers,
    Identified,
    Identify,
    Identity,
    ProblemKind,
    only_header,
)
from effectonce.identity import sources as sources_module
from effectonce.identity.decode import MAX_BYTES, MAX_DEPTH
from effectonce.identity.keys import EventId
from effectonce.identity.record import Record
from effectonce.identity.source import Source, Spec, chained
from effectonce.model import Offsets
from effectonce.ports import Records

SECRET = b"0123456789abcdef"
UUID = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
CANARY = "canary-7f3a"


def a_ports_records_is_what_identity_reads(records: Records) -> Columns:
    return records  # checked by mypy


@dataclass
class Rows:
    """Columns of a batch, made of records."""

    records: Sequence["Row"]
    topic: str = "payments"
    partition: int = 3

    def __len__(self) -> int:
        return len(self.records)

    def offsets(self) -> Offsets:
        return np.arange(100, 100 + len(self.records), dtype=np.int64)

    def values(self) -> list[bytes | None]:
        return [row.value for row in self.records]

    def keys(self) -> list[bytes | None]:
        return [row.key for row in self.records]

    def headers(self) -> list[Headers]:
        return [row.headers for row in self.records]

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header(self.headers(), name, len(self))


@dataclass
class Row:
    headers: Headers = None
    value: bytes | None = b"{}"
    key: bytes | None = None


@dataclass(frozen=True)
class OneByOne(Source):
    """A source without its fast way: every record is asked."""

    inner: Source

    def find(self, record: Record) -> EventId:
        return self.inner.find(record)

    def spec(self) -> Spec:
        return self.inner.spec()

    def __str__(self) -> str:
        return str(self.inner)


def identified(source: Identify, *rows: Row, secret: bytes | None = None) -> Identified:
    identity = Identity(source, secret)
    assert list(identity.problems()) == []
    return identity.identify(Rows(rows))


def key(source: Identify, row: Row, secret: bytes | None = None) -> bytes:
    found = identified(source, row, secret=secret)
    assert not found.problems
    return found.keys.tobytes()


def kind(source: Identify, row: Row) -> ProblemKind | None:
    """What is wrong with the record, or None; its key is then one."""
    found = identified(source, row)
    assert (found.keys.tobytes() == bytes(16)) == bool(found.problems)
    return found.problems[0].kind if found.problems else None


def having(**headers: str | bytes | None) -> Row:
    """A record with these headers; `_` stands for `-` in their names, unless after `ce`."""
    named = []
    for name, value in headers.items():
        raw = value.encode() if isinstance(value, str) else value
        named.append((name if name.startswith("ce_") else name.replace("_", "-"), raw))
    return Row(headers=named)


def body(document: object) -> Row:
    return Row(value=json.dumps(document).encode())


def problems(source: Identify, secret: bytes | None = None) -> str:
    return "\n".join(Identity(source, secret).problems())


# -- keys ------------------------------------------------------------------------------------------


def expected_key(raw: bytes, secret: bytes | None = None) -> bytes:
    """The rule of DESIGN, said a second time and slowly."""
    form = rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    if secret is None and re.fullmatch(form, raw):
        return uuid.UUID(raw.decode()).bytes
    digest = bytearray(blake2b(raw, digest_size=16, key=secret or b"").digest())
    digest[8] |= 0b1100_0000
    return bytes(digest)


GOLDEN = {
    "uuid": (eo.header("event-id"), having(event_id=UUID), None),
    "text": (eo.header("event-id"), having(event_id="order-1"), None),
    "secret": (eo.header("event-id"), having(event_id=UUID), SECRET),
    "cloudevent": (eo.cloudevent(), having(ce_id="1", ce_source="/a"), None),
    "number": (eo.field("order.id"), body({"order": {"id": 17}}), None),
    "payload": (eo.payload_hash(), Row(value=b'{"a": 1.50}'), None),
    "canonical": (
        eo.payload_hash(without=["at"], headers=["h"], with_key=True),
        Row([("h", b"x")], b'{"b": "\xc3\xa9", "a": 1.50, "at": 9}', b"k"),
        None,
    ),
    "nested": (
        eo.joined(eo.header("a"), eo.joined(eo.header("b"), eo.record_key())),
        Row([("a", b"1"), ("b", b"2")], key=b"3"),
        None,
    ),
    "delivery": (eo.delivery(), Row(), None),
}
GOLDEN_KEYS = {
    "uuid": "7d4448409dc041d1b2455ffdce74fad2",
    "text": "56eea00bbcad2f0aeca2cc13492405d7",
    "secret": "4b623e528e51ced4c2521692ee617b31",
    "cloudevent": "92856050bc26420cc7797b47a0d3d63b",
    "number": "1f749db43a13a74afd40d9b0a4fd3fef",
    "payload": "4496815a95e02eecd781321ef4489197",
    "canonical": "060ad44e3d6a6c3bef498e8bdc7dad50",
    "nested": "04414ce527a3594ff559b3be49164fdd",
    "delivery": "1db78943fb20d2b6e38e88c3bd0a2e23",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_key_never_changes_or_every_event_of_an_upgraded_consumer_is_new(name: str) -> None:
    source, row, secret = GOLDEN[name]
    assert key(source, row, secret).hex() == GOLDEN_KEYS[name]


@pytest.mark.parametrize(
    "text",
    [
        UUID.upper(),
        UUID.replace("7d", "7D"),
        UUID.replace("-", "_"),
        UUID.replace("-", ""),
        "{" + UUID + "}",
        UUID + "\n",
        UUID.replace("-b", "-c"),  # Microsoft's variant
        UUID.replace("-b", "-7"),  # NCS
        "00000000-0000-0000-0000-000000000000",
        UUID.replace("d", "g"),
        UUID.replace("-", "\n", 1),
        "order-1",
    ],
)
def test_what_is_no_plain_uuid_is_hashed_or_two_spellings_could_be_crafted_into_one_key(
    text: str,
) -> None:
    found = key(eo.header("event-id"), having(event_id=text))
    assert found == expected_key(text.encode())
    assert found[8] >> 6 == 0b11


def test_a_uuid_crafted_from_a_texts_hash_gets_another_key_or_it_would_suppress_that_event() -> (
    None
):
    digest = bytearray(blake2b(b"order-1", digest_size=16).digest())
    order = key(eo.header("event-id"), having(event_id="order-1"))
    for variant in (0b00, 0b01, 0b10, 0b11):
        digest[8] = (digest[8] & 0b0011_1111) | variant << 6
        crafted = str(uuid.UUID(bytes=bytes(digest)))
        assert key(eo.header("event-id"), having(event_id=crafted)) != order


def test_with_a_secret_no_id_is_stored_in_the_clear() -> None:
    for text in (UUID, "order-1"):
        found = key(eo.header("event-id"), having(event_id=text), SECRET)
        assert found == expected_key(text.encode(), SECRET)
        assert found != key(eo.header("event-id"), having(event_id=text), SECRET[::-1])
        assert found != key(eo.header("event-id"), having(event_id=text))


@pytest.mark.parametrize("text", [UUID, "order-1"])
def test_an_id_keeps_its_key_wherever_it_stands_or_moving_it_would_repeat_events(text: str) -> None:
    everywhere = {
        key(eo.header("event-id"), having(event_id=text)),
        key(eo.record_key(), Row(key=text.encode())),
        key(eo.field("id"), body({"id": text})),
        key(eo.field("id", format="msgpack"), Row(value=msgpack.packb({"id": text}))),
        key(eo.custom(lambda record: text, version="1"), Row()),
    }
    assert everywhere == {expected_key(text.encode())}


def test_joined_parts_are_prefixed_by_their_length_or_ab_c_would_be_a_bc() -> None:
    source = eo.joined(eo.header("a"), eo.header("b"))
    texts = ["a", "ab", "bc", "c", "abc", "=c", "a\0\0\0\1=c"]
    pairs = [having(a=first, b=second) for first in texts for second in texts]
    assert len({key(source, row) for row in pairs}) == len(pairs)


def test_a_part_that_is_itself_joined_is_not_confused_with_text_that_looks_like_it() -> None:
    inner = eo.joined(eo.header("b"), eo.header("c"))
    nested = eo.joined(eo.header("a"), eo.header("text") | inner)
    composite = eo.Record(Rows([having(a="1", b="2", c="3")]), 0)
    domain, data = inner.find(composite)
    assert isinstance(domain, bytes)
    assert isinstance(data, bytes)
    looks = domain + data
    assert key(nested, having(a="1", b="2", c="3")) != key(nested, having(a="1", text=looks))
    assert key(nested, having(a="1", b="2", c="3")) != key(nested, having(a="1", text=data))


# -- the fast way and the general one --------------------------------------------------------------

UUIDS = st.uuids().map(lambda u: str(u).encode())
CRAFTED = st.sampled_from(
    [
        UUID.upper().encode(),
        UUID.replace("7d", "7D").encode(),
        UUID.replace("-", "_").encode(),
        f"{UUID}\n{UUID}".encode(),
        f"{UUID}\n".encode(),
        UUID.replace("-b", "-c").encode(),
        UUID[:-1].encode(),
        UUID[1:].encode(),
        b"h" * 36,
        b"hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh",
        b"\n",
        b"a\0b",
        b"\xff\xfe",
        b"\xed\xa0\x80",  # a surrogate
        "é".encode(),
        "é".encode()[:1],
        b"x" * 1024,
        b"x" * 1025,
        b"",
        None,
    ]
)
IDS = st.one_of(UUIDS, st.binary(max_size=40), CRAFTED)
ONE_HEADER = st.tuples(st.just("id"), IDS).map(lambda header: [header])
HEADERS = st.one_of(
    st.none(),
    ONE_HEADER,
    st.lists(st.tuples(st.sampled_from(["id", "other", "ID", ""]), IDS), max_size=4),
)
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["id", "source", "at", ""]), inner, max_size=3)
        ),
        max_leaves=8,
    ).map(lambda document: json.dumps(document).encode()),
)
ANY_ROW = st.builds(Row, headers=HEADERS, value=VALUES, key=IDS)
BATCHES = st.one_of(
    st.lists(st.builds(Row, headers=ONE_HEADER, key=UUIDS), max_size=6),
    st.lists(st.builds(Row, headers=UUIDS.map(lambda raw: [("id", raw)]), key=IDS), max_size=6),
    st.lists(
        st.builds(Row, headers=UUIDS.map(lambda raw: [("o", b""), ("id", raw)]), key=UUIDS),
        max_size=6,
    ),
    st.lists(ANY_ROW, max_size=8),
)
FAST = [
    eo.header("id"),
    eo.record_key(),
    eo.header("id") | eo.record_key(),
    eo.record_key() | eo.header("id"),
    eo.header("id") | eo.joined(eo.header("other"), eo.record_key()) | eo.field("id"),
]


@given(rows=BATCHES, source=st.sampled_from(FAST), secret=st.sampled_from([None, SECRET]))
def test_the_fast_way_answers_as_the_general_one_or_an_id_would_have_two_keys(
    rows: list[Row], source: Source, secret: bytes | None
) -> None:
    fast = Identity(source, secret).identify(Rows(rows))
    slow = Identity(one_by_one(source), secret).identify(Rows(rows))
    assert fast.keys.tobytes() == slow.keys.tobytes()
    assert fast.problems == slow.problems
    assert fast.sources == slow.sources
    assert fast.keys.shape == (len(rows), 2)
    assert fast.keys.dtype == np.uint64
    for row in range(len(rows)):
        if row not in fast.problems:
            assert fast.text(row) == slow.text(row)


def one_by_one(source: Source) -> Source:
    first, *behind = chained(source)
    return reduce(or_, behind, OneByOne(first))


@given(rows=BATCHES, secret=st.sampled_from([None, SECRET]))
def test_every_key_is_the_rules_or_the_two_paths_could_be_wrong_together(
    rows: list[Row], secret: bytes | None
) -> None:
    found = Identity(eo.header("id"), secret).identify(Rows(rows))
    for number, row in enumerate(rows):
        ids = [value for name, value in row.headers or () if name == "id"]
        usable = len(ids) == 1 and ids[0] and len(ids[0]) <= 1024 and is_text(ids[0])
        assert (number in found.problems) == (not usable)
        wanted = expected_key(ids[0] or b"", secret) if usable else bytes(16)
        assert found.keys[number].tobytes() == wanted


def is_text(raw: bytes) -> bool:
    try:
        return raw.decode() is not None
    except UnicodeDecodeError:
        return False


def test_one_bad_record_does_not_touch_its_neighbours() -> None:
    good = [str(uuid.UUID(int=i << 64 | 1 << 63)) for i in range(50)]
    rows = [having(event_id=text) for text in good]
    rows[7], rows[20], rows[30] = Row(headers=None), having(event_id=b""), having(event_id="text")
    found = identified(eo.header("event-id"), *rows)
    assert {row: problem.kind for row, problem in found.problems.items()} == {
        7: ProblemKind.MISSING,
        20: ProblemKind.EMPTY,
    }
    for number, text in enumerate(good):
        if number not in (7, 20, 30):
            assert found.keys[number].tobytes() == uuid.UUID(text).bytes


def test_header_values_that_are_no_bytes_are_a_problem_or_a_faulty_client_would_stop_the_loop() -> (
    None
):
    text: bytes = UUID  # type: ignore[assignment]
    assert kind(eo.header("id"), Row(headers=[("id", text)])) is ProblemKind.UNREADABLE
    assert kind(eo.record_key(), Row(key=text)) is ProblemKind.UNREADABLE


def test_an_empty_batch_is_answered_with_nothing() -> None:
    for source in (eo.header("id"), eo.cloudevent(), eo.payload_hash()):
        for secret in (None, SECRET):
            found = identified(source, secret=secret)
            assert (found.keys.shape, len(found.fingerprints)) == ((0, 2), 0)


# -- each source -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (having(event_id="x" * 1024), None),
        (having(event_id="x" * 1025), ProblemKind.TOO_LONG),
        (having(event_id="é" * 513), ProblemKind.TOO_LONG),
        (having(event_id=""), ProblemKind.EMPTY),
        (having(event_id=None), ProblemKind.EMPTY),
        (having(event_id=b"\xff"), ProblemKind.NOT_UTF8),
        (Row(headers=[("event-id", b"a"), ("event-id", b"a")]), ProblemKind.REPEATED),
        (Row(headers=[("event-id", None), ("event-id", b"a")]), ProblemKind.REPEATED),
        (Row(headers=[("event-id", b""), ("x", b""), ("event-id", b"a")]), ProblemKind.REPEATED),
        (having(Event_Id="a"), ProblemKind.MISSING),
        (Row(headers=[]), ProblemKind.MISSING),
        (Row(headers=None), ProblemKind.MISSING),
    ],
)
def test_a_header_that_is_not_one_usable_id_is_named_for_what_it_is(
    row: Row, wanted: ProblemKind | None
) -> None:
    assert kind(eo.header("event-id"), row) is wanted
    assert kind(OneByOne(eo.header("event-id")), row) is wanted


def test_a_record_key_may_be_any_bytes_or_binary_keys_could_not_be_used() -> None:
    assert key(eo.record_key(), Row(key=b"\xff\0")) == expected_key(b"\xff\0")
    assert kind(eo.record_key(), Row(key=None)) is ProblemKind.MISSING
    assert kind(eo.record_key(), Row(key=b"")) is ProblemKind.EMPTY
    assert kind(eo.record_key(), Row(key=b"\xff" * 1025)) is ProblemKind.TOO_LONG


STRUCTURED = [("content-type", b"Application/CloudEvents+JSON; charset=UTF-8")]
EVENT = json.dumps({"specversion": "1.0", "type": "t", "id": "1", "source": "/a"}).encode()


def test_a_cloudevent_is_the_same_event_in_either_mode() -> None:
    binary = key(eo.cloudevent(), having(ce_id="1", ce_source="/a"))
    assert key(eo.cloudevent(), Row(headers=STRUCTURED, value=EVENT)) == binary
    copied = [*STRUCTURED, ("ce_id", b"2"), ("ce_source", b"/b")]
    assert key(eo.cloudevent(), Row(headers=copied, value=EVENT)) == binary
    assert (
        key(
            eo.joined(eo.header("ce_source"), eo.header("ce_id")),
            having(ce_id="1", ce_source="/a", content_type="application/json"),
        )
        == binary
    )
    assert key(eo.cloudevent(), having(ce_id="1", ce_source="/b")) != binary


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (Row(), ProblemKind.MISSING),
        (having(ce_id="1"), ProblemKind.UNREADABLE),
        (having(ce_source="/a"), ProblemKind.UNREADABLE),
        (having(ce_id="", ce_source="/a"), ProblemKind.EMPTY),
        (having(content_type=None), ProblemKind.MISSING),
        (having(content_type="application/json"), ProblemKind.MISSING),
        (Row(STRUCTURED * 2, EVENT), ProblemKind.REPEATED),
        (Row(STRUCTURED, None), ProblemKind.NULL_VALUE),
        (Row(STRUCTURED, b"["), ProblemKind.UNREADABLE),
        (Row(STRUCTURED, b"[]"), ProblemKind.UNREADABLE),
        (Row(STRUCTURED, b'{"id": "1"}'), ProblemKind.UNREADABLE),
        (Row(STRUCTURED, b'{"id": 1, "source": "/a"}'), ProblemKind.UNREADABLE),
        (Row(STRUCTURED, b'{"id": "", "source": "/a"}'), ProblemKind.EMPTY),
        (Row(STRUCTURED, b'{"id": "1", "id": "2", "source": "/a"}'), ProblemKind.REPEATED),
        (Row(STRUCTURED, b'{"id": "\\ud800", "source": "/a"}'), ProblemKind.NOT_UTF8),
        (having(content_type="application/cloudevents+avro"), ProblemKind.UNREADABLE),
        (having(content_type="application/cloudevents-batch+json"), ProblemKind.UNREADABLE),
    ],
)
def test_a_broken_cloudevent_is_a_problem_and_only_none_at_all_is_missing(
    row: Row, wanted: ProblemKind
) -> None:
    assert kind(eo.cloudevent(), row) is wanted


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"order": {"id": 17}}, "17"),
        ({"order": {"id": -(10**30)}}, str(-(10**30))),
        ({"order": {"id": "é"}}, "é"),
        ({"order": {"id": 1.0}}, ProblemKind.UNREADABLE),
        ({"order": {"id": True}}, ProblemKind.UNREADABLE),
        ({"order": {"id": {"a": 1}}}, ProblemKind.UNREADABLE),
        ({"order": {"id": ["a"]}}, ProblemKind.UNREADABLE),
        ({"order": {"id": ""}}, ProblemKind.EMPTY),
        ({"order": {"id": "x" * 1025}}, ProblemKind.TOO_LONG),
        ({"order": {"id": None}}, ProblemKind.MISSING),
        ({"order": 1}, ProblemKind.MISSING),
        ([], ProblemKind.MISSING),
    ],
)
@pytest.mark.parametrize("form", ["json", "msgpack"])
def test_a_field_is_text_or_an_integer_and_one_of_two_spellings_is_refused(
    document: object, wanted: str | ProblemKind, form: str
) -> None:
    if form == "msgpack":
        if isinstance(wanted, str) and len(wanted) > 20:
            return  # no such integer in msgpack
        source, raw = eo.field("order.id", format="msgpack"), msgpack.packb(document)
    else:
        source, raw = eo.field("order.id"), json.dumps(document).encode()
    if isinstance(wanted, str):
        assert key(source, Row(value=raw)) == expected_key(wanted.encode())
    else:
        assert kind(source, Row(value=raw)) is wanted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (None, ProblemKind.MISSING),
        (b"", ProblemKind.UNREADABLE),
        (b'{"id": 1} {}', ProblemKind.UNREADABLE),
        (b'{"id": "\xff"}', ProblemKind.UNREADABLE),
        (b'{"id": NaN}', ProblemKind.UNREADABLE),
        (b'{"id": 1, "x": Infinity}', ProblemKind.UNREADABLE),
        (b'{"id": 1, "id": 2}', ProblemKind.REPEATED),
        (b'{"id": 1, "x": [{"y": 1, "y": 1}]}', ProblemKind.REPEATED),
        (b'{"id": ' + b"9" * 5000 + b"}", ProblemKind.UNREADABLE),
        (b'{"id": 1, "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", ProblemKind.UNREADABLE),
        (b'{"id": "' + b"x" * MAX_BYTES + b'"}', ProblemKind.UNREADABLE),
        ('\ufeff{"id": 1}'.encode(), ProblemKind.UNREADABLE),
        ('{"id": 1}'.encode("utf-16"), ProblemKind.UNREADABLE),
    ],
)
def test_json_that_two_readers_could_read_differently_has_no_id(
    raw: bytes | None, wanted: ProblemKind
) -> None:
    assert kind(eo.field("id"), Row(value=raw)) is wanted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"\x82\xa2id\x01\xa2id\x02", ProblemKind.REPEATED),
        (b"\x82\xa2id\x01\x05\x02", ProblemKind.UNREADABLE),  # a number as a name
        (b"\x81\xa2id\xc4\x01a", ProblemKind.UNREADABLE),  # bytes, not text
        (b"\x81\xa2id\xa1\xff", ProblemKind.UNREADABLE),
        (b"\x81\xa2id\xc7\x0c\xff" + b"\xff" * 12, ProblemKind.UNREADABLE),  # a false timestamp
        (b"\xdf\xff\xff\xff\xff", ProblemKind.UNREADABLE),
        (b"\xdd\xff\xff\xff\xff", ProblemKind.UNREADABLE),
        (b"\xc6\xff\xff\xff\xff", ProblemKind.UNREADABLE),
        (b"\x91" * 10**5 + b"\x01", ProblemKind.UNREADABLE),
        (b"\x81\xa2id\x01\x00", ProblemKind.UNREADABLE),
        (b"\xc1", ProblemKind.UNREADABLE),
        (b"", ProblemKind.UNREADABLE),
    ],
)
def test_msgpack_that_claims_more_than_it_holds_has_no_id(raw: bytes, wanted: ProblemKind) -> None:
    assert kind(eo.field("id", format="msgpack"), Row(value=raw)) is wanted


@pytest.mark.parametrize("source", [eo.field("id"), eo.payload_hash(without=["at"])])
def test_nesting_ends_where_the_limit_says_and_not_where_the_callers_stack_does(
    source: Source,
) -> None:
    def nested(levels: int) -> Row:  # the object is the first of them
        return Row(value=b'{"id": 1, "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}")

    assert kind(source, nested(MAX_DEPTH)) is None
    assert kind(source, nested(MAX_DEPTH + 1)) is ProblemKind.UNREADABLE


def test_a_jmespath_function_that_fails_on_a_value_is_that_records_problem() -> None:
    for path in ("abs(id)", "max_by(id, &a)", "ceil(to_number(id))", "id[?a > `1`].a | [0]"):
        for value in ({"id": [{"a": 1}, {"a": "x"}]}, {"id": "1e999"}, {"id": "x"}):
            assert kind(eo.field(path), body(value)) in (
                ProblemKind.UNREADABLE,
                ProblemKind.MISSING,
            )


def test_a_payload_hash_is_of_the_bytes_or_two_payloads_could_be_one_event() -> None:
    source = eo.payload_hash()
    assert key(source, Row(value=b'{"a": 1}')) == key(source, Row(value=b'{"a": 1}'))
    assert key(source, Row(value=b'{"a": 1}')) != key(source, Row(value=b'{"a":1}'))
    assert key(source, Row(value=b"not json \xff"))
    assert kind(source, Row(value=None)) is ProblemKind.NULL_VALUE
    assert kind(source, Row(value=b"")) is ProblemKind.EMPTY


SAME = [
    (b'{"a": 1, "b": 2}', b'{"b":2,"a":1}'),
    (b'{"a": 1, "at": 5, "m": {"t": 1, "x": 2}}', b'{"a": 1, "m": {"x": 2, "t": 9}}'),
    (b'{"a": 1.50}', b'{"a": 15e-1}'),
    (b'{"a": 100}', b'{"a": 1.0E+2}'),
    (b'{"a": -0.0}', b'{"a": 0}'),
    (b'{"a": "\\u00e9"}', '{"a": "é"}'.encode()),
]
DIFFERENT = [
    (b'{"a": 1}', b'{"a": "1"}'),
    (b'{"a": 1}', b'{"a": "1e0"}'),
    (b'{"a": 1}', b'{"a": true}'),
    (b'{"a": 1}', b'{"a": -1}'),
    (b'{"a": [1, 2]}', b'{"a": [2, 1]}'),
    (b'{"a": [12]}', b'{"a": [1, 2]}'),
    (b'{"a": null}', b'{"b": null}'),
    (b'{"a": 0.1}', b'{"a": 0.10000000000000000001}'),
    (b'{"a": 12345678901234567.89}', b'{"a": 12345678901234567.88}'),
    (b'{"a": 1e400}', b'{"a": 1e401}'),
    (b'{"a": "\\ud800"}', b'{"a": "\\ud801"}'),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_a_canonical_payload_forgets_how_it_was_written(one: bytes, other: bytes) -> None:
    source = eo.payload_hash(without=["at", "m.t", "not.there"])
    assert key(source, Row(value=one)) == key(source, Row(value=other))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_a_canonical_payload_loses_nothing_or_an_amount_could_vanish_in_rounding(
    one: bytes, other: bytes
) -> None:
    source = eo.payload_hash(without="at")
    assert key(source, Row(value=one)) != key(source, Row(value=other))


@pytest.mark.parametrize("raw", [b'{"at": 1}', b"{}", b"[]", b'""', b"null"])
def test_a_payload_with_nothing_left_to_hash_has_no_id_or_all_such_events_would_be_one(
    raw: bytes,
) -> None:
    assert kind(eo.payload_hash(without=["at"]), Row(value=raw)) is ProblemKind.EMPTY


def test_headers_and_key_that_a_payload_hash_was_told_to_count_are_counted_and_must_be_there() -> (
    None
):
    source = eo.payload_hash(headers=["tenant"], with_key=True)
    rows = [
        Row([("tenant", tenant)], value, key_)
        for tenant in (b"a", b"b")
        for value in (b"v", b"w")
        for key_ in (b"k", b"l")
    ]
    assert len({key(source, row) for row in rows}) == len(rows)
    assert kind(source, Row([], b"v", b"k")) is ProblemKind.MISSING
    assert kind(source, Row([("tenant", b"a")], b"v", None)) is ProblemKind.MISSING
    assert kind(source, Row([("tenant", b"a")] * 2, b"v", b"k")) is ProblemKind.REPEATED


def test_half_a_joined_id_is_broken_or_its_repair_would_be_another_event() -> None:
    source = eo.joined(eo.header("tenant"), eo.header("order")) | eo.record_key()
    assert kind(source, Row([("tenant", b"a")], key=b"k")) is ProblemKind.UNREADABLE
    assert kind(source, Row([("tenant", b"a"), ("order", b"")], key=b"k")) is ProblemKind.EMPTY
    assert key(source, Row([], key=b"k")) == expected_key(b"k")


def test_a_custom_function_that_fails_is_a_problem_and_no_exception_in_the_loop() -> None:
    def custom(answer: object) -> Source:
        return eo.custom(lambda record: answer, version="1")  # type: ignore[arg-type,return-value]

    assert kind(custom(None), Row()) is ProblemKind.MISSING
    assert kind(custom(""), Row()) is ProblemKind.EMPTY
    assert kind(custom("\ud800"), Row()) is ProblemKind.NOT_UTF8
    assert kind(custom(b"x" * 1025), Row()) is ProblemKind.TOO_LONG
    assert kind(custom(17), Row()) is ProblemKind.FAILED
    assert key(custom(b"\xff"), Row()) == expected_key(b"\xff")

    def failing(record: Record) -> str:
        raise RuntimeError(CANARY)

    found = identified(eo.custom(failing, version="1"), Row())
    assert found.problems[0].kind is ProblemKind.FAILED
    assert "RuntimeError" in found.problems[0].text


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_the_machines_trouble_is_not_blamed_on_the_record_or_it_might_run_unprotected(
    error: type[BaseException],
) -> None:
    def failing(record: Record) -> str:
        raise error

    with pytest.raises(error):
        identified(eo.custom(failing, version="1"), Row())


def test_a_custom_function_sees_the_whole_record() -> None:
    def seen(record: Record) -> str:
        return repr(
            (
                record.topic,
                record.partition,
                record.offset,
                record.key,
                record.value,
                record.headers,
                record,
            )
        )

    row = Row([("a", None)], b"v", b"k")
    assert identified(eo.custom(seen, version="1"), Row(), row).text(1) == repr(
        ("payments", 3, 101, b"k", b"v", [("a", None)], eo.Record(Rows([Row(), row]), 1))
    )


def test_a_delivery_is_told_by_topic_partition_and_offset() -> None:
    def keys(topic: str, partition: int) -> list[bytes]:
        rows = Rows([Row(), Row()], topic, partition)
        return [raw.tobytes() for raw in Identity(eo.delivery()).identify(rows).keys]

    everything = [*keys("a", 1), *keys("a", 11), *keys("a1", 1)]
    assert len(set(everything)) == len(everything)
    assert keys("a", 1) == keys("a", 1)


# -- chains ----------------------------------------------------------------------------------------


def test_a_chain_asks_on_only_where_nothing_was_found_or_a_broken_id_would_get_two_keys() -> None:
    source = eo.header("event-id") | eo.cloudevent() | eo.record_key()
    found = identified(
        source,
        having(event_id=UUID),
        having(ce_id="1", ce_source="/a"),
        Row(key=b"k"),
        Row(headers=[("event-id", b"")], key=b"k"),
        Row(headers=[("ce_id", b"1")], key=b"k"),
        Row(),
        Row(key=b"k2"),
    )
    assert {row: problem.kind for row, problem in found.problems.items()} == {
        3: ProblemKind.EMPTY,
        4: ProblemKind.UNREADABLE,
        5: ProblemKind.MISSING,
    }
    assert found.sources == {'header("event-id")': 1, "cloudevent()": 1, "record_key()": 2}
    for name in ("event-id", "ce_id", "record_key"):
        assert name in found.problems[5].text


@pytest.mark.parametrize(
    "source",
    [
        eo.header("a") | eo.payload_hash(),
        eo.header("a") | eo.delivery(),
        eo.header("a") | eo.joined(eo.header("b"), eo.payload_hash()),
        eo.header("a") | (eo.header("b") | eo.payload_hash()),
        eo.joined(eo.header("t"), eo.header("a") | eo.payload_hash()),
    ],
)
def test_no_hash_hides_behind_another_source_or_a_lost_id_would_go_unnoticed(
    source: Source,
) -> None:
    assert "stands behind another source" in problems(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (eo.header(""), "the name is empty"),
        (eo.payload_hash() | eo.header("a"), "never asked"),
        (eo.delivery() | eo.header("a"), "never asked"),
        (eo.joined(eo.header("a")), "two sources"),
        (eo.joined(eo.header("a"), eo.header("")), "the name is empty"),
        (eo.joined(eo.header("a"), eo.delivery()), "delivery() identifies a delivery"),
        (eo.custom(lambda record: "", version=""), "version="),
        (eo.field("a..b"), "not a jmespath expression"),
        (eo.field(""), "not a jmespath expression"),
        (eo.field("to_string(id)"), "even in an empty document"),
        (eo.field("'fixed'"), "even in an empty document"),
        (eo.field("id", format="xml"), "json or msgpack"),  # type: ignore[arg-type]
        (eo.payload_hash(headers=[""]), "the name is empty"),
        (eo.payload_hash(without=["a..b"]), "without="),
        (eo.header("").replaces(eo.header("b")), "the name is empty"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_the_first_record(
    source: Identify, said: str
) -> None:
    assert said in problems(source)


def test_every_problem_of_a_configuration_is_told_at_once() -> None:
    source = eo.header("") | eo.field("a..b") | eo.payload_hash()
    assert len(list(Identity(source, b"short").problems())) == 4


@pytest.mark.parametrize("secret", [b"", b"x" * 15, b"x" * 65, "x" * 16])
def test_a_secret_that_can_be_guessed_or_is_no_bytes_is_refused(secret: bytes) -> None:
    assert "secret" in problems(eo.header("a"), secret)


def test_a_missing_jmespath_is_a_problem_of_the_configuration_or_it_would_stop_every_partition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "jmespath", None)
    sources_module._expression.cache_clear()
    assert "pip install effectonce[jmespath]" in problems(eo.field("id"))


# -- the fingerprint of an identity ----------------------------------------------------------------

IDENTITIES: list[tuple[Source, bytes | None]] = [
    (eo.header("a"), None),
    (eo.header("a"), SECRET),
    (eo.header("a"), SECRET[::-1]),
    (eo.header("b"), None),
    (eo.header("a") | eo.header("b"), None),
    (eo.header("b") | eo.header("a"), None),
    (eo.joined(eo.header("a"), eo.header("b")), None),
    (eo.joined(eo.header("b"), eo.header("a")), None),
    (eo.joined(eo.header("a"), eo.header("b") | eo.header("c")), None),
    (eo.joined(eo.header("a"), eo.header("b")) | eo.header("c"), None),
    (eo.record_key(), None),
    (eo.cloudevent(), None),
    (eo.field("a"), None),
    (eo.field("a", format="msgpack"), None),
    (eo.field("b"), None),
    (eo.custom(lambda record: "", version="1"), None),
    (eo.custom(lambda record: "", version="2"), None),
    (eo.payload_hash(), None),
    (eo.payload_hash(without=["a"]), None),
    (eo.payload_hash(without=["a", "b"]), None),
    (eo.payload_hash(headers=["a"]), None),
    (eo.payload_hash(with_key=True), None),
    (eo.delivery(), None),
]


def test_another_identity_has_another_fingerprint_or_its_change_would_repeat_every_event() -> None:
    prints = [Identity(source, secret).fingerprint for source, secret in IDENTITIES]
    assert len(set(prints)) == len(IDENTITIES)
    assert {len(print_) for print_ in prints} == {8}


def test_one_identity_has_one_fingerprint_for_ever_or_an_upgrade_would_be_refused() -> None:
    assert Identity(eo.header("event-id")).fingerprint.hex() == "cdb3367f6877299e"
    assert Identity(eo.header("event-id"), SECRET).fingerprint.hex() == "bfbe729ee1043460"
    orders = [eo.payload_hash(without=names) for names in (["a", "b"], ("b", "a", "a"))]
    assert len({Identity(source).fingerprint for source in orders}) == 1
    chains = [
        (eo.header("a") | eo.header("b")) | eo.header("c"),
        eo.header("a") | (eo.header("b") | eo.header("c")),
    ]
    assert len({Identity(source).fingerprint for source in chains}) == 1


def test_a_replaced_identity_is_accepted_and_no_other() -> None:
    a, b, c, d = (eo.header(name) for name in "abcd")

    def fingerprint(source: Identify) -> bytes:
        return Identity(source, SECRET).fingerprint

    one = a.replaces(b)
    assert fingerprint(one) == fingerprint(a)
    assert Identity(a, SECRET).accepted == {fingerprint(a)}
    assert Identity(one, SECRET).accepted == {fingerprint(a), fingerprint(b)}
    assert Identity(one.replaces(c), SECRET).accepted == set(map(fingerprint, (a, b, c)))
    assert Identity(d.replaces(one), SECRET).accepted == set(map(fingerprint, (d, a, b)))
    row = having(a="1", b="2")
    assert key(one, row) == key(a, row)


def test_a_replacement_inside_a_chain_is_refused_or_it_would_be_quietly_dropped() -> None:
    a, b, c = (eo.header(name) for name in "abc")
    with pytest.raises(TypeError, match="whole identity"):
        _ = a | b.replaces(c)
    with pytest.raises(TypeError, match="whole identity"):
        _ = b.replaces(c) | a


# -- payload fingerprints, texts, secrecy ----------------------------------------------------------


@given(values=st.lists(st.none() | st.binary(max_size=300), max_size=20))
def test_a_fingerprint_is_of_the_value_alone_and_a_tombstone_has_its_own(
    values: list[bytes | None],
) -> None:
    rows = [Row(having(id="x").headers, value, b"k") for value in values]
    found = identified(eo.header("id"), *rows)
    assert found.fingerprints.dtype == np.uint32
    assert found.fingerprints.tolist() == [
        eo.NULL_FINGERPRINT if value is None else xxh3_64_intdigest(value) & 0xFFFF_FFFF
        for value in values
    ]


def test_the_handler_sees_the_id_it_knows_and_a_composite_as_its_key() -> None:
    found = identified(
        eo.header("id") | eo.record_key() | eo.cloudevent(),
        having(id="Bestellung é"),
        having(id=UUID),
        Row(key=b"\xff"),
        having(ce_id="1", ce_source="/a"),
        Row(),
        secret=SECRET,
    )
    assert [found.text(0), found.text(1)] == ["Bestellung é", UUID]
    for row in (2, 3):
        assert found.text(row) == found.keys[row].tobytes().hex()
    with pytest.raises(LookupError, match="no event ID"):
        found.text(4)


BROKEN = [
    Row(headers=[("id", f"{CANARY}\udcff".encode(errors="surrogateescape"))]),
    Row(headers=[("id", CANARY.encode() * 200)]),
    Row(headers=[("id", CANARY.encode())] * 2),
    Row(value=json.dumps({"id": [CANARY]}).encode()),
    Row(value=f'{{"id": "{CANARY}", "id": "{CANARY}"}}'.encode()),
    Row(value=f'{{"id": "{CANARY}"'.encode()),
    Row(value=f'{{"id": "{CANARY}\\ud800"}}'.encode()),
    Row(headers=[("content-type", f"application/cloudevents+{CANARY}".encode())]),
    Row(headers=[("ce_id", CANARY.encode())]),
]


@pytest.mark.parametrize("row", BROKEN)
def test_no_problem_and_no_repr_shows_an_id_or_it_would_stand_in_the_log(row: Row) -> None:
    source = eo.header("id") | eo.cloudevent() | eo.field("id")
    found = identified(source, row, having(id=UUID))
    assert list(found.problems) == [0]
    assert CANARY not in found.problems[0].text
    for shown in (repr(found), repr(Record(Rows([row]), 0)), repr(Identity(source, SECRET))):
        assert CANARY not in shown
        assert UUID not in shown
        assert SECRET.decode() not in shown


# -- bytes from strangers --------------------------------------------------------------------------

ANY_SOURCE = [
    eo.header("id"),
    eo.record_key(),
    eo.cloudevent(),
    eo.field("id"),
    eo.field("id[0].id || id.source"),
    eo.field("id", format="msgpack"),
    eo.payload_hash(without=["id.at", "at"], with_key=True),
    eo.payload_hash(headers=["id"]),
    eo.joined(eo.header("id"), eo.field("id") | eo.cloudevent()),
    eo.header("id") | eo.cloudevent() | eo.field("id") | eo.record_key(),
    eo.delivery(),
]
STRANGE = st.builds(
    Row,
    headers=HEADERS | VALUES.map(lambda _: STRUCTURED),
    value=VALUES | st.binary(max_size=60) | st.text(max_size=30).map(str.encode),
    key=IDS,
)


@given(
    rows=st.lists(STRANGE, max_size=4),
    source=st.sampled_from(ANY_SOURCE),
    secret=st.sampled_from([None, SECRET]),
)
def test_whatever_the_bytes_a_record_has_an_id_or_a_problem_and_nothing_raises(
    rows: list[Row], source: Source, secret: bytes | None
) -> None:
    found = Identity(source, secret).identify(Rows(rows))
    for row in range(len(rows)):
        assert (found.keys[row].tobytes() == bytes(16)) == (row in found.problems)
        if row not in found.problems:
            assert found.text(row)
    assert sum(found.sources.values()) == len(rows) - len(found.problems)


@given(data=st.data())
def test_damaged_documents_have_an_id_or_a_problem_and_nothing_raises(data: st.DataObject) -> None:
    document = {"id": "a", "source": "/b", "n": [1, -2.5, None, {"id": True}]}
    whole = [json.dumps(document).encode(), msgpack.packb(document)]
    raw = bytearray(data.draw(st.sampled_from(whole)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=6))
        if not raw:
            break
    row = Row(STRUCTURED, bytes(raw), None)
    for source in (
        eo.field("id"),
        eo.field("n[3].id", format="msgpack"),
        eo.payload_hash(without=["id"]),
        eo.cloudevent(),
    ):
        Identity(source).identify(Rows([row]))
