"""`AsyncOnceConsumer`: the driver for aiokafka. It carries out; `core/` decides.

    the run's own task     fetch -> decide -> handlers -> conclude (store) -> tell Kafka
    aiokafka's tasks       heartbeats, fetching ahead, rebalances: at any time
    the watch's task       finds a handler that swallows its deadline

The same turns as consumer.py's, in the same order. One lock, `hold`, takes the place of the thread
that owns the client: the run holds it, except while it waits for records and while a handler runs.
A revoke that arrives then takes it, and waits for the handler's event under one deadline.

The run's task is nobody's to cancel: whoever cancels `run()` cancels the handler, and what was
finished is settled with the store before the CancelledError goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from effectonce.arguments import LaneOf, Until, check_all, check_lanes, check_size, check_until
from effectonce.assignment import Assignment
from effectonce.consumer import FETCH_SECONDS, raise_all, seen
from effectonce.core.order import Order
from effectonce.errors import BrokerError, ConfigError
from effectonce.event import Batch
from effectonce.handlers import Check
from effectonce.handlers_aio import (
    AsyncHandler,
    AsyncRun,
    Calls,
    check_async_handler,
    run_batch,
    run_events,
)
from effectonce.hooks import BatchStarted, around_batch
from effectonce.keeper import SystemClock
from effectonce.keeper_aio import Watch, alone, kept
from effectonce.lane_run import LaneRun
from effectonce.lanes_aio import Tasks, run_lanes
from effectonce.once import Once
from effectonce.owned import Health, Owned, Stage, Task
from effectonce.settings import topic_problems
from effectonce.settings_aio import (
    aiokafka_problems,
    async_store_of,
    known_settings,
    rebalance_seconds,
)
from effectonce.signals import on_sigterm
from effectonce.waiting import take
from effectonce.words import no_broker, no_topics

if TYPE_CHECKING:
    from effectonce.aiokafka_client import AiokafkaClient

__all__ = ["AsyncOnceConsumer"]

log = logging.getLogger("effectonce")

T = TypeVar("T")

GRACE_SECONDS: Final = 1.0
"""What a cancelled handler may take to clean up, before its transaction is made dead."""


class AsyncOnceConsumer:
    """A Kafka consumer in which every event takes effect once, for asyncio and aiokafka.

    topics: names, no patterns. settings: aiokafka's own, under their own names. admin: settings of
    confluent-kafka's, where they cannot be translated from those (an `ssl_context`).

    Raises ConfigError at construction, with every problem found.
    """

    def __init__(
        self, *topics: str, once: Once, admin: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        problems = [*aiokafka_problems(settings, admin, known_settings())]
        problems += topic_problems(topics)
        store = async_store_of(once, problems)
        if problems or store is None:
            raise ConfigError(problems)
        self._once = once
        self._store, self._closes_store = store
        self._topics = list(dict.fromkeys(topics))
        self._settings = settings
        self._admin = admin
        self._clock = SystemClock()
        self._drain_seconds = min(once.limits.drain_seconds, rebalance_seconds(settings) / 2)
        self._hold = asyncio.Lock()
        self._left = asyncio.Event()
        """No handler runs, and what the last one did is settled with the store."""
        self._left.set()
        self._calls = Calls(once.limits.handler_timeout_seconds)
        self._pool: Tasks | None = None
        self._watch = Watch(once.limits.handler_timeout_seconds)
        self._client: AiokafkaClient | None = None
        self._assignment: Assignment | None = None
        self._loaned: Task | None = None
        self._in_turn = False
        """From a look around until what it gave to the handlers is settled. Found true, a turn was
        broken off, and records may be missing between those that were handed over."""
        self._closed = self._stopping = self._cancelled = False
        self._idle = asyncio.Event()
        self._idle.set()

    # -- the public face -----------------------------------------------------------------------

    async def run(
        self,
        handler: AsyncHandler,
        *,
        until: Until = Until.STOPPED,
        lanes: int = 1,
        order: str = "key",
        lane: LaneOf | None = None,
    ) -> None:
        """Await the handler for every event that has not taken effect yet.

        As `OnceConsumer.run`, with a coroutine function: `(event)`, or `(event, tx)`; lanes are
        tasks. Cancelled, it breaks off what runs and settles what was finished: the events in a
        handler are neither done nor failed.
        """
        in_store = self._once.in_store
        check_all(
            partial(check_async_handler, handler, "event", in_store=in_store),
            partial(check_until, until),
            partial(check_lanes, lanes, order, lane, in_store=in_store),
        )
        if lanes == 1 or self._once.in_store:
            await self._run(until, lambda: self._serially(until, run_events, handler))
        else:
            await self._run(
                until, lambda: self._in_lanes(until, handler, lanes, Order(order), lane)
            )

    async def run_batches(
        self, handler: AsyncHandler, *, size: int | None = None, until: Until = Until.STOPPED
    ) -> None:
        """Await `handler(batch)`, or `handler(batch, tx)`, for up to `size` events at a time.

        As `OnceConsumer.run_batches`.
        """
        check_all(
            partial(check_async_handler, handler, "batch", in_store=self._once.in_store),
            partial(check_until, until),
            partial(check_size, size),
        )
        await self._run(until, lambda: self._serially(until, run_batch, handler, size))

    def __aiter__(self) -> AsyncIterator[Batch]:
        """Give batches to your own loop.

            async for batch in consumer:
                for event in batch:
                    with event as tx:
                        await ...

        Asking for the next batch, and leaving the `async with` block of the consumer, commits what
        the last one finished. Ends after `stop()`.
        """
        return self

    async def __anext__(self) -> Batch:
        with alone(self._idle):
            batch = await self._unbroken(self._next())
        if batch is None:
            raise StopAsyncIteration
        return batch

    def stop(self) -> None:
        """Return from `run` after the event in the handler. Safe from signals and threads."""
        self._stopping = True
        if self._assignment is not None:
            self._assignment.halt()

    def health(self) -> Health:
        """A snapshot; safe from any thread."""
        if self._assignment is None:
            return Health(ok=True, partitions=())
        return seen(self._assignment)

    async def close(self) -> None:
        """Commit what is finished and leave the group. Safe to call twice.

        A run in another task is stopped, and its handler waited for.
        """
        task, pool = asyncio.current_task(), self._pool
        if task is self._calls.running or (pool is not None and pool.holds(task)):
            raise RuntimeError("this consumer is in a handler: return from it, or stop()")
        self.stop()
        while not self._idle.is_set():
            await self._idle.wait()
        if not self._closed:
            self._closed = True
            with alone(self._idle):
                await self._unbroken(self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    # -- what nobody cancels -------------------------------------------------------------------

    async def _unbroken(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry it out in a task of its own; cancelled, end it in good order first."""
        task = asyncio.create_task(kept(work))
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as broken_off:
                cancelled = broken_off
                self._cancelled = True
                self._calls.interrupt()
                if self._pool is not None:
                    self._pool.interrupt()
        self._cancelled = False
        answer, raised = task.result()
        if cancelled is not None:
            raise cancelled from raised
        if raised is not None:
            raise raised
        return answer  # type: ignore[return-value]

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """With the lock. The user's own last batch ends first: a revoke may wait for it, locked."""
        task, self._loaned = self._loaned, None
        if task is None:
            await self._hold.acquire()
        try:
            if task is not None:
                await self._leave(task)
            yield
        finally:
            self._hold.release()

    async def _close(self) -> None:
        ours, client = self._assignment, self._client
        try:
            if ours is not None:
                async with self._held():
                    self._take_back()
                    if ours.cut is None:
                        await ours.give_up_all()
        finally:
            self._watch.stop()
            if self._pool is not None:
                self._pool.interrupt()  # what is late, and what no drain has waited for
            try:
                if client is not None and (ours is None or ours.cut is None):
                    await client.close()
            finally:
                if self._closes_store:
                    await self._store.close()

    # -- the loop ------------------------------------------------------------------------------

    @property
    def _ours(self) -> Assignment:
        assert self._assignment is not None, "the consumer has not started"
        return self._assignment

    async def _run(self, until: Until, work: Callable[[], Awaitable[None]]) -> None:
        with alone(self._idle), on_sigterm(self.stop):
            await self._unbroken(self._loop(until, work))

    async def _loop(self, until: Until, work: Callable[[], Awaitable[None]]) -> None:
        async with self._held():
            await self._start()
            if until is Until.END:
                await self._ours.wait_for_all()
            await work()
            await self._raise_stopped(until)

    async def _serially(
        self, until: Until, run: AsyncRun, handler: AsyncHandler, size: int | None = None
    ) -> None:
        limit = size or self._once.limits.batch
        while not await self._done(until):
            task = await self._turn(limit)
            if task is not None:
                await self._carry_out(task, run, handler)
            task = None  # forgotten before the next one is fetched
        await self._ours.desk.collect()

    async def _in_lanes(
        self, until: Until, handler: AsyncHandler, lanes: int, order: Order, lane: LaneOf | None
    ) -> None:
        pool = self._pool = Tasks(handler, self._once.limits.handler_timeout_seconds)
        run = LaneRun(
            self._once, self._store, self._ours, self._clock, pool,
            lanes=lanes, order=order, lane=lane, grace_seconds=GRACE_SECONDS,
        )  # fmt: skip
        await run_lanes(run, lambda: self._done(until), self._drain_seconds)

    async def _next(self) -> Batch | None:
        """A batch, lent to the user's own loop; None where that ends."""
        async with self._held():
            await self._start()
            while not await self._done(Until.STOPPED):
                task = await self._turn(self._once.limits.batch)
                if task is None:
                    continue
                if not len(task.plan.runs):
                    await self._carry_out(task, run_events, _nothing)
                    continue
                task.work.progressed = self._watch.progressed
                self._loaned = task
                self._mark_entered(task, grace_seconds=0.0)
                return Batch(task.work, task.work.runs)
            await self._ours.desk.collect()
            await self._raise_stopped(Until.STOPPED)
            return None

    async def _start(self) -> None:
        if self._closed:
            raise RuntimeError("this consumer is closed; make a new one")
        if self._assignment is not None:
            await self._take_over(self._assignment)
            return
        store_id = await self._store.prepare()
        from effectonce.aiokafka_client import AiokafkaClient

        if self._client is not None:  # of a start that failed
            await self._client.close()
        self._client = client = AiokafkaClient(self._settings, self._admin, self._hold)
        ours = Assignment(
            self._once,
            self._store,
            client,
            self._clock,
            str(self._settings["group_id"]),
            self._topics,
            store_id=store_id,
            drain=self._drain,
            drain_seconds=self._drain_seconds,
        )
        try:
            known = await client.topic_ids(self._topics)
            if missing := [topic for topic in self._topics if topic not in known]:
                raise no_topics(missing)
            await client.start(self._topics, ours)
        except BrokerError as error:
            servers = self._settings["bootstrap_servers"]
            raise no_broker("bootstrap_servers", servers, error) from error
        self._assignment = ours
        self._watch.start(ours, self._calls)

    async def _take_over(self, ours: Assignment) -> None:
        """What the last run left: its late handlers, and records that were in its hands."""
        if ours.lanes is not None:
            await ours.lanes.drain(ours.partitions(), 0.0)
        if ours.busy is not None or (ours.lanes is not None and not ours.lanes.ended()):
            raise RuntimeError("this consumer is in a handler: return from it, or stop()")
        ours.lanes = None
        if self._in_turn:
            self._take_back()
            ours.begin_again()
            self._in_turn = False

    async def _turn(self, limit: int) -> Task | None:
        """One look around: what is due is done, and at most one task is decided."""
        ours = self._ours
        if ours.fatal is not None:
            raise ours.fatal
        self._in_turn = True
        await ours.see_to_what_is_due()
        ready = await ours.ready()
        if ready is None:
            await ours.fetch(limit, FETCH_SECONDS)
            ready = await ours.ready()
        else:  # a rebalance that waits for its turn goes first
            self._hold.release()
            await self._hold.acquire()
            ready = await ours.ready()
        task = None
        if ready is not None:
            task = await ours.desk.decide(ready, take(ready, limit))
        self._in_turn = task is not None
        return task

    def _take_back(self) -> None:
        """Whatever was broken off, nothing runs."""
        self._mark_left()
        self._ours.busy = None

    async def _done(self, until: Until) -> bool:
        if self._stopping or self._cancelled:
            return True
        ours = self._ours
        if ours.has_ended():
            return True
        if until is not Until.END or not ours.assigned:
            return False
        for owned in ours.partitions():
            if owned.stage is not Stage.STOPPED and not await ours.at_end(owned):
                return False
        return await ours.others_are_at_end()

    async def _raise_stopped(self, until: Until) -> None:
        ours = self._ours
        if self._cancelled:
            return
        if until is Until.END:
            await ours.check_topics()
        elif self._stopping or not ours.has_ended():
            return
        raise_all(ours.stopped())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._left.wait()
        except TimeoutError:
            log.info("a handler is not back within %g s; the store decides", self._drain_seconds)

    # -- handlers ------------------------------------------------------------------------------

    async def _carry_out(self, task: Task, run: AsyncRun, handler: AsyncHandler) -> None:
        escaping: BaseException | None = None
        self._mark_entered(task, grace_seconds=GRACE_SECONDS)
        self._hold.release()
        try:
            if len(task.plan.runs) and not self._cancelled:
                escaping = await self._hand_to(task, run, handler)
        finally:
            await self._leave(task)
        if escaping is not None:
            raise escaping

    async def _hand_to(
        self, task: Task, run: AsyncRun, handler: AsyncHandler
    ) -> BaseException | None:
        began = self._clock.monotonic()
        size, runs = len(task.records), len(task.plan.runs)
        try:
            with around_batch(BatchStarted(task.owned.at, size, runs, size - runs)):
                return await run(task, handler, self._calls, self._slice_of(task, began))
        finally:
            task.handler_seconds = self._clock.monotonic() - began

    def _slice_of(self, task: Task, began: float) -> Check:
        """The clock is asked for each event, whose deadline costs more: one thawed is one only."""
        end = began + self._once.limits.commit_seconds

        def ends_slice() -> bool:
            self._watch.progressed()
            return task.halted or self._cancelled or self._clock.monotonic() >= end

        return ends_slice

    def _mark_entered(self, task: Task, *, grace_seconds: float) -> None:
        self._ours.busy = task
        task.halted = self._stopping
        self._left.clear()
        self._watch.entered(grace_seconds)

    def _mark_left(self) -> None:
        self._watch.left()
        self._left.set()

    async def _leave(self, task: Task) -> None:
        """Settle with the store first: a revoke may be waiting for it, and holds the lock."""
        ours = self._ours
        try:
            if ours.cut is None:
                await ours.desk.conclude(task)
        except BaseException:
            task.owned.reopen()  # how far it came, only the store can tell
            raise
        finally:
            await self._give_back(task.owned)
        if task.owned.leaving:  # revoked since
            await ours.release(task.owned, "late")
        self._in_turn = False
        if ours.cut is not None:
            raise ours.cut

    async def _give_back(self, owned: Owned) -> None:
        """The partition of the task that has ended, if it was revoked meanwhile, for the lock."""
        ours = self._ours
        try:
            if owned.leaving:
                await ours.release(owned, "late")
        finally:
            ours.busy = None
            self._mark_left()
            await self._hold.acquire()


async def _nothing(*event: object) -> None:
    """For tasks in which nothing runs."""
