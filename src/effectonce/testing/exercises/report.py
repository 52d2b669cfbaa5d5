"""What came of an exercise: all cases, as a value, in words, or as an AssertionError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from effectonce.testing.exercises.case import Case
from effectonce.testing.exercises.steps import Ending
from effectonce.testing.exercises.words import explain


@dataclass(frozen=True, slots=True)
class Report:
    """All cases, in the order in which their steps come."""

    cases: tuple[Case, ...]
    in_store: bool
    samples: tuple[str, ...]
    fired: Mapping[Ending, int] = field(hash=False, default_factory=dict)
    """How often each ending befell a step."""

    @property
    def findings(self) -> tuple[Case, ...]:
        return tuple(case for case in self.cases if not case.ok)

    @property
    def untried(self) -> tuple[Case, ...]:
        """Cases that did not come about, so that nothing is known of them."""
        return tuple(case for case in self.cases if not case.fired)

    @property
    def ok(self) -> bool:
        """Whether each case came about, and every effect happened exactly once in it."""
        return not (self.findings or self.untried)

    def explain(self) -> str:
        """What went wrong where, in words, and what to do."""
        return explain(self.cases, self.samples, in_store=self.in_store)

    def check(self, *, may_repeat: bool = False) -> Report:
        """Raise AssertionError, with `explain()` as its text, unless all is well; else return self.

        `may_repeat=True`: repeats that the promise allows do no harm on the other side.
        """
        harmful = [case for case in self.findings if not (may_repeat and case.allowed)]
        if harmful or self.untried:
            raise AssertionError(self.explain())
        return self
