"""Replicas and disks that a write must have reached before it is answered.

| asked for            | sent, on one connection                        |
| -------------------- | ---------------------------------------------- |
| replicas=N           | looks, SET held, WAIT N                        |
| wait_aof, replicas=N | looks, SET held, WAITAOF 1 N                   |

WAIT and WAITAOF are about what their own connection has written, and tell one that wrote nothing
that all is held (seen, Valkey 9.1: 1 of 1 replicas beside a frozen one, after 0.1 ms). So a write
of our own comes first. Replication is one stream: what a master shows before that write lies below
it and is held with it, whoever sent it and on whichever connection; a commit that was sent again
(Already) is like a new one. And the look says that it is there: a master that a failover has
brought in since may not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from effectonce.errors import StoreError, StoreUnavailable
from effectonce.model import Commit, Known, Query
from effectonce.ports import Durability
from effectonce.stores.redis_commit import known, lookup_call
from effectonce.stores.redis_link import Arguments, Link, translated
from effectonce.stores.redis_rows import PREFIX, Ownership, Space, partition_name
from effectonce.stores.redis_scripts import LOOKUP

_SHARE: Final = 0.5
"""Of the time that the client gives a call: the server must answer before that is over, and looks
at such deadlines ten times a second (300 ms lasted 399, seen)."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What is waited for after a write. False where it is nothing."""

    replicas: int = 0
    aof: bool = False

    def __bool__(self) -> bool:
        return self.aof or self.replicas > 0

    @property
    def rights(self) -> tuple[str, ...]:
        """What a user needs for it. A server older than 7.2 takes no `+waitaof`."""
        return ("+waitaof",) if self.aof else ("+wait",) if self.replicas else ()

    def problems(self, durability: Durability) -> list[str]:
        """What is wrong with what was asked for."""
        found: list[str] = []
        if self.replicas < 0:
            found.append(f"store: replicas={self.replicas!r}: 0, or how many must have each commit")
        if self.aof and durability is not Durability.HOST:
            found.append(
                'store: wait_aof is a way to keep durability="host": ask for that too, or leave '
                "it out"
            )
        return found

    def command(self, ms: int) -> Arguments:
        """The command that waits."""
        if self.aof:
            return ["WAITAOF", "1", str(self.replicas), str(ms)]
        return ["WAIT", str(self.replicas), str(ms)]

    def lacks(self, answer: Any) -> str:
        """What that command's answer says is not there yet, or nothing."""
        disks, replicas = answer if self.aof else (1, answer)
        if disks < 1:
            return "the master's append-only file is not synced"
        if replicas < self.replicas:
            have = "have synced it" if self.aof else "have it"
            return f"{replicas} of {self.replicas} replicas {have}"
        return ""


NOTHING: Final = Wait()


@dataclass(frozen=True, slots=True)
class Look:
    """Commands, and whether their answers show what is to be held."""

    commands: Sequence[Arguments]
    shows: Callable[..., bool]


def hold(link: Link, wait: Wait, tag: str, commands: Sequence[Arguments]) -> list[Any]:
    """The answers to commands of one slot, with all that they tell or wrote held as asked for.

    Raises StoreError.
    """
    held = f"{PREFIX}:{{{tag}}}:held"
    ms = max(1, int(1000 * _SHARE * link.timeout_seconds()))
    *answers, waited = link.together(held, [*commands, ["SET", held, ""], wait.command(ms)])
    for answer in answers:
        if isinstance(answer, Exception):
            raise translated(answer) from answer
    if isinstance(waited, Exception):
        why = str(translated(waited))
    elif not (lacks := wait.lacks(waited)):
        return answers[:-1]
    else:
        why = f"{lacks}, {ms} ms after it was written"
    raise StoreUnavailable(
        f"Redis holds a write less safely than was asked for: {why}. Nothing is lost so far: it "
        "is waited for. See that the replicas follow"
        + (", each with appendonly yes" if wait.aof else "")
    )


def hold_all(link: Link, wait: Wait, tag: str, looks: Sequence[Look]) -> list[StoreError | None]:
    """For each look, what keeps that from being held, if anything."""
    try:
        found = hold(link, wait, tag, [each for look in looks for each in look.commands])
    except StoreError as error:
        return [error] * len(looks)
    answers = iter(found)
    lost = StoreUnavailable("Redis: a failover lost a commit; it is sent again")
    return [None if look.shows(*islice(answers, len(look.commands))) else lost for look in looks]


# -- looks -----------------------------------------------------------------------------------------


def row_of_commit(space: Space, commit: Commit, owned: Ownership | None) -> Look:
    """The row still is what that commit wrote, whoever has opened it since."""
    return Look(
        [["HGET", space.positions, partition_name(commit.at)]],
        lambda row: (
            row is not None
            and row[16:32] == commit.position.commit_id
            and (owned is None or row[32:40] == owned.incarnation)
        ),
    )


def markers_of_commit(space: Space, commit: Commit, generations: bytes) -> Look:
    """All of its keys are marked, as a stale commit leaves them where the row is there at all."""
    assert commit.markers is not None
    query = Query(commit.at, commit.markers.keys, commit.position.run)
    call = lookup_call(space, query, generations, b"")

    def shows(row: bytes | None, answer: Any) -> bool:
        found = known(query, answer)
        return row is None or (isinstance(found, Known) and bool(found.seen.all()))

    return Look(
        [
            ["HGET", space.positions, partition_name(commit.at)],
            ["EVAL", LOOKUP.text, str(len(call.keys)), *call.keys, *call.args],
        ],
        shows,
    )
