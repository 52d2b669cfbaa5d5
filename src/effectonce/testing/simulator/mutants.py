"""Deliberate breakages, each named after the rule it breaks; every one must be caught.

A mutant that survives means that a test or a fault is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from unittest.mock import patch

import numpy as np

import effectonce.asking as asking
import effectonce.begin as begin
import effectonce.core.generation as generation
import effectonce.core.settle as settle
import effectonce.core.start as start
import effectonce.desk as desk
from effectonce.assignment import Assignment
from effectonce.begin import Beginner
from effectonce.core.plan import Decision, Plan
from effectonce.desk import Desk
from effectonce.event import Work
from effectonce.model import Applied, Known, OnExisting, Opened, Stale, Unknown
from effectonce.once import Once
from effectonce.ports import Reach
from effectonce.testing.simulator import disk
from effectonce.testing.simulator.breaking import (
    Mutant,
    all_done,
    nothing,
    position,
    some_markers,
    swap,
    takes_for_applied,
    to_the_end,
)
from effectonce.testing.simulator.disk import Disk, SimSharedStore, SimStore
from effectonce.testing.simulator.mutants_of_lanes import MUTANTS_OF_LANES
from effectonce.testing.simulator.process import SimClient
from effectonce.testing.simulator.world import Mode, Report, attempt
from effectonce.width import Gathered


def _moved(by: int) -> Callable[[Any, Any], Any]:
    return lambda c, _: replace(c, position=replace(c.position, next=c.position.next + by))


def _plan(change: Callable[[Plan, Any], Plan]) -> Callable[[Any], Any]:
    def make(real: Any) -> Any:
        return lambda columns, *rest: change(real(columns, *rest), columns)

    return make


def _runs(wanted: Decision) -> Callable[[Plan, Any], Plan]:
    """Records of that decision run."""

    def change(plan: Plan, columns: Any) -> Plan:
        del columns
        decisions = plan.decisions.copy()
        decisions[decisions == wanted] = Decision.RUN
        size = plan.size
        leans = {} if wanted is Decision.LEAN else plan.leans
        return replace(plan, decisions=decisions, leans=leans,
                       runs=np.flatnonzero(decisions[:size] <= Decision.UNPROTECTED))  # fmt: skip

    return change


def _forget_last(plan: Plan, columns: Any) -> Plan:
    del columns
    return replace(plan, runs=plan.runs[:-1]) if len(plan.runs) > 1 else plan


def _judge_without(answer: type) -> Callable[[Any], Any]:
    def make(real: Any) -> Any:
        def broken(commit: Any, row: Any) -> Any:
            said = real(commit, row)
            return None if isinstance(said, answer) and row is not None else said

        return broken

    return make


def _begin(change: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A start whose decision is changed."""

    def make(real: Any) -> Any:
        def broken(situation: Any, policy: Any) -> Any:
            decided = real(situation, policy)
            return change(decided, situation) if isinstance(decided, start.Begin) else decided

        return broken

    return make


def _shifted(by: int) -> Callable[[Any, Any], Any]:
    def change(decided: Any, s: Any) -> Any:
        del s
        new = max(decided.position.next + by, 0)
        return replace(decided, position=replace(decided.position, next=new), write=True)

    return change


def _trust_kafka(decided: Any, s: Any) -> Any:
    if s.row is None or s.committed is None or s.committed.offset == decided.position.next:
        return decided
    at = s.committed.offset
    return replace(decided, position=replace(decided.position, next=at), write=True)


def _at_the_end(decided: Any, s: Any) -> Any:
    return replace(decided, position=replace(decided.position, next=s.log.end), write=True)


def _no_write(decided: Any, s: Any) -> Any:
    del s
    return replace(decided, write=False)


def _resend_anew(real: Any) -> Any:
    del real

    def resend(self: Any, owned: Any) -> None:
        owned.held.appendleft(owned.unsent.task.records)
        owned.unsent = None

    return resend


def _drop_unsent(real: Any) -> Any:
    del real

    def resend(self: Any, owned: Any) -> None:
        owned.unsent = None

    return resend


def _reopened(real: Any) -> Any:
    """A commit without an answer is given up, and the partition begins anew."""

    async def send(self: Any, task: Any, commit: Any) -> None:
        await real(self, task, commit)
        owned = task.owned
        if owned.unsent is not None:
            due = owned.due
            owned.reopen()
            owned.due = due

    return send


def _not_sent_again(real: Any) -> Any:
    """What has no answer is not sent again as the partition is given up."""

    async def release(self: Any, owned: Any, reason: str) -> None:
        owned.unsent = None
        await real(self, owned, reason)

    return release


