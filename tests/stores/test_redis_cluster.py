"""Redis Cluster: the contract in both layouts, and slots that move while they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.cluster import RedisCluster

from effectonce.errors import StoreUnavailable
from effectonce.model import Already, Applied, Commit, Known, Query, Unknown
from effectonce.ports import Store
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_aio import AsyncRedisStore
from effectonce.stores.redis_link import slot_of
from effectonce.stores.redis_shared import settings_of
from effectonce.stores.redis_tx import RedisTx
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.contract import StoreContract
from effectonce.testing.owner import AT, Owner, keys_of
from effectonce.testing.servers import ServerUnavailable, ValkeyCluster, ValkeyServer
from effectonce.testing.servers.valkey_cluster import await_agreement, order


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    try:
        with ValkeyCluster.start() as cluster:
            yield cluster
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def client(cluster: ValkeyCluster) -> Iterator[RedisCluster]:
    client = RedisCluster.from_url(cluster.url)
    client.flushall(target_nodes=RedisCluster.PRIMARIES)
    yield client
    disconnect: Callable[[], None] = client.disconnect_connection_pools
    disconnect()
    client.close()


class _OnCluster(StoreContract):
    @pytest.fixture(autouse=True)
    def cluster_of_this_test(self, cluster: ValkeyCluster, client: RedisCluster) -> None:
        self.url = cluster.url


class TestRedisCluster(_OnCluster):
    def make_store(self, folder: Path) -> Store:
        return RedisStore(self.url, cluster=True, durability="host")


class TestRedisClusterByPartition(_OnCluster):
    def make_store(self, folder: Path) -> Store:
        return RedisStore(self.url, cluster=True, layout="partition")


class TestRedisClusterWithALocalIndex(_OnCluster):
    def make_store(self, folder: Path) -> Store:
        return RedisStore(self.url, cluster=True, layout="partition", index="local")


# -- slots that move -------------------------------------------------------------------------------


def own_slot(node: ValkeyServer, slot: int) -> bool:
    """Whether the node serves that slot."""
    mine = order(node, "CLUSTER NODES").split("myself", 1)[1].splitlines()[0].split()
    spans = [span.split("-") for span in mine if span[0].isdigit() and "." not in span]
    return any(int(span[0]) <= slot <= int(span[-1]) for span in spans)


@pytest.fixture(params=["sync", "async"])
def made(request: pytest.FixtureRequest) -> Callable[..., Store]:
    """Makes a store, of either face."""
    if request.param == "sync":
        return RedisStore
    return lambda url, **options: AsyncFacade(lambda: AsyncRedisStore(url, **options))


class Move:
    """A slot on its way from the node that has it to another, key by key, as operators do it."""

    def __init__(self, cluster: ValkeyCluster, slot: int) -> None:
        self.nodes = cluster.nodes
        self.slot = slot
        (self.source,) = (node for node in self.nodes if own_slot(node, slot))
        self.target = next(node for node in self.nodes if node is not self.source)

    def begin(self) -> None:
        order(self.target, f"CLUSTER SETSLOT {self.slot} IMPORTING {self._id(self.source)}")
        order(self.source, f"CLUSTER SETSLOT {self.slot} MIGRATING {self._id(self.target)}")

    def send(self, *keys: str) -> None:
        port = self.target.tcp_url.rsplit(":", 1)[1]
        order(self.source, f'MIGRATE 127.0.0.1 {port} "" 0 5000 KEYS {" ".join(keys)}')

    def end(self) -> None:
        for node in (self.target, self.source, *self.nodes):
            order(node, f"CLUSTER SETSLOT {self.slot} NODE {self._id(self.target)}")

    def _id(self, node: ValkeyServer) -> str:
        return order(node, "CLUSTER MYID").split()[-1]


def test_a_slot_on_its_way_is_waited_for_and_never_half_read(
    cluster: ValkeyCluster, client: RedisCluster, made: Callable[..., Store]
) -> None:
    store = made(cluster.url, cluster=True, timeout_seconds=1)
    owner = Owner.open(store)
    owner.commit([1, 2])
    scope = "effectonce:{payments}"
    move = Move(cluster, slot_of(scope.encode()))
    move.begin()
    sent: list[Commit] = []
    for part in ([f"{scope}:markers:0:1"], [scope, f"{scope}:positions"]):
        (answer,) = store.lookup([Query(AT, keys_of(1, 2, 3), 0)])
        if isinstance(answer, Known):
            assert answer.seen.tolist() == [True, True, False]
        else:
            assert isinstance(answer, StoreUnavailable), answer
        sent.append(owner.prepared([3]))
        result = owner.send(sent[-1])
        assert isinstance(result, Unknown), result
        assert isinstance(result.error, StoreUnavailable)
        move.send(*part)
    move.end()
    assert owner.send(sent[0]) == Applied()
    owner.position = sent[0].position
    assert owner.seen(1, 2, 3, 4) == [True, True, True, False]
    store.close()


def test_a_master_that_is_killed_holds_its_own_slots_alone(
    cluster: ValkeyCluster, client: RedisCluster, made: Callable[..., Store]
) -> None:
    store = made(cluster.url, cluster=True, layout="partition", timeout_seconds=1)
    scopes = [replace(AT, number=number) for number in range(12)]
    owners = {at: Owner.open(store, at) for at in scopes}
    down = cluster.nodes[1]
    spread = settings_of("partition", "process", 1)
    slots = {at: slot_of(spread.space(at).scope.encode()) for at in scopes}
    lost = {at for at, slot in slots.items() if own_slot(down, slot)}
    assert 0 < len(lost) < len(scopes)
    down.kill()
    commits = {at: owner.prepared([1]) for at, owner in owners.items()}
    results = {at: owners[at].send(commit) for at, commit in commits.items()}
    # the others go on until the Cluster notices, and with cluster-require-full-coverage no longer
    for at in lost:
        result = results[at]
        assert isinstance(result, Unknown)
        assert isinstance(result.error, StoreUnavailable)
    down.restart()
    await_agreement(cluster.nodes)
    for at, commit in commits.items():
        expected = (Already(),) if results[at] == Applied() else (Applied(),)
        assert owners[at].send(commit) in expected
    store.close()


def test_a_command_outside_the_scopes_slot_is_refused_in_the_handler(
    cluster: ValkeyCluster, client: RedisCluster
) -> None:
    store = RedisStore(cluster.url, cluster=True)
    owner = Owner.open(store)
    transaction = store.transaction(AT)
    tx = transaction.begin()
    assert isinstance(tx, RedisTx)
    with pytest.raises(ValueError, match=r"tx\.key"):
        tx.incrby("balance")
    tx.incrby(tx.key("balance"))
    transaction.keep(tx)
    assert owner.commit([1], writes=transaction.writes()) == Applied()
    assert client.get("{payments}:balance") == b"1"
    store.close()
