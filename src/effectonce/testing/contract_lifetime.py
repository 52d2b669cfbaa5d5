"""The part of the contract (contract.py) that is about how long a marker lives, and for whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

import pytest

from effectonce.model import UNSET, Applied, OnExisting, Partition
from effectonce.ports import Reach, Store
from effectonce.testing.owner import AT, OTHER, VALUE, Owner, key_bytes, markers_of, next_generation

REFUSE: Final = OnExisting.REFUSE
Reopened: TypeAlias = Callable[[Store], Store]


class LifetimeContract:
    """Runs, generations, scopes. `StoreContract` has the fixtures."""

    def test_markers_of_another_run_say_nothing(self, owner: Owner, reopened: Reopened) -> None:
        owner.commit([1, 2])
        assert owner.seen(1, 2, run=1) == [False, False]
        owner.commit(to=replace(owner.position, run=1, next=0))
        assert owner.seen(1, 2) == [False, False]
        assert owner.commit([1], on_existing=REFUSE) == Applied()
        owner = Owner.open(reopened(owner.store))
        assert owner.seen(1, 2) == [True, False]
        assert owner.commit([2], on_existing=REFUSE) == Applied()

    def test_a_commit_that_begins_a_run_meets_no_marker_of_the_last(self, owner: Owner) -> None:
        owner.commit([1, 2])
        begins = owner.prepared([2, 3], on_existing=REFUSE)
        begins = replace(begins, position=replace(begins.position, run=1))
        assert owner.send(begins) == Applied()
        assert owner.seen(1, 2, 3, run=1) == [False, True, True]

    def test_a_dropped_generation_is_gone_whole_and_the_kept_ones_stay(
        self, owner: Owner, reopened: Reopened
    ) -> None:
        owner.commit([1, 2], outcomes={0: VALUE})
        for generation in (2, 3):
            owner.position = next_generation(owner.position, generation, floor=1)
            owner.commit([10 * generation], outcomes={0: VALUE})
        assert owner.seen(1, 2, 20, 30) == [True, True, True, True]
        owner.position = next_generation(owner.position, 4, floor=2)
        owner.commit([40])
        for again in (False, True):
            owner = Owner.open(reopened(owner.store)) if again else owner
            assert owner.seen(1, 2, 20, 30, 40) == [False, False, True, True, True]
            assert owner.store.find(AT, key_bytes(1)) is None
            assert owner.marker(20).outcome == VALUE
            assert [g.generation for g in owner.position.generations] == [2, 3, 4]
        assert owner.commit([1], on_existing=REFUSE) == Applied()

    def test_generations_that_a_start_moves_keep_their_markers(
        self, owner: Owner, reopened: Reopened
    ) -> None:
        owner.commit([1, 2], outcomes={0: VALUE})
        owner.position = next_generation(owner.position, 2, floor=1)
        owner.commit([20])
        moved = tuple(replace(g, offset=-1, until=0) for g in owner.position.generations)
        assert owner.commit(to=replace(owner.position, next=0, generations=moved)) == Applied()
        owner.commit([30])
        owner = Owner.open(reopened(owner.store))
        assert owner.position.generations == moved
        assert owner.seen(1, 2, 20, 30) == [True, True, True, True]
        assert owner.marker(1).outcome == VALUE

    def test_generations_that_were_skipped_are_dropped_too(self, owner: Owner) -> None:
        owner.commit([1])
        owner.position = next_generation(owner.position, 1_000, floor=998)
        assert owner.commit([2]) == Applied()
        assert owner.seen(1, 2) == [False, True]
        assert owner.commit([1], on_existing=REFUSE) == Applied()

    def test_markers_ahead_of_the_position_are_kept(self, owner: Owner, reopened: Reopened) -> None:
        marked = replace(owner.position, marked_until=8)
        ahead = replace(owner.prepared(to=marked), markers=markers_of([1, 2], 6))
        assert owner.send(ahead) == Applied()
        owner.position = ahead.position
        for generation in (2, 3, 4):
            owner.position = next_generation(owner.position, generation, floor=1)
            owner.commit(to=owner.position)
        owner = Owner.open(reopened(owner.store))
        assert owner.seen(1, 2) == [True, True]
        assert (owner.position.next, owner.position.marked_until) == (0, 8)

    def test_the_newest_log_time_of_a_scope_is_told_where_partitions_share_markers(
        self, store: Store
    ) -> None:
        shared = store.traits.reach is Reach.SHARED
        for at, log_time_ms in ((AT, 3_000), (OTHER, 5_000), (replace(AT, scope="x"), 9_000)):
            owner = Owner.open(store, at)
            owner.commit(to=replace(owner.position, log_time_ms=log_time_ms))
        assert store.newest_ms(AT.scope) == (5_000 if shared else UNSET)
        assert store.newest_ms("nobody's") == UNSET

    def test_scopes_and_groups_stay_apart(self, store: Store) -> None:
        owner = Owner.open(store)
        owner.commit([1])
        for at in (replace(AT, scope="refunds"), replace(AT, group="audit", scope="audit")):
            stranger = Owner.open(store, at)
            assert stranger.position.next == 0
            assert stranger.seen(1) == [False]
        assert Owner.open(store, replace(AT, group="audit")).position.next == 0
        assert Owner.open(store, replace(AT, topic="returns")).position.next == 0

    @pytest.mark.parametrize(
        "name", ["a/b", "../x", ".", "..", "STORE", "Zürich 1", "a%2Fb", "LOCK", "x:y\\z"]
    )
    def test_any_name_is_a_name_of_its_own(
        self, store: Store, reopened: Reopened, name: str
    ) -> None:
        plain = Owner.open(store)
        at = Partition(name, name, "orders", 0)
        owner = Owner.open(store, at)
        owner.commit([1])
        assert plain.seen(1) == [False]
        store = reopened(store)
        assert Owner.open(store, at).seen(1) == [True]
        assert store.has_positions(name, name, "orders")
