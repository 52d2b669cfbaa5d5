"""What the keys cost: memory, disk, start, recovery, and the batches that take longest.

python -m benchmarks.memory JOB       a Job as JSON: one measurement, in a process of its own

bytes_per_key_memory     RSS after the filled store was opened less RSS before, when a store of
                         1000 keys was open already: per key, RocksDB's caches included
bytes_per_key_index      of these the pages of the index (Linux): key log and buckets, told from
                         the rest by their flag, since they alone are kept out of huge pages. The
                         log is 20 of them (16 of the key, 4 of its fingerprint)
bytes_per_key_disk       all files of the filled store
restart_seconds_1e7      opening all partitions of the filled store, its files in the page cache
recovery_seconds_1e7     from the start of a new process, right after SIGKILL of the one that
                         consumed, to its first effect: interpreter, imports, the group's session
                         time-out (1 s at this broker; 45 s by default), opening, first fetch
longest_batch_ms_growth  look up, plan, settle and commit of 1000 keys, while one partition grows
                         from nothing to 1e7 keys, RocksDB's own work included
longest_batch_ms_expiry  the same while a generation of 1e7 keys expires in one partition
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import psutil
from rich.progress import Progress

import effectonce as eo
from benchmarks.child import child
from benchmarks.figures import Rounds, spreads
from benchmarks.loads import (
    PARTITIONS,
    VALUE_BYTES,
    EventIds,
    Load,
    deliveries,
    event_ids,
    label,
    produce,
)
from benchmarks.stored import GROUP, Writer, fill, fingerprint_of, linked_copy, once_on
from effectonce.model import NO_ID, Keys, Partition
from effectonce.ports import Store
from effectonce.testing.servers import KafkaServer

TOPIC: Final = "memory"
BATCH: Final = 1_000
FEW: Final = 1_000
"""Keys of the store that is open before the memory of the filled one is measured."""
WARM_UP: Final = 10
"""Batches before the first that counts: what Python and RocksDB do once."""
AFTER_EXPIRY: Final = 500
"""Batches that are watched once a generation is gone: the index shrinks behind them."""
MOST_HALVES: Final = 8
"""A generation is dropped three halves of a window after its own; later it never was."""
BEFORE_KILL: Final = 200
"""Effects of the process that is killed."""
RECOVERY_MESSAGES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Scale:
    keys: int
    rounds: int


FULL: Final = Scale(10_000_000, 5)
QUICK: Final = Scale(1_000_000, 5)


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is told."""

    task: str
    state: str
    keys: int
    seed: int
    few: str = ""
    bootstrap: str = ""


# -- in a process of its own -----------------------------------------------------------------------


def resident(job: Job) -> dict[str, float]:
    """Memory of the filled store, and how long it takes to open."""
    with closing(once_on(job.few).store) as few, closing(once_on(job.state).store) as filled:
        _open_all(few)
        gc.collect()
        rss, pages = psutil.Process().memory_info().rss, index_pages()
        began = time.perf_counter()
        _open_all(filled)
        seconds = time.perf_counter() - began
        gc.collect()
        found = {
            f"restart_seconds_{label(job.keys)}": seconds,
            "bytes_per_key_memory": (psutil.Process().memory_info().rss - rss) / job.keys,
        }
        if pages is not None:
            found["bytes_per_key_index"] = ((index_pages() or 0) - pages) / job.keys
        return found


def _open_all(store: Store) -> None:
    store.prepare()
    for number in range(PARTITIONS):
        store.open(Partition("bench", GROUP, TOPIC, number), NO_ID)


def index_pages() -> int | None:
    """Resident bytes that were kept out of huge pages: the index's. None where nobody can tell."""
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    except OSError:
        return None
    total = rss = 0
    for line in smaps.splitlines():
        name, _, value = line.partition(":")
        if name == "Rss":
            rss = int(value.split()[0]) * 1024
        elif name == "VmFlags" and "nh" in value.split():
            total += rss
    return total


def growth(job: Job) -> dict[str, float]:
    """The longest batch from the first key to the last."""
    with closing(Timed(job)) as timed:
        keys = _keys(job.seed, job.keys)
        now_ms = time.time_ns() // 1_000_000
        for start in range(0, len(keys), BATCH):
            timed.write(keys[start : start + BATCH], now_ms)
        return {"longest_batch_ms_growth": timed.longest_ms(WARM_UP)}


def expiry(job: Job) -> dict[str, float]:
    """The longest batch from the first of the next generation on, until the old one is cleared."""
    with closing(Timed(job)) as timed:
        keys = _keys(job.seed, job.keys)
        now_ms = time.time_ns() // 1_000_000
        half_ms = timed.once.window.half_ms
        for start in range(0, len(keys), BATCH):
            timed.write(keys[start : start + BATCH], now_ms)
        first, filled = keys[:BATCH], len(timed.ms)
        batches = MOST_HALVES + AFTER_EXPIRY
        fresh = iter(np.split(_keys(job.seed + 1, batches * BATCH), batches))
        if not timed.writer.lookup(first).seen.all():
            raise RuntimeError("keys that were marked are not there before they expire")
        for _ in range(MOST_HALVES):
            now_ms += half_ms
            timed.write(next(fresh), now_ms)
            if not timed.writer.lookup(first).seen.any():
                break
        else:
            raise RuntimeError(f"{len(keys)} keys have not expired after {MOST_HALVES / 2} windows")
        for _ in range(AFTER_EXPIRY):
            timed.write(next(fresh), now_ms)
        return {"longest_batch_ms_expiry": timed.longest_ms(filled)}


