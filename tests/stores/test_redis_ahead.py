"""A commit that is sent, and answered later: what a look-up behind it sees, and what may break."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from redis import Redis

from effectonce.errors import NotOpen, StoreCorrupt, StoreError, StoreUnavailable
from effectonce.model import (
    Applied,
    Commit,
    CommitResult,
    Conflict,
    Known,
    OnExisting,
    Query,
    Stale,
    Unknown,
)
from effectonce.ports import SendsAhead
from effectonce.stores import redis, redis_ahead
from effectonce.stores.memory import MemoryStore
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_scripts import COMMIT, LOOKUP
from effectonce.stores.redis_sent import MOST_QUESTIONS
from effectonce.testing.owner import OTHER, Owner, key_bytes, keys_of, next_generation
from effectonce.testing.servers import ValkeyServer
from tests.unit.test_interrupts import Tracer, traced

REFUSE = OnExisting.REFUSE


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer.start() as server:
        yield server


@pytest.fixture
def store(server: ValkeyServer) -> Iterator[RedisStore]:
    store = RedisStore(server.url, timeout_seconds=0.5)
    yield store
    store.close()


@pytest.fixture
def owner(store: RedisStore) -> Owner:
    owner = Owner.open(store)
    assert owner.commit([0]) == Applied()  # its script is known, its generation is there
    return owner


def sent(owner: Owner, *numbers: int, **how: Any) -> tuple[Commit, Callable[[], CommitResult]]:
    """A commit that is on its way, as if it were applied."""
    commit = owner.prepared(numbers, **how)
    assert isinstance(owner.store, RedisStore)
    receipt = owner.store.send(commit)
    owner.position = commit.position
    return commit, receipt


def is_answered(owner: Owner) -> bool:
    assert isinstance(owner.store, RedisStore)
    return bool(owner.store._ahead._connection.can_read(1.0))


def looked_up(owner: Owner, *numbers: int) -> list[bool] | StoreError:
    (answer,) = owner.store.lookup([Query(owner.at, keys_of(*numbers), 0)])
    return answer.seen.tolist() if isinstance(answer, Known) else answer


def test_stores_that_are_near_are_waited_for_at_once() -> None:
    assert not isinstance(MemoryStore(), SendsAhead)


def test_a_look_up_behind_a_commit_sees_what_it_marked_or_copies_would_run_again(
    owner: Owner,
) -> None:
    for number in range(1, 200):
        _, receipt = sent(owner, number)
        assert looked_up(owner, number - 1, number, number + 1) == [True, True, False]
        assert receipt() == Applied()
    assert owner.commit([500]) == Applied()


def asked(owner: Owner, *numbers: int) -> Callable[[], Known | StoreError]:
    assert isinstance(owner.store, RedisStore)
    receipt = owner.store.ask(Query(owner.at, keys_of(*numbers), 0))
    assert receipt is not None
    return receipt


def seen(answer: Known | StoreError) -> list[bool]:
    assert isinstance(answer, Known), answer
    return [bool(each) for each in answer.seen]


@pytest.mark.parametrize("sends", [False, True], ids=["alone", "behind a commit"])
def test_what_is_asked_ahead_is_answered_later_and_knows_of_nothing_that_came_after_it(
    server: ValkeyServer, owner: Owner, sends: bool
) -> None:
    elsewhere = RedisStore(server.url)
    other = Owner.open(elsewhere, OTHER)
    assert looked_up(owner, 0) == [True]  # its script is known
    applied = sent(owner, 1)[1] if sends else Applied
    answer = asked(owner, 0, 1, 2)
    assert is_answered(owner)
    assert other.commit([2]) == Applied()
    assert seen(answer()) == [True, sends, False]
    assert applied() == Applied()
    assert looked_up(owner, 0, 1, 2) == [True, sends, True]
    elsewhere.close()


def test_what_was_asked_in_front_of_a_commit_that_comes_again_is_asked_again(
    server: ValkeyServer, owner: Owner
) -> None:
    other = Owner.open(owner.store, OTHER)
    with Redis.from_url(server.url) as admin:
        admin.script_flush()
        _, receipt = sent(owner, 1)
        assert is_answered(owner)
        admin.script_load(LOOKUP.text)
        answer = asked(other, 1, 2)
    assert receipt() == Applied()
    assert seen(answer()) == [True, False]


def test_an_answer_that_was_asked_for_and_not_taken_belongs_to_no_other_call(owner: Owner) -> None:
    asked(owner, 0)
    _, receipt = sent(owner, 1)
    asked(owner, 1)
    answer = asked(owner, 2, 0)
    assert seen(answer()) == [False, True]
    assert receipt() == Applied()


def test_a_server_that_is_killed_while_it_is_asked_says_so_and_is_asked_again(
    server: ValkeyServer, owner: Owner
) -> None:
    answer = asked(owner, 0)
    server.kill()
    found = answer()
    assert isinstance(found, StoreUnavailable) or seen(found) == [True]  # if it was quicker
    server.restart()
    assert seen(asked(owner, 0, 1)()) == [True, False]


def test_damaged_generations_stop_the_partition_and_not_the_consumer(
    server: ValkeyServer, owner: Owner
) -> None:
    """Raised by what only asks ahead, the error would leave `run` and stop nobody."""
    with Redis.from_url(server.url) as admin:
        admin.hset("effectonce:{payments}", "generations", b"abc")
    assert isinstance(looked_up(owner, 0), StoreCorrupt)  # it has learnt them
    query = Query(owner.at, keys_of(0), 0)
    assert owner.store.ask(query) is None  # type: ignore[attr-defined]
    assert isinstance(looked_up(owner, 0), StoreCorrupt)


def test_who_lost_the_partition_is_told_so_however_he_asks(
    server: ValkeyServer, owner: Owner
) -> None:
    elsewhere = RedisStore(server.url)
    Owner.open(elsewhere)
    assert isinstance(asked(owner, 0)(), NotOpen)
    elsewhere.close()


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_look_up_behind_a_commit_finds_what_a_script_finds_fingerprints_included(
    owner: Owner, count: int
) -> None:
    for generation in (1, 2, 3):
        owner.position = next_generation(owner.position, generation, floor=1)
        assert owner.commit([1_000_000 + generation]) == Applied()
    _, receipt = sent(owner, *range(10, 10 + 3 * count, 3))
    query = Query(owner.at, keys_of(*range(3 * count), 1_000_001, 1_000_002, 1_000_003), 0)
    (behind,) = owner.store.lookup([query])
    assert receipt() == Applied()
    (alone,) = owner.store.lookup([query])
    assert isinstance(behind, Known)
    assert isinstance(alone, Known)
    assert behind.seen.tolist() == alone.seen.tolist()
    assert behind.seen[-3:].all()
    assert behind.fingerprints.tolist() == alone.fingerprints.tolist()
    assert behind.as_of == alone.as_of


@pytest.mark.parametrize("damaged", [b"short", b""], ids=["short", "empty"])
def test_a_damaged_marker_is_told_by_a_look_up_behind_a_commit(
    server: ValkeyServer, owner: Owner, damaged: bytes
) -> None:
    with Redis.from_url(server.url) as admin:
        admin.hset("effectonce:{payments}:markers:0:1", key_bytes(7), damaged)
    _, receipt = sent(owner, 1)
    answer = looked_up(owner, 7)
    assert isinstance(answer, StoreCorrupt)
    assert receipt() == Applied()


def test_another_partitions_look_up_sees_it_too(owner: Owner) -> None:
    other = Owner.open(owner.store, OTHER)
    _, receipt = sent(owner, 1)
    assert looked_up(other, 1, 2) == [True, False]
    assert receipt() == Applied()


def test_an_answer_may_be_taken_without_a_look_up(owner: Owner) -> None:
    _, receipt = sent(owner, 1)
    assert receipt() == Applied()
    assert owner.seen(1) == [True]


def test_an_answer_that_nobody_takes_belongs_to_no_other_call(owner: Owner) -> None:
    """Ctrl-C: the driver begins the partition anew, and forgets what was on its way."""
    sent(owner, 1)
    assert looked_up(owner, 1, 2) == [True, False]
    assert looked_up(owner, 3) == [False]
    _, receipt = sent(owner, 3)
    assert receipt() == Applied()


def test_a_conflict_leaves_the_partition_open_or_its_next_look_up_would_be_refused(
    owner: Owner,
) -> None:
    before = owner.position
    _, receipt = sent(owner, 0, on_existing=REFUSE)
    assert looked_up(owner, 0, 9) == [True, False]
    assert receipt() == Conflict((0,))
    owner.position = before
    assert looked_up(owner, 0, 9) == [True, False]
    assert owner.commit([1], on_existing=REFUSE) == Applied()


def test_a_zombie_is_told_so_and_its_look_up_says_nothing(owner: Owner) -> None:
    heir = Owner.open(owner.store)
    assert heir.commit([1]) == Applied()
    _, receipt = sent(owner, 2)
    answer = looked_up(owner, 2)
    assert receipt() == Stale()
    assert isinstance(answer, NotOpen) or answer == [True]


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(
    server: ValkeyServer, owner: Owner
) -> None:
    with Redis.from_url(server.url) as admin:
        admin.script_flush()
    _, receipt = sent(owner, 1)
    assert looked_up(owner, 1, 2) == [True, False]
    assert receipt() == Applied()


def test_a_commit_that_came_again_is_seen_by_the_look_up_that_had_left_behind_it(
    server: ValkeyServer, owner: Owner
) -> None:
    """It ran before that, and would call new what is marked: a copy elsewhere would run again."""
    other = Owner.open(owner.store, OTHER)
    with Redis.from_url(server.url) as admin:
        admin.script_flush()
        _, receipt = sent(owner, 1)
        assert is_answered(owner)
        admin.script_load(LOOKUP.text)  # for another member
    assert looked_up(other, 1, 2) == [True, False]
    assert receipt() == Applied()


def test_two_consumers_on_one_store_see_each_others_commits_or_copies_would_run_again(
    server: ValkeyServer, owner: Owner
) -> None:
    other = Owner.open(owner.store, OTHER)
    with Redis.from_url(server.url) as admin:
        admin.script_flush()
        _, receipt = sent(owner, 1)
        assert is_answered(owner)
        for script in (COMMIT, LOOKUP):
            admin.script_load(script.text)
    _, others = sent(other, 2)
    assert others() == Applied()
    assert looked_up(other, 1, 2, 3) == [True, True, False]
    assert receipt() == Applied()


def test_a_forked_process_reads_no_answer_of_its_parents(owner: Owner) -> None:
    _, receipt = sent(owner, 1)
    child = os.fork()
    if not child:
        os._exit(0 if looked_up(owner, 0, 1, 2) == [True, True, False] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert looked_up(owner, 1, 2) == [True, False]
    assert receipt() == Applied()


def test_a_health_check_takes_no_answer_for_its_own(server: ValkeyServer) -> None:
    owner = Owner.open(RedisStore(f"{server.url}?health_check_interval=1", timeout_seconds=0.5))
    assert owner.commit([0]) == Applied()
    _, receipt = sent(owner, 1)
    owner.store._ahead._connection.next_health_check = 0  # type: ignore[attr-defined]
    assert looked_up(owner, 1, 2) == [True, False]
    assert receipt() == Applied()
    owner.store.close()


def test_a_generation_that_another_member_began_is_learnt(
    server: ValkeyServer, owner: Owner
) -> None:
    elsewhere = RedisStore(server.url)
    other = Owner.open(elsewhere, OTHER)
    other.position = next_generation(other.position, 2, floor=1)
    assert other.commit([7]) == Applied()
    _, receipt = sent(owner, 1)
    assert looked_up(owner, 1, 7, 8) == [True, True, False]
    assert receipt() == Applied()
    elsewhere.close()


@pytest.mark.parametrize("asks", [False, True], ids=["answer", "look-up"])
def test_a_server_that_was_killed_with_a_commit_on_its_way_has_it_once(
    server: ValkeyServer, owner: Owner, asks: bool
) -> None:
    commit, receipt = sent(owner, 1)
    server.kill()
    if asks:
        assert isinstance(looked_up(owner, 1), StoreUnavailable)
    result = receipt()
    if result != Applied():  # else it was quicker than the kill
        assert isinstance(result, Unknown)
        assert isinstance(result.error, StoreUnavailable)
    server.restart()
    again = owner.send(commit)
    assert type(again).__name__ in ("Applied", "Already")
    assert owner.seen(0, 1, 2) == [True, True, False]


def test_a_connection_that_was_cut_is_replaced_before_anyone_hears_of_it(
    server: ValkeyServer, owner: Owner
) -> None:
    _, receipt = sent(owner, 1)
    assert receipt() == Applied()
    with Redis.from_url(server.url) as admin:
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    _, receipt = sent(owner, 2)
    assert looked_up(owner, 1, 2, 3) == [True, True, False]
    assert receipt() == Applied()


def test_ctrl_c_while_an_answer_is_read_mixes_no_answers_up(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, receipt = sent(owner, 1)
    connection = owner.store._ahead._connection  # type: ignore[attr-defined]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(connection, "read_response", interrupted)
    with pytest.raises(KeyboardInterrupt):
        looked_up(owner, 1)
    monkeypatch.undo()
    heir = Owner.open(owner.store)
    assert heir.position == replace(commit.position, epoch=heir.position.epoch)
    assert heir.seen(0, 1, 2) == [True, True, False]
    _, receipt = sent(heir, 2)
    assert looked_up(heir, 2, 3) == [True, False]
    assert receipt() == Applied()


def test_ctrl_c_at_any_line_mixes_no_answers_up(owner: Owner) -> None:
    """An answer that is read for another call's says "applied" of what was refused."""
    modules = ("redis_ahead", "redis")
    whole = Tracer(modules=modules)
    with traced(whole):
        sent_and_answered(owner, 1)
    points = [p for p in whole.points(modules) if (p.module, p.line) not in _locks()]
    for number, point in enumerate(points, 1):
        with suppress(KeyboardInterrupt), traced(Tracer(point, modules)):
            sent_and_answered(owner, 10 * number)
        owner = Owner.open(owner.store)  # as the driver does
        for again in (10 * number + 3, 10 * number + 6):
            sent_and_answered(owner, again)


