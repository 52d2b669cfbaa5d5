"""Deliberate breakages, each named after the rule it breaks; every one must be caught.

A mutant that survives means that a test or a fault is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from inspect import iscoroutinefunction
from typing import Any, Final
from unittest.mock import patch

import numpy as np

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
from effectonce.stores.commits import select
from effectonce.testing.simulator import disk
from effectonce.testing.simulator.disk import Disk, SimSharedStore, SimStore
from effectonce.testing.simulator.process import SimClient
from effectonce.testing.simulator.world import Mode, Report, attempt

Break = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One breakage, and where it can be seen."""

    name: str
    broken: Break
    mode: Mode = Mode.IN_STORE
    reach: Reach = Reach.EMBEDDED


def _swap(owner: Any, name: str, make: Callable[[Any], Any]) -> Break:
    """Replace `owner.name` by what `make` makes of it."""

    def broken() -> Any:
        real = getattr(owner, name)
        made = make(real)
        plain = iscoroutinefunction(real) and not iscoroutinefunction(made)
        return patch.object(owner, name, _awaited(made) if plain else made)

    return broken


def _awaited(made: Callable[..., Any]) -> Callable[..., Any]:
    async def answers(*args: Any, **named: Any) -> Any:
        return made(*args, **named)

    return answers


