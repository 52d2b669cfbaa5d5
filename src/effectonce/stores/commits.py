"""What a commit meets, decided alike by every store that decides in Python.

| the partition's row                       | answer                                     |
| ----------------------------------------- | ------------------------------------------ |
| holds this very commit id                 | Already: its answer was lost, nothing else |
| is not there, or has another epoch        | Stale: somebody opened it after us         |
| has another commit id than it `follows`   | Stale: it moved on, or back, without us    |
| the same, KEEP_FIRST, a store all reach   | Stale, but the markers are kept            |
| else, a key is marked, REFUSE             | Conflict: nothing is written               |
| else                                      | Applied; marked keys keep their first one  |
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from effectonce.core.plan import may_repeat_inside
from effectonce.model import (
    NO_ID,
    Already,
    Commit,
    Keys,
    Known,
    Markers,
    Mask,
    OnExisting,
    Outcome,
    OutcomeKind,
    Position,
    Stale,
    Status,
)
from effectonce.stores.index import split

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


def are_facts(commit: Commit) -> bool:
    """Whether its markers hold even where the commit is stale.

    Effects outside happened, whoever owns the partition by now: a member that awoke opened it over
    the one that worked, and 34 effects were repeated for want of these (seen, 5 freezes).
    """
    has_markers = commit.markers is not None and len(commit.markers) > 0
    return has_markers and commit.on_existing is OnExisting.KEEP_FIRST


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


def behind(known: Known, keys: Keys, markers: Markers | None) -> Known:
    """What a look-up of `keys` would have found, had it come behind the commit of these markers.

    None of them was marked before it.
    """
    if markers is None or not may_repeat_inside(np.concatenate((keys, markers.keys))):
        return known
    marked = dict(zip(split(markers.keys), markers.fingerprints.tolist(), strict=True))
    now = {row: marked[key] for row, key in enumerate(split(keys)) if key in marked}
    seen, fingerprints = known.seen.copy(), known.fingerprints.copy()
    seen[list(now)], fingerprints[list(now)] = True, list(now.values())
    return replace(known, seen=seen, fingerprints=fingerprints)


def status_of(outcome: Outcome | None) -> Status:
    """How a marker with that outcome, or none, says its effect ended."""
    return Status.DONE if outcome is None else STATUS_OF[outcome.kind]
