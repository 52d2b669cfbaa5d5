"""Consumers as they are written by hand, which the judge must see through.

`driver="tests.chaos.naive:commit_after"` loses nothing and repeats whatever comes twice;
`commit_before` loses what a kill finds between the commit and the effects.
"""

import signal
import threading
from collections.abc import Iterator
from functools import partial

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from effectonce.testing.chaos.journal import Kind
from effectonce.testing.chaos.target import Target
from effectonce.testing.chaos.worker import HEADER, Job, client_config, event_key


def commit_after(job: Job, target: Target) -> None:
    for batch, consumer in _batches(job, target):
        _make_effects(batch, target)
        _commit(batch, consumer, target)


def commit_before(job: Job, target: Target) -> None:
    for batch, consumer in _batches(job, target):
        _commit(batch, consumer, target)
        _make_effects(batch, target)


def _batches(job: Job, target: Target) -> Iterator[tuple[list[Message], Consumer]]:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    consumer = Consumer(
        client_config(job) | {"auto.offset.reset": "earliest", "enable.auto.commit": False}
    )

    def tell(kind: Kind, _: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            target.note(kind, partition.partition)

    consumer.subscribe(
        [job.topic], on_assign=partial(tell, Kind.ASSIGNED), on_revoke=partial(tell, Kind.RELEASED)
    )
    while not stopped.is_set():
        batch = [m for m in consumer.consume(job.batch, 0.1) if m.error() is None]
        if batch:
            yield batch, consumer
    consumer.close()


def _make_effects(batch: list[Message], target: Target) -> None:
    for message in batch:
        event_id = dict(message.headers() or ())[HEADER]
        partition, offset = message.partition(), message.offset()
        assert isinstance(event_id, bytes)
        assert partition is not None
        assert offset is not None
        target.effect(partition, offset, event_key(event_id.decode()))


def _commit(batch: list[Message], consumer: Consumer, target: Target) -> None:
    topic = batch[0].topic()
    assert topic is not None
    ends: dict[int, int] = {}
    for message in batch:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        ends[partition] = offset + 1
    offsets = [TopicPartition(topic, partition, end) for partition, end in ends.items()]
    try:
        consumer.commit(offsets=offsets, asynchronous=False)
    except KafkaException:
        return  # the group has moved on; the usual loop logs it and goes on too
    for partition, end in ends.items():
        target.note(Kind.COMMITTED, partition, end)
