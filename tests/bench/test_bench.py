"""The benchmark's own arithmetic: its figures are quoted, so they must be right."""

from __future__ import annotations

import json
import random
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import benchmarks.throughput as bench
from benchmarks import turns
from benchmarks.contenders import TURN
from benchmarks.job import Contender, Job, Run
from benchmarks.loads import (
    CHUNK,
    NEAR,
    PARTITIONS,
    Load,
    deliveries,
    event_ids,
    label,
    partition_of,
    produce,
)
from benchmarks.parts import BARE, LIVE, REDIS, REDIS_LOCAL_INDEX, ROCKSDB, SYNC, Part
from benchmarks.stored import fill, linked_copy, once_on
from effectonce.cli.bench_reading import Stopwatch, Turns
from effectonce.model import NO_ID, Partition
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer, ValkeyServer

NO_IDS = event_ids(seed=0, count=0)
WORLD = bench.World("nowhere:1", "unix://nowhere", Path(), NO_IDS)
LOAD = Load("topic", messages=100, repeats=10)
TEN = Part("10", "10", (BARE, *ROCKSDB), ending="_repeats_10")


def test_a_share_is_bares_time_over_the_contenders_or_it_would_flatter() -> None:
    figures = {
        "bare": [100.0, 100.0, 90.0],
        "rocksdb_1e6_event": [200.0, 400.0, 90.0],
        "rocksdb_1e6_batch500": [1.0, 1.0, 1.0],
        "setnx_loop": [1.0, 1.0, 1.0],
    }
    flat = bench.shares(TEN, figures)
    assert flat["share_rocksdb_1e6_event_repeats_10"] == 0.5
    assert flat["share_rocksdb_1e6_event_repeats_10_least"] == 0.25
    assert flat["share_rocksdb_1e6_event_repeats_10_greatest"] == 1.0


def test_a_live_share_is_taken_of_a_live_bare_or_the_broker_would_count_against_us() -> None:
    part = Part("live", "live", (BARE, *LIVE))
    times = {"bare": [1.0], "bare_live": [8.0], "rocksdb_1e6_event_live": [10.0]}
    flat = bench.shares(part, times)
    assert flat["share_rocksdb_1e6_event_live"] == 0.8
    assert flat["share_bare_live"] == 0.125


def test_the_ratio_to_the_loop_is_taken_within_each_round() -> None:
    times = {"bare": [1.0, 1.0], "rocksdb_1e6_batch500": [2.0, 4.0], "setnx_loop": [100.0, 40.0]}
    assert bench.shares(TEN, times)["ratio_setnx_loop"] == 30.0


