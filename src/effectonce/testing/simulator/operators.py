"""What befalls all members at once: operators, retention, clocks, a store that goes back.

Operators do as the documents say: they stop the members before they touch offsets or files.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from effectonce.model import Committed, Partition
from effectonce.ports import Reach, TopicPartition
from effectonce.testing.simulator.broker import Log
from effectonce.testing.simulator.disk import Disk
from effectonce.testing.simulator.judge import DAY_MS

Act = tuple[Callable[[], None], str, float]
"""What happens, the fault's name, and how often beside the others."""


class Operators:
    """Every now and then, one act."""

    def __init__(self, world: Any, name: str) -> None:
        self._world = world
        self._name = name
        self._chance = Random(f"{name} operators")
        self._acts = 0
        self._backup: Disk = world.disk.copy()
        self._restored = 0

    def befall(self) -> None:
        """One act, and the next one later."""
        world = self._world
        if not world.faults.on:
            return
        self._acts += 1
        self._chance.seed(f"{self._name} act {self._acts}")  # whatever came before
        world.schedule.at(self._chance.uniform(0.1, 1.2), world.befall)
        acts: list[Act] = [
            (self._back_up, "", 2), (self._put_back, "old backup", 0.4),
            (self._reset, "operator reset", 0.5), (self._delete, "group deleted", 0.3),
            (self._recreate, "topic recreated", 0.4), (self._retain, "retention", 0.6),
            (self._fill, "store full", 0.5), (self._step_clock, "clock step", 0.7),
            (self._sleep_days, "days of downtime", 0.8), (self._leave, "member leaves", 0.7),
        ]  # fmt: skip
        if world.disk.reach is not Reach.EMBEDDED:
            acts.append((self._lose_suffix, "suffix lost", 0.6))
        ((act, kind, _),) = self._chance.choices(acts, [weight for *_, weight in acts])
        if not kind or world.faults.falls("world", kind, "world", self._acts, drawn=True):
            act()

    def _befell(self, kind: str) -> None:
        self._world.faults.fired(kind, "world")

    def _rows(self) -> list[tuple[Partition, TopicPartition]]:
        return [(at, (at.topic, at.number)) for at in self._world.disk.positions]

    # -- the store -----------------------------------------------------------------------------

    def _back_up(self) -> None:
        self._backup = self._world.disk.copy()

    def _goes_back(self, copy: Disk, kind: str) -> bool:
        """Whether that copy has all rows: one from before a first start is refused (row 3)."""
        world = self._world
        had = {at for at, row in copy.positions.items() if row.next >= 0}
        if world.disk.positions.keys() != had:
            return False
        self._befell(kind)
        world.judge.store_lost(key for _, _, key in copy.markers)
        world.disk.put_back(copy)
        for at, key in self._rows():
            # an offset that an operator set for the newer store would skip records of this one
            committed, row = world.group.offsets.get(key), world.disk.positions[at]
            if committed is not None and not committed.metadata and committed.offset > row.next:
                world.group.offsets[key] = Committed(row.next)
        return True

    def _put_back(self) -> None:
        if self._goes_back(self._backup, "old backup"):
            self._restored += 1
            self._world.stop_all()

    def _lose_suffix(self) -> None:
        """A failover: what was acknowledged in the last moments is gone, and members run on."""
        copy: Disk = self._world.disk.copy()
        seconds = self._chance.uniform(0.01, 0.3)
        restored = self._restored

        def lose() -> None:
            if restored == self._restored:  # else the replica has been restored as well
                self._goes_back(copy, "suffix lost")

        self._world.schedule.at(seconds, lose)

    def _fill(self) -> None:
        seconds = self._chance.uniform(0.1, 2.0)
        self._world.faults.full_until = self._world.schedule.now + seconds

    # -- the group's offsets -------------------------------------------------------------------

    def _reset(self) -> None:
        self._befell("operator reset")
        self._world.stop_all()
        world = self._world
        for at, key in self._rows():
            row = world.disk.positions[at]
            lowest = max(row.horizon, world.logs[key].start)
            if row.topic_id == world.topic_id and 0 <= lowest < row.next:
                world.group.offsets[key] = Committed(self._chance.randint(lowest, row.next))

    def _delete(self) -> None:
        """An embedded store refuses that (row 7), so the operator sets the offsets as it says."""
        self._befell("group deleted")
        self._world.stop_all()
        world = self._world
        world.group.offsets.clear()
        if world.disk.reach is Reach.EMBEDDED:
            for at, key in self._rows():
                row = world.disk.positions[at]
                if row.next >= 0 and row.topic_id == world.topic_id:
                    world.group.offsets[key] = Committed(row.next)

    # -- the logs ------------------------------------------------------------------------------

    def _recreate(self) -> None:
        """Half the time the new log is past the old position before anybody asks."""
        self._befell("topic recreated")
        world = self._world
        world.producer.forget()
        world.topic_id = self._chance.randbytes(16)
        at_once = self._chance.random() < 0.5
        for key, log in list(world.logs.items()):
            world.excused.update(entry.event for entry in log.entries)
            world.logs[key] = Log()
            if at_once and log.end <= 40:
                world.producer.burst(key, log.end + 5)

    def _retain(self) -> None:
        """Half the time the log has filled so fast that nobody could keep up."""
        self._befell("retention")
        world = self._world
        key: TopicPartition = self._chance.choice(list(world.logs))
        log = world.logs[key]
        if self._chance.random() < 0.5:
            world.producer.burst(key, 30)
        if log.entries:
            count = self._chance.randint(1, len(log.entries))
            world.excused.update(entry.event for entry in log.entries[:count])
            log.start = log.entries[count - 1].offset + 1
            del log.entries[:count], log.offsets[:count]

    # -- time, and members ---------------------------------------------------------------------

    def _sleep_days(self) -> None:
        """Time passes for all; half the time nobody is up, and copies wait in the log."""
        self._befell("days of downtime")
        world = self._world
        if self._chance.random() < 0.5:
            self._world.stop_all()
            world.producer.burst(self._chance.choice(list(world.logs)), 15)
        world.let_pass(self._chance.choice([0.5, 1, 3, 10]) * DAY_MS)

    def _step_clock(self) -> None:
        if self._world.processes:
            self._befell("clock step")
            process = self._chance.choice(self._world.processes)
            process.skew_ms += self._chance.randint(-600_000, 600_000)

    def _leave(self) -> None:
        if self._world.processes:
            self._befell("member leaves")
            process = self._chance.choice(self._world.processes)
            if process.consumer is not None:
                process.consumer.stop()
