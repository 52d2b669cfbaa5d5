"""Peers are quoted beside us, so they must be run rightly: each hands on what it promises to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

import benchmarks.throughput as bench
from benchmarks.bench import without_missing
from benchmarks.job import Contender, Run
from benchmarks.loads import PARTITIONS, Load, deliveries, event_ids, produce
from benchmarks.parts import OURS, chosen
from benchmarks.peers import environment, field, streams
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer, ServerUnavailable, ValkeyServer

WARM_UP = 1_000
PEERS = field.contenders(WARM_UP)
TIMES = {
    "bare": [1.0, 1.0, 1.0],
    OURS.name: [2.0, 2.0, 4.0],
    "kafka_streams_eos": [10.0, 20.0, 20.0],
}


@pytest.fixture(scope="module")
def missing() -> dict[str, str]:
    return field.missing()


@pytest.mark.peers
@pytest.mark.timeout(600)  # the first fetches and installs all peers: a minute or two
@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
def test_on_a_real_broker_each_peer_hands_on_what_it_promises(
    peer: Contender,
    missing: dict[str, str],
    kafka_server: KafkaServer,
    kafka_topic: TopicFactory,
    valkey_server: ValkeyServer,
    tmp_path: Path,
) -> None:
    if peer.name in missing:
        pytest.skip(f"{peer.name} cannot be had here: {missing[peer.name]}")
    load = Load(kafka_topic(PARTITIONS), messages=2_000, repeats=10)
    ids = event_ids(seed=7, count=load.messages)
    produce(kafka_server.bootstrap, load, ids, deliveries(load, 0, seed=7))
    world = bench.World(kafka_server.bootstrap, valkey_server.url, tmp_path, ids)
    ns = bench.measure(world, peer, load, tmp_path)  # raises unless the handled count is exact
    assert 50 < ns < 60_000_000


def test_a_peer_that_dedupes_no_ids_is_held_to_every_delivery(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (dbos,) = (peer for peer in PEERS if peer.name == "dbos")
    load = Load("topic", messages=100, repeats=10)
    world = bench.World("nowhere:1", "unix://nowhere", tmp_path, event_ids(0, 0))
    monkeypatch.setattr(bench, "run_apart", lambda job: Run(100, 1.0, handled=90))
    with pytest.raises(RuntimeError, match="100 expected"):
        bench.measure(world, dbos, load, tmp_path)


def test_a_warm_figure_counts_only_what_came_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load = Load("topic", messages=WARM_UP + 100, repeats=0)
    world = bench.World("nowhere:1", "unix://nowhere", tmp_path, event_ids(0, 0))
    monkeypatch.setattr(bench, "run_apart", lambda job: Run(100, 1.0, handled=load.messages))
    assert bench.measure(world, PEERS[0], load, tmp_path) == 1e7


def test_the_ratio_to_a_peer_is_its_time_over_ours_in_the_same_round() -> None:
    (part,) = chosen("peers", quick=False, warm_up=WARM_UP)
    flat = bench.shares(part, TIMES)
    assert flat["ratio_kafka_streams_eos"] == 5.0
    assert flat["share_kafka_streams_eos"] == 0.05
    assert flat["share_rocksdb_1e6_batch1000_beside_peers"] == 0.5


def test_the_figures_that_are_asked_for_are_among_the_peers() -> None:
    names = {peer.name for peer in PEERS}
    assert {"kafka_streams_eos", "kafka_streams_eos_cold", "kafka_streams_alo"} <= names
    assert names == field.LACK.keys(), "each says what it does not promise"


def test_one_requirement_that_cannot_be_had_costs_its_own_peer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def pip(interpreter: Path, *what: str) -> bool:
        asked.append(what[-1])
        return len(what) == 1 and "dbos" not in what[0]

    monkeypatch.setattr(environment, "_pip", pip)
    assert not environment.install(Path())
    assert {"idemkit", "dbos", "quixstreams"} <= {re.split(r"[\[=]", each)[0] for each in asked}


def test_a_peer_that_cannot_be_had_is_named_and_nobody_stands_in_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unavailable() -> Path:
        raise ServerUnavailable("no Java here")

    monkeypatch.setattr(streams, "classes", unavailable)
    monkeypatch.setattr(environment, "lacks", lambda modules: "gone" if "dbos" in modules else None)
    parts = chosen("peers", quick=False, warm_up=WARM_UP)
    said, (part,) = without_missing(parts, Console(quiet=True))
    assert said["peers_missing"]["kafka_streams_eos_cold"] == "no Java here"
    assert said["peers_missing"]["dbos"] == "gone"
    assert {each.name for each in part.field} == {
        *("bare", OURS.name, "quix_streams", "bytewax", "idemkit", "powertools")
    }
