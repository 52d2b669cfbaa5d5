"""The mock broker where it is honest, Apache Kafka where it is not; and no ID in any log line."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effectonce import hooks
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer, MockKafka
from tests.bad_input.kit import Flow, Watch


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Hook events, and log lines as text: a test can wait for either."""
    watch = Watch()
    hooks.set_hooks([watch.note])
    lines = logging.Handler(logging.WARNING)
    lines.emit = lambda record: watch.note(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("effectonce").addHandler(lines)
    yield watch
    logging.getLogger("effectonce").removeHandler(lines)
    hooks.set_hooks([])


@pytest.fixture
def told_nothing(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[Flow], Flow]]:
    """Whatever a test makes the library log, no event ID may be in it."""
    caplog.set_level(logging.DEBUG)
    flows: list[Flow] = []

    def remember(flow: Flow) -> Flow:
        flows.append(flow)
        return flow

    yield remember
    for flow in flows:
        assert not flow.shown(caplog.text)


@pytest.fixture
def flow(
    mock_kafka: MockKafka,
    tmp_path: Path,
    watch: Watch,
    told_nothing: Callable[[Flow], Flow],
) -> Flow:
    """Two partitions on the mock broker."""
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    mock_kafka.create_topic(topic, 2)
    return told_nothing(Flow(mock_kafka.bootstrap, topic, tmp_path / "state", watch))


@pytest.fixture
def real_flow(
    kafka_server: KafkaServer,
    kafka_topic: TopicFactory,
    tmp_path: Path,
    watch: Watch,
    told_nothing: Callable[[Flow], Flow],
) -> Flow:
    """Two partitions on Apache Kafka."""
    topic = kafka_topic(2)
    return told_nothing(Flow(kafka_server.bootstrap, topic, tmp_path / "state", watch))
