"""What lanes bring is a ratio of rates within a round, and every event is in it."""

from __future__ import annotations

import random
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import lanes
from benchmarks.lanes import Meter
from effectonce.testing.servers import KafkaServer

QUIET = Progress(console=Console(quiet=True))


def test_an_effect_before_an_older_one_of_its_key_is_counted() -> None:
    meter = Meter(100)
    for key, offset in ((b"a", 1), (b"b", 0), (b"a", 3), (b"a", 2)):
        meter.note(key, offset)
    assert meter.violations == 1


def test_on_a_real_broker_lanes_are_faster_than_one_and_in_order(
    kafka_server: KafkaServer, tmp_path: Path
) -> None:
    scale = lanes.Scale(one=40, many=800, rounds=1)
    flat = lanes.measure(kafka_server, tmp_path, scale, random.Random(1), QUIET)
    assert flat["lanes_64_speedup_sync"] > 5
    assert flat["lanes_order_violations"] == 0
    assert flat["lanes_64_share_by_hand_sync"] > 0
