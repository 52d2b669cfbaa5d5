"""What both Redis stores, sync and async, decide alike: options, openings, evictions. No I/O.

| what                          | asked or written by the stores, judged here                     |
| ----------------------------- | --------------------------------------------------------------- |
| the options of a store        | `settings_of`: all that is wrong with them at once              |
| a row that is to be opened    | `opening`: the row after it, and whose it is from then on       |
| the store's id                | `checked_id`                                                    |
| the rows of a topic, a scope  | `has_pinned`, `newest_ms`                                       |
| INFO, every few seconds       | `Evictions`: where an absent marker has stopped proving "new"   |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Final, TypeAlias, TypeVar

from effectonce.errors import ConfigError, StoreCorrupt, StoreUnavailable
from effectonce.model import UNSET, Commit, Opened, Partition, Position
from effectonce.ports import Durability, Reach, Traits
from effectonce.stores.redis_checks import Server
from effectonce.stores.redis_rows import (
    PREFIX,
    Ownership,
    Row,
    Space,
    decode_row,
    encode_row,
    partition_name,
    quoted,
)
from effectonce.stores.redis_wait import NOTHING, Wait

E = TypeVar("E", bound=Enum)
Rows: TypeAlias = Iterable[tuple[bytes, bytes | None]]
"""Rows of positions as they are stored, under their PARTITION."""

ID_KEY: Final = f"{PREFIX}:id"
PROBED: Final = Space(PREFIX, "probe")
"""Where the scripts are tried before the first record."""
CHECK_SECONDS: Final = 5.0
"""How long a changed policy or an eviction goes unnoticed, where no generation is missing."""
ATTEMPTS: Final = 20
"""A commit that begins a generation makes the calls of all others come once more."""


class Layout(Enum):
    """What shares a slot of a Cluster, and with it its markers."""

    SCOPE = "scope"
    PARTITION = "partition"


class Index(Enum):
    """Where a look-up is answered."""

    SERVER = "server"
    LOCAL = "local"
    """From memory, by the partition's owner (redis_index.py)."""


# -- options ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a store, checked."""

    layout: Layout
    durability: Durability
    wait: Wait = NOTHING
    index: Index = Index.SERVER

    @property
    def is_local(self) -> bool:
        return self.index is Index.LOCAL

    @property
    def traits(self) -> Traits:
        return Traits(
            name="redis",
            reach=Reach.SHARED if self.layout is Layout.SCOPE else Reach.KEYED,
            durability=self.durability,
            in_store_effects=True,
        )

    def space(self, at: Partition) -> Space:
        """Where the keys of a partition lie."""
        return self.space_of(at.scope, partition_name(at))

    def space_of(self, scope: str, name: str) -> Space:
        """As `space`, for a partition by its PARTITION."""
        return _space_of(scope, name if self.layout is Layout.PARTITION else None, self.is_local)


@lru_cache(maxsize=4096)
def _space_of(scope: str, name: str | None, is_packed: bool) -> Space:
    if name is None:
        return Space(PREFIX, quoted(scope))
    tag = f"{quoted(scope)}:{name}"
    return Space(PREFIX, f"{tag}:packed", is_packed=True) if is_packed else Space(PREFIX, tag)


def settings_of(
    layout: Layout | str,
    durability: Durability | str,
    timeout_seconds: float,
    wait: Wait = NOTHING,
    index: Index | str = Index.SERVER,
) -> Settings:
    """Raises ConfigError, with all that is wrong."""
    problems: list[str] = []
    settings = Settings(
        _option(Layout, "layout", layout, problems),
        _option(Durability, "durability", durability, problems),
        wait,
        _option(Index, "index", index, problems),
    )
    if settings.index is Index.LOCAL and settings.layout is Layout.SCOPE:
        problems.append(
            "store: index='local' needs layout='partition': partitions that share their markers "
            "mark behind each other's back"
        )
    if settings.is_local and wait:
        problems.append(
            "store: index='local' is for speed, and replicas= and wait_aof wait at each commit: "
            "use index='server' with them"
        )
    problems += wait.problems(settings.durability)
    if not 0 < timeout_seconds <= 60:
        problems.append(f"store: timeout_seconds={timeout_seconds!r}: above 0, up to 60")
    if problems:
        raise ConfigError(problems)
    return settings


