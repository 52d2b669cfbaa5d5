"""Throughput under redelivery, as shares of a bare consumer in the same run, on Apache Kafka.

    python -m benchmarks.bench [--seed N] [--quick] [--only 0|10|50|redis]

A round measures every contender once, in an order that the seed shuffles, each in a process of its
own; a share is bare's time a message over the contender's in the same round, and what is reported
is the median of the rounds with the least and the greatest. Exactness is part of it: a run that
hands over one event too many or too few fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contenders import Job, Run
from benchmarks.loads import PARTITIONS, Load, deliveries, event_ids, produce
from benchmarks.stored import fill, fill_valkey
from effectonce.testing.servers import KafkaServer, ValkeyServer

STORED: Final = 1_000_000
REPEATS: Final = (0, 10, 50)
OUT: Final = Path("out/bench.json")


@dataclass(frozen=True, slots=True)
class Contender:
    """A column of the report. `part`: its share of the messages, since some are slow."""

    name: str
    runs: str
    size: int = 500
    part: float = 1.0
    store: str = ""


BARE: Final = Contender("bare", "bare")
ROCKSDB: Final = (
    Contender("rocksdb_1e6_batch500", "batch", store="rocksdb"),
    Contender("rocksdb_1e6_batch1000", "batch", size=1000, store="rocksdb"),
    Contender("rocksdb_1e6_event", "event", store="rocksdb"),
)
REDIS: Final = (
    Contender("redis_1e6_batch500", "batch", store="redis"),
    Contender("redis_1e6_batch1000", "batch", size=1000, store="redis"),
)
BY_HAND: Final = (
    Contender("setnx_pipelined", "setnx_pipelined", part=0.2, store="by hand"),
    Contender("setnx_loop", "setnx_loop", part=0.04, store="by hand"),
)
Field = tuple[Contender, ...]


def fields(only: str | None, quick: bool) -> list[tuple[str, int, Field]]:
    """What is measured: the name of each part, its percentage of repeats, and who runs."""
    parts = [
        (str(repeats), repeats, (BARE, *ROCKSDB, *(BY_HAND if repeats == 10 else ())))
        for repeats in REPEATS
    ]
    parts.append(("redis", 10, (BARE, *REDIS, *BY_HAND)))
    if only is not None:
        return [part for part in parts if part[0] == only]
    return [part for part in parts if part[1] == 10] if quick else parts


@dataclass(frozen=True, slots=True)
class Scale:
    """How much, how often."""

    messages: int
    rounds: int


FULL: Final = Scale(600_000, 5)
QUICK: Final = Scale(250_000, 5)


@dataclass(frozen=True, slots=True)
class World:
    """The servers, and the filled stores that every run gets a copy of."""

    bootstrap: str
    valkey: str
    home: Path
    ids: Sequence[str]


Figures = dict[str, list[float]]
"""Name -> ns a message, one a round."""


def measure(world: World, contender: Contender, load: Load, stored: Path) -> float:
    """One run in a process of its own; ns a message. Raises RuntimeError where it was not exact."""
    job = Job(contender.runs, world.bootstrap, load.topic, load.messages, size=contender.size)
    state = world.home / "state"
    if contender.store == "rocksdb":
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(stored, state)
        job = replace(job, state=str(state))
    elif contender.store == "redis":
        fill(world.valkey, load.topic, world.ids[:STORED])
        job = replace(job, state=world.valkey)
    elif contender.store == "by hand":
        fill_valkey(world.valkey, world.ids[:STORED])
        job = replace(job, state=world.valkey)
    run = run_apart(job)
    expected = load.messages if contender.runs == "bare" else load.fresh
    if run.handled != expected:
        raise RuntimeError(
            f"{contender.name} on {load.topic}: {run.handled} events handled, {expected} expected"
        )
    if run.seconds <= 0 or run.messages < 0.9 * load.messages:
        raise RuntimeError(f"{contender.name} on {load.topic}: the clock did not see it: {run}")
    return run.seconds / run.messages * 1e9


def run_apart(job: Job) -> Run:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.contenders", json.dumps(asdict(job))],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise RuntimeError(f"{job.contender} failed:\n{answer.stderr[-2000:]}")
    return Run(**json.loads(answer.stdout.splitlines()[-1]))


def rounds(
    world: World,
    part: tuple[str, int, Field],
    scale: Scale,
    chance: random.Random,
    progress: Progress,
) -> Figures:
    """All rounds of one part."""
    name, repeats, field = part
    loads = dict(prepared(world, field, name, repeats, scale, chance))
    stored = world.home / f"stored-{name}"
    stored.mkdir()
    if any(contender.store == "rocksdb" for contender in field):
        fill(str(stored), loads[1.0].topic, world.ids[:STORED])
    figures: Figures = {contender.name: [] for contender in field}
    bar = progress.add_task(f"{name}, {repeats}% repeats", total=scale.rounds * len(field))
    for _ in range(scale.rounds):
        for contender in chance.sample(field, len(field)):
            load = loads[contender.part]
            figures[contender.name].append(measure(world, contender, load, stored))
            progress.advance(bar)
    shutil.rmtree(stored)
    return figures


def prepared(
    world: World,
    field: Field,
    name: str,
    repeats: int,
    scale: Scale,
    chance: random.Random,
) -> Iterator[tuple[float, Load]]:
    """A topic for each size that is asked for."""
    for part in sorted({contender.part for contender in field}):
        load = Load(topic_of(name, part), int(scale.messages * part), repeats)
        order = deliveries(load, STORED, chance.randrange(2**32))
        produce(world.bootstrap, load, world.ids, order)
        yield part, load


def topic_of(name: str, part: float) -> str:
    return f"repeats-{name}-{part}"


def report(part: str, repeats: int, figures: Figures) -> dict[str, float]:
    """Flat keys: each contender's share of bare, with its spread."""
    bare = figures["bare"]
    flat = {f"bare_ns_per_message_repeats_{part}": round(statistics.median(bare), 1)}
    for name, times in figures.items():
        if name == "bare":
            continue
        shares = [b / t for b, t in zip(bare, times, strict=True)]
        key = f"share_{name}" if name.startswith("setnx") else f"share_{name}_repeats_{repeats}"
        if name.startswith("setnx") and part == "redis":
            key += "_beside_redis"
        flat[key] = round(statistics.median(shares), 4)
        flat[f"{key}_least"] = round(min(shares), 4)
        flat[f"{key}_greatest"] = round(max(shares), 4)
    if "rocksdb_1e6_batch500" in figures and "setnx_loop" in figures:
        flat["ratio_setnx_loop"] = _ratio(figures, "setnx_loop", "rocksdb_1e6_batch500")
    if "redis_1e6_batch500" in figures:
        flat["share_redis"] = flat[f"share_redis_1e6_batch1000_repeats_{repeats}"]
        for by_hand in ("setnx_loop", "setnx_pipelined"):
            flat[f"ratio_redis_{by_hand}"] = _ratio(figures, by_hand, "redis_1e6_batch500")
    return flat


