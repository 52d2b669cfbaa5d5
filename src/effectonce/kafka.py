"""The confluent-kafka adapter: the `Client` port on librdkafka.

New partitions are assigned *paused at the beginning*: with the offset unset and none committed,
even a paused assignment emits _AUTO_OFFSET_RESET, and a seek inside the callback fails (both seen
on 2.16).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from operator import length_hint
from typing import Any, Final

import numpy as np
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
)
from confluent_kafka import TopicPartition as _TopicPartition
from confluent_kafka.admin import AdminClient

from effectonce.errors import BrokerError, ConfigError
from effectonce.identity import UNREADABLE_HEADERS, only_header
from effectonce.leaving import Leaving, give_back
from effectonce.model import NO_ID, UNSET, Committed, LogEnds, Offsets
from effectonce.native import native
from effectonce.ports import (
    CommitMode,
    Headers,
    KafkaOffset,
    Listener,
    Records,
    TopicPartition,
)
from effectonce.settings import (
    admin_settings,
    consumer_settings,
    is_incremental,
    leaves_by_unsubscribing,
)

__all__ = ["ConfluentClient", "is_topic_gone", "said_by", "uuid_bytes"]

log = logging.getLogger("effectonce")

CALL_SECONDS: Final = 10.0
"""Limit of one blocking call: below the default session (45 s) by a wide margin, so that a broker
that hangs costs a retry and not the membership."""


class MessageRecords:
    """`Records` over librdkafka's messages; each column is read once, when asked for."""

    __slots__ = ("_headers", "_keys", "_messages", "_offsets", "_values", "partition", "topic")

    def __init__(self, topic: str, partition: int, messages: list[Message]) -> None:
        self.topic = topic
        self.partition = partition
        self._messages = messages
        self._offsets: Offsets | None = None
        self._values: list[bytes | None] | None = None
        self._keys: list[bytes | None] | None = None
        self._headers: list[Headers] | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def offsets(self) -> Offsets:
        if self._offsets is None:
            self._offsets = self._read_offsets()
        return self._offsets

    def _read_offsets(self) -> Offsets:
        # they only rise, so a run without gaps is known by its ends: 50 ns a message less
        first: Any = self._messages[0].offset()
        last: Any = self._messages[-1].offset()
        if last - first == len(self._messages) - 1:
            return np.arange(first, last + 1, dtype=np.int64)
        return np.array([m.offset() for m in self._messages], np.int64)

    def values(self) -> Sequence[bytes | None]:
        if self._values is None:
            self._values = list(map(Message.value, self._messages))
        return self._values

    def keys(self) -> Sequence[bytes | None]:
        if self._keys is None:
            self._keys = list(map(Message.key, self._messages))
        return self._keys

    def headers(self) -> Sequence[Headers]:
        if self._headers is None:
            self._headers = _headers_of(self._messages)
        return self._headers

    def only_header(self, name: str) -> list[bytes | None] | None:
        if self._headers is not None:
            return only_header(self._headers, name, len(self._messages))
        if native is not None:
            found = native.only_header(self._messages, Message.headers, name)
            if not isinstance(found, int):
                return found
            _mend(self._messages[found])
            return None
        rest = iter(self._messages)
        try:
            read: Any = map(Message.headers, rest)
            return only_header(read, name, len(self._messages))
        except SystemError:
            _mend(self._messages[-1 - length_hint(rest)])
            return None

    def timestamp_ms(self, row: int) -> int:
        kind, at = self._messages[row].timestamp()
        return UNSET if kind == TIMESTAMP_NOT_AVAILABLE else at

    def leader_epoch(self, row: int) -> int:
        epoch = self._messages[row].leader_epoch()
        return UNSET if epoch is None else epoch

    def part(self, start: int, stop: int | None = None) -> MessageRecords:
        return MessageRecords(self.topic, self.partition, self._messages[start:stop])

    def then(self, behind: MessageRecords) -> MessageRecords:
        return MessageRecords(self.topic, self.partition, self._messages + behind._messages)


