"""What people are told of a record that holds up its partition."""

from __future__ import annotations

import traceback
from pathlib import PurePath

from effectonce.errors import HandlerFailed, IdReused, PartitionStopped, Unidentified
from effectonce.identity import Identified
from effectonce.model import Partition


def blocked(at: Partition, identified: Identified, row: int, offset: int) -> PartitionStopped:
    """Why a record that the position cannot pass stops its partition."""
    problem = identified.problems.get(row)
    if problem is not None:
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


def gave_up(
    at: Partition, offset: int, attempts: int, error: BaseException, *, in_lanes: bool = False
) -> HandlerFailed:
    """Why a record that failed as often as it may stops its partition."""
    behind = "what was done behind it is marked" if in_lanes else "nothing behind it was run"
    failed = HandlerFailed(
        f"{at} offset {offset}: the handler failed {attempts} times, at last with "
        f"{raised(error)}. Everything before it is committed, {behind}; the record stays in "
        "Kafka. Mend the handler and restart"
    )
    failed.__cause__ = error
    return failed


def raised(error: BaseException) -> str:
    """What a handler raised, and in which line; not its text, in which an event ID may stand.

    Text and traceback are those of `__cause__`, and of what the hooks are given.
    """
    name = type(error).__name__
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not str(frame.f_globals.get("__name__")).startswith("effectonce."):
            return f"{name} in {PurePath(frame.f_code.co_filename).name}, line {line}"
    return name
