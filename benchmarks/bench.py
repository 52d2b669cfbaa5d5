"""Throughput under redelivery, as shares of a bare consumer in the same run, on Apache Kafka.

    python -m benchmarks.bench [--seed N] [--quick] [--only 0|10|50]

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
from benchmarks.stored import fill_rocksdb, fill_valkey
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
    only_at: int | None = None


CONTENDERS: Final = (
    Contender("bare", "bare"),
    Contender("rocksdb_1e6_batch500", "rocksdb_batch"),
    Contender("rocksdb_1e6_batch1000", "rocksdb_batch", size=1000),
    Contender("rocksdb_1e6_event", "rocksdb_event"),
    Contender("setnx_pipelined", "setnx_pipelined", part=0.2, only_at=10),
    Contender("setnx_loop", "setnx_loop", part=0.04, only_at=10),
)


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
    if contender.runs.startswith("rocksdb"):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(stored, state)
        job = replace(job, state=str(state))
    elif contender.runs.startswith("setnx"):
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
    world: World, repeats: int, scale: Scale, chance: random.Random, progress: Progress
) -> Figures:
    """All rounds at one share of repeats."""
    field = [c for c in CONTENDERS if c.only_at in (None, repeats)]
    loads = dict(prepared(world, field, repeats, scale, chance))
    stored = world.home / f"stored-{repeats}"
    topic = loads[1.0].topic
    fill_rocksdb(stored, topic, world.ids[:STORED])
    figures: Figures = {contender.name: [] for contender in field}
    bar = progress.add_task(f"{repeats}% repeats", total=scale.rounds * len(field))
    for _ in range(scale.rounds):
        for contender in chance.sample(field, len(field)):
            load = loads[contender.part]
            figures[contender.name].append(measure(world, contender, load, stored))
            progress.advance(bar)
    shutil.rmtree(stored)
    return figures


def prepared(
    world: World, field: Sequence[Contender], repeats: int, scale: Scale, chance: random.Random
) -> Iterator[tuple[float, Load]]:
    """A topic for each size that is asked for."""
    for part in sorted({contender.part for contender in field}):
        load = Load(f"repeats-{repeats}-{part}", int(scale.messages * part), repeats)
        order = deliveries(load, STORED, chance.randrange(2**32))
        produce(world.bootstrap, load, world.ids, order)
        yield part, load


def report(repeats: int, figures: Figures) -> dict[str, float]:
    """Flat keys: each contender's share of bare, with its spread."""
    bare = figures["bare"]
    flat = {f"bare_ns_per_message_repeats_{repeats}": round(statistics.median(bare), 1)}
    for name, times in figures.items():
        if name == "bare":
            continue
        shares = [b / t for b, t in zip(bare, times, strict=True)]
        key = f"share_{name}" if name.startswith("setnx") else f"share_{name}_repeats_{repeats}"
        flat[key] = round(statistics.median(shares), 4)
        flat[f"{key}_least"] = round(min(shares), 4)
        flat[f"{key}_greatest"] = round(max(shares), 4)
    if "setnx_loop" in figures:
        ours = figures["rocksdb_1e6_batch500"]
        loop = [t / o for t, o in zip(figures["setnx_loop"], ours, strict=True)]
        flat["ratio_setnx_loop"] = round(statistics.median(loop), 1)
    return flat


def bench(seed: int, scale: Scale, shares: Sequence[int], console: Console) -> dict[str, Any]:
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
        for repeats in shares:
            for part in sorted({c.part for c in CONTENDERS}):
                kafka.create_topic(f"repeats-{repeats}-{part}", PARTITIONS)
            flat |= report(repeats, rounds(world, repeats, scale, chance, progress))
    bare = [ns for name, ns in flat.items() if name.startswith("bare_ns_per_message")]
    return {"bare_per_second": round(1e9 / statistics.median(bare)), **flat}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, help="repeats a run's loads and its order")
    parser.add_argument("--quick", action="store_true", help="10%% repeats only, fewer messages")
    parser.add_argument("--only", type=int, choices=REPEATS, help="one share of repeats")
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    console = Console(stderr=True)
    console.print(f"seed {seed}, load average {os.getloadavg()[0]:.2f}")
    scale = QUICK if given.quick else FULL
    shares = [given.only] if given.only is not None else [10] if given.quick else list(REPEATS)
    flat: dict[str, Any] = {
        "seed": seed,
        "messages": scale.messages,
        "rounds": scale.rounds,
        "stored_keys": STORED,
        **bench(seed, scale, shares, console),
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