def _headers_of(messages: Sequence[Message]) -> list[Headers]:
    """Of each message; UNREADABLE_HEADERS where a name is not UTF-8.

    For such a name the client sets an exception *and* returns a tuple with a hole in it (2.16,
    seen). A plain call lets both pass, to crash the interpreter later; `map` checks, and raises
    SystemError. Asked a second time the client only has the hole, so the message is mended.
    """
    headers: list[Any] = []  # the stubs have other types than what comes
    reading = map(Message.headers, messages)
    while len(headers) < len(messages):
        try:
            headers.extend(reading)
        except SystemError:
            _mend(messages[len(headers)])
            headers.append(UNREADABLE_HEADERS)
    return headers


def _mend(unreadable: Message) -> None:
    unreadable.set_headers(UNREADABLE_HEADERS)  # type: ignore[arg-type]


class ConfluentClient:
    """The real `Client`. `config` has passed `config_problems`; librdkafka may find more."""

    holds_cheaply = native is not None

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._incremental = is_incremental(config)
        settings = consumer_settings(config)
        settings["on_commit"] = self._on_commit(config.get("on_commit"))
        try:
            self._consumer = Consumer(settings)
            self._admin = AdminClient(admin_settings(config))
        except (KafkaException, TypeError, ValueError) as error:
            raise ConfigError([f"librdkafka: {said_by(error)}"]) from error
        self._listener: Listener | None = None
        self._topics: Sequence[str] = ()
        self._has_topic_ids: bool | None = None
        self._leaving = Leaving()
        self._fetching = False
        """A callback, or a signal's handler, that closes now is within a call of the consumer."""
        self._gives_back = not leaves_by_unsubscribing(config)

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        self._listener = listener
        self._topics = topics
        self._consumer.subscribe(
            list(topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    # `consume(n, t)` waits the whole t unless n arrive (seen): poll for the first, then take
    # what is there
    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self._fetching = True
        try:
            first = self._consumer.poll(timeout_seconds)
            if first is None:
                return ()
            messages = self._consumer.consume(limit - 1, 0) if limit > 1 else []
            messages.insert(0, first)
        finally:
            self._fetching = False
        homes = native.survey(messages, Message.error, Message.partition) if native else None
        if homes is None and any(map(Message.error, messages)):
            messages = self._without_errors(messages)
        return _grouped(messages, self._topics, homes)

    def _without_errors(self, messages: list[Message]) -> list[Message]:
        """An error comes as a message without headers and with its text as the value."""
        good = []
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
            else:
                self._trouble(message, error)
        return good

    def _trouble(self, message: Message, error: KafkaError) -> None:
        assert self._listener is not None
        code, topic, partition = error.code(), message.topic(), message.partition()
        if error.fatal():
            raise BrokerError(f"Kafka: {error.str()}")
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if topic is not None and partition is not None:
                self._listener.on_position_gone((topic, partition), error.str())
        elif code in _TOPIC_GONE and topic is not None:
            self._listener.on_topic_gone(topic, error.str())
        elif not error.retriable() and code not in _PASSING:
            raise BrokerError(f"Kafka: {error.str()}")
        else:
            log.warning("Kafka: %s", error.str())

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            self._consumer.pause(_bare(partitions))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            self._consumer.resume(_bare(partitions))
            self._wake_fetcher(partitions)

    def _wake_fetcher(self, partitions: Sequence[TopicPartition]) -> None:
        """Ask the partitions' leaders something, and wait for no answer.

        Resuming does not wake librdkafka's idle broker thread: the first fetch came up to 1 s
        later, and always 1.0 s after seek and resume; woken, 5 ms later (2.16, seen).
        """
        with suppress(KafkaException):  # always: it timed out
            self._consumer.offsets_for_times([_TopicPartition(*p, 0) for p in partitions], 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        with _translated("seek"):
            self._consumer.seek(_TopicPartition(*partition, offset))

    def position(self, partition: TopicPartition) -> int:
        with _translated("position"):
            (position,) = self._consumer.position(_bare([partition]))
        return UNSET if position.offset < 0 else position.offset

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        if not offsets:
            return
        rows = [_TopicPartition(o.topic, o.partition, o.offset, o.metadata) for o in offsets]
        with _translated("commit"):
            if mode is not CommitMode.SYNC:
                # LAST too: a partition goes once no commit is on its way (100 of 100, seen). A sync
                # one waits as long as the broker is silent: 9 minutes, until we were killed (seen)
                self._consumer.commit(offsets=rows, asynchronous=True)
                return
            for row in self._consumer.commit(offsets=rows, asynchronous=False) or ():
                if row.error is not None:
                    raise KafkaException(row.error)

    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        with _translated("committed"):
            # the stubs deny what is None at run time
            rows: list[Any] = self._consumer.committed(_bare(partitions), timeout=CALL_SECONDS)
        found: dict[TopicPartition, Committed | None] = {}
        for row in rows:
            if row.error is not None:
                raise BrokerError(f"Kafka, committed: {row.error.str()}")
            if row.offset < 0:
                found[row.topic, row.partition] = None
            else:
                epoch = UNSET if row.leader_epoch is None else row.leader_epoch
                found[row.topic, row.partition] = Committed(row.offset, row.metadata or "", epoch)
        return found

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        with _translated("log ends"):
            ends: Any = self._consumer.get_watermark_offsets(
                _TopicPartition(*partition), timeout=CALL_SECONDS, cached=False
            )
        if ends is None:
            raise BrokerError(f"Kafka, log ends: no answer within {CALL_SECONDS} s")
        return LogEnds(*ends)

    def known_end(self, partition: TopicPartition) -> int:
        with _translated("known end"):
            ends: Any = self._consumer.get_watermark_offsets(
                _TopicPartition(*partition), cached=True
            )
        return UNSET if ends is None or ends[1] < 0 else int(ends[1])

    def partitions_of(self, topic: str) -> Sequence[int]:
        with _translated("metadata"):
            found = self._consumer.list_topics(topic, timeout=CALL_SECONDS).topics.get(topic)
        return sorted(found.partitions) if found is not None else ()

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        if self._has_topic_ids is None:
            self._has_topic_ids = not self._is_mock()
        if not self._has_topic_ids:
            return dict.fromkeys(topics, NO_ID)
        answers = self._admin.describe_topics(
            TopicCollection(list(topics)), request_timeout=CALL_SECONDS
        )
        found = {}
        for topic, answer in answers.items():
            try:
                topic_id = answer.result(CALL_SECONDS).topic_id
            except TimeoutError as error:  # sooner than librdkafka's own
                raise BrokerError(f"Kafka, topic ids: no answer in {CALL_SECONDS} s") from error
            except KafkaException as error:
                if not is_topic_gone(error):
                    raise BrokerError(f"Kafka, topic ids: {said_by(error)}") from error
            else:
                found[topic] = uuid_bytes(topic_id)
        return found

    def _is_mock(self) -> bool:
        """librdkafka's mock cluster answers no DescribeTopics and gives topics no ids."""
        with _translated("metadata"):
            cluster = self._consumer.list_topics(timeout=CALL_SECONDS).cluster_id or ""
        if cluster.startswith("mockCluster"):
            log.info("the mock broker has no topic ids: a recreated topic goes unnoticed there")
            return True
        return False

    def close(self) -> None:
        try:
            # once it has begun, every other call of the consumer waits for it
            if self._gives_back and not self._leaving.has_begun:
                with suppress(KafkaException):
                    self._give_back()
        finally:
            self._leaving.end(self._consumer.close, here=self._fetching)

    def _give_back(self) -> None:
        give_back(self._consumer)

    # -- librdkafka's callbacks ----------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        assert self._listener is not None
        new = [_TopicPartition(p.topic, p.partition, OFFSET_BEGINNING) for p in partitions]
        if self._incremental:
            consumer.incremental_assign(new)
        else:
            consumer.assign(new)
        if new:
            consumer.pause(new)
        self._listener.on_assigned([(p.topic, p.partition) for p in new])

    def _on_revoke(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        assert self._listener is not None
        self._listener.on_revoked([(p.topic, p.partition) for p in partitions])
        self._unassign(consumer, partitions)

    def _on_lost(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        assert self._listener is not None
        self._listener.on_lost([(p.topic, p.partition) for p in partitions])
        self._unassign(consumer, partitions)

    def _unassign(self, consumer: Consumer, partitions: list[_TopicPartition]) -> None:
        if self._incremental:
            consumer.incremental_unassign(partitions)
        else:
            consumer.unassign()

    def _on_commit(self, users: Callable[..., None] | None) -> Callable[..., None]:
        def on_commit(error: KafkaError | None, partitions: list[_TopicPartition]) -> None:
            # no harm: the store has the position, Kafka only follows it
            if error is not None:
                log.info("Kafka refused a commit: %s", error.str())
                if self._listener is not None:
                    self._listener.on_commit_refused([(p.topic, p.partition) for p in partitions])
            if users is not None:
                users(error, partitions)

        return on_commit


_TOPIC_GONE: Final = frozenset(
    (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_ID)
)
_PASSING: Final = frozenset(
    (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._MAX_POLL_EXCEEDED,
     KafkaError._RESOLVE, KafkaError._TIMED_OUT, KafkaError._PARTITION_EOF)
)  # fmt: skip


@contextmanager
def _translated(call: str) -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise BrokerError(f"Kafka, {call}: {said_by(error)}") from error


def is_topic_gone(error: KafkaException) -> bool:
    """Whether the broker has no such topic."""
    return error.args[0].code() in _TOPIC_GONE


def said_by(error: Exception) -> str:
    """What librdkafka, or its Python face, says went wrong."""
    (said,) = error.args
    return said.str() if isinstance(said, KafkaError) else str(said)


def _bare(partitions: Sequence[TopicPartition]) -> list[_TopicPartition]:
    return [_TopicPartition(*partition) for partition in partitions]


def _grouped(
    messages: list[Message], topics: Sequence[str], homes: list[int] | int | None = None
) -> Sequence[Records]:
    """By partition, in delivered order. A drained batch mostly holds a single one.

    `homes`: their numbers, or the one of all, where they are known.
    """
    if not messages:
        return ()
    if len(topics) == 1:  # then nobody needs to ask each message for it: 25 ns
        if isinstance(homes, int):
            return [MessageRecords(topics[0], homes, messages)]
        numbers: list[Any] = homes or list(map(Message.partition, messages))
        return [
            MessageRecords(topics[0], number, group) for number, group in _runs(numbers, messages)
        ]
    places: Any = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
    groups: Any = _runs(list(places), messages)
    return [MessageRecords(topic, number, group) for (topic, number), group in groups]


def _runs(homes: list[Any], messages: list[Message]) -> Iterable[tuple[Any, list[Message]]]:
    """The messages of each home, in order."""
    if homes.count(homes[0]) == len(homes):
        return ((homes[0], messages),)
    groups: dict[Any, list[Message]] = {}
    rest = iter(messages)
    # mostly many of one follow each other: 20 ns a message then, 90 where each is looked at
    for home, run in groupby(homes):
        groups.setdefault(home, []).extend(islice(rest, len(list(run))))
    return groups.items()


def uuid_bytes(topic_id: Any) -> bytes:
    """confluent's Uuid as 16 bytes; its halves are signed."""
    halves = (topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits())
    return b"".join((half & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big") for half in halves)
