"""`effectonce bench` tells what it costs, and nothing is left where it measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from redis import Redis
from rich.console import Console

from effectonce import header
from effectonce.cli.bench import measure
from effectonce.cli.bench_places import SCOPE, place
from effectonce.cli.bench_reading import CannotMeasure, reading, take_sample
from effectonce.cli.bench_run import Job
from effectonce.cli.bench_survey import survey
from effectonce.cli.bench_turns import running
from effectonce.identity import Identity
from effectonce.model import Applied
from effectonce.stores import open_store
from effectonce.testing.owner import AT, Owner
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer, ValkeyServer
from tests.cli.shell import Said

PARTITIONS = 2
MESSAGES = 6_000
REPEATS = 600
WITHOUT_ID = 5

HANDLERS = """
import sys

def keep(event, tx):
    tx.put(str(event.offset).encode(), event.value)

def spell(event):
    return event.id

def count(batch):
    print(len(batch))           # what a handler prints is not taken for the answer
    assert not sys.stdin.read() # nor does it take the lines that say whose turn it is

def fail(event):
    raise ValueError("no luck")
"""

Fill: TypeAlias = Callable[[Mapping[str, bytes]], str]


@pytest.fixture
def fill(kafka_server: KafkaServer, kafka_topic: TopicFactory) -> Fill:
    """A topic of these values by event ID, the first of which come twice, and some without ID."""

    def fill(values: Mapping[str, bytes]) -> str:
        topic = kafka_topic(PARTITIONS)
        producer = Producer({"bootstrap.servers": kafka_server.bootstrap})
        for event_id in (*values, *list(values)[:REPEATS]):
            headers: list[Any] = [("event-id", event_id.encode())]
            producer.produce(topic, values[event_id], event_id, headers=headers)
        for _ in range(WITHOUT_ID):
            producer.produce(topic, b"?")
        assert producer.flush(30) == 0
        return topic

    return fill


@pytest.fixture
def topic(fill: Fill) -> str:
    return fill({f"event-{n}": b"value %d" % n for n in range(MESSAGES - REPEATS - WITHOUT_ID)})


@dataclass(frozen=True, slots=True)
class World:
    """Whatever a bench could leave something in."""

    kafka: KafkaServer
    valkey: ValkeyServer
    home: Path

    def traces(self, topic: str) -> tuple[object, ...]:
        admin = AdminClient(
            {"bootstrap.servers": self.kafka.bootstrap}
        )  # kept: it brings the answer
        groups = admin.list_consumer_groups()
        return (
            sorted(group.group_id for group in groups.result(10).valid),
            sorted(Redis.from_url(self.valkey.url).keys("*")),
            sorted(path.name for path in self.home.iterdir()),
            self._ends(topic),
        )

    def _ends(self, topic: str) -> object:
        consumer = Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "look"})
        parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        ends = [consumer.get_watermark_offsets(part, timeout=10) for part in parts]
        consumer.close()
        return ends

    def start(self, topic: str, *options: str) -> subprocess.Popen[str]:
        """The command in its own process, with HANDLERS to import, and a TMPDIR of its own."""
        (self.home / "handlers.py").write_text(HANDLERS)
        asked = ("--bootstrap", self.kafka.bootstrap, "--topic", topic, *options)
        return subprocess.Popen(
            [sys.executable, "-m", "effectonce", "bench", *asked],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
            env={**os.environ, "TMPDIR": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def bench(self, topic: str, *options: str) -> Said:
        started = self.start(topic, *options)
        out, err = started.communicate(timeout=120)
        return Said(started.returncode, out, err)


@pytest.fixture
def world(
    kafka_server: KafkaServer, valkey_server: ValkeyServer, tmp_path: Path
) -> Iterator[World]:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    world = World(kafka_server, valkey_server, tmp_path)
    yield world
    Redis.from_url(valkey_server.url).flushall()


def test_it_tells_the_costs_and_leaves_nothing_behind_with_a_handler_in_a_store_of_its_own(
    world: World, topic: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    figures = tmp_path_factory.mktemp("out") / "deeper" / "figures.json"
    before = world.traces(topic)
    said = world.bench(topic, "--handler", "handlers:keep", "--json", str(figures))
    assert said.code == 0, said.err
    assert world.traces(topic) == before
    told = json.loads(figures.read_text())
    assert (told["messages"], told["rounds"]) == (MESSAGES, 5)
    assert (told["repeats"], told["without_id"]) == (REPEATS, WITHOUT_ID)
    assert 0 < told["share_ours_least"] <= told["share_ours"] <= told["share_ours_greatest"]
    assert told["share_handler"] < 1
    assert 0 < told["handler_ns_per_event"] < 1e6
    assert told["bare_per_second"] > told["handler_per_second"]
    for line in ("bare consumer", "your handler", "repeats found: 600", "without a usable ID: 5"):
        assert line in said.out, said.out


def test_on_redis_the_users_own_keys_stay_and_only_they(world: World, topic: str) -> None:
    redis = Redis.from_url(world.valkey.url)
    redis.set("theirs", "1")
    redis.hset("effectonce:{billing}", "generations", b"")
    before = world.traces(topic)
    said = world.bench(
        *(topic, "--store", world.valkey.url, "--batch-handler", "handlers:count"),
        *("--messages", "4000"),
    )
    assert said.code == 0, said.err
    # somebody's rows are there, so the id may be theirs by now
    redis.delete("effectonce:id")
    assert world.traces(topic) == before


@pytest.mark.parametrize("layout", ["scope", "partition"])
def test_on_a_redis_of_others_not_even_the_stores_id_is_left(
    world: World, layout: str, topic: str
) -> None:
    before = world.traces(topic)
    said = world.bench(topic, "--store", f"{world.valkey.url}?layout={layout}")
    assert said.code == 0, said.err
    assert world.traces(topic) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_it_leaves_nothing_behind(
    world: World, number: signal.Signals, topic: str
) -> None:
    before = world.traces(topic)
    started = world.start(topic, "--store", world.valkey.url)
    assert started.stderr is not None
    for line in started.stderr:
        if line.startswith("round 1 of 5: "):
            break
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert "nothing is left behind" in err
    assert world.traces(topic) == before


@pytest.mark.parametrize("store", ["rocksdb:", "valkey"])
def test_a_handler_that_raises_is_named_and_nothing_is_left_behind(
    world: World, store: str, topic: str
) -> None:
    before = world.traces(topic)
    url = world.valkey.url if store == "valkey" else store
    said = world.bench(topic, "--store", url, "--handler", "handlers:fail")
    assert said.code == 2
    last = said.err.splitlines()[-1]
    assert "ValueError in handlers.py, line" in last
    assert world.traces(topic) == before


def test_a_run_that_ends_while_it_waits_for_its_turn_is_named(tmp_path: Path) -> None:
    with running("ours", {"nonsense": 1}, tmp_path) as run:
        run.process.wait()
        with pytest.raises(CannotMeasure, match="the run of ours ended with 1: KeyError"):
            run.go_on()


def test_what_cannot_be_measured_is_one_line_that_says_why(
    world: World, topic: str, kafka_topic: TopicFactory, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.properties"
    broken.write_text("# comment\nno.such.setting=1\n")
    for options, why in {
        ("--topic", "no-such-topic"): "no such topic",
        ("--topic", kafka_topic(1)): "is empty",
        ("--bootstrap", "127.0.0.1:1"): "no broker answered at bootstrap.servers=127.0.0.1:1",
        ("--handler", "handlers:nobody"): "cannot be imported: AttributeError",
        ("--handler", "nowhere:nobody"): "cannot be imported: ModuleNotFoundError",
        ("--handler", "handlers"): "module:function",
        ("--store", "redis://127.0.0.1:1"): "Redis cannot be reached",
        ("--store", "nosql:"): "the scheme 'nosql' is unknown",
        ("--store", world.valkey.url, "--handler", "handlers:keep"): "takes a tx",
        ("--identify", "headers:a"): "header:NAME, cloudevent, key or json:PATH",
        ("--identify", "header:id"): "the first has the headers event-id",
        ("--config", str(broken)): "no.such.setting",
        ("--messages", "50"): "too few to time",
        ("--handler", "handlers:spell"): "5 records have no usable ID, for which event.id raises",
    }.items():
        said = world.bench(topic, *options)
        assert said.code == 2, options
        assert said.out == ""
        last = said.err.splitlines()[-1]
        assert last.startswith("effectonce: "), said.err
        assert why in last, said.err
        news = ("reading ", "round 1 of 5: ")
        assert sum(not line.startswith(news) for line in said.err.splitlines()) == 1


def test_an_id_that_comes_with_two_payloads_is_found_before_anything_is_measured(
    world: World, fill: Fill, kafka_server: KafkaServer
) -> None:
    topic = fill({f"event-{n}": b"value" for n in range(3_000)})
    producer = Producer({"bootstrap.servers": kafka_server.bootstrap})
    headers: list[Any] = [("event-id", b"event-7")]
    producer.produce(topic, b"another", "event-7", headers=headers)
    assert producer.flush(30) == 0
    said = world.bench(topic)
    assert said.code == 2
    assert "1 times an event ID comes with another payload" in said.err
    assert "round" not in said.err


def test_what_is_produced_meanwhile_and_what_was_aborted_is_not_counted(
    kafka_server: KafkaServer, kafka_topic: TopicFactory, tmp_path: Path
) -> None:
    topic = kafka_topic(PARTITIONS)
    producer = Producer(
        {"bootstrap.servers": kafka_server.bootstrap, "transactional.id": f"{topic}-producer"}
    )
    producer.init_transactions(30)

    def produce(ids: range, end: Callable[[], None]) -> None:
        producer.begin_transaction()
        for number in ids:
            headers: list[Any] = [("event-id", b"event-%d" % number)]
            producer.produce(topic, b"value", f"key-{number}", headers=headers)
        assert producer.flush(30) == 0
        end()

    produce(range(3_000), producer.commit_transaction)
    produce(range(3_000), producer.commit_transaction)  # each again, in its partition
    produce(range(5_000, 6_000), producer.abort_transaction)
    config = reading({"bootstrap.servers": kafka_server.bootstrap})
    sample = take_sample(config, topic, 1_000_000)
    produce(range(6_000, 7_000), producer.commit_transaction)
    seen = survey(config, sample, Identity(header("event-id")), everywhere=False)
    assert (seen.records, seen.repeats, seen.elsewhere, seen.conflicts) == (6_000, 3_000, 0, 0)
    job = Job(
        *("bare", config, sample, seen.records, "rocksdb:", "", "header:event-id"),
        handler=None,
        batches=True,
        batch=100,
        live=False,
    )
    measured = measure(job, ["bare", "ours"], 3_000, 1, tmp_path, Console(quiet=True))
    assert [run.handled for run in (*measured["bare"], *measured["ours"])] == [6_000, 3_000]


def test_repeats_in_other_partitions_are_told_apart_since_not_every_store_catches_them(
    kafka_server: KafkaServer, kafka_topic: TopicFactory
) -> None:
    topic = kafka_topic(PARTITIONS)
    producer = Producer({"bootstrap.servers": kafka_server.bootstrap})
    for partition, event_id in ((0, b"a"), (0, b"a"), (1, b"a"), (1, b"b")):
        headers: list[Any] = [("event-id", event_id)]
        producer.produce(topic, event_id, partition=partition, headers=headers)
    assert producer.flush(30) == 0
    config = reading({"bootstrap.servers": kafka_server.bootstrap})
    sample = take_sample(config, topic, 100)
    seen = survey(config, sample, Identity(header("event-id")), everywhere=False)
    assert (seen.caught(everywhere=True), seen.caught(everywhere=False)) == (2, 1)


def test_a_store_is_gone_when_its_run_is_even_if_that_raised(
    tmp_path: Path, valkey_server: ValkeyServer
) -> None:
    def raising(url: str) -> None:
        with place(url, tmp_path) as here:
            assert here.scope.startswith(SCOPE)
            assert "theirs" not in here.url
            owner = Owner.open(open_store(here.url), replace(AT, scope=here.scope))
            assert owner.commit([1, 2]) == Applied()
            owner.store.close()
            raise ZeroDivisionError

    redis = valkey_server.url
    for url in (
        f"rocksdb://{tmp_path}/theirs?sync=true",
        redis,
        f"{redis}?layout=partition",
        f"{redis}?layout=partition&index=local",
    ):
        with pytest.raises(ZeroDivisionError):
            raising(url)
    assert not list(tmp_path.iterdir())
    assert not Redis.from_url(valkey_server.url).keys("*")