def _position(commit_field: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A settle whose commit is changed: `commit_field(commit, columns)` gives the new one."""

    def make(real: Any) -> Any:
        def broken(position: Any, columns: Any, *rest: Any, **named: Any) -> Any:
            commit = real(position, columns, *rest, **named)
            return None if commit is None else commit_field(commit, columns)

        return broken

    return make


def _moved(by: int) -> Callable[[Any, Any], Any]:
    return lambda c, _: replace(c, position=replace(c.position, next=c.position.next + by))


def _to_the_end(commit: Any, columns: Any) -> Any:
    end = int(columns.offsets[-1]) + 1
    return replace(commit, position=replace(commit.position, next=end))


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


def _nothing(real: Any) -> Any:
    del real
    return lambda *a, **k: None


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


def _takes_for_applied(answer: type) -> Callable[[Any], Any]:
    def make(real: Any) -> Any:
        def commit(self: Any, commits: Any) -> Any:
            return [Applied() if isinstance(r, answer) else r for r in real(self, commits)]

        return commit

    return make


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


def _all_done(real: Any) -> Any:
    """A raise counts as done."""

    def failed(self: Any, row: int, error: BaseException) -> None:
        del error
        self.marks[row] = 1

    del real
    return failed


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


def _some_markers(commit: Any, columns: Any) -> Any:
    """Records behind a gap leave no marker, though their effects do."""
    del columns
    m, end = commit.markers, commit.position.next
    if m is None or int(m.offsets[-1]) < end:
        return commit
    return replace(commit, markers=select(m, m.offsets < end))


_S, _R = Mode.OUTSIDE, Reach.SHARED
NO_FENCE: Final = _swap(disk, "judge", _judge_without(Stale))

MUTANTS: Final = (
    Mutant("skip the epoch check", NO_FENCE, reach=_R),
    Mutant("skip the epoch check, outside", NO_FENCE, mode=_S, reach=_R),
    Mutant("epoch is never bumped", _swap(Disk, "open", _same_epoch), reach=_R),
    Mutant("no marker", _swap(desk, "settle", _position(_without(markers=None)))),
    Mutant("no marker, outside", _swap(desk, "settle", _position(_without(markers=None))), mode=_S),
    Mutant("no effects in the commit", _swap(desk, "settle", _position(_without(writes=())))),
    Mutant("position one too far", _swap(desk, "settle", _position(_moved(1)))),
    Mutant("position ten too far", _swap(desk, "settle", _position(_moved(10)))),
    Mutant("position one short", _swap(desk, "settle", _position(_moved(-1)))),
    Mutant("commit past a gap", _swap(desk, "settle", _position(_to_the_end))),
    Mutant("commit past a gap, outside", _swap(desk, "settle", _position(_to_the_end)), mode=_S),
    Mutant("repeats run", _swap(desk, "plan", _plan(_runs(Decision.REPEAT))), mode=_S),
    Mutant("drop the twin rule", _swap(desk, "plan", _plan(_runs(Decision.LEAN)))),
    Mutant(
        "drop the twin rule, outside", _swap(desk, "plan", _plan(_runs(Decision.LEAN))), mode=_S
    ),
    Mutant("the last to run is forgotten", _swap(desk, "plan", _plan(_forget_last))),
    Mutant("look-ups see nothing", _swap(Disk, "known", _none_seen), mode=_S),
    Mutant("look-ups see what is new", _swap(Disk, "known", _all_seen)),
    Mutant("trust Kafka over the store", _swap(begin, "start", _begin(_trust_kafka))),
    Mutant("begin one late", _swap(begin, "start", _begin(_shifted(1)))),
    Mutant("begin ten late", _swap(begin, "start", _begin(_shifted(10)))),
    Mutant("begin at the end", _swap(begin, "start", _begin(_at_the_end))),
    Mutant("a start's row is not written", _swap(begin, "start", _begin(_no_write))),
    Mutant(
        "a recreated topic is not seen",
        _swap(start, "_same_topic", lambda real: lambda one, other: True),
    ),
    Mutant("topic ids are never compared", _swap(Assignment, "_compare", _nothing)),
    Mutant("a lost position is not heard", _swap(Assignment, "on_position_gone", _nothing)),
    Mutant("unknown is taken for applied", _swap(SimStore, "commit", _takes_for_applied(Unknown))),
    Mutant(
        "unknown is taken for applied, outside",
        _swap(SimStore, "commit", _takes_for_applied(Unknown)),
        mode=_S,
    ),
    Mutant(
        "stale is taken for applied", _swap(SimStore, "commit", _takes_for_applied(Stale)), reach=_R
    ),
    Mutant("unknown is planned anew", _swap(Desk, "resend", _resend_anew), mode=_S),
    Mutant("unknown is forgotten", _swap(Desk, "resend", _drop_unsent)),
    Mutant("unknown begins anew", _swap(Desk, "_send", _reopened), mode=_S),
    Mutant(
        "unknown is not sent again at a release",
        _swap(Assignment, "release", _not_sent_again),
        mode=_S,
    ),
    Mutant("forget pending keys", _swap(Desk, "_pending", _nothing), mode=_S, reach=_R),
    Mutant("whom a commit follows is ignored", _swap(disk, "judge", _follows_whatever), reach=_R),
    Mutant("stale is not reopened", _swap(Desk, "_stale", _nothing), reach=_R),
    Mutant("records behind are dropped", _swap(Desk, "_behind", _behind_dropped)),
    Mutant("a failure counts as done", _swap(Work, "failed", _all_done)),
    Mutant("a failure counts as done, outside", _swap(Work, "failed", _all_done), mode=_S),
    Mutant("a failure counts as ignored", _swap(Work, "failed", _ignored)),
    Mutant("a failed event's writes stay", _swap(Work, "leave", _kept_writes)),
    Mutant("marks behind a gap are left out", _swap(desk, "settle", _position(_some_markers))),
    Mutant(
        "an existing marker is no conflict",
        lambda: patch.object(Once, "on_existing", property(lambda self: OnExisting.KEEP_FIRST)),
        reach=_R,
    ),
    Mutant("one generation is kept", _swap(generation, "KEPT", lambda real: 1)),
    Mutant("the horizon never rises", _swap(settle, "turn", _same_horizon)),
    Mutant("the horizon never rises, outside", _swap(settle, "turn", _same_horizon), mode=_S),
    Mutant(
        "expire by wall clock",
        _swap(settle, "advance_log_time", lambda real: lambda log, record, wall, last: wall),
    ),
    Mutant("the lock is not given up", _swap(SimStore, "release", _nothing)),
    Mutant("a revoke settles nothing", _swap(Assignment, "give_up", _nothing)),
    Mutant(
        "what ends during a revoke is not settled",
        _swap(Desk, "conclude", _not_if_leaving),
        mode=_S,
    ),
    Mutant("the start never seeks", _swap(SimClient, "seek", _nothing)),
    Mutant("a locked store is not asked again", _swap(Beginner, "_open", _nothing)),
    Mutant("the next records go before the answer", _swap(Desk, "_goes_on", _always), reach=_R),
    Mutant("the next effects go before it", _swap(Desk, "_goes_on", _always), mode=_S, reach=_R),
    Mutant("any answer is a yes", _swap(SimSharedStore, "send", _always_yes), mode=_S, reach=_R),
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
