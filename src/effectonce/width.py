"""How much is asked of the client at once, so that what comes of each partition is a whole batch.

A batch is of one partition: it is decided, handed over and committed by itself, at a cost of its
own whatever its size. The client hands over what it has in the order in which it came: live a
little of each partition, behind a backlog thousands of one, then of the next. So

    where a full poll came from several partitions, the next one asks for as many batches;
    where the last batch came in part, its rest is asked for at once, if there is any;
    what is longer than a batch is cut.

Of a backlog in four partitions, batches of 1000 were 771 records each before the second line was
there, and those of mixed records, of 500, 125 before the first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from effectonce.ports import Records, TopicPartition

Fetch: TypeAlias = Callable[[int, float], Awaitable[Sequence[Records]]]

FILL: Final = 0.85
"""Of a batch for each partition: shares differ, and what is cut in two has gained nothing."""
SHORT: Final = 0.1
"""Of a batch: for so few records that it lacks, a poll is not worth it."""
MOST: Final = 4_000
"""Records at once, since they are no longer in the client's own bounds."""
SLOW_SECONDS: Final = 0.05
"""Handlers that take longer for what a poll brought are what costs: a batch of its own is 0.2 ms.
Then a partition should not wait for the others (with 1 s here, one whose owners were killed every
other second did not advance for twenty)."""


class Width:
    """One consumer's polls."""

    def __init__(self, fetch: Fetch, monotonic: Callable[[], float]) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._partitions = 1
        self._polled_at = 0.0

    async def gather(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        """What is there, in batches of `limit` at most; only the first record is waited for."""
        now = self._monotonic()
        slow, self._polled_at = now - self._polled_at > SLOW_SECONDS, now
        wide = max(limit, min(int(FILL * limit * self._partitions), MOST))
        wanted = limit if slow or limit == 1 else wide
        got = await self._fetch(wanted, timeout_seconds)
        came = {(each.topic, each.partition): each for each in got}
        is_full = sum(map(len, got)) >= wanted
        self._partitions = len(got) if is_full else 1
        while is_full and not slow:
            wanted = _missing(came, limit)
            if not wanted:
                break
            got = await self._fetch(wanted, 0.0)
            is_full = sum(map(len, got)) >= wanted
            for each in got:
                key = (each.topic, each.partition)
                before = came.pop(key, None)  # what came last stands last
                came[key] = each if before is None else before.then(each)
        return [part for each in came.values() for part in _cut(each, limit)]


def _missing(came: dict[TopicPartition, Records], limit: int) -> int:
    """How many records to ask for more; 0 where the batch that came last is whole, or nearly."""
    sizes = [len(records) for records in came.values()]
    missing = -sizes[-1] % limit
    if missing <= SHORT * limit:
        return 0
    if max(sizes) <= 2 * min(sizes):  # mixed: what comes is of all of them
        missing = max(missing, int(FILL * min(-size % limit for size in sizes)) * len(sizes))
    return missing if sum(sizes) + missing <= max(MOST, limit) else 0


def _cut(records: Records, limit: int) -> list[Records]:
    if len(records) <= limit:
        return [records]
    return [records.part(at, at + limit) for at in range(0, len(records), limit)]
