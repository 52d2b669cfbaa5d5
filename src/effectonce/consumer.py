"""`OnceConsumer`: the driver for confluent-kafka. It carries out; `core/` decides.

    caller's thread    fetch -> decide -> handlers -> conclude (store) -> tell Kafka
    keeper's thread    polls in its place while a handler is slow (keeper.py)

Before the client is polled, everything that has started is settled with the store. A revoke that
arrives while a handler runs (on the keeper's thread) waits for that, under one deadline; whatever
comes later is judged by the store's fence.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from types import FrameType, TracebackType
from typing import Any, Final, Self

from effectonce.begin import Beginner
from effectonce.core.start import witness_of
from effectonce.desk import Desk
from effectonce.errors import BrokerError, ConfigError, HandlerTimeout, UnknownTopic
from effectonce.event import Batch
from effectonce.handlers import Check, Handler, check_handler, run_batch, run_events
from effectonce.hooks import BatchStarted, PartitionAssigned, PartitionReleased, around_batch, emit
from effectonce.kafka import ConfluentClient, config_problems, topic_problems
from effectonce.keeper import SystemClock, ThreadKeeper, stacks_of_others
from effectonce.model import NO_ID, UNSET, Partition
from effectonce.once import Once
from effectonce.owned import Health, Owned, Stage, Task, health_of
from effectonce.ports import (
    Client,
    Clock,
    CommitMode,
    KafkaOffset,
    Keeper,
    Records,
    TopicPartition,
)

__all__ = ["END", "OnceConsumer"]

log = logging.getLogger("effectonce")


class Until(Enum):
    """When `run` returns by itself."""

    STOPPED = "stopped"
    END = "end"


END: Final = Until.END
"""`run(handler, until=END)`: return once every partition is past the end it had when assigned."""

FETCH_SECONDS: Final = 0.1
"""A poll without records: also how late a signal is noticed."""
POLL_SECONDS: Final = 1.0
"""Held records are worked on for at most this long between two polls."""
TELL_SECONDS: Final = 1.0
"""Kafka follows the store at most this far behind: the blind spot of row 8 of the start table."""
TOPIC_CHECK_SECONDS: Final = 30.0
DRAINED_CHECK_SECONDS: Final = 1.0
"""A topic recreated under a running consumer raises nothing in librdkafka: it went on at offset 10
of the new log and lost ten records (seen). Its id is compared this often."""
REMIND_SECONDS: Final = 60.0
KEEPER_SECONDS: Final = 1.0
"""A handler call longer than this is slow: rebalances should not wait for it any longer."""


class OnceConsumer:
    """A Kafka consumer in which every event takes effect once. One thread runs it.

    config: confluent-kafka's own settings, under their own names. topics: names, no patterns.
    `client`, `clock` and `keeper` are for simulation.

    Raises ConfigError at construction, StoreError where the store cannot be reached at all.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        topics: Sequence[str],
        once: Once,
        *,
        client: Client | None = None,
        clock: Clock | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        problems = list(config_problems(config)) + list(topic_problems(topics))
        if problems:
            raise ConfigError(problems)
        self._once = once
        self._topics = list(topics)
        self._group = str(config["group.id"])
        self._scope = once.scope or self._group
        self._clock = clock or SystemClock()
        self._keeper = keeper or ThreadKeeper()
        poll_seconds = int(config.get("max.poll.interval.ms", 300_000)) / 1000
        self._keeper_after = min(KEEPER_SECONDS, poll_seconds / 4)
        self._drain_seconds = min(once.limits.drain_seconds, poll_seconds / 4)
        self._owned: dict[TopicPartition, Owned] = {}
        self._desk = Desk(once, self._clock, _Live(self._owned))
        self._store_id = once.store.prepare()
        self._client = client or ConfluentClient(config)
        self._beginner = Beginner(once, self._client, self._clock, self._desk, self._store_id)
        self._limit = once.limits.batch
        self._fatal: Exception | None = None
        self._busy: Task | None = None
        self._loaned: Task | None = None
        self._cut: HandlerTimeout | None = None
        self._started = self._closed = self._stopping = False
        self._assigned_once = False
        self._polled = self._told = self._reminded = 0.0
        self._topics_checked = 0.0
        self._drained = self._flowed = False

    # -- the public face -----------------------------------------------------------------------

    def run(self, handler: Handler, *, until: Until = Until.STOPPED) -> None:
        """Call `handler(event)`, or `handler(event, tx)` for in-store effects, for every event
        that has not taken effect yet; return on SIGTERM or `stop()`, or at the end for
        `until=effectonce.END`.

        What the handler returns is kept as the event's outcome. Raises the first partition's
        error once every assigned partition has stopped (and, with END, if any has).
        """
        check_handler(handler)
        with self._running(until) as turns:
            for task in turns:
                self._carry_out(task, run_events, handler)

    def run_batches(
        self,
        handler: Handler,
        *,
        size: int | None = None,
        until: Until = Until.STOPPED,
    ) -> None:
        """Call `handler(batch)`, or `handler(batch, tx)`, for up to `size` events at a time.

        None means all done; `event.done(outcome)` and `event.failed(error)` say it one by one.
        If the handler raises, the events it has not marked are handed over again one by one:
        rolled back (in-store), or in doubt and repeated (outside).
        """
        check_handler(handler)
        if size is not None and not 1 <= size <= 65_535:
            raise ConfigError([f"size={size}: from 1 to 65535"])
        self._limit = size or self._once.limits.batch
        with self._running(until) as turns:
            for task in turns:
                self._carry_out(task, run_batch, handler)

    def __iter__(self) -> Iterator[Batch]:
        """Your own loop: `for batch in consumer: for event in batch: with event as tx: ...`

        Asking for the next batch, and leaving the `with` block of the consumer, commits what the
        last one finished. Ends after `stop()`.
        """
        self._start()
        return self

    def __next__(self) -> Batch:
        self._settle_loan()
        while not self._done(Until.STOPPED):
            task = self._turn()
            if task is None:
                continue
            if not len(task.plan.runs):
                self._carry_out(task, run_events, _nothing)
                continue
            self._enter(task)
            self._loaned = task
            return Batch(task.work, task.work.runs)
        self._raise_stopped(Until.STOPPED)
        raise StopIteration

    def stop(self) -> None:
        """Return from `run` after the event in the handler. Safe from signals and threads."""
        self._stopping = True

    def health(self) -> Health:
        """A snapshot; safe from any thread."""
        rows = tuple(health_of(owned) for owned in sorted(
            list(self._owned.values()), key=lambda owned: owned.at))  # fmt: skip
        return Health(ok=self._cut is None and all(r.error is None for r in rows), partitions=rows)

    def close(self) -> None:
        """Commit what is finished and leave the group. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self._settle_loan()
            if self._started and self._cut is None:
                self._on_gone(list(self._owned), "closed", CommitMode.SYNC)
        finally:
            if self._cut is None:
                self._client.close()
            self._keeper.stop()
            if self._once.owns_store:
                self._once.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the loop ------------------------------------------------------------------------------

    @contextmanager
    def _running(self, until: Until) -> Iterator[Iterator[Task]]:
        self._start()
        with _on_sigterm(self.stop):
            yield self._turns(until)
        self._raise_stopped(until)

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError("this consumer is closed; make a new one")
        if self._started:
            return
        known = self._client.topic_ids(self._topics)
        missing = [topic for topic in self._topics if topic not in known]
        if missing:
            raise UnknownTopic(
                f"no such topic on this cluster: {', '.join(missing)}. Nothing was consumed; "
                "create it, or mend the name"
            )
        self._started = True
        self._keeper.start(
            self,
            after_seconds=self._keeper_after,
            deadline_seconds=self._once.limits.handler_timeout_seconds,
        )
        self._client.subscribe(self._topics, self)

    def _turns(self, until: Until) -> Iterator[Task]:
        while not self._done(until):
            task = self._turn()
            if task is not None:
                yield task

    def _turn(self) -> Task | None:
        """One look around: what must be done is done, and at most one task is decided."""
        if self._fatal is not None:
            raise self._fatal
        now = self._clock.monotonic()
        self._begin_due(now)
        self._tell_kafka(now)
        self._check_topics(now)
        self._remind(now)
        ready = self._ready(now)
        if ready is None:
            self._fetch(now)
            ready = self._ready(self._clock.monotonic())
        elif now - self._polled > POLL_SECONDS:
            self.tend()
        if ready is None:
            return None
        return self._desk.decide(ready, ready.held.popleft())

    def _fetch(self, now: float) -> None:
        self._pause_waiting()
        due = [o.due - now for o in self._owned.values() if self._waits(o)]
        timeout = max(0.0, min([FETCH_SECONDS, *due]))
        self._polled = now
        got = self._client.fetch(self._limit, timeout)
        self._drained = not got
        self._flowed = self._flowed or bool(got)
        for records in got:
            self._accept(records)

    def _accept(self, records: Records) -> None:
        """Take records of a running partition. Others came from before an assignment, and the
        start will seek to them again."""
        owned = self._owned.get((records.topic, records.partition))
        if owned is not None and owned.stage is Stage.RUNNING:
            owned.held.append(records)

    def _ready(self, now: float) -> Owned | None:
        """A partition with records to decide; a commit without an answer goes first."""
        for owned in list(self._owned.values()):
            if owned.stage is not Stage.RUNNING or owned.due > now:
                continue
            if owned.unsent is not None:
                self._desk.resend(owned)
                if owned.unsent is not None or owned.stage is not Stage.RUNNING or owned.due > now:
                    continue
            if owned.held:
                return owned
        return None

    def _waits(self, owned: Owned) -> bool:
        return owned.stage is Stage.OPENING or (
            owned.stage is Stage.RUNNING and bool(owned.held or owned.unsent)
        )

    def _pause_waiting(self) -> None:
        """Kafka is the buffer: what waits is paused, the rest flows."""
        pause: list[TopicPartition] = []
        resume: list[TopicPartition] = []
        for owned in self._owned.values():
            wanted = owned.stage is Stage.STOPPED or self._waits(owned)
            if wanted != owned.paused:
                (pause if wanted else resume).append(owned.key)
                owned.paused = wanted
        self._client.pause(pause)
        self._client.resume(resume)

    def _done(self, until: Until) -> bool:
        if self._stopping:
            return True
        owned = list(self._owned.values())
        if owned and all(o.stage is Stage.STOPPED for o in owned):
            return True
        if until is not Until.END or not self._assigned_once or not self._drained:
            return False
        return all(o.stage is Stage.STOPPED or self._at_end(o) for o in owned)

    def _at_end(self, owned: Owned) -> bool:
        if owned.stage is not Stage.RUNNING or owned.held or owned.unsent:
            return False
        if owned.row.next >= owned.log_end:
            return True
        # control records at the end are never delivered, but the client passes them
        return self._client.position(owned.key) >= owned.log_end

    def _raise_stopped(self, until: Until) -> None:
        owned = list(self._owned.values())
        errors = [o.error for o in owned if o.stage is Stage.STOPPED and o.error is not None]
        if not errors or (self._stopping and until is not Until.END):
            return
        if len(errors) == len(owned) or until is Until.END:
            for other in errors[1:]:
                errors[0].add_note(f"and {other}")
            raise errors[0]

    # -- handlers ------------------------------------------------------------------------------

    def _carry_out(
        self,
        task: Task,
        run: Callable[[Task, Handler, Check], BaseException | None],
        handler: Handler,
    ) -> None:
        self._enter(task)
        escaping: BaseException | None = None
        runs = len(task.plan.runs)
        if runs:
            began = self._clock.monotonic()
            slice_end = began + self._once.limits.commit_seconds

            def ends_slice() -> bool:
                self._keeper.progressed()
                return task.owned.leaving or self._stopping or self._clock.monotonic() >= slice_end

            size = len(task.records)
            with around_batch(BatchStarted(task.owned.at, size, runs, size - runs)):
                escaping = run(task, handler, ends_slice)
            task.handler_seconds = self._clock.monotonic() - began
        self._leave(task)
        if escaping is not None:
            raise escaping

    def _enter(self, task: Task) -> None:
        self._busy = task
        self._keeper.entered()

    def _leave(self, task: Task) -> None:
        """Settle with the store first: a revoke on the keeper's thread may be waiting for it."""
        try:
            if self._cut is None:
                self._desk.conclude(task)
        finally:
            self._busy = None
            self._keeper.left()
        if self._cut is not None:
            raise self._cut
        if task.owned.leaving:
            self._release(task.owned, "late")

    def _settle_loan(self) -> None:
        if self._loaned is not None:
            task, self._loaned = self._loaned, None
            self._leave(task)

    # -- what is due ---------------------------------------------------------------------------

    def _begin_due(self, now: float) -> None:
        opening = [o for o in self._owned.values() if o.stage is Stage.OPENING and o.due <= now]
        if not opening:
            return
        try:
            topic_ids = self._client.topic_ids(sorted({o.at.topic for o in opening}))
        except BrokerError as error:
            log.info("cannot begin yet: %s", error)
            for owned in opening:
                owned.due = now + TELL_SECONDS
            return
        for owned in opening:
            self._beginner.begin(owned, topic_ids)

    def _tell_kafka(self, now: float) -> None:
        if now - self._told < TELL_SECONDS:
            return
        self._told = now
        running = [o for o in self._owned.values() if o.stage is not Stage.OPENING and o.position]
        for owned in running:
            owned.known_end = self._client.known_end(owned.key)
        self._tell(running, CommitMode.ASYNC)

    def _tell(self, partitions: Sequence[Owned], mode: CommitMode) -> None:
        behind = [o for o in partitions if o.told != UNSET and o.told != o.row.next]
        try:
            self._client.commit([_kafka_offset(o) for o in behind], mode)
        except BrokerError as error:
            # the store has it; the next owner finds Kafka lagging (row 9)
            log.info("Kafka was not told: %s", error)
            return
        for owned in behind:
            owned.told = owned.row.next

    def _check_topics(self, now: float) -> None:
        since = now - self._topics_checked
        # a partition has drained: its log may be another one by now
        quiet = self._drained and self._flowed and since >= DRAINED_CHECK_SECONDS
        if not self._owned or (since < TOPIC_CHECK_SECONDS and not quiet):
            return
        self._topics_checked, self._flowed = now, False
        try:
            ids = self._client.topic_ids(sorted({o.at.topic for o in self._owned.values()}))
        except BrokerError as error:
            log.info("topic ids are not known: %s", error)
            return
        for owned in list(self._owned.values()):
            topic_id = ids.get(owned.at.topic)
            if topic_id is None:
                self.on_topic_gone(owned.at.topic, "it was deleted")
            elif owned.stage is Stage.RUNNING and topic_id != owned.row.topic_id != NO_ID:
                log.warning("%s: the topic was created anew; beginning again", owned.at)
                owned.reopen()

    def _remind(self, now: float) -> None:
        if now - self._reminded < REMIND_SECONDS:
            return
        self._reminded = now
        for owned in self._owned.values():
            if owned.stage is Stage.STOPPED:
                log.error("still stopped: %s", owned.error)

    # -- Charge: while a handler has the thread --------------------------------------------------

    def tend(self) -> None:
        """Pause everything, poll once: heartbeats, rebalances."""
        flowing = [o for o in self._owned.values() if not o.paused]
        self._client.pause([o.key for o in flowing])
        for owned in flowing:
            owned.paused = True
        self._polled = self._clock.monotonic()
        for records in self._client.fetch(1, FETCH_SECONDS if self._busy else 0.0):
            self._accept(records)

    def cut_off(self) -> None:
        """The handler is past its deadline and cannot be interrupted: make it harmless."""
        task = self._busy
        if task is None:
            return
        at, seconds = task.owned.at, self._once.limits.handler_timeout_seconds
        self._cut = HandlerTimeout(
            f"{at}: a handler ran longer than {seconds:g} s (handler_timeout_seconds) and was cut "
            "off: its transaction is dead, the group was left, another member takes over. Its "
            "events stay in Kafka; an effect outside may or may not have happened"
        )
        if task.transaction is not None:
            task.transaction.kill()
        log.error("%s\n%s", self._cut, stacks_of_others())
        self._once.store.release(at)
        task.owned.released = True
        self._client.close()

    # -- Listener: inside fetch ----------------------------------------------------------------

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        now = self._clock.monotonic()
        self._assigned_once = True
        for topic, number in partitions:
            at = Partition(self._scope, self._group, topic, number)
            self._owned[topic, number] = Owned(at, assigned_at=now)
            emit(PartitionAssigned(at))

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._guarded(partitions, "revoked", CommitMode.SYNC)

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._guarded(partitions, "lost", None)

    def on_position_gone(self, partition: TopicPartition, reason: str) -> None:
        owned = self._owned.get(partition)
        if owned is not None and owned.stage is Stage.RUNNING:
            log.warning("%s: the log no longer has the position: %s", owned.at, reason)
            owned.reopen()

    def on_topic_gone(self, topic: str, reason: str) -> None:
        for owned in list(self._owned.values()):
            if owned.at.topic == topic and owned.stage is not Stage.STOPPED:
                gone = UnknownTopic(
                    f"{owned.at}: the topic is gone: {reason}. What took effect is in the store"
                )
                self._desk.stop(owned, gone)

    def _guarded(
        self, partitions: Sequence[TopicPartition], reason: str, mode: CommitMode | None
    ) -> None:
        """librdkafka's callbacks must not raise; the loop will."""
        try:
            self._on_gone(partitions, reason, mode)
        except Exception as error:
            self._fatal = error

    def _on_gone(
        self, partitions: Sequence[TopicPartition], reason: str, mode: CommitMode | None
    ) -> None:
        going = [self._owned[p] for p in partitions if p in self._owned]
        for owned in going:
            owned.leaving = True
        if self._busy is not None and self._busy.owned in going and self._cut is None:
            self._keeper.await_left(self._drain_seconds)
        busy = self._busy.owned if self._busy is not None else None
        for owned in going:
            del self._owned[owned.key]
            if owned is not busy:
                self._release(owned, reason)
        if mode is not None:
            self._tell([o for o in going if o.position is not None], mode)

    def _release(self, owned: Owned, reason: str) -> None:
        if owned.released:
            return
        if owned.unsent is not None:
            self._desk.resend(owned)
        self._desk.rest(owned)
        owned.released = True
        self._once.store.release(owned.at)
        emit(PartitionReleased(owned.at, reason))


class _Live:
    """The partitions as they are now, for the desk to look at."""

    def __init__(self, owned: Mapping[TopicPartition, Owned]) -> None:
        self._owned = owned

    def __iter__(self) -> Iterator[Owned]:
        return iter(list(self._owned.values()))


def _kafka_offset(owned: Owned) -> KafkaOffset:
    row = owned.row
    return KafkaOffset(owned.at.topic, owned.at.number, row.next, witness_of(row))


@contextmanager
def _on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM drains, where the interpreter lets us hear it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop()

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _nothing(*event: object) -> None:
    """For tasks in which nothing runs."""