def _locks() -> set[tuple[str, int]]:
    """Lines in which CPython looks for no signals, as it does after a call: they take a lock."""
    modules = {"redis_ahead": redis_ahead, "redis": redis}
    sources = {name: inspect.getsource(module).splitlines() for name, module in modules.items()}
    return {
        (name, number)
        for name, lines in sources.items()
        for number, line in enumerate(lines, 1)
        if line.strip().startswith(("with self._lock", "try:"))
    }


def sent_and_answered(owner: Owner, number: int) -> None:
    """A commit with a look-up behind it, and one without."""
    _, receipt = sent(owner, number)
    assert looked_up(owner, number, number + 1) == [True, False]
    assert receipt() == Applied()
    before = owner.position
    _, receipt = sent(owner, number, on_existing=REFUSE)
    assert receipt() == Conflict((0,))
    owner.position = before


def test_over_a_client_of_the_users_it_is_waited_for_at_once(server: ValkeyServer) -> None:
    with Redis.from_url(server.url, socket_timeout=5) as client:
        owner = Owner.open(RedisStore(client))
        _, receipt = sent(owner, 1)
        assert client.hlen("effectonce:{payments}:markers:0:1") == 1
        assert owner.store.ask(Query(owner.at, keys_of(1), 0)) is None  # type: ignore[attr-defined]
        assert receipt() == Applied()