def _option(kind: type[E], name: str, value: E | str, problems: list[str]) -> E:
    try:
        return kind(value)
    except ValueError:
        known_values = ", ".join(repr(member.value) for member in kind)
        problems.append(f"store: {name}={value!r}: one of {known_values}")
        return next(iter(kind))


# -- opening ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """One attempt at an open: what the script compares, what it writes, and what we own then."""

    args: list[bytes | str]
    row: bytes
    owned: Ownership
    opened: Opened


def opening(at: Partition, found: bytes, identity: bytes, topic_id: bytes, above: int) -> Opening:
    """`found`: the row as it was read last, or empty. Raises StoreCorrupt."""
    name = partition_name(at)
    before = (
        decode_row(name, found)
        if found
        else Row(Position(store_id=identity, topic_id=topic_id, epoch=0))
    )
    was, incarnation = before.position, os.urandom(8)
    epoch = max(was.epoch, above) + 1
    after = replace(before, position=replace(was, epoch=epoch), incarnation=incarnation)
    row = encode_row(name, after)
    return Opening(
        args=[name, found, row],
        row=row,
        owned=Ownership(incarnation, epoch, was.commit_id),
        opened=Opened(row=None if was.next == UNSET else was, epoch=epoch),
    )


def opened_too_fast(at: Partition) -> StoreUnavailable:
    """ATTEMPTS openings of others came first."""
    return StoreUnavailable(f"{at}: others open it faster than this process; trying again")


def turned_too_fast(space: Space) -> StoreUnavailable:
    """ATTEMPTS times there was another generation by the time a script ran."""
    return StoreUnavailable(f"{space.scope}: its generations change faster than they are read")


def owned_in(commit: Commit, owned: Mapping[Partition, Ownership]) -> Ownership | None:
    """Our ownership in the commit's epoch; None where we have none."""
    ours = owned.get(commit.at)
    return ours if ours and ours.epoch == commit.position.epoch else None


# -- reading ---------------------------------------------------------------------------------------


def checked_id(found: bytes | None) -> bytes:
    """Raises StoreCorrupt."""
    if found is None or len(found) != 16:
        raise StoreCorrupt(f"the key {ID_KEY} holds no store id")
    return found


def index_key(scope: str) -> str:
    """layout="partition": the names of all partitions ever opened."""
    return f"{PREFIX}:{{{quoted(scope)}}}:partitions"


def has_pinned(rows: Rows, topic: str) -> bool:
    """Whether a row of the topic has a position. Raises StoreCorrupt."""
    return any(position.next != UNSET for position in _positions(rows, topic))


def newest_ms(rows: Rows) -> int:
    """The newest log time of all, or UNSET. Raises StoreCorrupt."""
    return max((position.log_time_ms for position in _positions(rows, "")), default=UNSET)


def _positions(rows: Rows, topic: str) -> Iterator[Position]:
    for name, value in rows:
        if value is not None and name.decode().startswith(topic):
            yield decode_row(name.decode(), value).position


class Evictions:
    """How many keys each server had evicted when it was last asked."""

    def __init__(self) -> None:
        self._evicted: dict[str, int] = {}

    def note(self, servers: Sequence[Server]) -> None:
        """Raises StoreCorrupt where a server has evicted keys since."""
        for server in servers:
            before = self._evicted.get(server.run_id, server.evicted_keys)
            if server.evicted_keys > before:
                raise StoreCorrupt(
                    f"Redis{server.name} has evicted {server.evicted_keys - before} keys: where a "
                    "marker is absent, its event may have taken effect all the same. Set "
                    "maxmemory-policy noeviction, restore what is missing, and restart"
                )
            self._evicted[server.run_id] = server.evicted_keys
