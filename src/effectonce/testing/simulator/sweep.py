"""Many seeds and all mutants, on all cores.

Seeds go out in chunks, in order; mutants one by one, before them. `stop` lets what has begun come
to its end, so that every figure is of whole runs.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, count
from multiprocessing import active_children, get_context
from typing import Final, TypeAlias

from effectonce.ports import Reach
from effectonce.testing.simulator.mutants import MUTANTS, Mutant, kill
from effectonce.testing.simulator.shrink import Shrunk, shrink
from effectonce.testing.simulator.world import Mode, Report, attempt

Answer: TypeAlias = "Tally | tuple[str, int | None]"
"""What a job brings: figures of seeds, or a mutant and the seed that killed it."""

CHUNK: Final = 10
MUTANT_SEEDS: Final = 6000
"""A mutant's own bound, however few seeds are asked for. The slowest, which believes old look-ups,
needed 0 to 675 from five first seeds; a bound too low lets it live, though nothing is wrong."""
SHRUNK_MOST: Final = 4
"""So many failures are shrunk, 200 runs each: whoever has more has one cause, as a rule."""
LOOKS_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True)
class Where:
    """Which modes and stores."""

    modes: tuple[Mode, ...] = tuple(Mode)
    reaches: tuple[Reach, ...] = tuple(Reach)

    def mutants(self) -> list[Mutant]:
        return [m for m in MUTANTS if m.mode in self.modes and m.reach in self.reaches]


@dataclass(slots=True)
class Tally:
    """Figures of many runs."""

    seeds: int = 0
    runs: int = 0
    steps: int = 0
    deliveries: int = 0
    deliveries_least: int | None = None
    fired_least: int | None = None
    """Without what happens to the log (gaps, copies), which comes by the dozen."""
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        self.runs += 1
        self.steps += report.steps
        self.deliveries += report.deliveries
        self.deliveries_least = _least(self.deliveries_least, report.deliveries)
        fired = sum(count for (_, step), count in report.faults.items() if step != "log")
        self.fired_least = _least(self.fired_least, fired)
        self.pairs.update(report.faults)
        if report.violations:
            self.broken.append(report)

    def merge(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.runs += other.runs
        self.steps += other.steps
        self.deliveries += other.deliveries
        self.deliveries_least = _least(self.deliveries_least, other.deliveries_least)
        self.fired_least = _least(self.fired_least, other.fired_least)
        self.pairs.update(other.pairs)
        self.broken += other.broken


@dataclass(slots=True)
class Swept:
    """Seeds so far; for each mutant that was tried the seed that killed it, or None."""

    tally: Tally = field(default_factory=Tally)
    mutants: dict[str, int | None] = field(default_factory=dict)
    shrunk: list[Shrunk] = field(default_factory=list)
    seeds_seconds: float = 0.0
    """From the first seed's start to the last one's end; the mutants are before it."""

    @property
    def survivors(self) -> list[str]:
        return [name for name, seed in self.mutants.items() if seed is None]


def _least(one: int | None, other: int | None) -> int | None:
    return min((n for n in (one, other) if n is not None), default=None)


def run_seeds(seeds: Sequence[int], where: Where) -> Tally:
    """Each seed in each mode, on each kind of store."""
    tally = Tally(seeds=len(seeds))
    for seed in seeds:
        for mode in where.modes:
            for reach in where.reaches:
                tally.add(attempt(seed, mode, reach))
    return tally


def _try_mutant(name: str, first: int) -> Answer:
    (mutant,) = (m for m in MUTANTS if m.name == name)
    killed = kill(mutant, first, MUTANT_SEEDS)
    return name, None if killed is None else killed.seed


def _quiet() -> None:
    """A worker leaves Ctrl-C, which the terminal sends to everyone, to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.set_threshold(20_000)  # a run leaves little behind: 19.1 ms in place of 22.1


class Sweep:
    """`run` it once; `stop` may come from a signal."""

    def __init__(self, first: int, seeds: int, where: Where | None = None) -> None:
        """`seeds` 0: until stopped."""
        self.first, self.seeds = first, seeds
        self.where = where or Where()
        self.so_far = Swept()
        self.stopping = False
        self._began = 0.0

    def stop(self) -> None:
        self.stopping = True

    def run(self, watch: Callable[[Swept], None]) -> Swept:
        """Until all is done or stopped; `watch` is called now and then."""
        cores = os.cpu_count() or 1
        # spawned: a fork would take over threads and handlers of whoever runs it
        context = get_context("spawn")
        with ProcessPoolExecutor(cores, context, initializer=_quiet) as pool:
            jobs = chain(self._mutants(pool), self._chunks(pool))
            try:
                self._drain(jobs, cores + 1, watch)
                broken = self.so_far.tally.broken
                broken.sort(key=lambda r: (r.seed, r.mode.value, r.reach.value))
                self.so_far.shrunk = list(pool.map(shrink, broken[:SHRUNK_MOST]))
            except BrokenProcessPool:
                if not self.stopping:  # else whoever stopped this process stopped its workers too
                    raise
            except KeyboardInterrupt:
                for worker in active_children():  # the pool would wait for what they do
                    worker.kill()  # a simulated consumer takes SIGTERM for its own
                raise
        return self.so_far

    def _drain(
        self,
        jobs: Iterator[Future[Answer]],
        at_once: int,
        watch: Callable[[Swept], None],
    ) -> None:
        pending: set[Future[Answer]] = set()
        while True:
            while not self.stopping and len(pending) < at_once and (job := next(jobs, None)):
                pending.add(job)
            watch(self.so_far)
            if not pending:
                return
            done, pending = wait(pending, LOOKS_SECONDS, FIRST_COMPLETED)
            for job in done:
                self._take(job.result())

    def _take(self, result: Answer) -> None:
        if isinstance(result, Tally):
            self.so_far.tally.merge(result)
            self.so_far.seeds_seconds = time.monotonic() - self._began
        else:
            name, seed = result
            self.so_far.mutants[name] = seed

    def _mutants(self, pool: ProcessPoolExecutor) -> Iterator[Future[Answer]]:
        for mutant in self.where.mutants():
            yield pool.submit(_try_mutant, mutant.name, self.first)

    def _chunks(self, pool: ProcessPoolExecutor) -> Iterator[Future[Answer]]:
        self._began = time.monotonic()
        end = self.first + self.seeds
        for start in count(self.first, CHUNK):
            if self.seeds and start >= end:
                return
            stop = min(start + CHUNK, end) if self.seeds else start + CHUNK
            yield pool.submit(run_seeds, range(start, stop), self.where)
