"""What a bare consumer costs and what ours adds, in the same run, on Apache Kafka.

    python -m benchmarks.bench [--seed N] [--quick] [--only PART]

Throughput (parts.py has the table) is a share of a bare consumer. A round measures every contender
once, each in a process of its own, in four turns whose order the seed shuffles (turns.py);
a share is bare's time a message over the contender's in the same round, and what is reported is the
median of the rounds with the least and the greatest. Exactness is part of it: a run that hands over
one event too many or too few fails.

    latency    what is added between produce and effect: at 100 events a second, and at 70% of
               what the machine sustains (latency.py)
    lanes      handlers that wait, side by side, over one at a time (lanes.py)
    memory     bytes a key in process and on disk, start, recovery after SIGKILL, and the longest
               batch while the index grows and while a generation expires (memory.py)

Everything goes to out/bench.json, after each part, and as a page to out/bench.html (report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import lanes, latency, machine, memory, report
from benchmarks.figures import GREATEST, LEAST
from benchmarks.loads import VALUE_BYTES, event_ids
from benchmarks.parts import NAMES, STORED, Part, chosen
from benchmarks.peers import field as peers
from benchmarks.throughput import VALKEY_CONFIG, World, bare_key, run_part, shares
from effectonce.testing.servers import KafkaServer, ValkeyServer

OUT: Final = Path("out/bench.json")

Flat: TypeAlias = dict[str, Any]
"""The report: one level of keys."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much, how often."""

    messages: int
    rounds: int
    latency: latency.Scale
    memory: memory.Scale
    lanes: lanes.Scale


FULL: Final = Scale(600_000, 5, latency.FULL, memory.FULL, lanes.FULL)
QUICK: Final = Scale(300_000, 5, latency.QUICK, memory.QUICK, lanes.QUICK)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: throughputs, then what is none."""

    parts: Sequence[Part]
    latency: bool
    memory: bool
    lanes: bool


def planned(only: str | None, quick: bool, warm_up: int) -> Plan:
    """What `only` names, else the headline figures if `quick`, else all."""
    return Plan(
        chosen(only, quick, warm_up),
        latency=only in (None, "latency"),
        memory=only == "memory" or (only is None and not quick),
        lanes=only in (None, "lanes"),
    )


def bench(
    seed: int, scale: Scale, plan: Plan, console: Console, keep: Callable[[Flat], None]
) -> None:
    """Measures all of the plan; what each part found is given to `keep`."""
    chance = random.Random(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="effectonce-bench-"))
        kafka = stack.enter_context(KafkaServer.start(benchmark=True))
        valkey = stack.enter_context(ValkeyServer.start(config=VALKEY_CONFIG))
        progress = stack.enter_context(Progress(*columns, TimeElapsedColumn(), console=console))
        base = max((part.stored for part in plan.parts), default=0)
        warm_up = max((each.warm_up for part in plan.parts for each in part.field), default=0)
        ids = event_ids(seed, base + scale.messages + warm_up if plan.parts else 0)
        world = World(kafka.bootstrap, valkey.url, Path(home), ids, base)
        for part in plan.parts:
            times = run_part(world, kafka, part, scale.messages, scale.rounds, chance, progress)
            keep(shares(part, times))
        if plan.latency:
            keep(latency.measure(kafka, valkey.url, Path(home), scale.latency, chance, progress))
        if plan.lanes:
            keep(lanes.measure(kafka, Path(home), scale.lanes, chance, progress))
        if plan.memory:
            keep(memory.measure(kafka, Path(home), scale.memory, chance, progress))


def headlines(flat: Flat, parts: Sequence[Part]) -> Flat:
    """Figures with a name of their own that are taken from others."""
    added: Flat = {}
    plain = [bare_key(part) for part in parts if part.value_bytes == VALUE_BYTES]
    bare = [flat[key] for key in plain if key in flat]
    if bare:
        added["bare_per_second"] = round(1e9 / statistics.median(bare))
    for name, key in (
        ("share_redis", "share_redis_1e6_batch1000_repeats_10"),
        ("share_live", "share_rocksdb_1e6_batch1000_live"),
    ):
        if key in flat:
            added[name] = flat[key]
    return added


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    console = Console(stderr=True)
    console.print(f"seed {seed}, load average {os.getloadavg()[0]:.2f}")
    scale = QUICK if given.quick else FULL
    plan = planned(given.only, given.quick, given.warm_up)
    missing, parts = without_missing(plan.parts, console)
    plan = replace(plan, parts=parts)
    flat: Flat = {
        "seed": seed,
        "messages": scale.messages,
        "rounds": scale.rounds,
        "stored_keys": STORED,
        **machine.facts(),
        **missing,
    }

    def keep(found: Flat) -> None:
        """Hours of work are not lost with the last part."""
        flat.update(found)
        flat.update(headlines(flat, plan.parts))
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(flat, indent=2) + "\n")
        report.write(OUT)

    bench(seed, scale, plan, console, keep)
    show(flat, console)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, help="repeats a run's loads and its order")
    parser.add_argument("--quick", action="store_true", help="the headline figures, smaller loads")
    parser.add_argument("--only", choices=[*NAMES, "latency", "lanes", "memory"], help="one part")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=2_000_000,
        help="messages that Kafka Streams deals with before its warm measurements (%(default)s)",
    )
    return parser.parse_args(arguments)


def without_missing(
    parts: Sequence[Part], console: Console
) -> tuple[dict[str, Mapping[str, str]], list[Part]]:
    """Only those peers that can be had here, and what the report says of all of them."""
    if all(part.name != "peers" for part in parts):
        return {}, list(parts)
    console.print("preparing the peers: a minute the first time")
    missing = peers.missing()
    for name, reason in missing.items():
        console.print(f"left out: {name}: {reason}")
    kept = [
        replace(part, field=tuple(each for each in part.field if each.name not in missing))
        for part in parts
    ]
    return {"peers_missing": missing, "peers_lack": peers.LACK}, kept


def show(flat: Mapping[str, Any], console: Console) -> None:
    for key, value in flat.items():
        if key + LEAST in flat:
            spread = f"{flat[key + LEAST]:.4g} to {flat[key + GREATEST]:.4g}"
            console.print(f"{key:46} {value:8.3f}   ({spread})")
    console.print(f"written to {OUT} and {OUT.with_suffix('.html')}")


if __name__ == "__main__":
    sys.exit(main())
