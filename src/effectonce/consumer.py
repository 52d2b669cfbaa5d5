"""`OnceConsumer`: the driver for confluent-kafka. It carries out; `core/` decides.

    caller's thread    fetch -> decide -> handlers -> conclude (store) -> tell Kafka
    keeper's thread    polls in its place while a handler is slow (keeper.py)

Before the client is polled, everything that has started is settled with the store. A revoke that
arrives while a handler runs (on the keeper's thread) waits for that, under one deadline; whatever
comes later is judged by the store's fence.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from effectonce.arguments import (
    END,
    LaneOf,
    Until,
    check_all,
    check_lanes,
    check_size,
    check_until,
)
from effectonce.assignment import Assignment
from effectonce.core.order import Order
from effectonce.errors import BrokerError, ConfigError
from effectonce.event import Batch
from effectonce.handlers import Handler, Slice, check_handler, run_batch, run_events
from effectonce.hooks import BatchStarted, around_batch
from effectonce.kafka import ConfluentClient
from effectonce.keeper import SystemClock, ThreadKeeper
from effectonce.lane_run import LaneRun
from effectonce.native import native
from effectonce.now import ClientNow, OursNow, now, store_now
from effectonce.once import Once
from effectonce.owned import Health, Owned, Pool, Stage, Task, health_of
from effectonce.ports import Client, Clock, Keeper
from effectonce.settings import config_problems, once_problems, topic_problems
from effectonce.signals import on_sigint, on_sigterm
from effectonce.waiting import following, take
from effectonce.words import no_broker, no_topics
from effectonce.workers import PoolNow, Workers

__all__ = ["END", "OnceConsumer"]


FETCH_SECONDS: Final = 0.1
"""A poll without records: also how late a signal is noticed."""
POLL_SECONDS: Final = 1.0
"""Held records are worked on for at most this long between two polls."""
SWEEPS: Final = sys.version_info < (3, 14) and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether the young generations are collected between two batches, while no message is alive.

Left to itself the collector runs in the middle of a batch, takes its messages for old, and soon
walks the whole heap for them: 125 ns a message, against 4 for this (batches of 1000, a heap of
34,000 objects). Where C keeps it from messages (native.py), some may be held meanwhile; else those
would be taken for old: 700 ns a message. Done only if it ran by itself since: each `collect(1)`
starts its count anew, and with small batches it would never come to look at the old ones (a cycle
an event: 1 GB after 50,000, seen). In later Pythons `collect(1)` is another thing: a full
collection, or a slice of one.
"""

Run: TypeAlias = Callable[[Task, Handler, Slice], BaseException | None]
"""Gives a task's events to a handler; returns what must be let through."""

KEEPER_SECONDS: Final = 1.0
"""A handler call longer than this is slow: rebalances should not wait for it any longer."""


