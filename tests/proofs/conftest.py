"""Flows on Apache Kafka: a topic, a group and a state folder a test, one broker a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effectonce import hooks
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import Watch
from tests.proofs.kit import RealFlow


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    hooks.set_hooks([watch.note])
    yield watch
    hooks.set_hooks([])


@pytest.fixture
def flows(
    kafka_server: KafkaServer, kafka_topic: TopicFactory, tmp_path: Path, watch: Watch
) -> Callable[[int], RealFlow]:
    """Makes flows with so many partitions."""

    def make(partitions: int) -> RealFlow:
        return RealFlow(kafka_server, kafka_topic(partitions), tmp_path / "state", watch)

    return make


@pytest.fixture
def flow(flows: Callable[[int], RealFlow]) -> RealFlow:
    """One partition."""
    return flows(1)
