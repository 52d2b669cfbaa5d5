"""A local index in front of Redis: whatever happens behind its back, no look-up calls new what we,
or anybody before us, have marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from effectonce.errors import ConfigError, NotOpen, StoreCorrupt, StoreUnavailable
from effectonce.model import (
    Already,
    Applied,
    CommitResult,
    Conflict,
    Known,
    OnExisting,
    Query,
    Stale,
    Unknown,
)
from effectonce.stores import open_async_store, open_store, redis_index
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_index import Image
from effectonce.stores.redis_rows import decode_element
from effectonce.stores.redis_scripts import COMMIT_PACKED, Script
from effectonce.testing.owner import (
    AT,
    OTHER,
    VALUE,
    Owner,
    fingerprint_of,
    key_bytes,
    keys_of,
    next_generation,
)
from effectonce.testing.servers import ValkeyServer
from tests.stores.redis_kit import order
from tests.stores.test_redis_ahead import _locks, is_answered, looked_up, sent, sent_and_answered
from tests.unit.test_interrupts import Tracer, traced

REFUSE = OnExisting.REFUSE
TAG = "effectonce:{payments:billing:orders:0:packed}"
MARKERS = f"{TAG}:markers:0:1"


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer.start() as server:
        yield server


@pytest.fixture
def admin(server: ValkeyServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def make(server: ValkeyServer) -> Iterator[Callable[[], RedisStore]]:
    made: list[RedisStore] = []

    def make() -> RedisStore:
        made.append(RedisStore(server.url, layout="partition", index="local", timeout_seconds=0.5))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make: Callable[[], RedisStore]) -> RedisStore:
    return make()


@pytest.fixture
def owner(store: RedisStore) -> Owner:
    owner = Owner.open(store)
    assert owner.commit([0]) == Applied()
    assert owner.seen(0) == [True]
    return owner


@pytest.fixture
def never_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_index, "CHECK_SECONDS", math.inf)


@pytest.fixture
def always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_index, "CHECK_SECONDS", 0.0)


def image(owner: Owner) -> Image | None:
    assert isinstance(owner.store, RedisStore)
    return owner.store._local._images.get(owner.at)


def calls(admin: Redis, command: str = "evalsha") -> int:
    stats: dict[str, Any] = admin.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


def heir_and_zombie(owner: Owner, make: Callable[[], RedisStore]) -> tuple[Owner, Owner]:
    """Somebody else's, which has looked up; and the owner before it, which does not know."""
    heir = Owner.open(make())
    assert heir.commit([100]) == Applied()
    assert heir.seen(0, 100) == [True, True]
    return heir, owner


# -- what it is for --------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_checked")
def test_a_look_up_between_commits_costs_the_server_nothing(admin: Redis, owner: Owner) -> None:
    before = calls(admin)
    for number in range(1, 50):
        assert owner.seen(number - 1, number) == [True, False]
        assert owner.commit([number]) == Applied()
        assert owner.known(number).fingerprints.tolist() == [fingerprint_of(number)]
    assert calls(admin) - before == 49


@pytest.mark.usefixtures("never_checked")
def test_a_look_up_behind_a_commit_costs_the_server_nothing(admin: Redis, owner: Owner) -> None:
    before = calls(admin)
    for number in range(1, 50):
        _, receipt = sent(owner, number)
        assert looked_up(owner, number - 1, number, number + 1) == [True, True, False]
        assert receipt() == Applied()
    assert calls(admin) - before == 49


@pytest.mark.usefixtures("never_checked")
def test_a_commit_of_looked_up_keys_is_one_call_or_the_half_of_it_was_for_nothing(
    admin: Redis, owner: Owner
) -> None:
    before = calls(admin)
    for number in range(1, 20):
        commit = owner.prepared([number], on_existing=REFUSE)
        assert owner.send(replace(commit, as_of=owner.known(number).as_of)) == Applied()
        owner.position = commit.position
    assert calls(admin) - before == 19