def test_a_closed_store_gives_its_connection_back(owner: Owner, server: ValkeyServer) -> None:
    sent(owner, 1)
    owner.store.close()
    with Redis.from_url(server.url) as admin:
        ours = [c for c in admin.client_list() if c["name"] == "effectonce"]
    assert ours == []


# -- look-ups that commits have overtaken ----------------------------------------------------------


@pytest.fixture
def member(server: ValkeyServer) -> Iterator[Owner]:
    """Another one, on a connection of its own."""
    elsewhere = RedisStore(server.url)
    yield Owner.open(elsewhere, OTHER)
    elsewhere.close()


def test_a_look_up_knows_what_was_sent_behind_it_or_the_next_batch_would_run_its_copies(
    owner: Owner,
) -> None:
    assert looked_up(owner, 0) == [True]
    answer = asked(owner, 0, 1, 2, 3)
    _, applied = sent(owner, 1, 2)
    found = answer()
    assert seen(found) == [True, True, True, False]
    assert applied() == Applied()
    (alone,) = owner.store.lookup([Query(owner.at, keys_of(0, 1, 2, 3), 0)])
    assert isinstance(found, Known)
    assert isinstance(alone, Known)
    assert found.fingerprints.tolist() == alone.fingerprints.tolist()
    assert found.as_of == alone.as_of, "else the commit looks at all of its keys again"


