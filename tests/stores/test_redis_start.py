"""An honest start: a server that cannot keep the promise is refused, with all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from effectonce.errors import ConfigError, StoreUnavailable
from effectonce.model import Applied
from effectonce.ports import Durability
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_checks import Server, ask, problems_of, version_of
from effectonce.stores.redis_link import Link
from effectonce.stores.redis_wait import Wait
from effectonce.testing.owner import Owner
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order

SOUND = Server(
    name="",
    run_id="1",
    version="7.2.4",
    role="master",
    policy="noeviction",
    append_only=True,
    fsync="always",
    min_replicas=0,
    is_cluster=False,
    evicted_keys=0,
)
NOTHING = Wait()
PLAIN = Link(Redis, is_cluster=False, ours=True)
CLUSTER = Link(lambda: RedisCluster(host="nowhere"), is_cluster=True, ours=True)


def problems(
    server: Server, link: Link = PLAIN, durability: str = "host", wait: Wait = NOTHING
) -> list[str]:
    return problems_of([server], link, Durability(durability), wait)


def test_a_sound_server_is_taken() -> None:
    assert problems(SOUND) == []
    assert problems(replace(SOUND, is_cluster=True), CLUSTER) == []
    assert problems(replace(SOUND, fsync="everysec"), durability="process") == []
    assert problems(replace(SOUND, append_only=False, fsync=None), durability="none") == []


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (replace(SOUND, version="6.2.14"), "version 6.2.14: Redis 7.0"),
        (replace(SOUND, version=""), "oldest"),
        (replace(SOUND, role="slave"), "is a slave"),
        (replace(SOUND, policy="allkeys-lru"), "allkeys-lru"),
        (replace(SOUND, policy=None), "maxmemory-policy None"),
        (replace(SOUND, append_only=False), "appendonly no"),
        (replace(SOUND, append_only=None), "appendonly no"),
        (replace(SOUND, fsync="everysec"), "appendfsync everysec"),
        (replace(SOUND, fsync=None), "CONFIG GET is refused"),
        (replace(SOUND, is_cluster=True), "cluster=true"),
    ],
)
def test_each_thing_that_breaks_the_promise_is_told(server: Server, says: str) -> None:
    (problem,) = problems(server)
    assert says in problem


AOF = Wait(aof=True)


@pytest.mark.parametrize(
    ("server", "wait", "says"),
    [
        (replace(SOUND, version="7.0.15"), AOF, "from 7.2 on"),
        (replace(SOUND, fsync="everysec"), AOF, "before it has synced"),
        (replace(SOUND, fsync=None), AOF, "CONFIG GET is refused"),
        (replace(SOUND, version="8.0.0", fsync="no"), AOF, "would wait for ever"),
        (replace(SOUND, min_replicas=1), Wait(replicas=2), "min-replicas-to-write 1"),
        (replace(SOUND, min_replicas=None), Wait(replicas=1), "CONFIG GET is refused"),
    ],
)
def test_what_is_waited_for_must_be_there_to_wait_for(
    server: Server, wait: Wait, says: str
) -> None:
    (problem,) = problems(server, wait=wait)
    assert says in problem


def test_a_server_whose_waitaof_waits_is_taken_with_everysec() -> None:
    honest = replace(SOUND, version="8.0.0")
    assert problems(replace(honest, fsync="everysec"), wait=AOF) == []
    assert problems(replace(honest, fsync=None), wait=AOF) == []
    assert problems(replace(SOUND, min_replicas=2), wait=Wait(replicas=2, aof=True)) == []


def test_a_plain_server_behind_a_cluster_client_is_told() -> None:
    (problem,) = problems(SOUND, CLUSTER)
    assert "plain client" in problem


def test_an_old_replica_that_evicts_is_told_all_at_once() -> None:
    bad = replace(
        SOUND, version="6.0.0", role="slave", policy="volatile-ttl", append_only=False, fsync="no"
    )
    assert len(problems(bad)) == 5


def test_a_version_is_read_whatever_stands_there() -> None:
    assert version_of("7.2.4") == (7, 2)
    assert version_of("255.255.255") == (255, 255)
    assert version_of("unstable") == (0, 0)


class Loading(Link):
    """Valkey 9 as it reads its append-only file: it says that it has none (seen)."""

    def __init__(self) -> None:
        super().__init__(Redis, is_cluster=False, ours=False)

    def call(self, *command: str | bytes | int, **options: object) -> Any:
        return {"loading": 1, "aof_enabled": 0, "maxmemory_policy": "noeviction"}


def test_a_server_that_loads_is_waited_for_and_not_refused_for_the_file_that_it_reads() -> None:
    with pytest.raises(StoreUnavailable, match="loading"):
        ask(Loading(), settings=False)


# -- on real servers -------------------------------------------------------------------------------


def refused(url: str, durability: str = "host") -> tuple[str, ...]:
    store = RedisStore(url, durability=durability)
    with pytest.raises(ConfigError) as caught:
        store.prepare()
    store.close()
    return caught.value.problems


@pytest.mark.parametrize(
    ("config", "durability", "says"),
    [
        ({"maxmemory-policy": "volatile-lru"}, "process", ["noeviction"]),
        ({"appendonly": "no"}, "process", ["appendonly no"]),
        ({"appendfsync": "everysec"}, "host", ["appendfsync everysec"]),
        ({"cluster-enabled": "yes"}, "process", ["cluster=true"]),
        (
            {"appendonly": "no", "maxmemory-policy": "allkeys-lru", "appendfsync": "no"},
            "host",
            ["noeviction", "appendonly no", "appendfsync no"],
        ),
    ],
)
def test_a_real_server_says_what_is_wrong_with_it(
    config: Mapping[str, str], durability: str, says: list[str]
) -> None:
    with ValkeyServer.start(config=config) as server:
        found = refused(server.url, durability)
    assert len(found) == len(says), found
    assert all(part in problem for part, problem in zip(says, found, strict=True)), found


def test_a_replica_is_refused() -> None:
    with ValkeyServer.start() as master:
        port = master.tcp_url.rsplit(":", 1)[1]
        with ValkeyServer.start(config={"replicaof": f"127.0.0.1 {port}"}) as replica:
            found = refused(replica.url)
    (problem,) = found
    assert "is a slave" in problem


def test_a_server_without_a_file_is_taken_where_nothing_was_promised() -> None:
    with ValkeyServer.start(config={"appendonly": "no"}) as server:
        store = RedisStore(server.url, durability=Durability.NONE)
        assert Owner.open(store).commit([1]) == Applied()
        assert store.traits.durability is Durability.NONE
        store.close()


def test_a_server_that_is_away_is_not_misconfigured() -> None:
    store = RedisStore("unix:///nowhere/valkey.sock")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.prepare()


@pytest.fixture
def admin(valkey_server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(valkey_server.url) as client:
        client.flushall()
        yield client
        order(client, "ACL DELUSER app")


def as_user(server: ValkeyServer, admin: Redis, *rights: str) -> str:
    order(admin, "ACL SETUSER", "app", "reset", "on", ">hunter2", *rights)
    return server.url.replace("unix://", "unix://app:hunter2@")


def test_a_forbidden_config_get_stands_against_host_durability_alone(
    valkey_server: ValkeyServer, admin: Redis
) -> None:
    url = as_user(valkey_server, admin, "~*", "+@all", "-config")
    (problem,) = refused(url)
    assert "CONFIG GET is refused" in problem
    store = RedisStore(url, durability="process")
    assert Owner.open(store).commit([1]) == Applied()
    store.close()


def test_a_forbidden_info_is_told(valkey_server: ValkeyServer, admin: Redis) -> None:
    (problem,) = refused(as_user(valkey_server, admin, "~*", "+@all", "-info"))
    assert "INFO is refused" in problem


@pytest.mark.parametrize("forbidden", ["-hset", "-unlink", "-hdel", "-evalsha -eval"])
def test_a_missing_right_is_found_before_it_could_cut_a_commit_in_two(
    valkey_server: ValkeyServer, admin: Redis, forbidden: str
) -> None:
    url = as_user(valkey_server, admin, "~*", "+@all", *forbidden.split())
    admin.flushall()
    (problem,) = refused(url)
    assert "hunter2" not in problem
    assert admin.keys("*") == [], "the trial has left a key behind"


def test_keys_of_others_are_not_needed(valkey_server: ValkeyServer, admin: Redis) -> None:
    url = as_user(valkey_server, admin, "~effectonce:*", "+@all")
    store = RedisStore(url, durability="host")
    assert Owner.open(store).commit([1]) == Applied()
    store.close()


# -- the user's own client -------------------------------------------------------------------------


def test_a_client_that_would_wait_for_ever_is_refused() -> None:
    with pytest.raises(ConfigError, match="socket_timeout"):
        RedisStore(Redis(socket_timeout=None))


def test_a_client_that_decodes_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        RedisStore(Redis(decode_responses=True, socket_timeout=None))
    assert len(caught.value.problems) == 2


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(ConfigError, match="not dict"):
        RedisStore({})  # type: ignore[arg-type]


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RedisStore("redis://localhost", layout="slot", durability="disk", timeout_seconds=0)
    assert len(caught.value.problems) == 3
