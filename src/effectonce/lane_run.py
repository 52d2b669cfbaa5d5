"""The loop of lanes: polls, takes in, starts, settles, and looks to the clock.

    a turn     what is due, one poll, what came in; then endings and starts until the next poll

While something is in a handler a poll does not wait, and comes every few milliseconds; an ending
is answered at once. The client is polled all the time, so no slow handler costs the membership;
one that is past its deadline is cut off as a slow one elsewhere is.
"""

from __future__ import annotations

from typing import Final

from effectonce.arguments import LaneOf
from effectonce.assignment import Assignment
from effectonce.core.order import Order
from effectonce.lane_desk import LaneDesk
from effectonce.once import Once
from effectonce.owned import AsyncPool, Flight
from effectonce.ports import AsyncStore, Clock

POLL_SECONDS: Final = 0.005
"""Between two polls, while handlers run: how late a record may be that finds a lane free."""
IDLE_SECONDS: Final = 0.1
"""A poll without records, where nothing runs."""


class LaneRun:
    """Carries out; holds nothing but what it works with."""

    def __init__(
        self,
        once: Once,
        store: AsyncStore,
        ours: Assignment,
        clock: Clock,
        pool: AsyncPool,
        *,
        lanes: int,
        order: Order,
        lane: LaneOf | None,
        grace_seconds: float = 0.0,
    ) -> None:
        """From here on handlers run side by side, until the assignment ends its lanes.

        `grace_seconds`: what a handler may take that was told that its time is over.
        """
        self._limits = once.limits
        self._grace_seconds = grace_seconds
        self._overdue: Flight | None = None
        self._overdue_since = 0.0
        self._ours = ours
        self._clock = clock
        self._desk = ours.lanes = LaneDesk(
            once, store, clock, ours.desk, ours.partitions, pool,
            lanes=lanes, order=order, lane=lane,
        )  # fmt: skip

    @property
    def escaping(self) -> BaseException | None:
        """What a handler raised that must be let through."""
        return self._desk.escaping

    async def turn(self) -> None:
        """One look around. Raises HandlerTimeout."""
        ours, desk = self._ours, self._desk
        if ours.fatal is not None:
            raise ours.fatal
        await ours.see_to_what_is_due()
        await ours.resend_due()
        await ours.fetch(self._limits.batch, self._patience())
        await desk.admit()
        await desk.start()
        await self._attend()
        await desk.settle()
        await self._cut_off_what_hangs()

    def _patience(self) -> float:
        """How long a poll may wait."""
        if self._desk.flights:
            return 0.0
        due = self._desk.wakes_at()
        return IDLE_SECONDS if due is None else min(IDLE_SECONDS, due - self._clock.monotonic())

    async def _attend(self) -> None:
        """Until the next poll: whatever ends makes room for the next."""
        desk, monotonic = self._desk, self._clock.monotonic
        until = monotonic() + POLL_SECONDS
        while desk.flights and not desk.halted:
            left = until - monotonic()
            if left <= 0 or not await desk.take(left):
                return
            await desk.start()

    async def _cut_off_what_hangs(self) -> None:
        oldest = next(iter(self._desk.flights), None)
        if oldest is None:
            return
        now = self._clock.monotonic()
        if now - oldest.began >= self._limits.handler_timeout_seconds:
            if oldest is not self._overdue:  # where the loop was blocked, it is told only now
                self._overdue, self._overdue_since = oldest, now
            if now - self._overdue_since >= self._grace_seconds:
                await self._ours.leave_at_once(oldest)
        if self._ours.cut is not None:
            raise self._ours.cut

    async def finish(self, seconds: float) -> None:
        """Nothing starts any more: wait for what runs and settle it; the group is kept."""
        desk, ours = self._desk, self._ours
        desk.halted = True
        until = self._clock.monotonic() + seconds
        while desk.flights and ours.cut is None and self._clock.monotonic() < until:
            await ours.tend()
            await desk.take(POLL_SECONDS)
        if ours.cut is None:
            await ours.resend_due()
            await desk.drain(ours.partitions(), 0.0)
        desk.was_waited_for = True

    def broken_off(self) -> None:
        """Something was raised in the middle: whatever was taken in may have had its effect."""
        self._desk.halted = True
        for owned in self._ours.partitions():
            if owned.lanes is not None:
                owned.attempt_offset = max(owned.attempt_offset, owned.lanes.next)
            owned.dropped = True  # records may be missing between those that were taken in
