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

from effectonce.testing.servers import KafkaServer, ValkeyServer

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
def running(
    example: str, bootstrap: str, state: Path, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), str(state)],
        env={**os.environ, "KAFKA_BOOTSTRAP": bootstrap, **environment},
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


@pytest.mark.parametrize("example", ["balances.py", "own_loop.py"])
def test_balances_are_right_though_entries_repeat_and_the_process_is_killed(
    kafka_server: KafkaServer, topic: Callable[[str], str], tmp_path: Path, example: str
) -> None:
    name = topic("entries")
    entries = [entry(n, "alice" if n % 2 else "bob", n) for n in range(600)]
    produce(kafka_server.bootstrap, name, entries[:400] + entries[100:300])
    with running(example, kafka_server.bootstrap, tmp_path) as first:
        assert first.stdout is not None
        for _ in range(50):
            assert first.stdout.readline()
        first.kill()
    produce(kafka_server.bootstrap, name, entries[300:] + entries[:50])
    # every entry has had its effect once the two totals stand at the sums of all entries
    expected = {"alice": sum(range(1, 600, 2)), "bob": sum(range(0, 600, 2))}
    last: dict[str, int] = {}
    with running(example, kafka_server.bootstrap, tmp_path) as second:
        assert second.stdout is not None
        while last != expected:
            account, balance, *_ = second.stdout.readline().replace(":", "").split()
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


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def numbered(first: int, last: int, **value: str) -> list[Record]:
    return [
        (str(n), {name: text.format(n) for name, text in value.items()},
         [("event-id", f"event-{n}".encode())])
        for n in range(first, last)
    ]  # fmt: skip


def test_a_loop_of_asyncio_ships_each_order_once_and_a_doubt_under_the_same_key(
    kafka_server: KafkaServer, topic: Callable[[str], str], tmp_path: Path
) -> None:
    name, example = topic("orders"), "own_loop_asyncio.py"
    orders = numbered(0, 300, order="o{}")
    produce(kafka_server.bootstrap, name, orders[:200] + orders[50:150])
    with running(example, kafka_server.bootstrap, tmp_path) as first:
        shipped = lines(first, 60)
        first.kill()
        assert first.stdout is not None
        shipped += first.stdout.read().splitlines()
    produce(kafka_server.bootstrap, name, orders[200:] + orders[:20])
    with running(example, kafka_server.bootstrap, tmp_path) as second:
        while len(set(shipped)) < 300:
            shipped += lines(second, 1)
        second.send_signal(signal.SIGTERM)
        assert second.stdout is not None
        rest = second.stdout.read().splitlines()
        assert second.wait(20) == 0
    assert not rest, "an order was shipped again, and nothing had been killed"
    assert len(set(shipped)) == 300, "a doubt is shipped again under its own key"


def only_mails(said: list[str]) -> list[str]:
    """Without FastStream's own log."""
    return [line for line in said if line.startswith("mail to")]


def mails_of(process: subprocess.Popen[str], count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        found += only_mails(lines(process, 1))
    return found


def test_a_faststream_app_mails_each_address_once_though_it_is_delivered_twice(
    kafka_server: KafkaServer,
    valkey_server: ValkeyServer,
    topic: Callable[[str], str],
    tmp_path: Path,
) -> None:
    name = topic("signups")
    signups = numbered(0, 40, address="a{}@example.org")
    how = {"REDIS": valkey_server.url}
    produce(kafka_server.bootstrap, name, signups[:30] + signups[:30])
    with running("faststream_app.py", kafka_server.bootstrap, tmp_path, **how) as first:
        mails = mails_of(first, 30)
        first.send_signal(signal.SIGTERM)
        assert first.stdout is not None
        mails += only_mails(first.stdout.read().splitlines())
        first.wait(20)
    produce(kafka_server.bootstrap, name, signups[20:] + signups)
    with running("faststream_app.py", kafka_server.bootstrap, tmp_path, **how) as second:
        mails += mails_of(second, 10)
        second.send_signal(signal.SIGTERM)
        assert second.stdout is not None
        mails += only_mails(second.stdout.read().splitlines())
        second.wait(20)
    assert sorted(mails) == sorted(f"mail to a{n}@example.org" for n in range(40))
