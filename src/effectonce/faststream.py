"""A middleware that gives a FastStream Kafka subscriber once-only effects.

    broker = KafkaBroker("localhost:9092", middlewares=[OnceMiddleware(once)])

    @broker.subscriber("payments", group_id="billing", ack_policy=AckPolicy.NACK_ON_ERROR)
    async def charge(order: Order) -> None: ...

FastStream owns the consumer and the position; the middleware sees one record and its handler:

| the event                        | then                                                          |
| -------------------------------- | ------------------------------------------------------------- |
| has no marker                    | the handler runs, its marker is written, FastStream commits   |
| has one, same payload            | answered with the outcome that was kept; no handler runs      |
| has one, another payload         | raises IdReused                                               |
| runs in this process already     | waits for that one, then is looked up again                   |
| has no usable ID                 | raises Unidentified, or runs unprotected where `Once` says so |
| its handler raises, is cancelled | no marker: FastStream hands it over again                     |
| its store is down                | waited for: Kafka is the buffer                               |

No loss, and a repeat only after a crash, a failure or a time-out between effect and marker, or when
two members run one event at the same time (a rebalance; a copy in another partition). What it
cannot know: who owns the partition, where it begins, what an operator did to its offsets. So no
reset is refused, and repeats below it are answered as long as their markers are kept. What a
handler's answer publishes is FastStream's: a repeat publishes it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import numpy as np

try:
    from aiokafka import ConsumerRecord
    from aiokafka import TopicPartition as _TopicPartition
    from faststream import AckPolicy, BaseMiddleware
except ImportError as error:
    raise ImportError('FastStream is missing: pip install "effectonce[faststream]"') from error

from effectonce.aiokafka_client import ConsumerRecords
from effectonce.core.outcome import decode_outcome, encode_outcome
from effectonce.core.plan import Columns, Decision, Plan, plan
from effectonce.core.settle import FIRST_SERIAL, SERIAL_BITS, Ended, Moment, settle
from effectonce.errors import (
    ConfigError,
    IdReused,
    NotOpen,
    StoreError,
    StoreUnavailable,
    Unidentified,
)
from effectonce.keeper import SystemClock
from effectonce.model import (
    NO_ID,
    UNSET,
    Commit,
    Ending,
    Known,
    Outcome,
    OutcomeKind,
    Partition,
    Position,
    Query,
    Stale,
    Unknown,
)
from effectonce.once import Once
from effectonce.ports import AsyncStore, Clock, Reach, Records
from effectonce.settings import once_problems

if TYPE_CHECKING:
    from faststream._internal.context.repository import ContextRepo
    from faststream.message import StreamMessage

__all__ = ["OnceMiddleware"]

log = logging.getLogger("effectonce")

T = TypeVar("T")
Run: TypeAlias = Callable[[], Awaitable[Any]]

REFUSED_SECONDS: Final = 1.0
"""Between two refusals of a subscriber's records, which stay where they are."""
WAIT_SECONDS: Final = 0.05
WAIT_MAX_SECONDS: Final = 5.0
"""Backoff while the store is down, as of a consumer's (desk.py)."""


class OnceMiddleware:
    """For `KafkaBroker(middlewares=[...])`: all its subscribers, each in the scope of its group.

    once: `Outside(on_doubt="repeat")`, with a store that all members share.

    Raises ConfigError at construction, and for each record of a subscriber that would lose events:
    one that FastStream acknowledges before its handler has run (its default), or though it raised,
    or that takes batches. No handler runs then, and no offset passes.
    """

    def __init__(self, once: Once) -> None:
        if problems := list(once_problems(once)):
            raise ConfigError(problems)
        if once.in_store:
            problems.append("effects=InStore(): FastStream's handlers have no tx; use Outside")
        if once.store.traits.reach is Reach.EMBEDDED:
            problems.append(
                f"store: {once.store.traits.name} is one process's at a time, and FastStream does "
                "not say when a partition goes: use a shared one, such as redis://"
            )
        if problems:
            raise ConfigError(problems)
        self._guard = Guard(once)

    def __call__(self, msg: Any, /, *, context: ContextRepo) -> BaseMiddleware[Any, Any]:
        return _Guarded(msg, context=context, guard=self._guard)

    async def close(self) -> None:
        """Close the store, once the broker has stopped."""
        await self._guard.close()


