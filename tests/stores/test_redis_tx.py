"""Commands on the user's own keys: with their event or not at all, and never half a commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from effectonce.errors import StoreError, StoreUnavailable, TransactionClosed
from effectonce.model import Already, Applied, CommitResult, Conflict, OnExisting, Stale, Unknown
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_checks import RIGHTS
from effectonce.stores.redis_tx import MAX_ARGUMENTS, MAX_STEP, RedisTx
from effectonce.testing.owner import AT, Owner
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order

Step = tuple[Any, ...]
"""The name of a method of `tx`, and what it is called with."""
Steps = Sequence[Step]


@pytest.fixture
def redis(valkey_server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(valkey_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def owner(valkey_server: ValkeyServer, redis: Redis) -> Iterator[Owner]:
    store = RedisStore(valkey_server.url)
    yield Owner.open(store)
    store.close()


def play(tx: RedisTx, steps: Steps) -> None:
    for name, *arguments in steps:
        getattr(tx, name)(*arguments)


def run(owner: Owner, *events: Steps) -> CommitResult:
    """The steps of some events, then one commit of it all."""
    transaction = owner.store.transaction(AT)
    for steps in events:
        tx = transaction.begin()
        assert isinstance(tx, RedisTx)
        play(tx, steps)
        transaction.keep(tx)
    return owner.commit([1], writes=transaction.writes(), on_existing=OnExisting.REFUSE)


def refusal(result: CommitResult) -> str:
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreError)
    assert not isinstance(result.error, StoreUnavailable), "it would be sent again for ever"
    assert isinstance(result.error.__cause__, KeyError)
    return str(result.error)


def test_every_command_does_what_it_says(owner: Owner, redis: Redis) -> None:
    redis.set("old", "x")
    redis.hset("h", mapping={"gone": 1, "stays": 1})
    redis.sadd("s", "gone", "stays")
    redis.zadd("z", {"gone": 1.0})

    steps: Steps = [
        ("set", "text", "grün"),
        ("set", b"\xff\x00", b"\x00\xff"),
        ("unlink", "old", "never"),
        ("incrby", "n"),
        ("incrby", "n", -3),
        ("hset", "h", {"a": 1, b"b": b"2"}),
        ("hdel", "h", "gone"),
        ("hincrby", "h", "a", 41),
        ("sadd", "s", "x", 7),
        ("srem", "s", "gone"),
        ("zadd", "z", {"low": -0.5, "high": float("inf")}),
        ("zrem", "z", "gone"),
        ("rpush", "l", "1", "2", "1"),
        ("put", b"row", b"1"),
    ]
    assert run(owner, steps) == Applied()
    assert redis.get("text") == "grün".encode()
    assert redis.get(b"\xff\x00") == b"\x00\xff"
    assert redis.exists("old") == 0
    assert redis.get("n") == b"-2"
    assert redis.hgetall("h") == {b"stays": b"1", b"a": b"42", b"b": b"2"}
    assert redis.smembers("s") == {b"stays", b"x", b"7"}
    assert redis.zrange("z", 0, -1) == [b"low", b"high"]
    assert redis.lrange("l", 0, -1) == [b"1", b"2", b"1"]
    assert owner.rows() == [(b"row", b"1")]


def test_nothing_happens_before_the_commit_nor_without_its_event(
    owner: Owner, redis: Redis
) -> None:
    transaction = owner.store.transaction(AT)
    kept, failed = transaction.begin(), transaction.begin()
    assert isinstance(kept, RedisTx)
    assert isinstance(failed, RedisTx)
    kept.incrby("kept")
    failed.incrby("failed")
    transaction.keep(kept)
    transaction.discard(failed)
    assert not redis.keys("*ed")
    assert owner.commit([1], writes=transaction.writes()) == Applied()
    assert redis.mget("kept", "failed") == [b"1", None]


@pytest.mark.parametrize("outcome", [Already(), Stale(), Conflict((0,))])
def test_a_commit_that_is_not_applied_runs_no_command(
    owner: Owner, redis: Redis, outcome: CommitResult
) -> None:
    transaction = owner.store.transaction(AT)
    tx = transaction.begin()
    assert isinstance(tx, RedisTx)
    tx.incrby("n")
    transaction.keep(tx)
    owner.commit([7])
    again = owner.prepared([1], writes=transaction.writes(), on_existing=OnExisting.REFUSE)
    match outcome:
        case Already():
            assert owner.send(again) == Applied()
        case Stale():
            again = replace(again, follows=bytes(15) + b"?")
        case _:
            again = owner.prepared([7], writes=transaction.writes(), on_existing=OnExisting.REFUSE)
    before = redis.get("n")
    assert owner.send(again) == outcome
    assert redis.get("n") == before


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([("incrby", "a hash")], "tx.incrby meets a hash"),
        ([("hset", "a string", {"f": 1})], "tx.hset meets a string"),
        ([("sadd", "a hash", "x")], "meets a hash"),
        ([("rpush", "a hash", "x")], "meets a hash"),
        ([("zadd", "a string", {"x": 1.0})], "meets a string"),
        ([("incrby", "a string")], "no whole number"),
        ([("incrby", "a large number")], "no whole number below"),
        ([("hincrby", "a hash", "text")], "no whole number"),
        ([("set", "new", "x"), ("incrby", "new")], "no whole number"),
        ([("set", "new", "1"), ("sadd", "new", "x")], "meets a string"),
        ([("sadd", "new", "x"), ("incrby", "new")], "meets a set"),
        ([("hset", "new", {"f": "x"}), ("hincrby", "new", "f")], "no whole number"),
    ],
)
def test_a_command_that_would_fail_refuses_the_commit_whole(
    owner: Owner, redis: Redis, steps: Steps, says: str
) -> None:
    redis.hset("a hash", "text", "x")
    redis.set("a string", "x")
    redis.set("a large number", str(10**18))
    before = sorted(redis.keys("*"))
    result = run(owner, [("incrby", "first"), ("put", b"row", b"1")], steps)
    assert says in refusal(result)
    assert sorted(redis.keys("*")) == before
    assert owner.seen(1) == [False]
    assert owner.rows() == []


@pytest.mark.parametrize(
    "steps",
    [
        [("unlink", "a string"), ("hset", "a string", {"f": 1})],
        [("set", "a hash", "41"), ("incrby", "a hash")],
        [("set", "new", "41"), ("incrby", "new"), ("incrby", "new")],
        [("hdel", "a hash", "text"), ("hincrby", "a hash", "text")],
        [("hset", "a hash", {"text": 1}), ("hincrby", "a hash", "text")],
        [("unlink", "a hash"), ("hincrby", "a hash", "text")],
        [("unlink", "a string"), ("incrby", "a string")],
        [("incrby", "a number", -MAX_STEP)],
    ],
)
def test_what_earlier_commands_make_of_a_key_counts(
    owner: Owner, redis: Redis, steps: Steps
) -> None:
    redis.hset("a hash", "text", "x")
    redis.set("a string", "x")
    redis.set("a number", -(10**18) + 1)
    assert run(owner, steps) == Applied()


def test_a_right_that_is_missing_refuses_the_commit_whole(
    valkey_server: ValkeyServer, redis: Redis
) -> None:
    order(redis, "ACL SETUSER", "app", "reset", "on", ">pw", "~*", "+@all", "-sadd")
    store = RedisStore(valkey_server.url.replace("unix://", "unix://app:pw@"))
    owner = Owner.open(store)
    result = run(owner, [("incrby", "n"), ("sadd", "s", "x")])
    assert "tx.sadd is not allowed: the user needs +sadd" in refusal(result)
    assert redis.get("n") is None
    store.close()
    order(redis, "ACL DELUSER", "app")


@pytest.fixture
def limited(valkey_server: ValkeyServer, redis: Redis) -> Iterator[Owner]:
    """An owner whose user has no right to any key of the handler's but `mine:*`."""
    rights = (*RIGHTS, "~mine:*", "+type", "+incrby", "+hincrby")
    order(redis, "ACL SETUSER", "app", "reset", "on", ">pw", *rights)
    store = RedisStore(valkey_server.url.replace("unix://", "unix://app:pw@"))
    yield Owner.open(store)
    store.close()
    order(redis, "ACL DELUSER", "app")


