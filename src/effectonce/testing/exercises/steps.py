"""What can happen where: every call across an edge of a process is a step, and may end badly.

| ending       | the call                                   | the process                         |
| ------------ | ------------------------------------------ | ----------------------------------- |
| KILLED_BEFORE| is not made                                | is gone, all that it held in memory |
| KILLED_AFTER | is done, nobody hears of it                | is gone                             |
| FAILED       | does nothing, and says so                  | goes on                             |
| UNANSWERED   | is done, and seems to have failed          | goes on                             |
| FROZEN_BEFORE| is made late: another member takes over    | goes on, a zombie until it learns   |
| FROZEN_AFTER | is done, then another member takes over    | goes on, a zombie until it learns   |
| REVOKED      | a poll takes the partition, and it is      | goes on, and gets it back           |
|              | brought to its end by another member       |                                     |

An undisturbed run lists the steps; each ending of each step is then a run of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class Ending(Enum):
    """How a step ends, if not well."""

    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"
    FAILED = "failed"
    UNANSWERED = "unanswered"
    FROZEN_BEFORE = "frozen before"
    FROZEN_AFTER = "frozen after"
    REVOKED = "revoked"


CRASHES: Final = (Ending.KILLED_BEFORE, Ending.KILLED_AFTER)
FREEZES: Final = (Ending.FROZEN_BEFORE, Ending.FROZEN_AFTER)
ERRORS: Final = (Ending.FAILED, Ending.UNANSWERED)


class Killed(BaseException):
    """Raised by every port of a process that was killed, from then on."""


class Refused(ConnectionRefusedError):
    """Raised in a handler's call that did nothing."""


class TimedOut(TimeoutError):
    """Raised in a handler's call that did what it does."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call: `what` is the port's name, or `handler`, or `call`."""

    what: str
    about: tuple[str, ...] = ()
    """The samples that it is about, by their ids."""
    call: str = ""
    """The function that the handler calls."""

    @property
    def in_handler(self) -> bool:
        return self.what in ("handler", "call")


@dataclass(slots=True)
class Script:
    """Lists the steps of a run, and lets at most one of them end badly."""

    at: int | None = None
    ending: Ending | None = None
    steps: list[tuple[Step, Sequence[Ending]]] = field(default_factory=list)
    fired: Step | None = None

    def next(self, step: Step, endings: Sequence[Ending]) -> Ending | None:
        """How this step ends; None is well."""
        number = len(self.steps)
        self.steps.append((step, endings))
        if number != self.at or self.ending not in endings:
            return None
        self.fired = step
        return self.ending
