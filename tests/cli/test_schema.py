"""`effectonce schema`: what it prints is enough, and no more than that."""

from __future__ import annotations

import pytest
from redis import Redis

import effectonce as eo
from effectonce.cli.schema import schema
from effectonce.stores.redis import RedisStore
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order


def test_a_user_as_it_is_printed_can_run_the_store_and_nothing_else(
    valkey_server: ValkeyServer,
) -> None:
    admin = Redis.from_url(valkey_server.url)
    _, name, *rules = schema("redis://app:p%2Fw@elsewhere/0").split()
    order(admin, "ACL SETUSER", name, *rules)
    try:
        client = Redis.from_url(valkey_server.url, username="app", password="p/w", socket_timeout=5)
        assert len(RedisStore(client).prepare()) == 16
        for command in (("SET", "theirs", "1"), ("FLUSHALL",), ("KEYS", "*")):
            with pytest.raises(Exception, match="permission"):
                order(client, *command)
        client.close()
    finally:
        order(admin, "ACL DELUSER", name)
        admin.close()


def test_the_password_is_not_printed() -> None:
    printed = schema("redis://app:hunter2@host")
    assert "hunter2" not in printed
    assert " #" in printed


@pytest.mark.parametrize("url", ["rocksdb:///state", "memory:", "redis://a%20b:pw@host", "redis:"])
def test_what_needs_none_or_cannot_have_one_is_refused(url: str) -> None:
    with pytest.raises(eo.ConfigError):
        schema(url)