class Timed:
    """One partition of an empty store, and how long each of its batches took."""

    def __init__(self, job: Job) -> None:
        self.once = once_on(job.state)
        at = Partition("bench", GROUP, TOPIC, 0)
        self.writer = Writer(self.once, at, fingerprint_of(self.once, VALUE_BYTES))
        self.ms: list[float] = []

    def write(self, keys: Keys, now_ms: int) -> None:
        began = time.perf_counter()
        self.writer.write(keys, now_ms)
        self.ms.append((time.perf_counter() - began) * 1e3)

    def longest_ms(self, first: int) -> float:
        return max(self.ms[first:])

    def close(self) -> None:
        self.once.store.close()


def _keys(seed: int, count: int) -> Keys:
    keys: Keys = event_ids(seed, count).raw.view(np.uint64)
    return keys


def consume(job: Job) -> None:
    """Until it is killed: says when its first effect was, and when it is well under way."""
    effects = 0

    def handle(event: eo.Event) -> None:
        nonlocal effects
        effects += 1
        if effects in (1, BEFORE_KILL):
            print(json.dumps({"effects": effects, "at_ns": time.monotonic_ns()}), flush=True)
        time.sleep(0.001)  # an effect takes its time: the topic must not end before the kill

    # of the killed member the broker hears no more: a classic group would wait 45 s for it
    config = {
        "bootstrap.servers": job.bootstrap,
        "group.id": GROUP,
        "group.protocol": "consumer",
    }
    with eo.OnceConsumer(config, [TOPIC], once_on(job.state)) as consumer:
        consumer.run(handle)


TASKS: Final[Mapping[str, Callable[[Job], dict[str, float] | None]]] = {
    "resident": resident,
    "growth": growth,
    "expiry": expiry,
    "consume": consume,
}


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(TASKS[job.task](job)), flush=True)
    return 0


# -- rounds ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class World:
    kafka: KafkaServer
    home: Path
    job: Job
    """As it is told to each task, but for the task and its own folder."""


def measure(
    kafka: KafkaServer, home: Path, scale: Scale, chance: random.Random, progress: Progress
) -> dict[str, Any]:
    tasks = (measured("resident"), measured("growth"), measured("expiry"), recovery)
    bar = progress.add_task(
        f"memory, {label(scale.keys)} keys", total=scale.rounds * len(tasks) + 1
    )
    seed = chance.randrange(2**32)
    ids = event_ids(seed, scale.keys + RECOVERY_MESSAGES)
    few, filled = home / "memory-few", home / "memory-filled"
    fill(str(few), TOPIC, ids[:FEW])
    fill(str(filled), TOPIC, ids[: scale.keys])
    progress.advance(bar)
    disk = sum(each.stat().st_size for each in filled.rglob("*") if each.is_file())
    _produce(kafka, ids, scale.keys)
    job = Job("", str(filled), scale.keys, seed, str(few), kafka.bootstrap)
    world = World(kafka, home, job)
    figures: Rounds = {}
    for _ in range(scale.rounds):
        for task in chance.sample(tasks, len(tasks)):
            for key, value in task(world).items():
                figures.setdefault(key, []).append(value)
            progress.advance(bar)
    kafka.delete_topic(TOPIC)
    shutil.rmtree(filled)
    return {
        "memory_keys": scale.keys,
        "bytes_per_key_disk": round(disk / scale.keys, 1),
        **spreads(figures),
    }


def _produce(kafka: KafkaServer, ids: EventIds, stored: int) -> None:
    """What the consumer that is killed, and its successor, are busy with: no repeats."""
    load = Load(TOPIC, RECOVERY_MESSAGES, repeats=0)
    kafka.create_topic(TOPIC, PARTITIONS)
    produce(kafka.bootstrap, load, ids, deliveries(load, 0, seed=1) + stored)


Task: TypeAlias = Callable[[World], Mapping[str, float]]


def measured(task: str) -> Task:
    """A task that a process of its own carries out alone."""

    def run(world: World) -> Mapping[str, float]:
        folder = world.home / "memory-state"
        filled = Path(world.job.state)
        state = linked_copy(filled, folder) if task == "resident" else folder
        job = replace(world.job, task=task, state=str(state))
        try:
            with child("benchmarks.memory", asdict(job)) as process:
                return process.answer()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run


def recovery(world: World) -> Mapping[str, float]:
    """Kill one that consumes; how long until the next one's first effect."""
    folder = world.home / "memory-state"
    state = str(linked_copy(Path(world.job.state), folder))
    job = asdict(replace(world.job, task="consume", state=state))
    try:
        with child("benchmarks.memory", job) as process:
            process.line()
            process.line()
            process.kill()
        began = time.monotonic_ns()
        with child("benchmarks.memory", job) as process:
            seconds = (process.answer()["at_ns"] - began) / 1e9
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {f"recovery_seconds_{label(world.job.keys)}": seconds}


if __name__ == "__main__":
    sys.exit(main())
