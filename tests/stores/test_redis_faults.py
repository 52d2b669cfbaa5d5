"""What servers and rivals do to the Redis store: outages, evictions, damage, zombies, failovers.

A commit that was refused or cut off has left nothing or all of it, and the identical commit sent
again says which.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import OutOfMemoryError

from effectonce.errors import NotOpen, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.model import (
    Already,
    Applied,
    Commit,
    Conflict,
    Known,
    OnExisting,
    Partition,
    Query,
    Stale,
    Unknown,
)
from effectonce.ports import Store
from effectonce.stores import redis as redis_store
from effectonce.stores import redis_aio
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_aio import AsyncRedisStore
from effectonce.stores.redis_rows import Row, decode_marker, decode_row, encode_row
from effectonce.testing.async_facade import AsyncFacade
from effectonce.testing.owner import (
    AT,
    EVERY_FIELD,
    OTHER,
    VALUE,
    Owner,
    key_bytes,
    keys_of,
    next_generation,
    tx_of,
)
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order

POSITIONS = "effectonce:{payments}:positions"
MARKERS = "effectonce:{payments}:markers:0:1"
OUTCOMES = "effectonce:{payments}:outcomes:0:1"
PARTITION = "billing:orders:0"
QUICK = 0.3
"""Seconds that a call may take in tests of servers that do not answer."""


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer.start() as server:
        yield server


@pytest.fixture
def admin(server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def store(server: ValkeyServer, request: pytest.FixtureRequest) -> Iterator[Store]:
    store: Store = (
        RedisStore(server.url, timeout_seconds=QUICK)
        if request.param == "sync"
        else AsyncFacade(lambda: AsyncRedisStore(server.url, timeout_seconds=QUICK))
    )
    yield store
    store.close()


@pytest.fixture
def owner(store: Store) -> Owner:
    return Owner.open(store)


def looked_up(owner: Owner, *numbers: int) -> Known | StoreError:
    (answer,) = owner.store.lookup([Query(owner.at, keys_of(*numbers), 0)])
    return answer


def is_away(owner: Owner, says: str) -> Commit:
    """Neither look-ups nor commits come through; returns the commit that did not."""
    answer = looked_up(owner, 1)
    assert isinstance(answer, StoreUnavailable), answer
    assert says in str(answer)
    commit = owner.prepared([1, 2], writes=((b"n", b"1"),))
    result = owner.send(commit)
    assert isinstance(result, Unknown), result
    assert isinstance(result.error, StoreUnavailable)
    assert says in str(result.error)
    return commit


def comes_back(owner: Owner, commit: Commit) -> None:
    """The identical commit is applied now, once."""
    assert owner.send(commit) == Applied()
    assert owner.send(commit) == Already()
    owner.position = commit.position
    assert owner.seen(1, 2, 3) == [True, True, False]
    assert owner.rows() == [(b"n", b"1")]


# -- outages ---------------------------------------------------------------------------------------


def test_a_killed_server_is_waited_for(server: ValkeyServer, owner: Owner) -> None:
    server.kill()
    commit = is_away(owner, "cannot be reached")
    server.restart()
    comes_back(owner, commit)


def test_a_server_out_of_memory_runs_no_handler_and_loses_nothing(
    admin: Redis, owner: Owner
) -> None:
    owner.commit([8, 9])
    admin.config_set("maxmemory", 1)
    commit = is_away(owner, "out of memory")
    assert admin.hlen(MARKERS) == 2
    admin.config_set("maxmemory", 0)
    comes_back(owner, commit)


def test_a_master_that_became_a_replica_answers_nothing(admin: Redis, owner: Owner) -> None:
    owner.commit([8, 9])
    with ValkeyServer.start() as master:
        admin.replicaof("127.0.0.1", master.tcp_url.rsplit(":", 1)[1])
        commit = is_away(owner, "replica")
        tx = tx_of(owner.store.transaction(AT))
        for read in (lambda: tx.get(b"n"), tx.scan, lambda: owner.marker(8)):
            with pytest.raises(StoreUnavailable, match="replica"):
                read()
        admin.replicaof("NO", "ONE")
    # the other master had nothing: so has this one by now, and that is seen as well
    if admin.exists(POSITIONS):
        comes_back(owner, commit)
    else:
        assert owner.send(commit) == Stale()
        assert isinstance(looked_up(owner, 1), NotOpen)


def test_a_server_short_of_replicas_runs_no_handler(admin: Redis, owner: Owner) -> None:
    admin.config_set("min-replicas-to-write", 1)
    commit = is_away(owner, "min-replicas-to-write")
    admin.config_set("min-replicas-to-write", 0)
    comes_back(owner, commit)


def test_rights_that_were_taken_away_can_be_given_back(server: ValkeyServer, admin: Redis) -> None:
    order(admin, "ACL SETUSER app on >secret ~* +@all")
    with Redis.from_url(server.url, username="app", password="secret", socket_timeout=5) as client:
        store = RedisStore(client)
        owner = Owner.open(store)
        order(admin, "ACL SETUSER app -@scripting")
        commit = is_away(owner, "may not do that")
        order(admin, "ACL SETUSER app +@scripting")
        comes_back(owner, commit)
        store.close()
        assert client.ping(), "the client is the user's"


def test_a_commit_that_timed_out_after_the_send_takes_effect_once(
    server: ValkeyServer, admin: Redis, owner: Owner
) -> None:
    commit = owner.prepared([1], writes=((b"n", b"1"),))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        result = owner.send(commit)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreUnavailable)
    admin.ping()  # behind what the server had already received
    assert isinstance(looked_up(owner, 1), Known), "it may have been applied: no rival's work"
    assert owner.send(commit) in (Applied(), Already())
    assert owner.send(commit) == Already()
    assert admin.hlen(MARKERS) == 1


def test_the_clients_own_retry_of_a_commit_finds_it_applied(owner: Owner) -> None:
    commit = owner.prepared([1], on_existing=OnExisting.REFUSE)
    assert owner.send(commit) == Applied()
    assert owner.send(commit) == Already(), "a conflict with its own marker would run it again"


def test_a_server_that_forgot_the_scripts_is_told_them_again(admin: Redis, owner: Owner) -> None:
    for number in range(3):
        admin.script_flush()
        assert owner.commit([number]) == Applied()
        admin.script_flush()
        assert owner.seen(number) == [True]


def test_what_was_answered_survives_a_kill_of_the_server(server: ValkeyServer) -> None:
    store = RedisStore(server.url, durability="host", timeout_seconds=2)
    owner = Owner.open(store)
    for kill in range(5):
        stop = threading.Timer(0.05, server.kill)
        stop.start()
        while True:
            commit = owner.prepared([owner.position.next], writes=((b"n", b"%d" % kill),))
            result = owner.send(commit)
            if result != Applied():
                break
            owner.position = commit.position
        stop.join()
        server.restart()
        owner = Owner.open(store)
        assert owner.position.next in (commit.position.next - 1, commit.position.next)
        assert all(owner.seen(*range(owner.position.next)))
    store.close()


# -- a scope's members -----------------------------------------------------------------------------


def test_a_zombie_learns_of_it_before_its_handler_runs(server: ValkeyServer, owner: Owner) -> None:
    heir = Owner.open(RedisStore(server.url))
    assert isinstance(looked_up(owner, 1), NotOpen)
    assert owner.commit([1], on_existing=OnExisting.REFUSE) == Stale()
    assert heir.commit([1]) == Applied()


def test_a_released_partition_takes_nothing_from_here(owner: Owner) -> None:
    late = owner.prepared([1])
    owner.store.release(AT)
    assert owner.send(late) == Stale()


def test_an_epoch_that_a_failover_hands_out_twice_has_two_owners(
    server: ValkeyServer, admin: Redis, store: Store
) -> None:
    Owner.open(store)
    before = admin.hget(POSITIONS, PARTITION)
    zombie = Owner.open(store)
    admin.hset(POSITIONS, PARTITION, before)
    other = RedisStore(server.url)
    heir = Owner.open(other)
    assert heir.position.epoch == zombie.position.epoch
    lost, kept = zombie.prepared([1], on_existing=OnExisting.REFUSE), heir.prepared([2])
    assert lost.position.commit_id == kept.position.commit_id
    assert zombie.send(lost) == Stale()
    assert heir.send(kept) == Applied()
    assert zombie.send(lost) == Stale(), "Already would take the heir's commit for its own"
    assert heir.send(kept) == Already()
    assert heir.seen(1, 2) == [False, True]
    other.close()


def test_a_row_that_lost_its_last_commit_is_noticed_before_a_handler_runs(
    admin: Redis, owner: Owner
) -> None:
    owner.commit([1])
    before = admin.hget(POSITIONS, PARTITION)
    owner.commit([2])
    admin.hset(POSITIONS, PARTITION, before)
    assert isinstance(looked_up(owner, 3), NotOpen)
    again = Owner.open(owner.store)
    assert again.position.next == 1
    assert again.seen(3) == [False]


def test_a_look_up_that_is_out_of_date_hides_no_marker(server: ValkeyServer, store: Store) -> None:
    here = Owner.open(store)
    there = Owner.open(RedisStore(server.url), OTHER)
    known = here.known(1, 2)
    assert known.as_of is not None
    there.commit([1])
    late = replace(here.prepared([1, 2], on_existing=OnExisting.REFUSE), as_of=known.as_of)
    assert here.send(late) == Conflict((0,))
    now = replace(late, as_of=here.known(1, 2).as_of)
    assert here.send(now) == Applied(), "the caller vouches for keys that it has seen as absent"


def test_rivals_on_overlapping_keys_apply_each_of_them_once(server: ValkeyServer) -> None:
    """Four members, a partition each, all with the same 300 events in an order of their own."""
    numbers = range(300)
    applied: list[list[int]] = [[] for _ in range(4)]
    errors: list[BaseException] = []

    def member(index: int) -> None:
        try:
            store = RedisStore(server.url, timeout_seconds=5)
            owner = Owner.open(store, replace(AT, number=index))
            left = [*numbers[index * 7 :], *numbers[: index * 7]]
            while left:
                known = owner.known(*left[:10])
                fresh = [
                    n for n, seen in zip(left[:10], known.seen.tolist(), strict=True) if not seen
                ]
                commit = owner.prepared(fresh, on_existing=OnExisting.REFUSE)
                result = owner.send(replace(commit, as_of=known.as_of))
                if result == Applied():
                    owner.position = commit.position
                    applied[index] += fresh
                    left = left[10:]
                else:
                    assert isinstance(result, Conflict), result
            store.close()
        except BaseException as error:  # noqa: BLE001 - the test's to raise
            errors.append(error)

    threads = [threading.Thread(target=member, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(n for each in applied for n in each) == list(numbers)


def test_a_generation_goes_whole_once_every_partition_has_passed_it(
    admin: Redis, store: Store
) -> None:
    here, there = Owner.open(store), Owner.open(store, OTHER)
    here.commit([1], outcomes={0: VALUE})
    for generation in (2, 3, 4):
        here.position = next_generation(here.position, generation, floor=max(1, generation - 2))
        assert here.commit([10 * generation]) == Applied()
    assert admin.exists(MARKERS, OUTCOMES) == 2, "the other partition may still bring a copy"
    assert there.seen(1, 20, 40) == [True, True, True]
    there.position = next_generation(there.position, 4, floor=2)
    assert there.commit() == Applied()
    assert admin.exists(MARKERS, OUTCOMES) == 0
    assert here.seen(1, 20, 30, 40) == [False, True, True, True]
    assert store.find(AT, key_bytes(1)) is None
    there.position = next_generation(there.position, 4, floor=4)
    here.position = next_generation(here.position, 4, floor=4)
    assert [there.commit(), here.commit()] == [Applied(), Applied()]
    left = [key for key in admin.keys("effectonce:*") if b":markers:" in key]
    assert left == [b"effectonce:{payments}:markers:0:4"]


def test_a_commit_of_nothing_but_repeats_leaves_no_empty_generation(owner: Owner) -> None:
    owner.commit([1])
    owner.position = next_generation(owner.position, 2, floor=1)
    assert owner.commit([1]) == Applied(existing=1)
    assert owner.seen(1, 2) == [True, False]


# -- what must not be there, or must ---------------------------------------------------------------


@pytest.fixture
def always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis_store, redis_aio):
        monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)


def test_a_policy_that_evicts_is_noticed_and_waited_for(
    admin: Redis, owner: Owner, always_checked: None
) -> None:
    admin.config_set("maxmemory-policy", "allkeys-lru")
    answer = looked_up(owner, 1)
    assert isinstance(answer, StoreUnavailable)
    assert "noeviction" in str(answer)
    admin.config_set("maxmemory-policy", "noeviction")
    assert owner.seen(1) == [False]


def test_evictions_stop_the_partition(admin: Redis, owner: Owner, always_checked: None) -> None:
    owner.commit([1])
    admin.set("somebody else's", "x" * 100_000)
    admin.config_set("maxmemory-policy", "allkeys-random")
    admin.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        admin.set("one more", "x")
    admin.config_set("maxmemory", 0)
    admin.config_set("maxmemory-policy", "noeviction")
    answer = looked_up(owner, 1)
    assert isinstance(answer, StoreCorrupt)
    assert "evicted" in str(answer)


def test_a_generation_that_is_gone_is_never_taken_for_new_events(
    admin: Redis, owner: Owner
) -> None:
    owner.commit([1])
    admin.delete(MARKERS)
    answer = looked_up(owner, 1)
    assert isinstance(answer, StoreCorrupt)
    assert MARKERS in str(answer)
    result = owner.commit([2])
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreCorrupt)


def test_a_scope_that_is_gone_is_never_taken_for_new_events(admin: Redis, owner: Owner) -> None:
    """It lists the generations: without it their markers would not be looked at."""
    owner.commit([1])
    admin.delete("effectonce:{payments}")
    for each in (owner, Owner.unstarted(owner.store, owner.at)):
        answer = looked_up(each, 1)
        assert isinstance(answer, StoreCorrupt)
        assert "effectonce:{payments}" in str(answer)
        result = each.commit([2])
        assert isinstance(result, Unknown)
        assert isinstance(result.error, StoreCorrupt)


def test_a_flushed_database_is_no_fresh_start(admin: Redis, owner: Owner) -> None:
    owner.commit([1])
    admin.flushall()
    assert isinstance(looked_up(owner, 1), NotOpen)
    assert owner.commit([2]) == Stale()


def test_a_marker_that_cannot_be_read_is_neither_new_nor_seen(admin: Redis, owner: Owner) -> None:
    owner.commit([1, 2], outcomes={0: VALUE})
    admin.hset(MARKERS, key_bytes(1), b"short")
    assert isinstance(looked_up(owner, 1), StoreCorrupt)
    assert isinstance(looked_up(owner, 2), Known)
    result = owner.commit([1])
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreCorrupt)
    with pytest.raises(StoreCorrupt):
        owner.store.find(AT, key_bytes(1))


def test_an_outcome_that_is_gone_is_told(admin: Redis, owner: Owner) -> None:
    owner.commit([1], outcomes={0: VALUE})
    admin.delete(OUTCOMES)
    with pytest.raises(StoreCorrupt, match="outcome"):
        owner.store.find(AT, key_bytes(1))


def test_a_row_that_cannot_be_read_is_not_opened(admin: Redis, owner: Owner) -> None:
    value = admin.hget(POSITIONS, PARTITION)
    assert isinstance(value, bytes)
    admin.hset(POSITIONS, PARTITION, value[:-1] + bytes([value[-1] ^ 1]))
    with pytest.raises(StoreCorrupt, match="billing:orders:0"):
        owner.store.open(AT, bytes(16))
    admin.hset(POSITIONS, PARTITION, value[:20])
    result = owner.commit([1])
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreCorrupt)


def test_something_else_under_our_key_is_corrupt(admin: Redis, owner: Owner) -> None:
    admin.delete(POSITIONS)
    admin.set(POSITIONS, "mine")
    assert isinstance(looked_up(owner, 1), StoreCorrupt)


# -- encoding --------------------------------------------------------------------------------------


def test_a_row_says_what_it_was_written_with() -> None:
    row = Row(EVERY_FIELD, incarnation=b"12345678", writer=b"abcdefgh")
    assert decode_row("a:b:0", encode_row("a:b:0", row)) == row


def test_a_row_under_another_partitions_name_does_not_pass() -> None:
    with pytest.raises(StoreCorrupt):
        decode_row("a:b:1", encode_row("a:b:0", Row(EVERY_FIELD)))


@given(st.data())
def test_any_bytes_are_a_row_or_corrupt(data: st.DataObject) -> None:
    whole = encode_row("a:b:0", Row(EVERY_FIELD))
    cut = data.draw(st.integers(0, len(whole)))
    changed = bytearray(whole[:cut] + data.draw(st.binary(max_size=40)))
    if changed:
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(0, 255))
    with suppress(StoreCorrupt):
        assert decode_row("a:b:0", bytes(changed)) == Row(EVERY_FIELD)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_marker_or_corrupt(value: bytes) -> None:
    with suppress(StoreCorrupt):
        assert decode_marker(bytes(16), value, (0, 1)).key == bytes(16)


def test_any_scope_has_a_slot_of_its_own_braces() -> None:
    for name in ("{", "}", "}{", "{}", "a}b", ":", "%7B"):
        at = Partition(name, name, name, 0)
        space = RedisStore("redis://nowhere")._space(at)
        assert space.positions.count("{") == space.positions.count("}") == 1
        assert "{}" not in space.positions
