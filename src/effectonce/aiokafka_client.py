"""The aiokafka adapter: the `AsyncClient` port on AIOKafkaConsumer, the only importer of aiokafka.

aiokafka serves the group from a task of its own, whatever the driver does meanwhile. The driver's
`hold` lock says who may touch the assignment: a callback waits for it, and `fetch` lends it out
while it waits for records. So callbacks come inside `fetch`, or while a handler runs.

What aiokafka 0.14 does by itself, and how it is kept from that (all seen in its source):

| it                                                     | here                                    |
| ------------------------------------------------------ | --------------------------------------- |
| goes to the committed offset, or raises without one    | sought and paused as it is assigned     |
| waits without end for an assignment, in `getmany`      | under a limit, which loses nothing      |
| repeats a commit without end, into the next generation | sent once: the driver tells Kafka again |
| loses what it took of one partition when another       | every position is put back behind what  |
|   raises (a corrupt batch)                             |   was handed over                       |
| looks for new partitions, or a topic made anew, every  | whenever the driver compares topic ids  |
|   five minutes                                         |   and finds others than it knows        |
| leaves if nobody asks for records                      | a `max_poll_interval_ms` without end    |
| starts without a broker (all are fenced): its group    | one is waited for, then it subscribes   |
|   task ends then with an AssertionError                |                                         |
| raises CancelledError from `stop` while a broker is    | caught, and the rest of it is closed    |
|   down                                                 |                                         |
| swallows what a callback raises                        | kept, and raised by `fetch`             |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import TopicPartition as _TopicPartition
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
    NoError,
    NoOffsetForPartitionError,
    NotCoordinatorForGroupError,
    OffsetOutOfRangeError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from effectonce.errors import BrokerError, ConfigError
from effectonce.identity import only_header
from effectonce.kafka import is_topic_gone, said_by, uuid_bytes
from effectonce.model import UNSET, Committed, LogEnds, Offsets
from effectonce.now import Ours
from effectonce.ports import CommitMode, Headers, KafkaOffset, Records, TopicPartition
from effectonce.settings_aio import admin_settings_of, aiokafka_settings

__all__ = ["AiokafkaClient"]

log = logging.getLogger("effectonce")

CALL_SECONDS: Final = 10.0
"""Limit of one call, as in kafka.py."""
COMMIT_SECONDS: Final = 5.0
"""Below the default session: a revoke waits for its commit."""
STOP_SECONDS: Final = 15.0
METADATA_SECONDS: Final = 0.1
_END: Final = "\0"
"""Behind metadata, as confluent-kafka writes it, and needs it: where there is none it reads on
(2.16, seen: a witness of 72 bytes, from epoch 10 on, was another one to it)."""


class ConsumerRecords:
    """`Records` over aiokafka's records; each column is read once, when asked for."""

    __slots__ = ("_headers", "_keys", "_offsets", "_records", "_values", "partition", "topic")

    def __init__(self, topic: str, partition: int, records: list[ConsumerRecord]) -> None:
        self.topic = topic
        self.partition = partition
        self._records = records
        self._offsets: Offsets | None = None
        self._values: list[bytes | None] | None = None
        self._keys: list[bytes | None] | None = None
        self._headers: list[Headers] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def offsets(self) -> Offsets:
        if self._offsets is None:
            self._offsets = np.array([record.offset for record in self._records], np.int64)
        return self._offsets

    def values(self) -> Sequence[bytes | None]:
        if self._values is None:
            self._values = [record.value for record in self._records]
        return self._values

    def keys(self) -> Sequence[bytes | None]:
        if self._keys is None:
            self._keys = [record.key for record in self._records]
        return self._keys

    def headers(self) -> Sequence[Headers]:
        if self._headers is None:
            self._headers = [record.headers for record in self._records]
        return self._headers

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header((r.headers for r in self._records), name, len(self._records))

    def timestamp_ms(self, row: int) -> int:
        at: int | None = self._records[row].timestamp
        return UNSET if at is None else at

    def leader_epoch(self, row: int) -> int:
        return UNSET  # aiokafka does not tell it

    def part(self, start: int, stop: int | None = None) -> ConsumerRecords:
        return ConsumerRecords(self.topic, self.partition, self._records[start:stop])

    def then(self, behind: ConsumerRecords) -> ConsumerRecords:
        return ConsumerRecords(self.topic, self.partition, [*self._records, *behind._records])


