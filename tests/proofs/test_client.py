"""What the driver takes for granted of librdkafka."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from effectonce.kafka import ConfluentClient
from effectonce.ports import TopicPartition
from tests.bad_input.kit import PATIENCE_SECONDS
from tests.proofs.kit import RealFlow


class Assigned:
    """A listener that notes its partitions, and leaves them as they are: paused."""

    def __init__(self) -> None:
        self.partitions: list[TopicPartition] = []

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.partitions += partitions

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_position_gone(self, partition: TopicPartition, reason: str) -> None: ...
    def on_topic_gone(self, topic: str, reason: str) -> None: ...
    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None: ...


@pytest.mark.confluent
def test_a_partition_that_was_paused_is_fetched_from_at_once_or_a_takeover_takes_a_second_more(
    flow: RealFlow,
) -> None:
    """Left to itself librdkafka's first fetch after seek and resume comes 1.0 s later (seen)."""
    flow.send(5)
    client = ConfluentClient({"bootstrap.servers": flow.bootstrap, "group.id": flow.group})
    ours = Assigned()
    client.subscribe([flow.topic], ours)
    until = time.monotonic() + PATIENCE_SECONDS
    while not ours.partitions and time.monotonic() < until:
        client.fetch(1, 0.1)
    client.fetch(1, 0.2)  # paused: nothing comes, and the fetcher goes to sleep
    client.seek((flow.topic, 0), 3)
    client.resume([(flow.topic, 0)])
    began = time.monotonic()
    while not (found := client.fetch(1, 0.1)):
        assert time.monotonic() < until
    took = time.monotonic() - began
    client.close()
    assert found[0].offsets().tolist() == [3]
    assert took < 0.8
