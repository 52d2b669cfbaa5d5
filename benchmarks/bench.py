"""Throughput under redelivery, as shares of a bare consumer in the same run, on Apache Kafka.

    python -m benchmarks.bench [--seed N] [--quick] [--only 0|10|50|redis|peers]

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
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.job import Contender, Job, Run
from benchmarks.loads import PARTITIONS, Load, deliveries, event_ids, produce
from benchmarks.peers import field as peers
from benchmarks.stored import fill, fill_valkey, flush
from effectonce.testing.servers import KafkaServer, ValkeyServer

STORED: Final = 1_000_000
REPEATS: Final = (0, 10, 50)
OUT: Final = Path("out/bench.json")
PATIENCE_SECONDS: Final = 900.0
"""A peer that lost a message would wait for it for ever."""


BARE: Final = Contender("bare", "bare", dedupes=False)
ROCKSDB: Final = (
    Contender("rocksdb_1e6_batch500", "batch", store="rocksdb"),
    Contender("rocksdb_1e6_batch1000", "batch", size=1000, store="rocksdb"),
    Contender("rocksdb_1e6_event", "event", store="rocksdb"),
)
OURS: Final = ROCKSDB[1]
"""Who the peers are measured against."""
REDIS: Final = (
    Contender("redis_1e6_batch500", "batch", store="redis"),
    Contender("redis_1e6_batch1000", "batch", size=1000, store="redis"),
)
BY_HAND: Final = (
    Contender("setnx_pipelined", "setnx_pipelined", part=0.2, store="by hand"),
    Contender("setnx_loop", "setnx_loop", part=0.04, store="by hand"),
)
Field = tuple[Contender, ...]


Part = tuple[str, int, Field]
"""Its name, its percentage of repeats, and who runs."""


def fields(only: str | None, quick: bool, warm_up: int) -> list[Part]:
    """What is measured."""
    parts = [
        (str(repeats), repeats, (BARE, *ROCKSDB, *(BY_HAND if repeats == 10 else ())))
        for repeats in REPEATS
    ]
    parts.append(("redis", 10, (BARE, *REDIS, *BY_HAND)))
    parts.append(("peers", 10, (BARE, OURS, *peers.contenders(warm_up))))
    if only is not None:
        return [part for part in parts if part[0] == only]
    return [part for part in parts if part[0] in ("10", "redis")] if quick else parts


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
    job = Job(
        contender.runs,
        world.bootstrap,
        load.topic,
        load.messages,
        state=ready(world, contender, load, stored),
        size=contender.size,
        warm_up=contender.warm_up,
    )
    run = run_apart(job)
    expected = load.fresh if contender.dedupes else load.messages
    if run.handled != expected:
        raise RuntimeError(
            f"{contender.name} on {load.topic}: {run.handled} events handled, {expected} expected"
        )
    if run.seconds <= 0 or run.messages < 0.9 * (load.messages - contender.warm_up):
        raise RuntimeError(f"{contender.name} on {load.topic}: the clock did not see it: {run}")
    return run.seconds / run.messages * 1e9


def ready(world: World, contender: Contender, load: Load, stored: Path) -> str:
    """Its store as it shall be before the run: the folder or the URL."""
    match contender.store:
        case "":
            return ""
        case "rocksdb":
            return str(shutil.copytree(stored, unused_folder(world)))
        case "empty folder":
            folder = unused_folder(world)
            folder.mkdir()
            return str(folder)
        case "redis":
            fill(world.valkey, load.topic, world.ids[:STORED])
        case "by hand":
            fill_valkey(world.valkey, world.ids[:STORED])
        case "empty valkey":
            flush(world.valkey)
    return world.valkey


def unused_folder(world: World) -> Path:
    """The only one: those before it go. Peers call group and changelog after it: it is new."""
    parent = world.home / "state"
    shutil.rmtree(parent, ignore_errors=True)
    parent.mkdir()
    return parent / f"run-{uuid.uuid4().hex[:8]}"


def run_apart(job: Job) -> Run:
    ours = [sys.executable, "-m", "benchmarks.contenders", json.dumps(asdict(job))]
    answer = subprocess.run(
        peers.command(job) or ours,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    if answer.returncode:
        raise RuntimeError(f"{job.contender} failed:\n{answer.stderr[-2000:]}")
    return Run(**json.loads(answer.stdout.splitlines()[-1]))


def rounds(
    world: World,
    part: Part,
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
        fill(str(stored), loads[1.0, 0].topic, world.ids[:STORED])
    figures: Figures = {contender.name: [] for contender in field}
    bar = progress.add_task(f"{name}, {repeats}% repeats", total=scale.rounds * len(field))
    for _ in range(scale.rounds):
        for contender in chance.sample(field, len(field)):
            load = loads[contender.load]
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
) -> Iterator[tuple[tuple[float, int], Load]]:
    """A topic for each size that is asked for.

    Peers begin with an empty store, so the stored keys do not come again in their topics.
    """
    known = 0 if name == "peers" else STORED
    for part, warm_up in sorted({contender.load for contender in field}):
        messages = int(scale.messages * part) + warm_up
        load = Load(topic_of(name, part, warm_up), messages, repeats)
        order = deliveries(load, known, chance.randrange(2**32)) + (STORED - known)
        produce(world.bootstrap, load, world.ids, order)
        yield (part, warm_up), load


def topic_of(name: str, part: float, warm_up: int) -> str:
    return f"repeats-{name}-{part}" + (f"-after-{warm_up}" if warm_up else "")


def report(part: str, repeats: int, figures: Figures) -> dict[str, float]:
    """Flat keys: each contender's share of bare, with its spread."""
    bare = figures["bare"]
    flat = {f"bare_ns_per_message_repeats_{part}": round(statistics.median(bare), 1)}
    for name, times in figures.items():
        if name == "bare":
            continue
        shares = [b / t for b, t in zip(bare, times, strict=True)]
        key = f"share_{name}"
        if name.startswith("setnx"):
            key += "_beside_redis" if part == "redis" else ""
        elif part == "peers":
            key += "_beside_peers" if name == OURS.name else ""
        else:
            key += f"_repeats_{repeats}"
        flat[key] = round(statistics.median(shares), 4)
        flat[f"{key}_least"] = round(min(shares), 4)
        flat[f"{key}_greatest"] = round(max(shares), 4)
    if "rocksdb_1e6_batch500" in figures and "setnx_loop" in figures:
        flat["ratio_setnx_loop"] = _ratio(figures, "setnx_loop", "rocksdb_1e6_batch500")
    if "redis_1e6_batch500" in figures:
        flat["share_redis"] = flat[f"share_redis_1e6_batch1000_repeats_{repeats}"]
        for by_hand in ("setnx_loop", "setnx_pipelined"):
            flat[f"ratio_redis_{by_hand}"] = _ratio(figures, by_hand, "redis_1e6_batch500")
    if part == "peers":
        theirs = [name for name in figures if name not in (BARE.name, OURS.name)]
        flat |= {f"ratio_{peer}": _ratio(figures, peer, OURS.name) for peer in theirs}
    return flat


