"""What came of one crash point: a `Case`.

as it should be   the target, and the rows of the `tx`, stand as after an undisturbed run
lost              something is missing
repeated          something is there more often
differing         a row of the `tx` has another value
stuck             no member came to the end of the log
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from effectonce.testing.exercises.steps import Ending, Step


@dataclass(frozen=True, slots=True)
class Change:
    """One effect that did not happen as often as in an undisturbed run."""

    effect: Hashable
    expected: int
    found: int


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row of the `tx` that is not as after an undisturbed run; None where there is none."""

    row: bytes
    expected: bytes | None
    found: bytes | None


@dataclass(frozen=True, slots=True)
class HandlerRun:
    """One call of the handler: for which sample, in which process, and how it ended."""

    sample: str
    process: int
    maybe_repeated: bool
    returned: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One run of all records, with at most one thing that went wrong in it."""

    name: str
    step: Step | None = None
    ending: Ending | None = None
    fired: bool = True
    """Whether what was to go wrong did; if not, the handler did something else this time."""
    runs: tuple[HandlerRun, ...] = ()
    lost: tuple[Change, ...] = ()
    repeated: tuple[Change, ...] = ()
    differing: tuple[RowChange, ...] = ()
    stuck: str = ""
    allowed: bool = True
    """Whether the promise of the chosen effects allows what happened; your handler may not."""

    @property
    def ok(self) -> bool:
        return not (self.lost or self.repeated or self.differing or self.stuck)

    def run_again(self) -> list[str]:
        """Samples whose handler was called more than once."""
        counts = Counter(run.sample for run in self.runs)
        return [sample for sample, count in counts.items() if count > 1]
