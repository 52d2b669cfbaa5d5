"""Known bugs: a naive consumer, the faults of its world, and what must come of it.

Each scene runs with naive code and with effectonce's own driver, on the same seeds and the same
faults. In each the producer retries and logs have gaps; in the end all members are restarted one
by one, as by a deploy. `python -m tests.simulator.scenes` prints what it found: the numbers of
docs/simulation.md.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final

from effectonce.model import Committed
from effectonce.ports import Reach, TopicPartition
from effectonce.testing.simulator.broker import Group, Member
from effectonce.testing.simulator.disk import Disk
from effectonce.testing.simulator.faults import FINE, Faults
from effectonce.testing.simulator.process import Fate, HandlerRaised, Process
from effectonce.testing.simulator.world import Mode, Report, World
from tests.simulator.naive import (
    AioKafka,
    EffectInRedis,
    InboxByWallClock,
    Keys,
    Naive,
    OffsetFirst,
    PositionInRedis,
    RowFirst,
    SetNxLoop,
)

FSYNC_SECONDS: Final = 1.0
"""`appendfsync everysec`; an asynchronous replica may be as far behind."""
DEPLOY_SECONDS: Final = 4.0
"""After the faults: then all records are produced, in nearly every seed."""
DOWN_MS: Final = 8 * 86_400_000
"""More than the window of a week, less than the week and a half that effectonce keeps at most."""
LOST: Final = frozenset({"lost"})
REPEATED: Final = frozenset({"repeated"})
STALE: Final = frozenset({"moved back", "repeated"})


@dataclass(frozen=True, slots=True)
class Scene:
    """Which faults fire, how often a step; `matters` is the one that breaks the naive code."""

    name: str
    naive: type[Naive]
    matters: str
    invariants: frozenset[str]
    crash: float = 0.0
    raises: float = 0.0
    commit_fails: float = 0.0
    acts: tuple[str, ...] = ("member leaves",)
    modes: tuple[Mode, ...] = tuple(Mode)
    reach: Reach = Reach.EMBEDDED

    def without(self) -> Scene:
        """The same without the fault that matters."""
        match self.matters:
            case "crash":
                return replace(self, crash=0.0)
            case "handler raises":
                return replace(self, raises=0.0)
            case "fails":
                return replace(self, commit_fails=0.0)
            case act:
                return replace(self, acts=tuple(a for a in self.acts if a != act))

    def calm(self) -> Scene:
        """The same without any fault: producers retry, logs have gaps, and there is a deploy."""
        return replace(self, crash=0.0, raises=0.0, commit_fails=0.0, acts=())


SCENES: Final = (
    Scene("SET NX, then the handler", SetNxLoop, "crash", LOST, crash=0.002),
    Scene("a row, then the handler", RowFirst, "handler raises", LOST, raises=0.01),
    Scene("the offset, then the handler", OffsetFirst, "crash", LOST, crash=0.002),
    Scene("aiokafka's stale commit", AioKafka, "fails", STALE, commit_fails=0.5),
    Scene(
        "effect and marker in Redis, Kafka ahead", EffectInRedis, "lost suffix", LOST,
        crash=0.001, acts=("lost suffix", "member leaves"), modes=(Mode.IN_STORE,),
        reach=Reach.SHARED,
    ),
    Scene(
        "markers and position in Redis", PositionInRedis, "lost suffix", REPEATED,
        acts=("lost suffix", "member leaves"), reach=Reach.SHARED,
    ),
    Scene(
        "an inbox that forgets by wall clock", InboxByWallClock, "downtime", REPEATED,
        crash=0.002, acts=("downtime", "member leaves"),
    ),
)  # fmt: skip


class Chosen(Faults):
    """The faults of a scene, and no others."""

    def __init__(self, world: Any, chance: Random, scene: Scene) -> None:
        super().__init__(world, chance)
        self._scene = scene

    def _falls(self, rate: float) -> bool:
        return self.on and rate > 0 and self._chance.random() < rate

    def around(self, process: Any, step: str) -> None:
        if self._falls(self._scene.crash):
            self.fired("crash", step)
            self._world.tell(process.name, f"CRASH at {step}")
            process.kill()

    def fate(self, process: Any, step: str) -> Fate:
        if step != "kafka.commit" or not self._falls(self._scene.commit_fails):
            return FINE
        self.fired("fails", step)
        self._world.tell(process.name, f"{step} FAILS")
        return Fate(before=True)

    def handler_raises(self, process: Any, kind: str, name: str) -> None:
        if kind == "handler raises" and self._falls(self._scene.raises):
            self.fired(kind, "handler")
            self._world.judge.raised(process.name, name)
            raise HandlerRaised

    def handler_seconds(self, process: Any) -> float:
        del process
        return 0.0005


class WatchedGroup(Group):
    """Tells the judge of a committed offset that goes back."""

    judge: Any

    def commit(self, member: Member, key: TopicPartition, committed: Committed) -> None:
        before = self.offsets.get(key)
        super().commit(member, key, committed)
        if before is not None and committed.offset < before.offset:
            holder = next((m.name for m in self.members if key in m.owned), "nobody")
            self.judge.broken(
                "moved back",
                f"{member.name} committed {committed.offset} for partition {key[1]}, which "
                f"{holder} holds, over {before.offset}",
            )


class SceneWorld(World):
    """A world with a scene's faults, and naive code or the real driver in its processes."""

    def __init__(
        self, seed: int, scene: Scene, mode: Mode, *, naive: bool, timeline: bool = False
    ) -> None:
        super().__init__(seed, mode, scene.reach, timeline=timeline)
        self.scene, self.naive = scene, naive
        self.faults = Chosen(self, self.chance, scene)
        self.effects: Counter[str] = Counter()
        self.redis, self.database = Keys(self), Keys(self)
        self.deployed = self.failed_over = False
        if naive:
            self.disk = Disk(Reach.EMBEDDED)  # unused; and copies keep their partition
            group = WatchedGroup(self.group.rule, list(self.logs), self.chance)
            group.judge = self.judge
            self.group = group
        if "lost suffix" in scene.acts:
            self._fsync()

    def process(self, name: str) -> Process:
        return self.scene.naive(self, name) if self.naive else super().process(name)

    # -- what befalls it -----------------------------------------------------------------------

    def befall(self) -> None:
        if not self.faults.on or not self.scene.acts:
            return
        act = self.chance.choice(self.scene.acts)
        {"member leaves": self._goes, "lost suffix": self._lose, "downtime": self._down}[act]()
        self.schedule.at(self.chance.uniform(0.1, 1.5), self.befall)

    def _goes(self) -> None:
        if self.processes:
            self.faults.fired("member leaves", "world")
            self._stop(self.chance.choice(self.processes))

    def _stop(self, process: Process) -> None:
        if isinstance(process, Naive):
            process.leaving = True
        elif process.consumer is not None:
            process.consumer.stop()

    def _fsync(self) -> None:
        self._synced = dict(self.redis.values), self.disk.copy()
        self.schedule.at(FSYNC_SECONDS, self._fsync)

    def _lose(self) -> None:
        """A failover, once: what was written since the last fsync is gone; the members stay.

        Three within a minute would be a `Rival` to effectonce's members, and stop them.
        """
        values, disk = self._synced
        begun = {at for at, row in disk.positions.items() if row.next >= 0}
        if self.failed_over or begun != self.disk.positions.keys():
            return  # it would lose a partition's first start: refused, and rightly (row 3)
        self.faults.fired("lost suffix", "world")
        self.failed_over = True
        self.redis.values = dict(values)
        self.judge.store_lost(key for _, _, key in disk.markers)
        self.disk.put_back(disk)

    def _down(self) -> None:
        """All are killed, and for more than the window nobody is there; nothing is produced."""
        self.faults.fired("downtime", "world")
        self.stop_all()
        self.let_pass(DOWN_MS)
        self.producer.forget()

    def calm(self) -> None:
        super().calm()
        self.schedule.at(DEPLOY_SECONDS, self._deploy)

    def _deploy(self) -> None:
        self.deployed = True
        self.tell("world", "deploy")
        for number, process in enumerate(self.processes):
            self.schedule.at(0.3 * number, partial(self._stop, process))

    # -- the verdict ---------------------------------------------------------------------------

    def over(self) -> bool:
        busy = any(isinstance(process, Naive) and process.busy for process in self.processes)
        return self.deployed and not busy and super().over()

    def next_of(self, key: tuple[str, int]) -> int:
        if not self.naive:
            return super().next_of(key)
        if self.scene.naive is PositionInRedis:
            return self.redis.get(f"position {key[1]}") or 0
        committed = self.group.offsets.get(key)
        return committed.offset if committed else -1

    def _stuck(self) -> None:
        if not self.naive:
            super()._stuck()
        else:
            self.judge.broken("stuck", str({key: self.next_of(key) for key in self.logs}))

    def _judge(self) -> None:
        if not self.naive:
            super()._judge()
            return
        kept = self.effects + Counter(
            {k.removeprefix("effect "): n for k, (n, _) in self.redis.values.items() if "eff" in k}
        )
        copies = Counter(entry.event for log in self.logs.values() for entry in log.entries)
        for name, count in copies.items():
            if not kept[name]:
                self.judge.broken("lost", f"{name} has no effect")
            elif kept[name] > (1 if self.scene.naive.dedupes else count):
                self.judge.broken("repeated", f"{name} took effect {kept[name]} times")


