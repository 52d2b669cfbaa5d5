"""The way to Redis: one client, and what its errors mean.

| the server, or the way to it            | for us                                             |
| --------------------------------------- | -------------------------------------------------- |
| cannot be reached, cut off, too slow    | StoreUnavailable: waited for                       |
| LOADING, CLUSTERDOWN, TRYAGAIN, BUSY    | StoreUnavailable: it is on its way back            |
| OOM, MISCONF, READONLY, NOREPLICAS      | StoreUnavailable: the script was refused whole     |
| NOPERM, NOAUTH, WRONGPASS               | StoreUnavailable: rights can be given back         |
| WRONGTYPE                               | StoreCorrupt: something else lies under our key    |
| else                                    | StoreError: the partition stops                    |

The client may send a command again by itself. That is harmless for each of ours: a look-up and an
open (epochs only have to rise) may run twice, and a commit that comes again meets its own id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Final, TypeAlias

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.retry import Retry

from effectonce.errors import ConfigError, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.stores.redis_scripts import READ, Script

Client: TypeAlias = Redis | RedisCluster
Arguments: TypeAlias = list[bytes | str]

RETRIES: Final = 1
"""Of a call by a client of our own: a connection that was closed meanwhile is found by using it."""

_ADVICE: Final = {
    "OOM": "it is out of memory: raise maxmemory, or shorten the window",
    "READONLY": "it is a replica: the address is the wrong server's, or it fails over",
    "LOADING": "it is loading its data",
    "CLUSTERDOWN": "the Cluster has no master for these keys",
    "MASTERDOWN": "it is a replica whose master is gone",
    "MISCONF": "it cannot write to its disk: see its log",
    "NOREPLICAS": "fewer replicas follow it than min-replicas-to-write asks for",
    "BUSY": "another's script has been running for too long",
    "TRYAGAIN": "a slot is on its way to another node",
    "NOPERM": "this user may not do that: `docs/redis.md` lists the rights",
    "NOAUTH": "it wants a password",
    "WRONGPASS": "it refuses the user's name or password",
    "MOVED": "it is a node of a Cluster: pass a RedisCluster, or ?cluster=true",
    "ASK": "a slot is on its way to another node",
}

_CODES: Final[dict[type, str]] = {
    AskError: "ASK",
    AuthenticationError: "WRONGPASS",
    BusyLoadingError: "LOADING",
    ClusterDownError: "CLUSTERDOWN",
    ClusterError: "TRYAGAIN",  # sent from node to node until it gave up
    MasterDownError: "MASTERDOWN",
    MovedError: "MOVED",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
}
_CUT_OFF: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    RedisClusterException,
    OSError,
)
FAILURES: Final = (RedisError, RedisClusterException, OSError)
"""All that a client raises, on the way or from the server."""


class Link:
    """A client, made at the first call. Safe to share between threads."""

    def __init__(self, make: Callable[[], Client], *, is_cluster: bool, ours: bool) -> None:
        self._make = make
        self._ours = ours
        self._lock = Lock()
        self._client: Client | None = None
        self.is_cluster = is_cluster

    def client(self) -> Client:
        """Raises StoreUnavailable: a RedisCluster asks for its slots when it is made."""
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._make()
                except FAILURES as error:
                    raise translated(error) from error
            return self._client

    def own_client(self) -> Redis | None:
        """The client, if a connection of it can be kept: ours, and one server's."""
        if not self._ours or self.is_cluster:
            return None
        client = self.client()
        assert isinstance(client, Redis)
        return client

    def call(self, *command: str | bytes | int, **options: object) -> Any:
        """The answer to one command. Raises StoreError."""
        execute: Callable[..., Any] = self.client().execute_command
        try:
            return execute(*command, **options)
        except FAILURES as error:
            raise translated(error) from error

    def run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[bytes | str]) -> Any:
        """The answer of a script, which a server that does not know it is told anew."""
        execute: Callable[..., Any] = self.client().execute_command
        try:
            try:
                return execute("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return execute("EVAL", script.text, len(keys), *keys, *args)
        except FAILURES as error:
            raise translated(error) from error

    def read(self, command: str, key: str, *args: bytes | str) -> Any:
        """What a master says of a key; a replica says nothing. Raises StoreError."""
        return self.run(READ, [key], [command, *args])

    def together(
        self, key: str, commands: Sequence[Arguments], *, transaction: bool = False
    ) -> list[Any]:
        """What the master of `key` answers on one connection; errors stand among the answers.

        Raises StoreError where it could not be asked.
        """
        try:
            client: Any = self.client()
            if self.is_cluster:
                client = client.get_redis_connection(client.get_node_from_key(key))
            pipeline = client.pipeline(transaction=transaction)
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute(raise_on_error=False)
        except (RedisError, RedisClusterException, OSError) as error:
            raise translated(error) from error
        return answers

    def scan(self, pattern: str) -> list[bytes]:
        """The keys of every master that match. Raises StoreError."""
        try:
            client: Any = self.client()
            nodes = {"target_nodes": RedisCluster.PRIMARIES} if self.is_cluster else {}
            return list(client.scan_iter(match=pattern, count=1000, **nodes))
        except (RedisError, RedisClusterException, OSError) as error:
            raise translated(error) from error

    def timeout_seconds(self) -> float:
        """What the client gives one attempt at a call. Raises StoreError."""
        return float(self.client().get_connection_kwargs()["socket_timeout"])

    def close(self) -> None:
        """Close the client if it is ours; a call after that connects again."""
        with self._lock:
            client = self._client
            if client is None or not self._ours:
                return
            self._client = None
            if isinstance(client, RedisCluster):
                disconnect: Callable[[], None] = client.disconnect_connection_pools
                disconnect()  # its `close` leaves them open (8.1)
            client.close()


def slot_of(key: bytes) -> int:
    """The slot of a Cluster that a key lies in."""
    return int(key_slot(key))


def own_link(url: str, *, cluster: bool, timeout_seconds: float) -> Link:
    """A link of our own, in which a call may last twice `timeout_seconds`.

    A connection that the server has closed meanwhile is found by using it, so one more attempt is
    made, at once.
    """

    def make() -> Client:
        options = connect_options(timeout_seconds) | {"retry": Retry(NoBackoff(), RETRIES)}
        if cluster:
            return RedisCluster.from_url(url, **options)
        return Redis.from_url(url, **options)

    return Link(make, is_cluster=cluster, ours=True)


def connect_options(timeout_seconds: float) -> dict[str, Any]:
    """How a client of our own connects, sync or async."""
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "client_name": "effectonce",
        "protocol": 3,
    }


