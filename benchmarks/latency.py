"""What is added between produce and effect.

    python -m benchmarks.latency WATCH       a Watch as JSON: the consumer, in a process of its own

The latency of an event runs from the call of `produce`, which writes the monotonic clock into a
header, until the consumer has its value: in a bare loop (`poll`) after `value()`, in ours when the
handler is called. *Added* is the difference of two quantiles, ours less bare's, of the same round,
on streams with the same pace and 10% repeats. That the marker is durable a moment later adds
nothing to this event's effect; it is in the latency of the next.

    low_rate     100 events a second, evenly, to all consumers at the same time, a third of a pace
                 apart: what holds the machine up for some ms (of a p99 here, all of it) holds all
                 up, and one after the other p99 added was -0.4 to 4.0 ms in a single run
    70_percent   of what is sustained: messages a second, from the first `produce` to the last
                 effect, of a stream produced as fast as it goes, producer, broker and store on this
                 machine; one after the other

Each run has a new topic and an empty store. Keys that end in _redis are of the shared store.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import time
import uuid
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.progress import Progress

import effectonce as eo
from benchmarks.child import Child, child
from benchmarks.figures import Rounds, spreads
from benchmarks.loads import (
    CHUNK,
    HEADER,
    PARTITIONS,
    VALUE_BYTES,
    EventIds,
    Load,
    Order,
    deliveries,
    event_ids,
)
from benchmarks.stored import flush, once_on
from effectonce.testing.servers import KafkaServer

Contender: TypeAlias = Literal["bare", "rocksdb", "redis"]

SENT: Final = "sent"
REPEATS: Final = 10
LOW_RATE: Final = 100
PART_OF_SUSTAINABLE: Final = 0.7
WARM_UP: Final = 200
"""Messages in the topic before the clock counts: connections, first opens, caches."""
QUANTILES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
BURSTS_PER_SECOND: Final = 1_000
"""A producer that is to keep a high pace wakes so often, and sends what is due."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long a stream of the low and of the high rate is, and how long what is sustained."""

    low_seconds: float
    high_seconds: float
    flood: int
    """Messages produced as fast as it goes; 0: nothing is measured at the high rate."""
    rounds: int


FULL: Final = Scale(low_seconds=30.0, high_seconds=5.0, flood=300_000, rounds=5)
QUICK: Final = Scale(low_seconds=15.0, high_seconds=0.0, flood=0, rounds=5)


# -- the consumer's process ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """What a consumer's process is told. `events`: how many it is to be given, warm-up included."""

    contender: Contender
    bootstrap: str
    topic: str
    events: int
    state: str = ""


class Clock:
    """How long each event waited, in ns. Says "ready" on stdout once the warm-up is over."""

    def __init__(self, events: int) -> None:
        self._left = events
        self._warm_up = WARM_UP
        self.waited = array("q")
        self.ended_ns = 0

    def note(self, sent: bytes) -> bool:
        """Whether that was the last."""
        now = time.monotonic_ns()
        self._left -= 1
        if self._warm_up:
            self._warm_up -= 1
            if not self._warm_up:
                print("ready", flush=True)
        else:
            self.waited.append(now - int.from_bytes(sent, "big"))
            self.ended_ns = now
        return not self._left

    def said(self) -> str:
        waited_ms = np.frombuffer(self.waited, np.int64) / 1e6
        found = {name: float(np.quantile(waited_ms, q)) for name, q in QUANTILES.items()}
        return json.dumps({**found, "ended_ns": self.ended_ns, "events": len(self.waited)})


def watch_bare(watch: Watch, clock: Clock) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": watch.bootstrap,
            "group.id": "bench-latency-bare",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
        }
    )
    consumer.assign([TopicPartition(watch.topic, number, 0) for number in range(PARTITIONS)])
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        headers: Any = message.headers()  # the stubs know headers that the client never gives
        message.value()
        if clock.note(headers[1][1]):
            break
    consumer.close()


def watch_ours(watch: Watch, clock: Clock) -> None:
    config = {"bootstrap.servers": watch.bootstrap, "group.id": f"bench-{watch.topic}"}
    with eo.OnceConsumer(config, [watch.topic], once_on(watch.state)) as consumer:

        def handle(event: eo.Event) -> None:
            sent = event.headers[1][1]
            if clock.note(sent or b""):
                consumer.stop()

        consumer.run(handle)


def main() -> int:
    watch = Watch(**json.loads(sys.argv[1]))
    clock = Clock(watch.events)
    if watch.contender == "bare":
        watch_bare(watch, clock)
    else:
        watch_ours(watch, clock)
    print(clock.said(), flush=True)
    return 0


