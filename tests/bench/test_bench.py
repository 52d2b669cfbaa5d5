"""The benchmark's own arithmetic: its figures are quoted, so they must be right."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks.bench as bench
from benchmarks.job import Contender, Job, Run
from benchmarks.loads import PARTITIONS, Load, deliveries, event_ids, partition_of, produce
from benchmarks.stored import fill, once_on
from effectonce.model import NO_ID, Partition
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer, ValkeyServer

WORLD = bench.World("nowhere:1", "unix://nowhere", Path(), ())
LOAD = Load("topic", messages=100, repeats=10)


def test_a_share_is_bares_time_over_the_contenders_or_it_would_flatter() -> None:
    figures = {"bare": [100.0, 100.0, 90.0], "rocksdb_1e6_event": [200.0, 400.0, 90.0]}
    flat = bench.report("10", 10, figures)
    assert flat["share_rocksdb_1e6_event_repeats_10"] == 0.5
    assert flat["share_rocksdb_1e6_event_repeats_10_least"] == 0.25
    assert flat["share_rocksdb_1e6_event_repeats_10_greatest"] == 1.0


def test_the_ratio_to_the_loop_is_taken_within_each_round() -> None:
    times = {"bare": [1.0, 1.0], "rocksdb_1e6_batch500": [2.0, 4.0], "setnx_loop": [100.0, 40.0]}
    assert bench.report("10", 10, times)["ratio_setnx_loop"] == 30.0


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
    for stored, repeats in ((0, 10), (50, 10), (50, 0), (0, 50)):
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


def test_on_a_real_broker_each_run_is_exact_and_timed(
    kafka_server: KafkaServer,
    kafka_topic: TopicFactory,
    valkey_server: ValkeyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored, ids = 2_000, event_ids(seed=5, count=6_000)
    monkeypatch.setattr(bench, "STORED", stored)
    world = bench.World(kafka_server.bootstrap, valkey_server.url, tmp_path, ids)
    for field in ((bench.BARE, *bench.ROCKSDB), bench.REDIS):
        load = Load(kafka_topic(PARTITIONS), messages=4_000, repeats=10)
        produce(kafka_server.bootstrap, load, ids, deliveries(load, stored, seed=5))
        fill(str(tmp_path / load.topic), load.topic, ids[:stored])
        for contender in field:
            ns = bench.measure(world, contender, load, tmp_path / load.topic)
            assert 50 < ns < 1_000_000, contender
