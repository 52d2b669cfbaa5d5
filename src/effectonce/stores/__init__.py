"""Where positions, markers and in-store effects live, and how a URL names such a place.

| URL                       | store                                                              |
| ------------------------- | ------------------------------------------------------------------ |
| `rocksdb:///var/lib/app`  | RocksDB in the folder /var/lib/app                                 |
| `rocksdb:state`           | RocksDB in the folder state, from the working directory            |
| `...?sync=true`           | with every commit on the disk before it is answered                |
| `redis://user:pw@host/0`  | Redis or Valkey; `rediss://` with TLS, `unix:///path` for a socket |
| `...?durability=host`     | what a commit must survive: host, process (the default), none      |
| `...?replicas=1`          | how many replicas must have a commit before it is answered         |
| `...?wait_aof=true`       | durability=host by WAITAOF, on those replicas too                  |
| `...?layout=partition`    | a slot a partition, in place of one for the scope                  |
| `...?index=local`         | with it: look-ups are answered from memory, by the owner           |
| `...?cluster=true`        | the host is a node of a Cluster                                    |
| `memory:`                 | a new store in this process, for tests                             |

Paths are read as RFC 3986 has them: a space is `%20`, a question mark `%3F`. Redis also takes
`timeout` (seconds), `db` (unix:), `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from inspect import iscoroutinefunction
from typing import Final, TypeAlias, TypedDict, TypeGuard, cast
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from effectonce.errors import ConfigError
from effectonce.ports import AsyncStore, Store, Traits

__all__ = ["open_async_store", "open_store"]

Options: TypeAlias = dict[str, str]

_OF_REDIS: Final = {"cluster", "durability", "index", "layout", "replicas", "timeout", "wait_aof"}
_OF_CLIENT: Final = {"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_BOOLEANS: Final = {"true": True, "false": False}


def open_store(store: str | Store) -> Store:
    """The store that a URL names; a store is returned as it is. Nothing is created yet.

    Raises ConfigError, which never repeats the URL: it may hold a password.
    """
    if not isinstance(store, str):
        _check_store(store)
        return store
    url, options = _parsed(store)
    return _SCHEMES[url.scheme](url, options)


def open_async_store(store: str | Store | AsyncStore, *, closes: bool = True) -> AsyncStore:
    """As `open_store`, for coroutines; a Store that is none is given a thread of its own.

    With `closes=False` such a store is left open when that is closed.

    Raises ConfigError.
    """
    from effectonce.stores.threaded import InThread

    if not isinstance(store, str):
        _check_store(store)
        return store if _is_async(store) else InThread(cast("Store", store), closes=closes)
    url, options = _parsed(store)
    if _SCHEMES[url.scheme] is not _redis:
        return InThread(_SCHEMES[url.scheme](url, options))
    given = _redis_arguments(url, options)
    problems, instead = [], "leave it out, or use OnceConsumer"
    if given["replicas"] or given["wait_aof"]:
        problems.append(f"store: replicas and wait_aof are options of the sync store: {instead}")
    if given["index"] != "server":
        problems.append(f"store: index is an option of the sync store: {instead}")
    if problems:
        raise ConfigError(problems)
    from effectonce.stores.redis_aio import AsyncRedisStore

    return AsyncRedisStore(
        given["url_or_client"],
        layout=given["layout"],
        durability=given["durability"],
        timeout_seconds=given["timeout_seconds"],
        cluster=given["cluster"],
    )


def _check_store(store: object) -> None:
    if not isinstance(getattr(store, "traits", None), Traits):
        raise ConfigError([f"store: a URL or a Store, not {type(store).__name__}"])


def _is_async(store: Store | AsyncStore) -> TypeGuard[AsyncStore]:
    return iscoroutinefunction(store.lookup)


def _parsed(store: str) -> tuple[SplitResult, Options]:
    """A URL with a scheme of ours."""
    try:
        url = urlsplit(store)
    except ValueError:  # brackets for an IPv6 address that are none
        raise ConfigError(["store: not a URL"]) from None
    if url.scheme not in _SCHEMES:
        known = ", ".join(f"{scheme}:" for scheme in _SCHEMES)
        found = f"the scheme {url.scheme!r} is unknown" if url.scheme else "it has no scheme"
        raise ConfigError([f"store: {found}; there are {known}{_offer(url)}"])
    if url.fragment:
        raise ConfigError(["store: a # in a URL begins a fragment; in a path it is written %23"])
    return url, _options(url)


def _offer(url: SplitResult) -> str:
    """For a bare path of a folder, which holds no password, the URL that was meant."""
    if url.scheme or url.netloc or not url.path.startswith("/"):
        return ""
    return f". For that folder: rocksdb://{quote(url.path, errors='replace')}"


def _rocksdb(url: SplitResult, options: Options) -> Store:
    problems = list(_unknown(options, {"sync"}))
    if url.netloc:
        problems.append(
            "store: rocksdb: takes no host: rocksdb:///path for an absolute path, rocksdb:path for "
            "one from the working directory"
        )
    elif not url.path.strip("/"):
        problems.append("store: rocksdb: needs a folder, such as rocksdb:///var/lib/app")
    elif "\0" in unquote(url.path):
        problems.append("store: rocksdb: a path holds no NUL (%00)")
    sync = options.get("sync", "false")
    if sync not in _BOOLEANS:
        problems.append(f"store: sync={sync!r}: true or false")
    if problems:
        raise ConfigError(problems)
    from effectonce.stores.rocksdb import RocksDBStore  # only now: it loads a 20 MB library

    return RocksDBStore(unquote(url.path), sync=_BOOLEANS[sync])


def _redis(url: SplitResult, options: Options) -> Store:
    given = _redis_arguments(url, options)
    from effectonce.stores.redis import RedisStore

    return RedisStore(**given)


class _RedisArguments(TypedDict):
    url_or_client: str
    layout: str
    index: str
    durability: str
    replicas: int
    wait_aof: bool
    timeout_seconds: float
    cluster: bool


def _redis_arguments(url: SplitResult, options: Options) -> _RedisArguments:
    problems = [*_unknown(options, _OF_REDIS | _OF_CLIENT), *_redis_place(url)]
    cluster, wait_aof = (options.get(name, "false") for name in ("cluster", "wait_aof"))
    for name, value in (("cluster", cluster), ("wait_aof", wait_aof)):
        if value not in _BOOLEANS:
            problems.append(f"store: {name}={value!r}: true or false")
    replicas = options.get("replicas", "0")
    if not replicas.isdecimal():
        problems.append(f"store: replicas={replicas!r}: a number, such as 1")
        replicas = "0"
    timeout = options.get("timeout", "5")
    if not timeout.replace(".", "", 1).isdecimal():
        problems.append(f"store: timeout={timeout!r}: seconds, such as 5")
        timeout = "5"
    if find_spec("redis") is None:
        problems.append('store: Redis needs its client: pip install "effectonce[redis]"')
        raise ConfigError(problems)
    if problems:  # else the store finds these itself
        wait = int(replicas), _BOOLEANS.get(wait_aof, False)
        raise ConfigError([*problems, *_redis_values(options, float(timeout), *wait)])
    query = urlencode({name: value for name, value in options.items() if name in _OF_CLIENT})
    return _RedisArguments(
        url_or_client=f"{url.scheme}://{url.netloc}{url.path}{'?' if query else ''}{query}",
        layout=options.get("layout", "scope"),
        index=options.get("index", "server"),
        durability=options.get("durability", "process"),
        replicas=int(replicas),
        wait_aof=_BOOLEANS[wait_aof],
        timeout_seconds=float(timeout),
        cluster=_BOOLEANS[cluster],
    )


def _redis_values(
    options: Options, timeout_seconds: float, replicas: int, wait_aof: bool
) -> Sequence[str]:
    """What is wrong with the values that the store itself reads."""
    from effectonce.stores.redis_shared import settings_of
    from effectonce.stores.redis_wait import Wait

    layout, durability, index = (options.get(name) for name in ("layout", "durability", "index"))
    try:
        settings_of(
            layout or "scope",
            durability or "process",
            timeout_seconds,
            Wait(replicas, wait_aof),
            index or "server",
        )
    except ConfigError as error:
        return error.problems
    return ()


def _redis_place(url: SplitResult) -> Iterator[str]:
    path = url.path.strip("/")
    if url.scheme == "unix":
        if not path:
            yield "store: unix: needs a socket, such as unix:///run/valkey.sock"
        return
    if not url.hostname:
        yield f"store: {url.scheme}: needs a host, such as {url.scheme}://localhost"
    if path and not path.isdecimal():
        yield f"store: {url.scheme}: the path is the number of a database, such as /0"
    try:
        _ = url.port
    except ValueError:
        yield f"store: {url.scheme}: the port is no number"


def _memory(url: SplitResult, options: Options) -> Store:
    problems = list(_unknown(options, set()))
    if url.netloc or url.path:
        problems.append("store: memory: has no name or path; share the store object instead")
    if problems:
        raise ConfigError(problems)
    from effectonce.stores.memory import MemoryStore

    return MemoryStore()


def _options(url: SplitResult) -> Options:
    pairs = parse_qsl(url.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise ConfigError(["store: an option stands twice in the URL"])
    return options


def _unknown(options: Options, known: set[str]) -> Iterator[str]:
    has = f"there is {', '.join(sorted(known))}" if known else "there are none"
    for name in options:
        if name not in known:
            yield f"store: the option {name!r} is unknown; {has}"


_SCHEMES: Final[dict[str, Callable[[SplitResult, Options], Store]]] = {
    "memory": _memory,
    "redis": _redis,
    "rediss": _redis,
    "rocksdb": _rocksdb,
    "unix": _redis,
}