@pytest.mark.usefixtures("never_checked")
def test_a_commit_of_keys_that_nobody_looked_up_reads_what_is_new_and_nothing_twice(
    admin: Redis, owner: Owner
) -> None:
    """Lanes look up more often than they commit."""
    before = calls(admin, "lrange")
    for number in range(1, 20):
        assert owner.commit([number], on_existing=REFUSE) == Applied()
        assert owner.commit([number], on_existing=REFUSE) == Conflict((0,))
        assert owner.seen(number, number + 1) == [True, False]
    assert calls(admin, "lrange") - before <= 2 * 19 * 20
    kept = image(owner)
    assert kept is not None
    assert len(kept.marked.index) == 20


@pytest.mark.usefixtures("never_checked")
def test_a_commit_that_takes_several_packed_rows_is_not_read_again(owner: Owner) -> None:
    """Nor half of it: a key is in the image once."""
    assert owner.commit(range(1, 70_001)) == Applied()
    assert owner.commit([70_000, 70_001]) == Applied(existing=1)
    kept = image(owner)
    assert kept is not None
    assert len(kept.marked.index) == 70_002
    assert owner.seen(0, 1, 70_001, 70_002) == [True, True, True, False]


@pytest.mark.parametrize("count", [3, 200, 25_000])
def test_a_start_loads_every_generation_of_its_run_and_no_other(
    owner: Owner, make: Callable[[], RedisStore], count: int
) -> None:
    owner.commit(to=replace(owner.position, run=1))
    for generation in (1, 2, 3):
        owner.position = next_generation(owner.position, generation, floor=1)
        owner.commit(range(generation * 100_000, generation * 100_000 + count))
    owner = Owner.open(make())
    numbers = [g * 100_000 + n for g in (1, 2, 3) for n in range(count)]
    known = owner.known(*numbers, 0, 7)
    assert known.seen.tolist() == [True] * len(numbers) + [False, False]
    assert known.fingerprints[:-2].tolist() == [fingerprint_of(n) for n in numbers]
    found = image(owner)
    assert found is not None
    assert len(found.marked.index) == len(numbers)


def test_large_rows_in_front_of_many_small_ones_do_not_ask_for_more_memory_than_there_is(
    admin: Redis, owner: Owner
) -> None:
    """A backlog, and then a trickle: by its first rows, a thousand times more is to be expected."""
    owner.position = next_generation(owner.position, 2, floor=1)
    assert owner.commit(range(1, 60_001)) == Applied()
    mine = Image(run=0, fence=b"", mark=0, checked=0.0)
    first = admin.lindex(MARKERS.replace(":1", ":2"), 0)
    assert isinstance(first, bytes)
    mine.add_rows(2, [decode_element(first, 2, "")], left=1_000_000)
    assert mine.look_up(keys_of(1, 60_000, 60_001)).seen.tolist() == [True, True, False]


# -- what former owners note behind our back -------------------------------------------------------


