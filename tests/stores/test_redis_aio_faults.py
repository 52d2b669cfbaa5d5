"""Calls at the same time, calls that are cancelled, a server that dies among them: nothing is lost.

A cancelled call leaves no answer behind for the next one to read, and takes no connection with it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster

from effectonce.errors import StoreUnavailable, TransactionClosed
from effectonce.model import (
    Already,
    Applied,
    Commit,
    CommitResult,
    Known,
    OnExisting,
    Query,
    Unknown,
)
from effectonce.stores.redis_aio import AsyncRedisStore, AsyncRedisTx
from effectonce.stores.redis_aio_link import CALLS
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.owner import AT, Owner, keys_of, next_generation
from effectonce.testing.servers import ServerUnavailable, ValkeyCluster, ValkeyServer


def made(make: Callable[[], AsyncRedisStore]) -> Iterator[AsyncFacade]:
    facade = AsyncFacade(make)
    yield facade
    facade.close()


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer.start() as server:
        yield server


@pytest.fixture
def admin(server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def store(server: ValkeyServer) -> Iterator[AsyncFacade]:
    yield from made(lambda: AsyncRedisStore(server.url, timeout_seconds=2))


def owners(store: AsyncFacade, count: int) -> list[Owner]:
    return [Owner.open(store, replace(AT, number=number)) for number in range(count)]


def at_once(store: AsyncFacade, calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    async def gathered() -> list[Any]:
        return list(await asyncio.gather(*calls))

    return store.run(gathered())


def sent_at_once(store: AsyncFacade, commits: Sequence[Commit]) -> list[CommitResult]:
    return [
        result
        for answer in at_once(store, [store.inner.commit([commit]) for commit in commits])
        for result in answer
    ]


# -- at the same time ------------------------------------------------------------------------------


def test_commits_of_several_partitions_at_once_apply_each_once(store: AsyncFacade) -> None:
    members = owners(store, 32)
    for turn in range(10):
        if turn in (3, 6):  # all begin a generation at once, and meet each other's
            for each in members:
                each.position = next_generation(each.position, turn, floor=1)
        commits = [each.prepared([each.at.number + 100 * turn]) for each in members]
        assert sent_at_once(store, commits) == [Applied()] * len(members)
        for each, commit in zip(members, commits, strict=True):
            each.position = commit.position
    assert all(members[0].seen(*(n + 100 * turn for n in range(32) for turn in range(10))))
    assert {each.position.next for each in members} == {10}


def test_one_id_in_many_partitions_at_once_takes_effect_in_one(store: AsyncFacade) -> None:
    commits = [
        each.prepared([7], on_existing=OnExisting.REFUSE, writes=((b"n", b"1"),))
        for each in owners(store, 16)
    ]
    assert sent_at_once(store, commits).count(Applied()) == 1


def test_more_calls_at_once_than_the_pool_has_connections_only_wait(store: AsyncFacade) -> None:
    owner = Owner.open(store)
    owner.commit([1])
    calls = [store.inner.lookup([Query(AT, keys_of(1, 2), 0)]) for _ in range(300)]
    answers = [known for (known,) in at_once(store, calls)]
    assert all(isinstance(known, Known) for known in answers), answers
    assert connections(store) <= CALLS


def connections(store: AsyncFacade) -> int:
    """As many as were ever open at once: those that the pool keeps."""
    client: Any = store.inner._link._client  # type: ignore[attr-defined]
    pool: Any = client.connection_pool
    assert not pool._in_use_connections, "a connection was never given back"
    return len(pool._available_connections)


# -- cancelled -------------------------------------------------------------------------------------


async def cancelled(call: Coroutine[Any, Any, Any], turns: int) -> bool:
    """Start a call, cancel it that many turns of the loop later; whether that was in time."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


