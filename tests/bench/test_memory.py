"""What the keys cost: each measurement must have seen the keys that it divides by."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks import memory
from benchmarks.memory import Job
from effectonce.core import generation
from effectonce.stores.index import KeyIndex
from effectonce.testing.servers import KafkaServer

KEYS = 40_000
JOB = Job("", "", KEYS, seed=3)
QUIET = Progress(console=Console(quiet=True))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells huge pages from small ones")
def test_the_pages_of_an_index_are_told_from_other_memory() -> None:
    before = memory.index_pages()
    other = np.ones(30_000_000, np.uint8)
    index = KeyIndex(seed=1, capacity=500_000)
    index.insert(memory._keys(1, 500_000), np.zeros(500_000, np.uint32))
    after = memory.index_pages()
    assert before is not None
    assert after is not None
    assert 0.9 < (after - before) / index.memory_bytes() < 1.1
    assert len(other) == 30_000_000


def test_a_generation_that_never_expires_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(JOB, state=str(tmp_path / "a"))
    assert 0 < memory.expiry(job)["longest_batch_ms_expiry"] < 10_000
    monkeypatch.setattr(generation, "KEPT", 100)
    with pytest.raises(RuntimeError, match="have not expired"):
        memory.expiry(replace(job, state=str(tmp_path / "b")))


def test_the_longest_batch_is_one_after_the_warm_up(tmp_path: Path) -> None:
    timed = memory.Timed(replace(JOB, state=str(tmp_path)))
    timed.ms = [9.0, 1.0, 5.0, 2.0]
    assert timed.longest_ms(1) == 5.0
    timed.close()


def test_on_a_real_broker_every_figure_is_there_and_sane(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    flat = memory.measure(
        kafka_server, tmp_path, memory.Scale(KEYS, rounds=1), random.Random(1), QUIET
    )
    assert flat["memory_keys"] == KEYS
    assert 20 < flat["bytes_per_key_disk"] < 200
    assert flat["bytes_per_key_memory"] > 0
    if sys.platform == "linux":
        assert 20 < flat["bytes_per_key_index"] < 80
    for key in ("restart_seconds_4e4", "recovery_seconds_4e4"):
        assert 0 < flat[key] < 60
    for key in ("longest_batch_ms_growth", "longest_batch_ms_expiry"):
        assert 0 < flat[key] < 10_000