@pytest.mark.parametrize("handled", [89, 91], ids=["one lost", "one repeated"])
def test_a_run_that_is_not_exact_fails_or_a_fast_mistake_would_win(
    handled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(job: Job) -> Run:
        return Run(messages=100, seconds=1.0, handled=handled)

    monkeypatch.setattr(bench, "run_apart", run)
    contender = Contender("ours", "anything")
    with pytest.raises(RuntimeError, match="90 expected"):
        bench.measure(WORLD, contender, LOAD, Path())
    monkeypatch.setattr(bench, "run_apart", lambda job: replace(run(job), handled=90))
    assert bench.measure(WORLD, contender, LOAD, Path()) == 1e7


def test_a_load_repeats_as_often_as_it_says_and_only_what_came_before() -> None:
    for stored, repeats in ((0, 10), (50, 10), (50, 0), (0, 50), (50, 1), (50, 100)):
        load = Load("topic", 1_000, repeats)
        order = deliveries(load, stored, seed=7).tolist()
        seen = set(range(stored))
        fresh = 0
        for number in order:
            fresh += number not in seen
            assert number in seen or number == stored + fresh - 1
            seen.add(number)
        assert fresh == load.fresh
        assert order == deliveries(load, stored, seed=7).tolist()


def test_near_repeats_are_of_the_last_thousand_and_far_ones_of_stored_keys_alone() -> None:
    stored = 5_000
    near = deliveries(Load("topic", 4_000, 50, "near"), stored, seed=7).tolist()
    far = deliveries(Load("topic", 4_000, 50, "far"), stored, seed=7).tolist()
    seen = stored
    distances = []
    for number in near:
        if number < seen:
            distances.append(seen - number)
        seen = max(seen, number + 1)
    assert len(distances) == 2_000
    assert min(distances) >= 1
    assert NEAR // 2 < max(distances) <= NEAR
    assert sum(number < stored for number in far) == 2_000
    assert len(set(far)) > 3_000, "drawn from all of them"


def test_texts_made_at_once_are_the_uuids_that_single_ones_are() -> None:
    ids = event_ids(seed=3, count=CHUNK + 10)
    texts = list(ids)
    assert texts[:3] == [ids[0], ids[1], ids[2]]
    assert texts[-1] == ids[-1]
    assert texts[5] == str(uuid.UUID(bytes=ids.raw[5].tobytes()))
    assert ids.partitions().tolist()[-20:] == [partition_of(each) for each in texts[-20:]]
    assert list(event_ids(seed=3, count=20)) == texts[:20]


def test_a_count_is_named_as_people_write_it() -> None:
    assert [label(each) for each in (100_000, 50_000_000, 2_000)] == ["1e5", "5e7", "2e3"]


def test_a_run_on_a_linked_copy_leaves_the_filled_store_as_it_was(tmp_path: Path) -> None:
    ids = event_ids(seed=3, count=1_000)
    fill(str(tmp_path / "filled"), "topic", ids)
    at = Partition("bench", "bench", "topic", 0)
    for _ in range(2):  # closed by its owner, memory is written out to table files
        once = once_on(str(tmp_path / "filled"))
        once.store.open(at, NO_ID)
        once.store.close()
    before = {
        each: each.read_bytes() for each in (tmp_path / "filled").rglob("*") if each.is_file()
    }
    assert any(each.suffix == ".sst" for each in before)
    copy = once_on(str(linked_copy(tmp_path / "filled", tmp_path / "copy")))
    assert copy.store.open(at, NO_ID).row is not None
    copy.store.close()
    shutil.rmtree(tmp_path / "copy")
    after = {each: each.read_bytes() for each in (tmp_path / "filled").rglob("*") if each.is_file()}
    assert after == before


def test_a_filled_store_knows_each_event_in_the_partition_of_its_id(tmp_path: Path) -> None:
    ids = event_ids(seed=3, count=1_200)
    fill(str(tmp_path), "topic", ids)
    store = once_on(str(tmp_path)).store
    homes: dict[int, list[bytes]] = {}
    for event_id in ids:
        homes.setdefault(partition_of(event_id), []).append(
            bytes.fromhex(event_id.replace("-", ""))
        )
    for number, keys in homes.items():
        at = Partition("bench", "bench", "topic", number)
        store.open(at, NO_ID)
        for key in random.Random(1).sample(keys, 5):
            marker = store.find(at, key)
            assert marker is not None
            assert marker.key == key
    store.close()


STORED, MESSAGES = 2_000, 4_000
TINY = {
    "rocksdb": Part("tiny", "", (BARE, *ROCKSDB), stored=STORED),
    "redis": Part("tiny", "", (*REDIS, REDIS_LOCAL_INDEX), stored=STORED),
    "nothing new": Part("tiny", "", (BARE, ROCKSDB[1]), repeats=100, stored=STORED),
    "near": Part("tiny", "", (ROCKSDB[1],), reach="near", stored=STORED),
    "far": Part("tiny", "", (ROCKSDB[1],), reach="far", stored=STORED),
    "live": Part("tiny", "live", LIVE, stored=STORED),
    "values": Part("tiny", "", (BARE, ROCKSDB[1]), value_bytes=10_000, stored=STORED),
    "sync": Part("tiny", "", SYNC[1:2], stored=STORED),
}


@pytest.mark.parametrize("part", TINY.values(), ids=TINY)
def test_on_a_real_broker_each_run_is_exact_and_timed(
    part: Part,
    kafka_server: KafkaServer,
    kafka_topic: TopicFactory,
    valkey_server: ValkeyServer,
    tmp_path: Path,
) -> None:
    ids = event_ids(seed=5, count=STORED + MESSAGES)
    world = bench.World(kafka_server.bootstrap, valkey_server.url, tmp_path, ids, base=STORED)
    load = replace(part.load(MESSAGES, 1.0, 0), topic=kafka_topic(PARTITIONS))
    assert load.messages == MESSAGES
    produce(kafka_server.bootstrap, load, ids, deliveries(load, STORED, seed=5))
    fill(str(tmp_path / load.topic), load.topic, ids[:STORED], part.value_bytes)
    round_of = bench.one_round(
        world, part.field, part, {(1.0, 0): load}, tmp_path / load.topic, random.Random(5)
    )
    for contender, run in round_of:
        assert 50 < bench.ns_of(run, contender, load) < 3_000_000, contender


def test_a_pause_between_two_turns_is_not_in_the_time_or_who_waits_longer_would_be_slower() -> None:
    watch, waited = Stopwatch(), list[int]()

    def wait() -> None:
        waited.append(done)
        began = time.perf_counter()
        while time.perf_counter() - began < 0.05:
            pass

    pace, done = Turns(100, wait, settle=waited.clear), 0
    for done in range(0, 250, 10):
        pace.take(done, watch)
        watch.start()
        watch.stop()
    assert waited == [200], "settled, and waited, before each hundred"
    assert 0 < watch.seconds < 0.05
    assert 0 < watch.cpu_seconds < 0.05


def test_contenders_take_turns_until_all_are_done_and_nobody_runs_in_anothers() -> None:
    told, order = list[str](), random.Random(3)

    class Told:
        """A contender that needs three turns; it is silent but in one of its own."""

        def __init__(self, name: str) -> None:
            self.name, self.left, self.may_run = name, 3, True

        def say(self, line: str) -> None:
            assert not any(each.may_run for each in everybody)
            self.left, self.may_run = self.left - 1, True
            told.append(self.name)

        def line(self) -> str:
            assert self.may_run
            self.may_run = False
            return TURN if self.left else json.dumps(asdict(Run(30, 1.0, 27)))

    everybody: list[Told] = []

    @contextmanager
    def child(module: str, job: Mapping[str, object]) -> Iterator[Told]:
        assert job["turn"] == 8, "of 30 messages a fourth, rounded up"
        everybody.append(Told(str(job["topic"])))
        yield everybody[-1]

    jobs = {name: Job("bare", "nowhere:1", name, 30) for name in ("a", "b", "c")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "child", child)
        runs = turns.in_turns(jobs, order)
    assert runs == dict.fromkeys(jobs, Run(30, 1.0, 27))
    rounds = [told[at : at + 3] for at in (0, 3, 6)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 3
    assert len({tuple(each) for each in rounds}) > 1, "shuffled each time"