class AiokafkaClient:
    """The real `AsyncClient`. Made, and used, in a running event loop."""

    holds_cheaply = True  # it holds thousands itself

    def __init__(
        self, settings: Mapping[str, Any], admin: Mapping[str, Any] | None, hold: asyncio.Lock
    ) -> None:
        self._group = str(settings["group_id"])
        self._hold = hold
        try:
            self._admin = AdminClient(admin_settings_of(settings, admin))
        except (KafkaException, TypeError, ValueError) as error:
            raise ConfigError([f"admin: librdkafka: {said_by(error)}"]) from error
        try:
            self._consumer = AIOKafkaConsumer(**aiokafka_settings(settings))
        except (KafkaError, TypeError, ValueError) as error:
            raise ConfigError([f"aiokafka: {error}"]) from error
        self._ours: Ours | None = None
        self._handed: dict[_TopicPartition, int] = {}
        """Behind what was handed over, of each partition that is assigned."""
        self._settled = asyncio.Event()
        self._fatal: Exception | None = None
        self._committing: asyncio.Task[None] | None = None

    async def start(self, topics: Sequence[str], ours: Ours) -> None:
        """Connect and subscribe."""
        async with _translated("start"):
            await self._consumer.start()
            client = self._consumer._client
            while not client.cluster.brokers():
                if not await client.force_metadata_update():
                    await asyncio.sleep(METADATA_SECONDS)
        self._ours = ours
        self._consumer.subscribe(topics, listener=_Listener(self))

    # -- records -------------------------------------------------------------------------------

    async def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self._hold.release()
        try:
            found = await self._getmany(limit, timeout_seconds)
            if not found:
                await asyncio.sleep(0)  # with nothing to wait for, it has not let go of the loop
        finally:
            await self._hold.acquire()
        return [
            ConsumerRecords(tp.topic, tp.partition, records)
            for tp, records in found.items()
            if records
        ]

    async def _getmany(
        self, limit: int, seconds: float
    ) -> Mapping[_TopicPartition, list[ConsumerRecord]]:
        if self._fatal is not None:
            raise self._fatal
        if self._consumer._fetcher.error_future.done():
            raise BrokerError("Kafka: aiokafka's fetching has ended; its log says why")
        if not self._settled.is_set():  # `getmany` would wait for the group, without limit
            try:
                async with asyncio.timeout(seconds):
                    await self._settled.wait()
            except TimeoutError:
                await self._check_group()
            return {}
        try:
            found: dict[_TopicPartition, list[ConsumerRecord]] = await self._bounded(limit, seconds)
        except KafkaError as error:
            self._trouble(error)
            self._put_back()
            await asyncio.sleep(min(seconds, 0.01))  # it may come again at once
            return {}
        except BaseException:
            self._put_back()
            raise
        for tp, records in found.items():
            if records:
                self._handed[tp] = records[-1].offset + 1
        return found

    async def _bounded(self, limit: int, seconds: float) -> dict[Any, list[ConsumerRecord]]:
        """Its own limit does not hold in a rebalance; ours, a little later, loses no record."""
        try:
            async with asyncio.timeout(seconds + 0.2):
                found: dict[Any, list[ConsumerRecord]] = await self._consumer.getmany(
                    timeout_ms=int(seconds * 1000), max_records=limit
                )
                return found
        except TimeoutError:
            return {}

    async def _check_group(self) -> None:
        """What the group's task ended with, which it tells in `getmany` alone."""
        try:
            self._consumer._coordinator.check_errors()
        except KafkaError as error:
            self._trouble(error)

    def _trouble(self, error: KafkaError) -> None:
        assert self._ours is not None
        if isinstance(error, OffsetOutOfRangeError):
            for tp in error.args[0]:
                self._ours.on_position_gone((tp.topic, tp.partition), "offset out of range")
        elif isinstance(error, NoOffsetForPartitionError):
            pass  # found before it was sought; it is paused, and the start will seek
        elif error.retriable:
            log.warning("Kafka: %s", _said(error))
        else:
            raise BrokerError(f"Kafka: {_said(error)}") from error

    def _put_back(self) -> None:
        """An exception may have come between taking records and handing them over."""
        for tp, offset in self._handed.items():
            if tp in self._consumer.assignment():
                self._consumer.seek(tp, offset)

    # -- positions -----------------------------------------------------------------------------

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            self._consumer.pause(*_bare(partitions))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        if partitions:
            self._consumer.resume(*_bare(partitions))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        tp = _TopicPartition(*partition)
        try:
            self._consumer.seek(tp, offset)
        except IllegalStateError as error:
            raise BrokerError(f"Kafka, seek: {_said(error)}") from error
        self._handed[tp] = offset

    async def position(self, partition: TopicPartition) -> int:
        async with _translated("position"):
            position: int = await self._consumer.position(_TopicPartition(*partition))
        return position

    async def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        if not offsets:
            return
        rows = {
            _TopicPartition(o.topic, o.partition): OffsetAndMetadata(o.offset, o.metadata + _END)
            for o in offsets
        }
        if mode is not CommitMode.ASYNC:
            async with _translated("commit", COMMIT_SECONDS):
                await self._commit(rows)
        elif self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit_later(rows))
        else:
            raise BrokerError("Kafka, commit: the last one has no answer yet")

    async def _commit(self, rows: Mapping[_TopicPartition, OffsetAndMetadata]) -> None:
        # its `commit` also refuses partitions of others: a group's first start marks all of them
        coordinator = self._consumer._coordinator
        await coordinator.ensure_coordinator_known()
        async with coordinator._commit_lock:
            await coordinator._do_commit_offsets(None, rows)

    async def _commit_later(self, rows: Mapping[_TopicPartition, OffsetAndMetadata]) -> None:
        assert self._ours is not None
        try:
            async with _translated("commit", COMMIT_SECONDS):
                await self._commit(rows)
        except BrokerError as error:
            # no harm: the store has the position, Kafka only follows it
            log.info("Kafka refused a commit: %s", error)
            self._ours.on_commit_refused([(tp.topic, tp.partition) for tp in rows])

    # -- what is asked of the brokers ----------------------------------------------------------

    # aiokafka's `committed` drops the metadata, and overlooks an error of the whole group: then it
    # says that none is committed
    async def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        asked: dict[str, list[int]] = {}
        for topic, number in partitions:
            asked.setdefault(topic, []).append(number)
        async with _translated("committed"):
            await self._consumer._coordinator.ensure_coordinator_known()
            answer = await self._consumer._coordinator._send_req(
                OffsetFetchRequest(self._group, list(asked.items()))
            )
            self._check_committed(getattr(answer, "error_code", 0))
            found: dict[TopicPartition, Committed | None] = {}
            for topic, rows in answer.topics:
                for number, offset, metadata, code in rows:
                    self._check_committed(code)
                    known = (
                        Committed(offset, (metadata or "").rstrip(_END)) if offset >= 0 else None
                    )
                    found[topic, number] = known
        if found.keys() != set(partitions):
            raise BrokerError("Kafka, committed: not all partitions were answered for")
        return found

    def _check_committed(self, code: int) -> None:
        error = for_code(code)
        if error is NotCoordinatorForGroupError:
            self._consumer._coordinator.coordinator_dead()  # it is looked for before the next call
        if error is not NoError:
            raise error

    async def log_ends(self, partition: TopicPartition) -> LogEnds:
        tp = _TopicPartition(*partition)
        async with _translated("log ends"):
            start = await self._consumer.beginning_offsets([tp])
            end = await self._consumer.end_offsets([tp])
        return LogEnds(start[tp], end[tp])

    def known_end(self, partition: TopicPartition) -> int:
        tp = _TopicPartition(*partition)
        if tp not in self._consumer.assignment():
            return UNSET
        end = self._consumer.last_stable_offset(tp)
        return UNSET if end is None or end < 0 else int(end)

    async def partitions_of(self, topic: str) -> Sequence[int]:
        found = (await self._described([topic])).get(topic)
        return sorted(p.id for p in found.partitions) if found is not None else ()

    async def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        described = await self._described(topics)
        for topic, found in described.items():
            known = self._consumer.partitions_for_topic(topic) or ()
            if self._ours is not None and len(known) != len(found.partitions):
                self._consumer._client.force_metadata_update()
        return {topic: uuid_bytes(found.topic_id) for topic, found in described.items()}

    async def _described(self, topics: Sequence[str]) -> Mapping[str, Any]:
        """A topic that is gone is missing."""
        found = {}
        async with _translated("topic ids"):
            answers = self._admin.describe_topics(
                TopicCollection(list(topics)), request_timeout=CALL_SECONDS
            )
            for topic, answer in answers.items():
                try:
                    found[topic] = await asyncio.wrap_future(answer)
                except KafkaException as error:
                    if not is_topic_gone(error):
                        raise
        return found

    async def close(self) -> None:
        if self._committing is not None:
            await asyncio.wait([self._committing])
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._stop()
        except TimeoutError:
            log.warning("the group was not left in %g s: its session ends it", STOP_SECONDS)
        except KafkaError as error:  # the group's task ended with it, and it was told
            log.info("Kafka, while leaving: %s", _said(error))

    async def _stop(self) -> None:
        """Its own end breaks off at a fetch that backs off: the CancelledError is nobody's."""
        consumer, task = self._consumer, asyncio.current_task()
        try:
            await consumer.stop()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
        finally:
            for fetch in consumer._fetcher._pending_tasks if consumer._fetcher else ():
                fetch.cancel()
            await consumer._client.close()

    # -- aiokafka's callbacks ------------------------------------------------------------------

    async def heard(
        self,
        callback: Callable[[Sequence[TopicPartition]], Awaitable[None]],
        partitions: set[_TopicPartition],
    ) -> None:
        """aiokafka logs what a callback raises, and goes on: it is raised by the loop instead."""
        try:
            await callback(sorted((tp.topic, tp.partition) for tp in partitions))
        except Exception as error:  # noqa: BLE001 - raised by `fetch`
            self._fatal = error

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        assert self._ours is not None
        self._settled.clear()
        async with self._hold:
            self._handed.clear()
            if not partitions:
                return
            # the heartbeat was told that we are no member any more, and forgot who we were
            if self._consumer._coordinator.member_id == "":
                await self._ours.on_lost(partitions)
            else:
                await self._ours.on_revoked(partitions)

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        assert self._ours is not None
        for tp in _bare(partitions):
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
        async with self._hold:
            self._ours.on_assigned(partitions)
        self._settled.set()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    def __init__(self, client: AiokafkaClient) -> None:
        self._client = client

    async def on_partitions_revoked(self, revoked: set[_TopicPartition]) -> None:
        await self._client.heard(self._client.revoked, revoked)

    async def on_partitions_assigned(self, assigned: set[_TopicPartition]) -> None:
        await self._client.heard(self._client.assigned, assigned)


@asynccontextmanager
async def _translated(call: str, seconds: float = CALL_SECONDS) -> AsyncIterator[None]:
    """Under a limit, and with a BrokerError for whatever either client raises."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BrokerError(f"Kafka, {call}: no answer within {seconds:g} s") from error
    except KafkaException as error:
        raise BrokerError(f"Kafka, {call}: {said_by(error)}") from error
    except KafkaError as error:
        raise BrokerError(f"Kafka, {call}: {_said(error)}") from error


def _said(error: KafkaError) -> str:
    return f"{type(error).__name__}: {error}"


def _bare(partitions: Sequence[TopicPartition]) -> list[_TopicPartition]:
    return [_TopicPartition(*partition) for partition in partitions]
