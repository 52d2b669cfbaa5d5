"""Replicas and disks that were asked for have a commit before it is answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from effectonce.cli.schema import schema
from effectonce.errors import ConfigError, StoreUnavailable
from effectonce.model import Already, Applied, CommitResult, Stale, Unknown
from effectonce.ports import Durability, Store
from effectonce.stores import open_store
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_link import slot_of
from effectonce.testing.contract import StoreContract
from effectonce.testing.owner import AT, Owner, next_generation
from effectonce.testing.servers import ValkeyCluster, ValkeyServer
from effectonce.testing.servers.valkey_cluster import order as order_node
from tests.stores.redis_kit import order
from tests.stores.test_redis_cluster import own_slot

QUICK = 0.5
"""Seconds of a call in tests where the wait is in vain."""
PATIENCE_SECONDS = 30.0
ALONE = {"min-replicas-to-write": 1}
"""A master that takes nothing without its replica."""


@contextmanager
def following(master: ValkeyServer, config: Mapping[str, str | int] | None = None) -> Iterator[
    ValkeyServer
]:  # fmt: skip
    """A replica of `master`, once it follows."""
    port = master.tcp_url.rsplit(":", 1)[1]
    follows = {"replicaof": f"127.0.0.1 {port}", "repl-diskless-sync-delay": 0, **(config or {})}
    with ValkeyServer.start(config=follows) as replica, Redis.from_url(master.url) as client:
        await_that(lambda: has_a_good_replica(client))
        yield replica


def has_a_good_replica(master: Redis) -> bool:
    """One that follows and says so, as WAIT and min-replicas-to-write count them."""
    told = master.info("replication")
    return (
        told.get("slave0", {}).get("state") == "online"
        and told.get("min_slaves_good_slaves", 1) == 1
        and bool(master.set("last", 1))
        and master.wait(1, 1000) == 1
    )


@contextmanager
def frozen(server: ValkeyServer) -> Iterator[None]:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def await_that(what: Callable[[], object]) -> None:
    """What servers do in their own time, and tell nobody."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_away(result: CommitResult, says: str) -> None:
    assert isinstance(result, Unknown), result
    assert isinstance(result.error, StoreUnavailable)
    assert says in str(result.error)


@pytest.fixture(scope="module")
def master() -> Iterator[ValkeyServer]:
    with ValkeyServer.start(config={"repl-diskless-sync-delay": 0}) as master:
        yield master


@pytest.fixture(scope="module")
def replica(master: ValkeyServer) -> Iterator[ValkeyServer]:
    with following(master) as replica, Redis.from_url(master.url) as admin:
        admin.config_set("min-replicas-to-write", 1)
        yield replica


