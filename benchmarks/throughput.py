"""Rounds of a part: every contender once, each in a process of its own, paired with bare.

Side by side in turns (turns.py), but for what cannot be stopped and gone on with: peers, and runs
that fetch while they are measured, go one after another, shuffled. A part's store is filled once;
each run of ours gets it anew (stored.py). A run that hands over one event too many or too few
fails: a fast mistake must not win.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rich.progress import Progress

from benchmarks.figures import Rounds, spread
from benchmarks.job import VALKEY, Contender, Job, Run
from benchmarks.loads import PARTITIONS, EventIds, Load, deliveries, produce
from benchmarks.parts import BARE, OURS, Part
from benchmarks.peers import field as peers
from benchmarks.stored import fill, fill_valkey, flush, linked_copy
from benchmarks.turns import in_turns
from effectonce.testing.servers import KafkaServer, ValkeyServer

PATIENCE_SECONDS: Final = 900.0
"""A peer that lost a message would wait for it for ever."""
VALKEY_CONFIG: Final = {"appendfsync": "everysec"}


@dataclass(frozen=True, slots=True)
class World:
    """The servers, where filled stores lie, and the event IDs: stored ones, then fresh ones."""

    bootstrap: str
    valkey: str
    home: Path
    ids: EventIds
    base: int = 0
    """The first ID that no store knows; a part's stored keys are the last so many before it."""

    def stored(self, count: int) -> EventIds:
        return self.ids[self.base - count : self.base]


def measure(world: World, contender: Contender, load: Load, stored: Path) -> float:
    """One run, alone; ns a message. Raises RuntimeError where it was not exact."""
    return ns_of(run_apart(job_of(world, contender, load, stored)), contender, load)


def job_of(world: World, contender: Contender, load: Load, stored: Path) -> Job:
    """What it is told; its store stands ready."""
    return Job(
        contender.runs,
        world.bootstrap,
        load.topic,
        load.messages,
        state=ready(world, contender, load, stored),
        size=contender.size,
        warm_up=contender.warm_up,
        ahead=contender.ahead,
        mixed=load.mixed,
    )


def ns_of(run: Run, contender: Contender, load: Load) -> float:
    """ns a message. Raises RuntimeError where it was not exact."""
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
            return str(linked_copy(stored, unused_folder(world)))
        case "rocksdb synced":
            return f"rocksdb://{quote(str(linked_copy(stored, unused_folder(world))))}?sync=true"
        case "empty folder":
            folder = unused_folder(world)
            folder.mkdir()
            return str(folder)
        case "redis":
            fill(world.valkey, load.topic, world.stored(load.stored), load.value_bytes)
        case "redis local index":
            url = f"{world.valkey}?layout=partition&index=local"
            fill(url, load.topic, world.stored(load.stored), load.value_bytes)
            return url
        case "by hand":
            fill_valkey(world.valkey, world.stored(load.stored))
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


def run_part(
    world: World,
    kafka: KafkaServer,
    part: Part,
    messages: int,
    rounds: int,
    chance: random.Random,
    progress: Progress,
) -> Rounds:
    """All rounds of one part: ns a message."""
    bar = progress.add_task(part.name, total=rounds * len(part.field))
    loads = dict(prepared(world, kafka, part, messages, chance))
    stored = world.home / "stored"
    if any(contender.store.startswith("rocksdb") for contender in part.field):
        topic = loads[1.0, 0].topic
        fill(str(stored), topic, world.stored(part.stored), part.value_bytes)
    times: Rounds = {contender.name: [] for contender in part.field}
    for _ in range(rounds):
        field = chance.sample(part.field, len(part.field))
        for contender, run in one_round(world, field, part, loads, stored, chance):
            times[contender.name].append(ns_of(run, contender, loads[contender.load]))
            progress.advance(bar)
    shutil.rmtree(stored, ignore_errors=True)
    for load in loads.values():
        kafka.delete_topic(load.topic)
    return times


def one_round(
    world: World,
    field: Sequence[Contender],
    part: Part,
    loads: Mapping[tuple[float, int], Load],
    stored: Path,
    chance: random.Random,
) -> Iterator[tuple[Contender, Run]]:
    """Every contender's run, in the order of the field."""
    if not part.in_turns:
        for each in field:
            yield each, run_apart(job_of(world, each, loads[each.load], stored))
        return
    with ExitStack() as stack:
        jobs = {
            each.name: job_of(own(world, each, stack), each, loads[each.load], stored)
            for each in field
        }
        runs = in_turns(jobs, chance)
    for each in field:
        yield each, runs[each.name]


def own(world: World, contender: Contender, stack: ExitStack) -> World:
    """Where its state lies for one round, apart from that of those beside it."""
    home = world.home / contender.name
    home.mkdir(exist_ok=True)
    if contender.store not in VALKEY:
        return replace(world, home=home)
    valkey = stack.enter_context(ValkeyServer.start(config=VALKEY_CONFIG))
    return replace(world, home=home, valkey=valkey.url)


def prepared(
    world: World, kafka: KafkaServer, part: Part, messages: int, chance: random.Random
) -> Iterator[tuple[tuple[float, int], Load]]:
    """A topic for each size that is asked for."""
    for share, warm_up in sorted({contender.load for contender in part.field}):
        load = part.load(messages, share, warm_up)
        kafka.create_topic(load.topic, PARTITIONS)
        order = deliveries(load, part.known, chance.randrange(2**32)) + (world.base - part.known)
        produce(world.bootstrap, load, world.ids, order)
        yield (share, warm_up), load


def shares(part: Part, times: Rounds) -> dict[str, float]:
    """Flat keys: each contender's share of bare, with its spread, and ratios to others."""
    beside = {contender.name: contender.beside for contender in part.field}
    flat = {bare_key(part): round(statistics.median(times[BARE.name]), 1)}
    for name, theirs in times.items():
        if name == BARE.name:
            continue
        bare = times[beside.get(name, BARE.name)]
        flat |= spread(part.key(name), [b / t for b, t in zip(bare, theirs, strict=True)])
    return flat | ratios(part, times)


def bare_key(part: Part) -> str:
    return f"bare_ns_per_message_{'repeats_' if part.name.isdecimal() else ''}{part.name}"


def ratios(part: Part, times: Rounds) -> dict[str, float]:
    """How many times as long others take as ours."""
    if part.name == "10":
        return {"ratio_setnx_loop": _ratio(times, "setnx_loop", "rocksdb_1e6_batch500")}
    if part.name == "redis":
        return {
            f"ratio_redis_{by_hand}": _ratio(times, by_hand, "redis_1e6_batch500")
            for by_hand in ("setnx_loop", "setnx_pipelined")
        }
    if part.name == "peers":
        theirs = [name for name in times if name not in (BARE.name, OURS.name)]
        return {f"ratio_{peer}": _ratio(times, peer, OURS.name) for peer in theirs}
    return {}


def _ratio(times: Rounds, theirs: str, ours: str) -> float:
    pairs = zip(times[theirs], times[ours], strict=True)
    return round(statistics.median(t / o for t, o in pairs), 1)