def test_a_key_that_the_user_may_not_touch_stops_and_is_not_waited_for(
    limited: Owner, redis: Redis
) -> None:
    result = run(limited, [("incrby", "mine:n"), ("incrby", "secret-event")])
    said = refusal(result)
    assert "tx.incrby is not allowed: the user has no right (~pattern)" in said
    assert "secret-event" not in said
    assert isinstance(result, Unknown)
    assert result.error.__cause__ is not None
    assert result.error.__cause__.args == (b"secret-event",)
    assert redis.get("mine:n") is None
    assert run(limited, [("incrby", "mine:n")]) == Applied()


def test_a_key_of_ours_that_is_forbidden_is_waited_for_whatever_the_handler_wrote(
    limited: Owner, redis: Redis
) -> None:
    order(redis, "ACL SETUSER", "app", "resetkeys", "~mine:*")
    result = run(limited, [("incrby", "mine:n"), ("incrby", "theirs")])
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreUnavailable)


@pytest.mark.parametrize(
    ("lost", "step"),
    [
        ("+type", ("incrby", "mine:n")),
        ("+get", ("incrby", "mine:n")),
    ],
)
def test_a_right_that_only_the_check_needs_is_named(
    limited: Owner, redis: Redis, lost: str, step: Step
) -> None:
    order(redis, "ACL SETUSER", "app", lost.replace("+", "-"))
    assert f"the user needs {lost} for that key" in refusal(run(limited, [step]))