def cancels_at_every_moment(store: AsyncFacade, moments: int) -> None:
    owner = Owner.open(store)
    in_time = 0
    for turns in range(moments):
        commit = owner.prepared([turns], on_existing=OnExisting.REFUSE)
        in_time += store.run(cancelled(store.inner.commit([commit]), turns))
        assert owner.seen(10_000 + turns) == [False], "fenced by a commit id that may be old"
        assert owner.send(commit) in (Applied(), Already())
        assert owner.send(commit) == Already()
        owner.position = commit.position
        query = Query(AT, keys_of(turns, 10_000), 0)
        in_time += store.run(cancelled(store.inner.lookup([query]), turns))
        assert owner.seen(turns, 10_000) == [True, False], "the answer of another call"
    assert in_time > moments // 2, "nearly all were over before they were cancelled"
    assert owner.position.next == moments


def test_a_call_cancelled_at_any_moment_mixes_up_no_answers(store: AsyncFacade) -> None:
    cancels_at_every_moment(store, 150)
    assert connections(store) <= 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    try:
        with ValkeyCluster.start() as cluster:
            yield cluster
    except ServerUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def on_cluster(cluster: ValkeyCluster) -> Iterator[AsyncFacade]:
    yield from made(lambda: AsyncRedisStore(cluster.url, cluster=True, timeout_seconds=2))


def test_a_call_to_a_cluster_cancelled_at_any_moment_mixes_up_no_answers(
    on_cluster: AsyncFacade,
) -> None:
    cancels_at_every_moment(on_cluster, 150)
    client: Any = on_cluster.inner._link._client  # type: ignore[attr-defined]
    for node in client.get_nodes():
        assert len(node._free) == len(node._connections) <= 2


def test_a_commit_cancelled_while_the_server_has_it_takes_effect_once(
    server: ValkeyServer, admin: Redis, store: AsyncFacade
) -> None:
    owner = Owner.open(store)
    commit = owner.prepared([1], writes=((b"n", b"1"),))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert store.run(cancelled(store.inner.commit([commit]), turns=50))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    admin.ping()  # behind what the server had already received
    assert owner.seen(2) == [False], "it may have been applied: no rival's work"
    assert owner.send(commit) == Already(), "it had been sent"
    assert owner.rows() == [(b"n", b"1")]


def test_many_calls_cancelled_at_once_give_their_connections_back(store: AsyncFacade) -> None:
    members = owners(store, 24)

    async def all_cancelled(turns: int) -> None:
        commits = [each.prepared([turns * 24 + each.at.number]) for each in members]
        calls = [cancelled(store.inner.commit([commit]), turns) for commit in commits]
        await asyncio.gather(*calls)
        for each, commit in zip(members, commits, strict=True):
            (result,) = await store.inner.commit([commit])
            assert result in (Applied(), Already())
            each.position = commit.position

    for turns in range(40):
        store.run(all_cancelled(turns))
    assert connections(store) <= CALLS
    assert all(members[0].seen(*range(24 * 40)))


def test_a_start_cancelled_at_any_moment_can_be_made_again(server: ValkeyServer) -> None:
    epochs = []
    for turns in range(0, 200, 10):
        store = AsyncFacade(lambda: AsyncRedisStore(server.url, timeout_seconds=2))
        store.run(cancelled(store.inner.open(AT, bytes(16)), turns))
        epochs.append(store.open(AT, bytes(16)).epoch)
        store.close()
    assert epochs == sorted(set(epochs))


# -- killed ----------------------------------------------------------------------------------------


def test_a_server_killed_among_many_commits_is_waited_for_and_repeats_nothing(
    server: ValkeyServer, store: AsyncFacade
) -> None:
    members = owners(store, 12)

    async def commits_until_it_dies(owner: Owner) -> Commit:
        while True:
            number = 1_000 * owner.at.number + owner.position.next
            row = b"%d" % (owner.position.next + 1)
            commit = owner.prepared([number], writes=((b"n", row),))
            (result,) = await store.inner.commit([commit])
            if isinstance(result, Unknown):
                assert isinstance(result.error, StoreUnavailable)
                return commit
            assert result == Applied()
            owner.position = commit.position

    async def killed_in_the_middle() -> list[Commit]:
        tasks = [asyncio.ensure_future(commits_until_it_dies(each)) for each in members]
        enough = 20 + min(each.position.next for each in members)
        while min(each.position.next for each in members) < enough:
            await asyncio.sleep(0)
        server.kill()
        return list(await asyncio.gather(*tasks))

    for _ in range(3):
        left = store.run(killed_in_the_middle())
        server.restart()
        results = sent_at_once(store, left)
        assert all(result in (Applied(), Already()) for result in results), results
        for each, commit in zip(members, left, strict=True):
            each.position = commit.position
        assert sent_at_once(store, left) == [Already()] * len(left)
    for each in members:
        first = 1_000 * each.at.number
        assert all(each.seen(*range(first, first + each.position.next)))
        assert each.seen(first + each.position.next) == [False]
        assert each.rows() == [(b"n", b"%d" % each.position.next)]


