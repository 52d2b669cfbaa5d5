"""What is delivered: event IDs drawn from a seed, and topics in which a share of them repeats.

A repeat is a delivery of any ID that came before it, drawn evenly. The stored keys came first, so
most repeats are far ones and few are near.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from numpy.typing import NDArray

Order: TypeAlias = NDArray[np.int64]
"""Of each delivery: which ID it carries."""

PARTITIONS: Final = 4
HEADER: Final = "event-id"
VALUE: Final = bytes(100)
QUEUED: Final = 1_000_000
"""Messages that wait for the broker at most: a long topic would not fit into librdkafka's queue."""


@dataclass(frozen=True, slots=True)
class Load:
    """One topic: so many deliveries, of which `repeats` percent carry an ID that came before."""

    topic: str
    messages: int
    repeats: int

    @property
    def fresh(self) -> int:
        """How many events it has: what must reach a handler, no more and no less."""
        return self.messages - self.messages * self.repeats // 100


def event_ids(seed: int, count: int) -> list[str]:
    """Random UUIDs (version 4), the same for the same seed; a longer list begins as a shorter."""
    raw = np.frombuffer(np.random.default_rng(seed).bytes(16 * count), np.uint8).reshape(-1, 16)
    raw = raw.copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    text = raw.tobytes().hex()
    return [
        f"{text[i : i + 8]}-{text[i + 8 : i + 12]}-{text[i + 12 : i + 16]}"
        f"-{text[i + 16 : i + 20]}-{text[i + 20 : i + 32]}"
        for i in range(0, len(text), 32)
    ]


def deliveries(load: Load, stored: int, seed: int) -> Order:
    """Numbers of IDs in delivered order: below `stored` those that took effect long ago."""
    random = np.random.default_rng(seed)
    is_fresh = np.zeros(load.messages, np.bool_)
    is_fresh[: load.fresh] = True
    random.shuffle(is_fresh)
    if not stored:
        is_fresh[np.argmax(is_fresh)], is_fresh[0] = is_fresh[0], True  # nothing to repeat yet
    before = stored + np.cumsum(is_fresh) - is_fresh
    earlier = (random.random(load.messages) * before).astype(np.int64)
    return np.where(is_fresh, before, earlier)


def partition_of(event_id: str) -> int:
    """Where the producer puts it: librdkafka's partitioner `consistent`, CRC32 of the key."""
    return zlib.crc32(event_id.encode()) % PARTITIONS


def produce(bootstrap: str, load: Load, ids: Sequence[str], order: Order) -> None:
    """Fill the topic, keyed by event ID. Raises RuntimeError where the broker has not got all."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "consistent",
            "queue.buffering.max.messages": QUEUED,
            "linger.ms": 50,
            "batch.num.messages": 10_000,
        }
    )
    for number in order.tolist():
        event_id = ids[number].encode()
        while True:
            try:
                producer.produce(load.topic, VALUE, event_id, headers=[(HEADER, event_id)])
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
