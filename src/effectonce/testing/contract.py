"""The contract of every store, as a test class that names what would break without it.

    class TestMyStore(StoreContract):
        def make_store(self, folder):
            return MyStore(folder / "db")

pytest then runs it all against your store. `make_store` is called again, with the same folder, for
what a restart of the process would do; a store that lives in this process overrides `reopen`.
An AsyncStore is handed in as `AsyncFacade(lambda: MyAsyncStore(...))` of testing/async_facade.py.
`pytest.register_assert_rewrite("effectonce.testing")` in your conftest.py makes failures readable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from effectonce.errors import TransactionClosed
from effectonce.model import (
    NO_ID,
    Already,
    Applied,
    Commit,
    Conflict,
    Known,
    Outcome,
    OutcomeKind,
    Query,
    Stale,
    Status,
)
from effectonce.ports import Reach, Store
from effectonce.testing.contract_lifetime import REFUSE, LifetimeContract, Reopened
from effectonce.testing.history import History
from effectonce.testing.owner import (
    AT,
    EVERY_FIELD,
    OTHER,
    TOPIC_ID,
    UNSTORABLE,
    VALUE,
    Owner,
    fingerprint_of,
    key_bytes,
    keys_of,
    markers_of,
    start_of,
    tx_of,
)


class StoreContract(LifetimeContract):
    """Inherit, say how to make the store, and let pytest collect it."""

    def make_store(self, folder: Path) -> Store:
        """A store over what `folder` holds: empty at first, as the former one left it later."""
        raise NotImplementedError

    def reopen(self, store: Store, folder: Path) -> Store:
        """`store` as the next process finds it."""
        store.close()
        return self.make_store(folder)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path

    @pytest.fixture
    def store(self, folder: Path) -> Iterator[Store]:
        store = self.make_store(folder)
        store.prepare()
        yield store
        store.close()

    @pytest.fixture
    def owner(self, store: Store) -> Owner:
        return Owner.open(store)

    @pytest.fixture
    def with_rows(self, store: Store) -> None:
        if not store.traits.in_store_effects:
            pytest.skip("this store holds no rows of the user's")

    @pytest.fixture
    def reopened(self, folder: Path) -> Iterator[Reopened]:
        """Restarts a store; what it made is closed when the test ends."""
        made: list[Store] = []

        def reopened(store: Store) -> Store:
            made.append(self.reopen(store, folder))
            return made[-1]

        yield reopened
        for store in made:
            store.close()

    # -- looking up and committing --

    def test_looking_up_never_marks(self, owner: Owner) -> None:
        assert owner.seen(1, 2) == [False, False]
        assert owner.seen(1, 2) == [False, False]
        assert owner.commit([1, 2]) == Applied()

    def test_exactly_the_committed_keys_are_seen(self, owner: Owner, reopened: Reopened) -> None:
        owner.commit([1, 2, 3])
        owner.commit([5])
        assert owner.seen(1, 2, 3, 4, 5, 6) == [True, True, True, False, True, False]
        owner = Owner.open(reopened(owner.store))
        assert owner.seen(6, 5, 4, 3, 2, 1) == [False, True, False, True, True, True]

    def test_a_fingerprint_comes_back_with_its_key(self, owner: Owner, reopened: Reopened) -> None:
        owner.commit([1, 2, 3])
        assert owner.known(3, 1).fingerprints.tolist() == [fingerprint_of(3), fingerprint_of(1)]
        owner = Owner.open(reopened(owner.store))
        assert owner.known(2, 3).fingerprints.tolist() == [fingerprint_of(2), fingerprint_of(3)]

    def test_an_empty_question_has_an_empty_answer(self, owner: Owner) -> None:
        assert owner.store.lookup([]) == []
        assert owner.store.commit([]) == []
        assert owner.seen() == []

    def test_each_query_is_answered_in_its_place(self, store: Store) -> None:
        here, there = Owner.open(store, AT), Owner.open(store, OTHER)
        here.commit([1])
        there.commit([2])
        queries = [Query(at, keys_of(*n), 0) for at, n in ((OTHER, (2, 9)), (AT, (1,)))]
        answers = [a.seen.tolist() for a in store.lookup(queries) if isinstance(a, Known)]
        assert answers == [[True, False], [True]]

    def test_a_large_batch_and_far_offsets_are_kept_whole(
        self, owner: Owner, reopened: Reopened
    ) -> None:
        numbers = range(70_000)
        markers = markers_of(numbers, 0)
        offsets = markers.offsets.copy()
        offsets[-1000:] += 2**33
        to = replace(owner.position, next=int(offsets[-1]) + 1)
        commit = replace(owner.prepared(to=to), markers=replace(markers, offsets=offsets))
        assert owner.send(commit) == Applied()
        owner = Owner.open(reopened(owner.store))
        assert all(owner.seen(*numbers))
        assert owner.marker(0).offset == 0
        assert owner.marker(69_999).offset == offsets[-1]

    def test_a_marker_tells_all_that_is_known(self, owner: Owner, reopened: Reopened) -> None:
        to = replace(owner.position, next=100, log_time_ms=12_345, wall_ms=67_890)
        commit = replace(owner.prepared(to=to), markers=markers_of([1, 2], 98))
        assert owner.send(commit) == Applied()
        for again in (False, True):
            owner = Owner.open(reopened(owner.store)) if again else owner
            marker = owner.marker(2)
            assert (marker.key, marker.fingerprint) == (key_bytes(2), fingerprint_of(2))
            assert (marker.status, marker.outcome) == (Status.DONE, None)
            assert (marker.offset, marker.generation, marker.run) == (99, 1, 0)
            assert (marker.epoch, marker.log_time_ms) == (commit.position.epoch, 12_345)
            assert marker.wall_ms == 67_890
            assert owner.store.find(AT, key_bytes(3)) is None

    # -- a commit whose answer was lost --

    def test_the_same_commit_again_is_already_there(self, owner: Owner, reopened: Reopened) -> None:
        commit = owner.prepared([1, 2])
        assert owner.send(commit) == Applied()
        assert owner.send(commit) == Already()
        assert owner.seen(1, 2, 3) == [True, True, False]
        owner = Owner.open(reopened(owner.store))
        assert owner.send(commit) == Already()
        assert owner.position.next == 2

    def test_a_start_written_twice_is_already_there(self, store: Store) -> None:
        owner = Owner.unstarted(store)
        commit = owner.prepared(to=start_of(owner.position))
        assert store.commit([commit]) == [Applied()]
        assert store.commit([commit]) == [Already()]

    def test_a_commit_without_an_id_is_never_taken_for_one_already_there(
        self, store: Store
    ) -> None:
        start = start_of(Owner.unstarted(store).position)
        assert store.commit([Commit(AT, NO_ID, start)]) == [Applied()]

    # -- fences --

    def test_epochs_rise_on_every_open(self, store: Store, reopened: Reopened) -> None:
        epochs = [store.open(AT, TOPIC_ID).epoch, store.open(AT, TOPIC_ID).epoch]
        store.release(AT)
        epochs.append(store.open(AT, TOPIC_ID).epoch)
        store = reopened(store)
        epochs.append(store.open(AT, TOPIC_ID, above=2**40).epoch)
        epochs.append(store.open(AT, TOPIC_ID, above=7).epoch)
        assert epochs == sorted(set(epochs))
        assert epochs[-1] == 2**40 + 2, "a store that went back gives one out that Kafka has seen"

    def test_open_returns_the_row_as_the_former_owner_left_it(self, owner: Owner) -> None:
        owner.commit([1, 2])
        opened = owner.store.open(AT, bytes(16))
        assert opened.row == owner.position
        assert opened.epoch > owner.position.epoch

    def test_a_partition_that_never_started_has_no_row(
        self, store: Store, reopened: Reopened
    ) -> None:
        assert store.open(AT, TOPIC_ID).row is None
        assert store.open(AT, TOPIC_ID).row is None
        store = reopened(store)
        assert store.open(AT, TOPIC_ID).row is None

    def test_a_zombies_commit_is_refused_and_leaves_only_facts(self, owner: Owner) -> None:
        owner.commit([1])
        heir = Owner.open(owner.store)
        assert owner.commit([2], outcomes={0: VALUE}, on_existing=REFUSE) == Stale()
        assert heir.seen(1, 2) == [True, False]
        assert owner.commit([4]) == Stale()  # outside: it happened, and it is told
        assert heir.seen(4) == [owner.store.traits.reach is not Reach.EMBEDDED]

    def test_a_commit_to_a_row_that_moved_on_is_refused(self, owner: Owner) -> None:
        late = owner.prepared([9], on_existing=REFUSE)
        owner.commit([1])
        assert owner.send(late) == Stale()
        assert owner.seen(1, 9) == [True, False]
        assert owner.commit([2]) == Applied()

    def test_a_commit_to_a_partition_never_opened_is_refused(self, owner: Owner) -> None:
        commit = replace(owner.prepared([1]), at=replace(AT, number=7))
        assert owner.send(commit) == Stale()

    def test_one_partitions_refusal_leaves_the_others(self, store: Store) -> None:
        here, there = Owner.open(store, AT), Owner.open(store, OTHER)
        refused = here.prepared([1], on_existing=REFUSE)
        Owner.open(store, AT)
        results = store.commit([refused, there.prepared([2])])
        assert results == [Stale(), Applied()]
        assert (here.seen(1), there.seen(2)) == ([False], [True])

    # -- keys that have a marker already --

    def test_a_conflict_names_its_rows_and_leaves_nothing(
        self, owner: Owner, with_rows: None
    ) -> None:
        owner.commit([1, 2])
        before = owner.position
        refused = owner.commit(
            [3, 2, 4, 1], writes=((b"balance", b"9"),), outcomes={0: VALUE}, on_existing=REFUSE
        )
        assert refused == Conflict((1, 3))
        assert owner.seen(3, 4) == [False, False]
        assert owner.store.find(AT, key_bytes(3)) is None
        assert owner.rows() == []
        assert Owner.open(owner.store).position.next == before.next

    def test_without_a_conflict_refuse_applies(self, owner: Owner) -> None:
        assert owner.commit([1, 2], on_existing=REFUSE) == Applied()
        assert owner.commit([3], on_existing=REFUSE) == Applied()

    def test_the_first_marker_stays_and_the_repeat_is_counted(
        self, owner: Owner, reopened: Reopened
    ) -> None:
        owner.commit([1], outcomes={0: VALUE})
        assert owner.commit([2, 1, 3], outcomes={1: UNSTORABLE, 2: VALUE}) == Applied(existing=1)
        owner = Owner.open(reopened(owner.store))
        assert (owner.marker(1).offset, owner.marker(1).outcome) == (0, VALUE)
        assert (owner.marker(3).offset, owner.marker(3).outcome) == (3, VALUE)
        assert owner.seen(1, 2, 3) == [True, True, True]
        assert owner.position.next == 4

    def test_a_commit_of_nothing_but_repeats_moves_the_position(self, owner: Owner) -> None:
        owner.commit([1, 2])
        assert owner.commit([2, 1]) == Applied(existing=2)
        assert owner.commit([3]) == Applied()

    def test_one_id_in_two_partitions_is_caught_where_the_store_is_shared(
        self, store: Store
    ) -> None:
        shared = store.traits.reach is Reach.SHARED
        here, there = Owner.open(store, AT), Owner.open(store, OTHER)
        here.commit([1])
        assert there.seen(1) == [shared]
        caught = Conflict((0,)) if shared else Applied()
        assert there.commit([1], on_existing=REFUSE) == caught
        results = store.commit([here.prepared([5]), there.prepared([5], on_existing=REFUSE)])
        assert results == [Applied(), caught]

    # -- outcomes --

    def test_outcomes_come_back_as_they_were(self, owner: Owner, reopened: Reopened) -> None:
        large = Outcome(OutcomeKind.VALUE, b"\xc5\xff\xff" + bytes(65_535))
        owner.commit([1, 2, 3, 4], outcomes={0: VALUE, 2: UNSTORABLE, 3: large})
        owner = Owner.open(reopened(owner.store))
        found = [owner.marker(n) for n in (1, 2, 3, 4)]
        assert [marker.outcome for marker in found] == [VALUE, None, UNSTORABLE, large]
        assert [marker.status for marker in found] == [
            Status.HAS_OUTCOME,
            Status.DONE,
            Status.UNSTORABLE,
            Status.HAS_OUTCOME,
        ]

    # -- positions --

    def test_a_position_comes_back_field_for_field(self, owner: Owner, reopened: Reopened) -> None:
        epoch = owner.position.epoch
        every = replace(EVERY_FIELD, store_id=owner.store.prepare(), epoch=epoch)
        assert owner.commit(to=every) == Applied()
        opened = reopened(owner.store).open(AT, TOPIC_ID)
        assert opened.row == owner.position
        assert opened.row != every  # the commit's id
        assert replace(owner.position, commit_id=every.commit_id) == every

    def test_only_a_pinned_position_counts(self, store: Store, reopened: Reopened) -> None:
        def has(topic: str = "orders", group: str = "billing", scope: str = "payments") -> bool:
            return store.has_positions(scope, group, topic)

        assert not has()
        store.open(AT, TOPIC_ID)
        assert not has()
        Owner.open(store, OTHER)
        assert has()
        assert not has(topic="returns")
        assert not has(group="audit")
        assert not has(scope="refunds")
        store.release(OTHER)
        assert has()
        store = reopened(store)
        assert has()

    def test_the_store_id_never_changes(self, store: Store, reopened: Reopened) -> None:
        first = store.prepare()
        assert len(first) == 16
        assert store.prepare() == first
        store = reopened(store)
        assert store.prepare() == first

    def test_release_gives_up_and_forgets_nothing(self, owner: Owner) -> None:
        owner.commit([1])
        owner.store.release(AT)
        owner.store.release(AT)
        heir = Owner.open(owner.store)
        assert heir.seen(1) == [True]
        assert heir.position.next == 1

    # -- the user's own rows --

    def test_nothing_is_written_before_the_commit(self, owner: Owner, with_rows: None) -> None:
        transaction = owner.store.transaction(AT)
        tx = tx_of(transaction)
        tx.put(b"balance", b"1")
        transaction.keep(tx)
        assert owner.rows() == []
        assert owner.commit([1], writes=transaction.writes()) == Applied()
        assert owner.rows() == [(b"balance", b"1")]

    def test_rows_and_markers_are_one(
        self, owner: Owner, reopened: Reopened, with_rows: None
    ) -> None:
        owner.commit([1], writes=((b"n", b"1"),))
        zombie = owner.prepared([2], writes=((b"n", b"2"), (b"m", b"2")), on_existing=REFUSE)
        heir = Owner.open(owner.store)
        assert owner.send(zombie) == Stale()
        assert heir.rows() == [(b"n", b"1")]
        heir = Owner.open(reopened(heir.store))
        assert (heir.seen(1, 2), heir.rows()) == ([True, False], [(b"n", b"1")])

    def test_a_scan_merges_and_keeps_key_order(
        self, owner: Owner, reopened: Reopened, with_rows: None
    ) -> None:
        stored = [(b"a%04d" % i, b"%d" % i) for i in range(0, 2_000, 2)]
        owner.put(*stored, (b"b", b"other prefix"), (b"\xff\xff", b"last"), (b"", b"empty key"))
        owner = Owner.open(reopened(owner.store))
        transaction = owner.store.transaction(AT)
        first, second = tx_of(transaction), tx_of(transaction)
        expected = dict(stored)
        for i in range(1, 2_000, 3):
            first.put(b"a%04d" % i, b"new")
            expected[b"a%04d" % i] = b"new"
        transaction.keep(first)
        for i in range(0, 2_000, 5):
            second.delete(b"a%04d" % i)
            expected.pop(b"a%04d" % i, None)
        assert list(second.scan(b"a")) == sorted(expected.items())
        assert [key for key, _ in second.scan(b"\xff")] == [b"\xff\xff"]
        assert second.get(b"") == b"empty key"
        assert next(second.scan())[0] == b""

    def test_a_delete_is_kept(self, owner: Owner, reopened: Reopened, with_rows: None) -> None:
        owner.put((b"a", b"1"), (b"b", b"2"))
        owner.commit(writes=((b"a", None), (b"never", None)))
        owner = Owner.open(reopened(owner.store))
        assert owner.rows() == [(b"b", b"2")]

    def test_rows_belong_to_their_partition(self, store: Store, with_rows: None) -> None:
        here, there = Owner.open(store, AT), Owner.open(store, OTHER)
        here.put((b"k", b"here"))
        there.put((b"k", b"there"))
        assert (here.rows(), there.rows()) == ([(b"k", b"here")], [(b"k", b"there")])

    def test_a_killed_transaction_takes_no_more_calls(self, owner: Owner, with_rows: None) -> None:
        transaction = owner.store.transaction(AT)
        tx = tx_of(transaction)
        transaction.kill()
        with pytest.raises(TransactionClosed):
            tx.put(b"a", b"1")
        with pytest.raises(TransactionClosed):
            transaction.keep(tx)

    # -- everything together --

    @pytest.mark.parametrize("seed", range(8))
    def test_a_random_history_matches_a_plain_dict(
        self, store: Store, reopened: Reopened, seed: int
    ) -> None:
        History(store, reopened, seed).run(steps=150)
