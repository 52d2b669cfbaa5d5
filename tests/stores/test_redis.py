"""Redis keeps the contract of every store, in each layout."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from effectonce.cli.schema import schema
from effectonce.errors import StoreUnavailable
from effectonce.ports import Store
from effectonce.stores import open_store
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_checks import RIGHTS
from effectonce.testing.contract import StoreContract
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order
from tests.stores.tls_proxy import TlsProxy


class _OnValkey(StoreContract):
    """A database of its own for each test: the server is the session's."""

    @pytest.fixture(autouse=True)
    def server(self, valkey_server: ValkeyServer) -> Iterator[None]:
        self.url = valkey_server.url
        client = Redis.from_url(self.url)
        client.flushall()
        yield
        client.close()


class TestRedis(_OnValkey):
    def make_store(self, folder: Path) -> Store:
        return RedisStore(self.url, durability="host")


class TestRedisByPartition(_OnValkey):
    def make_store(self, folder: Path) -> Store:
        return RedisStore(self.url, layout="partition")


class TestRedisWithALocalIndex(_OnValkey):
    """As a user with the rights that are named for it, and no other."""

    @pytest.fixture(autouse=True)
    def user(self, server: None, valkey_server: ValkeyServer) -> Iterator[None]:
        with Redis.from_url(valkey_server.url) as admin:
            _, name, *rules = schema("redis://keeper:pw@host?layout=partition&index=local").split()
            order(admin, "ACL SETUSER", name, *rules)
            self.client = Redis.from_url(
                valkey_server.url, username="keeper", password="pw", socket_timeout=5
            )
            yield
            self.client.close()
            order(admin, "ACL DELUSER", name)

    def make_store(self, folder: Path) -> Store:
        return RedisStore(self.client, layout="partition", index="local")


@pytest.fixture(scope="module")
def tls(
    valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TlsProxy]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    with TlsProxy(valkey_server, tmp_path_factory.mktemp("tls")) as proxy:
        yield proxy


class TestRedisWithTlsAsARestrictedUser(_OnValkey):
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
        return open_store(self.url)

    def test_an_unknown_certificate_is_not_accepted(self, tls: TlsProxy) -> None:
        store = RedisStore(f"rediss://127.0.0.1:{tls.port}")
        with pytest.raises(StoreUnavailable, match="certificate"):
            store.prepare()
        store.close()
