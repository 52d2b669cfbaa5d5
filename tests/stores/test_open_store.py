"""A URL names exactly one store, or is refused with what there is."""

import subprocess
import sys
from pathlib import Path

import pytest

from effectonce.errors import ConfigError
from effectonce.ports import Durability, Reach
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


@pytest.mark.parametrize(
    ("url", "reach", "durability"),
    [
        ("redis://localhost", "shared", "process"),
        ("rediss://user:pw@localhost:6380/3?durability=host", "shared", "host"),
        ("unix:///run/valkey.sock?db=1&layout=partition&durability=none", "keyed", "none"),
    ],
)
def test_a_redis_url_says_what_is_promised_and_asks_nobody(
    url: str, reach: str, durability: str
) -> None:
    traits = open_store(url).traits
    assert traits.name == "redis"
    assert (traits.reach, traits.durability) == (Reach(reach), Durability(durability))


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
        (
            "redis-cluster://user:hunter2@host/0",
            "'redis-cluster' is unknown; there are memory:, redis:, re",
        ),
        ("/var/lib/app", "no scheme; there are memory:, redis:, rediss:, rocksdb:, unix:"),
        ("/tmp/my state", "unix:. For that folder: rocksdb:///tmp/my%20state"),
        ("//user:hunter2@host/0", "no scheme"),
        ("", "no scheme"),
        ("rocksdb:", "needs a folder"),
        ("rocksdb:///", "needs a folder"),
        ("rocksdb://state", "takes no host"),
        ("rocksdb:///s?sync=yes", "true or false"),
        ("rocksdb:///s?sink=true", "'sink' is unknown; there is sync"),
        ("rocksdb:///s?sync=true&sync=false", "twice"),
        ("rocksdb:///s?sync", "true or false"),
        ("rocksdb:///s#1", "%23"),
        ("redis:", "needs a host"),
        ("redis:///0", "needs a host"),
        ("redis://u:hunter2@host/orders", "number of a database"),
        ("redis://u:hunter2@host:port/0", "port is no number"),
        ("redis://host?durability=disk", "durability='disk': one of 'none', 'process', 'host'"),
        ("redis://host?layout=topic", "layout='topic': one of 'scope', 'partition'"),
        ("redis://host?cluster=yes", "cluster='yes': true or false"),
        ("redis://host?timeout=soon", "timeout='soon': seconds"),
        ("redis://host?timeout=0", "above 0"),
        ("rediss://host?ssl_cert_reqs=none", "'ssl_cert_reqs' is unknown"),
        ("unix:", "needs a socket"),
        ("memory:name", "no name"),
        ("memory:?sync=true", "'sync' is unknown; there are none"),
    ],
)
def test_what_names_no_store_is_refused_with_advice(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_redis_without_its_client_is_told_what_to_install() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from effectonce.stores import open_store\n"
        "open_store('redis://localhost')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"effectonce[redis]" in ended.stderr


def test_every_problem_of_a_url_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("rocksdb://host/s?sync=1&cache=9")
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError) as caught:
        open_store("redis://host?layout=topic&durability=disk&replicas=one&cache=9")
    assert len(caught.value.problems) == 4


def test_what_is_no_store_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="not dict"):
        open_store({})  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["rocksdict", "redis"])
def test_a_database_is_loaded_only_when_it_is_used(package: str) -> None:
    code = (
        "import sys; from effectonce.stores import open_store; open_store('memory:');"
        f"sys.exit({package!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