@dataclass(frozen=True, slots=True)
class Found:
    """The first seed that shows the bug, how many were run for it, and how long that took."""

    seed: int
    seeds: int
    seconds: float
    report: Report


def run(scene: Scene, seed: int, mode: Mode = Mode.OUTSIDE, *, naive: bool) -> Report:
    return SceneWorld(seed, scene, mode, naive=naive).run()


def shows(scene: Scene, report: Report) -> bool:
    """Whether it breaks all that it should; who is expelled may repeat without a dedupe."""
    broken = {violation.invariant for violation in report.violations}
    return scene.invariants <= broken and judged(scene, report)


def judged(scene: Scene, report: Report) -> bool:
    return scene.naive.dedupes or not fired([report], "zombie")


def find(scene: Scene, bound: int) -> Found | None:
    """Seed by seed, until naive code breaks the scene's invariant."""
    began = time.perf_counter()
    for seed in range(bound):
        report = run(scene, seed, naive=True)
        if shows(scene, report):
            return Found(seed, seed + 1, time.perf_counter() - began, report)
    return None


def fired(reports: Sequence[Report], kind: str) -> int:
    return sum(n for report in reports for (k, _), n in report.faults.items() if k == kind)


def main() -> None:
    for scene in SCENES:
        found = find(scene, 200)
        if found is None:
            sys.stdout.write(f"{scene.name}: not found in 200 seeds\n")
            continue
        why = [f"{v.invariant}: {v.why}" for v in found.report.violations]
        sys.stdout.write(
            f"{scene.name}: {found.seeds} seeds, {found.seconds:.2f} s, seed {found.seed}, "
            f"{scene.matters} {fired([found.report], scene.matters)} times, "
            f"{len(why)} broken: {'; '.join(why[:2])}\n"
        )


if __name__ == "__main__":
    main()
