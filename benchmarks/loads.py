"""What is delivered: event IDs drawn from a seed, and topics in which a share of them repeats.

A repeat is a delivery of any ID that came before it, drawn evenly: the stored keys came first, so
most are far and few are near. Or it is near, one of the last thousand, or far, of a stored key.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, overload

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

Order: TypeAlias = NDArray[np.int64]
"""Of each delivery: which ID it carries."""

Raw: TypeAlias = NDArray[np.uint8]
"""Event IDs as 16 bytes each: (n, 16)."""

Reach: TypeAlias = Literal["any", "near", "far"]

PARTITIONS: Final = 4
HEADER: Final = "event-id"
VALUE_BYTES: Final = 100
NEAR: Final = 1_000
"""A near repeat is of one of so many IDs before it: in the same batch, or the one or two before."""
CHUNK: Final = 50_000
"""IDs whose texts are alive at once: of 5e7 they would take 4 GB."""
MIXED: Final = 50
"""Records of one partition that follow each other where they are mixed; 10 KB of them."""
QUEUED: Final = 1_000_000
"""Messages that wait for the broker at most: a long topic would not fit into librdkafka's queue."""


@dataclass(frozen=True, slots=True)
class Load:
    """One topic: so many deliveries, of which `repeats` percent carry an ID that came before."""

    topic: str
    messages: int
    repeats: int
    reach: Reach = "any"
    value_bytes: int = VALUE_BYTES
    stored: int = 0
    """Keys that stores of ours know before the first delivery."""
    mixed: bool = False
    """Whether the client is given a few records of one partition, then of the next."""

    @property
    def fresh(self) -> int:
        """How many events it has: what must reach a handler, no more and no less."""
        return self.messages - self.messages * self.repeats // 100


def label(count: int) -> str:
    """A count as it stands in the names of figures: 1e7."""
    mantissa, exponent = f"{count:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


# -- event IDs -------------------------------------------------------------------------------------

_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_DASHES: Final = (8, 13, 18, 23)
_DIGITS: Final = np.delete(np.arange(36), _DASHES)


@dataclass(frozen=True, slots=True, eq=False)
class EventIds(Sequence[str]):
    """UUIDs kept as 16 bytes each; a text is made when it is asked for."""

    raw: Raw

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, which: int) -> str: ...
    @overload
    def __getitem__(self, which: slice) -> EventIds: ...
    def __getitem__(self, which: int | slice) -> str | EventIds:
        if isinstance(which, slice):
            return EventIds(self.raw[which])
        return _texts(self.raw[which].reshape(1, 16)).decode()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            yield from self.texts(np.arange(start, min(start + CHUNK, len(self))))

    def texts(self, rows: Order) -> list[str]:
        joined = _texts(self.raw[rows]).decode()
        return [joined[i : i + 36] for i in range(0, len(joined), 36)]

    def partitions(self) -> Raw:
        """Of each: where the producer puts it."""
        homes = np.empty(len(self), np.uint8)
        for start in range(0, len(self), CHUNK):
            joined = memoryview(_texts(self.raw[start : start + CHUNK]))
            sums = [zlib.crc32(joined[i : i + 36]) for i in range(0, len(joined), 36)]
            homes[start : start + len(sums)] = np.array(sums, np.uint32) % PARTITIONS
        return homes


def _texts(raw: Raw) -> bytes:
    """The 36 characters of each, one after another."""
    text = np.empty((len(raw), 36), np.uint8)
    text[:, _DASHES] = ord("-")
    digits = np.stack((raw >> 4, raw & 15), axis=2).reshape(len(raw), 32)
    text[:, _DIGITS] = _HEX[digits]
    return text.tobytes()


def event_ids(seed: int, count: int) -> EventIds:
    """Random UUIDs (version 4), the same for the same seed; a longer list begins as a shorter."""
    raw = np.frombuffer(np.random.default_rng(seed).bytes(16 * count), np.uint8).reshape(-1, 16)
    raw = raw.copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    return EventIds(raw)


def partition_of(event_id: str) -> int:
    """Where the producer puts it: librdkafka's partitioner `consistent`, CRC32 of the key."""
    return zlib.crc32(event_id.encode()) % PARTITIONS


# -- topics ----------------------------------------------------------------------------------------


def deliveries(load: Load, stored: int, seed: int) -> Order:
    """Numbers of IDs in delivered order: below `stored` those that took effect long ago."""
    random = np.random.default_rng(seed)
    is_fresh = np.zeros(load.messages, np.bool_)
    is_fresh[: load.fresh] = True
    random.shuffle(is_fresh)
    if not stored:
        is_fresh[np.argmax(is_fresh)], is_fresh[0] = is_fresh[0], True  # nothing to repeat yet
    before = stored + np.cumsum(is_fresh) - is_fresh
    chance = random.random(load.messages)
    back = {
        "any": before,
        "near": np.minimum(before, NEAR),
        "far": np.full(load.messages, stored),
    }[load.reach]
    first = before - back if load.reach == "near" else 0
    earlier = first + (chance * back).astype(np.int64)
    return np.where(is_fresh, before, earlier)


def produce(bootstrap: str, load: Load, ids: EventIds, order: Order) -> None:
    """Fill the topic, keyed by event ID. Raises RuntimeError where the broker has not got all."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "consistent",
            "queue.buffering.max.messages": QUEUED,
            "linger.ms": 50,
            "batch.num.messages": MIXED if load.mixed else 10_000,
        }
    )
    value = bytes(load.value_bytes)
    for text in (
        each for i in range(0, len(order), CHUNK) for each in ids.texts(order[i : i + CHUNK])
    ):
        event_id = text.encode()
        while True:
            try:
                producer.produce(load.topic, value, event_id, headers=[(HEADER, event_id)])
                break
            except BufferError:
                producer.poll(0.1)  # the broker is behind: returns as soon as it took some
    producer.flush()
    arrived = _count(bootstrap, load.topic)
    if arrived != load.messages:
        raise RuntimeError(f"{load.topic}: {arrived} of {load.messages} messages arrived")


def _count(bootstrap: str, topic: str) -> int:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-count"})
    try:
        ends: list[tuple[int, int]] = [
            consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10.0)
            for number in range(PARTITIONS)
        ]
    finally:
        consumer.close()
    return sum(end for _, end in ends)
