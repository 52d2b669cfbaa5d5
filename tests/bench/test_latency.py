"""Added latency is a difference of two clocks: it must be taken of the same round and stream."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks import latency
from benchmarks.latency import Clock, Streamed
from effectonce.testing.servers import KafkaServer, ValkeyServer

QUIET = Progress(console=Console(quiet=True))


def streamed(p50: float, p99: float) -> Streamed:
    return Streamed({"p50": p50, "p99": p99, "p999": p99}, sustained=1.0, reached=1.0)


def test_what_is_added_is_taken_within_a_round_or_a_noisy_round_would_count_twice() -> None:
    flat = latency.added(
        {
            "bare": [streamed(1.0, 2.0), streamed(1.0, 50.0), streamed(1.0, 2.0)],
            "rocksdb": [streamed(1.5, 3.0), streamed(1.5, 51.5), streamed(1.5, 3.0)],
            "redis": [streamed(2.0, 4.0), streamed(2.0, 60.0), streamed(2.0, 4.0)],
        },
        "low_rate",
    )
    assert flat["latency_p50_added_ms_low_rate"] == 0.5
    assert flat["latency_p99_added_ms_low_rate"] == 1.0
    assert flat["latency_p99_added_ms_low_rate_greatest"] == 1.5
    assert flat["latency_p99_added_ms_low_rate_redis"] == 2.0
    assert flat["latency_p99_ms_low_rate_bare"] == 2.0


def test_the_warm_up_is_not_in_the_quantiles(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(latency.WARM_UP + 2)
    long_ago = bytes(8)  # when the machine started: it may have been up for minutes only
    for _ in range(latency.WARM_UP):
        assert not clock.note(long_ago)
    assert capsys.readouterr().out == "ready\n"
    assert not clock.note(time.monotonic_ns().to_bytes(8, "big"))
    assert clock.note(time.monotonic_ns().to_bytes(8, "big")), "that was the last"
    assert max(clock.waited) < 10**9


def test_on_real_servers_each_pace_is_kept_and_each_event_seen(
    kafka_server: KafkaServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    scale = latency.Scale(low_seconds=0.5, high_seconds=0.2, flood=2_000, rounds=1)
    flat = latency.measure(
        kafka_server, valkey_server.url, tmp_path, scale, random.Random(1), QUIET
    )
    for ending in ("", "_redis"):
        for pace in ("low_rate", "70_percent"):
            for name in latency.QUANTILES:
                added = flat[f"latency_{name}_added_ms_{pace}{ending}"]
                assert 0 < flat[f"latency_{name}_ms_{pace}{ending}"] < 10_000
                assert abs(added) < 10_000
        assert flat[f"sustainable_per_second{ending}"] > latency.LOW_RATE
        assert 0 < flat[f"latency_pace_reached_70_percent{ending}"] <= 1.1


def test_a_stream_takes_as_long_as_its_pace_says(kafka_server: KafkaServer, tmp_path: Path) -> None:
    world = latency.World(kafka_server, "unix://nowhere", tmp_path)
    began = time.monotonic()
    run = latency.stream(world, "bare", rate=200.0, messages=200, seed=3)
    assert time.monotonic() - began > 0.9
    assert run.reached <= 1.02
    assert run.sustained < 250


def test_streams_side_by_side_are_apart_and_each_is_seen_or_one_would_wait_for_the_other(
    kafka_server: KafkaServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    world = latency.World(kafka_server, valkey_server.url, tmp_path)
    began = time.monotonic()
    runs = latency.side_by_side(world, ("redis", "bare", "rocksdb"), 200.0, 100, seed=3)
    assert time.monotonic() - began > 0.4
    assert list(runs) == ["redis", "bare", "rocksdb"]
    for run in runs.values():
        assert 0 < run.quantiles["p50"] <= run.quantiles["p99"] < 10_000
        assert 0 < run.reached <= 1.02
