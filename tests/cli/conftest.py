"""A store, and the shell that speaks of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from effectonce.stores.rocksdb import RocksDBStore
from tests.cli import shell


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksDBStore]:
    store = RocksDBStore(tmp_path / "state")
    yield store
    store.close()


@pytest.fixture
def effectonce(
    store: RocksDBStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> shell.Shell:
    return shell.shell(store, monkeypatch, capsys)
