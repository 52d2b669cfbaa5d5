"""The index of keys: the answers of a dict, whatever is inserted, expired, removed or crafted."""

from __future__ import annotations

from unittest import mock

import numpy as np
import psutil
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from numpy.typing import NDArray

from effectonce.model import Fingerprints, Keys
from effectonce.native import native
from effectonce.stores import index as module
from effectonce.stores.index import SLOTS, KeyIndex

SEED = 20_240_229


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is None:
        metafunc.parametrize("language", ["in C", "in numpy"], indirect=True)


@pytest.fixture(autouse=True)
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if getattr(request, "param", "") == "in numpy":
        monkeypatch.setattr(module, "native", None)


def random_keys(count: int, seed: int = 1) -> Keys:
    rng = np.random.default_rng(seed)
    keys: Keys = np.frombuffer(rng.bytes(count * 16), np.uint64).reshape(count, 2)
    return keys


def prints(count: int, start: int = 0) -> Fingerprints:
    return np.arange(start, start + count, dtype=np.uint32)


def crowd(index: KeyIndex, count: int) -> Keys:
    """Keys that all belong in one bucket, made by someone who knows the seed."""
    keys = random_keys(count * 600, seed=count)
    bucket, _ = index._table._address(index._mix(keys))
    chosen: Keys = keys[bucket == 0][:count]
    assert len(chosen) == count
    return chosen


def filling(index: KeyIndex) -> bool:
    return index._old is not None


def spilled_share(index: KeyIndex) -> float:
    return len(index._table._spilled) / len(index)


def assert_found(index: KeyIndex, keys: Keys, first: int) -> None:
    assert np.array_equal(index.lookup(keys), np.arange(first, first + len(keys)))