def _waits_for_nothing(real: Any) -> Any:
    """What waits for a whole batch is forgotten."""

    def hold(self: Any, ours: Any) -> None:
        real(replace(self, partials={}), ours)

    return hold


def _not_if_leaving(real: Any) -> Any:
    async def conclude(self: Any, task: Any) -> None:
        if not task.owned.leaving:
            await real(self, task)

    return conclude


def _same_horizon(real: Any) -> Any:
    return lambda p, *rest: replace(real(p, *rest), horizon=p.horizon)


def _follows_whatever(real: Any) -> Any:
    """A commit need not follow the one that it was made after."""

    def broken(commit: Any, row: Any) -> Any:
        return real(commit if row is None else replace(commit, follows=row.commit_id), row)

    return broken


def _behind_dropped(real: Any) -> Any:
    del real
    return lambda self, task, resolved: None


def _ignored(real: Any) -> Any:
    """A raise counts as nothing to do."""

    def failed(self: Any, row: int, error: BaseException) -> None:
        del error
        self.marks[row] = 2

    del real
    return failed


def _same_epoch(real: Any) -> Any:
    """Ownership is not counted."""

    def opened(self: Any, at: Any, topic_id: bytes, above: int = 0) -> Opened:
        answer = real(self, at, topic_id, above)
        self.positions[at] = replace(self.positions[at], epoch=1)
        return Opened(answer.row, 1)

    return opened


def _kept_writes(real: Any) -> Any:
    """A failed event's writes are kept."""

    def leave(self: Any, row: int) -> None:
        tx = self._open.pop(row, None)
        if tx is not None and self.effects is not None:
            self._left.add(row)
            self.effects.keep(tx)

    del real
    return leave


def _none_seen(real: Any) -> Any:
    def known(self: Any, at: Any, keys: Any, run: int) -> Known:
        answer: Known = real(self, at, keys, run)
        return replace(answer, seen=np.zeros_like(answer.seen))

    return known


def _all_seen(real: Any) -> Any:
    def known(self: Any, at: Any, keys: Any, run: int) -> Known:
        answer: Known = real(self, at, keys, run)
        seen = answer.seen.copy()
        seen[-1:] = True
        return replace(answer, seen=seen)

    return known


def _always(real: Any) -> Any:
    del real
    return lambda *_: True


def _always_yes(real: Any) -> Any:
    def send(self: Any, commit: Any) -> Callable[[], object]:
        receipt = real(self, commit)
        return lambda: (receipt(), Applied())[1]

    return send


def _without(**fields: Any) -> Callable[[Any, Any], Any]:
    return lambda c, _: replace(c, **fields)


_S, _R = Mode.OUTSIDE, Reach.SHARED
NO_FENCE: Final = swap(disk, "judge", _judge_without(Stale))

