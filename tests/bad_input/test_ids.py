"""A record without a usable event ID stops its partition, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

import effectonce as eo
from effectonce.identity import Source
from effectonce.testing.servers import MockKafka
from tests.bad_input.kit import Flow, Headers, count, id_header, once_each, stops
from tests.bad_input.raw import produce_header

BY_HEADER = eo.header("event-id")


@dataclass(frozen=True)
class Bad:
    """A record that has no usable ID, and what must be said of it."""

    says: str
    headers: Headers = ()
    value: bytes | None = b"value"
    identify: Source = BY_HEADER


BAD: Mapping[str, Bad] = {
    "missing": Bad('header("event-id") is missing'),
    "another header": Bad('header("event-id") is missing', [("Event-ID", b"x")]),
    "empty": Bad('header("event-id") is empty', id_header("")),
    "null": Bad('header("event-id") is null', [("event-id", None)]),
    "too long": Bad("has 1025 bytes, an ID at most 1024", id_header("x" * 1025)),
    "not UTF-8": Bad("is not UTF-8 text", id_header(b"\xff\xfe")),
    "half a surrogate": Bad("is not UTF-8 text", id_header(b"\xed\xa0\x80")),
    "repeated": Bad("occurs 2 times", [*id_header("x"), *id_header("x")]),
    "repeated, once null": Bad("occurs 2 times", [*id_header("x"), ("event-id", None)]),
    "no field": Bad('field("id") is missing', value=b"{}", identify=eo.field("id")),
    "tombstone of a field": Bad("the value is null", value=None, identify=eo.field("id")),
    "no JSON": Bad("the value is not JSON", value=b"\xff", identify=eo.field("id")),
    "a list": Bad("of type list", value=b'{"id": ["x"]}', identify=eo.field("id")),
    "no key": Bad("the record has no key", identify=eo.record_key()),
    "half of two": Bad(
        "half an ID", id_header("x"), identify=eo.joined(eo.header("event-id"), eo.record_key())
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_id_passes_nothing_and_names_its_record(flow: Flow, case: str) -> None:
    bad = BAD[case]
    flow.produce(bad.value, headers=bad.headers)
    with stops(eo.Unidentified, f"{flow.topic}[0] offset 0", bad.says, "stays in Kafka"):
        flow.job(identify=bad.identify)
    assert not flow.effects()


def test_a_bad_id_holds_neither_what_is_before_it_nor_the_partitions_beside(flow: Flow) -> None:
    before = flow.send(2)
    flow.produce(b"no ID")
    behind, beside = flow.send(2), flow.send(3, partition=1)
    with stops(eo.Unidentified, f"{flow.topic}[0] offset 2"):
        flow.job()
    assert flow.effects() == once_each(before + beside)
    with stops(eo.Unidentified, f"{flow.topic}[0] offset 2"):
        flow.job()  # a restart alone changes nothing
    assert flow.effects() == once_each(before + beside)
    flow.job(on_unidentified="process")
    assert flow.effects() == once_each([*before, *behind, *beside, "0@2"])


def test_an_id_of_one_kibibyte_is_an_id(flow: Flow) -> None:
    flow.ids.append("é" * 512)
    for _ in range(2):
        flow.produce(b"value", headers=id_header(flow.ids[0]))
    flow.job()
    assert flow.effects() == once_each(flow.ids)


def test_a_payload_hash_takes_no_tombstone_for_an_event(flow: Flow) -> None:
    for value in (b"one", b"one", None, None):
        flow.produce(value)
    with stops(eo.Unidentified, f"{flow.topic}[0] offset 2", "the value is null"):
        flow.job(identify=eo.payload_hash())
    assert flow.effects().total() == 1
    flow.job(identify=eo.payload_hash(), on_unidentified="process")
    assert sorted(flow.effects().values()) == [1, 1, 1]


def test_a_null_value_with_an_id_is_an_event(flow: Flow) -> None:
    flow.ids.append("the ID of a tombstone")
    for _ in range(2):
        flow.produce(None, headers=id_header(flow.ids[0]))
    flow.job()
    assert flow.effects() == once_each(flow.ids)


def test_a_broken_id_asks_no_other_source_of_the_chain(flow: Flow) -> None:
    flow.produce(b"value", key=b"key", headers=id_header(""))
    with stops(eo.Unidentified, "is empty"):
        flow.job(identify=eo.header("event-id") | eo.record_key())
    assert not flow.effects()


def test_what_a_function_of_the_users_raises_is_not_quoted(flow: Flow) -> None:
    (event_id,) = flow.send()

    def find(record: object) -> str:
        raise ValueError(f"cannot read {event_id}")

    with pytest.raises(eo.Unidentified, match=r"custom\(find\) raised ValueError") as stopped:
        flow.job(identify=eo.custom(find, version="1"))
    assert not flow.shown(str(stopped.value))


# -- unprotected -----------------------------------------------------------------------------------


def test_two_events_without_an_id_never_share_a_downstream_key(flow: Flow) -> None:
    ids = flow.send()
    flow.produce(b"one")
    flow.produce(b"two")
    keys: list[str] = []

    def charge(event: eo.Event) -> None:
        try:
            keys.append(event.key_for("bank"))
        except LookupError as none:
            keys.append(str(none))

    flow.job(charge, effects=eo.Outside("repeat"), on_unidentified="process")
    assert keys[1] == keys[2]
    assert 'no event ID: header("event-id") is missing' in keys[1]
    assert len(ids) == 1


def test_an_unprotected_event_runs_on_every_delivery_and_the_others_once(flow: Flow) -> None:
    ids = flow.send()
    flow.produce(b"no ID")
    flow.produce(b"payload of " + ids[0].encode(), headers=id_header(ids[0]))
    flow.produce(b"no ID")
    flow.job(on_unidentified="process")
    assert flow.effects() == once_each([*ids, "0@1", "0@3"])


# -- one ID, two payloads --------------------------------------------------------------------------


def send_twice(flow: Flow, *, apart: bool) -> list[str]:
    """An event, another payload under its ID, and events around them."""
    ids = flow.send(2)
    if apart:
        flow.job()
    flow.produce(b"another payload", headers=id_header(ids[0]))
    return ids + flow.send(1) + flow.send(1, partition=1)


@pytest.mark.parametrize("apart", [True, False], ids=["in the store", "in one batch"])
@pytest.mark.parametrize("effects", [eo.InStore(), eo.Outside("repeat")], ids=["in", "outside"])
def test_a_second_payload_under_one_id_is_neither_skipped_nor_run(
    flow: Flow, apart: bool, effects: eo.InStore | eo.Outside
) -> None:
    ran: Counter[str] = Counter()

    def handler(event: eo.Event, tx: eo.KeyValueTx | None = None) -> None:
        ran[event.id] += 1

    ids = flow.send(2)
    if apart:
        flow.job(handler, effects=effects)
    flow.produce(b"another payload", headers=id_header(ids[0]))
    (behind,), (beside,) = flow.send(), flow.send(partition=1)
    for _ in range(2):
        with stops(eo.IdReused, f"{flow.topic}[0] offset 2", "another payload", "stays in Kafka"):
            flow.job(handler, effects=effects)
    assert ran == once_each([*ids, beside])
    assert behind not in ran


def test_an_id_whose_first_payload_was_refused_is_free_for_the_second(flow: Flow) -> None:
    """The marker of an event that never took effect would be a lie."""
    (event_id,) = flow.send()
    flow.produce(b"another payload", headers=id_header(event_id))

    def ignore_first(event: eo.Event, tx: eo.KeyValueTx) -> object:
        if event.offset == 0:
            return eo.IGNORED
        count(event, tx)
        return None

    flow.job(ignore_first)
    assert flow.effects() == once_each([event_id])


# -- what the client cannot read -------------------------------------------------------------------


def test_a_header_name_that_is_no_text_stops_one_partition_and_not_the_process(
    flow: Flow, mock_kafka: MockKafka
) -> None:
    before = flow.send()
    produce_header(mock_kafka.bootstrap, flow.topic, b"trace-\xff", b"1")
    behind, beside = flow.send(), flow.send(partition=1)
    with stops(eo.Unidentified, f"{flow.topic}[0] offset 1", "headers", "UTF-8"):
        flow.job()
    assert flow.effects() == once_each(before + beside)
    flow.job(on_unidentified="process")
    assert flow.effects() == once_each([*before, *behind, *beside, "0@1"])


def test_headers_that_nobody_can_read_are_not_taken_for_none(
    flow: Flow, mock_kafka: MockKafka
) -> None:
    produce_header(mock_kafka.bootstrap, flow.topic, b"trace-\xff", b"1", key=b"key")
    said: list[str] = []

    def look(event: eo.Event) -> None:
        try:
            event.headers  # noqa: B018
        except ValueError as error:
            said.append(str(error))

    flow.job(look, identify=eo.record_key(), effects=eo.Outside("repeat"))
    assert len(said) == 1
    assert "UTF-8" in said[0]
