"""What the proofs on Apache Kafka share, beyond the kit of tests/bad_input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

import effectonce as eo
from effectonce.aiokafka_client import AiokafkaClient
from effectonce.hooks import PartitionBegan
from effectonce.kafka import ConfluentClient
from effectonce.model import Committed, Position
from effectonce.ports import CommitMode, KafkaOffset
from effectonce.stores.rocksdb_beside import read_beside_owner
from effectonce.stores.rocksdb_files import Folder, topic_folder
from effectonce.stores.rocksdb_image import read_position
from effectonce.stores.rocksdb_options import Shared
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import PATIENCE_SECONDS, Flow, Watch
from tests.proofs.aio_kit import Driven

RESET_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"

CLASSIC = {"group.protocol": "classic", "session.timeout.ms": 1500}
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "range": {**CLASSIC, "partition.assignment.strategy": "range"},
    "cooperative-sticky": {**CLASSIC, "partition.assignment.strategy": "cooperative-sticky"},
    "kip-848": {"group.protocol": "consumer"},
}


DRIVERS: Mapping[str, Any] = {"confluent": eo.OnceConsumer, "aiokafka": Driven}
"""Every proof runs on each; aiokafka speaks the classic protocol alone, with eager assignors."""


class RealFlow(Flow):
    """A flow on Apache Kafka, with what operators do to it."""

    def __init__(
        self,
        server: KafkaServer,
        topic: str,
        state: Path,
        watch: Watch,
        driver: str = "confluent",
    ) -> None:
        super().__init__(server.bootstrap, topic, state, watch)
        self.server = server
        self.driver_name = driver
        self.driver = DRIVERS[driver]

    @property
    def client(self) -> type[ConfluentClient] | type[AiokafkaClient]:
        """The driver's client, for a test to patch."""
        return AiokafkaClient if self.driver_name == "aiokafka" else ConfluentClient

    def on_commit(
        self,
        patch: pytest.MonkeyPatch,
        *,
        before: Callable[[Sequence[KafkaOffset]], None] = lambda _: None,
        after: Callable[[Sequence[KafkaOffset]], None] = lambda _: None,
    ) -> None:
        """What a commit to Kafka does besides."""
        client: Any = self.client
        real = client.commit

        def commit(self: Any, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
            before(offsets)
            real(self, offsets, mode)
            after(offsets)

        async def commit_async(self: Any, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
            before(offsets)
            await real(self, offsets, mode)
            after(offsets)

        patch.setattr(client, "commit", commit_async if client is AiokafkaClient else commit)

    def reset(self, *how: str) -> None:
        """Kafka's own tool: `--to-offset 3`, `--to-earliest`, ..."""
        self.server.tool(
            RESET_TOOL,
            *("--bootstrap-server", self.bootstrap, "--group", self.group, "--topic", self.topic),
            *("--reset-offsets", "--execute", *how),
        )

    def delete_group(self) -> None:
        self.server.tool(
            RESET_TOOL,
            *("--bootstrap-server", self.bootstrap, "--group", self.group, "--delete"),
        )

    def long_sessions(self) -> None:
        """Under KIP-848 a killed member stays in this group for three seconds."""
        self.server.tool(
            "kafka.admin.ConfigCommand",
            *("--bootstrap-server", self.bootstrap, "--alter", "--entity-type", "groups"),
            *("--entity-name", self.group, "--add-config", "consumer.session.timeout.ms=3000"),
        )

    def grow(self, partitions: int) -> None:
        """Add partitions to the topic."""
        self.server.tool(
            "org.apache.kafka.tools.TopicCommand",
            *("--bootstrap-server", self.bootstrap, "--alter", "--topic", self.topic),
            *("--partitions", str(partitions)),
        )
        # one that knows them
        self._producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 1})

    def commit_plainly(self, offset: int, partition: int = 0, metadata: str = "") -> None:
        """As a consumer without effectonce would."""
        with self._plain() as consumer:
            rows = [TopicPartition(self.topic, partition, offset, metadata)]
            consumer.commit(offsets=rows, asynchronous=False)

    def committed(self, partition: int = 0) -> Committed | None:
        """What Kafka has for the group."""
        with self._plain() as consumer:
            (row,) = consumer.committed([TopicPartition(self.topic, partition)], PATIENCE_SECONDS)
        return None if row.offset < 0 else Committed(row.offset, row.metadata or "")

    @contextmanager
    def _plain(self) -> Iterator[Consumer]:
        plain = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.group})
        try:
            yield plain
        finally:
            plain.close()

    def partition_folder(self, partition: int = 0) -> Path:
        return topic_folder(self.state, self.group, self.group, self.topic) / str(partition)

    def position(self, partition: int = 0) -> Position:
        """The row as it stands in the store."""
        row = read_beside_owner(Folder(self.state, self.at(partition)), Shared(), read_position)
        assert row is not None
        return row.position

    def rows(self) -> list[str]:
        """Rows of the start table, in the order in which partitions began."""
        return [began.row for began in self.watch.of(PartitionBegan)]
