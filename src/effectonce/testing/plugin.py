"""pytest fixtures: `kafka_server`, `mock_kafka`, `valkey_server` (one a session) and `kafka_topic`.

Loaded in every pytest run of every project that has effectonce installed, so nothing but pytest is
imported before a fixture is used. Where a server cannot be had, its tests are skipped with what to
install; with `CI` set they fail, since a promise that nobody tested must not look kept.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from effectonce.testing.servers import KafkaServer, MockKafka, ValkeyServer

_Server = TypeVar("_Server")


class TopicFactory(Protocol):
    """Creates a topic that no other test has and returns its name."""

    def __call__(
        self, partitions: int = 1, config: Mapping[str, str | int] | None = None
    ) -> str: ...


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """Apache Kafka, one broker for the session; a test that kills it must bring it back."""
    from effectonce.testing.servers import KafkaServer

    with _started(KafkaServer.start) as server:
        yield server


@pytest.fixture(scope="session")
def mock_kafka() -> Iterator[MockKafka]:
    """librdkafka's mock cluster, one broker for the session: for quick tests, not for promises."""
    from effectonce.testing.servers import MockKafka

    with _started(MockKafka.start) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """Valkey, one server for the session; a test that kills it must bring it back."""
    from effectonce.testing.servers import ValkeyServer

    with _started(ValkeyServer.start) as server:
        yield server


@pytest.fixture
def kafka_topic(
    kafka_server: KafkaServer, request: pytest.FixtureRequest
) -> Iterator[TopicFactory]:
    """A factory of topics on `kafka_server`, named after the test and deleted after it."""
    created: list[str] = []

    def create(partitions: int = 1, config: Mapping[str, str | int] | None = None) -> str:
        test = re.sub(r"[^a-zA-Z0-9._-]+", "-", request.node.name)[:80]
        name = f"{test}-{uuid.uuid4().hex[:8]}"
        kafka_server.create_topic(name, partitions, config)
        created.append(name)
        return name

    yield create
    for name in created:
        kafka_server.delete_topic(name)


def _started(start: Callable[[], _Server]) -> _Server:
    from effectonce.testing.servers import ServerUnavailable

    try:
        return start()
    except ServerUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
