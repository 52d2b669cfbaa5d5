"""`effectonce inspect redis://...`: "not found" only where that is proven, and nothing written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from effectonce.stores.redis import RedisStore
from effectonce.testing.owner import AT, OTHER, Owner, next_generation
from effectonce.testing.servers import ServerUnavailable, ValkeyCluster, ValkeyServer
from tests.cli.shell import Said, Shell, ids, mark
from tests.stores.redis_kit import order

TEXT = "invoice-4711"
UUID = "0b8f3c52-6f0e-4c1b-9d7a-2f4f2f1d9a10"
SCOPE = "effectonce:{payments}"


@pytest.fixture
def admin(valkey_server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(valkey_server.url) as client:
        client.flushall()
        yield client


LAYOUTS: Mapping[str, Mapping[str, Any]] = {
    "scope": {"layout": "scope"},
    "partition": {"layout": "partition"},
    "packed": {"layout": "partition", "index": "local"},
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def filled(valkey_server: ValkeyServer, admin: Redis, layout: str) -> Iterator[RedisStore]:
    """Two partitions, an event in each."""
    store = RedisStore(valkey_server.url, **LAYOUTS[layout])
    mark(store, ids(TEXT), {"charged": True}, time_ms=1_700_000_000_000)
    mark(store, ids("another"), at=OTHER)
    yield store
    store.close()


@pytest.fixture
def inspect(effectonce: Shell, valkey_server: ValkeyServer) -> Shell:
    def call(*options: str, url: str = valkey_server.url) -> Said:
        return effectonce("inspect", *options, url=url)

    return call


def everything(admin: Redis) -> dict[bytes, Any]:
    return {key: admin.dump(key) for key in admin.scan_iter()}


def test_positions_and_markers_are_told_and_nothing_is_written(
    filled: RedisStore, inspect: Shell, admin: Redis, layout: str
) -> None:
    before = everything(admin)
    said = inspect("--json")
    assert said.code == 0
    assert everything(admin) == before
    first, second = said.json["partitions"]
    assert (first["scope"], first["group"], first["topic"]) == ("payments", "billing", "orders")
    assert (first["number"], second["number"]) == (0, 1)
    position = first["position"]
    assert (position["next"], position["epoch"], position["horizon"]) == (1, 1, 0)
    assert position["log_time_ms"] == 1_700_000_000_000
    assert position["topic_id"] == "AAECAwQFBgcICQoLDA0ODw"
    assert position["store_id"] == filled.prepare().hex()
    assert first["generations"] == [{"generation": 1, "offset": 0, "log_time_ms": 1_000}]
    scopes = said.json["scopes"]
    counted = [(each["markers"], each["whole"], each["problems"]) for each in scopes]
    assert counted == ([(2, True, [])] if layout == "scope" else [(1, True, [])] * 2)
    assert scopes[0]["generations"][0]["generation"] == 1
    assert "event" not in said.json


def test_people_are_told_too(filled: RedisStore, inspect: Shell) -> None:
    said = inspect()
    assert said.code == 0
    assert "topic id AAECAwQFBgcICQoLDA0ODw" in said.out
    assert "2023-11-14 22:13:20.000Z" in said.out


def test_only_what_is_asked_for_is_shown(filled: RedisStore, inspect: Shell) -> None:
    mark(filled, ids(TEXT), at=replace(AT, topic="refunds", group="audit", scope="audits"))

    def shown(*options: str) -> list[tuple[str, int]]:
        found = inspect("--json", *options).json["partitions"]
        return [(each["topic"], each["number"]) for each in found]

    assert shown() == [("refunds", 0), ("orders", 0), ("orders", 1)]
    assert shown("--topic", "orders") == [("orders", 0), ("orders", 1)]
    assert shown("--partition", "1") == [("orders", 1)]
    assert shown("--scope", "audits") == [("refunds", 0)]
    said = inspect("--topic", "nonesuch")
    assert said.code == 2
    assert "none of them is meant" in said.err


def test_generations_and_runs_are_counted_apart(
    valkey_server: ValkeyServer, admin: Redis, inspect: Shell
) -> None:
    store = RedisStore(valkey_server.url)
    owner = Owner.open(store)
    owner.commit([1, 2, 3])
    owner.position = next_generation(owner.position, 2, floor=1)
    owner.commit([4])
    owner.position = replace(owner.position, run=1)
    owner.commit([5, 6])
    (scope,) = inspect("--json").json["scopes"]
    counted = [(g["run"], g["generation"], g["markers"]) for g in scope["generations"]]
    assert counted == [(0, 1, 3), (0, 2, 1), (1, 2, 2)]
    store.close()


def test_an_event_is_found_with_what_it_returned(
    filled: RedisStore, inspect: Shell, layout: str
) -> None:
    said = inspect("--json", "--id", TEXT)
    assert said.code == 0
    assert said.json["event"]["answer"] == "found"
    (effect,) = said.json["event"]["effects"]
    assert (effect["scope"], effect["offset"], effect["epoch"]) == ("payments", 0, 1)
    assert (effect["partition"] is None) == (layout == "scope")
    assert effect["outcome"] == {"charged": True}
    told = inspect("--id", TEXT)
    assert told.code == 0
    assert "FOUND: took effect in" in told.out
    assert "{'charged': True}" in told.out


def test_an_event_without_a_marker_is_not_found(filled: RedisStore, inspect: Shell) -> None:
    said = inspect("--id", UUID)
    assert said.code == 1
    assert "NOT FOUND" in said.out
    assert inspect("--json", "--id", UUID).json["event"] == {"answer": "not found", "effects": []}


@pytest.mark.parametrize("options", [("--json",), ()])
def test_neither_an_id_nor_its_key_is_ever_printed(
    filled: RedisStore, inspect: Shell, options: tuple[str, ...], admin: Redis
) -> None:
    damaged_marker(admin)  # in an error's text neither
    for event_id in (UUID, TEXT):
        said = inspect(*options, "--id", event_id)
        told = (said.out + said.err).replace("-", "")
        assert event_id.replace("-", "") not in told
        assert ids(event_id).tobytes().hex() not in told


def damaged_marker(admin: Redis) -> None:
    for key in admin.scan_iter("*markers*"):
        if b":packed}" in key:
            admin.rpush(key, b"short")
        else:
            admin.hset(key, ids(UUID).tobytes(), b"short")


def lost_generation(admin: Redis) -> None:
    admin.delete(next(iter(sorted(admin.scan_iter("*markers*")))))


def lost_list(admin: Redis) -> None:
    for key in admin.scan_iter("*:markers:*"):
        admin.delete(key.partition(b":markers:")[0])


def lost_positions(admin: Redis) -> None:
    for key in admin.scan_iter("*:positions"):
        admin.delete(key)


def damaged_row(admin: Redis) -> None:
    for key in admin.scan_iter("*:positions"):
        for name, value in admin.hgetall(key).items():
            assert isinstance(value, bytes)
            admin.hset(key, name, value[:-1] + bytes([value[-1] ^ 1]))


def another_type(admin: Redis) -> None:
    for key in admin.scan_iter("*markers*"):
        admin.delete(key)
        admin.set(key, "theirs")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (damaged_marker, " bytes"),
        (lost_generation, "is gone"),
        (lost_list, "does not list it"),
        (lost_positions, "is not there"),
        (damaged_row, "billing:orders"),
        (another_type, "another type"),
    ],
)
def test_an_event_that_may_have_been_lost_is_unknown_and_never_not_found(
    filled: RedisStore, inspect: Shell, admin: Redis, harm: Any, says: str
) -> None:
    harm(admin)
    said = inspect("--id", UUID)
    assert said.code == 2
    assert "UNKNOWN" in said.out
    assert "NOT FOUND" not in said.out
    assert says in said.out
    assert inspect("--json", "--id", UUID).json["event"]["answer"] == "unknown"
    if harm is not damaged_marker:  # in a hash that is found only by who asks for it
        assert inspect().code == 2


def test_a_server_that_has_evicted_proves_nothing(inspect: Shell) -> None:
    with ValkeyServer.start() as server, Redis.from_url(server.url) as admin:
        store = RedisStore(server.url)
        mark(store, ids(TEXT))
        admin.set("theirs", "x" * 100_000)
        admin.config_set("maxmemory-policy", "allkeys-random")
        admin.config_set("maxmemory", 1)
        with pytest.raises(Exception, match="memory"):
            admin.set("one more", "x")
        admin.config_set("maxmemory", 0)
        admin.config_set("maxmemory-policy", "noeviction")
        mark(store, ids(TEXT))
        store.close()
        said = inspect("--id", UUID, url=server.url)
        assert said.code == 2
        assert "has evicted" in said.out


def test_a_full_server_can_still_be_looked_into(
    filled: RedisStore, inspect: Shell, admin: Redis
) -> None:
    admin.config_set("maxmemory", 1)
    try:
        assert inspect("--id", TEXT).code == 0
    finally:
        admin.config_set("maxmemory", 0)


def test_a_replica_is_not_asked(filled: RedisStore, inspect: Shell, admin: Redis) -> None:
    with ValkeyServer.start() as master:
        port = master.tcp_url.rsplit(":", 1)[1]
        with ValkeyServer.start(config={"replicaof": f"127.0.0.1 {port}"}) as replica:
            said = inspect("--id", TEXT, url=replica.url)
    assert said.code == 2
    assert "is a slave" in said.err


def test_a_server_that_is_away_is_told_in_one_line(inspect: Shell) -> None:
    said = inspect(url="unix:///nowhere/valkey.sock")
    assert said.code == 2
    assert said.err.startswith("effectonce: Redis cannot be reached")


def test_a_user_with_the_rights_that_are_documented_can_look(
    filled: RedisStore, inspect: Shell, valkey_server: ValkeyServer, admin: Redis
) -> None:
    text = " ".join(Path("docs/redis.md").read_text().split())
    rights = text.partition("Its user needs `")[2].partition("`")[0]
    order(admin, "ACL SETUSER", "eye", "reset", "on", ">pw", *rights.split())
    try:
        assert inspect("--id", TEXT, url=valkey_server.url.replace("//", "//eye:pw@")).code == 0
    finally:
        order(admin, "ACL DELUSER", "eye")


@pytest.mark.parametrize("of_layout", LAYOUTS)
def test_a_cluster_is_read_on_all_of_its_masters(inspect: Shell, of_layout: str) -> None:
    try:
        cluster = ValkeyCluster.start()
    except ServerUnavailable as error:
        pytest.skip(str(error))
    with cluster:
        store = RedisStore(cluster.url, cluster=True, **LAYOUTS[of_layout])
        for number in range(6):
            mark(store, ids(f"event {number}"), at=replace(AT, number=number, scope=f"s{number}"))
        store.close()
        url = f"{cluster.url}?cluster=true"
        said = inspect("--json", url=url)
        assert said.code == 0
        assert [each["number"] for each in said.json["partitions"]] == list(range(6))
        assert inspect("--id", "event 5", url=url).code == 0
        assert inspect("--id", "event 6", url=url).code == 1
        assert "cluster=true" in inspect("--id", "event 5", url=cluster.url).err
