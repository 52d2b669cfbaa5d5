"""Look-ups that are sent before it is their records' turn, where the store sends ahead.

    look-up of k+1 | handlers of k | commit of k | look-up of k+2 | handlers of k+1 | ...

So the server looks up while handlers run and records are fetched, and is never waited for by a
client that it waits for: 0.33 of a bare consumer in place of 0.27 (Valkey, batches of 1000). Marks
of the commits that follow are seen to by the store (`SendsAhead.ask`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeAlias

from effectonce.core.plan import Columns
from effectonce.errors import StoreError
from effectonce.identity import Identified
from effectonce.model import Known, Query
from effectonce.ports import AsyncSendsAhead, Clock, Records
from effectonce.values import dataclass

Receipt: TypeAlias = Callable[[], Awaitable[Known | StoreError]]

FRESH_SECONDS: Final = 0.05
"""What others do meanwhile is not in the answer: behind handlers that take longer it is asked
again, else a copy elsewhere would have their time to run unseen."""
MOST: Final = 2
"""Of the records that are decided next, and of those behind them."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Records about to be decided."""

    records: Records
    identified: Identified
    columns: Columns
    receipt: Receipt | None = None
    """They are being looked up, and this brings the answer."""
    at: float = 0.0


class Asking:
    """What was asked of a store that sends ahead; of others nothing is."""

    def __init__(self, ahead: AsyncSendsAhead | None, clock: Clock) -> None:
        self._ahead = ahead
        self._clock = clock
        self._asked: deque[Asked] = deque(maxlen=MOST)

    def find(self, records: Records) -> Asked | None:
        return next((each for each in self._asked if each.records is records), None)

    def ask(self, asked: Asked, run: int) -> Asked:
        """Have them looked up, and keep them until they are taken."""
        assert self._ahead is not None
        now = self._clock.monotonic()  # before it leaves: a freeze may come just behind
        receipt = self._ahead.ask(Query(asked.columns.at, asked.columns.keys, run))
        sent = replace(asked, receipt=receipt, at=now)
        self._asked.append(sent)
        return sent

    def take(self, records: Records) -> Asked | None:
        """What was asked of them; it is asked only once."""
        asked = self.find(records)
        if asked is not None:
            self._asked.remove(asked)
        return asked

    async def answer(self, asked: Asked) -> Known | StoreError | None:
        """What the store knew of them; None: nobody asked, or by now it is too long ago."""
        if asked.receipt is None:
            return None
        known = await asked.receipt()  # on a slow way it may be old only now
        return known if self._clock.monotonic() - asked.at <= FRESH_SECONDS else None

    def forget(self) -> None:
        """A commit goes the ordinary way: what it marks would be called new."""
        self._asked.clear()
