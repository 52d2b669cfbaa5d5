"""The async Redis store keeps the contract: in each layout, behind TLS, in a Cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from effectonce.errors import ConfigError, StoreUnavailable
from effectonce.ports import Store
from effectonce.stores import open_async_store
from effectonce.stores.redis_aio import AsyncRedisStore
from effectonce.stores.redis_checks import RIGHTS
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.contract import StoreContract
from effectonce.testing.servers import ServerUnavailable, ValkeyCluster, ValkeyServer
from tests.stores.redis_kit import order
from tests.stores.tls_proxy import TlsProxy


class _OnValkey(StoreContract):
    @pytest.fixture(autouse=True)
    def server(self, valkey_server: ValkeyServer) -> None:
        self.url = valkey_server.url
        with Redis.from_url(self.url) as client:
            client.flushall()


class TestAsyncRedis(_OnValkey):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: AsyncRedisStore(self.url, durability="host"))


class TestAsyncRedisByPartition(_OnValkey):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: AsyncRedisStore(self.url, layout="partition"))


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(
    valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsProxy]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    with TlsProxy(valkey_server, tmp_path_factory.mktemp("tls")) as proxy:
        yield proxy


class TestAsyncRedisWithTlsAsARestrictedUser(_OnValkey):
    """Over TLS, and with no right beyond those that docs/redis.md names."""

    @pytest.fixture(autouse=True)
    def user(self, server: None, valkey_server: ValkeyServer, tls: TlsProxy) -> Iterator[None]:
        with Redis.from_url(valkey_server.url) as admin:
            order(admin, "ACL SETUSER", "app", "reset", "on", ">pass%word", *RIGHTS)
            self.url = (
                f"rediss://app:pass%25word@127.0.0.1:{tls.port}/0"
                f"?durability=host&ssl_ca_certs={tls.authority}"
            )
            yield
            order(admin, "ACL DELUSER", "app")

    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: open_async_store(self.url))

    def test_an_unknown_certificate_is_not_accepted(self, tls: TlsProxy) -> None:
        store = AsyncFacade(lambda: AsyncRedisStore(f"rediss://127.0.0.1:{tls.port}"))
        with pytest.raises(StoreUnavailable, match="certificate"):
            store.prepare()
        store.close()


# -- Cluster ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    try:
        with ValkeyCluster.start() as cluster:
            yield cluster
    except ServerUnavailable as error:
        pytest.skip(str(error))


class _OnCluster(StoreContract):
    @pytest.fixture(autouse=True)
    def cluster_of_this_test(self, cluster: ValkeyCluster) -> None:
        self.url = cluster.url
        client = RedisCluster.from_url(cluster.url)
        client.flushall(target_nodes=RedisCluster.PRIMARIES)
        disconnect: Callable[[], None] = client.disconnect_connection_pools
        disconnect()
        client.close()


class TestAsyncRedisCluster(_OnCluster):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: AsyncRedisStore(self.url, cluster=True, durability="host"))


class TestAsyncRedisClusterByPartition(_OnCluster):
    def make_store(self, folder: Path) -> Store:
        return AsyncFacade(lambda: AsyncRedisStore(self.url, cluster=True, layout="partition"))


# -- what it is made of ----------------------------------------------------------------------------


def test_a_sync_client_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"redis\.asyncio's, not redis\.client\.Redis"):
        AsyncRedisStore(Redis(socket_timeout=5))  # type: ignore[arg-type]


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        AsyncRedisStore("redis://localhost", layout="slot", durability="disk", timeout_seconds=0)
    assert len(caught.value.problems) == 3
