"""One run, from the seed to the report: the engine of `make crash` and of `make demo`.

producer (thread) --> Kafka --> workers (processes) --> witness (process) --> journal
                                    ^                      ^                    |
                                    | starts, thaws        | arms               v
                                   crew <-------------- director <----------- tally
                                                                  journal --> judge --> report
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

from effectonce.model import Partition
from effectonce.testing.chaos.crew import TOO_MANY_FAILURES, Crew, Place
from effectonce.testing.chaos.director import Director
from effectonce.testing.chaos.journal import Kind, Tail, unpack
from effectonce.testing.chaos.judge import Verdict, judge
from effectonce.testing.chaos.plan import Mode, Spec, deliveries, event_ids
from effectonce.testing.chaos.producer import Producer
from effectonce.testing.chaos.stores import STORES
from effectonce.testing.chaos.tally import Tally
from effectonce.testing.chaos.witness import WitnessProcess
from effectonce.testing.chaos.worker import SCOPE, Job

GROUP = "chaos"
_TICK_SECONDS = 0.02


class Broker(Protocol):
    """`KafkaServer` or `MockKafka`."""

    bootstrap: str

    def create_topic(self, name: str, partitions: int = 1) -> None: ...


class Condition(Enum):
    """How a worker is doing, for the view."""

    STARTING = "starting"
    WORKING = "working"
    FROZEN = "frozen"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One place and its worker, at a moment."""

    slot: int
    worker: int
    pid: int | None
    condition: Condition
    partitions: tuple[int, ...]
    effects: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The run at a moment, for the view."""

    spec: Spec
    seconds: float
    produced: int
    passed: int
    """Records that the stored positions have passed."""
    effects: int
    suppressed: int
    kills: int
    freezes: int
    leaves: int
    workers: tuple[WorkerView, ...]
    news: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run showed, and where its remains are kept if something was wrong."""

    spec: Spec
    verdict: Verdict
    seconds: float
    problems: tuple[str, ...]
    kept: Path | None = None
    store_kills: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems

    def figures(self) -> dict[str, int | float | str]:
        """The flat figures of `out/crash.json`."""
        spec, verdict = self.spec, self.verdict
        return {
            "seed": spec.seed,
            "mode": spec.mode.value,
            "store": spec.store,
            "driver": spec.driver,
            "assignor": spec.assignor.value,
            "delivered": spec.delivered,
            "distinct": spec.distinct,
            "effects": verdict.effects,
            "suppressed": verdict.suppressed,
            "lost": verdict.lost,
            "repeated": verdict.repeated,
            "unexplained_repeats": verdict.unexplained_repeats,
            "unknown_effects": verdict.unknown_effects,
            "kills": verdict.kills,
            "kills_near_effect": verdict.kills_near_effect,
            "kills_between_effect_and_commit": verdict.kills_between_effect_and_commit,
            "freezes": verdict.freezes,
            "leaves": verdict.leaves,
            "worker_failures": verdict.worker_failures,
            "rebalances": verdict.rebalances,
            "store_kills": self.store_kills,
            "events_per_second": round(spec.delivered / self.seconds, 1),
            "seconds": round(self.seconds, 1),
        }


def run(spec: Spec, broker: Broker, watch: Callable[[Snapshot], None]) -> Report:
    """Plays one run and judges it. `watch` is called fifty times a second.

    Everything it started has ended when it returns, and ends with this process if that is killed.
    """
    home = Path(tempfile.mkdtemp(prefix="effectonce-chaos-"))
    try:
        report = _run(spec, broker, watch, home)
    except KeyboardInterrupt:
        shutil.rmtree(home, ignore_errors=True)
        raise
    if report.ok:
        shutil.rmtree(home)
        return report
    return replace(report, kept=home)


def _run(spec: Spec, broker: Broker, watch: Callable[[Snapshot], None], home: Path) -> Report:
    with STORES[spec.store].serve(home):
        return _served(spec, broker, watch, home)