UNIVERSE: Keys = np.array([(n % 7, n // 7) for n in range(600)], np.uint64)
"""Key 0 is all zeros, like memory never written and like a key that was wiped."""

NUMBERS = st.integers(0, len(UNIVERSE) - 1)


class TheAnswersOfADict(RuleBasedStateMachine):
    """Tables of two buckets to begin with, crowded or not, moved a key or many at a time."""

    @initialize(
        seed=st.integers(0, 2**70),
        per_bucket=st.sampled_from([1.5, 8.8, 15.9, 60.0]),
        least_slice=st.sampled_from([1, 16]),
        first=st.sampled_from([0, 2**32 - 100, 2**40]),
    )
    def begin(self, seed: int, per_bucket: float, least_slice: int, first: int) -> None:
        self.patch = mock.patch.multiple(
            module, LEAST_CAPACITY=16, KEYS_PER_BUCKET=per_bucket, LEAST_SLICE=least_slice
        )
        self.patch.start()
        self.in_c = mock.patch.object(module, "native", native)
        self.in_c.start()
        self.index = KeyIndex(seed=seed, capacity=0, first=first)
        self.oracle: dict[int, tuple[int, int]] = {}
        self.floor = self.next = first

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.in_c.stop()
            self.patch.stop()

    @rule()
    def go_on_in_the_other_language(self) -> None:
        """C and numpy read what the other has written."""
        other = native if vars(module)["native"] is None else None
        setattr(module, "native", other)  # noqa: B010 - mypy: it is not exported from there

    @rule(numbers=st.sets(NUMBERS, max_size=40) | st.sets(NUMBERS, min_size=100))
    def insert(self, numbers: set[int]) -> None:
        fresh = [number for number in numbers if number not in self.oracle]
        marks = prints(len(fresh), self.next % 1000)
        assert self.index.insert(UNIVERSE[fresh], marks) == self.next
        positions = range(self.next, self.next + len(fresh))
        self.oracle |= zip(fresh, zip(positions, marks.tolist(), strict=True), strict=True)
        self.next += len(fresh)

    @rule(numbers=st.lists(NUMBERS, max_size=60))
    def look_up(self, numbers: list[int]) -> None:
        found = self.index.lookup(UNIVERSE[numbers])
        assert found.tolist() == [self.oracle.get(number, (-1, 0))[0] for number in numbers]
        seen, marks = self.index.marked(UNIVERSE[numbers])
        assert seen.tolist() == [number in self.oracle for number in numbers]
        assert marks.tolist() == [self.oracle.get(number, (0, 0))[1] for number in numbers]

    @rule(part=st.sampled_from([0.0, 0.05, 0.34, 0.9, 1.0, 1.5]), back=st.integers(0, 1))
    def expire(self, part: float, back: int) -> None:
        base = self.floor + int((self.next - self.floor) * part) - back
        self.index.drop_below(base)
        self.floor = max(self.floor, min(base, self.next))
        self.oracle = {n: kept for n, kept in self.oracle.items() if kept[0] >= self.floor}

    @rule(numbers=st.lists(NUMBERS, max_size=20))
    def remove(self, numbers: list[int]) -> None:
        known = {number for number in numbers if self.oracle.pop(number, None)}
        assert self.index.remove(UNIVERSE[numbers]) == len(known)

    @precondition(lambda self: filling(self.index))
    @rule(keys=st.integers(0, 50))
    def step(self, keys: int) -> None:
        self.index.step(keys)

    @invariant()
    def it_knows_all_keys_and_no_others(self) -> None:
        if not hasattr(self, "index"):
            return
        assert len(self.index) == len(self.oracle)
        self.look_up(list(range(len(UNIVERSE))))
        kept = np.array(list(self.oracle.values()), np.int64).reshape(-1, 2)
        assert np.array_equal(self.index.fingerprints(kept[:, 0]), kept[:, 1])


TestTheAnswersOfADict = TheAnswersOfADict.TestCase
TestTheAnswersOfADict.settings = settings(max_examples=100, stateful_step_count=40)


def test_batches_of_everyday_size_stay_exact_through_growth_expiry_and_removal() -> None:
    index, oracle, floor = KeyIndex(seed=SEED), dict[bytes, int](), 0
    rng = np.random.default_rng(SEED)
    for turn in range(600):
        keys = random_keys(int(rng.integers(0, 1500)), seed=turn)
        first = index.insert(keys, prints(len(keys), turn))
        oracle |= {key.tobytes(): first + i for i, key in enumerate(keys)}
        if turn % 40 == 39:
            floor += int((first - floor) * rng.random())
            index.drop_below(floor)
            oracle = {key: position for key, position in oracle.items() if position >= floor}
        if turn % 20 == 19:
            gone = list(oracle)[:: int(rng.integers(20, 500))]
            assert index.remove(np.frombuffer(b"".join(gone), np.uint64).reshape(-1, 2)) == len(
                gone
            )
            for key in gone:
                del oracle[key]
            known = np.frombuffer(b"".join(oracle), np.uint64).reshape(-1, 2)
            assert index.lookup(known).tolist() == list(oracle.values())
            assert (index.lookup(random_keys(5000, seed=10_000 + turn)) == -1).all()
            assert len(index) == len(oracle)


def test_an_empty_batch_asks_and_changes_nothing() -> None:
    index = KeyIndex(seed=SEED)
    for _ in range(2):
        assert index.lookup(random_keys(0)).shape == (0,)
        assert index.fingerprints(index.lookup(random_keys(0))).shape == (0,)
        assert index.remove(random_keys(0)) == 0
        assert index.insert(random_keys(0), prints(0)) == len(index)
        index.insert(random_keys(3, seed=len(index)), prints(3))


def test_repeats_inside_a_look_up_all_get_the_answer() -> None:
    index = KeyIndex(seed=SEED)
    keys = random_keys(20)
    index.insert(keys[:10], prints(10))
    found = index.lookup(np.concatenate([keys, keys[::-1], keys[5:15]]))
    expected = [*range(10)] + [-1] * 10
    assert found.tolist() == expected + expected[::-1] + expected[5:15]


def test_keys_in_a_strided_or_read_only_array_are_found() -> None:
    index = KeyIndex(seed=SEED)
    keys = random_keys(100)
    index.insert(keys[::2], prints(50))
    assert_found(index, keys[::2], 0)
    assert_found(index, np.frombuffer(keys[::2].tobytes(), np.uint64).reshape(-1, 2), 0)
    assert (index.lookup(np.asfortranarray(keys)[1::2]) == -1).all()


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros(2, np.uint64),
        np.zeros((2, 16), np.uint8),
        np.zeros((2, 2), np.int64),
        np.zeros((1, 4), np.uint64),
    ],
    ids=["flat", "bytes", "signed", "wide"],
)
def test_keys_of_another_shape_or_type_are_not_taken_for_absent(keys: NDArray[np.uint64]) -> None:
    index = KeyIndex(seed=SEED)
    with pytest.raises(ValueError, match="keys are"):
        index.lookup(keys)
    with pytest.raises(ValueError, match="keys are"):
        index.insert(keys, prints(len(keys)))


def test_one_fingerprint_is_not_spread_over_many_keys() -> None:
    index = KeyIndex(seed=SEED)
    with pytest.raises(ValueError, match="1 fingerprints for 2 keys"):
        index.insert(random_keys(2), prints(1))
    assert len(index) == 0


@pytest.mark.parametrize("shared", [[], [0], [1]], ids=["neither word", "first", "second"])
def test_a_key_with_the_bucket_and_tag_of_another_is_not_taken_for_it(
    monkeypatch: pytest.MonkeyPatch, shared: list[int]
) -> None:
    monkeypatch.setattr(module, "LEAST_CAPACITY", 8)
    index = KeyIndex(seed=SEED, capacity=0)
    keys = random_keys(400_000).copy()
    keys[:, shared] = keys[0, shared]
    bucket, tag = index._table._address(index._mix(keys))
    assert not bucket.any()
    twins = keys[tag == np.bincount(tag).argmax()][:8]
    assert len(twins) == 8
    index.insert(twins[:1], prints(1))
    assert index.lookup(twins).tolist() == [0] + [-1] * 7
    index.insert(twins[1:], prints(7))
    assert_found(index, twins, 0)


def test_a_key_that_differs_in_one_bit_is_not_taken_for_it() -> None:
    index = KeyIndex(seed=SEED)
    key = random_keys(1)
    index.insert(key, prints(1))
    bits = np.array([(1 << b, 0) for b in range(64)] + [(0, 1 << b) for b in range(64)], np.uint64)
    assert (index.lookup(key ^ bits) == -1).all()


# -- keys made to do harm ------------------------------------------------------------------------


def test_keys_that_crowd_one_bucket_stay_exact_through_growth_removal_and_expiry() -> None:
    index = KeyIndex(seed=SEED)
    crafted, others = crowd(index, 300), random_keys(3000, seed=7)
    index.insert(crafted[:200], prints(200))
    assert len(index._table._spilled) == 200 - SLOTS
    assert (index.lookup(crafted[200:]) == -1).all()
    index.insert(others, prints(3000))
    assert index.remove(crafted[10:30]) == 20
    assert_found(index, crafted[:10], 0)
    assert (index.lookup(crafted[10:30]) == -1).all()
    assert_found(index, crafted[30:200], 30)
    index.insert(random_keys(890, seed=8), prints(890))
    index.insert(random_keys(110, seed=10), prints(110))
    assert filling(index)
    index.insert(crafted[10:30], prints(20))
    index.insert(random_keys(1000, seed=9), prints(1000))
    assert not filling(index)
    assert_found(index, crafted[10:30], 4200)
    assert_found(index, crafted[30:200], 30)
    index.drop_below(100)
    assert (index.lookup(crafted[30:100]) == -1).all()
    assert_found(index, crafted[100:200], 100)
    assert_found(index, others, 200)


def test_removing_from_a_full_bucket_does_not_hide_the_keys_beside_it() -> None:
    index = KeyIndex(seed=SEED)
    crafted = crowd(index, 40)
    index.insert(crafted, prints(40))
    index.remove(crafted[:SLOTS])
    assert_found(index, crafted[SLOTS:], SLOTS)


def test_keys_crafted_for_one_seed_do_not_crowd_a_bucket_under_another() -> None:
    crafted = crowd(KeyIndex(seed=SEED), 400)
    index = KeyIndex(seed=SEED + 1)
    index.insert(crafted, prints(400))
    assert spilled_share(index) == 0


COUNT = 1 << 15
N = np.arange(COUNT, dtype=np.uint64)
STRUCTURED: dict[str, tuple[NDArray[np.uint64], NDArray[np.uint64]]] = {
    "counter in the last word": (N * 0, N),
    "counter in the first word": (N, N * 0),
    "counter in the topmost bits": (N << np.uint64(49), N * 0),
    "topmost bits of both words": ((N >> np.uint64(8)) << np.uint64(57), N << np.uint64(56)),
    "steps of 2**32": (N * 0, N << np.uint64(32)),
    "words that are equal": (N, N),
    "words that cancel out": (N, ~N),
    "UUIDv7, 30 a millisecond": ((N // 30) << np.uint64(16), random_keys(COUNT)[:, 0]),
}


@pytest.mark.parametrize("words", STRUCTURED.values(), ids=STRUCTURED.keys())
def test_ids_with_a_pattern_spread_like_random_ones(
    words: tuple[NDArray[np.uint64], NDArray[np.uint64]],
) -> None:
    keys = np.unique(np.column_stack(words), axis=0)
    shares = []
    for seed in range(20):
        index = KeyIndex(seed=seed, capacity=len(keys))
        index.insert(keys, prints(len(keys)))
        shares.append(spilled_share(index))
    assert max(shares) < 0.004  # random keys: 0.0016


# -- tables that are filled while they answer ----------------------------------------------------


def growing() -> tuple[KeyIndex, Keys]:
    """An index of 20,000 keys in which a fresh table has just been begun."""
    index = KeyIndex(seed=SEED, capacity=20_000)
    keys = random_keys(20_100)
    index.insert(keys[:20_000], prints(20_000))
    assert not filling(index)
    index.insert(keys[20_000:], prints(100, 20_000))
    assert filling(index)
    return index, keys


def test_no_insert_moves_more_than_its_share_and_all_have_moved_in_time() -> None:
    index = KeyIndex(seed=SEED)
    moved = []
    for turn in range(1000):
        old, cursor = index._old, index._cursor
        index.insert(random_keys(200, seed=turn), prints(200))
        if old is not None:
            assert index._old in (None, old)
            moved.append(index._cursor - cursor)
    assert moved
    assert max(moved) <= 200 * module.MOVED_PER_INSERT


def test_the_first_slices_into_a_large_table_are_small_or_its_new_pages_hold_a_batch() -> None:
    count = 250_000  # its table for twice as many has 1,300 pages
    index = KeyIndex(seed=1, capacity=count)
    index.insert(random_keys(count, seed=1), prints(count))
    index.insert(random_keys(1_000, seed=2), prints(1_000))
    moved = [index._cursor]
    while filling(index):
        index.insert(random_keys(1_000, seed=moved[-1]), prints(1_000))
        moved.append(index._cursor - sum(moved))
    assert moved[:3] == [module.FIRST_SLICES, module.FIRST_SLICES, 8_000]
    assert max(moved) <= 8_000


def test_keys_are_found_with_their_fingerprints_wherever_they_stand_meanwhile() -> None:
    index, keys = growing()
    for _ in range(200):
        assert_found(index, keys, 0)
        assert np.array_equal(index.fingerprints(index.lookup(keys)), prints(20_100))
        if not index.step(1000):
            break
    assert not filling(index)
    assert_found(index, keys, 0)


def test_an_insert_larger_than_the_table_keeps_what_was_still_being_moved() -> None:
    index, keys = growing()
    index.drop_below(19_000)  # the fresh table is far too roomy when the move ends
    more = random_keys(100_000, seed=2)
    assert index.insert(more, prints(100_000)) == 20_100
    assert_found(index, keys[19_000:], 19_000)
    assert_found(index, more, 20_100)


def test_expiry_overtakes_a_move_that_is_under_way() -> None:
    index, keys = growing()
    index.drop_below(20_050)
    assert (index.lookup(keys[:20_050]) == -1).all()
    assert_found(index, keys[20_050:], 20_050)
    assert len(index) == 50
    while index.step(1000):
        pass
    assert_found(index, keys[20_050:], 20_050)
    assert index.memory_bytes() < 100_000


def test_a_removed_key_does_not_come_back_with_the_next_table() -> None:
    index, keys = growing()
    for _ in range(19):
        index.step(990)
        gone = keys[index._cursor - 200 : index._cursor + 200 : 10]  # moved, and not yet
        assert index.remove(np.concatenate([gone, gone])) == len(gone)
        assert (index.lookup(gone) == -1).all()
    assert filling(index)
    assert len(index) == 20_100 - 19 * 40
    while index.step(1000):
        pass
    kept = index.lookup(keys)
    assert np.array_equal(kept[kept >= 0], (kept >= 0).nonzero()[0])
    assert len(kept[kept >= 0]) == len(index) == 20_100 - 19 * 40
    assert (index.lookup(np.zeros((1, 2), np.uint64)) == -1).all()


def test_the_key_of_zeros_is_a_key_like_any_other() -> None:
    index = KeyIndex(seed=SEED)
    zeros = np.zeros((1, 2), np.uint64)
    assert index.lookup(zeros).tolist() == [-1]  # memory never written is zeros too
    index.insert(zeros, prints(1))
    assert index.lookup(zeros).tolist() == [0]
    assert index.remove(zeros) == 1  # and so is a key that was wiped
    assert index.lookup(zeros).tolist() == [-1]


def test_the_bytes_of_a_removed_key_do_not_stay_in_the_log() -> None:
    index = KeyIndex(seed=SEED)
    crafted = crowd(index, 40)
    index.insert(crafted, prints(40))
    assert 10 < sum(key.tobytes() in index._table._spilled for key in crafted[5:35]) < 25
    index.remove(crafted[5:35])  # of the bucket and of the dict
    log = index._table.rows(0, 40)[0]
    assert np.array_equal(log[:5], crafted[:5])
    assert not log[5:35].any()
    assert np.array_equal(log[35:], crafted[35:])


def test_an_expired_key_comes_back_only_where_it_was_inserted_again() -> None:
    index = KeyIndex(seed=SEED)
    crafted = crowd(index, 40)
    index.insert(crafted, prints(40))
    index.drop_below(40)
    assert (index.lookup(crafted) == -1).all()
    index.insert(crafted[::-1], prints(40))
    assert_found(index, crafted[::-1], 40)


def test_a_floor_never_goes_back_nor_beyond_what_was_inserted() -> None:
    index = KeyIndex(seed=SEED)
    keys = random_keys(100)
    index.insert(keys[:50], prints(50))
    index.drop_below(1000)
    index.drop_below(0)
    assert len(index) == 0
    assert index.insert(keys[50:], prints(50)) == 50
    assert_found(index, keys[50:], 50)


def test_a_key_inserted_twice_against_the_contract_is_not_taken_for_absent() -> None:
    index, keys = growing()
    for start in (0, 10_000, 20_000):
        index.insert(keys[start : start + 100], prints(100))
    while True:
        assert (index.lookup(keys) >= 0).all()
        if not index.step(500):
            break
    index.drop_below(20_100)
    assert (index.lookup(keys[10_000:10_100]) >= 0).all()


def test_positions_run_on_beyond_32_bits() -> None:
    first = 2**32 - 3000
    index = KeyIndex(seed=SEED, first=first)
    crafted, keys = crowd(index, 40), random_keys(5000)
    assert index.insert(crafted, prints(40)) == first
    assert index.insert(keys, prints(5000)) == first + 40
    assert_found(index, crafted, first)
    assert_found(index, keys, first + 40)
    index.drop_below(first + 4000)
    assert (index.lookup(keys[:3960]) == -1).all()
    assert_found(index, keys[3960:], first + 4000)


@pytest.mark.parametrize("position", [4, 100, -1])
def test_no_fingerprint_is_made_up_for_a_position_without_a_key(position: int) -> None:
    index = KeyIndex(seed=SEED)
    index.insert(random_keys(100), prints(100))
    index.drop_below(5)
    assert index.fingerprints(np.array([5, 99])).tolist() == [5, 99]
    with pytest.raises(IndexError, match="from 5 to 99"):
        index.fingerprints(np.array([5, position]))


# -- memory --------------------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def test_an_idle_partition_costs_next_to_nothing() -> None:
    before = resident_bytes()
    idle = [KeyIndex(seed=SEED) for _ in range(100)]
    for index in idle:
        index.insert(random_keys(1), prints(1))
    assert max(index.memory_bytes() for index in idle) < 100_000
    assert (resident_bytes() - before) / len(idle) < 150_000


def test_memory_is_counted_as_the_system_counts_it_and_comes_back_on_expiry() -> None:
    keys, marks = random_keys(1_000_000), prints(1_000_000)
    before = resident_bytes()
    index = KeyIndex(seed=SEED, capacity=len(keys))
    for start in range(0, len(keys), 10_000):
        index.insert(keys[start : start + 10_000], marks[start : start + 10_000])
    full = index.memory_bytes()
    assert full / len(keys) < 32
    assert resident_bytes() - before == pytest.approx(full, rel=0.15)

    index.drop_below(500_000)
    assert index.memory_bytes() == pytest.approx(full - 500_000 * 20, rel=0.01)
    assert resident_bytes() - before == pytest.approx(index.memory_bytes(), rel=0.15)

    index.drop_below(900_000)
    while index.step(10_000):
        pass
    assert index.memory_bytes() < 100_000 * 45
    assert resident_bytes() - before < full / 4

    index.drop_below(1_000_000)
    assert index.memory_bytes() < 100_000
    assert resident_bytes() - before < full / 20


def test_a_table_holds_little_of_the_old_one_s_log_while_it_is_filled() -> None:
    keys, marks = random_keys(440_000), prints(440_000)
    index = KeyIndex(seed=SEED, capacity=400_000)
    index.insert(keys[:400_000], marks[:400_000])
    before, counted = resident_bytes(), index.memory_bytes()
    index.insert(keys[400_000:], marks[400_000:])
    assert filling(index)
    assert index.memory_bytes() - counted == pytest.approx(40_000 * 20 + 880_000 * 11, rel=0.05)
    assert resident_bytes() - before < 1.2 * (index.memory_bytes() - counted)


def test_a_table_that_cannot_grow_for_want_of_memory_loses_nothing() -> None:
    index = KeyIndex(seed=SEED)
    keys = random_keys(6000)
    index.insert(keys[:4000], prints(4000))
    with (
        mock.patch("mmap.mmap", side_effect=OSError(12, "no memory")),
        pytest.raises(MemoryError),
    ):
        index.insert(keys[4000:], prints(2000))
    assert_found(index, keys[:4000], 0)
    assert (index.lookup(keys[4000:]) == -1).all()
    assert index.insert(keys[4000:], prints(2000)) == 4000
    assert_found(index, keys, 0)


def test_more_keys_than_row_numbers_are_refused_before_any_is_confused() -> None:
    with pytest.raises(MemoryError, match="is the most"):
        KeyIndex(seed=SEED, capacity=2**32 + 1)
