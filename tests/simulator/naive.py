"""Consumers as they are written by hand, in a simulated cluster: each is right until a fault.

| consumer         | dedupes by                               | position | what breaks it        |
| ---------------- | ---------------------------------------- | -------- | --------------------- |
| SetNxLoop        | SET NX EX, then the handler              | Kafka    | a crash in between    |
| RowFirst         | a row, then the handler                  | Kafka    | a handler that raises |
| OffsetFirst      | effect and row in one transaction        | Kafka    | a crash after it      |
| AioKafka         | nothing: the offset is all it has        | Kafka    | a commit sent again   |
| EffectInRedis    | marker and effect in one script          | Kafka    | a lost suffix         |
| PositionInRedis  | effect, then marker and position at once | Redis    | a lost suffix         |
| InboxByWallClock | effect and row with an end, at once      | Kafka    | days of downtime      |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from effectonce.errors import BrokerError
from effectonce.ports import CommitMode, KafkaOffset, Records, TopicPartition
from effectonce.testing.simulator.process import HandlerRaised, Process
from effectonce.testing.simulator.schedule import Dead

WEEK_MS: Final = 7 * 86_400_000
BACKOFF_SECONDS: Final = 0.1
"""aiokafka's `retry_backoff_ms`."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One record, as such code sees it."""

    name: str
    partition: int
    offset: int


@dataclass(slots=True)
class Keys:
    """Keys with an expiry, as in Redis or in a table with `expires_at`: on its own wall clock."""

    world: Any
    values: dict[str, tuple[int, int]] = field(default_factory=dict)

    def get(self, key: str) -> int | None:
        value, expires_ms = self.values.get(key, (0, 0))
        return value if expires_ms > self.world.wall_ms() else None

    def set(self, key: str, value: int = 1, *, ms: int = 1000 * WEEK_MS) -> None:
        self.values[key] = (value, self.world.wall_ms() + ms)

    def add(self, key: str, *, ms: int) -> bool:
        """SET NX EX; whether it was not there."""
        new = self.get(key) is None
        if new:
            self.set(key, ms=ms)
        return new


