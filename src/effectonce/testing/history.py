"""A random history of one store beside the plainest model of it, compared at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final, TypeAlias

from effectonce.model import (
    Already,
    Applied,
    Commit,
    Conflict,
    OnExisting,
    Outcome,
    Partition,
    Stale,
    Write,
)
from effectonce.ports import Store
from effectonce.testing.owner import UNSTORABLE, VALUE, Owner, next_generation

NUMBERS: Final = 200
"""Keys to draw from: few, so that repeats are common."""

Marked: TypeAlias = tuple[int, int, Outcome | None]
"""Generation, offset and outcome of a marker."""


@dataclass(slots=True)
class _Model:
    """What one partition must hold: markers by run and number, and the user's rows."""

    owner: Owner
    marked: dict[tuple[int, int], Marked] = field(default_factory=dict)
    rows: dict[bytes, bytes] = field(default_factory=dict)
    last: Commit | None = None

    def has(self, number: int) -> bool:
        return (self.owner.position.run, number) in self.marked


class History:
    """Two partitions of two scopes; `reopened` is what a restart makes of the store."""

    def __init__(self, store: Store, reopened: Callable[[Store], Store], seed: int) -> None:
        self._store = store
        self._reopened = reopened
        self._random = Random(seed)
        self._models = [
            _Model(Owner.open(store, Partition(f"scope-{n}", "group", "topic", n)))
            for n in range(2)
        ]

    def run(self, steps: int) -> None:
        commits = [self._commit] * 8
        others = [self._send_again, self._send_stale, self._turn, self._rerun, self._reopen]
        for _ in range(steps):
            self._random.choice([*commits, *others])(self._random.choice(self._models))
            for model in self._models:
                self._compare(model)

    # -- steps --

    def _commit(self, model: _Model) -> None:
        owner, draw = model.owner, self._random
        numbers = draw.sample(range(NUMBERS), draw.randint(0, 12))
        outcomes = {
            row: draw.choice([VALUE, UNSTORABLE])
            for row in range(len(numbers))
            if draw.random() < 0.3
        }
        on_existing = draw.choice(list(OnExisting))
        writes = self._writes() if self._store.traits.in_store_effects else ()
        commit = owner.prepared(numbers, outcomes=outcomes, writes=writes, on_existing=on_existing)
        known = tuple(row for row, number in enumerate(numbers) if model.has(number))
        result = owner.send(commit)
        if known and on_existing is OnExisting.REFUSE:
            assert result == Conflict(known)
            return
        assert result == Applied(existing=len(known))
        for row, number in enumerate(numbers):
            if row not in known:
                model.marked[commit.position.run, number] = (
                    commit.position.generations[-1].generation,
                    owner.position.next + row,
                    outcomes.get(row),
                )
        self._applied(model, commit)

    def _send_again(self, model: _Model) -> None:
        if model.last is not None:
            assert model.owner.send(model.last) == Already()

    def _send_stale(self, model: _Model) -> None:
        commit = model.owner.prepared([0], writes=((b"stale", b""),), on_existing=OnExisting.REFUSE)
        position = replace(commit.position, epoch=commit.position.epoch - 1)
        for stale in (
            replace(commit, position=position),
            replace(commit, follows=bytes(15) + b"?"),
        ):
            assert model.owner.send(stale) == Stale()

    def _turn(self, model: _Model) -> None:
        current = model.owner.position.generations[-1].generation + self._random.choice([1, 1, 5])
        floor = max(model.owner.position.floor, current - 2)
        commit = model.owner.prepared(to=next_generation(model.owner.position, current, floor))
        assert model.owner.send(commit) == Applied()
        model.marked = {key: m for key, m in model.marked.items() if m[0] >= floor}
        self._applied(model, commit)

    def _rerun(self, model: _Model) -> None:
        position = model.owner.position
        commit = model.owner.prepared(to=replace(position, run=position.run + 1))
        assert model.owner.send(commit) == Applied()
        self._applied(model, commit)

    def _reopen(self, model: _Model) -> None:
        match self._random.randrange(3):
            case 0:
                self._store = self._reopened(self._store)
                opened = self._models
            case 1:
                self._store.release(model.owner.at)
                opened = [model]
            case _:
                opened = [model]
        for each in opened:
            before = each.owner.position
            each.owner = Owner.open(self._store, each.owner.at)
            assert replace(each.owner.position, epoch=before.epoch) == before

    # -- helpers --

    def _writes(self) -> tuple[Write, ...]:
        keys = self._random.sample(range(30), self._random.randint(0, 4))
        return tuple(
            (b"row-%d" % key, self._random.choice([None, b"", self._random.randbytes(9)]))
            for key in keys
        )

    def _applied(self, model: _Model, commit: Commit) -> None:
        model.owner.position = commit.position
        model.last = commit
        for key, value in commit.writes:
            model.rows.pop(key, None)
            if value is not None:
                model.rows[key] = value

    def _compare(self, model: _Model) -> None:
        owner = model.owner
        assert owner.seen(*range(NUMBERS)) == [model.has(n) for n in range(NUMBERS)]
        number = self._random.randrange(NUMBERS)
        if model.has(number):
            marker = owner.marker(number)
            found = (marker.generation, marker.offset, marker.outcome)
            assert found == model.marked[owner.position.run, number]
        if self._store.traits.in_store_effects:
            assert owner.rows() == sorted(model.rows.items())
