"""pytest fixtures: `takes_effect_once` for handlers; servers, one a session, and `kafka_topic`.

Loaded in every pytest run of every project that has effectonce installed, so nothing but pytest is
imported before a fixture is used. Where a server cannot be had, its tests are skipped with what to
install; with `CI` set they fail, since a promise that nobody tested must not look kept.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from effectonce.handlers import Handler
    from effectonce.once import Once
    from effectonce.testing import PerProcess, Report, Sample, Target
    from effectonce.testing.servers import KafkaServer, MockKafka, ValkeyServer

_Server = TypeVar("_Server")


class TopicFactory(Protocol):
    """Creates a topic that no other test has and returns its name."""

    def __call__(
        self, partitions: int = 1, config: Mapping[str, str | int] | None = None
    ) -> str: ...


class TakesEffectOnce(Protocol):
    """`effectonce.testing.exercise`, then `Report.check`: fails the test with what went wrong."""

    def __call__(
        self,
        handler: Handler | PerProcess,
        records: Sequence[Sample | tuple[str, Any] | dict[str, Any]],
        once: Once,
        *,
        target: Target | None = None,
        topic: str = "exercised",
        may_repeat: bool = False,
    ) -> Report: ...


@pytest.fixture
def takes_effect_once() -> TakesEffectOnce:
    """Whether a handler's effects happen once, whatever goes wrong: see docs/testing.md."""
    from effectonce.testing import exercise

    def check(
        handler: Handler | PerProcess,
        records: Sequence[Sample | tuple[str, Any] | dict[str, Any]],
        once: Once,
        *,
        target: Target | None = None,
        topic: str = "exercised",
        may_repeat: bool = False,
    ) -> Report:
        report = exercise(handler, records, once, target=target, topic=topic)
        try:
            return report.check(may_repeat=may_repeat)
        except AssertionError as error:
            wrong = str(error)
        # out here, since pytest prints what an exception was raised from as well: the text, twice
        pytest.fail(wrong, pytrace=False)

    return check


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