def _ratio(figures: Figures, theirs: str, ours: str) -> float:
    """How many times as long they take."""
    return round(
        statistics.median(t / o for t, o in zip(figures[theirs], figures[ours], strict=True)), 1
    )


def bench(seed: int, scale: Scale, parts: Sequence[Part], console: Console) -> dict[str, Any]:
    chance = random.Random(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    flat: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="effectonce-bench-") as home,
        KafkaServer.start(benchmark=True) as kafka,
        ValkeyServer.start(config={"appendfsync": "everysec"}) as valkey,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        warm_up = max(contender.warm_up for part in parts for contender in part[2])
        ids = event_ids(seed, STORED + scale.messages + warm_up)
        world = World(kafka.bootstrap, valkey.url, Path(home), ids)
        for part in parts:
            for load in {contender.load for contender in part[2]}:
                kafka.create_topic(topic_of(part[0], *load), PARTITIONS)
            flat |= report(*part[:2], rounds(world, part, scale, chance, progress))
    bare = [ns for name, ns in flat.items() if name.startswith("bare_ns_per_message")]
    return {"bare_per_second": round(1e9 / statistics.median(bare)), **flat}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, help="repeats a run's loads and its order")
    parser.add_argument("--quick", action="store_true", help="10%% repeats only, fewer messages")
    parser.add_argument(
        "--only",
        choices=[*map(str, REPEATS), "redis", "peers"],
        help="one share of repeats, redis, or peers",
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=2_000_000,
        help="messages that Kafka Streams deals with before its warm measurements (%(default)s)",
    )
    given = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    console = Console(stderr=True)
    console.print(f"seed {seed}, load average {os.getloadavg()[0]:.2f}")
    scale = QUICK if given.quick else FULL
    parts = fields(given.only, given.quick, given.warm_up)
    missing, parts = without_missing(parts, console)
    flat: dict[str, Any] = {
        "seed": seed,
        "messages": scale.messages,
        "rounds": scale.rounds,
        "stored_keys": STORED,
        **bench(seed, scale, parts, console),
        **missing,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(flat, indent=2) + "\n")
    show(flat, console)
    return 0


def without_missing(
    parts: Sequence[Part], console: Console
) -> tuple[dict[str, Mapping[str, str]], list[Part]]:
    """Only those peers that can be had here, and what the report says of all of them."""
    if all(name != "peers" for name, _, _ in parts):
        return {}, list(parts)
    console.print("preparing the peers: a minute the first time")
    missing = peers.missing()
    for name, reason in missing.items():
        console.print(f"left out: {name}: {reason}")
    kept = [
        (name, repeats, tuple(each for each in field if each.name not in missing))
        for name, repeats, field in parts
    ]
    return {"peers_missing": missing, "peers_lack": peers.LACK}, kept


def show(flat: Mapping[str, Any], console: Console) -> None:
    for key, value in flat.items():
        if f"{key}_least" in flat:
            spread = f"{flat[f'{key}_least']:.4g} to {flat[f'{key}_greatest']:.4g}"
            console.print(f"{key:46} {value:8.3f}   ({spread})")
    console.print(f"written to {OUT}")


if __name__ == "__main__":
    sys.exit(main())
