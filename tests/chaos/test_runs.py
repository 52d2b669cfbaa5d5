"""Short runs with real processes: the promises on Apache Kafka, and the judge on naive consumers.

`SEED=` repeats a run; `make crash` is the long form.
"""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from effectonce.testing.chaos.plan import Assignor, Mode, Spec
from effectonce.testing.chaos.run import Report, Snapshot, run
from effectonce.testing.servers import KafkaServer, MockKafka

pytestmark = pytest.mark.alone

SEED = int(os.environ.get("SEED") or random.randrange(1_000_000))
SHORT = Spec(
    seed=SEED, delivered=18_000, distinct=16_200, rate=1_500.0, kills=6, freezes=1, leaves=1
)
NAIVE = Spec(
    seed=SEED,
    mode=Mode.OUTSIDE_REPEAT,
    assignor=Assignor.KIP848,
    delivered=4_000,
    distinct=3_600,
    rate=1_000.0,
    kills=4,
    freezes=0,
    leaves=0,
)


def ignore(_: Snapshot) -> None:
    pass


def told(report: Report) -> str:
    return f"{report.problems}, {report.figures()}, kept in {report.kept}"


class Failed(Protocol):
    """Runs a consumer of `naive`, sees that the run fails, and removes what it keeps."""

    def __call__(self, consumer: str) -> Report: ...


@pytest.fixture
def failed(mock_kafka: MockKafka) -> Iterator[Failed]:
    kept: list[Path] = []

    def play(consumer: str) -> Report:
        report = run(replace(NAIVE, driver=f"tests.chaos.naive:{consumer}"), mock_kafka, ignore)
        assert not report.ok, told(report)
        assert report.kept is not None
        kept.append(report.kept)
        return report

    yield play
    for home in kept:
        shutil.rmtree(home)


@pytest.mark.parametrize(
    ("mode", "assignor"),
    [
        (Mode.IN_STORE, Assignor.RANGE),
        (Mode.OUTSIDE_REPEAT, Assignor.COOPERATIVE_STICKY),
    ],
)
def test_killed_frozen_and_leaving_consumers_neither_lose_nor_repeat(
    kafka_server: KafkaServer, mode: Mode, assignor: Assignor
) -> None:
    report = run(replace(SHORT, mode=mode, assignor=assignor), kafka_server, ignore)
    assert report.ok, told(report)
    assert report.kept is None


def test_a_loop_that_commits_after_its_effects_is_found_to_repeat(failed: Failed) -> None:
    report = failed("commit_after")
    assert report.verdict.lost == 0, told(report)
    # every copy of the producer ran, and no kill explains those
    assert report.verdict.unexplained_repeats >= 350, told(report)


def test_a_loop_that_commits_before_its_effects_is_found_to_lose(failed: Failed) -> None:
    report = failed("commit_before")
    assert report.verdict.lost > 0, told(report)


def test_a_consumer_that_cannot_start_ends_the_run_and_leaves_its_log(failed: Failed) -> None:
    report = failed("there_is_no_such_consumer")
    assert report.verdict.lost == NAIVE.distinct
    assert report.verdict.worker_failures >= 10, told(report)
    assert report.kept is not None
    assert "there_is_no_such_consumer" in (report.kept / "worker-1.log").read_text()
