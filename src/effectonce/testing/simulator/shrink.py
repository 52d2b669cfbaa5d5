"""The shortest schedule found that still breaks the same invariant.

    faults    none at all; else halves, quarters, … are left out while it still breaks (ddmin)
    records   fewer, by halving the distance
    members   fewer, one by one

and again, until a round finds nothing or `RUNS` or `STEPS` are used up: no clock decides, so the
same seed gives the same schedule every time. It is the shortest found, not the shortest there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from effectonce.testing.simulator.faults import Fault
from effectonce.testing.simulator.world import WHOLE, Cut, Report, attempt

RUNS: Final = 200
STEPS: Final = 2_000_000
"""A run that keeps its promise has some 600 steps; one that was stuck had 600,000, in 3 s."""

Faults = tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was found: the cut, its run with a timeline, and how many runs the search took."""

    cut: Cut
    report: Report
    runs: int

    def options(self) -> str:
        """What replays it, after `effectonce simulate`."""
        return " ".join(
            (
                f"--seed {self.report.seed}",
                f"--mode {self.report.mode.value}",
                f"--store {self.report.reach.value}",
                f"--only-faults {','.join(str(f.number) for f in self.cut.only or ()) or 'none'}",
                f"--records {self.cut.records}",
                f"--members {self.cut.members}",
            )
        )


class _Used(Exception):
    """The runs are used up."""


class _Search:
    """Remembers the smallest that breaks, and what was tried."""

    def __init__(self, whole: Report, runs: int) -> None:
        self._whole = whole
        self._left = self._runs = runs
        self._steps = STEPS
        self._tried: set[Cut] = set()
        self.best = replace(WHOLE, only=whole.fell, members=whole.members)

    @property
    def used(self) -> int:
        return self._runs - self._left

    def breaks(self, cut: Cut) -> bool:
        """Try it; the same invariant must break."""
        if cut in self._tried:
            return False
        if not self._left or self._steps <= 0:
            raise _Used
        self._left -= 1
        self._tried.add(cut)
        report = attempt(self._whole.seed, self._whole.mode, self._whole.reach, cut=cut)
        self._steps -= report.steps
        wanted = self._whole.violations[0].invariant
        if wanted not in (violation.invariant for violation in report.violations):
            return False
        # what was listed and never fell is no part of it
        fell = {fault.number for fault in report.fell}
        self.best = replace(cut, only=tuple(f for f in cut.only or () if f.number in fell))
        return True

    def fewer_faults(self) -> None:
        if self.breaks(replace(self.best, only=())):
            return
        parts = 2
        while len(left := self.best.only or ()) > 1:
            size = -(-len(left) // parts)
            chunks = [left[at : at + size] for at in range(0, len(left), size)]
            if any(self.breaks(replace(self.best, only=chunk)) for chunk in chunks):
                parts = 2
            elif any(self.breaks(replace(self.best, only=_but(left, c))) for c in chunks):
                parts = max(parts - 1, 2)
            elif size == 1:
                return
            else:
                parts = min(2 * parts, len(left))

    def fewer_records(self) -> None:
        enough, too_few = self.best.records, 0
        while enough - too_few > 1:
            half = (enough + too_few) // 2
            if self.breaks(replace(self.best, records=half)):
                enough = half
            else:
                too_few = half

    def fewer_members(self) -> None:
        while self.best.members > 1 and self.breaks(
            replace(self.best, members=self.best.members - 1)
        ):
            pass


def _but(faults: Faults, left_out: Faults) -> Faults:
    return tuple(fault for fault in faults if fault not in left_out)


def shrink(whole: Report, runs: int = RUNS) -> Shrunk:
    """Search from a run that broke an invariant."""
    assert whole.violations, "nothing broke: nothing to shrink"
    search = _Search(whole, runs)
    rounds: tuple[Callable[[], None], ...] = (
        search.fewer_faults, search.fewer_records, search.fewer_members
    )  # fmt: skip
    before = None
    try:
        while before != search.best:
            before = search.best
            for narrow in rounds:
                narrow()
    except _Used:
        pass
    best = search.best
    report = attempt(whole.seed, whole.mode, whole.reach, cut=best, timeline=True)
    return Shrunk(best, report, search.used)
