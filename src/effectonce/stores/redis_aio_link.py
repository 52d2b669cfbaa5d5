"""The way to Redis for coroutines: as redis_link.py, whose table of errors holds here too.

A call that is cancelled loses its connection: what it was answered is never read by the next one
(redis-py closes it whatever ends a send or a read; 8.1, seen with hundreds of cancelled calls).
What it asked for may happen all the same, now or a moment later, as with a call that timed out.
"""

from __future__ import annotations

from asyncio import Semaphore
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from effectonce.errors import ConfigError, StoreError
from effectonce.stores.redis_checks import (
    SETTINGS,
    Server,
    every,
    infos_of,
    probe_problem,
    servers_of,
    unseen,
)
from effectonce.stores.redis_link import (
    FAILURES,
    RETRIES,
    check_client,
    connect_options,
    is_forbidden,
    translated,
)
from effectonce.stores.redis_rows import Space
from effectonce.stores.redis_scripts import PROBE, READ, Script

AsyncClient: TypeAlias = Redis | RedisCluster

CALLS: Final = 32
"""Calls under way at a time; further ones wait their turn, since a client's pool (100 connections,
if nothing else was said) raises where it is full. A server with appendfsync always syncs once for
all that it has read: 64 partitions made 414 commits a second one by one, 1,289 by 8, 2,674 by 32
and 2,637 by 64; without that sync 3,000 are all, and 2 calls reach most of it (measured)."""


class AsyncLink:
    """A client, made at the first call, for one event loop."""

    def __init__(self, make: Callable[[], AsyncClient], *, is_cluster: bool, ours: bool) -> None:
        self._make = make
        self._ours = ours
        self._client: AsyncClient | None = None
        self._turn = Semaphore(CALLS)
        self.is_cluster = is_cluster

    async def call(self, *command: str | bytes | int, **options: object) -> Any:
        """The answer to one command. Raises StoreError."""
        async with self._turn:
            try:
                return await self._execute(*command, **options)
            except FAILURES as error:
                raise translated(error) from error

    async def run(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[bytes | str]
    ) -> Any:
        """The answer of a script, which a server that does not know it is told anew."""
        async with self._turn:
            try:
                try:
                    return await self._execute("EVALSHA", script.sha, len(keys), *keys, *args)
                except NoScriptError:
                    return await self._execute("EVAL", script.text, len(keys), *keys, *args)
            except FAILURES as error:
                raise translated(error) from error

    async def read(self, command: str, key: str, *args: bytes | str) -> Any:
        """What a master says of a key; a replica says nothing. Raises StoreError."""
        return await self.run(READ, [key], [command, *args])

    async def close(self) -> None:
        """Close the client if it is ours; a call after that connects again."""
        client = self._client
        if client is not None and self._ours:
            self._client = None
            await client.aclose()

    def _execute(self, *command: str | bytes | int, **options: object) -> Awaitable[Any]:
        if self._client is None:
            self._client = self._make()
        execute: Callable[..., Awaitable[Any]] = self._client.execute_command
        return execute(*command, **options)


def own_async_link(url: str, *, cluster: bool, timeout_seconds: float) -> AsyncLink:
    """A link of our own, in which a call may last twice `timeout_seconds`."""

    def make() -> AsyncClient:
        options = connect_options(timeout_seconds) | {"retry": Retry(NoBackoff(), RETRIES)}
        if cluster:
            return RedisCluster.from_url(url, **options)
        return Redis.from_url(url, **options)

    return AsyncLink(make, is_cluster=cluster, ours=True)


def async_link_to(client: object) -> AsyncLink:
    """A link over the user's own client, which stays theirs. Raises ConfigError."""
    if not isinstance(client, Redis | RedisCluster):
        name = f"{type(client).__module__}.{type(client).__name__}"
        raise ConfigError([f"store: a URL or a client of redis.asyncio's, not {name}"])
    check_client(client.get_connection_kwargs())
    return AsyncLink(lambda: client, is_cluster=isinstance(client, RedisCluster), ours=False)


# -- an honest start: the questions; redis_checks.py judges the answers ----------------------------


async def ask(link: AsyncLink, *, settings: bool) -> list[Server]:
    """Every master that the link leads to, as `redis_checks.ask`."""
    try:
        infos = infos_of(link, await link.call("INFO", **every(link)))
    except StoreError as error:
        if not is_forbidden(error):
            raise
        raise unseen() from error
    found: Any = None
    if settings:
        try:
            found = await link.call("CONFIG GET", *SETTINGS, **every(link))
        except StoreError:
            found = None  # not allowed, or a managed service without CONFIG
    return servers_of(link, infos, found)


async def try_scripts(link: AsyncLink, space: Space) -> str | None:
    """What keeps this user from all that the scripts do, or None; as `redis_checks.try_scripts`."""
    try:
        await link.run(PROBE, [space.scope], [])
    except StoreError as error:
        return probe_problem(error)
    return None
