"""A URL names exactly one store, or is refused with what there is."""

import subprocess
import sys
from pathlib import Path

import pytest

from effectonce.errors import ConfigError
from effectonce.ports import Durability
from effectonce.stores import open_store
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore


def rocksdb(url: str) -> RocksDBStore:
    store = open_store(url)
    assert isinstance(store, RocksDBStore)
    return store


def test_an_absolute_path_is_taken_as_it_is() -> None:
    assert rocksdb("rocksdb:///var/lib/app").path == Path("/var/lib/app")
    assert rocksdb("rocksdb:/var/lib/app").path == Path("/var/lib/app")


def test_a_relative_path_begins_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rocksdb("rocksdb:state/a").path == tmp_path / "state" / "a"


def test_a_path_is_percent_decoded() -> None:
    assert rocksdb("rocksdb:///my%20state%3F").path == Path("/my state?")


@pytest.mark.parametrize(
    ("query", "durability"),
    [("", "process"), ("?sync=false", "process"), ("?sync=true", "host")],
)
def test_sync_decides_the_durability(query: str, durability: str) -> None:
    traits = rocksdb(f"rocksdb:///state{query}").traits
    assert traits.durability is Durability(durability)


def test_memory_is_new_each_time() -> None:
    first, second = open_store("memory:"), open_store("memory:")
    assert isinstance(first, MemoryStore)
    assert first.prepare() != second.prepare()


def test_a_store_passes_through() -> None:
    store = MemoryStore()
    assert open_store(store) is store


def test_naming_a_store_creates_nothing(tmp_path: Path) -> None:
    open_store(f"rocksdb://{tmp_path}/state").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis-cluster://user:hunter2@host/0", "'redis-cluster' is unknown; there are memory:, r"),
        ("/var/lib/app", "no scheme; there are memory:, rocksdb:"),
        ("", "no scheme"),
        ("rocksdb:", "needs a folder"),
        ("rocksdb:///", "needs a folder"),
        ("rocksdb://state", "takes no host"),
        ("rocksdb:///s?sync=yes", "true or false"),
        ("rocksdb:///s?sink=true", "'sink' is unknown; there is sync"),
        ("rocksdb:///s?sync=true&sync=false", "twice"),
        ("rocksdb:///s?sync", "true or false"),
        ("rocksdb:///s#1", "%23"),
        ("memory:name", "no name"),
        ("memory:?sync=true", "'sync' is unknown; there are none"),
    ],
)
def test_what_names_no_store_is_refused_with_advice(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_every_problem_of_a_url_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("rocksdb://host/s?sync=1&cache=9")
    assert len(caught.value.problems) == 3


def test_what_is_no_store_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="not dict"):
        open_store({})  # type: ignore[arg-type]


def test_rocksdb_is_loaded_only_when_it_is_used() -> None:
    code = (
        "import sys; from effectonce.stores import open_store; open_store('memory:');"
        "sys.exit('rocksdict' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
