"""Time that passes in a partition without traffic: else a shared scope kept its markers for ever.

| the partition, at its log's end                 | its log time                                  |
| ----------------------------------------------- | --------------------------------------------- |
| has passed records                              | rises by the wall time since its last commit, |
|                                                 | at most to the newest log time of the scope   |
| has never passed one                            | is the newest of the scope                    |
| is in the same generation then                  | stays: nothing is written                     |

Whoever is at the end now was there all the time since the last commit: what had come meanwhile
would still be ahead. So downtime counts, other than for records that wait in the log. Two clocks
have to say so, the wall and another partition's records: one that is wrong drops nothing by itself.
"""

from __future__ import annotations

from dataclasses import replace

from effectonce.core.generation import generation_of, turn
from effectonce.core.settle import commit_id
from effectonce.model import UNSET, Commit, Partition, Position


def let_time_pass(
    at: Partition,
    position: Position,
    *,
    newest_ms: int,
    wall_ms: int,
    half_ms: int,
    serial: int,
) -> Commit | None:
    """To be committed while the partition is at its log's end; None where nothing would change.

    `newest_ms` is the newest log time of all partitions that share its markers, or UNSET.
    """
    log_time_ms = newest_ms
    if position.log_time_ms != UNSET:
        since_ms = max(wall_ms - position.wall_ms, 0)
        log_time_ms = min(position.log_time_ms + since_ms, newest_ms)
    before = generation_of(position.log_time_ms, half_ms) if position.generations else 0
    if log_time_ms <= position.log_time_ms or generation_of(log_time_ms, half_ms) == before:
        return None
    new = replace(
        turn(position, log_time_ms, half_ms),
        commit_id=commit_id(position.epoch, serial),
        wall_ms=wall_ms,
    )
    return Commit(at=at, follows=position.commit_id, position=new)
