"""An honest start: what a server must be, asked before the first record and every few seconds.

| found                                      | then                                          |
| ------------------------------------------ | --------------------------------------------- |
| older than 7.0                             | refused: its scripts have no `#!lua` line     |
| a replica                                  | refused                                       |
| maxmemory-policy other than `noeviction`   | refused: evicted markers repeat effects       |
| no append-only file                        | refused, or durability="none"                 |
| appendfsync other than `always`            | refused where durability="host" was promised  |
|                                            | (with wait_aof: see below)                    |
| min-replicas-to-write below replicas=N     | refused: a master that is cut off must stop   |
| older than 7.2, wait_aof                   | refused: it has no WAITAOF                    |
| Valkey, or older than 8.0, wait_aof, and   | refused: its WAITAOF does not wait for an     |
|    appendfsync other than `always`         | everysec sync                                 |
| a Cluster behind a plain client            | refused, and the other way round              |
| a command that its ACL forbids             | refused                                       |
| keys evicted since the last look           | StoreCorrupt: an absent marker proves nothing |

INFO has all but appendfsync and min-replicas-to-write. Where CONFIG GET is forbidden, replicas=N
and durability="host" cannot be shown to hold, and are refused; from Redis 8.0 on WAITAOF shows the
latter. Fewer replicas at work than the server asks for is its own NOREPLICAS: waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from effectonce.errors import ConfigError, StoreError, StoreUnavailable
from effectonce.model import Commit
from effectonce.ports import Durability
from effectonce.stores.redis_commit import commands_in, not_ours
from effectonce.stores.redis_link import Link, is_forbidden
from effectonce.stores.redis_rows import Space
from effectonce.stores.redis_scripts import PROBE, READ
from effectonce.stores.redis_wait import Wait

Infos: TypeAlias = Mapping[str, Mapping[str, Any]]

OLDEST: Final = (7, 0)
OLDEST_WAITAOF: Final = (7, 2)
HONEST_WAITAOF: Final = (8, 0)
"""Older ones, and Valkey (which names itself 7.2.4), answer WAITAOF before an everysec sync: 20
commits were answered after one fdatasync (seen, Valkey 9.1; redis/redis#13793)."""

RIGHTS: Final = (
    "~effectonce:*",
    *("+info", "+config|get"),
    *("+evalsha", "+eval", "+multi", "+exec", "+set", "+get", "+sadd", "+smembers"),
    *("+hget", "+hmget", "+hgetall", "+hset", "+hdel", "+exists", "+unlink"),
    *("+cluster|slots", "+cluster|shards", "+command", "+client|setinfo", "+client|setname"),
)
"""All that this store may do, as `ACL SETUSER` wants it; a test runs the contract with it. What a
`tx` writes needs rights of its own, on keys of its own; WAIT and WAITAOF theirs (`Wait.rights`)."""


SETTINGS: Final = ("appendfsync", "min-replicas-to-write")
"""What INFO does not have."""


class Leads(Protocol):
    """A link, sync or async, as far as it says where it leads."""

    @property
    def is_cluster(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Server:
    """What one server says of itself; None where it does not say."""

    name: str
    run_id: str
    version: str
    role: str
    policy: str | None
    append_only: bool | None
    fsync: str | None
    min_replicas: int | None
    is_cluster: bool
    evicted_keys: int


def ask(link: Link, *, settings: bool) -> list[Server]:
    """Every master that the link leads to. `settings`: ask for what INFO does not have, too.

    Raises ConfigError where INFO is forbidden, StoreError.
    """
    try:
        infos = infos_of(link, link.call("INFO", **every(link)))
    except StoreError as error:
        if not is_forbidden(error):
            raise
        raise unseen() from error
    found: Any = None
    if settings:
        try:
            found = link.call("CONFIG GET", *SETTINGS, **every(link))
        except StoreError:
            found = None  # not allowed, or a managed service without CONFIG
    return servers_of(link, infos, found)


def infos_of(link: Leads, answer: Mapping[str, Any]) -> Infos:
    """INFO, server by server. Raises StoreUnavailable where one is loading its data."""
    infos = _of_each(link, answer)
    for name, info in infos.items():
        if int(info.get("loading", 0)):
            # it says `aof_enabled:0` until it has read that file (seen, Valkey 9)
            raise StoreUnavailable(f"Redis{name}: it is loading its data")
    return infos


def unseen() -> ConfigError:
    """INFO is forbidden."""
    what = "what the server is cannot be seen (INFO is refused): allow info"
    return ConfigError([f"store: Redis: {what}"])


def servers_of(link: Leads, infos: Infos, settings: Mapping[str, Any] | None) -> list[Server]:
    """`settings`: the answer to CONFIG GET of SETTINGS, where there was one."""
    each = _of_each(link, settings) if settings is not None else {}
    return [_server(name, info, each.get(name)) for name, info in sorted(infos.items())]


def problems_of(
    servers: list[Server], link: Leads, durability: Durability, wait: Wait
) -> list[str]:
    """All that stands against using these servers, and what to do."""
    found: list[str] = []
    for server in servers:
        where = f"store: Redis{server.name}"
        found += (f"{where} {problem}" for problem in _problems(server, durability, wait))
        if server.is_cluster and not link.is_cluster:
            found.append(f"{where} is a node of a Cluster: pass a RedisCluster, or ?cluster=true")
        if link.is_cluster and not server.is_cluster:
            found.append(f"{where} is no node of a Cluster: pass a plain client")
    return found


def _problems(server: Server, durability: Durability, wait: Wait) -> Iterator[str]:
    if version_of(server.version) < OLDEST:
        yield f"has version {server.version}: Redis 7.0, or Valkey of any version, is the oldest"
    if server.role not in ("master", "primary"):
        yield f"is a {server.role}: a store must be the master; use its address, or a Sentinel's"
    if server.policy != "noeviction":
        yield (
            f"has maxmemory-policy {server.policy}: what it evicts takes effect again. Set "
            "noeviction"
        )
    if durability is not Durability.NONE and not server.append_only:
        yield (
            "keeps no append-only file (appendonly no), so a restart of it loses markers and "
            'positions. Set appendonly yes, or say durability="none"'
        )
    if wait.aof:
        yield from _waitaof_problems(server)
    elif durability is Durability.HOST and server.fsync is None:
        yield (
            "does not show appendfsync (CONFIG GET is refused), so that durability="
            '"host" cannot be shown to hold. Allow config|get, or say durability="process"; '
            "from Redis 8.0 on wait_aof=True shows it"
        )
    elif durability is Durability.HOST and server.fsync != "always":
        yield (
            f"has appendfsync {server.fsync}: a crash of its host loses what it answered. Set "
            'always, or say durability="process"; from Redis 8.0 on wait_aof=True does, too'
        )
    if wait.replicas:
        yield from _replica_problems(server, wait.replicas)


def _waitaof_problems(server: Server) -> Iterator[str]:
    version = version_of(server.version)
    if OLDEST <= version < OLDEST_WAITAOF:
        yield f"has version {server.version}, and WAITAOF is there from 7.2 on: leave wait_aof out"
    elif OLDEST <= version < HONEST_WAITAOF and server.fsync != "always":
        yield (
            f"has appendfsync {server.fsync or 'unknown (CONFIG GET is refused)'}, and Valkey, as "
            "Redis before 8.0, answers WAITAOF before it has synced: set always, or say "
            'durability="process"'
        )
    elif server.fsync == "no":
        yield "has appendfsync no, so WAITAOF would wait for ever: set everysec or always"


def _replica_problems(server: Server, wanted: int) -> Iterator[str]:
    if server.min_replicas is None:
        yield (
            "does not show min-replicas-to-write (CONFIG GET is refused), so that a master that "
            f"is cut off might go on: allow config|get, or leave replicas={wanted} out"
        )
    elif server.min_replicas < wanted:
        yield (
            f"has min-replicas-to-write {server.min_replicas}: a master that is cut off goes on "
            f"alone, and what it takes is lost. Set {wanted}, or leave replicas={wanted} out"
        )


def try_scripts(link: Link, space: Space) -> str | None:
    """What keeps this user from all that the scripts do, or None.

    Raises StoreUnavailable where that could not be tried.
    """
    try:
        link.run(PROBE, [space.scope], [])
    except StoreError as error:
        return probe_problem(error)
    return None


def probe_problem(error: StoreError) -> str:
    """What a refused PROBE says. Raises StoreUnavailable where it says nothing."""
    if isinstance(error, StoreUnavailable) and not is_forbidden(error):
        raise error
    return f"store: {error}"


def explained(link: Link, commit: Commit, space: Space, error: StoreError) -> StoreError:
    """The error; another where the user has a right to our keys, and not to the handler's.

    The server refuses such a call whole, and does not say for which key.
    """
    commands = commands_in(commit) if is_forbidden(error) else []
    try:
        if commands and _may_use(link, space.scope, space.positions, space.rows(commit.at)):
            for command in commands:
                if not _may_use(link, command[0]):
                    return not_ours(commit, command)
    except StoreError:
        pass  # the commit comes again, and meets what is wrong then
    return error


def _may_use(link: Link, *keys: str | bytes) -> bool:
    """Whether our scripts may name these keys. Raises StoreError."""
    try:
        link.run(READ, keys, ["EXISTS"])
    except StoreError as error:
        if is_forbidden(error):
            return False
        raise
    return True


def version_of(text: str) -> tuple[int, int]:
    """The first two numbers of a version; (0, 0) where there are none."""
    numbers = [int(part) for part in text.split(".")[:2] if part.isdecimal()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _server(name: str, info: Mapping[str, Any], settings: Mapping[Any, Any] | None) -> Server:
    policy, append_only = info.get("maxmemory_policy"), info.get("aof_enabled")
    fsync, min_replicas = (_setting(settings or {}, each) for each in SETTINGS)
    return Server(
        name=name,
        run_id=str(info.get("run_id", "")),
        version=str(info.get("redis_version", "")),
        role=str(info.get("role", "")),
        policy=None if policy is None else str(policy),
        append_only=None if append_only is None else bool(int(append_only)),
        fsync=fsync,
        min_replicas=None if min_replicas is None else int(min_replicas),
        is_cluster=bool(int(info.get("cluster_enabled", 0))),
        evicted_keys=int(info.get("evicted_keys", 0)),
    )


def _setting(settings: Mapping[Any, Any], name: str) -> str | None:
    value = settings.get(name, settings.get(name.encode()))
    return value.decode() if isinstance(value, bytes) else value


def every(link: Leads) -> dict[str, str]:
    """The options of a call that goes to each master."""
    return {"target_nodes": "primaries"} if link.is_cluster else {}


def _of_each(link: Leads, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """A Cluster's answer is one for each node, unless it has a single one."""
    if not link.is_cluster:
        return {"": answer}
    if not all(isinstance(each, Mapping) for each in answer.values()):
        return {" (the only master)": answer}
    return {f" at {node}": each for node, each in answer.items()}
