"""What people are told of a record that holds up its partition."""

from __future__ import annotations

import traceback
from pathlib import PurePath

from effectonce.core.plan import Decision
from effectonce.errors import IdReused, PartitionStopped, Unidentified
from effectonce.owned import Task


def blocked(task: Task, row: int, offset: int) -> PartitionStopped:
    """Why a record that the position cannot pass stops its partition."""
    at = task.owned.at
    if task.plan.blocked_by is Decision.UNIDENTIFIED:
        problem = task.identified.problems[row]
        return Unidentified(
            f"{at} offset {offset}: no usable event ID: {problem.text}. Everything before it "
            "is committed; the record stays in Kafka. Mend the producer or `identify`, or pass "
            'on_unidentified="process" to run such records unprotected'
        )
    return IdReused(
        f"{at} offset {offset}: its event ID was used before, with another payload: two "
        "different events share it, or `identify` picks the wrong field. Everything before it "
        "is committed; the record stays in Kafka. Mend the producer or `identify`"
    )


def raised(error: BaseException) -> str:
    """What a handler raised, and in which line; not its text, in which an event ID may stand.

    Text and traceback are those of `__cause__`, and of what the hooks are given.
    """
    name = type(error).__name__
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not str(frame.f_globals.get("__name__")).startswith("effectonce."):
            return f"{name} in {PurePath(frame.f_code.co_filename).name}, line {line}"
    return name