def test_two_look_ups_and_the_commits_between_them_are_in_order(owner: Owner) -> None:
    assert looked_up(owner, 0) == [True]
    receipts = []
    answer = asked(owner, 0, 10, 11)
    for number in range(10, 60):
        _, applied = sent(owner, number)
        behind = asked(owner, number - 1, number, number + 1, number + 2)
        assert seen(answer())[-2:] == [True, False], number
        answer = behind
        receipts.append(applied)
    assert seen(answer()) == [True, True, False, False]
    assert {receipt() for receipt in receipts} == {Applied()}


def test_a_look_up_that_others_have_overtaken_too_is_as_of_before_or_a_copy_would_run_twice(
    owner: Owner, member: Owner
) -> None:
    assert looked_up(owner, 0) == [True]
    answer = asked(owner, 1, 2, 3)
    assert is_answered(owner)
    assert member.commit([3]) == Applied()
    _, applied = sent(owner, 1)
    found = answer()
    assert seen(found) == [True, False, False]
    assert applied() == Applied()
    assert isinstance(found, Known)
    again = replace(owner.prepared([3], on_existing=REFUSE), as_of=found.as_of)
    assert owner.send(again) == Conflict((0,))


def test_the_first_marker_stays_for_a_look_up_too_whoever_sent_the_second(
    owner: Owner, member: Owner
) -> None:
    """Its fingerprint is another one: the copy is a conflict, not a repeat."""
    assert looked_up(owner, 0) == [True]
    answer = asked(owner, 1)
    assert is_answered(owner)
    theirs = member.prepared([1])
    assert theirs.markers is not None
    first = replace(theirs.markers, fingerprints=theirs.markers.fingerprints + np.uint32(1))
    assert member.send(replace(theirs, markers=first)) == Applied()
    _, applied = sent(owner, 1)
    found = answer()
    assert applied() == Applied(existing=1)
    assert isinstance(found, Known)
    assert found.fingerprints.tolist() == first.fingerprints.tolist()


