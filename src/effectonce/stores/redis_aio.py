"""The shared store for coroutines: redis.py's twin, on redis.asyncio.

What is stored, asked and decided is the same: keys and bytes are redis_rows.py's, scripts and
answers redis_commit.py's, judgements redis_shared.py's and redis_checks.py's. Only the way there
differs: every call is awaited, and calls for several partitions may be under way at once.

A commit that is cancelled is as one without an answer: the identical commit sent again says what
became of it. Until then the look-up's fence leaves out the commit id, as after an `Unknown`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from effectonce.errors import ConfigError, StoreError, StoreUnavailable
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
    Query,
    Status,
    Unknown,
    Write,
)
from effectonce.ports import Durability, Traits
from effectonce.stores.encoding import decode_outcome, outcome_key
from effectonce.stores.overlay import Fuse, Layer, Row
from effectonce.stores.overlay_aio import AsyncKeyValueTransaction, AsyncOverlay, AsyncRows
from effectonce.stores.redis_aio_link import (
    AsyncClient,
    AsyncLink,
    ask,
    async_link_to,
    own_async_link,
    try_scripts,
)
from effectonce.stores.redis_checks import problems_of
from effectonce.stores.redis_commit import (
    Call,
    commands_in,
    commit_call,
    known,
    lookup_call,
    not_ours,
    result,
)
from effectonce.stores.redis_link import is_forbidden
from effectonce.stores.redis_rows import (
    MARK_BYTES,
    Ownership,
    Space,
    decode_marker,
    decode_pairs,
    outcome_gone,
    pairs_of,
    partition_name,
    rows_under,
    topic_name,
)
from effectonce.stores.redis_scripts import COMMIT, LOOKUP, OPEN, READ, Script
from effectonce.stores.redis_shared import (
    ATTEMPTS,
    CHECK_SECONDS,
    ID_KEY,
    PROBED,
    Evictions,
    Layout,
    Rows,
    checked_id,
    has_pinned,
    index_key,
    newest_ms,
    opened_too_fast,
    opening,
    owned_in,
    settings_of,
    turned_too_fast,
)
from effectonce.stores.redis_tx import Command, Commands, commands_of


class AsyncRedisStore:
    """As `RedisStore`, awaited: a URL, or a client of redis.asyncio's that stays yours.

    One event loop uses it. The commits of one call go out one after another, as in the sync store;
    what shall go out at once is a call each. Raises ConfigError. Nothing is asked before `prepare`.
    """

    def __init__(
        self,
        url_or_client: str | AsyncClient,
        *,
        layout: Layout | str = Layout.SCOPE,
        durability: Durability | str = Durability.PROCESS,
        timeout_seconds: float = 5.0,
        cluster: bool = False,
    ) -> None:
        self._settings = settings_of(layout, durability, timeout_seconds)
        self._link = (
            own_async_link(url_or_client, cluster=cluster, timeout_seconds=timeout_seconds)
            if isinstance(url_or_client, str)
            else async_link_to(url_or_client)
        )
        self._id: bytes | None = None
        self._owned: dict[Partition, Ownership] = {}
        self._generations: dict[str, bytes] = {}
        self._evictions = Evictions()
        self._checked = 0.0

    @property
    def traits(self) -> Traits:
        return self._settings.traits

    async def prepare(self) -> bytes:
        if self._id is None:
            problems = await self._check()
            try:
                problem = await try_scripts(self._link, PROBED)
                problems += [problem] if problem else []
            except StoreUnavailable:
                if not problems:  # else it is what they say
                    raise
            if problems:
                raise ConfigError(problems)
            self._checked = time.monotonic()
            await self._link.call("SET", ID_KEY, os.urandom(16), "NX")
            self._id = checked_id(await self._link.read("GET", ID_KEY))
        return self._id

    async def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        identity, space, name = await self.prepare(), self._settings.space(at), partition_name(at)
        if self._settings.layout is Layout.PARTITION:
            await self._link.call("SADD", index_key(at.scope), name)
        found: bytes = await self._link.read("HGET", space.positions, name) or b""
        for _ in range(ATTEMPTS):
            attempt = opening(at, found, identity, topic_id, above)
            answer = await self._link.run(OPEN, [space.scope, space.positions], attempt.args)
            if answer == [b"opened"]:
                self._owned[at] = attempt.owned
                return attempt.opened
            found = answer[1]
        raise opened_too_fast(at)

    async def has_positions(self, scope: str, group: str, topic: str) -> bool:
        name = topic_name(group, topic)
        return has_pinned(await self._rows_of(scope, name), name)

    async def newest_ms(self, scope: str) -> int:
        if self._settings.layout is Layout.PARTITION:
            return UNSET
        return newest_ms(await self._rows_of(scope, ""))

    async def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        error = await self._look_around() if queries else None
        return [error or await self._lookup(query) for query in queries]

    async def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        return [await self._commit(commit) for commit in commits]

    async def find(self, at: Partition, key: bytes) -> Marker | None:
        space = self._settings.space(at)
        packed: bytes = await self._link.read("HGET", space.scope, "generations") or b""
        for pair in sorted(decode_pairs(packed, space.scope), reverse=True):
            value: bytes | None = await self._link.read("HGET", space.markers(pair), key)
            if value is not None:
                return await self._with_outcome(space, pair, decode_marker(key, value, pair))
        return None

    def transaction(self, at: Partition) -> AsyncRedisTransaction:
        space = self._settings.space(at)
        rows = _PartitionRows(self._link, space.rows(at))
        return AsyncRedisTransaction(rows, space, is_cluster=self._link.is_cluster)

    async def release(self, at: Partition) -> None:
        """Our epoch is forgotten, so that whatever comes late from here is refused."""
        self._owned.pop(at, None)

    async def close(self) -> None:
        self._owned.clear()
        await self._link.close()

    # -- calls ---------------------------------------------------------------------------------

    async def _lookup(self, query: Query) -> Known | StoreError:
        space = self._settings.space(query.at)
        owned = self._owned.get(query.at)
        fence = owned.whole_fence if owned else b""
        try:
            answer = await self._run(
                LOOKUP, space, lambda generations: lookup_call(space, query, generations, fence)
            )
            return known(query, answer)
        except StoreError as error:
            return error

    async def _commit(self, commit: Commit) -> CommitResult:
        space = self._settings.space(commit.at)
        ours = owned_in(commit, self._owned)
        mark = os.urandom(MARK_BYTES)
        stands = None
        try:
            answer = await self._run(
                COMMIT,
                space,
                lambda generations: commit_call(space, commit, generations, ours, mark),
            )
            if answer[0] == b"applied":
                self._generations[space.tag] = answer[2]
            found = result(commit, answer)
            if isinstance(found, Applied | Already):
                stands = commit.position.commit_id
            elif ours is not None:
                stands = ours.commit_id
            return found
        except StoreError as error:
            return Unknown(await self._explained(commit, space, error))
        finally:  # however it ended: a commit that is cancelled may take effect all the same
            self._follow(commit, ours, stands)

    async def _explained(self, commit: Commit, space: Space, error: StoreError) -> StoreError:
        """The error; another where the user has a right to our keys, and not to the handler's.

        The server refuses such a call whole, and does not say for which key.
        """
        commands = commands_in(commit) if is_forbidden(error) else []
        try:
            if commands and await self._may_use(
                space.scope, space.positions, space.rows(commit.at)
            ):
                for command in commands:
                    if not await self._may_use(command[0]):
                        return not_ours(commit, command)
        except StoreError:
            pass  # the commit comes again, and meets what is wrong then
        return error

    async def _may_use(self, *keys: str | bytes) -> bool:
        """Whether our scripts may name these keys. Raises StoreError."""
        try:
            await self._link.run(READ, keys, ["EXISTS"])
        except StoreError as error:
            if is_forbidden(error):
                return False
            raise
        return True

    def _follow(self, commit: Commit, ours: Ownership | None, to: bytes | None) -> None:
        """Note where the row stands now, unless it was released or opened meanwhile."""
        if ours is not None and self._owned.get(commit.at) is ours:
            self._owned[commit.at] = replace(ours, commit_id=to)

    async def _run(
        self, script: Script, space: Space, call_for: Callable[[bytes], Call]
    ) -> list[Any]:
        """The script's answer, once it was called with the generations that there are."""
        for _ in range(ATTEMPTS):
            call = call_for(self._generations.get(space.tag, b""))
            answer: list[Any] = await self._link.run(script, call.keys, call.args)
            if answer[0] != b"generations":
                return answer
            self._generations[space.tag] = answer[1]
        raise turned_too_fast(space)

    async def _with_outcome(self, space: Space, pair: tuple[int, int], marker: Marker) -> Marker:
        if marker.status is Status.DONE:
            return marker
        value: bytes | None = await self._link.read("HGET", space.outcomes(pair), marker.key)
        if value is None:
            raise outcome_gone(pair)
        outcome = decode_outcome(outcome_key(pair[1], marker.key), value)
        return replace(marker, outcome=outcome)

    async def _rows_of(self, scope: str, topic: str) -> Rows:
        """The rows of a scope, or at least those of the topic's partitions."""
        if self._settings.layout is Layout.SCOPE:
            positions = self._settings.space_of(scope, "").positions
            return pairs_of(await self._link.read("HGETALL", positions)).items()
        names: list[bytes] = await self._link.read("SMEMBERS", index_key(scope))
        named = [name for name in names if name.decode().startswith(topic)]
        return [(name, await self._row(scope, name.decode())) for name in named]

    async def _row(self, scope: str, name: str) -> bytes | None:
        positions = self._settings.space_of(scope, name).positions
        value: bytes | None = await self._link.read("HGET", positions, name)
        return value

    # -- an honest start, and after it ---------------------------------------------------------

    async def _check(self) -> list[str]:
        durability = self._settings.durability
        servers = await ask(self._link, settings=durability is Durability.HOST)
        self._evictions.note(servers)
        return problems_of(servers, self._link, durability, self._settings.wait)

    async def _look_around(self) -> StoreError | None:
        """What has changed since the start and would break the promise, asked now and then."""
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return None
        before, self._checked = self._checked, now  # one asks; the others go on meanwhile
        try:
            problems = await self._check()
        except (StoreUnavailable, ConfigError):
            return None  # whom this concerns, their own calls will tell
        except BaseException as error:
            self._checked = before
            if isinstance(error, StoreError):
                return error
            raise
        if problems:
            self._checked = before
            return StoreUnavailable("; ".join(problems))
        return None


