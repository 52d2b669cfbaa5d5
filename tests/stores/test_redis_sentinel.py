"""A failover by Sentinel: the store waits for the new master, and goes on there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.exceptions import RedisError
from redis.sentinel import Sentinel

from effectonce.model import Already, Applied, CommitResult, Unknown
from effectonce.ports import Store
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_aio import AsyncRedisStore
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.owner import Owner
from effectonce.testing.servers import ValkeyServer
from effectonce.testing.servers.process import ServerProcess, free_port
from effectonce.testing.servers.valkey import _binary
from tests.stores.redis_kit import order

PATIENCE_SECONDS = 60.0


def port_of(server: ValkeyServer) -> int:
    return int(server.tcp_url.rsplit(":", 1)[1])


@contextmanager
def sentinel_of(master: ValkeyServer, folder: Path) -> Iterator[int]:
    """The port of a lone Sentinel that watches `master`."""
    port = free_port()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor payments 127.0.0.1 {port_of(master)} 1\n"
        "sentinel down-after-milliseconds payments 1000\n"
        "sentinel failover-timeout payments 3000\n"
    )

    def answers() -> bool:
        try:
            with Redis(port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except RedisError:
            return False

    process = ServerProcess(
        "Sentinel", [_binary(), str(settings), "--sentinel"], folder / "log", answers, 20.0
    )
    process.start()
    try:
        yield port
    finally:
        process.kill()


def until_answered(owner: Owner, number: int) -> CommitResult:
    """The same commit, sent until it is answered, as the driver does."""
    commit = owner.prepared([number], writes=((b"n", b"%d" % number),))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while isinstance(result := owner.send(commit), Unknown):
        assert time.monotonic() < deadline, result.error
        time.sleep(0.1)  # the driver's backoff
    owner.position = commit.position
    return result


@dataclass(frozen=True)
class Deployment:
    """A master, its replica, and the Sentinel that watches them."""

    master: ValkeyServer
    replica: ValkeyServer
    sentinel: Redis
    store: Store
    """Its client asks the Sentinel for the master at every new connection."""


@contextmanager
def sync_store(port: int) -> Iterator[Store]:
    make: Any = Sentinel
    sentinel = make([("127.0.0.1", port)], socket_timeout=1)
    with sentinel.master_for("payments", socket_timeout=1) as client:
        yield RedisStore(client)
    for each in sentinel.sentinels:
        each.close()


@contextmanager
def async_store(port: int) -> Iterator[Store]:
    make: Any = AsyncSentinel
    sentinel = make([("127.0.0.1", port)], socket_timeout=1)
    client = sentinel.master_for("payments", socket_timeout=1)
    store = AsyncFacade(lambda: AsyncRedisStore(client))
    yield store
    for each in (client, *sentinel.sentinels):
        store.run(each.aclose())
    store.close()


@pytest.fixture(params=[sync_store, async_store])
def deployment(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with ExitStack() as stack:
        at_once: dict[str, str | int] = {"repl-diskless-sync-delay": 0}
        master = stack.enter_context(ValkeyServer.start(config=at_once))
        follows = {"replicaof": f"127.0.0.1 {port_of(master)}", **at_once}
        replica = stack.enter_context(ValkeyServer.start(config=follows))
        port = stack.enter_context(sentinel_of(master, tmp_path))
        admin = stack.enter_context(Redis(port=port))
        await_that(lambda: order(admin, "SENTINEL REPLICAS", "payments"))
        store = stack.enter_context(request.param(port))
        yield Deployment(master, replica, admin, store)


def fails_over(sentinel: Redis) -> bool:
    """It refuses until it has heard from the replica that all is well."""
    try:
        order(sentinel, "SENTINEL FAILOVER", "payments")
    except RedisError:
        return False
    return True


def await_that(what: Callable[[], object]) -> None:
    """What a server does in its own time, and tells nobody."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_demoted(master: Redis) -> bool:
    """It closes its clients' connections as it becomes a replica."""
    try:
        return bool(master.role()[0] == b"slave")
    except RedisError:
        return False


@pytest.mark.parametrize("how", ["asked for", "killed"])
def test_a_failover_is_waited_for_and_repeats_nothing(deployment: Deployment, how: str) -> None:
    owner = Owner.open(deployment.store)
    for number in range(5):
        assert until_answered(owner, number) == Applied()
    with Redis.from_url(deployment.master.url) as master:
        # WAIT is about what this very connection has written
        await_that(lambda: master.set("last", 1) and master.wait(1, 1000) == 1)
        if how == "killed":
            deployment.master.kill()
        else:
            await_that(lambda: fails_over(deployment.sentinel))
            # until it is told, it takes commits that nobody will have
            await_that(lambda: is_demoted(master))
    for number in range(5, 30):
        assert until_answered(owner, number) in (Applied(), Already())
    with Redis.from_url(deployment.replica.url) as replica:
        assert replica.role()[0] == b"master"
        assert replica.hlen("effectonce:{payments}:markers:0:1") == 30
    assert owner.seen(0, 4, 5, 29, 30) == [True, True, True, True, False]
    assert owner.rows() == [(b"n", b"29")]
