"""Whether memory stays flat while records are held behind one stuck key.

    python -m benchmarks.held [SECONDS]     by itself; `make soak HELD=3600` an hour
    python -m benchmarks.held JOB           one run's consumer, in a process of its own

A handler of 8 lanes never returns from one event, in one of four partitions; producers go on. The
position stays in front of that event, records behind it are held up to `Limits(held=)`, then their
partition is paused, and the others flow. The window is a minute, so that their markers go as they
come: in a week's window memory grows with each effect, stuck key or not. Two groups side by side:
on RocksDB, whose write buffers fill up to 64 MB in the same process, and on Redis, where nothing
but what is held is in it. Sampled every second, once the partition is paused and two windows have
passed; each key ends in the store's name:

    held_memory_growth_mb      median resident memory of the last tenth less that of the first
    held_most                  records that one partition had in memory
    held_others_per_second     effects of all other keys meanwhile
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psutil
from confluent_kafka import Producer
from rich.console import Console
from rich.progress import Progress

import effectonce as eo
from benchmarks.child import child
from benchmarks.loads import HEADER, PARTITIONS
from effectonce.testing.servers import KafkaServer, ValkeyServer

OUT: Final = Path("out/held.json")
SECONDS: Final = 600
LANES: Final = 8
KEYS: Final = 1_000
STUCK: Final = b"stuck"
PER_SECOND: Final = 1_000
VALUE_BYTES: Final = 1_000
WINDOW: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Job:
    """What the consumer's process is told."""

    bootstrap: str
    topic: str
    group: str
    store: str
    seconds: int


def consume(job: Job) -> None:
    """Print a sample a second, once a partition holds as much as it may."""
    config = {"bootstrap.servers": job.bootstrap, "group.id": job.group}
    effects, over = [0], threading.Event()
    once = eo.Once(
        job.store,
        identify=eo.header(HEADER),
        effects=eo.Outside(on_doubt="repeat"),
        window=WINDOW,
        limits=eo.Limits(handler_timeout_seconds=job.seconds + 3_600.0),
    )
    with eo.OnceConsumer(config, [job.topic], once) as consumer:

        def handler(event: eo.Event) -> None:
            if event.key == STUCK:
                over.wait()
            else:
                effects[0] += 1

        def sample() -> None:
            me, full = psutil.Process(), once.limits.held
            most, left = 0, job.seconds
            steady = time.monotonic() + 2 * WINDOW.total_seconds()
            while left and not over.wait(1.0):
                most = max([most, *(each.held for each in consumer.health().partitions)])
                if most < full // 2 or time.monotonic() < steady:
                    continue
                left -= 1
                said = {"rss": me.memory_info().rss, "effects": effects[0], "most": most}
                print(json.dumps(said), flush=True)
            over.set()
            consumer.stop()

        threading.Thread(target=sample, daemon=True).start()
        consumer.run(handler, lanes=LANES)


def measure(
    kafka: KafkaServer, stores: Mapping[str, str], seconds: int, chance: random.Random
) -> dict[str, Any]:
    """Flat keys of the report; `stores` are URLs by name."""
    topic, over = f"held-{uuid.uuid4().hex[:8]}", threading.Event()
    kafka.create_topic(topic, PARTITIONS)
    producer = threading.Thread(
        target=produce, args=(kafka.bootstrap, topic, chance, over), daemon=True
    )
    producer.start()
    samples: dict[str, list[dict[str, int]]] = {name: [] for name in stores}
    try:
        with ExitStack() as stack:
            consumers = {
                name: stack.enter_context(
                    child(
                        "benchmarks.held",
                        asdict(Job(kafka.bootstrap, topic, f"held-{name}", url, seconds)),
                        patience_seconds=seconds + 600,
                    )
                )
                for name, url in stores.items()
            }
            progress = stack.enter_context(Progress(console=Console(stderr=True)))
            bar = progress.add_task("held", total=seconds)
            for _ in range(seconds):
                for name, consumer in consumers.items():
                    samples[name].append(consumer.answer())
                progress.advance(bar)
    finally:
        over.set()
        producer.join()
    return {"held_seconds": seconds} | {
        f"{key}_{name}": value for name in stores for key, value in figures(samples[name]).items()
    }


def figures(samples: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """What a group's samples, one a second, say."""
    tenth = max(len(samples) // 10, 1)
    rss = [sample["rss"] / 1e6 for sample in samples]
    effects = samples[-1]["effects"] - samples[0]["effects"]
    return {
        "held_memory_first_mb": round(statistics.median(rss[:tenth]), 1),
        "held_memory_growth_mb": round(
            statistics.median(rss[-tenth:]) - statistics.median(rss[:tenth]), 1
        ),
        "held_most": samples[-1]["most"],
        "held_others_per_second": round(effects / max(len(samples) - 1, 1)),
    }


def produce(bootstrap: str, topic: str, chance: random.Random, over: threading.Event) -> None:
    """The stuck key first; then the others, until it is over."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})

    def send(key: bytes) -> None:
        event_id = str(uuid.UUID(int=chance.getrandbits(128), version=4)).encode()
        producer.produce(topic, bytes(VALUE_BYTES), key, headers=[(HEADER, event_id)])

    send(STUCK)
    producer.flush()
    while not over.wait(0.1):
        for _ in range(PER_SECOND // 10):
            send(b"key %d" % chance.randrange(KEYS))
        producer.poll(0)
    producer.flush()


def main(arguments: list[str]) -> int:
    if arguments and arguments[0].startswith("{"):
        consume(Job(**json.loads(arguments[0])))
        return 0
    seconds = int(arguments[0]) if arguments else SECONDS
    seed = random.SystemRandom().randrange(2**31)
    began = time.monotonic()
    with (
        KafkaServer.start(benchmark=True) as kafka,
        ValkeyServer.start() as valkey,
        tempfile.TemporaryDirectory() as home,
    ):
        stores = {"rocksdb": f"rocksdb://{quote(home)}", "redis": valkey.url}
        found = measure(kafka, stores, seconds, random.Random(seed))
    found |= {"seed": seed, "seconds": round(time.monotonic() - began)}
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