@pytest.mark.parametrize(
    "step",
    [
        ("set", "effectonce:{payments}:positions", "x"),
        ("set", "", "x"),
        ("set", "k", 1.5),
        ("set", "k", None),
        ("sadd", "k"),
        ("hset", "k", {}),
        ("incrby", "k", MAX_STEP + 1),
        ("incrby", "k", 0.5),
        ("zadd", "k", {"x": float("nan")}),
        ("sadd", "k", *range(MAX_ARGUMENTS + 1)),
        ("set", "k", bytes(2**24 + 1)),
    ],
)
def test_what_no_command_can_say_is_refused_in_the_handler(owner: Owner, step: Step) -> None:
    tx = owner.store.transaction(AT).begin()
    assert isinstance(tx, RedisTx)
    with pytest.raises((ValueError, TypeError)):
        play(tx, [step])
    assert tx.commands() == ()


def test_many_commands_go_in_one_commit(owner: Owner, redis: Redis) -> None:
    steps: Steps = [
        *(("incrby", f"n{number % 10}") for number in range(5_000)),
        ("sadd", "s", *range(MAX_ARGUMENTS)),
    ]
    assert run(owner, steps, steps) == Applied()
    assert redis.mget(*(f"n{number}" for number in range(10))) == [b"1000"] * 10
    assert redis.scard("s") == MAX_ARGUMENTS


@pytest.mark.parametrize("count", [1, 1_499, 1_500, 1_501, 5_000])
def test_more_rows_than_lua_unpacks_at_once_are_all_written(owner: Owner, count: int) -> None:
    """Beside commands, whose arguments stand behind theirs."""
    rows: Steps = [("put", b"%d" % number, b"v%d" % number) for number in range(count)]
    assert run(owner, rows, [("delete", b"0"), ("incrby", "n", 7)]) == Applied()
    tx = owner.store.transaction(AT).begin()
    assert isinstance(tx, RedisTx)
    assert len(list(tx.scan())) == count - 1
    last = b"%d" % (count - 1)
    assert tx.get(last) == (b"v" + last if count > 1 else None)


def test_a_tx_ends_with_its_event(owner: Owner) -> None:
    transaction = owner.store.transaction(AT)
    tx = transaction.begin()
    assert isinstance(tx, RedisTx)
    transaction.keep(tx)
    with pytest.raises(TransactionClosed):
        tx.incrby("n")
    late = transaction.begin()
    assert isinstance(late, RedisTx)
    transaction.kill()
    with pytest.raises(TransactionClosed):
        late.incrby("n")