class Naive(Process):
    """Fetch, an effect for each event, commit; a member that dies is started again."""

    dedupes = True
    leaving = busy = False

    def main(self) -> None:
        try:
            self.client.subscribe([self.world.topic], self)
            while not self.leaving:
                batch = self.client.fetch(20, 0.1)
                self.busy = bool(batch)
                if batch:
                    self.take(batch)
            self.client.close()
        except (BrokerError, HandlerRaised) as error:
            self.world.tell(self.name, f"dies of {error!r}")
        except Dead:
            pass
        finally:
            self.exit()

    def take(self, batch: Sequence[Records]) -> None:
        for delivery in deliveries(batch):
            self.event(delivery)
        self.client.commit(after(batch), CommitMode.SYNC)

    def event(self, delivery: Delivery) -> None:
        raise NotImplementedError

    def handle(self, delivery: Delivery) -> None:
        """The handler: its effect is outside, and stays."""
        world = self.world
        self.enter("handler", world.faults.handler_seconds(self))
        world.faults.handler_raises(self, "handler raises", delivery.name)
        world.effects[delivery.name] += 1
        self.leave("handler", f"{delivery.name} at {delivery.partition}@{delivery.offset}")

    def inbox(self, delivery: Delivery) -> None:
        """One database transaction: the effect, and the row that says so."""
        self.enter("database")
        if self.world.database.add(delivery.name, ms=WEEK_MS):
            self.world.effects[delivery.name] += 1
        self.leave("database", f"{delivery.name} at {delivery.partition}@{delivery.offset}")

    def position(self, partition: TopicPartition) -> int:
        """Where a partition begins."""
        committed = self.client.committed([partition])[partition]
        return committed.offset if committed else 0

    # -- Listener ------------------------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self.client.seek(partition, self.position(partition))
        self.client.resume(partitions)

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Nothing is left to commit: a batch ends with that."""

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """As on a revoke."""

    def on_position_gone(self, partition: TopicPartition, reason: str) -> None:
        raise AssertionError(f"{partition}: {reason}")

    def on_topic_gone(self, topic: str, reason: str) -> None:
        raise AssertionError(f"{topic}: {reason}")

    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None:
        raise AssertionError("it commits synchronously")


class SetNxLoop(Naive):
    """The loop of a thousand blog posts."""

    def event(self, delivery: Delivery) -> None:
        self.enter("redis.set")
        new = self.world.redis.add(delivery.name, ms=WEEK_MS)
        self.leave("redis.set", f"{delivery.name} {'OK' if new else 'nil'}")
        if new:
            self.handle(delivery)


class RowFirst(Naive):
    """`INSERT ... ON CONFLICT DO NOTHING`, committed; then the handler."""

    def event(self, delivery: Delivery) -> None:
        self.enter("insert")
        new = self.world.database.add(delivery.name, ms=WEEK_MS)
        self.leave("insert", delivery.name)
        if new:
            self.handle(delivery)


class OffsetFirst(Naive):
    """Commits what it was given, as auto commit may; then works, and that rightly."""

    def take(self, batch: Sequence[Records]) -> None:
        self.client.commit(after(batch), CommitMode.SYNC)
        for delivery in deliveries(batch):
            self.inbox(delivery)


class AioKafka(Naive):
    """The loop of aiokafka's manual: it commits what it has done, also when it is revoked.

    aiokafka serves the group in the background, and sends a commit that met a retriable error
    again after a backoff: the same offsets, under the generation of that moment. Between the two
    the partition may have gone (0.14: `commit_offsets` looks at the assignment once).
    """

    dedupes = False

    def main(self) -> None:
        self.pending: dict[TopicPartition, KafkaOffset] = {}
        super().main()

    def take(self, batch: Sequence[Records]) -> None:
        for delivery in deliveries(batch):
            self.handle(delivery)
        self.pending = {(o.topic, o.partition): o for o in after(batch)}
        sent = list(self.pending.values())
        while not self.settled(sent):
            self.sleep(BACKOFF_SECONDS / 2)
            self.client.fetch(0, 0.0)  # the background task
            self.sleep(BACKOFF_SECONDS / 2)
        self.pending.clear()

    def settled(self, offsets: Sequence[KafkaOffset]) -> bool:
        """False where aiokafka would send it again."""
        member = self.client.member
        try:
            self.client.commit(offsets, CommitMode.SYNC)
        except BrokerError:
            return member is None or member.expelled  # CommitFailedError: logged, and on it goes
        return True

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        done = [self.pending[p] for p in partitions if p in self.pending]
        while not self.settled(done):
            self.sleep(BACKOFF_SECONDS)


class EffectInRedis(Naive):
    """One Lua script sets the marker and makes the effect; Kafka has the position."""

    def event(self, delivery: Delivery) -> None:
        self.enter("redis.eval")
        if self.world.redis.add(delivery.name, ms=WEEK_MS):
            made = self.world.redis.get(f"effect {delivery.name}") or 0
            self.world.redis.set(f"effect {delivery.name}", made + 1)
        self.leave("redis.eval", f"{delivery.name} at {delivery.partition}@{delivery.offset}")


class PositionInRedis(Naive):
    """The handler, then MULTI with the marker and the position: Kafka is not asked."""

    def take(self, batch: Sequence[Records]) -> None:
        for delivery in deliveries(batch):
            self.enter("redis.get")
            if self.world.redis.get(delivery.name) is None:
                self.handle(delivery)
            self.enter("redis.multi")
            self.world.redis.set(delivery.name, ms=WEEK_MS)
            self.world.redis.set(f"position {delivery.partition}", delivery.offset + 1)
            self.leave("redis.multi", f"{delivery.partition}@{delivery.offset}")

    def position(self, partition: TopicPartition) -> int:
        return self.world.redis.get(f"position {partition[1]}") or 0


class InboxByWallClock(Naive):
    """The transactional inbox, whose rows go after a week, by the database's clock."""

    def event(self, delivery: Delivery) -> None:
        self.inbox(delivery)


def deliveries(batch: Sequence[Records]) -> Iterator[Delivery]:
    for records in batch:
        for offset, value in zip(records.offsets().tolist(), records.values(), strict=True):
            yield Delivery((value or b"").decode(), records.partition, offset)


def after(batch: Sequence[Records]) -> list[KafkaOffset]:
    """The offsets behind these records."""
    return [
        KafkaOffset(records.topic, records.partition, int(records.offsets()[-1]) + 1, "")
        for records in batch
    ]
