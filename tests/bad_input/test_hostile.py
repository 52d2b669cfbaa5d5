"""Whatever bytes a stranger produces, a consumer decides as one reading the rules would."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import effectonce as eo
from effectonce.identity import Source
from effectonce.policy import MAX_WINDOW
from effectonce.testing.servers import MockKafka
from tests.bad_input.kit import Flow, Watch, once_each, stops

UUID = "3f0a1c64-9a3c-4d7e-8f52-0c1f5d9e7a10"
PAYLOADS = (None, b"", b"{}", b'{"id": "x"}', b"\x81\xa2id\xa1x", b"[" * 2000)
IDS = (
    None,
    b"",
    b"x",
    UUID.encode(),
    UUID.upper().encode(),
    b"\xff" * 16,
    b"x" * 1024,
    b"x" * 1025,
)
NAMES = ("event-id", "Event-ID", "event-id ", "", "ce_id")

bytes_or_known = st.sampled_from(IDS) | st.binary(max_size=20)


@dataclass(frozen=True)
class Thing:
    """One record, as it was produced."""

    headers: list[tuple[str, bytes | None]]
    key: bytes | None
    value: bytes | None
    timestamp: int


THINGS = st.lists(
    st.builds(
        Thing,
        headers=st.lists(
            st.tuples(
                st.sampled_from(NAMES)
                | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
                bytes_or_known,
            ),
            max_size=3,
        ),
        key=bytes_or_known,
        value=st.sampled_from(PAYLOADS) | st.binary(max_size=20),
        timestamp=st.sampled_from((0, 1, 2**41, 2**53, 2**62)),
    ),
    min_size=4,
    max_size=30,
)


def in_header(thing: Thing) -> bytes | None:
    found = [value for name, value in thing.headers if name == "event-id"]
    if len(found) != 1 or not found[0] or len(found[0]) > 1024:
        return None
    try:
        found[0].decode()
    except UnicodeDecodeError:
        return None
    return found[0]


def in_key(thing: Thing) -> bytes | None:
    return thing.key if thing.key and len(thing.key) <= 1024 else None


SOURCES: Mapping[str, tuple[Source, Callable[[Thing], bytes | None]]] = {
    "header": (eo.header("event-id"), in_header),
    "key": (eo.record_key(), in_key),
}


def expected(
    things: list[Thing], id_of: Callable[[Thing], bytes | None]
) -> tuple[list[int], int | None]:
    """The offsets that take effect, and the one that stops the partition."""
    payloads: dict[bytes, bytes | None] = {}
    runs = []
    for offset, thing in enumerate(things):
        event_id = id_of(thing)
        if event_id is None:
            runs.append(offset)
        elif event_id not in payloads:
            payloads[event_id] = thing.value
            runs.append(offset)
        elif payloads[event_id] != thing.value:
            return runs, offset
    return runs, None


@pytest.mark.parametrize("where", SOURCES)
@settings(max_examples=6)  # two jobs each
@given(things=THINGS)
def test_any_bytes_are_decided_by_the_rules(
    mock_kafka: MockKafka, where: str, things: list[Thing]
) -> None:
    identify, id_of = SOURCES[where]
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    mock_kafka.create_topic(topic)
    runs, stopped_at = expected(things, id_of)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        thing = things[event.offset]
        assert event.headers == thing.headers
        assert (event.key, event.value) == (thing.key, thing.value)
        name = str(event.offset).encode()
        tx.put(name, b"%d" % (int(tx.get(name) or b"0") + 1))

    with tempfile.TemporaryDirectory() as folder:
        flow = Flow(mock_kafka.bootstrap, topic, Path(folder) / "state", Watch())
        for thing in things:
            flow.produce(
                thing.value, key=thing.key, headers=thing.headers, timestamp=thing.timestamp
            )
        for _ in range(2):  # a restart changes nothing
            says = f"{topic}[0] offset {stopped_at}: "
            with stops(eo.IdReused, says) if stopped_at is not None else nullcontext():
                flow.job(
                    handler,
                    identify=identify,
                    on_unidentified="process",
                    # the timestamps span 1970 to now: in a window of days, how the records fell
                    # into batches decided whether the first of two was forgotten
                    window=MAX_WINDOW,
                )
            assert flow.effects() == once_each(map(str, runs))


@pytest.mark.parametrize("value", [b"[" * 100_000, b"\xff", b"", None, b"9" * 5000, b"{'a': 1}"])
def test_a_value_that_is_no_json_is_a_value_error(
    mock_kafka: MockKafka, value: bytes | None, tmp_path: Path
) -> None:
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    mock_kafka.create_topic(topic)
    flow = Flow(mock_kafka.bootstrap, topic, tmp_path / "state", Watch())
    flow.produce(value, key=b"key")
    refused: list[ValueError] = []

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        try:
            event.json()
        except ValueError as error:
            refused.append(error)

    flow.job(handler, identify=eo.record_key())
    assert len(refused) == 1