@pytest.fixture
def admin(master: ValkeyServer, replica: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(master.url) as client:
        await_that(lambda: has_a_good_replica(client))
        client.flushall()
        client.wait(1, 5000)
        yield client


@pytest.fixture
def store(master: ValkeyServer, admin: Redis) -> Iterator[RedisStore]:
    store = RedisStore(master.url, replicas=1, timeout_seconds=QUICK)
    yield store
    store.close()


# -- the contract ----------------------------------------------------------------------------------


class _AsARestrictedUser(StoreContract):
    """With no right beyond those that `effectonce schema` prints."""

    options: str

    @pytest.fixture(autouse=True)
    def server(self, master: ValkeyServer, admin: Redis) -> Iterator[None]:
        self.url = f"{master.url.replace('unix://', 'unix://app:hunter2@')}?{self.options}"
        _, name, *rules = schema(self.url).split()
        order(admin, "ACL SETUSER", name, *rules)
        yield
        order(admin, "ACL DELUSER", name)

    def make_store(self, folder: Path) -> Store:
        return open_store(self.url)


class TestHeldByAReplica(_AsARestrictedUser):
    options = "layout=partition&replicas=1"


class TestHeldOnADisk(_AsARestrictedUser):
    options = "durability=host&wait_aof=true"


# -- replicas --------------------------------------------------------------------------------------


def test_a_commit_that_the_replica_has_not_got_is_unknown_until_it_has(
    store: RedisStore, replica: ValkeyServer
) -> None:
    owner = Owner.open(store)
    with frozen(replica):
        commit = owner.prepared([1])
        is_away(owner.send(commit), "0 of 1 replicas have it")
        # on a new connection, WAIT without a write before it would call that held
        store._link.close()
        is_away(owner.send(commit), "0 of 1 replicas have it")
        assert owner.seen(1) == [True]
    assert owner.send(commit) == Already()
    with Redis.from_url(replica.url) as follower:
        assert follower.hlen("effectonce:{payments}:markers:0:1") == 1


def test_an_epoch_that_the_replica_has_not_got_is_not_handed_out(
    store: RedisStore, replica: ValkeyServer
) -> None:
    first = Owner.open(store)
    with frozen(replica), pytest.raises(StoreUnavailable, match="0 of 1"):
        Owner.open(store)
    assert Owner.open(store).position.epoch == first.position.epoch + 2


def test_a_store_id_that_the_replica_has_not_got_is_not_told(
    store: RedisStore, replica: ValkeyServer
) -> None:
    with frozen(replica), pytest.raises(StoreUnavailable, match="0 of 1"):
        store.prepare()
    assert len(store.prepare()) == 16


def test_markers_of_a_zombie_are_held_too(
    master: ValkeyServer, store: RedisStore, replica: ValkeyServer
) -> None:
    zombie = Owner.open(store)
    zombie.position = next_generation(zombie.position, 2, floor=1)
    heir = RedisStore(master.url)
    Owner.open(heir)
    late = zombie.prepared([1, 2])
    with frozen(replica):
        assert isinstance(zombie.send(late), Unknown), "its effects outside are facts"
        assert isinstance(zombie.send(late), Unknown)
    results = [zombie.send(late) for _ in range(3)]
    assert results[-1] == Stale()
    with Redis.from_url(replica.url) as follower:
        assert follower.hlen("effectonce:{payments}:markers:0:2") == 2
    heir.close()


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_failover_to_a_replica_that_was_waited_for_loses_nothing(replicas: int) -> None:
    """And one that was not waited for does, so that the test would see it."""
    with ValkeyServer.start(config=ALONE) as master, following(master) as replica:
        store = RedisStore(master.url, replicas=replicas, timeout_seconds=QUICK)
        owner = Owner.open(store)
        for number in range(20):
            assert owner.commit([number]) == Applied()
        with Redis.from_url(master.url) as admin:
            admin.wait(1, 1000)
            await_that(lambda: admin.set("last", 1) and admin.wait(1, 1000) == 1)
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGSTOP)
        answered = [n for n in range(20, 23) if owner.commit([n]) == Applied()]
        master.kill()
        replica.kill()  # what lay in its socket is gone, as with a cut cable
        replica.restart()
        with Redis.from_url(replica.url) as promoted:
            promoted.replicaof("NO", "ONE")
        heir = RedisStore(replica.url)
        found = Owner.open(heir)
        lost = [n for n in [*range(20), *answered] if found.seen(n) == [False]]
        assert lost == ([20, 21, 22] if replicas == 0 else [])
        assert found.position.next == 20
        for each in (store, heir):
            each.close()


def test_a_master_that_would_go_on_alone_is_refused(admin: Redis, store: RedisStore) -> None:
    admin.config_set("min-replicas-to-write", 0)
    with pytest.raises(ConfigError, match="min-replicas-to-write 0"):
        store.prepare()
    admin.config_set("min-replicas-to-write", 1)
    store.prepare()


def test_a_master_without_its_replica_is_waited_for() -> None:
    with ValkeyServer.start(config=ALONE) as alone:
        store = RedisStore(alone.url, replicas=1, timeout_seconds=QUICK)
        with pytest.raises(StoreUnavailable, match="min-replicas-to-write"):
            store.prepare()
        with following(alone):
            assert Owner.open(store).commit([1]) == Applied()
        store.close()


# -- disks -----------------------------------------------------------------------------------------


