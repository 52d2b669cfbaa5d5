"""A member: the real `OnceConsumer` on a greenlet, its client, clock and keeper simulated.

Every port call is a step at which the process may be killed or frozen, before or after what the
call does; a frozen one goes on where it stood, and does not know that time has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from random import Random
from typing import Any, Final, cast

from greenlet import getcurrent

from effectonce.consumer import OnceConsumer
from effectonce.errors import BrokerError, EffectOnceError
from effectonce.event import Batch, Event
from effectonce.model import UNSET, Committed, LogEnds
from effectonce.ports import (
    CommitMode,
    KafkaOffset,
    KeyValueTx,
    Listener,
    Records,
    TopicPartition,
)
from effectonce.testing.simulator.broker import REBALANCE_SECONDS, LogRecords, Member, Rule
from effectonce.testing.simulator.disk import store_of
from effectonce.testing.simulator.in_lanes import SLOW_SECONDS, SimPool, lasts
from effectonce.testing.simulator.keeper import SimKeeper
from effectonce.testing.simulator.schedule import Dead

LEARNS_SECONDS: Final = 0.6
"""A resumed zombie runs buffered records for up to this long (KIP-848: 0.4 s seen)."""


@dataclass(frozen=True, slots=True)
class Fate:
    """How one call ends: it fails before it does anything, or its answer is lost."""

    before: bool = False
    after: bool = False


class HandlerRaised(Exception):
    """What a simulated handler raises."""


class Style(Enum):
    """How the user's code is called."""

    EVENTS = "run"
    BATCHES = "run_batches"
    LOOP = "a loop of one's own"
    """It goes on behind an event that failed, so markers lie ahead of the position."""


