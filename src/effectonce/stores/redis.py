"""The shared store: Redis or Valkey, where every member of a group sees the same markers.

layout="scope": all of a scope in one slot, so an event ID is caught in whatever partition it comes.
layout="partition": a slot a partition, which spreads a scope over a Cluster; an event ID is then
caught in its own partition only, and producers must be keyed by it.

One script call a commit, and one a look-up (redis_scripts.py); redis_rows.py has the keys.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from threading import Lock
from typing import Any, Final, TypeVar

from effectonce.errors import ConfigError, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.model import (
    UNSET,
    Already,
    Applied,
    Commit,
    CommitResult,
    Known,
    Marker,
    Opened,
    Partition,
    Position,
    Query,
    Status,
    Unknown,
)
from effectonce.ports import Durability, Reach, Traits
from effectonce.stores.encoding import decode_outcome, outcome_key
from effectonce.stores.overlay import Row as UserRow
from effectonce.stores.redis_ahead import Ahead, Answer
from effectonce.stores.redis_checks import Server, ask, problems_of, try_scripts
from effectonce.stores.redis_commit import (
    MARK_BYTES,
    Call,
    commit_call,
    known,
    lookup_call,
    result,
)
from effectonce.stores.redis_link import Client, Link, link_to, own_link
from effectonce.stores.redis_rows import (
    Ownership,
    Row,
    Space,
    decode_marker,
    decode_pairs,
    decode_row,
    encode_row,
    partition_name,
    quoted,
    topic_name,
)
from effectonce.stores.redis_scripts import COMMIT, LOOKUP, OPEN, Script
from effectonce.stores.redis_tx import RedisTransaction

E = TypeVar("E", bound=Enum)

PREFIX: Final = "effectonce"
CHECK_SECONDS: Final = 5.0
"""How long a changed policy or an eviction goes unnoticed, where no generation is missing."""
ATTEMPTS: Final = 20
"""A commit that begins a generation makes the calls of all others come once more."""


class Layout(Enum):
    """What shares a slot of a Cluster, and with it its markers."""

    SCOPE = "scope"
    PARTITION = "partition"


@dataclass(slots=True, eq=False)
class Sent:
    """A commit that was sent ahead."""

    commit: Commit
    space: Space
    answer: Answer
    result: CommitResult | None = None


class RedisStore:
    """Positions, markers and rows in Redis; a URL, or a client of redis-py's that stays yours.

    layout: "scope" or "partition". durability: what a commit must survive: "host" (appendfsync
    always), "process" (an append-only file; a crash of the server itself may lose seconds, which
    Kafka's witness finds) or "none". timeout_seconds: of one call, for a URL. cluster: the URL
    leads to a node of a Cluster.

    Raises ConfigError. Nothing is asked before `prepare`.
    """

    def __init__(
        self,
        url_or_client: str | Client,
        *,
        layout: Layout | str = Layout.SCOPE,
        durability: Durability | str = Durability.PROCESS,
        timeout_seconds: float = 5.0,
        cluster: bool = False,
    ) -> None:
        problems: list[str] = []
        self._layout = _option(Layout, "layout", layout, problems)
        self._durability = _option(Durability, "durability", durability, problems)
        if not 0 < timeout_seconds <= 60:
            problems.append(f"store: timeout_seconds={timeout_seconds!r}: above 0, up to 60")
        if problems:
            raise ConfigError(problems)
        self._link = (
            own_link(url_or_client, cluster=cluster, timeout_seconds=timeout_seconds)
            if isinstance(url_or_client, str)
            else link_to(url_or_client)
        )
        self._lock = Lock()
        self._ahead = Ahead()
        self._sent: Sent | None = None
        """The commit that is on its way, until it is asked for."""
        self._id: bytes | None = None
        self._owned: dict[Partition, Ownership] = {}
        self._generations: dict[str, bytes] = {}
        self._evicted: dict[str, int] = {}
        self._checked = 0.0

    @property
    def traits(self) -> Traits:
        return Traits(
            name="redis",
            reach=Reach.SHARED if self._layout is Layout.SCOPE else Reach.KEYED,
            durability=self._durability,
            in_store_effects=True,
        )

    def prepare(self) -> bytes:
        if self._id is None:
            problems = self._check()
            try:
                problem = try_scripts(self._link, Space(PREFIX, "probe"))
                problems += [problem] if problem else []
            except StoreUnavailable:
                if not problems:  # else it is what they say
                    raise
            if problems:
                raise ConfigError(problems)
            self._checked = time.monotonic()
            key = f"{PREFIX}:id"
            self._link.call("SET", key, os.urandom(16), "NX")
            found: bytes | None = self._link.read("GET", key)
            if found is None or len(found) != 16:
                raise StoreCorrupt(f"the key {key} holds no store id")
            self._id = found
        return self._id

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        identity, space, name = self.prepare(), self._space(at), partition_name(at)
        if self._layout is Layout.PARTITION:
            self._link.call("SADD", _index(at.scope), name)
        found: bytes = self._link.read("HGET", space.positions, name) or b""
        for _ in range(ATTEMPTS):
            before = (
                decode_row(name, found)
                if found
                else Row(Position(store_id=identity, topic_id=topic_id, epoch=0))
            )
            was, incarnation = before.position, os.urandom(8)
            epoch = max(was.epoch, above) + 1
            after = replace(before, position=replace(was, epoch=epoch), incarnation=incarnation)
            answer = self._link.run(
                OPEN, [space.scope, space.positions], [name, found, encode_row(name, after)]
            )
            if answer == [b"opened"]:
                self._owned[at] = Ownership(incarnation, epoch, was.commit_id)
                return Opened(row=None if was.next == UNSET else was, epoch=epoch)
            found = answer[1]
        raise StoreUnavailable(f"{at}: others open it faster than this process; trying again")

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        rows = self._rows_of(scope, topic_name(group, topic))
        return any(row.position.next != UNSET for row in rows)

    def newest_ms(self, scope: str) -> int:
        if self._layout is Layout.PARTITION:
            return UNSET
        rows = self._rows_of(scope, "")
        return max((row.position.log_time_ms for row in rows), default=UNSET)

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        error = self._look_around() if queries else None
        return [error or self._lookup(query) for query in queries]

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return [self._commit(commit) for commit in commits]

    def send(self, commit: Commit) -> Callable[[], CommitResult]:
        """Over a client of the user's, and in a Cluster, it is waited for at once."""
        client = self._link.own_client()
        if client is None:
            result = self._commit(commit)
            return lambda: result
        space = self._space(commit.at)
        ours = self._owned_in(commit)
        generations = self._generations.get(space.tag, b"")
        call = commit_call(space, commit, generations, ours, os.urandom(MARK_BYTES))
        self._sent = Sent(commit, space, self._ahead.send(client, COMMIT, call))
        self._follow(commit, ours, commit.position.commit_id)
        return partial(self._answer_to, self._sent)

    def find(self, at: Partition, key: bytes) -> Marker | None:
        space = self._space(at)
        packed: bytes = self._link.read("HGET", space.scope, "generations") or b""
        for pair in sorted(decode_pairs(packed, space.scope), reverse=True):
            value: bytes | None = self._link.read("HGET", space.markers(pair), key)
            if value is not None:
                return self._with_outcome(space, pair, decode_marker(key, value, pair))
        return None

    def transaction(self, at: Partition) -> RedisTransaction:
        space = self._space(at)
        rows = _PartitionRows(self._link, space.rows(at))
        return RedisTransaction(rows, space, is_cluster=self._link.is_cluster)

    def release(self, at: Partition) -> None:
        """Our epoch is forgotten, so that whatever comes late from here is refused."""
        self._owned.pop(at, None)

    def close(self) -> None:
        self._owned.clear()
        self._ahead.close()
        self._link.close()

    # -- calls ---------------------------------------------------------------------------------

    def _lookup(self, query: Query) -> Known | StoreError:
        if self._sent is not None and (found := self._lookup_behind(self._sent, query)):
            return found
        space = self._space(query.at)
        fence = self._fence(query.at)
        try:
            answer = self._run(
                LOOKUP, space, lambda generations: lookup_call(space, query, generations, fence)
            )
            return known(query, answer)
        except StoreError as error:
            return error

    def _fence(self, at: Partition) -> bytes:
        owned = self._owned.get(at)
        return owned.whole_fence if owned else b""

    def _lookup_behind(self, sent: Sent, query: Query) -> Known | None:
        """The look-up that leaves before the commit in front is answered; None where it failed."""
        client = self._link.own_client()
        if client is None:
            return None
        space = self._space(query.at)
        generations = self._generations.get(space.tag, b"")
        call = lookup_call(space, query, generations, self._fence(query.at))
        answer = self._ahead.send(client, LOOKUP, call)
        self._answer_to(sent)
        found = self._ahead.read(answer)
        if found is None:
            return None
        answered = known(query, found)
        return answered if isinstance(answered, Known) else None

    def _answer_to(self, sent: Sent) -> CommitResult:
        """What a commit that was sent ahead was answered; on the ordinary way if it was not."""
        if self._sent is sent:
            self._sent = None
        if sent.result is None:
            found = self._ahead.read(sent.answer)
            if found is None or found[0] == b"generations":
                sent.result = self._commit(sent.commit)
            else:
                sent.result = self._result_of(sent.commit, sent.space, found)
                if not isinstance(sent.result, Applied | Already):
                    self._follow(sent.commit, self._owned_in(sent.commit), sent.commit.follows)
        return sent.result

    def _owned_in(self, commit: Commit) -> Ownership | None:
        """Our ownership, in the epoch of that commit."""
        owned = self._owned.get(commit.at)
        return owned if owned and owned.epoch == commit.position.epoch else None

    def _commit(self, commit: Commit) -> CommitResult:
        space = self._space(commit.at)
        ours = self._owned_in(commit)
        mark = os.urandom(MARK_BYTES)
        try:
            answer = self._run(
                COMMIT,
                space,
                lambda generations: commit_call(space, commit, generations, ours, mark),
            )
        except StoreError as error:
            self._follow(commit, ours, None)
            return Unknown(error)
        found = self._result_of(commit, space, answer)
        if isinstance(found, Applied | Already):
            self._follow(commit, ours, commit.position.commit_id)
        return found

    def _result_of(self, commit: Commit, space: Space, answer: Sequence[Any]) -> CommitResult:
        if answer[0] == b"applied":
            self._generations[space.tag] = answer[2]
        return result(commit, answer)

    def _follow(self, commit: Commit, ours: Ownership | None, to: bytes | None) -> None:
        """Note where the row stands now, unless it was released or opened meanwhile."""
        with self._lock:
            if ours is not None and self._owned.get(commit.at) is ours:
                self._owned[commit.at] = replace(ours, commit_id=to)

    def _run(self, script: Script, space: Space, call_for: Callable[[bytes], Call]) -> list[Any]:
        """The script's answer, once it was called with the generations that there are."""
        for _ in range(ATTEMPTS):
            call = call_for(self._generations.get(space.tag, b""))
            answer: list[Any] = self._link.run(script, call.keys, call.args)
            if answer[0] != b"generations":
                return answer
            self._generations[space.tag] = answer[1]
        raise StoreUnavailable(f"{space.scope}: its generations change faster than they are read")

    def _with_outcome(self, space: Space, pair: tuple[int, int], marker: Marker) -> Marker:
        if marker.status is Status.DONE:
            return marker
        value: bytes | None = self._link.read("HGET", space.outcomes(pair), marker.key)
        if value is None:
            raise StoreCorrupt(f"an outcome of generation {pair[1]}, run {pair[0]}, is gone")
        outcome = decode_outcome(outcome_key(pair[1], marker.key), value)
        return replace(marker, outcome=outcome)

    def _rows_of(self, scope: str, topic: str) -> Iterator[Row]:
        """The rows of a topic's partitions."""
        if self._layout is Layout.SCOPE:
            space = Space(PREFIX, quoted(scope))
            found = _pairs(self._link.read("HGETALL", space.positions))
        else:
            names = [name.decode() for name in self._link.read("SMEMBERS", _index(scope))]
            spaces = {name: Space(PREFIX, f"{quoted(scope)}:{name}") for name in names}
            found = {
                name.encode(): self._link.read("HGET", space.positions, name)
                for name, space in spaces.items()
                if name.startswith(topic)
            }
        for name, value in found.items():
            if name.decode().startswith(topic) and value is not None:
                yield decode_row(name.decode(), value)

    def _space(self, at: Partition) -> Space:
        if self._layout is Layout.SCOPE:
            return Space(PREFIX, quoted(at.scope))
        return Space(PREFIX, f"{quoted(at.scope)}:{partition_name(at)}")

    # -- an honest start, and after it ---------------------------------------------------------

    def _check(self) -> list[str]:
        servers = ask(self._link, fsync=self._durability is Durability.HOST)
        self._note_evictions(servers)
        return problems_of(servers, self._link, self._durability)

    def _look_around(self) -> StoreError | None:
        """What has changed since the start and would break the promise, asked now and then."""
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return None
        try:
            problems = self._check()
        except (StoreUnavailable, ConfigError):
            problems = []  # whom this concerns, their own calls will tell
        except StoreError as error:
            return error
        if problems:
            return StoreUnavailable("; ".join(problems))
        self._checked = now
        return None

    def _note_evictions(self, servers: Sequence[Server]) -> None:
        """Raises StoreCorrupt where a server has evicted keys since it was last asked."""
        for server in servers:
            before = self._evicted.get(server.run_id, server.evicted_keys)
            if server.evicted_keys > before:
                raise StoreCorrupt(
                    f"Redis{server.name} has evicted {server.evicted_keys - before} keys: where a "
                    "marker is absent, its event may have taken effect all the same. Set "
                    "maxmemory-policy noeviction, restore what is missing, and restart"
                )
            self._evicted[server.run_id] = server.evicted_keys


class _PartitionRows:
    """The committed rows of one partition. A scan reads them all: Redis keeps no order."""

    def __init__(self, link: Link, key: str) -> None:
        self._link = link
        self._key = key

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._link.read("HGET", self._key, key)
        return value

    def scan(self, prefix: bytes) -> Iterator[UserRow]:
        rows = _pairs(self._link.read("HGETALL", self._key))
        return iter(sorted(row for row in rows.items() if row[0].startswith(prefix)))


def _pairs(answer: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(answer[::2], answer[1::2], strict=True))


def _index(scope: str) -> str:
    return f"{PREFIX}:{{{quoted(scope)}}}:partitions"


def _option(kind: type[E], name: str, value: E | str, problems: list[str]) -> E:
    try:
        return kind(value)
    except ValueError:
        known_values = ", ".join(repr(member.value) for member in kind)
        problems.append(f"store: {name}={value!r}: one of {known_values}")
        return next(iter(kind))
