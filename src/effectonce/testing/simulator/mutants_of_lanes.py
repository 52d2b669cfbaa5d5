"""Deliberate breakages of what keeps lanes in order, and of what they settle."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from heapq import heappush
from typing import Any, Final
from unittest.mock import patch

import effectonce.core.lanes as core_lanes
import effectonce.desk as desk
import effectonce.lane_desk as lane_desk
from effectonce.core.lanes import Lanes
from effectonce.core.order import Queues
from effectonce.core.stretch import Stretch
from effectonce.event import Work
from effectonce.lane_desk import LaneDesk
from effectonce.model import Unknown
from effectonce.owned import Owned
from effectonce.ports import Reach
from effectonce.testing.simulator.breaking import (
    Break,
    Mutant,
    all_done,
    nothing,
    position,
    some_markers,
    swap,
    takes_for_applied,
    to_the_end,
)
from effectonce.testing.simulator.disk import SimStore
from effectonce.testing.simulator.world import Mode


def _head_at_once(real: Any) -> Any:
    """Nobody stands behind anybody."""
    return lambda self, row, lane: real(self, row, None)


def _lets_go(real: Any) -> Any:
    """A failed record lets the next of its lane go."""

    def failed(self: Any, row: int, now: float, chance: float) -> Any:
        wait = real(self, row, now, chance)
        following = self._queues.leave(row)
        if following is not None:
            heappush(self._ready, following)
        return wait

    return failed


def _not_in_front(real: Any) -> Any:
    """A copy of what runs in front runs beside it."""
    return lambda *arguments: real(*arguments[:-1])


_DESKS: Final[dict[int, LaneDesk]] = {}


def _commits_in_between(real: Any) -> Any:
    """A commit is answered between the look-up and what is decided by it."""

    async def look_up(self: Any, owned: Any, columns: Any) -> Any:
        known = await real(self, owned, columns)
        desk = _DESKS.get(id(self))
        if desk is not None and owned.lanes is not None:
            await desk.settle([owned])
        return known

    return look_up


def _stale_look_up() -> AbstractContextManager[object]:
    """`asked` says nothing: what was asked before a commit counts after it."""
    return _Both(
        patch.object(desk.Desk, "look_up", _commits_in_between(desk.Desk.look_up)),
        patch.object(LaneDesk, "__init__", _remembered(LaneDesk.__init__)),
        patch.object(Lanes, "commits", property(lambda self: 0)),
        patch.object(Stretch, "commits", _Never(), create=True),
    )


def _remembered(real: Any) -> Any:
    def init(
        self: Any, once: Any, store: Any, clock: Any, desk: Any, *rest: Any, **named: Any
    ) -> None:
        real(self, once, store, clock, desk, *rest, **named)
        _DESKS[id(desk)] = self

    return init


class _Never:
    """A count that stays at 0."""

    def __get__(self, instance: object, owner: object = None) -> int:
        return 0

    def __set__(self, instance: object, value: int) -> None:
        pass


class _Both(AbstractContextManager[object]):
    """Several patches as one."""

    def __init__(self, *patches: Any) -> None:
        self._patches = patches

    def __enter__(self) -> object:
        for each in self._patches:
            each.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for each in reversed(self._patches):
            each.__exit__(*error)
        _DESKS.clear()


def _not_tried(real: Any) -> Any:
    """A retry in place is not told that it is one."""

    def try_again(self: Any, row: int) -> Any:
        error = real(self, row)
        self.tried.clear()
        return error

    return try_again


def _as_many_as_may(real: Any) -> Any:
    return lambda partitions, lanes, now: real(partitions, 1_000, now)


def _never(real: Any) -> Any:
    del real
    return lambda *_: False


def _begins_anew() -> AbstractContextManager[object]:
    """A partition need not wait for its handlers."""
    return _Both(
        patch.object(Owned, "is_unsettled", property(lambda self: False)),
        patch.object(LaneDesk, "is_flying", lambda self, at: False),
    )


def _of(name: str, broken: Break, reach: Reach = Reach.EMBEDDED) -> Mutant:
    return Mutant(f"lanes: {name}", broken, Mode.LANES, reach)


_R: Final = Reach.SHARED

MUTANTS_OF_LANES: Final = (
    _of("none waits for the one in front", swap(Queues, "enter", _head_at_once)),
    _of("a failed record lets the next go", swap(Lanes, "failed", _lets_go)),
    _of("a copy of what runs runs too", swap(core_lanes, "plan", _not_in_front)),
    _of("a look-up counts after a commit", _stale_look_up),
    _of("marks behind a gap are left out", swap(desk, "settle", position(some_markers))),
    _of("position past a gap", swap(desk, "settle", position(to_the_end))),
    _of("no marker", swap(desk, "settle", position(lambda c, _: replace(c, markers=None)))),
    _of("a failure counts as done", swap(Work, "failed", all_done)),
    _of("a retry is not told", swap(Work, "try_again", _not_tried)),
    _of("what may have run is not noted", swap(LaneDesk, "_in_doubt", nothing)),
    _of("more run at once than lanes", swap(lane_desk, "deal", _as_many_as_may)),
    _of("a late handler is not waited for", swap(LaneDesk, "is_flying", _never)),
    _of("begins anew beside its handlers", _begins_anew, _R),
    _of("a revoke waits for nothing", swap(LaneDesk, "drain", nothing)),
    _of("keys of others are new", swap(LaneDesk, "_pending", nothing), _R),
    _of("unknown is taken for applied", swap(SimStore, "commit", takes_for_applied(Unknown))),
)