class _PartitionRows:
    """The committed rows of one partition. A scan reads them all: Redis keeps no order."""

    def __init__(self, link: AsyncLink, key: str) -> None:
        self._link = link
        self._key = key

    async def get(self, key: bytes) -> bytes | None:
        value: bytes | None = await self._link.read("HGET", self._key, key)
        return value

    async def scan(self, prefix: bytes) -> Sequence[Row]:
        return rows_under(await self._link.read("HGETALL", self._key), prefix)


class AsyncRedisTx(Commands, AsyncOverlay):
    """One event's rows, read by awaiting, and commands, which are collected as in a `RedisTx`."""

    __slots__ = ("_commands", "_is_cluster", "_space")

    def __init__(
        self, rows: AsyncRows, batch: Layer, fuse: Fuse, space: Space, *, is_cluster: bool
    ) -> None:
        super().__init__(rows, batch, fuse)
        self._commands = []
        self._space = space
        self._is_cluster = is_cluster


class AsyncRedisTransaction(AsyncKeyValueTransaction):
    """A batch's rows and commands, event by event."""

    def __init__(self, rows: AsyncRows, space: Space, *, is_cluster: bool) -> None:
        super().__init__(rows)
        self._space = space
        self._is_cluster = is_cluster
        self._commands: list[Command] = []

    def keep(self, tx: object) -> None:
        super().keep(tx)
        self._commands += commands_of(tx)

    def writes(self) -> tuple[Write, ...]:
        return (*super().writes(), *self._commands)

    def _layer(self) -> AsyncRedisTx:
        return AsyncRedisTx(
            self._rows, self._batch, self._fuse, self._space, is_cluster=self._is_cluster
        )