# -- the producer's --------------------------------------------------------------------------------


class Pacer:
    """Produces a stream at a rate, from the process that measures."""

    def __init__(self, bootstrap: str, topic: str, ids: EventIds, *, linger_ms: float) -> None:
        self._topic, self.ids = topic, ids
        self._value = bytes(VALUE_BYTES)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "partitioner": "consistent",
                "linger.ms": linger_ms,
                "queue.buffering.max.messages": 1_000_000,
            }
        )

    def send(self, order: Order, rate: float | None) -> tuple[int, float]:
        """All of `order`, so many a second, or as fast as it goes.

        Returns when it began, on the monotonic clock, and the seconds that it took.
        """
        burst = CHUNK if rate is None else max(1, round(rate / BURSTS_PER_SECOND))
        began = time.monotonic_ns()
        for start in range(0, len(order), burst):
            if rate is not None:
                self.wait_until(began + int(start / rate * 1e9))
            for text in self.ids.texts(order[start : start + burst]):
                self.produce(text.encode())
        seconds = (time.monotonic_ns() - began) / 1e9
        self.flush()
        return began, seconds

    def flush(self) -> None:
        self._producer.flush()

    def wait_until(self, due_ns: int) -> None:
        self._producer.poll(0)
        left = (due_ns - time.monotonic_ns()) / 1e9
        if left > 0:
            time.sleep(left)  # the pace itself

    def produce(self, event_id: bytes) -> None:
        sent = time.monotonic_ns().to_bytes(8, "big")
        headers: list[tuple[str, str | bytes | None]] = [(HEADER, event_id), (SENT, sent)]
        while True:
            try:
                self._producer.produce(self._topic, self._value, event_id, headers=headers)
                return
            except BufferError:
                self._producer.poll(0.1)


@dataclass(frozen=True, slots=True)
class World:
    kafka: KafkaServer
    valkey: str
    home: Path


@dataclass(frozen=True, slots=True)
class Streamed:
    """One stream, from its first `produce` to its last effect."""

    quantiles: dict[str, float]
    sustained: float
    """Messages a second."""
    reached: float
    """Share of the asked rate that the producer reached; 1 where none was asked."""


def stream(
    world: World, contender: Contender, rate: float | None, messages: int, seed: int
) -> Streamed:
    """One run. Raises RuntimeError where the consumer ended without having seen all."""
    with prepared(world, contender, messages, seed, rate) as run:
        began, seconds = run.pacer.send(run.order, rate)
        return run.streamed(began, None if rate is None else messages / seconds / rate)


