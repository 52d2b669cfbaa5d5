"""The files in examples/ run as a user would run them, and do what they say."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import pytest

from effectonce.testing.servers import KafkaServer

EXAMPLES = Path(__file__).parents[2] / "examples"
Record = tuple[str, dict[str, object], list[tuple[str, bytes]]]


def produce(bootstrap: str, topic: str, records: Sequence[Record]) -> None:
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap})
    for key, value, headers in records:
        producer.produce(topic, json.dumps(value), key=key, headers=list(headers))
    assert producer.flush(20) == 0


def entry(number: int, account: str, cents: int) -> Record:
    headers = [("event-id", f"entry-{number}".encode())]
    return account, {"account": account, "cents": cents}, headers


@contextmanager
def running(example: str, bootstrap: str, state: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), str(state)],
        env={**os.environ, "KAFKA_BOOTSTRAP": bootstrap},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def eventually(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)


@pytest.fixture
def topic(kafka_server: KafkaServer) -> Iterator[Callable[[str], str]]:
    """A topic under the very name that an example reads."""
    made: list[str] = []

    def make(name: str) -> str:
        kafka_server.create_topic(name, 2)
        made.append(name)
        return name

    yield make
    for name in made:
        kafka_server.delete_topic(name)


def test_payments_charge_once_though_killed_and_delivered_twice(
    kafka_server: KafkaServer, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("payments")
    payments: list[Record] = [
        (f"p{n}", {"cents": n}, [("event-id", f"p{n}".encode())]) for n in range(220)
    ]
    produce(kafka_server.bootstrap, name, payments[:200] + payments[:200:3])

    def charges() -> int:
        if not (tmp_path / "bank.db").exists():
            return 0
        with sqlite3.connect(tmp_path / "bank.db") as db:
            try:
                return int(db.execute("SELECT count(*) FROM charge").fetchone()[0])
            except sqlite3.OperationalError:
                return 0

    with running("payments.py", kafka_server.bootstrap, tmp_path) as first:
        eventually(lambda: charges() > 20)
        first.kill()
    produce(kafka_server.bootstrap, name, payments[200:] + payments[:5])
    with running("payments.py", kafka_server.bootstrap, tmp_path) as second:
        eventually(lambda: charges() == 220)
        second.send_signal(signal.SIGTERM)
        assert second.wait(20) == 0
    with sqlite3.connect(tmp_path / "bank.db") as db:
        assert db.execute("SELECT sum(cents) FROM charge").fetchone()[0] == sum(range(220))


def test_balances_are_right_though_entries_repeat_and_the_process_is_killed(
    kafka_server: KafkaServer, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("entries")
    entries = [entry(n, "alice" if n % 2 else "bob", n) for n in range(600)]
    produce(kafka_server.bootstrap, name, entries[:400] + entries[100:300])
    with running("balances.py", kafka_server.bootstrap, tmp_path) as first:
        assert first.stdout is not None
        for _ in range(50):
            assert first.stdout.readline()
        first.kill()
    produce(kafka_server.bootstrap, name, entries[300:] + entries[:50])
    # every entry has had its effect once the two totals stand at the sums of all entries
    expected = {"alice": sum(range(1, 600, 2)), "bob": sum(range(0, 600, 2))}
    last: dict[str, int] = {}
    with running("balances.py", kafka_server.bootstrap, tmp_path) as second:
        assert second.stdout is not None
        while last != expected:
            account, balance = second.stdout.readline().split()
            last[account] = int(balance)
        second.send_signal(signal.SIGTERM)
        rest = [line.split() for line in second.stdout.read().splitlines()]
        assert second.wait(20) == 0
    assert not rest, "an entry was applied again after the totals were right"


def test_nightly_ends_at_the_end_and_the_next_night_takes_only_what_is_new(
    kafka_server: KafkaServer, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name = topic("readings")

    def night(first: int, last: int) -> str:
        readings: list[Record] = [
            (str(n), {"reading": {"id": f"r{n}"}, "celsius": n}, []) for n in range(first, last)
        ]
        produce(kafka_server.bootstrap, name, readings + readings[:50])
        with running("nightly.py", kafka_server.bootstrap, tmp_path) as job:
            output, _ = job.communicate(timeout=60)
        assert job.returncode == 0
        return output.strip().splitlines()[-1]

    assert night(0, 1500) == "1500 readings"
    assert night(1000, 2000) == "2000 readings"