class OnceConsumer:
    """A Kafka consumer in which every event takes effect once. One thread runs it.

    config: confluent-kafka's own settings, under their own names. topics: names, no patterns.
    `client`, `clock`, `keeper` and `pool` are for simulation.

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
        pool: Callable[[Handler, int], Pool] | None = None,
    ) -> None:
        problems = [*config_problems(config), *topic_problems(topics), *once_problems(once)]
        if problems:
            raise ConfigError(problems)
        self._once = once
        self._topics = list(dict.fromkeys(topics))
        self._brokers = config["bootstrap.servers"]
        self._clock = clock or SystemClock()
        self._keeper = keeper or ThreadKeeper()
        self._client = client or ConfluentClient(config)
        poll_seconds = int(config.get("max.poll.interval.ms", 300_000)) / 1000
        self._keeper_after = min(KEEPER_SECONDS, poll_seconds / 4)
        self._drain_seconds = min(once.limits.drain_seconds, poll_seconds / 4)
        self._assignment = Assignment(
            once,
            store_now(once.store),
            ClientNow(self._client),
            self._clock,
            str(config["group.id"]),
            self._topics,
            store_id=once.store.prepare(),
            drain=self._drain,
            drain_seconds=self._drain_seconds,
        )
        self._pool = pool or Workers
        self._ours_now = OursNow(self._assignment)
        self._loaned: Task | None = None
        self._in_turn = False
        """From a look around until what it gave to the handlers is settled. Found true, a turn was
        broken off, and records may be missing between those that were handed over."""
        self._started = self._closed = self._stopping = False

    # -- the public face -----------------------------------------------------------------------

    def run(
        self,
        handler: Handler,
        *,
        until: Until = Until.STOPPED,
        lanes: int = 1,
        order: str = "key",
        lane: LaneOf | None = None,
    ) -> None:
        """Call the handler for every event that has not taken effect yet.

        It is called with `(event)`, or `(event, tx)` for in-store effects. Returns on SIGTERM or
        `stop()`, and with `until=effectonce.END` once every partition is past the end that it had.
        What the handler returns is kept as the event's outcome. Raises the first partition's
        error once every assigned partition has stopped (and, with END, if any has).

        `lanes`: so many handlers run at once, in threads. `order` says what they may rely on:
        "key" (records of one record key in delivered order), "partition", or "none"; `lane(event)`
        names what runs in order by itself, None where nothing must.
        """
        in_store = self._once.in_store
        check_all(
            partial(check_handler, handler, "event", in_store=in_store),
            partial(check_until, until),
            partial(check_lanes, lanes, order, lane, in_store=in_store),
        )
        if lanes == 1 or self._once.in_store:
            self._run(until, run_events, handler, self._once.limits.batch)
        else:
            self._run_lanes(until, handler, lanes, Order(order), lane)

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
        check_all(
            partial(check_handler, handler, "batch", in_store=self._once.in_store),
            partial(check_until, until),
            partial(check_size, size),
        )
        self._run(until, run_batch, handler, size or self._once.limits.batch)

    def __iter__(self) -> Iterator[Batch]:
        """Give batches to your own loop.

            for batch in consumer:
                for event in batch:
                    with event as tx:
                        ...

        Asking for the next batch, and leaving the `with` block of the consumer, commits what the
        last one finished. Ends after `stop()`.
        """
        self._start()
        return self

    def __next__(self) -> Batch:
        self._take_over()
        while not self._done(Until.STOPPED):
            task = self._turn(self._once.limits.batch)
            if task is None:
                continue
            if not len(task.plan.runs):
                self._carry_out(task, run_events, _nothing)
                continue
            task.work.progressed = self._progressed
            self._loaned = task
            self._enter(task)
            return Batch(task.work, task.work.runs)
        now(self._assignment.desk.collect)
        self._raise_stopped(Until.STOPPED)
        raise StopIteration

    def stop(self) -> None:
        """Return from `run` after the event in the handler. Safe from signals and threads."""
        self._stopping = True
        self._assignment.halt()

    def health(self) -> Health:
        """A snapshot; safe from any thread."""
        return seen(self._assignment)

    def close(self) -> None:
        """Commit what is finished and leave the group.

        Safe to call twice; after a Ctrl-C in it, the second call leaves the group. For the thread
        that runs it: from another one, `stop()` it, and let that thread close it. Two of them in
        librdkafka at once may wait for each other for ever (seen, 1 of 8).
        """
        try:
            if not self._closed:
                self._closed = True
                self._finish()
        finally:
            if self._assignment.cut is None:
                self._client.close()
            self._keeper.stop()

    def _finish(self) -> None:
        if (task := self._assignment.busy) is not None:
            task.halted = True  # a handler of ours closes us
        self._settle_loan()
        self._take_back()
        if self._started and self._assignment.cut is None:
            now(self._assignment.give_up_all)

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

    def _run(self, until: Until, run: Run, handler: Handler, limit: int) -> None:
        self._start()
        if until is Until.END:
            now(self._assignment.wait_for_all)
        with on_sigterm(self.stop):
            while not self._done(until):
                self._take_turn(run, handler, limit)
        now(self._assignment.desk.collect)
        self._raise_stopped(until)

    def _run_lanes(
        self, until: Until, handler: Handler, lanes: int, order: Order, lane: LaneOf | None
    ) -> None:
        """As `_run`; the threads are there while it lasts."""
        self._start()
        ours, pool = self._assignment, self._pool(handler, lanes)
        loop = LaneRun(
            self._once, store_now(self._once.store), ours, self._clock, PoolNow(pool),
            lanes=lanes, order=order, lane=lane,
        )  # fmt: skip
        try:
            if until is Until.END:
                now(ours.wait_for_all)
            with on_sigterm(self.stop), on_sigint() as interrupted:
                while not (self._done(until) or loop.escaping or interrupted):
                    now(loop.turn)
                now(loop.finish, self._drain_seconds)
        except BaseException:
            loop.broken_off()
            raise
        finally:
            pool.stop()
        if interrupted:
            raise KeyboardInterrupt
        if loop.escaping is not None:
            raise loop.escaping
        self._raise_stopped(until)

    def _take_turn(self, run: Run, handler: Handler, limit: int) -> None:
        """One task, which is forgotten before the next one is fetched."""
        task = self._turn(limit)
        if task is not None:
            self._carry_out(task, run, handler)

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError("this consumer is closed; make a new one")
        self._take_over()
        if self._started:
            return
        try:
            known = self._client.topic_ids(self._topics)
        except BrokerError as error:
            raise no_broker("bootstrap.servers", self._brokers, error) from error
        if missing := [topic for topic in self._topics if topic not in known]:
            raise no_topics(missing)
        self._keeper.start(
            self._ours_now,
            after_seconds=self._keeper_after,
            deadline_seconds=self._once.limits.handler_timeout_seconds,
        )
        self._client.subscribe(self._topics, self._ours_now)
        self._started = True

    def _turn(self, limit: int) -> Task | None:
        """One look around: what is due is done, and at most one task is decided."""
        ours = self._assignment
        if ours.fatal is not None:
            raise ours.fatal
        self._in_turn = True
        now(ours.see_to_what_is_due)
        ready = now(ours.ready)
        if SWEEPS and (ready is None or native) and gc.isenabled() and gc.get_count()[1]:
            gc.collect(1)
        if ready is None:
            now(ours.fetch, limit, FETCH_SECONDS)
            ready = now(ours.ready)
        elif self._clock.monotonic() - ours.polled_at > POLL_SECONDS:
            now(ours.tend)
            ready = now(ours.ready)
        if ready is not None and ours.desk.ask(ready):
            now(ours.fetch_behind, ready, limit)
            ready = now(ours.ready, ready)
        task = self._decide(ready, limit) if ready is not None else None
        self._in_turn = task is not None
        return task

    def _decide(self, ready: Owned, limit: int) -> Task | None:
        """The store is asked for the records behind before it is waited for (asking.py)."""
        ours, records = self._assignment, take(ready, limit)
        if ours.desk.ahead is not None:
            behind = following(ours.partitions(), ready, self._clock.monotonic())
            if behind is not None:
                ours.desk.ask(behind)
        return now(ours.desk.decide, ready, records)

    def _take_back(self) -> None:
        """Whatever was broken off (Ctrl-C), the client is the caller's and nothing runs."""
        self._keeper.left()
        self._assignment.busy = None

    def _done(self, until: Until) -> bool:
        if self._stopping:
            return True
        ours = self._assignment
        if ours.has_ended():
            return True
        if until is not Until.END or not ours.assigned:
            return False
        return all(
            o.stage is Stage.STOPPED or now(ours.at_end, o) for o in ours.partitions()
        ) and now(ours.others_are_at_end)

    def _raise_stopped(self, until: Until) -> None:
        ours = self._assignment
        if until is Until.END:
            now(ours.check_topics)  # partitions of a deleted topic may just have been revoked
        elif self._stopping or not ours.has_ended():
            return
        raise_all(ours.stopped())

    async def _drain(self) -> None:
        self._keeper.await_left(self._drain_seconds)

    # -- handlers ------------------------------------------------------------------------------

    def _carry_out(self, task: Task, run: Run, handler: Handler) -> None:
        escaping: BaseException | None = None
        try:
            self._enter(task)
            if len(task.plan.runs):
                escaping = self._hand_to(task, run, handler)
        finally:  # a dead `tx`, Ctrl-C between two events: settled all the same
            self._leave(task)
        if escaping is not None:
            raise escaping

    def _hand_to(self, task: Task, run: Run, handler: Handler) -> BaseException | None:
        began = self._clock.monotonic()
        size, runs = len(task.records), len(task.plan.runs)
        end = began + self._once.limits.commit_seconds
        try:
            with around_batch(BatchStarted(task.owned.at, size, runs, size - runs)):
                return run(task, handler, Slice(task, self._keeper, self._clock.monotonic, end))
        finally:
            task.handler_seconds = self._clock.monotonic() - began

    def _progressed(self) -> None:
        self._keeper.progress = self._clock.monotonic()

    def _enter(self, task: Task) -> None:
        self._assignment.busy = task
        task.halted = self._stopping  # be it by a signal, just now
        self._keeper.entered()

    def _leave(self, task: Task) -> None:
        """Settle with the store first: a revoke on the keeper's thread may be waiting for it."""
        ours = self._assignment
        try:
            if ours.cut is None:
                now(ours.desk.conclude, task)
        except BaseException:
            task.owned.reopen()  # how far it came, only the store can tell
            raise
        finally:
            self._give_back(task.owned)
        self._in_turn = False
        if ours.cut is not None:
            raise ours.cut

    def _give_back(self, owned: Owned) -> None:
        """The partition of the task that has ended, if it was revoked meanwhile, and the client.

        While it is `busy` no revoke frees its LOCK: a commit without an answer is sent again first
        (given again and revoked once more, it was sent to a closed database, simulated).
        """
        ours = self._assignment
        try:
            if owned.leaving:
                now(ours.release, owned, "late")
        finally:
            ours.busy = None
            self._keeper.left()
            if owned.leaving:  # revoked since
                now(ours.release, owned, "late")

    def _take_over(self) -> None:
        """The last batch of the user's own loop ends here; a handler of `run` cannot."""
        self._settle_loan()
        ours = self._assignment
        if ours.busy is not None or (ours.lanes is not None and not ours.lanes.ended()):
            raise RuntimeError("this consumer is in a handler: return from it first, or stop()")
        ours.lanes = None
        if self._in_turn:
            self._take_back()
            ours.begin_again()
            self._in_turn = False

    def _settle_loan(self) -> None:
        if (task := self._loaned) is not None:
            try:
                self._leave(task)
            finally:
                self._loaned = None


def seen(ours: Assignment) -> Health:
    """How an assignment's partitions are now."""
    owned = sorted(ours.partitions(), key=lambda owned: owned.at)
    rows = tuple(health_of(o) for o in owned)
    well = ours.cut is None and not ours.gone and all(row.error is None for row in rows)
    return Health(ok=well, partitions=rows)


def raise_all(errors: list[Exception]) -> None:
    """Raise the first, with the others in its notes; nothing, where there is none."""
    for other in errors[1:]:
        errors[0].add_note(f"and {other}")
    if errors:
        raise errors[0]


def _nothing(*event: object) -> None:
    """For tasks in which nothing runs."""