def _served(spec: Spec, broker: Broker, watch: Callable[[Snapshot], None], home: Path) -> Report:
    topic = f"{home.name}"
    broker.create_topic(topic, spec.partitions)
    events = event_ids(spec)
    with closing(WitnessProcess(home)) as witness:
        stage = _Stage(spec, broker.bootstrap, topic, home, witness, events)
        seconds, stopped = stage.play(watch)
    journal = list(unpack(witness.journal_path.read_bytes()))
    in_store = None
    if spec.mode is Mode.IN_STORE:
        partitions = [Partition(SCOPE, GROUP, topic, number) for number in range(spec.partitions)]
        in_store = STORES[spec.store].read(str(home), partitions)
    killed_ns = STORES[spec.store].killed_ns
    verdict = judge(spec.mode, spec.batch, events, journal, in_store, killed_ns)
    problems = [*stopped, *verdict.broken(spec.mode), *verdict.not_shown(spec)]
    return Report(spec, verdict, seconds, tuple(problems), store_kills=len(killed_ns))


class _Stage:
    """The running parts, put together."""

    def __init__(
        self,
        spec: Spec,
        bootstrap: str,
        topic: str,
        home: Path,
        witness: WitnessProcess,
        events: list[bytes],
    ) -> None:
        self._spec = spec
        self._tail = Tail(witness.journal_path)
        self._tally = Tally()
        job = Job(
            number=0,
            bootstrap=bootstrap,
            topic=topic,
            group=GROUP,
            mode=spec.mode.value,
            store=spec.store,
            driver=spec.driver,
            assignor=spec.assignor.value,
            batch=spec.batch,
            session_seconds=spec.session_seconds,
            home=str(home),
            socket_path=str(witness.socket_path),
        )
        self._crew = Crew(job, spec.workers, spec.frozen_seconds, witness, self._tally)
        self._producer = Producer(bootstrap, topic, events, deliveries(spec), spec.rate)
        self._director = Director(spec, self._producer, self._crew, witness, self._tally)
        self._began = time.monotonic()

    def play(self, watch: Callable[[Snapshot], None]) -> tuple[float, list[str]]:
        """Until the group has caught up or nothing goes on: seconds, and why it was cut short."""
        self._producer.start()
        try:
            while not (stopped := self._stopped()) and not self._caught_up():
                self._absorb()
                self._crew.tick()
                self._director.tick()
                watch(self.snapshot())
                time.sleep(_TICK_SECONDS)  # a clock is what it is: dues, the pace, the view
            return time.monotonic() - self._began, stopped
        finally:
            self._producer.stop()
            self._crew.dismiss(self._absorb)
            self._tail.close()

    def _absorb(self) -> None:
        for record in self._tail.read():
            self._tally.add(record)

    def _caught_up(self) -> bool:
        if not self._producer.done or self._tally.frozen:  # a freeze must be seen to its end
            return False
        return self._tally.caught_up(self._producer.ends)

    def _stopped(self) -> list[str]:
        idle = time.monotonic() - self._tally.last_progress
        stopped = []
        if self._producer.error:
            stopped.append(f"the producer failed: {self._producer.error}")
        if idle > self._spec.stuck_seconds:
            stopped.append(f"no progress for {idle:.0f} s: stuck is lost")
        if self._crew.failures >= TOO_MANY_FAILURES:
            stopped.append(f"{self._crew.failures} workers ended by themselves")
        return stopped

    def snapshot(self) -> Snapshot:
        tally = self._tally
        return Snapshot(
            spec=self._spec,
            seconds=time.monotonic() - self._began,
            produced=self._producer.produced,
            passed=tally.passed,
            effects=tally.fresh,
            suppressed=tally.suppressed,
            kills=tally.strikes[Kind.KILLED],
            freezes=tally.strikes[Kind.FROZEN],
            leaves=tally.strikes[Kind.ASKED],
            workers=tuple(map(self._view, self._crew.places)),
            news=tuple(tally.news),
        )

    def _view(self, place: Place) -> WorkerView:
        tally, worker = self._tally, place.worker
        if place.process is None:
            condition = Condition.GONE
        elif worker in tally.frozen:
            condition = Condition.FROZEN
        else:
            condition = Condition.WORKING if worker in tally.started else Condition.STARTING
        return WorkerView(
            slot=place.slot,
            worker=worker,
            pid=place.process.pid if place.process else None,
            condition=condition,
            partitions=tuple(sorted(p for p, owner in tally.owner.items() if owner == worker)),
            effects=tally.effects[worker],
        )