def side_by_side(
    world: World, field: Sequence[Contender], rate: float, messages: int, seed: int
) -> dict[Contender, Streamed]:
    """One run of each, at the same time. Raises RuntimeError as `stream`."""
    with ExitStack() as stack:
        runs = [
            stack.enter_context(prepared(world, contender, messages, seed, rate))
            for contender in field
        ]
        order = runs[0].order
        began = time.monotonic_ns()
        for number, text in enumerate(runs[0].pacer.ids.texts(order)):
            for place, run in enumerate(runs):
                run.pacer.wait_until(began + int((number + place / len(runs)) / rate * 1e9))
                run.pacer.produce(text.encode())
        reached = messages / ((time.monotonic_ns() - began) / 1e9) / rate
        for run in runs:
            run.pacer.flush()
        return {run.contender: run.streamed(began, reached) for run in runs}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A consumer that has seen the warm-up, and who produces for it."""

    contender: Contender
    order: Order
    pacer: Pacer
    process: Child
    handled: int

    def streamed(self, began_ns: int, reached: float | None) -> Streamed:
        found = self.process.answer()
        if found["events"] != self.handled:
            raise RuntimeError(
                f"{self.contender}: {found['events']} events seen, {self.handled} expected"
            )
        return Streamed(
            {name: float(found[name]) for name in QUANTILES},
            len(self.order) / ((found["ended_ns"] - began_ns) / 1e9),
            1.0 if reached is None else reached,
        )


@contextmanager
def prepared(
    world: World, contender: Contender, messages: int, seed: int, rate: float | None
) -> Iterator[Prepared]:
    load = Load(f"latency-{uuid.uuid4().hex[:8]}", messages, REPEATS)
    ids = event_ids(seed, WARM_UP + messages)
    handled = messages if contender == "bare" else load.fresh
    state = _empty(world, contender)
    watch = Watch(contender, world.kafka.bootstrap, load.topic, WARM_UP + handled, state)
    world.kafka.create_topic(load.topic, PARTITIONS)
    linger_ms = 0 if rate is not None and rate <= BURSTS_PER_SECOND else 5
    pacer = Pacer(world.kafka.bootstrap, load.topic, ids, linger_ms=linger_ms)
    pacer.send(np.arange(WARM_UP), None)
    with child("benchmarks.latency", asdict(watch)) as process:
        if (said := process.line()) != "ready":
            raise RuntimeError(f"{contender}: instead of being ready it said {said!r}")
        yield Prepared(contender, deliveries(load, WARM_UP, seed), pacer, process, handled)
    world.kafka.delete_topic(load.topic)


def _empty(world: World, contender: Contender) -> str:
    if contender == "redis":
        flush(world.valkey)
        return world.valkey
    folder = world.home / "latency-state"
    shutil.rmtree(folder, ignore_errors=True)
    return str(folder) if contender == "rocksdb" else ""


# -- rounds ----------------------------------------------------------------------------------------


def measure(
    kafka: KafkaServer,
    valkey: str,
    home: Path,
    scale: Scale,
    chance: random.Random,
    progress: Progress,
) -> dict[str, Any]:
    world = World(kafka, valkey, home)
    field: Sequence[Contender] = ("bare", "rocksdb", "redis")
    messages = int(scale.low_seconds * LOW_RATE)
    bar = progress.add_task(f"latency at {LOW_RATE} a second", total=scale.rounds)
    runs: Runs = {contender: [] for contender in field}
    for _ in range(scale.rounds):
        order = chance.sample(field, len(field))
        found = side_by_side(world, order, LOW_RATE, messages, chance.randrange(2**32))
        for contender in field:
            runs[contender].append(found[contender])
        progress.advance(bar)
    flat: dict[str, Any] = added(runs, "low_rate")
    if scale.flood:
        for store in field[1:]:
            flat |= high_rate(world, store, scale, chance, progress)
    return flat


def high_rate(
    world: World, store: Contender, scale: Scale, chance: random.Random, progress: Progress
) -> dict[str, Any]:
    ending = "_redis" if store == "redis" else ""
    bar = progress.add_task(f"latency: what {store} sustains", total=scale.rounds)
    sustained: list[float] = []
    for _ in range(scale.rounds):
        run = stream(world, store, None, scale.flood, chance.randrange(2**32))
        sustained.append(run.sustained)
        progress.advance(bar)
    rate = statistics.median(sustained) * PART_OF_SUSTAINABLE
    field: Sequence[Contender] = ("bare", store)
    messages = int(scale.high_seconds * rate)
    runs = rounds(world, field, rate, messages, scale.rounds, chance, progress)
    bare = {"bare": runs["bare"], store: runs[store]}
    return {
        **spreads({f"sustainable_per_second{ending}": sustained}, digits=0),
        **added(bare, "70_percent", bare_ending=ending),
        f"latency_pace_reached_70_percent{ending}": round(
            min(run.reached for run in (*runs["bare"], *runs[store])), 3
        ),
    }


Runs: TypeAlias = dict[Contender, list[Streamed]]


def rounds(
    world: World,
    field: Sequence[Contender],
    rate: float,
    messages: int,
    count: int,
    chance: random.Random,
    progress: Progress,
) -> Runs:
    bar = progress.add_task(f"latency at {rate:,.0f} a second", total=count * len(field))
    runs: Runs = {contender: [] for contender in field}
    for _ in range(count):
        seed = chance.randrange(2**32)
        for contender in chance.sample(field, len(field)):
            runs[contender].append(stream(world, contender, rate, messages, seed))
            progress.advance(bar)
    return runs


def added(runs: Runs, pace: str, bare_ending: str = "") -> dict[str, float]:
    """Of each quantile: bare's, ours, and the difference within each round."""
    figures: Rounds = {}
    for contender, ours in runs.items():
        ending = {"bare": f"_bare{bare_ending}", "rocksdb": "", "redis": "_redis"}[contender]
        for name in QUANTILES:
            times = [run.quantiles[name] for run in ours]
            figures[f"latency_{name}_ms_{pace}{ending}"] = times
            if contender != "bare":
                bare = [run.quantiles[name] for run in runs["bare"]]
                figures[f"latency_{name}_added_ms_{pace}{ending}"] = [
                    t - b for t, b in zip(times, bare, strict=True)
                ]
    return spreads(figures)


if __name__ == "__main__":
    sys.exit(main())