class Process:
    """One process: dead or alive, perhaps frozen."""

    def __init__(self, world: Any, name: str) -> None:
        self.world = world
        self.name = name
        self.chance = Random(f"{world.name} {name}")
        self.dead = self.ended = False
        self.frozen_until = 0.0
        self.steps = 0
        """Calls of its ports so far."""
        self.skew_ms = 0
        self.running: dict[object, Event] = {}
        """By greenlet: what it has in its handler."""
        self.client, self.keeper = SimClient(self), SimKeeper(self)
        self.consumer: OnceConsumer | None = None

    def main(self) -> None:
        world = self.world
        try:
            once = world.once(store_of(self, world.disk))
            with OnceConsumer(
                {"bootstrap.servers": "simulated", "group.id": world.group_name},
                [world.topic],
                once,
                client=self.client,
                clock=self,
                keeper=self.keeper,
                pool=partial(SimPool, self),
            ) as self.consumer:
                self.consume(self.consumer, once.in_store)
        except Dead:
            pass
        except EffectOnceError as error:
            if not self.dead:
                world.judge.stopped(self.name, error)
        finally:
            self.exit()

    def consume(self, consumer: OnceConsumer, in_store: bool) -> None:
        style = self.world.style
        if self.world.lanes is not None:
            consumer.run(self.handle_outside, **self.world.lanes.settings())
        elif style is Style.LOOP:
            self.loop(consumer, in_store)
        elif style is Style.BATCHES:
            consumer.run_batches(self.batch_in_store if in_store else self.batch_outside)
        else:
            consumer.run(self.handle_in_store if in_store else self.handle_outside)

    def exit(self) -> None:
        """The operating system frees what it held; the group only hears of it later."""
        if self.ended:
            return
        self.ended = self.dead = True
        for row in self.consumer.health().partitions if self.consumer is not None else ():
            if row.stage == "stopped":
                self.world.judge.broken("wrongly stopped", f"{self.name}: {row.error}"[:300])
        locks = self.world.disk.locks
        for at in [at for at, holder in locks.items() if holder == self.name]:
            del locks[at]
        self.world.gone(self)

    def kill(self) -> None:
        self.dead = True
        self.world.judge.killed(self.name)
        self.exit()

    # -- steps ---------------------------------------------------------------------------------

    def enter(self, step: str, seconds: float | None = None) -> Fate:
        """Before a call: time passes, faults happen."""
        self._check()
        world = self.world
        if world.lanes is None or step != "handler":  # those of lanes come in between
            self.steps += 1
        world.schedule.wait(0.001 * self.chance.random() if seconds is None else seconds)
        self._thaw()
        world.faults.around(self, step)
        self._thaw()
        fate: Fate = world.faults.fate(self, step)
        return fate

    def leave(self, step: str, said: str = "") -> None:
        """After what it does, before its answer."""
        if self.world.timeline is not None:
            self.world.tell(self.name, f"{step}: {said}" if said else step)
        self.world.faults.around(self, f"after {step}")
        self._thaw()

    def sleep(self, seconds: float) -> None:
        self._check()
        self.world.schedule.wait(seconds)
        self._thaw()

    def _thaw(self) -> None:
        while not self.dead and self.frozen_until > self.world.schedule.now:
            self.world.schedule.wait(self.frozen_until - self.world.schedule.now)
        self._check()

    def _check(self) -> None:
        if self.dead:
            raise Dead

    # -- Clock ---------------------------------------------------------------------------------

    def wall_ms(self) -> int:
        return int(self.world.wall_ms()) + self.skew_ms

    def monotonic(self) -> float:
        return 100.0 + float(self.world.schedule.now)

    # -- handlers ------------------------------------------------------------------------------

    def handle_in_store(self, event: Event, tx: KeyValueTx) -> object:
        event_id = event.value or b""
        self._before(event)
        key = b"effect " + event_id
        tx.put(key, b"%d" % (int(tx.get(key) or b"0") + 1))
        return self._after(event)

    def handle_outside(self, event: Event) -> object:
        self._before(event)
        self.world.judge.effect((event.value or b"").decode(), self.name, event)
        self.world.judge.lanes.takes_effect(event.offset)
        return self._after(event)

    def batch_in_store(self, batch: Batch, tx: KeyValueTx) -> None:
        for event in batch:
            self.handle_in_store(event, tx)

    def batch_outside(self, batch: Batch) -> None:
        for event in batch:
            try:
                self.handle_outside(event)
            except HandlerRaised as error:
                event.failed(error)

    def loop(self, consumer: OnceConsumer, in_store: bool) -> None:
        for batch in consumer:
            for event in batch:
                with suppress(HandlerRaised), event as tx:
                    if in_store:
                        self.handle_in_store(event, cast(KeyValueTx, tx))
                    else:
                        self.handle_outside(event)

    def _before(self, event: Event) -> None:
        name = (event.value or b"").decode()
        log_time_ms = self.world.log_time_ms((event.topic, event.partition))
        place = (event.partition, event.offset)
        self.world.judge.runs(self.name, name, place, log_time_ms)
        self.running[getcurrent()] = event
        seconds = self.world.faults.handler_seconds(self)
        if self.world.lanes is not None:
            self.world.judge.lanes.begins(self.name, event, self.world.lanes.lane_of(event))
            if seconds > SLOW_SECONDS:  # where lanes run, no keeper notices
                self.world.faults.fired("slow handler", "handler")
            seconds = lasts(seconds, self.chance)
        self.keeper.expect(seconds)
        self.enter("handler", seconds)
        self.world.judge.running[self.name] = place
        self.world.faults.handler_raises(self, "handler raises", name)
        if self.world.timeline is not None:
            self.world.tell(self.name, f"handler: {event.partition}@{event.offset} {name}")

    def _after(self, event: Event) -> object:
        self.world.faults.around(self, "after handler")
        self._thaw()
        name = (event.value or b"").decode()
        self.world.judge.running[self.name] = event.partition, event.offset
        self.world.faults.handler_raises(self, "handler raises after its effect", name)
        if self.world.lanes is None:
            self.running.pop(getcurrent(), None)
        return None


