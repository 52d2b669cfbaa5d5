"""How a rule is broken on purpose: what mutants are made of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from inspect import iscoroutinefunction
from typing import Any
from unittest.mock import patch

from effectonce.model import Applied
from effectonce.ports import Reach
from effectonce.stores.commits import select
from effectonce.testing.simulator.world import Mode

Break = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One breakage, and where it can be seen."""

    name: str
    broken: Break
    mode: Mode = Mode.IN_STORE
    reach: Reach = Reach.EMBEDDED


def swap(owner: Any, name: str, make: Callable[[Any], Any]) -> Break:
    """Replace `owner.name` by what `make` makes of it."""

    def broken() -> Any:
        real = getattr(owner, name)
        made = make(real)
        plain = iscoroutinefunction(real) and not iscoroutinefunction(made)
        return patch.object(owner, name, awaited(made) if plain else made)

    return broken


def awaited(made: Callable[..., Any]) -> Callable[..., Any]:
    """The same as a coroutine function."""

    async def answers(*args: Any, **named: Any) -> Any:
        return made(*args, **named)

    return answers


def position(commit_field: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """A settle whose commit is changed: `commit_field(commit, columns)` gives the new one."""

    def make(real: Any) -> Any:
        def broken(position: Any, columns: Any, *rest: Any, **named: Any) -> Any:
            commit = real(position, columns, *rest, **named)
            return None if commit is None else commit_field(commit, columns)

        return broken

    return make


def to_the_end(commit: Any, columns: Any) -> Any:
    """The position passes whatever was there."""
    end = int(columns.offsets[-1]) + 1
    return replace(commit, position=replace(commit.position, next=end))


def nothing(real: Any) -> Any:
    """It is not done at all."""
    del real
    return lambda *a, **k: None


def takes_for_applied(answer: type) -> Callable[[Any], Any]:
    """A store's commit whose answers of that kind are good ones."""

    def make(real: Any) -> Any:
        def commit(self: Any, commits: Any) -> Any:
            return [Applied() if isinstance(r, answer) else r for r in real(self, commits)]

        return commit

    return make


def all_done(real: Any) -> Any:
    """A raise counts as done."""

    def failed(self: Any, row: int, error: BaseException) -> None:
        del error
        self.marks[row] = 1

    del real
    return failed


def some_markers(commit: Any, columns: Any) -> Any:
    """Records behind a gap leave no marker, though their effects do."""
    del columns
    m, end = commit.markers, commit.position.next
    if m is None or int(m.offsets[-1]) < end:
        return commit
    return replace(commit, markers=select(m, m.offsets < end))
