"""A log and a client in this process: the only member of its group, two records a poll.

Where time matters, `SlowPolls` makes it: a poll takes as long as it is told, at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Self

import numpy as np

import effectonce as eo
from effectonce.errors import StoreError
from effectonce.identity import only_header
from effectonce.model import (
    UNSET,
    Commit,
    CommitResult,
    Committed,
    Known,
    LogEnds,
    Offsets,
    Query,
)
from effectonce.ports import (
    Clock,
    CommitMode,
    Headers,
    KafkaOffset,
    Listener,
    Records,
    Store,
    TopicPartition,
)
from effectonce.stores.commits import behind
from effectonce.stores.memory import MemoryStore

TOPIC = "orders"
HOME: TopicPartition = (TOPIC, 0)
IDS = [str(uuid.UUID(int=n)) for n in range(5)]
CONFIG = {"bootstrap.servers": "nowhere", "group.id": "billing"}
AT_ONCE = eo.Retry(wait_initial=timedelta(0), wait_max=timedelta(0))


def count(event: eo.Event, tx: eo.KeyValueTx) -> None:
    """The usual effect: one more in the event's own row."""
    key = event.id.encode()
    tx.put(key, b"%d" % (int(tx.get(key) or b"0") + 1))


def effects_in(store: MemoryStore) -> list[str]:
    """IDs, as often as they took effect."""
    rows = [row for rows in store._tables.rows.values() for row in rows.items()]
    return sorted(key.decode() for key, value in rows for _ in range(int(value)))


def consumer_of(
    client: LogClient, store: Store, config: dict[str, Any] | None = None, **policy: Any
) -> eo.OnceConsumer:
    usual = {"identify": eo.header("event-id"), "effects": eo.InStore(), "retry": AT_ONCE}
    once = eo.Once(store, **{**usual, **policy})
    return eo.OnceConsumer(
        {**CONFIG, **(config or {})}, [TOPIC], once, client=client, clock=client.clock
    )


class StoreWithBackup(MemoryStore):
    """It can be put back to where it stood: a failover, or a restore."""

    def back_up(self) -> None:
        self._backup = deepcopy(self._tables)

    def go_back(self) -> None:
        self._tables = deepcopy(self._backup)


class FarStore(MemoryStore):
    """A commit arrives when something comes behind it on the way, as late as it may.

    What is asked is answered as early as it may, and then told what was sent behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on_its_way: list[Callable[[], CommitResult]] = []
        self._questions: list[list[Commit]] = []

    def send(self, commit: Commit) -> Callable[[], CommitResult]:
        results: list[CommitResult] = []
        for question in self._questions:
            question.append(commit)

        def arrive() -> CommitResult:
            if not results:
                results.extend(self.commit([commit]))
            return results[0]

        self._on_its_way.append(arrive)
        return arrive

    def ask(self, query: Query) -> Callable[[], Known | StoreError]:
        (answer,) = self.lookup([query])
        sent: list[Commit] = []
        self._questions.append(sent)

        def take() -> Known | StoreError:
            found = answer
            for commit in sent:
                if isinstance(found, Known) and commit.position.run == query.run:
                    found = behind(found, query.keys, commit.markers)
            return found

        return take

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        while self._on_its_way:
            self._on_its_way.pop(0)()
        return super().lookup(queries)


@dataclass
class Log:
    """IDs by offset, and what Kafka has for the group."""

    ids: dict[int, str] = field(default_factory=lambda: dict(enumerate(IDS)))
    committed: Committed | None = None

    @property
    def end(self) -> int:
        return max(self.ids) + 1

    def read(self, offset: int, limit: int) -> SomeRecords:
        rows = [(at, self.ids[at]) for at in sorted(self.ids) if at >= offset]
        return SomeRecords(rows[:limit])


@dataclass
class SomeRecords:
    rows: Sequence[tuple[int, str]]
    topic: str = TOPIC
    partition: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def offsets(self) -> Offsets:
        return np.array([offset for offset, _ in self.rows], np.int64)

    def values(self) -> Sequence[bytes | None]:
        return [each.encode() for _, each in self.rows]

    def keys(self) -> Sequence[bytes | None]:
        return [None] * len(self.rows)

    def headers(self) -> Sequence[Headers]:
        return [[("event-id", each.encode())] for _, each in self.rows]

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header(self.headers(), name, len(self))

    def timestamp_ms(self, row: int) -> int:
        return 1_000_000 + self.rows[row][0]

    def leader_epoch(self, row: int) -> int:
        return UNSET

    def part(self, start: int, stop: int | None = None) -> Records:
        return replace(self, rows=self.rows[start:stop])

    def then(self, behind: Self) -> Records:
        return replace(self, rows=[*self.rows, *behind.rows])


class LogClient:
    """`Client` on a `Log`."""

    holds_cheaply = True
    topic_id = b"T" * 16
    clock: Clock | None = None

    def __init__(self, log: Log, *, a_poll: int = 2) -> None:
        self._log = log
        self._a_poll = a_poll
        self._next = 0
        self._paused = True
        self._listener: Listener | None = None
        self._assigned = False

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        self._listener = listener

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if not self._assigned and self._listener is not None:
            self._assigned = True
            self._listener.on_assigned([HOME])
        if self._paused:
            return ()
        found = self._log.read(self._next, min(limit, self._a_poll))
        if not found.rows:
            self._next = max(self._next, self._log.end)
            return ()
        self._next = found.rows[-1][0] + 1
        return (found,)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused = self._paused or HOME in partitions

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused = self._paused and HOME not in partitions

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._next = offset

    def position(self, partition: TopicPartition) -> int:
        return self._next

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        for each in offsets:
            self._log.committed = Committed(each.offset, each.metadata)

    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        return dict.fromkeys(partitions, self._log.committed)

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        return LogEnds(0, self._log.end)

    def known_end(self, partition: TopicPartition) -> int:
        return self._log.end

    def partitions_of(self, topic: str) -> Sequence[int]:
        return [0]

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        return dict.fromkeys(topics, self.topic_id)

    def close(self) -> None:
        pass


class LogsClient(LogClient):
    """The same of several partitions; a subclass says what a poll brings."""

    def __init__(self, logs: dict[TopicPartition, Log]) -> None:
        super().__init__(Log())
        self.logs = logs
        self.next = dict.fromkeys(logs, 0)
        self.paused = set(logs)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self.paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self.paused.difference_update(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.next[partition] = offset

    def position(self, partition: TopicPartition) -> int:
        return self.next[partition]

    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        return dict.fromkeys(partitions)

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        pass

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        return LogEnds(0, self.logs[partition].end)

    def known_end(self, partition: TopicPartition) -> int:
        return self.logs[partition].end

    def partitions_of(self, topic: str) -> Sequence[int]:
        return [number for _, number in self.logs]


class Handmade:
    """A clock that stands still between two polls."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.days = 0

    def wall_ms(self) -> int:
        return 1_800_000_000_000 + self.days * 86_400_000

    def monotonic(self) -> float:
        return self.now


class SlowPolls(LogClient):
    """Each poll takes so many seconds of its own clock; `at_poll` is done before the nth."""

    def __init__(self, log: Log, seconds: float) -> None:
        super().__init__(log)
        self.clock = self.handmade = Handmade()
        self._seconds = seconds
        self._polls = 0
        self.at_poll: dict[int, Callable[[], None]] = {}

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.handmade.now += self._seconds
        self._polls += 1
        self.at_poll.get(self._polls, lambda: None)()
        return super().fetch(limit, timeout_seconds)