def _ratio(figures: Figures, theirs: str, ours: str) -> float:
    """How many times as long they take."""
    return round(
        statistics.median(t / o for t, o in zip(figures[theirs], figures[ours], strict=True)), 1
    )


def bench(
    seed: int, scale: Scale, parts: Sequence[tuple[str, int, Field]], console: Console
) -> dict[str, Any]:
    chance = random.Random(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    flat: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="effectonce-bench-") as home,
        KafkaServer.start(benchmark=True) as kafka,
        ValkeyServer.start(config={"appendfsync": "everysec"}) as valkey,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        ids = event_ids(seed, STORED + scale.messages)
        world = World(kafka.bootstrap, valkey.url, Path(home), ids)
        for part in parts:
            for share in sorted({contender.part for contender in part[2]}):
                kafka.create_topic(topic_of(part[0], share), PARTITIONS)
            flat |= report(*part[:2], rounds(world, part, scale, chance, progress))
    bare = [ns for name, ns in flat.items() if name.startswith("bare_ns_per_message")]
    return {"bare_per_second": round(1e9 / statistics.median(bare)), **flat}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, help="repeats a run's loads and its order")
    parser.add_argument("--quick", action="store_true", help="10%% repeats only, fewer messages")
    parser.add_argument(
        "--only", choices=[*map(str, REPEATS), "redis"], help="one share of repeats, or redis"
    )
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    console = Console(stderr=True)
    console.print(f"seed {seed}, load average {os.getloadavg()[0]:.2f}")
    scale = QUICK if given.quick else FULL
    parts = fields(given.only, given.quick)
    flat: dict[str, Any] = {
        "seed": seed,
        "messages": scale.messages,
        "rounds": scale.rounds,
        "stored_keys": STORED,
        **bench(seed, scale, parts, console),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(flat, indent=2) + "\n")
    show(flat, console)
    return 0


def show(flat: Mapping[str, Any], console: Console) -> None:
    for key, value in flat.items():
        if f"{key}_least" in flat:
            spread = f"{flat[f'{key}_least']:.4g} to {flat[f'{key}_greatest']:.4g}"
            console.print(f"{key:46} {value:8.3f}   ({spread})")
    console.print(f"written to {OUT}")


if __name__ == "__main__":
    sys.exit(main())
