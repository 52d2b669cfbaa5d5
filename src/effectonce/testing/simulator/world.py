"""One seed's world: topics, members, producers, operators, and what befalls them.

For `FAULTS_SECONDS` faults fire, longer where too few have; then they stop, what is frozen thaws,
and everything must come to its end.
"""

from __future__ import annotations

import logging
import random
import signal
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from random import Random
from typing import Final
from unittest.mock import patch

from effectonce import InStore, Limits, Once, Outside, Retry, assignment, header
from effectonce.model import Partition
from effectonce.ports import Reach, TopicPartition
from effectonce.testing.simulator.broker import (
    REBALANCE_SECONDS,
    SESSION_SECONDS,
    Group,
    Log,
    Rule,
)
from effectonce.testing.simulator.disk import Disk, SimStore
from effectonce.testing.simulator.faults import STIR_SECONDS, Fault, Faults
from effectonce.testing.simulator.in_lanes import LanesOf
from effectonce.testing.simulator.judge import WINDOW_DAYS, Judge, Violation
from effectonce.testing.simulator.operators import Operators
from effectonce.testing.simulator.process import Process, Style
from effectonce.testing.simulator.producer import RECORDS, Producer
from effectonce.testing.simulator.schedule import Schedule

FAULTS_SECONDS: Final = 6.0
CALM_SECONDS: Final = 12.0
"""By then faults stop, even where too few of them fell: a schedule cut down has few."""
LIMIT_SECONDS: Final = 150.0
"""After the faults: more than every backoff, session and topic check of the driver together."""
IDLE_SECONDS: Final = 0.4
"""In place of the driver's ten, in a life of six."""
BATCHES: Final = (20, 20, 20, 4)
"""Records a batch: as many as come, or few, so that partitions wait for whole ones (width.py)."""
MEMBERS: Final = 3
WALL_MS: Final = 1_800_000_000_000


class Mode(Enum):
    """Where the effects live."""

    IN_STORE = "in-store"
    OUTSIDE = "outside-repeat"
    LANES = "outside-lanes"
    """As that, with handlers side by side."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A schedule cut down: only these faults, so many records and members."""

    only: tuple[Fault, ...] | None = None
    records: int = RECORDS
    members: int = MEMBERS


