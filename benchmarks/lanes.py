"""What lanes bring where handlers wait: events a second, many at once beside one at a time.

    python -m benchmarks.lanes JOB       a Job as JSON: one run, in a process of its own

A handler waits for 10 ms, as one that asks another system does. Records have keys, so many that a
lane has seldom two. The clock runs from the end of the warm-up to the last effect. Beside it stands
what is written by hand: a semaphore and threads, or tasks on aiokafka, without order, positions
or promise.

    lanes_64_speedup_sync          64 lanes over one, in the same round; _async: tasks
    lanes_64_share_by_hand_sync    64 lanes over the semaphore loop with as many threads, or tasks
    lanes_order_violations         effects of a key that came before an older one's, of all runs
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from confluent_kafka import Consumer, Message, Producer
from rich.progress import Progress

import effectonce as eo
from benchmarks.child import child
from benchmarks.figures import Rounds, spreads
from benchmarks.loads import HEADER, PARTITIONS
from benchmarks.stored import once_on
from effectonce.testing.servers import KafkaServer

WAIT_SECONDS: Final = 0.01
LANES: Final = 64
KEYS: Final = 5_000
WARM_UP: Final = 2 * LANES
DRIVERS: Final = ("sync", "async")


@dataclass(frozen=True, slots=True)
class Scale:
    """How many events a run of one lane has, and one of many; how often."""

    one: int
    many: int
    rounds: int


FULL: Final = Scale(one=600, many=20_000, rounds=5)
QUICK: Final = Scale(one=300, many=6_000, rounds=5)


@dataclass(frozen=True, slots=True)
class Job:
    """One run. `contender` is one of RUNS."""

    contender: str
    bootstrap: str
    topic: str
    events: int
    """With the warm-up."""
    lanes: int
    state: str = ""


@dataclass
class Meter:
    """Of one run: when effects came, and whether those of a key came in order."""

    events: int
    last: dict[bytes | None, int] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0
    seen: int = 0
    violations: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._warm_up = min(WARM_UP, self.events // 4)

    def note(self, key: bytes | None, offset: int) -> bool:
        """An effect; whether it was the last."""
        with self._lock:
            self.seen += 1
            self.violations += offset < self.last.get(key, -1)
            self.last[key] = offset
            if self.seen == self._warm_up:
                self.began = time.monotonic()
            self.ended = time.monotonic()
            return self.seen >= self.events

    def said(self) -> str:
        rate = (self.seen - self._warm_up) / (self.ended - self.began)
        return json.dumps({"rate": rate, "seen": self.seen, "violations": self.violations})


# -- a run's own process ---------------------------------------------------------------------------


def lanes_sync(job: Job, meter: Meter) -> None:
    config = {"bootstrap.servers": job.bootstrap, "group.id": "bench-lanes"}
    with eo.OnceConsumer(config, [job.topic], once_on(job.state)) as consumer:

        def handler(event: eo.Event) -> None:
            time.sleep(WAIT_SECONDS)
            if meter.note(event.key, event.offset):
                consumer.stop()

        consumer.run(handler, lanes=job.lanes)


def by_hand_sync(job: Job, meter: Meter) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap,
            "group.id": "bench-by-hand",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([job.topic])
    free, over = threading.Semaphore(job.lanes), threading.Event()

    def handler(message: Message) -> None:
        time.sleep(WAIT_SECONDS)
        if meter.note(uuid.uuid4().bytes, 0):
            over.set()
        free.release()

    with ThreadPoolExecutor(job.lanes) as pool:
        while not over.is_set():
            for message in consumer.consume(500, 0.05):
                free.acquire()
                pool.submit(handler, message)
    consumer.close()


def lanes_async(job: Job, meter: Meter) -> None:
    async def main() -> None:
        async with eo.AsyncOnceConsumer(
            job.topic,
            once=once_on(job.state),
            bootstrap_servers=job.bootstrap,
            group_id="bench-lanes",
        ) as consumer:

            async def handler(event: eo.Event) -> None:
                await asyncio.sleep(WAIT_SECONDS)
                if meter.note(event.key, event.offset):
                    consumer.stop()

            await consumer.run(handler, lanes=job.lanes)

    asyncio.run(main())


def by_hand_async(job: Job, meter: Meter) -> None:
    async def main() -> None:
        consumer = AIOKafkaConsumer(
            job.topic,
            bootstrap_servers=job.bootstrap,
            group_id="bench-by-hand",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        free, over = asyncio.Semaphore(job.lanes), asyncio.Event()
        running: set[asyncio.Task[None]] = set()

        async def handler() -> None:
            await asyncio.sleep(WAIT_SECONDS)
            if meter.note(uuid.uuid4().bytes, 0):
                over.set()
            free.release()

        await consumer.start()
        while not over.is_set():
            for records in (await consumer.getmany(timeout_ms=50, max_records=500)).values():
                for _ in records:
                    await free.acquire()
                    task = asyncio.create_task(handler())
                    running.add(task)
                    task.add_done_callback(running.discard)
        await consumer.stop()

    asyncio.run(main())


RUNS: Final[Mapping[str, Callable[[Job, Meter], None]]] = {
    "lanes_sync": lanes_sync,
    "by_hand_sync": by_hand_sync,
    "lanes_async": lanes_async,
    "by_hand_async": by_hand_async,
}


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    meter = Meter(job.events)
    RUNS[job.contender](job, meter)
    print(meter.said(), flush=True)
    return 0


# -- the rounds ------------------------------------------------------------------------------------


def measure(
    kafka: KafkaServer, home: Path, scale: Scale, chance: random.Random, progress: Progress
) -> dict[str, Any]:
    """Flat keys of the report."""
    bar = progress.add_task("lanes", total=3 * scale.rounds * len(DRIVERS))
    figures: Rounds = {}
    violations = 0
    for _ in range(scale.rounds):
        for driver in chance.sample(DRIVERS, len(DRIVERS)):
            runs = {
                f"lanes_1_{driver}": (f"lanes_{driver}", 1, scale.one),
                f"lanes_{LANES}_{driver}": (f"lanes_{driver}", LANES, scale.many),
                f"lanes_by_hand_{driver}": (f"by_hand_{driver}", LANES, scale.many),
            }
            rates: dict[str, float] = {}
            for name in chance.sample(list(runs), len(runs)):
                contender, lanes, events = runs[name]
                said = run(kafka, home, contender, lanes, events, chance)
                rates[name] = said["rate"]
                violations += said["violations"]
                progress.advance(bar)
            one, many, hand = (rates[name] for name in runs)
            for name, rate in rates.items():
                figures.setdefault(f"{name}_per_second", []).append(rate)
            figures.setdefault(f"lanes_{LANES}_speedup_{driver}", []).append(many / one)
            figures.setdefault(f"lanes_{LANES}_share_by_hand_{driver}", []).append(many / hand)
    return {**spreads(figures), "lanes_order_violations": violations}


def run(
    kafka: KafkaServer, home: Path, contender: str, lanes: int, events: int, chance: random.Random
) -> dict[str, Any]:
    """One run on a topic and a store of its own. Raises RuntimeError where an event is missing."""
    topic = f"bench-lanes-{uuid.uuid4().hex[:8]}"
    state = home / topic
    kafka.create_topic(topic, PARTITIONS)
    produce(kafka.bootstrap, topic, events, chance)
    job = Job(contender, kafka.bootstrap, topic, events, lanes, str(state))
    try:
        with child(__name__ if __name__ != "__main__" else "benchmarks.lanes", asdict(job)) as ours:
            said = ours.answer()
    finally:
        shutil.rmtree(state, ignore_errors=True)
        kafka.delete_topic(topic)
    if said["seen"] < events or (contender.startswith("lanes") and said["seen"] != events):
        raise RuntimeError(f"{contender}: {said['seen']} effects of {events} events")
    return said


def produce(bootstrap: str, topic: str, events: int, chance: random.Random) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    for _ in range(events):
        event_id = str(uuid.UUID(int=chance.getrandbits(128), version=4)).encode()
        key = b"key %d" % chance.randrange(KEYS)
        producer.produce(topic, bytes(100), key, headers=[(HEADER, event_id)])
        producer.poll(0)
    producer.flush()


if __name__ == "__main__":
    sys.exit(main())
