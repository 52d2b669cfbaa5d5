"""What a commit meets, decided alike by every store that decides in Python.

| the partition's row                       | answer                                     |
| ----------------------------------------- | ------------------------------------------ |
| holds this very commit id                 | Already: its answer was lost, nothing else |
| is not there, or has another epoch        | Stale: somebody opened it after us         |
| has another commit id than it `follows`   | Stale: it moved on, or back, without us    |
| else, a key is marked, REFUSE             | Conflict: nothing is written               |
| else                                      | Applied; marked keys keep their first one  |
"""

from __future__ import annotations

from typing import Final

from effectonce.model import (
    NO_ID,
    Already,
    Commit,
    Markers,
    Mask,
    Outcome,
    OutcomeKind,
    Position,
    Stale,
    Status,
)

STATUS_OF: Final = {
    OutcomeKind.VALUE: Status.HAS_OUTCOME,
    OutcomeKind.UNSTORABLE: Status.UNSTORABLE,
}


def judge(commit: Commit, row: Position | None) -> Already | Stale | None:
    """The answer that needs no look at the markers; None where they decide."""
    new = commit.position
    if row is None:
        return Stale()
    if row.commit_id == new.commit_id != NO_ID:
        return Already()
    if row.epoch != new.epoch or row.commit_id != commit.follows:
        return Stale()
    return None


def generation_of(position: Position) -> int:
    """The generation that a commit's new markers belong to: the youngest of its position."""
    if not position.generations:
        raise ValueError("a commit with markers must name the generation they belong to")
    return position.generations[-1].generation


def select(markers: Markers, mask: Mask) -> Markers:
    """The rows of `markers` where `mask` is true, outcomes included."""
    rows = mask.nonzero()[0]
    outcomes = markers.outcomes
    return Markers(
        keys=markers.keys[rows],
        fingerprints=markers.fingerprints[rows],
        offsets=markers.offsets[rows],
        outcomes={i: outcomes[row] for i, row in enumerate(rows.tolist()) if row in outcomes}
        if outcomes
        else {},
    )


def status_of(outcome: Outcome | None) -> Status:
    """How a marker with that outcome, or none, says its effect ended."""
    return Status.DONE if outcome is None else STATUS_OF[outcome.kind]
