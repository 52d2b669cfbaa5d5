"""How records become batches: a partition waits for a whole one while more comes than is handled.

A batch is of one partition: it is decided, handed over and committed by itself, at a cost of its
own whatever its size (500 records that were four times 125 took 3,160 ns each in place of 1,800).
But the client hands over what it has in the order in which it came: live a little of each
partition, behind a backlog thousands of one, then of the next.

| the last poll                  | what came of a partition                                      |
| ------------------------------ | ------------------------------------------------------------- |
| brought less than was asked    | all goes, whatever its size: nothing more is there            |
| came late: handlers are slow   | all goes: they are what costs, and nobody should wait         |
| was full                       | whole batches go; the rest waits for more, until a poll finds |
|                                | it older than WAIT_SECONDS                                    |
| and the client holds no more   | all goes, cut                                                 |
| cheaply                        |                                                               |

A poll asks for what the batch that came last lacks; where it was of several partitions alike, for a
batch of each.

Before any waited, batches of 1000 behind a backlog in four partitions were 771 records each, and
mixed ones of 500 were 422; now they are 990 and 497.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from effectonce.owned import Owned, Partial, Stage
from effectonce.ports import AsyncClient, Records, TopicPartition
from effectonce.values import dataclass

NEARLY: Final = 0.9
"""Of a batch is whole enough."""
FILL: Final = 0.85
"""Of a batch for each partition, where none waits: shares differ, and what is cut in two has gained
nothing."""
MOST: Final = 4_000
"""Records at once, since they are no longer in the client's own bounds."""
SLOW_SECONDS: Final = 0.05
"""Handlers that take longer for what a poll brought are what costs: a batch of its own is 0.2 ms.
Then a partition should not wait for the others (with 1 s here, one whose owners were killed every
other second did not advance for twenty)."""
WAIT_SECONDS: Final = 0.05
"""The client hands over 5,000 records of one partition (1 MB) before the next one's, in 10 ms."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What is to be decided, in order, what waits for more, and whether anything came at all."""

    batches: list[Records]
    partials: Mapping[TopicPartition, Partial]
    came: bool

    def hold(self, ours: Mapping[TopicPartition, Owned]) -> None:
        """With their partitions, where they run.

        Others' came from before an assignment, and the start will seek to them again.
        """
        for records in self.batches:
            owned = ours.get((records.topic, records.partition))
            if owned is not None and owned.stage is Stage.RUNNING:
                owned.held.extend(_rising(records))
        for key, owned in ours.items():
            owned.partial = self.partials.get(key) if owned.stage is Stage.RUNNING else None


class Width:
    """One consumer's polls."""

    def __init__(self, client: AsyncClient, monotonic: Callable[[], float]) -> None:
        self._fetch = client.fetch
        self._keeps = client.holds_cheaply
        self._monotonic = monotonic
        self._partitions = 1
        self._last: TopicPartition = ("", 0)
        self._polled_at = 0.0

    async def poll(
        self, limit: int, timeout_seconds: float, ours: Mapping[TopicPartition, Owned]
    ) -> bool:
        """Hold what comes, in batches of `limit` at most; whether anything came."""
        partials = {key: owned.partial for key, owned in ours.items() if owned.partial}
        gathered = await self.gather(limit, timeout_seconds, partials)
        gathered.hold(ours)
        return gathered.came

    async def poll_as_it_comes(
        self, limit: int, timeout_seconds: float, ours: Mapping[TopicPartition, Owned]
    ) -> bool:
        """The same, where no batches are made: for lanes, and beside a slow handler."""
        got = await self._fetch(limit, timeout_seconds)
        waited = [owned.partial.records for owned in ours.values() if owned.partial]
        Gathered([*waited, *got], {}, bool(got)).hold(ours)
        return bool(got)

    async def gather(
        self, limit: int, timeout_seconds: float, partials: Mapping[TopicPartition, Partial]
    ) -> Gathered:
        """`partials`: what waited until now."""
        now = self._monotonic()
        slow, self._polled_at = now - self._polled_at > SLOW_SECONDS, now
        came = {key: each.records for key, each in partials.items()}
        wanted = limit if slow else self._wanted(limit, came)
        came_at_all = False
        while True:
            got = await self._fetch(wanted, 0.0 if came else timeout_seconds)
            came_at_all = came_at_all or bool(got)
            is_full = sum(map(len, got)) >= wanted
            self._partitions = _alike(got) if is_full else 1
            for each in got:
                self._last = key = (each.topic, each.partition)
                came[key] = came[key].then(each) if key in came else each
            sizes = [len(each) for each in came.values()]
            waits = is_full and self._keeps and not slow
            if not waits or max(sizes) >= NEARLY * limit or sum(sizes) >= MOST:
                break
            wanted = self._wanted(limit, came)
        if not waits or sum(sizes) >= MOST + limit:
            cut = [part for each in came.values() for part in _cut(each, limit)]
            return Gathered(cut, {}, came_at_all)
        return Gathered(*_divided(came, partials, limit, now), came_at_all)

    def _wanted(self, limit: int, came: Mapping[TopicPartition, Records]) -> int:
        """A batch of each; or what the one that came last lacks, so that it need not be cut."""
        if self._partitions == 1:
            return -len(came.get(self._last, ())) % limit or limit
        of_each = limit if self._keeps else int(FILL * limit)
        return max(limit, min(of_each * self._partitions, MOST))


def _divided(
    came: Mapping[TopicPartition, Records],
    partials: Mapping[TopicPartition, Partial],
    limit: int,
    now: float,
) -> tuple[list[Records], dict[TopicPartition, Partial]]:
    """What goes, and what waits for more of its partition."""
    going, waiting = list[Records](), dict[TopicPartition, Partial]()
    for key, records in came.items():
        since = partials[key].since if key in partials and len(records) < limit else now
        *whole, last = _cut(records, limit)
        going += whole
        if len(last) < NEARLY * limit and now - since < WAIT_SECONDS:
            waiting[key] = Partial(last, since)
        else:
            going.append(last)
    return going, waiting


def _alike(got: Sequence[Records]) -> int:
    """Of how many partitions it is, if of all of them alike."""
    sizes = [len(records) for records in got]
    return round(sum(sizes) / max(sizes))


def _rising(records: Records) -> list[Records]:
    """Cut where an offset falls: decisions look at a batch's first one alone.

    librdkafka handed over 1,414 records of a partition from before a seek (2.16, 2 of some 300 runs
    on a topic fetched ahead). Of these 414 were seen to lie below the position, and others ran.
    """
    offsets = records.offsets()
    if offsets[-1] - offsets[0] == len(offsets) - 1:
        return [records]
    falls = (np.diff(offsets) <= 0).nonzero()[0] + 1
    if not len(falls):
        return [records]
    ends = (0, *falls.tolist(), len(offsets))
    return [records.part(start, stop) for start, stop in pairwise(ends)]


def _cut(records: Records, limit: int) -> list[Records]:
    if len(records) <= limit:
        return [records]
    return [records.part(at, at + limit) for at in range(0, len(records), limit)]
