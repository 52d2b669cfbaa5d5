"""What people are told: of a start, of what holds up a partition, and of a commit."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import PurePath

from effectonce.core.plan import Decision
from effectonce.errors import (
    BrokerError,
    HandlerFailed,
    HandlerTimeout,
    IdReused,
    PartitionStopped,
    Unidentified,
    UnknownTopic,
)
from effectonce.hooks import BatchCommitted
from effectonce.identity import Identified
from effectonce.model import Already, Applied, Partition
from effectonce.owned import Flight, Owned, Task, Unsent


def no_broker(setting: str, servers: object, error: BrokerError) -> BrokerError:
    """Why a consumer does not start."""
    return BrokerError(
        f"no broker answered at {setting}={servers}: {error}. Nothing was consumed, nothing is "
        "lost; start it, or mend the address"
    )


def no_topics(missing: Sequence[str]) -> UnknownTopic:
    """The same, where the cluster has no such topics."""
    return UnknownTopic(
        f"no such topic on this cluster: {', '.join(missing)}. Nothing was consumed; create it, or "
        "mend the name"
    )


def no_partitions(topics: Sequence[str]) -> str:
    """Why nothing happens yet, or any more."""
    return (
        f"no partition of {', '.join(topics)} was assigned yet: the group waits for its other "
        "members, and for a killed one until its session is over (session.timeout.ms, 45 s unless "
        "you set it)"
    )


def hangs(late: Task | Flight, seconds: float) -> HandlerTimeout:
    """Why a consumer has left its group at once."""
    return HandlerTimeout(
        f"{late.owned.at} offset {late.offset}: a handler ran longer than {seconds:g} s "
        "(handler_timeout_seconds) and was cut off: its transaction is dead, the group was left, "
        "another member takes over. Its events stay in Kafka; an effect outside may or may not "
        "have happened"
    )


def held_up(task: Task, timeout_seconds: float) -> str:
    """Why a consumer that was told to stop, or to give a partition up, does not yet."""
    return (
        f"{task.owned.at} offset {task.offset}: stopping, but its handler has not returned: it is "
        f"waited for. Once it takes {timeout_seconds:g} s (handler_timeout_seconds), the group is "
        "left without it"
    )


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
        "is committed; the record stays in Kafka. Mend the producer or `identify`; `effectonce "
        "inspect --id` says where the first one came from"
    )


def untouched(at: Partition, offset: int) -> str:
    """What a loop of the user's has forgotten."""
    return (
        f"{at} offset {offset}: a batch was handed over twice from here on, and no event of it was "
        "entered: whatever your loop did is done again each time. Nothing is lost or marked; write "
        "`with event:` around what an event does"
    )


def gave_up(
    at: Partition, offset: int, attempts: int, error: BaseException, *, in_lanes: bool = False
) -> HandlerFailed:
    """Why a record that failed as often as it may stops its partition."""
    behind = "what was done behind it is marked" if in_lanes else "nothing behind it was run"
    failed = HandlerFailed(
        f"{at} offset {offset}: the handler failed {_times(attempts)}{raised(error)}. Everything "
        f"before it is committed, {behind}; the record stays in Kafka. Mend the handler and restart"
    )
    failed.__cause__ = error
    return failed


def _times(attempts: int) -> str:
    return "with " if attempts == 1 else f"{attempts} times, at last with "


def raised(error: BaseException) -> str:
    """What a handler raised, and in which line; not its text, in which an event ID may stand.

    Text and traceback are those of `__cause__`, and of what the hooks are given.
    """
    name = type(error).__name__
    for frame, line in traceback.walk_tb(error.__traceback__):
        if not str(frame.f_globals.get("__name__")).startswith("effectonce."):
            return f"{name} in {PurePath(frame.f_code.co_filename).name}, line {line}"
    return name


def committed(
    owned: Owned, unsent: Unsent, result: Applied | Already, seconds: float
) -> BatchCommitted:
    """What became durable, for the hooks; the answer took so many seconds."""
    commit, decisions = unsent.commit, unsent.passed.tolist()
    return BatchCommitted(
        at=owned.at,
        delivered=len(decisions),
        fresh=len(commit.markers) if commit.markers else 0,
        repeats=decisions.count(Decision.REPEAT) + decisions.count(Decision.LEAN),
        below=decisions.count(Decision.BELOW),
        unprotected=decisions.count(Decision.UNPROTECTED),
        existing=result.existing if isinstance(result, Applied) else 0,
        next=commit.position.next,
        handler_seconds=unsent.handler_seconds,
        commit_seconds=seconds,
        lag=max(owned.known_end - commit.position.next, 0) if owned.known_end >= 0 else -1,
    )