def link_to(client: Client) -> Link:
    """A link over the user's own client, which stays theirs. Raises ConfigError."""
    if not isinstance(client, Redis | RedisCluster):
        raise ConfigError([f"store: a URL or a client of redis-py's, not {type(client).__name__}"])
    check_client(client.get_connection_kwargs())
    return Link(lambda: client, is_cluster=isinstance(client, RedisCluster), ours=False)


def check_client(settings: Mapping[str, Any]) -> None:
    """What a user's client must be, by how it connects. Raises ConfigError."""
    problems = list(_client_problems(settings))
    if problems:
        raise ConfigError(problems)


def _client_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("decode_responses"):
        yield "store: the client has decode_responses=True; keys here are bytes: leave it out"
    if settings.get("socket_timeout") is None:
        yield (
            "store: the client has no socket_timeout, so a dead connection would be waited for "
            "for ever: give it one, such as 5"
        )


def translated(error: Exception) -> StoreError:
    """The StoreError of the table above."""
    code = code_of(error)
    if code == "WRONGTYPE":
        return StoreCorrupt(
            f"a key of effectonce holds something of another type ({error}). Whoever shares this "
            "database must keep off its keys"
        )
    if code in _ADVICE:
        return StoreUnavailable(f"Redis: {_ADVICE[code]} ({_text(error)})")
    if isinstance(error, _CUT_OFF):
        return StoreUnavailable(f"Redis cannot be reached: {_text(error)}")
    return StoreError(f"Redis refused a call: {_text(error)}")


def code_of(error: Exception) -> str:
    """The first word of an answer that is an error: OOM, READONLY, ... The client cuts it off."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return str(error).split(" ", 1)[0]


def is_forbidden(error: StoreError) -> bool:
    """Whether it is the user's rights that do not suffice."""
    return isinstance(error.__cause__, Exception) and code_of(error.__cause__) == "NOPERM"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