class SimClient:
    """`ports.Client` over the simulated brokers."""

    holds_cheaply = True

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._gone: set[TopicPartition] = set()
        self._learns: float | None = None
        self._closed = False
        self._polls = 0
        self.member: Member | None = None
        self._listener: Listener | None = None

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        del topics
        self._listener = listener
        self._join()

    def _join(self) -> None:
        self._learns = None
        self.member = self._world.group.join(self._process.name)
        self._world.watch_rebalance()

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self._process.enter("fetch")
        if self._closed:
            raise RuntimeError("the client is closed")
        self._serve()
        got = self._read(limit)
        if not got and timeout_seconds > 0:
            # a poll may be late; idle ones are, so that a seed costs fewer of them
            self._process.sleep(timeout_seconds * self._process.chance.uniform(1.0, 4.0))
            self._serve()
            got = self._read(limit)
        return got

    def _in_turn(self) -> list[TopicPartition]:
        """Each poll begins with another partition, or the last ones would get nothing."""
        self._polls += 1
        keys = list(self._positions)
        first = self._polls % len(keys) if keys else 0
        return keys[first:] + keys[:first]

    def _read(self, limit: int) -> list[Records]:
        found: list[Records] = []
        for key in self._in_turn():
            position = self._positions[key]
            if key in self._paused or key in self._gone or limit <= 0:
                continue
            log = self._world.logs[key]
            if not log.start <= position <= log.end:
                assert self._listener is not None
                self._listener.on_position_gone(key, "out of range")
                self._gone.add(key)  # as librdkafka: nothing more until a seek
                continue
            entries = log.read(position, min(limit, self._process.chance.randint(1, 12)))
            if entries:
                self._positions[key] = entries[-1].offset + 1
                limit -= len(entries)
                self._world.judge.deliveries += len(entries)
                found.append(LogRecords(*key, entries))
            else:
                self._positions[key] = log.end
        return found

    def _serve(self) -> None:
        member, listener = self.member, self._listener
        assert member is not None
        assert listener is not None
        if member.expelled:
            self._expelled(listener)
            return
        if member.to_revoke:
            going = sorted(member.to_revoke & set(self._positions))
            self._process.enter("revoke")
            listener.on_revoked(going)
            for key in going:
                self._drop(key)
            if not member.expelled:
                self._world.group.revoked(member, set(going))
        if member.undelivered and not member.expelled:
            new = sorted(member.undelivered)
            member.undelivered.clear()
            for key in new:
                self._positions[key] = 0
                self._paused.add(key)
            self._process.leave("assign", str(new))
            listener.on_assigned(new)

    def _expelled(self, listener: Listener) -> None:
        """It learns late, and perhaps by a plain revoke, as classic groups say it."""
        now = self._world.schedule.now
        if self._learns is None:
            self._learns = now + self._process.chance.uniform(0, LEARNS_SECONDS)
            self._world.faults.fired("zombie", "fetch")
        if now < self._learns:
            return
        all_of_it = sorted(self._positions)
        plain = self._world.group.rule is not Rule.CONSUMER and self._process.chance.random() < 0.5
        self._world.faults.fired("late revoke" if plain else "lost", "fetch")
        (listener.on_revoked if plain else listener.on_lost)(all_of_it)
        for key in all_of_it:
            self._drop(key)
        self._join()

    def _drop(self, key: TopicPartition) -> None:
        self._positions.pop(key, None)
        self._paused.discard(key)
        self._gone.discard(key)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._ask("seek")
        if partition not in self._positions:
            raise BrokerError("seek: not assigned")
        self._positions[partition] = offset
        self._gone.discard(partition)

    def position(self, partition: TopicPartition) -> int:
        return self._positions.get(partition, UNSET)

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        if not offsets:
            return
        member = self.member
        assert member is not None
        fate = self._process.enter("kafka.commit")
        if fate.before:
            raise BrokerError("simulated: no commit")
        if mode is not CommitMode.ASYNC and member.expelled:
            raise BrokerError("Kafka, commit: unknown member")
        land = self._landing(offsets, member)
        if mode is CommitMode.ASYNC:
            self._world.schedule.at(0.001 * self._process.chance.random(), land)
        else:
            land()
        self._process.leave("kafka.commit", ", ".join(f"{o.partition}:{o.offset}" for o in offsets))
        if fate.after:
            raise BrokerError("simulated: committed, not answered")

    def _landing(self, offsets: Sequence[KafkaOffset], member: Member) -> Callable[[], None]:
        group, sync_generation = self._world.group, member.generation

        def land() -> None:
            for o in offsets:
                if not member.expelled and member.generation == sync_generation:
                    key = (o.topic, o.partition)
                    group.commit(member, key, Committed(o.offset, o.metadata))

        return land

    def committed(
        self, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        self._ask("kafka.committed")
        return {key: self._world.group.offsets.get(key) for key in partitions}

    def log_ends(self, partition: TopicPartition) -> LogEnds:
        self._ask("kafka.log_ends")
        log = self._world.logs[partition]
        return LogEnds(log.start, log.end)

    def known_end(self, partition: TopicPartition) -> int:
        return int(self._world.logs[partition].end)

    def partitions_of(self, topic: str) -> Sequence[int]:
        return [number for name, number in self._world.logs if name == topic]

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        self._ask("kafka.topic_ids", may_fail=self.member is not None)
        return dict.fromkeys(topics, self._world.topic_id)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        member, listener = self.member, self._listener
        if member is None or listener is None:
            return
        self._process.enter("leave")
        listener.on_revoked(sorted(self._positions))
        self._positions.clear()
        self._world.group.expel(member)
        self._world.watch_rebalance()

    def _ask(self, step: str, *, may_fail: bool = True) -> None:
        fate = self._process.enter(step)
        if may_fail and (fate.before or fate.after):
            raise BrokerError(f"simulated: {step}")


__all__ = ["REBALANCE_SECONDS", "Fate", "HandlerRaised", "Process"]
