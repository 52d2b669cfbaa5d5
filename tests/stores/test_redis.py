"""Redis keeps the contract of every store, in each layout."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from effectonce.ports import Store
from effectonce.stores.redis import RedisStore
from effectonce.testing.contract import StoreContract
from effectonce.testing.servers import ValkeyServer


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
