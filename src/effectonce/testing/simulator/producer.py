"""What is in the logs: events, and copies of them.

| fault                   | a copy comes                                                          |
| ----------------------- | --------------------------------------------------------------------- |
| producer retry          | soon after, in the same partition                                     |
| copy within the window  | up to 6.9 days after, by the records' own time, in the same partition |
| copy elsewhere          | at once, in another partition (shared stores: they promise to see it) |

Copies beyond the window may take effect again, so none is made.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Any, Final

from effectonce.identity.keys import keys_of
from effectonce.ports import Reach, TopicPartition
from effectonce.testing.simulator.judge import DAY_MS, WINDOW_MS

COPIED_MS: Final = WINDOW_MS - DAY_MS // 10
RECENT: Final = 8
LULL_SECONDS, QUIET_OF = 3.0, 6
"""A partition's number of so many, if there is one: two seconds of three it has little to do."""
RECORDS: Final = 180
DELIVERIES: Final = 200
"""Retention and deleted topics take records that nobody has read: then more are made."""


class Producer:
    """Appends to the logs, at its own pace or in bursts."""

    def __init__(self, world: Any, chance: Random) -> None:
        self._world = world
        self._chance = chance
        self._sent: dict[TopicPartition, list[tuple[str, int]]] = {}
        self.produced = 0
        self._lull = Random(f"{world.name} lull")
        self._quiet = self._lull.randrange(QUIET_OF)

    def forget(self) -> None:
        """The topic is another one: copies of what it had would be events of their own."""
        self._sent.clear()

    def go_on(self) -> None:
        """Some now, some later."""
        for _ in range(self._chance.randint(1, 12)):
            if self.enough():
                return
            key = self._chance.choice(list(self._world.logs))
            if key[1] == self._quiet and self._world.schedule.now % LULL_SECONDS > 1.0:
                key = self._lull.choice(list(self._world.logs))
            self._one(key)
        self._world.schedule.at(self._chance.uniform(0.0, 0.5), self.go_on)

    def enough(self) -> bool:
        """Whether all has been made that this run is to have."""
        records: int = self._world.cut.records
        if self.produced < records:
            return False
        delivered: int = self._world.judge.deliveries
        return records < RECORDS or delivered >= DELIVERIES or self.produced >= 3 * RECORDS

    def burst(self, key: TopicPartition, count: int) -> None:
        """Many at once in one partition, as far as there are any left."""
        for _ in range(min(count, self._world.cut.records - self.produced)):
            self._one(key)

    def _one(self, key: TopicPartition) -> None:
        self.produced += 1
        drawn = self._chance.random()
        gap = self._falls("log gap", drawn=self._chance.random() < 0.08)
        sent = self._sent.setdefault(key, [])
        name = f"e{self.produced}"
        if copy := self._falls("producer retry", drawn=drawn < 0.12 and bool(sent)):
            name, _ = copy.choice(self._within_window(sent[-RECENT:]) or [(name, 0)])
        elif copy := self._falls("copy within the window", drawn=drawn > 0.92 and bool(sent)):
            name, _ = copy.choice(self._within_window(sent) or [(name, 0)])
        self._append(key, name, gap.randint(1, 3) if gap else 0)
        shared = self._world.disk.reach is Reach.SHARED and len(self._world.logs) > 1
        if shared and (copy := self._falls("copy elsewhere", drawn=0.5 < drawn < 0.56)):
            self._append(copy.choice([k for k in self._world.logs if k != key]), name, 0)

    def _within_window(self, sent: list[tuple[str, int]]) -> list[tuple[str, int]]:
        now = self._world.wall_ms()
        return [(name, at) for name, at in sent if now - at <= COPIED_MS]

    def _append(self, key: TopicPartition, name: str, gap: int) -> None:
        world, now = self._world, self._world.wall_ms()
        sent = self._sent.setdefault(key, [])
        if name == f"e{self.produced}":
            sent.append((name, now))
            world.judge.keys[key_of(name)], world.judge.made_ms[name] = name, now
        world.logs[key].append(name, now, gap)
        world.tell("producer", f"log: {key[1]}@{world.logs[key].end - 1} {name}")

    def _falls(self, kind: str, *, drawn: bool) -> Random | None:
        faults = self._world.faults
        length: Random | None = faults.falls("producer", kind, "log", self.produced, drawn=drawn)
        if length is not None:
            faults.fired(kind, "log")
        return length


@lru_cache(maxsize=4096)
def key_of(name: str) -> bytes:
    """The 16 bytes that the driver will know this event by."""
    return keys_of([name.encode()], None).tobytes()