class _Guarded(BaseMiddleware[Any, Any]):
    """One message's."""

    __slots__ = ("_guard",)

    def __init__(self, msg: Any, /, *, context: ContextRepo, guard: Guard) -> None:
        super().__init__(msg, context=context)
        self._guard = guard

    async def consume_scope(
        self, call_next: Callable[..., Awaitable[Any]], msg: StreamMessage[Any]
    ) -> Any:
        record, subscriber = msg.raw_message, self.context.get_local("handler_")
        group, problems = subscriber.group_id, _problems(subscriber, record)
        if problems:
            records = record if isinstance(record, tuple) else (record,)
            for each in reversed(records):  # else it would be committed, whatever is raised
                place = _TopicPartition(each.topic, each.partition)
                subscriber.consumer.seek(place, each.offset)
            await asyncio.sleep(REFUSED_SECONDS)
            raise ConfigError(problems)
        return await self._guard.run(group, record, lambda: call_next(msg))


_SAFE: Final = (AckPolicy.NACK_ON_ERROR, AckPolicy.MANUAL)


def _problems(subscriber: Any, record: object) -> list[str]:
    """What in a subscriber would lose its events."""
    problems = []
    if not isinstance(record, ConsumerRecord):
        problems.append("subscriber: batch=True: an event is answered by itself; leave it out")
    if subscriber.ack_policy not in _SAFE:
        problems.append(
            f"subscriber: ack_policy={subscriber.ack_policy.name}: it acknowledges before its "
            "handler has run, or though it raised, so the event is lost: "
            "ack_policy=AckPolicy.NACK_ON_ERROR"
        )
    if not subscriber.group_id:
        problems.append("subscriber: group_id: missing")
    return problems


