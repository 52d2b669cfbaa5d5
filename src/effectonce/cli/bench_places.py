"""Stores to measure on, of the kind that the user's is, and never it.

| the user's | measured on                                                                      |
| ---------- | -------------------------------------------------------------------------------- |
| rocksdb:   | an empty folder below the temporary one, with the URL's options                  |
| redis:     | that server, under a scope with a random name, whose keys are removed after each |
|            | run; and so is `effectonce:id`, where it was not there before                    |
| memory:    | memory                                                                           |

Keys are found by what the scope itself lists, not by a SCAN of the user's database.
"""

from __future__ import annotations

import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from effectonce.errors import StoreError
from effectonce.ports import Reach, Traits
from effectonce.stores import open_store
from effectonce.stores.redis_link import Link, own_link
from effectonce.stores.redis_rows import PREFIX, Space, decode_pairs, quoted
from effectonce.stores.redis_shared import ID_KEY, index_key

SCOPE: Final = "effectonce-bench-"
ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OF_CLIENT: Final = frozenset(("db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run keeps its markers."""

    url: str
    scope: str


def at_once(url: str, home: Path) -> Traits:
    """What that store promises, if it can be had. Raises ConfigError, StoreError."""
    with _link(url) as link:
        if link is not None:
            link.call("EXISTS", ID_KEY)
    return open_store(_own(url, home)).traits


@contextmanager
def place(url: str, home: Path) -> Iterator[Place]:
    """An empty one, of which nothing is left."""
    here = Place(_own(url, home), f"{SCOPE}{secrets.token_hex(8)}")
    with _link(url) as link:
        is_new = link is not None and not link.call("EXISTS", ID_KEY)
        try:
            yield here
        finally:
            with undisturbed():
                shutil.rmtree(_folder(home), ignore_errors=True)
                if link is not None:
                    _forget(link, here.scope, is_new=is_new)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM pass unheard, while what was made is taken away."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ENDS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def catches_all(traits: Traits) -> bool:
    """Whether a repeat is caught in whatever partition it comes."""
    return traits.reach is Reach.SHARED


def is_redis(url: str) -> bool:
    """By its scheme."""
    return urlsplit(url).scheme in ("redis", "rediss", "unix")


def _own(url: str, home: Path) -> str:
    if urlsplit(url).scheme != "rocksdb":
        return url
    query = urlsplit(url).query
    return f"rocksdb://{quote(str(_folder(home)))}{'?' if query else ''}{query}"


def _folder(home: Path) -> Path:
    return home / "store"


@contextmanager
def at_rest(url: str) -> Iterator[Callable[[], object] | None]:
    """What returns once a Redis has done all that the store has sent; it reads the answers later.

    It does one thing after another, so a question behind it all will do.
    """
    with _link(url) as link:
        if link is None:
            yield None
            return
        ask = partial(link.call, "EXISTS", ID_KEY)
        ask()  # connected before a clock runs
        yield ask


# -- Redis -----------------------------------------------------------------------------------------


@contextmanager
def _link(url: str) -> Iterator[Link | None]:
    """A client of our own beside the store's; None for a store that is not Redis."""
    parts = urlsplit(url)
    if not is_redis(url):
        yield None
        return
    open_store(url).close()  # its complaints about the URL
    options = dict(parse_qsl(parts.query))
    query = urlencode({name: value for name, value in options.items() if name in _OF_CLIENT})
    link = own_link(
        f"{parts.scheme}://{parts.netloc}{parts.path}{'?' if query else ''}{query}",
        cluster=options.get("cluster") == "true",
        timeout_seconds=float(options.get("timeout", "5")),
    )
    try:
        yield link
    finally:
        link.close()


def _forget(link: Link, scope: str, *, is_new: bool) -> None:
    """Remove the scope's keys, and the store's id if it is ours alone."""
    names: list[bytes] = link.call("SMEMBERS", index_key(scope))
    of_partitions = [f"{quoted(scope)}:{name.decode()}" for name in names]
    packed = [f"{tag}:packed" for tag in of_partitions]
    for tag in (quoted(scope), *of_partitions, *packed):
        space = Space(PREFIX, tag)
        pairs = decode_pairs(link.call("HGET", space.scope, "generations") or b"", space.scope)
        for pair in pairs:
            link.call("UNLINK", space.markers(pair), space.outcomes(pair))
        link.call("UNLINK", space.scope, space.positions, f"{space.scope}:held")
    link.call("UNLINK", index_key(scope))
    if is_new and not _is_used(link):
        link.call("UNLINK", ID_KEY)


def _is_used(link: Link) -> bool:
    """Whether anybody has written rows since: then the id is theirs too."""
    try:
        return bool(link.scan(f"{PREFIX}:{{*"))
    except StoreError:  # SCAN is not among the rights of `effectonce schema`
        return True