WHOLE: Final = Cut()


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one seed."""

    seed: int
    mode: Mode
    reach: Reach
    violations: tuple[Violation, ...]
    deliveries: int
    steps: int
    faults: dict[tuple[str, str], int] = field(hash=False)
    timeline: tuple[str, ...] = ()
    fell: tuple[Fault, ...] = ()
    members: int = 0


class World:
    """Everything of one seed."""

    topic: Final = "payments"
    group_name: Final = "billing"

    def __init__(
        self, seed: int, mode: Mode, reach: Reach, *, cut: Cut = WHOLE, timeline: bool = False
    ) -> None:
        self.seed, self.mode, self.cut = seed, mode, cut
        self.name = f"{seed} {mode.value} {reach.value}"
        # each draws from its own source: what is left out of one changes no other
        self.chance = Random(self.name)
        self.schedule = Schedule()
        self.timeline: list[str] | None = [] if timeline else None
        self.judge = Judge(self.schedule, reach)
        self.faults = Faults(self, Random(f"{self.name} faults"), cut.only)
        self.disk = Disk(reach)
        self.producer = Producer(self, Random(f"{self.name} producer"))
        self.operators = Operators(self, self.name)
        keys = [(self.topic, number) for number in range(self.chance.randint(1, 4))]
        self.logs = {key: Log() for key in keys}
        self.topic_id = self.chance.randbytes(16)
        rule = self.chance.choice(list(Rule))
        self.group = Group(rule, keys, Random(f"{self.name} group"))
        self.processes: list[Process] = []
        self.wanted = min(self.chance.randint(1, MEMBERS), cut.members)
        self.excused: set[str] = set()
        """Events that retention or a deleted topic took before their effect."""
        self.style = self.chance.choice(list(Style))
        self.lanes = LanesOf.drawn(Random(f"{self.name} lanes")) if mode is Mode.LANES else None
        self.batch = Random(f"{self.name} batches").choice(BATCHES)
        self._born = 0
        self._wall_ms = WALL_MS
        self._log_time_ms: dict[TopicPartition, int] = {}

    # -- for the processes ---------------------------------------------------------------------

    def once(self, store: SimStore) -> Once:
        return Once(
            store,
            identify=header("event-id"),
            effects=InStore() if self.mode is Mode.IN_STORE else Outside(on_doubt="repeat"),
            retry=Retry(1000, wait_initial=timedelta(milliseconds=20), wait_max=timedelta(0, 1)),
            limits=Limits(
                batch=self.batch,
                handler_timeout_seconds=8.0,
                drain_seconds=self.lanes.drain_seconds if self.lanes else 1.0,
                held=self.lanes.held if self.lanes else 10_000,
            ),
            window=timedelta(days=WINDOW_DAYS),
            on_reset="dedupe",
            gap="accept",
        )

    def wall_ms(self) -> int:
        return self._wall_ms + int(self.schedule.now * 1000)

    def befall(self) -> None:
        """Whatever befalls all of them, from now on."""
        self.operators.befall()

    def stop_all(self) -> None:
        """Nobody runs any more, as operators see to it before they touch offsets or files."""
        for process in list(self.processes):
            process.kill()
        for member in list(self.group.members):
            self.group.expel(member)

    def let_pass(self, milliseconds: float) -> None:
        """On every wall clock; nobody has anything to do meanwhile."""
        self._wall_ms += int(milliseconds)

    def tell(self, who: str, what: str) -> None:
        if self.timeline is not None:
            self.timeline.append(f"{self.schedule.now:9.4f}  {who:<8} {what}")

    # -- members -------------------------------------------------------------------------------

    def start_process(self) -> None:
        if len(self.processes) >= self.wanted:
            return
        self._born += 1
        process = self.process(f"p{self._born}")
        process.skew_ms = self.chance.randint(-60_000, 60_000)
        self.processes.append(process)
        self.tell(process.name, "starts")
        self.schedule.spawn(process.main)

    def process(self, name: str) -> Process:
        """A new member; another world may run another consumer in it."""
        return Process(self, name)

    def gone(self, process: Process) -> None:
        """Dead or done: the group hears of it by the session, another takes its place."""
        self.processes.remove(process)
        self.tell(process.name, "is gone")
        member = process.client.member
        if member is not None:
            gone = member
            self.schedule.at(SESSION_SECONDS, lambda: self.group.expel(gone))
        self.schedule.at(self.chance.uniform(0.05, 1.0), self.start_process)

    def freeze(self, process: Process, seconds: float) -> None:
        self.tell(process.name, f"FREEZES for {seconds} s")
        process.frozen_until = self.schedule.now + seconds
        member = process.client.member
        if member is not None and seconds > SESSION_SECONDS:
            frozen = member
            self.schedule.at(SESSION_SECONDS, lambda: self.group.expel(frozen))
            self.schedule.at(SESSION_SECONDS, self.watch_rebalance)

    def watch_rebalance(self) -> None:
        """Whoever has not given up in time what it was asked for is expelled."""
        late = [(m, frozenset(m.to_revoke)) for m in self.group.members]

        def expel() -> None:
            for member, asked in late:
                if asked and asked <= member.to_revoke:
                    self.group.expel(member)

        self.schedule.at(REBALANCE_SECONDS, expel)

    # -- the run -------------------------------------------------------------------------------

    def calm(self) -> None:
        """Faults stop, once enough have fallen; what is frozen thaws by itself."""
        if self.faults.too_few() and self.schedule.now < CALM_SECONDS:
            self.schedule.at(STIR_SECONDS, self.calm)
            return
        self.faults.on = False
        self.tell("world", "faults stop")

    def over(self) -> bool:
        if self.faults.on or not self.producer.enough():
            return False
        return all(log.remaining(self.next_of(key)) == 0 for key, log in self.logs.items())

    def log_time_ms(self, key: TopicPartition) -> int:
        """The clock that the window of that partition runs on, by its log and not by our code."""
        row = self.disk.positions[Partition(self.group_name, self.group_name, *key)]
        passed = self.logs[key].before(row.next)
        if passed is not None:
            self._log_time_ms[key] = max(self._log_time_ms.get(key, 0), passed.timestamp_ms)
        return self._log_time_ms.get(key, 0)

    def next_of(self, key: TopicPartition) -> int:
        row = self.disk.positions.get(Partition(self.group_name, self.group_name, *key))
        return row.next if row is not None and row.topic_id == self.topic_id else -1

    def run(self) -> Report:
        log = logging.getLogger("effectonce")
        level, handler, state = log.level, signal.getsignal(signal.SIGTERM), random.getstate()
        log.setLevel(logging.CRITICAL + 1)
        random.seed(self.seed)
        try:
            with patch.object(assignment, "VERIFY_SECONDS", IDLE_SECONDS):
                self._run()
            self._judge()
        finally:
            self.schedule.end()
            log.setLevel(level)
            signal.signal(signal.SIGTERM, handler)
            random.setstate(state)
        return self.report()

    def _run(self) -> None:
        self.schedule.at(0.0, self.producer.go_on)
        self.schedule.at(self.chance.uniform(0.1, 2.0), self.befall)
        self.schedule.at(FAULTS_SECONDS / 4, self.faults.stir)
        self.schedule.at(FAULTS_SECONDS, self.calm)
        for _ in range(self.wanted):
            self.schedule.at(self.chance.uniform(0.0, 0.5), self.start_process)
        if not self.schedule.run(self.over, CALM_SECONDS + LIMIT_SECONDS):
            self._stuck()

    def report(self) -> Report:
        """What came of it so far."""
        return Report(
            self.seed, self.mode, self.disk.reach, tuple(self.judge.violations),
            self.judge.deliveries, self.schedule.steps, dict(self.faults.counts),
            tuple(self.timeline or ()), tuple(self.faults.fell), self.wanted,
        )  # fmt: skip

    def _stuck(self) -> None:
        said = [
            f"partition {key[1]} is at {self.next_of(key)} of {log.end}"
            for key, log in self.logs.items()
        ]
        said += [
            f"{process.name} has partition {each.at.number}: {each.stage}, {each.error or 'well'}"
            for process in self.processes
            if process.consumer is not None
            for each in process.consumer.health().partitions
        ]
        self.judge.broken("stuck", "; ".join([*said, *self.judge.errors]))

    def _judge(self) -> None:
        counts: dict[str, int] = {}
        if self.mode is Mode.IN_STORE:
            for rows in self.disk.rows.values():
                for row, value in rows.items():
                    name = row.removeprefix(b"effect ").decode()
                    counts[name] = counts.get(name, 0) + int(value)
            for name, count in counts.items():
                if count > 1 and name not in self.judge.aged:
                    self.judge.broken("repeated", f"{name} took effect {count} times")
        else:
            counts = {name: len(effects) for name, effects in self.judge.effects.items()}
        for key, log in self.logs.items():
            for entry in log.entries:
                if entry.event not in counts and entry.event not in self.excused:
                    self.judge.broken("lost", f"{entry.event} at {key[1]}@{entry.offset}")


def simulate(
    seed: int,
    mode: Mode = Mode.IN_STORE,
    reach: Reach = Reach.EMBEDDED,
    *,
    cut: Cut = WHOLE,
    timeline: bool = False,
) -> Report:
    """Run one seed to its end, and judge it."""
    return World(seed, mode, reach, cut=cut, timeline=timeline).run()


def attempt(
    seed: int, mode: Mode, reach: Reach, *, cut: Cut = WHOLE, timeline: bool = False
) -> Report:
    """The same for code that was broken on purpose: whatever it raises is a violation too."""
    world = World(seed, mode, reach, cut=cut, timeline=timeline)
    try:
        return world.run()
    except Exception as error:  # noqa: BLE001 - a breakage may break anything
        world.judge.broken("wrongly stopped", f"{type(error).__name__}: {error}")
        return world.report()