@pytest.mark.parametrize("how", ["ordinary", "came again", "refused"])
def test_a_look_up_behind_which_something_else_happened_is_asked_again(
    server: ValkeyServer, owner: Owner, how: str
) -> None:
    other = Owner.open(owner.store, OTHER)
    assert looked_up(owner, 0) == [True]
    answer = asked(owner, 0, 1, 2)
    if how == "ordinary":
        assert other.commit([1]) == Applied()
    elif how == "came again":
        with Redis.from_url(server.url) as admin:
            admin.script_flush()
            _, applied = sent(owner, 1)
            assert is_answered(owner)
        assert applied() == Applied()
    else:
        before = owner.position
        _, applied = sent(owner, 0, on_existing=REFUSE)
        owner.position = before
        assert applied() == Conflict((0,))
    assert seen(answer()) == [True, how != "refused", False]


def test_more_look_ups_than_are_followed_are_right_all_the_same(owner: Owner) -> None:
    assert looked_up(owner, 0) == [True]
    answers = [asked(owner, 0, 1, 2) for _ in range(MOST_QUESTIONS + 3)]
    _, applied = sent(owner, 1)
    assert [seen(answer()) for answer in answers] == [[True, True, False]] * len(answers)
    assert applied() == Applied()


def test_what_is_marked_in_another_partition_of_its_own_says_nothing_of_this_one(
    server: ValkeyServer,
) -> None:
    store = RedisStore(server.url, layout="partition")
    owner, other = Owner.open(store), Owner.open(store, OTHER)
    assert owner.commit([0]) == other.commit([0]) == Applied()
    assert looked_up(owner, 0) == looked_up(other, 0) == [True]
    answer = asked(owner, 0, 1)
    _, applied = sent(other, 1)
    assert seen(answer()) == [True, False]
    assert applied() == Applied()
    store.close()


