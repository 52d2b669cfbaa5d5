"""What a partition waits for: whether it is paused, goes on, or has nothing to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from effectonce.errors import StoreError, StoreUnavailable
from effectonce.owned import Owned, Stage
from effectonce.ports import Records

END_ASKED_SECONDS: Final = 0.1
"""As long as a poll that brings nothing."""


def was_refused(owned: Owned) -> bool:
    """The store will not take its commit: sent again each turn, it was told as often (seen)."""
    error = owned.error
    refused = isinstance(error, StoreError) and not isinstance(error, StoreUnavailable)
    return owned.stage is Stage.STOPPED and refused


def waits(owned: Owned) -> bool:
    """Something must come first, so no more records are asked for."""
    return owned.stage is Stage.OPENING or (
        owned.stage is Stage.RUNNING and bool(owned.held or owned.unanswered)
    )


def is_full(owned: Owned) -> bool:
    """No more records may come in, and time alone does not change that."""
    return owned.lanes is not None and not owned.unanswered and not owned.lanes.room()


def is_to_pause(owned: Owned, held: int) -> bool:
    """Kafka is its buffer; `held` is how many records its lanes may have in memory."""
    if owned.lanes is not None and owned.lanes.is_full(held, paused=owned.paused):
        return True
    return owned.stage is Stage.STOPPED or waits(owned)


def has_due(owned: Owned) -> bool:
    """It goes on at `due`."""
    return waits(owned) and not is_full(owned)


def is_alone(asked: Owned, partitions: Iterable[Owned], held: int) -> bool:
    """Whether the one batch of `asked` is all that there is to be seen to.

    The others are decided, resumed, and their commits sent again once nothing is held here: while
    more is fetched each time, they would wait in vain (seen: until the whole backlog was done).
    """
    others = [owned for owned in partitions if owned is not asked]
    owed = any(o.held or o.unanswered or o.paused != is_to_pause(o, held) for o in others)
    return len(asked.held) == 1 and not asked.paused and not owed


def may_go_on(owned: Owned, now: float) -> bool:
    """Its records are decided now.

    Not while it is to begin anew: records may be missing between the position and those that are
    held (of lanes that were broken off with the store down, the ones behind them ran, seen).
    """
    if owned.stage is not Stage.RUNNING or owned.anew or owned.dropped:
        return False
    return not owned.unanswered and owned.due <= now


def take(owned: Owned, limit: int) -> Records:
    """Its next records; such as came for a run with larger batches are cut."""
    records = owned.held.popleft()
    if len(records) > limit:
        owned.held.appendleft(records.part(limit))
        records = records.part(0, limit)
    return records


def in_turn(partitions: Iterable[Owned], first: Owned | None) -> list[Owned]:
    """All of them, in the order in which they are seen to."""
    return sorted(partitions, key=lambda owned: owned is not first) if first else list(partitions)


def following(partitions: Iterable[Owned], first: Owned, now: float) -> Owned | None:
    """Whose records are decided next, as it looks now."""
    return next((o for o in in_turn(partitions, first) if o.held and may_go_on(o, now)), None)


def owes(owned: Owned) -> bool:
    """Something of what was fetched waits here, or is to come again."""
    if owned.stage is not Stage.RUNNING or owned.held or owned.unsent is not None:
        return True
    return owned.partial is not None or owned.anew or owned.dropped


def asks_end(owned: Owned, now: float, *, drained: bool) -> bool:
    """Whether the client is asked for its position: seldom while records come, for 20 us.

    But then too: they may all be another partition's, for ever (seen).
    """
    if owned.lanes is not None and len(owned.lanes.lanes):
        return False
    if not drained and now - owned.end_asked < END_ASKED_SECONDS:
        return False
    owned.end_asked = now
    return True


def is_idle(owned: Owned, now: float, after_seconds: float) -> bool:
    """Nothing has come, and nothing was heard of the store, for so long."""
    settled = not owned.held and owned.partial is None and owned.unsent is None
    settled = settled and (owned.lanes is None or not len(owned.lanes.lanes))
    return settled and now - owned.settled_at >= after_seconds and may_go_on(owned, now)
