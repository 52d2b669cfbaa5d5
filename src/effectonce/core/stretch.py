"""What was admitted of one partition and not passed by its position yet, in delivered order.

| a record                   | then                                                            |
| -------------------------- | --------------------------------------------------------------- |
| is taken in                | has a row: counted from the first one, never used again         |
| is to run                  | its key is in front of what comes, until it is passed           |
| ends                       | is in the next settlement                                       |
| is over, all in front too  | is passed by the next commit, and forgotten                     |
| is done behind a gap       | is marked by the next commit, by no other, and passed later     |

One commit at a time is under way; what ends meanwhile is for the next one. Where a commit was
refused (Stale, Conflict) the stretch is dropped whole.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from struct import unpack_from
from typing import Final

import numpy as np

from effectonce.core.plan import Columns, Decision, Decisions, Plan
from effectonce.core.settle import Ended, marked_rows, resolved_rows
from effectonce.model import UNSET, Ending, Outcome, Partition, Rows

_RUN, _UNPROTECTED = int(Decision.RUN), int(Decision.UNPROTECTED)
_REPEAT: Final = np.uint8(Decision.REPEAT)
_OVER: Final = frozenset((int(Ending.DONE), int(Ending.IGNORED)))


@dataclass(frozen=True, slots=True)
class Settlement:
    """What `settle` makes a commit of: the stretch as it was, from row `first` on."""

    first: int
    columns: Columns
    plan: Plan
    ended: Ended
    passed: Decisions
    """What was decided of the records that the commit passes."""
    marked: Rows
    """Indexes of the records that it leaves markers for."""
    as_of: int | None

    @property
    def last_passed(self) -> int:
        """The row whose time is the commit's; the first one's where none is passed."""
        return self.first + max(len(self.passed) - 1, 0)

    @property
    def last_ahead(self) -> int:
        """The last row that is marked behind a gap, or UNSET."""
        if not len(self.marked) or self.marked[-1] < len(self.passed):
            return UNSET
        return self.first + int(self.marked[-1])


class Stretch:
    """The records themselves are the driver's; here is what decisions need of them."""

    def __init__(self, at: Partition) -> None:
        self._at = at
        self.first = 0
        """The row of the first record that is not passed."""
        self.end = UNSET
        """Behind the last offset that was taken in."""
        self.commits = 0
        """Those that were answered."""
        self.in_front: dict[bytes, tuple[int, int]] = {}
        """Keys that are neither new nor seen: their row, and the fingerprint."""
        # a buffer a column, since taking bytes off its front costs nothing
        self._offsets, self._keys, self._fingerprints = bytearray(), bytearray(), bytearray()
        self._decisions, self._endings, self._marked = bytearray(), bytearray(), bytearray()
        self._outcomes: dict[int, Outcome] = {}
        self._as_of: deque[tuple[int, int | None]] = deque()
        self._settling: Settlement | None = None

    def __len__(self) -> int:
        return len(self._endings)

    @property
    def is_settling(self) -> bool:
        """Whether a commit is under way."""
        return self._settling is not None

    def take_in(self, columns: Columns, made: Plan, size: int, as_of: int | None) -> None:
        """The first `size` records, as they were decided."""
        if not size:
            return
        raw, row = columns.keys[:size].tobytes(), self.first + len(self)
        decisions = made.decisions[:size].tobytes()
        fingerprints = columns.fingerprints[:size].tolist()
        for i, decision in enumerate(decisions):
            if decision == _RUN:
                self.in_front[raw[16 * i : 16 * i + 16]] = (row + i, fingerprints[i])
        self._offsets += columns.offsets[:size].tobytes()
        self._keys += raw
        self._fingerprints += columns.fingerprints[:size].tobytes()
        self._decisions += decisions
        self._endings += bytes(size)
        self._marked += bytes(size)
        self._as_of.append((row + size, as_of))
        self.end = max(self.end, int(columns.offsets[:size].max()) + 1)

    def first_offset(self) -> int:
        first: int = unpack_from("=q", self._offsets)[0]
        return first

    def has_marker(self, row: int) -> bool:
        """Whether a commit has marked it; it is not passed."""
        return bool(self._marked[row - self.first])

    def is_over(self, row: int) -> bool:
        """Whether one that runs has ended for good. Others end with it, or were never open."""
        i = row - self.first
        return i < 0 or self._decisions[i] > _UNPROTECTED or self._endings[i] in _OVER

    def ends(self, row: int, ending: Ending, outcome: Outcome | None = None) -> None:
        """What became of it by now: FAILED or UNTOUCHED may change again."""
        self._endings[row - self.first] = ending
        if outcome is not None:
            self._outcomes[row] = outcome

    def settlement(self) -> Settlement:
        """What has become of the stretch by now; `committed` comes before the next one."""
        if self._settling is not None:
            raise ValueError(f"{self._at}: a commit has no answer yet; send that one again")
        columns = Columns(
            self._at,
            np.frombuffer(bytes(self._offsets), np.int64),
            np.frombuffer(bytes(self._keys), np.uint64).reshape(-1, 2),
            np.frombuffer(bytes(self._fingerprints), np.uint32),
        )
        decided = np.frombuffer(bytes(self._decisions), np.uint8)
        has_marker = np.frombuffer(bytes(self._marked), np.bool_)
        decisions = np.where(has_marker, _REPEAT, decided)
        made = Plan(len(self), decisions, (decisions <= _UNPROTECTED).nonzero()[0])
        endings = np.frombuffer(bytes(self._endings), np.uint8)
        outcomes = {row - self.first: outcome for row, outcome in self._outcomes.items()}
        self._settling = Settlement(
            first=self.first,
            columns=columns,
            plan=made,
            ended=Ended(endings, outcomes),
            passed=decided[: resolved_rows(made, endings)],
            marked=marked_rows(made, endings),
            as_of=self._one_answer(),
        )
        return self._settling

    def committed(self, settlement: Settlement) -> None:
        """Its commit was applied, or there was nothing to commit."""
        if settlement is not self._settling:
            raise ValueError(f"{self._at}: this is not the settlement that is under way")
        self._settling = None
        self.commits += 1
        for i in settlement.marked.tolist():
            self._marked[i] = True
            self._outcomes.pop(settlement.first + i, None)
        self._pass(len(settlement.passed))

    def _one_answer(self) -> int | None:
        """What all the look-ups knew; None where they do not agree: no number is below another."""
        known = {as_of for _, as_of in self._as_of}
        return known.pop() if len(known) == 1 else None

    def _pass(self, count: int) -> None:
        raw = bytes(self._keys[: 16 * count])
        for i, decision in enumerate(self._decisions[:count]):
            if decision == _RUN:
                del self.in_front[raw[16 * i : 16 * i + 16]]
        del self._offsets[: 8 * count], self._keys[: 16 * count], self._fingerprints[: 4 * count]
        del self._decisions[:count], self._endings[:count], self._marked[:count]
        self.first += count
        while self._as_of and self._as_of[0][0] <= self.first:
            self._as_of.popleft()