# -- a handler's tx --------------------------------------------------------------------------------


def test_a_tx_reads_by_awaiting_and_collects_what_it_writes(
    admin: Redis, store: AsyncFacade
) -> None:
    owner = Owner.open(store)
    owner.put((b"a1", b"stored"), (b"a2", b"stored"), (b"b", b"stored"))
    transaction = store.inner.transaction(AT)

    async def handler(tx: AsyncRedisTx) -> list[tuple[bytes, bytes]]:
        assert await tx.get(b"a1") == b"stored"
        tx.put(b"a1", b"new")
        tx.delete(b"a2")
        tx.put(b"a3", b"new")
        tx.incrby("counter", 5)
        assert await tx.get(b"a1") == b"new"
        assert await tx.get(b"a2") is None
        return [row async for row in tx.scan(b"a")]

    kept, failed = transaction.begin(), transaction.begin()
    assert isinstance(kept, AsyncRedisTx)
    assert isinstance(failed, AsyncRedisTx)
    expected = [(b"a1", b"new"), (b"a3", b"new")]
    assert store.run(handler(kept)) == expected
    assert admin.get("counter") is None, "nothing before the commit"
    assert store.run(value_of(failed, b"a1")) == b"stored"
    failed.incrby("counter", 100)
    transaction.keep(kept)
    assert store.run(value_of(failed, b"a1")) == b"new", "as the batch will be committed"
    transaction.discard(failed)
    with pytest.raises(TransactionClosed):
        store.run(value_of(failed, b"a1"))
    assert owner.commit([1], writes=transaction.writes()) == Applied()
    assert admin.get("counter") == b"5"
    assert owner.rows() == [*expected, (b"b", b"stored")]


async def value_of(tx: AsyncRedisTx, key: bytes) -> bytes | None:
    return await tx.get(key)


def test_a_read_that_outlives_its_event_answers_nothing(store: AsyncFacade) -> None:
    Owner.open(store)
    transaction = store.inner.transaction(AT)
    tx = transaction.begin()
    assert isinstance(tx, AsyncRedisTx)

    async def killed_while_it_reads() -> None:
        read = asyncio.ensure_future(tx.get(b"a"))
        await asyncio.sleep(0)
        transaction.kill()
        await read

    with pytest.raises(TransactionClosed):
        store.run(killed_while_it_reads())


# -- the client ------------------------------------------------------------------------------------


def test_a_client_of_the_users_stays_theirs(server: ValkeyServer) -> None:
    client = AsyncRedis.from_url(server.url, socket_timeout=2)
    store = AsyncFacade(lambda: AsyncRedisStore(client))
    Owner.open(store).commit([1])
    store.run(store.inner.close())
    assert store.run(is_up(client))
    store.run(client.aclose())
    store.close()


def test_a_cluster_client_of_the_users_stays_theirs(cluster: ValkeyCluster) -> None:
    client = AsyncRedisCluster.from_url(cluster.url, socket_timeout=2)
    store = AsyncFacade(lambda: AsyncRedisStore(client))
    Owner.open(store).commit([1])
    store.run(store.inner.close())
    assert store.run(is_up(client))
    store.run(client.aclose())
    store.close()


async def is_up(client: AsyncRedis | AsyncRedisCluster) -> bool:
    execute: Any = client.execute_command
    return bool(await execute("PING"))


def test_a_closed_store_connects_again(store: AsyncFacade) -> None:
    Owner.open(store).commit([1])
    store.run(store.inner.close())
    assert Owner.open(store).seen(1) == [True]
