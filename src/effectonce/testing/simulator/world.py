"""One seed's world: topics, members, producers, operators, and what befalls them.

For `FAULTS_SECONDS` faults fire; then they stop, what is frozen thaws, and everything must come to
its end.
"""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from random import Random
from typing import Final

from effectonce import InStore, Limits, Once, Outside, Retry, header
from effectonce.identity.keys import keys_of
from effectonce.model import Committed, Partition
from effectonce.ports import Reach
from effectonce.testing.simulator.broker import (
    REBALANCE_SECONDS,
    SESSION_SECONDS,
    Group,
    Log,
    Rule,
)
from effectonce.testing.simulator.disk import Disk, SimStore
from effectonce.testing.simulator.faults import Fault, Faults
from effectonce.testing.simulator.judge import Judge, Violation
from effectonce.testing.simulator.process import Process
from effectonce.testing.simulator.schedule import Schedule

FAULTS_SECONDS: Final = 6.0
LIMIT_SECONDS: Final = 150.0
"""After the faults: more than every backoff, session and topic check of the driver together."""
RECORDS: Final = 220
MEMBERS: Final = 3
DAY_MS: Final = 86_400_000
WALL_MS: Final = 1_800_000_000_000


class Mode(Enum):
    """Where the effects live."""

    IN_STORE = "in-store"
    OUTSIDE = "outside-repeat"


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
        self._producer = Random(f"{self.name} producer")
        self.schedule = Schedule()
        self.timeline: list[str] | None = [] if timeline else None
        self.judge = Judge()
        self.faults = Faults(self, Random(f"{self.name} faults"), cut.only)
        self.disk = Disk(reach)
        self.backup = self.disk.copy()
        keys = [(self.topic, number) for number in range(self.chance.randint(1, 4))]
        self.logs = {key: Log() for key in keys}
        self.topic_id = self.chance.randbytes(16)
        rule = self.chance.choice(list(Rule))
        self.group = Group(rule, keys, Random(f"{self.name} group"))
        self.processes: list[Process] = []
        self.wanted = min(self.chance.randint(1, MEMBERS), cut.members)
        self.excused: set[str] = set()
        """Events that retention or a deleted topic took before their effect."""
        self.produced = 0
        self._born = self._acts = 0
        self._wall_ms = WALL_MS
        self._recent: dict[int, list[str]] = {}

    # -- for the processes ---------------------------------------------------------------------

    def once(self, store: SimStore) -> Once:
        return Once(
            store,
            identify=header("event-id"),
            effects=InStore() if self.mode is Mode.IN_STORE else Outside(on_doubt="repeat"),
            retry=Retry(1000, wait_initial=timedelta(milliseconds=20), wait_max=timedelta(0, 1)),
            limits=Limits(batch=20, handler_timeout_seconds=8.0, drain_seconds=1.0),
            window=timedelta(days=7),
            on_reset="dedupe",
            gap="accept",
        )

    def wall_ms(self) -> int:
        return self._wall_ms + int(self.schedule.now * 1000)

    def tell(self, who: str, what: str) -> None:
        if self.timeline is not None:
            self.timeline.append(f"{self.schedule.now:9.4f}  {who:<8} {what}")

    # -- members -------------------------------------------------------------------------------

    def start_process(self) -> None:
        if len(self.processes) >= self.wanted:
            return
        self._born += 1
        process = Process(self, f"p{self._born}")
        process.skew_ms = self.chance.randint(-60_000, 60_000)
        self.processes.append(process)
        self.tell(process.name, "starts")
        self.schedule.spawn(process.main)

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

    # -- what happens to all of them -----------------------------------------------------------

    def produce(self) -> None:
        for _ in range(self._producer.randint(1, 12)):
            if self.produced >= self.cut.records:
                return
            self._produce_one()
        self.schedule.at(self._producer.uniform(0.0, 0.5), self.produce)

    def _produce_one(self) -> None:
        self.produced += 1
        chance, faults = self._producer, self.faults
        key = chance.choice(list(self.logs))
        recent = self._recent.setdefault(key[1], [])
        gap = 0
        drawn, again = chance.random() < 0.08, chance.random() < 0.15 and bool(recent)
        if size := faults.falls("producer", "log gap", "log", self.produced, drawn=drawn):
            gap = size.randint(1, 3)
            faults.fired("log gap", "log")
        copy = faults.falls("producer", "producer retry", "log", self.produced, drawn=again)
        if copy and recent:
            name = copy.choice(recent)
            faults.fired("producer retry", "log")
            if self.disk.reach is Reach.SHARED and copy.random() < 0.3:
                key = copy.choice(list(self.logs))
        else:
            name = f"e{self.produced}"
            (raw,) = (keys_of([name.encode()], None).tobytes(),)
            self.judge.keys[raw] = name
            recent.append(name)
            del recent[:-8]
        self.logs[key].append(name, self.wall_ms(), gap)
        self.tell("producer", f"log: {key[1]}@{self.logs[key].end - 1} {name}")

    def befall(self) -> None:
        """Every now and then, something."""
        if not self.faults.on:
            return
        self._acts += 1
        self.chance.seed(f"{self.name} act {self._acts}")  # whatever came before
        self.schedule.at(self.chance.uniform(0.1, 1.5), self.befall)
        acts: list[tuple[Callable[[], None], str, float]] = [
            (self._back_up, "", 2), (self._put_back, "old backup", 0.4),
            (self._reset, "operator reset", 0.5), (self._delete, "group deleted", 0.3),
            (self._recreate, "topic recreated", 0.3), (self._retain, "retention", 0.5),
            (self._fill, "store full", 0.5), (self._step_clock, "clock step", 1),
            (self._sleep_days, "days of downtime", 0.5), (self._leave, "member leaves", 1),
        ]  # fmt: skip
        ((act, kind, _),) = self.chance.choices(acts, [weight for *_, weight in acts])
        if not kind or self.faults.falls("world", kind, "world", self._acts, drawn=True):
            act()

    def _befell(self, kind: str) -> None:
        self.faults.fired(kind, "world")

    def _stop_all(self) -> None:
        """As an operator does before he touches offsets or files: nobody runs any more."""
        for process in list(self.processes):
            process.kill()
        for member in list(self.group.members):
            self.group.expel(member)

    def _back_up(self) -> None:
        self.backup = self.disk.copy()

    def _put_back(self) -> None:
        if self.disk.positions.keys() != {
            a for a, r in self.backup.positions.items() if r.next >= 0
        }:
            return  # a copy from before a partition's first start: refused, and rightly (row 3)
        self._befell("old backup")
        self._stop_all()
        self.judge.store_lost()
        self.disk.put_back(self.backup)
        for at, key in self._rows():
            # an offset that an operator set for the newer store would skip records of this one
            committed, row = self.group.offsets.get(key), self.disk.positions[at]
            if committed is not None and not committed.metadata and committed.offset > row.next:
                self.group.offsets[key] = Committed(row.next)

    def _rows(self) -> list[tuple[Partition, tuple[str, int]]]:
        return [(at, (at.topic, at.number)) for at in self.disk.positions]

    def _reset(self) -> None:
        self._befell("operator reset")
        self._stop_all()
        for at, key in self._rows():
            row = self.disk.positions[at]
            lowest = max(row.horizon, self.logs[key].start)
            if row.topic_id == self.topic_id and 0 <= lowest < row.next:
                to = self.chance.randint(lowest, row.next)
                self.group.offsets[key] = Committed(to)

    def _delete(self) -> None:
        """An embedded store refuses that (row 7), so the operator sets the offsets as it says."""
        self._befell("group deleted")
        self._stop_all()
        self.group.offsets.clear()
        if self.disk.reach is Reach.EMBEDDED:
            for at, key in self._rows():
                row = self.disk.positions[at]
                if row.next >= 0 and row.topic_id == self.topic_id:
                    self.group.offsets[key] = Committed(row.next)

    def _recreate(self) -> None:
        self._befell("topic recreated")
        for key, log in self.logs.items():
            self.excused.update(entry.event for entry in log.entries)
            self.logs[key] = Log()
        self._recent.clear()
        self.topic_id = self.chance.randbytes(16)

    def _retain(self) -> None:
        self._befell("retention")
        log = self.chance.choice(list(self.logs.values()))
        if log.entries:
            count = self.chance.randint(1, len(log.entries))
            self.excused.update(entry.event for entry in log.entries[:count])
            log.start = log.entries[count - 1].offset + 1
            del log.entries[:count], log.offsets[:count]

    def _fill(self) -> None:
        self.faults.full_until = self.schedule.now + self.chance.uniform(0.1, 2.0)

    def _step_clock(self) -> None:
        if self.processes:
            self._befell("clock step")
            process = self.chance.choice(self.processes)
            process.skew_ms += self.chance.randint(-600_000, 600_000)

    def _sleep_days(self) -> None:
        self._befell("days of downtime")
        self._wall_ms += DAY_MS

    def _leave(self) -> None:
        if self.processes:
            self._befell("member leaves")
            process = self.chance.choice(self.processes)
            if process.consumer is not None:
                process.consumer.stop()

    # -- the run -------------------------------------------------------------------------------

    def calm(self) -> None:
        """Faults stop; what is frozen thaws by itself."""
        self.faults.on = False
        self.tell("world", "faults stop")

    def over(self) -> bool:
        if self.faults.on or self.produced < self.cut.records:
            return False
        return all(log.remaining(self.next_of(key)) == 0 for key, log in self.logs.items())

    def next_of(self, key: tuple[str, int]) -> int:
        row = self.disk.positions.get(Partition(self.group_name, self.group_name, *key))
        return row.next if row is not None and row.topic_id == self.topic_id else -1

    def run(self) -> Report:
        log = logging.getLogger("effectonce")
        level, handler, state = log.level, signal.getsignal(signal.SIGTERM), random.getstate()
        log.setLevel(logging.CRITICAL + 1)
        random.seed(self.seed)
        try:
            self.schedule.at(0.0, self.produce)
            self.schedule.at(self.chance.uniform(0.1, 2.0), self.befall)
            self.schedule.at(FAULTS_SECONDS, self.calm)
            for _ in range(self.wanted):
                self.schedule.at(self.chance.uniform(0.0, 0.5), self.start_process)
            if not self.schedule.run(self.over, FAULTS_SECONDS + LIMIT_SECONDS):
                self._stuck()
            self._judge()
        finally:
            self.schedule.end()
            log.setLevel(level)
            signal.signal(signal.SIGTERM, handler)
            random.setstate(state)
        return self.report()

    def report(self) -> Report:
        """What came of it so far."""
        return Report(
            self.seed, self.mode, self.disk.reach, tuple(self.judge.violations),
            self.judge.deliveries, self.schedule.steps, dict(self.faults.counts),
            tuple(self.timeline or ()), tuple(self.faults.fell), self.wanted,
        )  # fmt: skip

    def _stuck(self) -> None:
        behind = {k: (self.next_of(k), log.end) for k, log in self.logs.items()}
        health = [p.consumer.health() for p in self.processes if p.consumer is not None]
        self.judge.broken("stuck", f"positions and ends {behind}; {health}; {self.judge.errors}")

    def _judge(self) -> None:
        counts: dict[str, int] = {}
        if self.mode is Mode.IN_STORE:
            for rows in self.disk.rows.values():
                for key, value in rows.items():
                    name = key.removeprefix(b"effect ").decode()
                    counts[name] = counts.get(name, 0) + int(value)
            for name, count in counts.items():
                if count > 1:
                    self.judge.broken("repeated", f"{name} took effect {count} times")
        else:
            counts = {name: len(effects) for name, effects in self.judge.effects.items()}
        for log in self.logs.values():
            for entry in log.entries:
                if entry.event not in counts and entry.event not in self.excused:
                    self.judge.broken("lost", f"{entry.event} at {entry.offset}")


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