@pytest.mark.usefixtures("never_checked")
def test_facts_that_a_zombie_noted_refuse_an_in_store_commit_and_are_seen_from_then_on(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    heir, zombie = heir_and_zombie(owner, make)
    known = heir.known(7)
    assert zombie.commit([7]) == Stale()
    refused = replace(heir.prepared([7], on_existing=REFUSE), as_of=known.as_of)
    assert heir.send(refused) == Conflict((0,))
    assert heir.seen(7) == [True]


@pytest.mark.usefixtures("never_checked")
@pytest.mark.parametrize("numbers", [(), (8,)], ids=["a position", "a marker"])
def test_facts_are_seen_behind_any_commit_though_none_of_its_keys_is_among_them(
    owner: Owner, make: Callable[[], RedisStore], numbers: tuple[int, ...]
) -> None:
    """That commit writes a mark of its own: nothing would tell of them after it."""
    heir, zombie = heir_and_zombie(owner, make)
    assert zombie.commit([7]) == Stale()
    assert heir.commit(numbers) == Applied()
    assert heir.seen(7, 8, 9) == [True, bool(numbers), False]


@pytest.mark.usefixtures("never_checked")
def test_facts_are_seen_behind_a_commit_that_was_sent_ahead(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    heir, zombie = heir_and_zombie(owner, make)
    assert zombie.commit([7]) == Stale()
    _, receipt = sent(heir, 8)
    assert looked_up(heir, 7, 8, 9) == [True, True, False]
    assert receipt() == Applied()


@pytest.mark.usefixtures("never_checked")
def test_facts_are_seen_once_an_idle_owner_asked_whether_all_is_well(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    heir, zombie = heir_and_zombie(owner, make)
    well = heir.prepared([101])
    assert heir.send(well) == Applied()
    heir.position = well.position
    kept = image(heir)
    assert heir.send(well) == Already()
    assert image(heir) is kept is not None, "and where all is well it stays"
    assert zombie.commit([7]) == Stale()
    assert heir.send(well) == Already()
    assert heir.seen(7) == [True]


@pytest.mark.usefixtures("always_checked")
def test_facts_are_seen_by_a_check(owner: Owner, make: Callable[[], RedisStore]) -> None:
    heir, zombie = heir_and_zombie(owner, make)
    assert zombie.commit([7]) == Stale()
    assert heir.seen(7, 8) == [True, False]


def test_facts_are_seen_though_the_answer_of_a_commit_before_them_was_read_only_now(
    owner: Owner, make: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(redis_index, "time", SimpleNamespace(monotonic=lambda: now))
    heir, zombie = heir_and_zombie(owner, make)
    _, receipt = sent(heir, 8)
    assert is_answered(heir)
    assert zombie.commit([7]) == Stale()
    now += 2 * redis_index.CHECK_SECONDS
    assert looked_up(heir, 7, 8, 9) == [True, True, False]
    assert receipt() == Applied()


@pytest.mark.usefixtures("never_checked")
@pytest.mark.parametrize("times", [1, 1000])
def test_facts_that_are_noted_while_markers_are_loaded_are_loaded_too(
    owner: Owner,
    make: Callable[[], RedisStore],
    times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the moment when it began; what came behind it, the mark says."""
    monkeypatch.setattr(redis_index, "SLICE_ROWS", (1, 1))
    for number in range(1000, 1010):
        assert owner.commit([number]) == Applied()
    heir = Owner.open(make())
    heir.store._local.clear()  # type: ignore[attr-defined]
    read, noted = heir.store._link.read, 0  # type: ignore[attr-defined]

    def noting(command: str, *args: Any) -> Any:
        nonlocal noted
        if command == "LRANGE" and noted < times:
            noted += 1
            assert owner.commit([noted]) == Stale()
        return read(command, *args)

    monkeypatch.setattr(heir.store._link, "read", noting)  # type: ignore[attr-defined]
    numbers = [1000, 1005, 1009, 5000]
    assert heir.seen(*numbers) == [True, True, True, False]
    assert noted == min(times, 11)
    monkeypatch.undo()
    assert heir.commit([noted], on_existing=REFUSE) == Conflict((0,))
    assert heir.seen(*range(1, noted + 1), *numbers) == [True] * (noted + 3) + [False]


@pytest.mark.usefixtures("never_checked")
def test_a_generation_that_goes_while_markers_are_loaded_is_not_half_of_an_index(
    owner: Owner, make: Callable[[], RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 10):
        assert owner.commit([number]) == Applied()
    owner.position = next_generation(owner.position, 2, floor=1)
    assert owner.commit([100]) == Applied()
    monkeypatch.setattr(redis_index, "SLICE_ROWS", (1, 1))
    other = make()
    other.prepare()
    read, drops = other._link.read, [3]

    def dropping(command: str, *args: Any) -> Any:
        if command == "LRANGE":
            drops[0] -= 1
            if not drops[0]:
                owner.position = next_generation(owner.position, 3, floor=2)
                assert owner.commit([200]) == Applied()
        return read(command, *args)

    monkeypatch.setattr(other._link, "read", dropping)
    (known,) = other.lookup([Query(AT, keys_of(1, 9, 100, 200), 0)])
    assert isinstance(known, Known)
    assert known.seen.tolist() == [False, False, True, True]


# -- answers that are lost -------------------------------------------------------------------------


@pytest.mark.usefixtures("never_checked")
@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_without_an_answer_is_asked_after_and_loaded_once_it_is_known(
    owner: Owner, landed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = owner.prepared([1])
    assert isinstance(owner.store, RedisStore)
    run = owner.store._link.run

    def unanswered(script: Script, *call: Any) -> Any:
        if script is COMMIT_PACKED:
            if landed:
                run(script, *call)
            raise StoreUnavailable("no answer")
        return run(script, *call)

    monkeypatch.setattr(owner.store._link, "run", unanswered)
    assert isinstance(owner.send(commit), Unknown)
    assert owner.seen(0, 1, 2) == [True, landed, False]
    assert image(owner) is None, "what is on its way may still land"
    monkeypatch.undo()
    assert owner.send(commit) == (Already() if landed else Applied())
    assert owner.seen(0, 1, 2) == [True, True, False]
    assert image(owner) is not None


def test_a_server_that_was_killed_with_a_commit_on_its_way_has_it_once(
    server: ValkeyServer, owner: Owner
) -> None:
    commit, receipt = sent(owner, 1)
    server.kill()
    answer = looked_up(owner, 1)
    if answer != [True]:  # else it was quicker than the kill
        assert isinstance(answer, StoreUnavailable)
        assert isinstance(receipt(), Unknown)
    server.restart()
    assert isinstance(owner.send(commit), Applied | Already)
    assert owner.seen(0, 1, 2) == [True, True, False]


def test_a_connection_that_was_cut_hides_no_commit(admin: Redis, owner: Owner) -> None:
    for number in range(1, 4):
        _, receipt = sent(owner, number)
        assert receipt() == Applied()
        order(admin, "CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")
        _, receipt = sent(owner, number + 10)
        assert looked_up(owner, number, number + 10, 99) == [True, True, False]
        assert receipt() == Applied()


def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(
    admin: Redis, owner: Owner
) -> None:
    admin.script_flush()
    _, receipt = sent(owner, 1)
    assert looked_up(owner, 1, 2) == [True, False]
    assert receipt() == Applied()
    admin.script_flush()
    owner = Owner.open(owner.store)
    assert owner.seen(0, 1, 2) == [True, True, False]


def test_scripts_that_are_forgotten_while_markers_are_loaded_are_told_again(
    admin: Redis, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(owner.store, RedisStore)
    owner.store._local.clear()
    read, forgotten = owner.store._link.read, 0

    def forgetting(*args: Any) -> Any:
        nonlocal forgotten
        forgotten += 1
        admin.script_flush()
        return read(*args)

    monkeypatch.setattr(owner.store._link, "read", forgetting)
    assert owner.seen(0, 1) == [True, False]
    assert forgotten
    assert image(owner) is not None


@pytest.mark.usefixtures("never_checked")
def test_a_conflict_ahead_hides_no_key_and_invents_none(owner: Owner) -> None:
    before = owner.position
    _, receipt = sent(owner, 0, 5, on_existing=REFUSE)
    assert looked_up(owner, 0, 5, 9) == [True, False, False]
    assert receipt() == Conflict((0,))
    owner.position = before
    assert owner.commit([5], on_existing=REFUSE) == Applied()
    assert owner.seen(0, 5, 9) == [True, True, False]


def sent_as_of(owner: Owner, *numbers: int, **how: Any) -> Callable[[], CommitResult]:
    """A commit ahead of keys that were looked up, as the driver makes it."""
    assert isinstance(owner.store, RedisStore)
    commit = replace(owner.prepared(numbers, **how), as_of=owner.known(*numbers).as_of)
    owner.position = commit.position
    return owner.store.send(commit)


@pytest.mark.usefixtures("never_checked")
def test_keys_join_before_the_answer_is_there_and_once_only(owner: Owner) -> None:
    for number in range(1, 50):
        receipt = sent_as_of(owner, number)
        known = owner.known(number - 1, number, number + 1)
        assert known.seen.tolist() == [True, True, False]
        assert known.fingerprints[1] == fingerprint_of(number)
        assert receipt() == Applied()
        kept = image(owner)
        assert kept is not None
        assert len(kept.marked.index) == number + 1
        assert known.as_of == kept.mark


@pytest.mark.usefixtures("never_checked")
def test_keys_of_a_commit_ahead_that_was_refused_are_new(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    heir, zombie = heir_and_zombie(owner, make)
    before, trusting = heir.position, heir.prepared([7, 8], on_existing=REFUSE)
    trusting = replace(trusting, as_of=heir.known(7, 8).as_of)
    assert zombie.commit([7, 5]) == Stale()
    receipt = heir.store.send(trusting)  # type: ignore[attr-defined]
    assert looked_up(heir, 7, 8, 5) == [True, False, True]
    assert receipt() == Conflict((0,))
    assert (heir.position, heir.seen(8)) == (before, [False])


@pytest.mark.usefixtures("never_checked")
def test_a_copy_that_was_sent_ahead_is_there_once(owner: Owner) -> None:
    _, receipt = sent(owner, 0, 5)
    assert looked_up(owner, 0, 5, 6) == [True, True, False]
    assert receipt() == Applied(existing=1)
    kept = image(owner)
    assert kept is not None
    assert len(kept.marked.index) == 2


@pytest.mark.usefixtures("never_checked")
@pytest.mark.parametrize("trusts", [True, False])
def test_what_a_commit_ahead_has_dropped_is_not_seen_behind_it(owner: Owner, trusts: bool) -> None:
    owner.position = next_generation(owner.position, 2, floor=1)
    assert owner.commit([1]) == Applied()
    owner.position = next_generation(owner.position, 3, floor=2)
    receipt = sent_as_of(owner, 2) if trusts else sent(owner, 2)[1]
    assert looked_up(owner, 0, 1, 2) == [False, True, True]
    assert receipt() == Applied()


@pytest.mark.usefixtures("never_checked")
def test_a_zombie_that_sent_ahead_is_told_so_by_the_look_up(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    _, zombie = heir_and_zombie(owner, make)
    _, receipt = sent(zombie, 2)
    assert isinstance(looked_up(zombie, 2), NotOpen)
    assert receipt() == Stale()


def test_ctrl_c_at_any_line_hides_no_marker(owner: Owner) -> None:
    modules = ("redis_index", "redis")
    whole = Tracer(modules=modules)
    with traced(whole):
        sent_and_answered(owner, 1)
    points = [p for p in whole.points(modules) if (p.module, p.line) not in _locks()]
    for number, point in enumerate(points, 1):
        with suppress(KeyboardInterrupt), traced(Tracer(point, modules)):
            sent_and_answered(owner, 10 * number)
        for again in (False, True):
            if again:
                owner = Owner.open(owner.store)  # as the driver does
            answer = looked_up(owner, 10 * number)  # which sends again what came to nothing
            there = owner.store.find(AT, key_bytes(10 * number)) is not None
            assert answer == [there] or (not again and isinstance(answer, NotOpen)), point
        sent_and_answered(owner, 10 * number + 3)


# -- who owns it -----------------------------------------------------------------------------------


def test_a_partition_that_was_given_up_leaves_no_index(owner: Owner) -> None:
    owner.store.release(AT)
    assert image(owner) is None
    assert owner.seen(0, 1) == [True, False]  # anybody's look-up
    assert image(owner) is None


@pytest.mark.usefixtures("never_checked")
def test_what_others_marked_between_two_of_our_ownerships_is_seen(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    heir = Owner.open(make())
    assert heir.commit([5]) == Applied()
    again = Owner.open(owner.store)
    assert again.seen(0, 5, 6) == [True, True, False]


@pytest.mark.usefixtures("always_checked")
def test_a_zombie_learns_of_it_by_a_check_before_its_handler_runs(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    _, zombie = heir_and_zombie(owner, make)
    assert isinstance(looked_up(zombie, 1), NotOpen)


@pytest.mark.usefixtures("never_checked")
def test_a_row_that_lost_its_last_commit_is_noticed_by_the_next(admin: Redis, owner: Owner) -> None:
    backup = {key: admin.dump(key) for key in admin.keys(f"{TAG}*")}
    assert owner.commit([1]) == Applied()
    for key, value in backup.items():
        assert value is not None
        admin.restore(key, 0, value, replace=True)
    assert owner.commit([2], on_existing=REFUSE) == Stale()
    again = Owner.open(owner.store)
    assert again.seen(0, 1, 2) == [True, False, False]


@pytest.mark.usefixtures("never_checked")
@pytest.mark.parametrize("commits", [0, 1, 2, 5])
def test_facts_that_a_restored_copy_has_lost_are_noted_again_by_who_tells_them_again(
    admin: Redis, owner: Owner, make: Callable[[], RedisStore], commits: int
) -> None:
    """What its image says is there is not, however long the list has become since."""
    backup = {key: admin.dump(key) for key in admin.keys(f"{TAG}*")}
    assert owner.commit([1, 2]) == Applied()
    for key, value in backup.items():
        assert value is not None
        admin.restore(key, 0, value, replace=True)
    heir = Owner.open(make())
    for number in range(10, 10 + commits):
        assert heir.commit([number]) == Applied()
    assert owner.commit([2, 3]) == Stale()
    assert Owner.open(make()).seen(0, 1, 2, 3) == [True, False, True, True]


@pytest.mark.usefixtures("never_checked")
def test_rows_that_came_in_place_of_lost_ones_are_not_taken_for_those(
    admin: Redis, owner: Owner, make: Callable[[], RedisStore]
) -> None:
    """As many as were lost: by their number all of them have been read."""
    backup = {key: admin.dump(key) for key in admin.keys(f"{TAG}*")}
    assert owner.commit([1, 2]) == Applied()
    for key, value in backup.items():
        assert value is not None
        admin.restore(key, 0, value, replace=True)
    assert Owner.open(make()).commit([3]) == Applied()
    assert owner.commit([1, 3, 4]) == Stale()
    reader = Owner.open(make())
    assert reader.seen(0, 1, 2, 3, 4) == [True, True, False, True, True]
    found = image(reader)
    assert found is not None
    assert len(found.marked.index) == 4, "each of them once"


@pytest.mark.usefixtures("never_checked")
def test_partitions_have_an_index_each(owner: Owner) -> None:
    other = Owner.open(owner.store, OTHER)
    assert other.commit([5]) == Applied()
    assert (owner.seen(0, 5), other.seen(0, 5)) == ([True, False], [False, True])


@pytest.mark.usefixtures("never_checked")
def test_a_new_run_knows_nothing_of_the_last(owner: Owner) -> None:
    assert owner.seen(0, run=1) == [False]
    assert owner.seen(0) == [True]
    begins = owner.prepared([0, 1])
    begins = replace(begins, position=replace(begins.position, run=1))
    assert owner.send(begins) == Applied()
    owner.position = begins.position
    assert owner.seen(0, 1, run=0) == [True, False]
    assert owner.seen(0, 1, 2) == [True, True, False]


# -- expiry ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_checked")
def test_a_dropped_generation_leaves_the_index_and_its_memory(owner: Owner) -> None:
    owner.commit(range(1, 20_000))
    owner.seen(1)
    for generation in (2, 3, 4):
        owner.position = next_generation(owner.position, generation, max(1, generation - 2))
        assert owner.commit([generation * 100_000]) == Applied()
    assert owner.seen(0, 1, 19_999, 200_000, 300_000, 400_000) == [False] * 3 + [True] * 3
    kept = image(owner)
    assert kept is not None
    assert len(kept.marked.index) == 3
    assert owner.commit([1], on_existing=REFUSE) == Applied()


@pytest.mark.usefixtures("never_checked")
def test_an_older_generation_that_grew_behind_a_younger_one_is_dropped_all_the_same(
    owner: Owner, make: Callable[[], RedisStore]
) -> None:
    """A zombie's clock was ahead: its facts began the generation that we had yet to enter."""
    heir, zombie = heir_and_zombie(owner, make)
    zombie.position = next_generation(zombie.position, 2, floor=1)
    assert zombie.commit([7]) == Stale()
    heir.commit()
    assert heir.seen(7) == [True]
    assert heir.commit([8]) == Applied()
    heir.position = next_generation(heir.position, 3, floor=2)
    assert heir.commit([9]) == Applied()
    assert heir.seen(0, 7, 8, 9) == [False, True, False, True]


# -- damage ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("never_checked")
def test_a_generation_that_is_gone_is_found_by_the_next_commit_before_it_begins_it_anew(
    admin: Redis, owner: Owner
) -> None:
    admin.delete(MARKERS)
    commit = replace(owner.prepared([1]), as_of=owner.known(1).as_of)
    result = owner.send(commit)
    assert isinstance(result, Unknown)
    assert isinstance(result.error, StoreCorrupt)
    assert MARKERS in str(result.error)
    assert isinstance(looked_up(owner, 0), StoreCorrupt)
    assert not admin.exists(MARKERS)


@pytest.mark.usefixtures("always_checked")
def test_a_generation_that_is_gone_is_found_by_a_check(admin: Redis, owner: Owner) -> None:
    admin.delete(MARKERS)
    assert isinstance(looked_up(owner, 1), StoreCorrupt)


@pytest.mark.parametrize("element", [b"short", b"m" * 8 + b"\1" * 100, b""])
def test_a_packed_row_that_cannot_be_read_is_neither_new_nor_seen(
    admin: Redis, owner: Owner, element: bytes
) -> None:
    admin.rpush(MARKERS, element)
    owner = Owner.open(owner.store)
    answer = looked_up(owner, 0)
    assert isinstance(answer, StoreCorrupt)
    assert MARKERS in str(answer)


def test_a_packed_row_under_anothers_key_is_neither_new_nor_seen(
    admin: Redis, owner: Owner
) -> None:
    owner.position = next_generation(owner.position, 2, floor=1)
    assert owner.commit([1]) == Applied()
    element = admin.lindex(MARKERS, 0)
    assert isinstance(element, bytes)
    admin.rpush(MARKERS.replace(":1", ":2"), element)
    assert isinstance(looked_up(Owner.open(owner.store), 0), StoreCorrupt)


def at_server(admin: Redis) -> dict[Any, Any]:
    """All that the server holds."""
    return {key: admin.dump(key) for key in admin.scan_iter()}


@pytest.mark.parametrize("holds", ["markers", "outcomes", "rows", "a new generation"])
def test_a_key_of_another_type_fails_a_commit_before_it_has_written_anything(
    admin: Redis, owner: Owner, holds: str
) -> None:
    """An error after a write undoes nothing: the position moved, and the markers were not there."""
    key = {
        "markers": MARKERS,
        "outcomes": MARKERS.replace("markers", "outcomes"),
        "rows": f"{TAG}:rows:billing:orders:0",
        "a new generation": MARKERS.replace(":1", ":2"),
    }[holds]
    admin.delete(key)
    admin.set(key, "what nobody of ours wrote")
    before = at_server(admin)
    if holds == "a new generation":
        owner.position = next_generation(owner.position, 2, floor=1)
    commit = owner.prepared([1], outcomes={0: VALUE}, writes=((b"key", b"value"),))
    for as_of in (None, 0 if (kept := image(owner)) is None else kept.mark):
        assert isinstance(owner.send(replace(commit, as_of=as_of)), Unknown)
        assert at_server(admin) == before


@pytest.mark.parametrize("right", ["rpush", "hdel"])
def test_a_right_that_was_taken_away_fails_a_commit_before_it_has_written_anything(
    server: ValkeyServer, admin: Redis, right: str
) -> None:
    order(admin, "ACL SETUSER", "app", "reset", "on", ">pw", "~*", "+@all")
    url = server.url.replace("unix://", "unix://app:pw@")
    store = RedisStore(url, layout="partition", index="local")
    owner = Owner.open(store)
    assert owner.commit([0], writes=((b"key", b"value"),)) == Applied()
    order(admin, "ACL SETUSER", "app", f"-{right}")
    before = at_server(admin)
    commit = owner.prepared([1], writes=((b"key", None),))
    result = owner.send(commit)
    assert isinstance(result, Unknown)
    assert right in str(result.error).lower()
    assert at_server(admin) == before
    order(admin, "ACL SETUSER", "app", f"+{right}")
    assert owner.send(commit) == Applied()
    assert owner.seen(0, 1, 2) == [True, True, False]
    store.close()


@pytest.mark.usefixtures("always_checked")
def test_a_server_that_is_away_is_waited_for_and_nothing_is_loaded_again(
    server: ValkeyServer, owner: Owner
) -> None:
    kept = image(owner)
    server.kill()
    assert isinstance(looked_up(owner, 1), StoreUnavailable)
    server.restart()
    assert looked_up(owner, 0, 1) == [True, False]
    assert image(owner) is kept is not None


# -- options ---------------------------------------------------------------------------------------


def test_partitions_that_share_markers_have_no_index_of_their_own() -> None:
    with pytest.raises(ConfigError) as caught:
        RedisStore("redis://localhost", index="local", durability="disk")
    problems = caught.value.problems
    assert len(problems) == 2
    assert any("index='local' needs layout='partition'" in problem for problem in problems)


@pytest.mark.parametrize("url", ["redis://host?index=near", "redis://host?index=local"])
def test_a_url_that_asks_for_what_there_is_not_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="index="):
        open_store(url)


def test_a_url_is_all_that_it_takes(server: ValkeyServer) -> None:
    store = open_store(f"{server.url}?layout=partition&index=local")
    owner = Owner.open(store)
    assert owner.commit([1]) == Applied()
    assert owner.seen(1, 2) == [True, False]
    assert image(owner) is not None
    store.close()


def test_the_async_store_says_that_it_has_none() -> None:
    with pytest.raises(ConfigError, match="sync store"):
        open_async_store("redis://host?layout=partition&index=local")


@pytest.mark.parametrize("right", ["lrange", "llen", "rpush"])
def test_a_missing_right_is_found_at_the_start_and_what_was_tried_leaves_nothing(
    server: ValkeyServer, admin: Redis, right: str
) -> None:
    """A list that it left would be a problem to `inspect` for good."""
    order(admin, "ACL SETUSER", "app", "reset", "on", ">pw", "~*", "+@all", f"-{right}")
    url = server.url.replace("unix://", "unix://app:pw@")
    store = RedisStore(url, layout="partition", index="local")
    with pytest.raises(ConfigError, match=right):
        store.prepare()
    store.close()
    assert at_server(admin) == {}
    without = RedisStore(url, layout="partition")
    assert len(without.prepare()) == 16
    without.close()


def test_a_look_up_of_nothing_is_answered(owner: Owner) -> None:
    (answer,) = owner.store.lookup([Query(AT, keys_of(), 0)])
    assert isinstance(answer, Known)
