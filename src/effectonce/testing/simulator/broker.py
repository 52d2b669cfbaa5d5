"""The brokers: logs whose offsets have gaps, and the group's coordinator with its three rules.

| rule        | on a change of members                   | is given on                       |
| ----------- | ---------------------------------------- | --------------------------------- |
| eager       | everyone gives everything up             | once all have, or were expelled   |
| cooperative | only what moves is given up              | once all have, or were expelled   |
| consumer    | only what moves is given up (KIP-848)    | at once, partition by partition   |

A member that is expelled does not know: it goes on with what it holds until it learns.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Final

import numpy as np

from effectonce.errors import BrokerError
from effectonce.identity import only_header
from effectonce.model import UNSET, Committed, Offsets
from effectonce.ports import Headers, TopicPartition
from effectonce.testing.simulator.in_lanes import key_for

SESSION_SECONDS: Final = 1.5
REBALANCE_SECONDS: Final = 3.0


class Rule(Enum):
    """How the group shares its partitions out."""

    EAGER = "eager"
    COOPERATIVE = "cooperative"
    CONSUMER = "consumer"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record. `event` names what must take effect once."""

    offset: int
    event: str
    timestamp_ms: int
    value: bytes
    headers: Headers


class LogRecords:
    """`ports.Records` over entries."""

    __slots__ = ("_entries", "_offsets", "partition", "topic")

    def __init__(self, topic: str, partition: int, entries: Sequence[Entry]) -> None:
        self.topic, self.partition, self._entries = topic, partition, entries
        self._offsets: Offsets | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def offsets(self) -> Offsets:
        if self._offsets is None:
            self._offsets = np.array([e.offset for e in self._entries], np.int64)
        return self._offsets

    def values(self) -> Sequence[bytes | None]:
        return [e.value for e in self._entries]

    def keys(self) -> Sequence[bytes | None]:
        return [key_for(e.event) for e in self._entries]

    def headers(self) -> Sequence[Headers]:
        return [e.headers for e in self._entries]

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header(self.headers(), name, len(self))

    def timestamp_ms(self, row: int) -> int:
        return self._entries[row].timestamp_ms

    def leader_epoch(self, row: int) -> int:
        del row
        return UNSET

    def part(self, start: int, stop: int | None = None) -> LogRecords:
        return LogRecords(self.topic, self.partition, self._entries[start:stop])

    def then(self, behind: LogRecords) -> LogRecords:
        return LogRecords(self.topic, self.partition, [*self._entries, *behind._entries])


@dataclass(slots=True)
class Log:
    """One partition's records; offsets rise, and have gaps."""

    entries: list[Entry] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def append(self, event: str, timestamp_ms: int, gap: int = 0) -> None:
        self.end += gap
        value = event.encode()
        headers = [("event-id", value)]
        self.entries.append(Entry(self.end, event, timestamp_ms, value, headers))
        self.offsets.append(self.end)
        self.end += 1

    def read(self, offset: int, limit: int) -> list[Entry]:
        first = bisect_left(self.offsets, offset)
        return self.entries[first : first + limit]

    def before(self, offset: int) -> Entry | None:
        """The last record below that offset, if the log still has it."""
        at = bisect_left(self.offsets, offset)
        return self.entries[at - 1] if at else None

    def remaining(self, offset: int) -> int:
        return len(self.offsets) - bisect_left(self.offsets, offset)


@dataclass(slots=True, eq=False)
class Member:
    """A member as the coordinator sees it."""

    name: str
    owned: set[TopicPartition] = field(default_factory=set)
    undelivered: set[TopicPartition] = field(default_factory=set)
    to_revoke: set[TopicPartition] = field(default_factory=set)
    generation: int = 0
    expelled: bool = False


class Group:
    """The coordinator of one group."""

    def __init__(self, rule: Rule, partitions: Sequence[TopicPartition], chance: Random) -> None:
        self.rule = rule
        self.members: list[Member] = []
        self.offsets: dict[TopicPartition, Committed] = {}
        self.generation = 0
        self._partitions = partitions
        self._chance = chance
        self._target: dict[str, set[TopicPartition]] = {}

    def join(self, name: str) -> Member:
        member = Member(name)
        self.members.append(member)
        self.change()
        return member

    def expel(self, member: Member) -> None:
        """Its partitions are free, whatever it believes."""
        if member not in self.members:
            return
        self.members.remove(member)
        member.expelled = True
        self.change()

    def change(self) -> None:
        """Share out anew, at random: a partition may go from A to B and back to A."""
        self.generation += 1
        partitions = list(self._partitions)
        self._chance.shuffle(partitions)
        count = max(len(self.members), 1)
        self._target = {m.name: set(partitions[i::count]) for i, m in enumerate(self.members)}
        for member in self.members:
            keeps = set() if self.rule is Rule.EAGER else self._target[member.name]
            going = member.owned - keeps
            # what it was never told of is simply taken back
            member.owned -= going & member.undelivered
            member.to_revoke = going - member.undelivered
            member.undelivered -= going
        self.settle()

    def revoked(self, member: Member, given_up: set[TopicPartition]) -> None:
        """It has given these up; meanwhile it may have been asked for others."""
        member.owned -= given_up
        member.to_revoke -= given_up
        self.settle()

    def settle(self) -> None:
        """Give out what is free, as far as the rule lets it."""
        if self.rule is not Rule.CONSUMER and any(m.to_revoke for m in self.members):
            return
        held = {p for m in self.members for p in m.owned}
        for member in self.members:
            new = self._target[member.name] - held
            member.owned |= new
            member.undelivered |= new
            member.generation = self.generation

    def commit(self, member: Member, key: TopicPartition, committed: Committed) -> None:
        """Take an offset, as a broker does: who is in the group may commit for any partition."""
        if member.expelled:
            raise BrokerError("Kafka, commit: unknown member")
        self.offsets[key] = committed
