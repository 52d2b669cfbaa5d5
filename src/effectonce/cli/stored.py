"""Which partitions of a store a command speaks of, and which key an event ID has."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effectonce.errors import ConfigError
from effectonce.identity.identify import SECRET_BYTES
from effectonce.identity.keys import KEY_BYTES, composite_keys, keys_of, parts
from effectonce.identity.record import MAX_ID_BYTES
from effectonce.model import Partition
from effectonce.stores import open_store
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_view import partitions

FROM_STDIN = "-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Partitions by what is given of them; None is any."""

    scope: str | None = None
    group: str | None = None
    topic: str | None = None
    number: int | None = None

    def __contains__(self, at: Partition) -> bool:
        given = (self.scope, self.group, self.topic, self.number)
        has = (at.scope, at.group, at.topic, at.number)
        return all(want in (None, own) for want, own in zip(given, has, strict=True))


def named(url: str) -> str:
    """What kind of store a URL names. Raises ConfigError."""
    return open_store(url).traits.name


def root_of(url: str) -> Path:
    """The folder of an embedded store that is there. Raises ConfigError."""
    store = open_store(url)
    if not isinstance(store, RocksDBStore):
        raise ConfigError([f"this command reads rocksdb: stores, not {store.traits.name}"])
    if not store.path.is_dir():
        raise ConfigError([f"there is no store at {store.path}"])
    return store.path


def partitions_of(root: Path, wanted: Wanted) -> list[Partition]:
    """The partitions that are there and wanted, at least one. Raises ConfigError."""
    there = list(partitions(root))
    found = [at for at in there if at in wanted]
    if not found:
        raise ConfigError([f"{root} has {len(there)} partitions, and none of them is meant"])
    return found


def key_of(ids: Sequence[str], secret_file: Path | None) -> bytes:
    """The key of an event ID; of several, as `joined` and `cloudevent` make one of their parts.

    Raises ConfigError, which does not repeat the ID.
    """
    raw = [(sys.stdin.readline().rstrip("\n") if i == FROM_STDIN else i).encode() for i in ids]
    if not all(1 <= len(each) <= MAX_ID_BYTES for each in raw):
        raise ConfigError([f"an event ID has 1 to {MAX_ID_BYTES} bytes"])
    secret = _secret(secret_file) if secret_file is not None else None
    single = len(raw) == 1
    keys = keys_of(raw, secret) if single else composite_keys([parts(raw)], secret)
    key: bytes = keys[0].tobytes()
    return key


def key_from_hex(text: str) -> bytes:
    """A key as `event.id` shows it where the ID is no text of its own. Raises ConfigError."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError([f"a key is {2 * KEY_BYTES} hexadecimal digits"])
    return key


def _secret(file: Path) -> bytes:
    try:
        secret = file.read_bytes()
    except OSError as error:
        raise ConfigError([f"the secret cannot be read: {error}"]) from error
    least, most = SECRET_BYTES
    if not least <= len(secret) <= most:
        raise ConfigError(
            [f"{file} has {len(secret)} bytes; a secret has {least} to {most}, and no line break "
             "behind it"]
        )  # fmt: skip
    return secret
