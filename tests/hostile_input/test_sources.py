"""Junk beside good events, whatever the ID is read from: held, never taken for one of them."""

from __future__ import annotations

import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import effectonce as eo
from effectonce.identity import Record, Source
from effectonce.testing.servers import MockKafka
from tests.bad_input.kit import Flow, Watch, once_each

CANARY = "canary-4f1c9a"
"""Part of every ID here, good or broken: where it shows, an ID does."""

HIDDEN = CANARY.encode()
BROKEN = (
    b"",
    HIDDEN + b"\xff",
    HIDDEN * 100,
    b'{"id": ["%s"]}' % HIDDEN,
    b'{"id": "%s", "id": "x"}' % HIDDEN,
    b'{"id": "%s"' % HIDDEN,
    b"[" * 3000,
    b'{"id": NaN}',
    b"\x82\xa2id\xa1x\xa2id\xa1y",
    b"\x81\xc0\xc0",
    msgpack.packb({"id": [CANARY]}),
)
NAMES = ("event-id", "tenant", "ce_id", "ce_source", "content-type", "")
MEDIA = (b"application/cloudevents", b"application/cloudevents+json; \xff")

any_bytes = st.sampled_from(BROKEN) | st.binary(max_size=16)


@dataclass(frozen=True)
class Made:
    """One record, as it is produced."""

    value: bytes | None
    key: bytes | None = None
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


JUNK = st.lists(
    st.builds(
        Made,
        value=st.none() | any_bytes,
        key=st.none() | any_bytes,
        headers=st.lists(
            st.tuples(st.sampled_from(NAMES), st.none() | st.sampled_from(MEDIA) | any_bytes),
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=12,
)


def from_headers(record: Record) -> str | bytes | None:
    """As users write it: it raises where a record is not what it expects."""
    return dict(record.headers)["event-id"]


def in_headers(each: str) -> Made:
    return Made(
        b"v",
        headers=[("event-id", each.encode()), ("tenant", b"t"), ("ce_source", b"s"),
                 ("ce_id", each.encode())],
    )  # fmt: skip


def in_key(each: str) -> Made:
    return Made(b"v", key=each.encode())


def in_json(each: str) -> Made:
    return Made(json.dumps({"id": each}).encode())


def in_msgpack(each: str) -> Made:
    return Made(msgpack.packb({"id": each}))


def in_cloudevent(each: str) -> Made:
    event = {"source": "s", "id": each}
    return Made(
        json.dumps(event).encode(), headers=[("content-type", b"application/cloudevents+json")]
    )


SOURCES: Mapping[str, tuple[Source, Callable[[str], Made]]] = {
    "a chain": (eo.header("event-id") | eo.record_key(), in_key),
    "json": (eo.field("id"), in_json),
    "msgpack": (eo.field("id", format="msgpack"), in_msgpack),
    "cloudevent, binary": (eo.cloudevent(), in_headers),
    "cloudevent, structured": (eo.cloudevent(), in_cloudevent),
    "joined": (eo.joined(eo.header("tenant"), eo.header("event-id")), in_headers),
    "payload": (eo.payload_hash(without=["sent_at"]), in_json),
    "custom": (eo.custom(from_headers, version="1"), in_headers),
}


@pytest.mark.parametrize("where", SOURCES)
@settings(
    max_examples=3,  # three jobs each, so a failure is shown as it was found and not made smaller
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(junk=JUNK)
def test_junk_holds_no_other_partition_and_repeats_nothing_and_shows_no_id(
    mock_kafka: MockKafka, caplog: pytest.LogCaptureFixture, where: str, junk: list[Made]
) -> None:
    caplog.set_level(logging.DEBUG)
    identify, made = SOURCES[where]
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    mock_kafka.create_topic(topic, 2)
    said: list[str] = []
    good = [f"{CANARY}-{number}" for number in range(3)]

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        name = f"{event.partition}@{event.offset}".encode()
        tx.put(name, b"%d" % (int(tx.get(name) or b"0") + 1))

    with tempfile.TemporaryDirectory() as folder:
        flow = Flow(mock_kafka.bootstrap, topic, Path(folder) / "state", Watch())
        for each in (*map(made, good), *junk):
            flow.produce(each.value, key=each.key, headers=each.headers)
        for each in (*map(made, good), *map(made, good)):  # and once more: repeats
            flow.produce(each.value, key=each.key, headers=each.headers, partition=1)
        beside = once_each(f"1@{offset}" for offset in range(3))
        before = once_each(f"0@{offset}" for offset in range(3))
        for on_unidentified in ("raise", "raise", "process"):
            try:
                flow.job(handler, identify=identify, on_unidentified=on_unidentified)
            except (eo.Unidentified, eo.IdReused) as stopped:
                said.append(str(stopped))
            done = flow.effects()
            assert set(done.values()) == {1}
            assert done & (beside + before) == beside + before
            assert {name for name in done if name.startswith("1@")} == set(beside)
    for text in said:
        assert text.startswith(f"{topic}[0] offset ")
        assert "stays in Kafka" in text
        assert CANARY not in text
    assert CANARY not in caplog.text