@dataclass(slots=True, eq=False)
class Row:
    """One partition's row in the store, as far as this process has it."""

    at: Partition
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of one partition, one call at a time."""
    position: Position | None = None
    serial_base: int = 0
    serial: int = FIRST_SERIAL

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial_base + self.serial


@dataclass(slots=True, eq=False)
class Running:
    """A key that runs in this process: its copies wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Guard:
    """Decides of one record whether it runs, and marks it. For one event loop."""

    def __init__(self, once: Once, clock: Clock | None = None) -> None:
        self._once = once
        self._store: AsyncStore
        self._store, self._closes = once.async_store()
        self._clock = clock or SystemClock()
        self._rows: dict[Partition, Row] = {}
        self._running: dict[bytes, Running] = {}

    async def run(self, group: str, record: ConsumerRecord[Any, Any], run: Run) -> Any:
        """What `run` returns, or what it did when the event took effect. Raises what it raises."""
        at = Partition(self._once.scope or group, group, record.topic, record.partition)
        records = ConsumerRecords(record.topic, record.partition, [record])
        identified = self._once.identity.identify(records)
        columns = Columns(
            at,
            records.offsets(),
            identified.keys,
            identified.fingerprints,
            identified.problems,
        )
        name = at.scope.encode() + b"\0" + columns.keys[0].tobytes()
        running = self._running.setdefault(name, Running())
        running.users += 1
        try:
            async with running.lock:
                known, made = await self._planned(columns)
                if made.blocked_by is Decision.UNIDENTIFIED:
                    problem = identified.problems[0]
                    raise Unidentified(
                        f"{at} offset {record.offset}: no usable event ID: {problem.text}. The "
                        "record stays in Kafka. Mend the producer or `identify`, or pass "
                        'on_unidentified="process" to run such records unprotected'
                    )
                if made.blocked_by is not None:
                    raise IdReused(
                        f"{at} offset {record.offset}: its event ID was used before, with another "
                        "payload. The record stays in Kafka. Mend the producer or `identify`"
                    )
                if not len(made.runs):
                    return await self._kept(at, columns.keys[0].tobytes())
                value = await run()
                outcome = encode_outcome(value, self._once.limits.outcome_bytes)
                await self._mark(columns, known, made, records, outcome)
                return value
        finally:
            running.users -= 1
            if not running.users:
                del self._running[name]

    async def close(self) -> None:
        if self._closes:
            await self._store.close()

    # -- the store -----------------------------------------------------------------------------

    async def _planned(self, columns: Columns) -> tuple[Known, Plan]:
        async def ask(row: Row) -> Known:
            position = row.position or await self._open(row, columns)
            (known,) = await self._store.lookup([Query(row.at, columns.keys, position.run)])
            if isinstance(known, StoreError):
                raise known
            return known

        known = await self._patiently(columns.at, ask)
        return known, plan(columns, known, UNSET, None, self._once.unidentified)

    async def _open(self, row: Row, columns: Columns) -> Position:
        """The row, which is ours from now on; a partition never seen begins at this record."""
        store_id = await self._store.prepare()
        opened = await self._store.open(row.at, NO_ID)
        found, policy = opened.row, self._once.start_policy
        if found is None:
            at = int(columns.offsets[0])
            found = Position(store_id, NO_ID, opened.epoch, next=at, horizon=at)
        row.serial_base = int.from_bytes(os.urandom(3)) << SERIAL_BITS
        row.position = replace(
            found,
            epoch=opened.epoch,
            identify_fingerprint=policy.identify_fingerprint,
            window_seconds=policy.window_seconds,
        )
        return row.position

    async def _mark(
        self, columns: Columns, known: Known, made: Plan, records: Records, outcome: Outcome | None
    ) -> None:
        """Note that it took effect: a fact, whoever owns the partition by now."""
        unsent: Commit | None = None
        ended = Ended(np.full(1, Ending.DONE, np.uint8), {} if outcome is None else {0: outcome})

        async def tell(row: Row) -> None:
            nonlocal unsent
            position = row.position or await self._open(row, columns)
            if unsent is None:  # else the identical commit, whose id tells what became of it
                unsent = settle(
                    position,
                    columns,
                    made,
                    ended,
                    moment=Moment(records.timestamp_ms(0), self._clock.wall_ms()),
                    half_ms=self._once.window.half_ms,
                    serial=row.next_serial(),
                    on_existing=self._once.on_existing,
                    as_of=known.as_of,
                )
            if unsent is None:
                return
            (result,) = await self._store.commit([unsent])
            if isinstance(result, Unknown):
                raise result.error
            if isinstance(result, Stale):
                row.position = unsent = None
                raise NotOpen(f"{row.at}: somebody opened it since")
            row.position = unsent.position

        await self._patiently(columns.at, tell)

    async def _kept(self, at: Partition, key: bytes) -> object:
        """The outcome that was kept with the marker."""
        marker = await self._patiently(at, lambda row: self._store.find(row.at, key))
        outcome = marker.outcome if marker is not None else None
        return decode_outcome(outcome) if outcome and outcome.kind is OutcomeKind.VALUE else None

    async def _patiently(self, at: Partition, ask: Callable[[Row], Awaitable[T]]) -> T:
        """The store's answer, however long that takes: records wait in Kafka meanwhile.

        Raises what no waiting mends.
        """
        row, wait, began = self._rows.setdefault(at, Row(at)), WAIT_SECONDS, 0.0
        while True:
            try:
                async with row.lock:
                    answer = await ask(row)
            except NotOpen:
                row.position = None
            except StoreUnavailable as error:
                if not began:
                    began = self._clock.monotonic()
                    log.warning("%s: the store does not answer; waiting: %s", at, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, WAIT_MAX_SECONDS)
            else:
                if began:
                    lasted = self._clock.monotonic() - began
                    log.warning("%s: the store answers again after %.1f s", at, lasted)
                return answer
