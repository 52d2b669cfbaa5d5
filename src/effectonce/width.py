"""How many records are asked for at once, so that what comes of each partition is worth a batch.

A batch is of one partition: it is decided, handed over and committed by itself, at a cost of its
own whatever its size. Live, a poll brings a little of each partition: 500 records that were four
times 125 took 3,160 ns each in place of 1,800. So where a full poll came from several partitions,
the next one asks for as many batches, and what is longer than a batch is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from effectonce.ports import Records

FILL: Final = 0.85
"""Of a batch for each partition: shares differ, and what is cut in two has gained nothing."""
MOST: Final = 4_000
"""Records at once, since they are no longer in the client's own bounds."""
SLOW_SECONDS: Final = 0.05
"""Handlers that take longer for what a poll brought are what costs: a batch of its own is 0.2 ms.
Then a partition should not wait for the others (with 1 s here, one whose owners were killed every
other second did not advance for twenty)."""


class Width:
    """One consumer's polls."""

    def __init__(self) -> None:
        self._partitions = 1
        self._wanted = 0
        self._polled_at = 0.0

    def wanted(self, limit: int, now: float) -> int:
        """How many to ask for, where a batch has `limit`."""
        slow, self._polled_at = now - self._polled_at > SLOW_SECONDS, now
        wide = int(FILL * limit * self._partitions)
        self._wanted = limit if slow or limit == 1 else max(limit, min(wide, MOST))
        return self._wanted

    def cut(self, got: Sequence[Records], limit: int) -> list[Records]:
        """What came, in batches."""
        is_full = sum(map(len, got)) >= self._wanted
        self._partitions = len(got) if is_full else 1
        return [part for each in got for part in _cut(each, limit)]


def _cut(records: Records, limit: int) -> list[Records]:
    if len(records) <= limit:
        return [records]
    return [records.part(at, at + limit) for at in range(0, len(records), limit)]
