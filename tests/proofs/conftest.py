"""Flows on Apache Kafka: a topic, a group and a state folder a test, one broker a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from effectonce import hooks
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import Watch
from tests.proofs.kit import DRIVERS, RealFlow


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    hooks.set_hooks([watch.note])
    yield watch
    hooks.set_hooks([])


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """The driver whose turn it is."""
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Combinations that there are not, are not collected: a skip would be a hole."""
    items[:] = [item for item in items if not _is_elsewhere(item)]


def _is_elsewhere(item: pytest.Item) -> bool:
    params: Mapping[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("driver") == "aiokafka" and (
        params.get("protocol", "range") != "range" or bool(item.get_closest_marker("confluent"))
    )


@pytest.fixture
def flows(
    kafka_server: KafkaServer,
    kafka_topic: TopicFactory,
    tmp_path: Path,
    watch: Watch,
    driver: str,
) -> Callable[[int], RealFlow]:
    """Makes flows with so many partitions."""

    def make(partitions: int) -> RealFlow:
        return RealFlow(kafka_server, kafka_topic(partitions), tmp_path / "state", watch, driver)

    return make


@pytest.fixture
def flow(flows: Callable[[int], RealFlow]) -> RealFlow:
    """One partition."""
    return flows(1)
