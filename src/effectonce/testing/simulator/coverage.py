"""Which fault can fall upon which step of the protocol, and which of these pairs a sweep reached.

| steps          | are                                                                 |
| -------------- | ------------------------------------------------------------------- |
| a call's name  | just before the call; what fails there is the call                  |
| after a call   | it is done, and whoever called does not know it yet                 |
| log            | a producer appends                                                  |
| world          | between the steps of any member                                     |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

ANSWERED: Final = (
    *("store.open", "store.lookup", "store.commit", "store.newest"),
    *("kafka.topic_ids", "kafka.committed", "kafka.log_ends", "kafka.commit", "seek"),
)
"""Calls whose answer may be a failure, or be lost."""
CALLS: Final = (*ANSWERED, "store.answer", "store.release", "fetch", "revoke", "leave", "handler")
DONE: Final = (
    *("after store.open", "after store.commit", "after kafka.commit"),
    *("after assign", "after handler"),
)

WHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "crash": CALLS + DONE,
    "freeze": CALLS + DONE,
    "fails": ANSWERED,
    "done but unanswered": ANSWERED,
    "store full": ("store.commit",),
    "handler raises": ("handler",),
    "handler raises after its effect": ("handler",),
    "slow handler": ("handler",),
    "zombie": ("fetch",),
    "late revoke": ("fetch",),
    "lost": ("fetch",),
    "log gap": ("log",),
    "producer retry": ("log",),
    "copy within the window": ("log",),
    "copy elsewhere": ("log",),
    "clock step": ("world",),
    "old backup": ("world",),
    "operator reset": ("world",),
    "group deleted": ("world",),
    "topic recreated": ("world",),
    "retention": ("world",),
    "days of downtime": ("world",),
    "member leaves": ("world",),
    "suffix lost": ("world",),
}
"""Every kind of `faults.KINDS`, and the steps that it can fall upon."""

Counts = Mapping[tuple[str, str], int]
"""How often each kind fell upon each step."""


def pairs() -> Iterator[tuple[str, str]]:
    """All that can happen."""
    return ((kind, step) for kind, steps in WHERE.items() for step in steps)


def never_fired(counts: Counts) -> list[str]:
    """Kinds that fell upon no step at all."""
    fired = {kind for (kind, _), count in counts.items() if count}
    return [kind for kind in WHERE if kind not in fired]


def never_reached(counts: Counts) -> list[tuple[str, str]]:
    """Pairs that can happen, and did not."""
    return [pair for pair in pairs() if not counts.get(pair)]


def undeclared(counts: Counts) -> list[tuple[str, str]]:
    """What happened though the table says that it cannot: the table is wrong."""
    return sorted(set(counts) - set(pairs()))
