"""The command line as a shell sees it, on a store that the test fills."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest

from effectonce.cli.app import run
from effectonce.core.outcome import encode_outcome
from effectonce.identity.keys import keys_of
from effectonce.model import Keys, Partition
from effectonce.ports import Store
from effectonce.stores.encoding import packed_key
from effectonce.stores.rocksdb import RocksDBStore
from effectonce.stores.rocksdb_files import Folder
from effectonce.stores.rocksdb_options import Shared, open_database
from effectonce.testing.owner import AT, Owner


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Shell: TypeAlias = Callable[..., Said]


def shell(
    store: RocksDBStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Runs `effectonce COMMAND store ...`."""

    def call(command: str, *options: str, url: str = f"rocksdb://{store.path}") -> Said:
        monkeypatch.setattr(sys, "argv", ["effectonce", command, url, *options])
        with pytest.raises(SystemExit) as ended:
            run()
        code = ended.value.code
        assert isinstance(code, int)
        return Said(code, *capsys.readouterr())

    return call


def mark(
    store: Store, keys: Keys, outcome: object = None, at: Partition = AT, time_ms: int = 0
) -> None:
    """One event that took effect."""
    owner = Owner.open(store, at)
    encoded = encode_outcome(outcome, 65_536)
    position = replace(owner.position, log_time_ms=time_ms, wall_ms=time_ms + 5)
    commit = owner.prepared(
        [1], to=replace(position, next=position.next + 1), outcomes={0: encoded} if encoded else {}
    )
    assert commit.markers is not None
    owner.send(replace(commit, markers=replace(commit.markers, keys=keys)))


def ids(*texts: str, secret: bytes | None = None) -> Keys:
    return keys_of([text.encode() for text in texts], secret)


def damage(store: RocksDBStore, at: Partition = AT) -> None:
    """Flip a bit in the partition's first packed row."""
    store.release(at)
    db = open_database(Folder(store.path, at).path, Shared())
    value = db.get(packed_key(1, 0))
    assert value is not None
    db[packed_key(1, 0)] = value[:20] + bytes([value[20] ^ 1]) + value[21:]
    db.close()