MUTANTS: Final = (
    Mutant("skip the epoch check", NO_FENCE, reach=_R),
    Mutant("skip the epoch check, outside", NO_FENCE, mode=_S, reach=_R),
    Mutant("epoch is never bumped", swap(Disk, "open", _same_epoch), reach=_R),
    Mutant("no marker", swap(desk, "settle", position(_without(markers=None)))),
    Mutant("no marker, outside", swap(desk, "settle", position(_without(markers=None))), mode=_S),
    Mutant("no effects in the commit", swap(desk, "settle", position(_without(writes=())))),
    Mutant("position one too far", swap(desk, "settle", position(_moved(1)))),
    Mutant("position ten too far", swap(desk, "settle", position(_moved(10)))),
    Mutant("position one short", swap(desk, "settle", position(_moved(-1)))),
    Mutant("commit past a gap", swap(desk, "settle", position(to_the_end))),
    Mutant("commit past a gap, outside", swap(desk, "settle", position(to_the_end)), mode=_S),
    Mutant("repeats run", swap(desk, "plan", _plan(_runs(Decision.REPEAT))), mode=_S),
    Mutant("drop the twin rule", swap(desk, "plan", _plan(_runs(Decision.LEAN)))),
    Mutant("drop the twin rule, outside", swap(desk, "plan", _plan(_runs(Decision.LEAN))), mode=_S),
    Mutant("the last to run is forgotten", swap(desk, "plan", _plan(_forget_last))),
    Mutant("look-ups see nothing", swap(Disk, "known", _none_seen), mode=_S),
    Mutant("look-ups see what is new", swap(Disk, "known", _all_seen)),
    Mutant("trust Kafka over the store", swap(begin, "start", _begin(_trust_kafka))),
    Mutant("begin one late", swap(begin, "start", _begin(_shifted(1)))),
    Mutant("begin ten late", swap(begin, "start", _begin(_shifted(10)))),
    Mutant("begin at the end", swap(begin, "start", _begin(_at_the_end))),
    Mutant("a start's row is not written", swap(begin, "start", _begin(_no_write))),
    Mutant(
        "a recreated topic is not seen",
        swap(start, "_same_topic", lambda real: lambda one, other: True),
    ),
    Mutant("topic ids are never compared", swap(Assignment, "_compare", nothing)),
    Mutant("a lost position is not heard", swap(Assignment, "on_position_gone", nothing)),
    Mutant("unknown is taken for applied", swap(SimStore, "commit", takes_for_applied(Unknown))),
    Mutant(
        "unknown is taken for applied, outside",
        swap(SimStore, "commit", takes_for_applied(Unknown)),
        mode=_S,
    ),
    Mutant(
        "stale is taken for applied", swap(SimStore, "commit", takes_for_applied(Stale)), reach=_R
    ),
    Mutant("unknown is planned anew", swap(Desk, "resend", _resend_anew), mode=_S),
    Mutant("what waits for a whole batch is forgotten", swap(Gathered, "hold", _waits_for_nothing)),
    Mutant("unknown is forgotten", swap(Desk, "resend", _drop_unsent)),
    Mutant("unknown begins anew", swap(Desk, "_send", _reopened), mode=_S),
    Mutant(
        "unknown is not sent again at a release",
        swap(Assignment, "release", _not_sent_again),
        mode=_S,
    ),
    Mutant("forget pending keys", swap(Desk, "_pending", nothing), mode=_S, reach=_R),
    Mutant("whom a commit follows is ignored", swap(disk, "judge", _follows_whatever), reach=_R),
    Mutant("stale is not reopened", swap(Desk, "_stale", nothing), reach=_R),
    Mutant("records behind are dropped", swap(Desk, "_behind", _behind_dropped)),
    Mutant("a failure counts as done", swap(Work, "failed", all_done)),
    Mutant("a failure counts as done, outside", swap(Work, "failed", all_done), mode=_S),
    Mutant("a failure counts as ignored", swap(Work, "failed", _ignored)),
    Mutant("a failed event's writes stay", swap(Work, "leave", _kept_writes)),
    Mutant("marks behind a gap are left out", swap(desk, "settle", position(some_markers))),
    Mutant(
        "an existing marker is no conflict",
        lambda: patch.object(Once, "on_existing", property(lambda self: OnExisting.KEEP_FIRST)),
        reach=_R,
    ),
    Mutant("one generation is kept", swap(generation, "KEPT", lambda real: 1)),
    Mutant("the horizon never rises", swap(settle, "turn", _same_horizon)),
    Mutant("the horizon never rises, outside", swap(settle, "turn", _same_horizon), mode=_S),
    Mutant(
        "expire by wall clock",
        swap(settle, "advance_log_time", lambda real: lambda log, record, wall, last: wall),
    ),
    Mutant("the lock is not given up", swap(SimStore, "release", nothing)),
    Mutant("a revoke settles nothing", swap(Assignment, "give_up", nothing)),
    Mutant(
        "what ends during a revoke is not settled",
        swap(Desk, "conclude", _not_if_leaving),
        mode=_S,
    ),
    Mutant("the start never seeks", swap(SimClient, "seek", nothing)),
    Mutant("a locked store is not asked again", swap(Beginner, "_open", nothing)),
    Mutant("the next records go before the answer", swap(Desk, "_goes_on", _always), reach=_R),
    Mutant("the next effects go before it", swap(Desk, "_goes_on", _always), mode=_S, reach=_R),
    Mutant(
        "a look-up knows nothing of what left behind it",
        swap(disk, "behind", lambda real: lambda known, keys, markers: known),
        mode=_S,
        reach=_R,
    ),
    Mutant(
        "a look-up is believed however old it is",
        swap(asking, "FRESH_SECONDS", lambda real: 1e9),
        mode=_S,
        reach=_R,
    ),
    Mutant("any answer is a yes", swap(SimSharedStore, "send", _always_yes), mode=_S, reach=_R),
    *MUTANTS_OF_LANES,
)


def kill(mutant: Mutant, first: int, bound: int) -> Report | None:
    """The first of `bound` seeds that catches it; None if it survives."""
    with mutant.broken():
        for seed in range(first, first + bound):
            report = attempt(seed, mutant.mode, mutant.reach)
            if report.violations:
                return report
    return None


__all__ = ["MUTANTS", "Mutant", "kill"]