def test_a_server_whose_waitaof_does_not_wait_is_refused() -> None:
    """Valkey 9.1 answered 20 of them after one fdatasync."""
    with ValkeyServer.start(config={"appendfsync": "everysec"}) as server:
        store = RedisStore(server.url, durability="host", wait_aof=True)
        assert store.traits.durability is Durability.HOST
        with pytest.raises(ConfigError, match="before it has synced"):
            store.prepare()
        store.close()


def test_a_commit_that_is_not_on_the_disk_is_unknown_until_it_is(
    master: ValkeyServer, admin: Redis
) -> None:
    store = RedisStore(master.url, durability="host", wait_aof=True, timeout_seconds=QUICK)
    owner = Owner.open(store)
    admin.config_set("appendfsync", "no")
    commit = owner.prepared([1])
    is_away(owner.send(commit), "append-only file is not synced")
    is_away(owner.send(commit), "append-only file is not synced")
    admin.config_set("appendfsync", "always")
    assert owner.send(commit) == Already()
    store.close()


def test_a_replica_without_a_file_holds_nothing_on_a_disk() -> None:
    with ValkeyServer.start(config=ALONE) as master, following(master, {"appendonly": "no"}):
        asked = {"durability": "host", "replicas": 1, "timeout_seconds": QUICK}
        store = RedisStore(master.url, wait_aof=True, **asked)  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable, match="each with appendonly yes"):
            store.prepare()
        store.close()


def test_a_file_that_was_switched_off_is_waited_for(master: ValkeyServer, admin: Redis) -> None:
    store = RedisStore(master.url, durability="host", wait_aof=True, timeout_seconds=QUICK)
    owner = Owner.open(store)
    commit = owner.prepared([1])
    admin.config_set("appendonly", "no")
    is_away(owner.send(commit), "appendonly is disabled")
    admin.config_set("appendonly", "yes")
    await_that(lambda: owner.send(commit) == Already())
    store.close()


# -- a Cluster -------------------------------------------------------------------------------------


def test_each_slots_own_master_is_waited_for() -> None:
    """Three masters, of which one does not sync: its partitions alone wait."""
    with ValkeyCluster.start() as cluster:
        store = RedisStore(
            cluster.url,
            cluster=True,
            layout="partition",
            durability="host",
            wait_aof=True,
            timeout_seconds=QUICK,
        )
        owners = {at: Owner.open(store, at) for at in (replace(AT, number=n) for n in range(12))}
        lazy = cluster.nodes[1]
        order_node(lazy, "CONFIG SET appendfsync no")
        commits = {at: owner.prepared([1]) for at, owner in owners.items()}
        results = dict(zip(commits, store.commit([*commits.values()]), strict=True))
        slow = {at for at in owners if own_slot(lazy, slot_of(store._space(at).positions.encode()))}
        assert 0 < len(slow) < len(owners)
        for at, result in results.items():
            if at in slow:
                is_away(result, "append-only file is not synced")
            else:
                assert result == Applied()
        order_node(lazy, "CONFIG SET appendfsync always")
        for at in slow:
            assert owners[at].send(commits[at]) == Already()
        store.close()


def test_a_clusters_own_replica_is_waited_for() -> None:
    """A client of the user's, and a Cluster without replicas: nothing is handed out."""
    with ValkeyCluster.start() as cluster:
        for node in cluster.nodes:
            order_node(node, "CONFIG SET min-replicas-to-write 1")
        client = RedisCluster.from_url(cluster.url, socket_timeout=QUICK)
        store = RedisStore(client, replicas=1)
        with pytest.raises(StoreUnavailable, match="min-replicas-to-write"):
            store.prepare()
        store.close()
        disconnect: Callable[[], None] = client.disconnect_connection_pools
        disconnect()
        client.close()


# -- what is asked for -----------------------------------------------------------------------------


def test_what_cannot_be_kept_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RedisStore("redis://localhost", replicas=-1, wait_aof=True)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError) as caught:
        open_store("redis://localhost?replicas=one&wait_aof=yes")
    assert len(caught.value.problems) == 2


def test_only_who_waits_needs_the_right_to() -> None:
    assert "+wait" not in schema("redis://host")
    assert schema("redis://host?replicas=1").endswith("+wait")
    assert schema("redis://host?durability=host&wait_aof=true").endswith("+waitaof")