def test_a_server_that_dies_between_a_look_up_and_the_commit_behind_it_is_asked_again(
    server: ValkeyServer, owner: Owner
) -> None:
    assert looked_up(owner, 0) == [True]
    answer = asked(owner, 0, 1)
    commit, applied = sent(owner, 1)
    server.kill()
    found, result = answer(), applied()
    assert isinstance(found, StoreUnavailable) or seen(found) == [True, result == Applied()]
    server.restart()
    if result != Applied():
        assert type(owner.send(commit)).__name__ in ("Applied", "Already")
    assert seen(asked(owner, 0, 1, 2)()) == [True, True, False]


def test_a_commit_that_another_thread_sends_again_alone_is_seen_or_its_copies_would_run_again(
    server: ValkeyServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look-up leaves while that is under way: it is no longer to be called behind it."""
    store = owner.store
    assert isinstance(store, RedisStore)
    other = Owner.open(store, OTHER)
    assert looked_up(owner, 0) == [True]
    with Redis.from_url(server.url) as admin:
        admin.script_flush()
        _, applied = sent(owner, 1)
        assert is_answered(owner)
        admin.script_load(LOOKUP.text)  # for another member
    put, under_way, go_on = store._put, Event(), Event()

    def slow_put(*given: Any) -> list[Any]:
        under_way.set()
        assert go_on.wait(10.0)
        return put(*given)

    monkeypatch.setattr(store, "_put", slow_put)
    thread = Thread(target=looked_up, args=(other, 5))
    thread.start()
    assert under_way.wait(10.0)
    answer = asked(owner, 1, 2)
    assert is_answered(owner)
    go_on.set()
    thread.join()
    assert seen(answer()) == [True, False]
    assert applied() == Applied()


def test_what_another_run_marks_behind_a_look_up_is_not_in_it(owner: Owner) -> None:
    """That partition was reset with reprocess: what it marks anew is nothing to this one."""
    other = Owner.open(owner.store, OTHER)
    other.position = replace(other.position, run=1)
    assert other.commit([5]) == Applied()
    assert looked_up(owner, 0) == [True]
    answer = asked(owner, 1, 2)
    _, applied = sent(other, 1)
    assert seen(answer()) == looked_up(owner, 1, 2) == [False, False]
    assert applied() == Applied()


def test_nothing_is_asked_ahead_where_commits_are_waited_for_or_each_would_be_asked_twice(
    server: ValkeyServer,
) -> None:
    waits = RedisStore(server.url, durability="host", wait_aof=True)
    query = Query(OTHER, keys_of(1), 0)
    assert waits.ask(query) is None
    waits.close()
