"""The consumer over Redis: a scope that all partitions share, and a server that comes and goes."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import effectonce as eo
from effectonce import hooks
from effectonce.hooks import BatchCommitted, PartitionBegan, StoreOutage
from effectonce.ports import Store
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_tx import RedisTx
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer, MockKafka, ValkeyServer
from tests.bad_input.kit import Flow, Watch, count, id_header, once_each, stops


class RedisFlow(Flow):
    """A flow whose state is in Redis."""

    url: str

    @contextmanager
    def consumer(
        self,
        *,
        config: Mapping[str, object] | None = None,
        store: str | Store | None = None,
        topics: Sequence[str] = (),
        **policy: Any,
    ) -> Iterator[eo.OnceConsumer]:
        opened = store or RedisStore(self.url, timeout_seconds=0.5)
        with super().consumer(config=config, store=opened, topics=topics, **policy) as consumer:
            yield consumer

    def effects(self) -> Counter[str]:
        found: Counter[str] = Counter()
        with Redis.from_url(self.url) as client:
            for key in client.keys("effectonce:*:rows:*"):
                for row, value in client.hgetall(key).items():
                    found[row.decode()] += int(value)
        return found


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer.start() as server:
        yield server


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    hooks.set_hooks([watch.note])
    yield watch
    hooks.set_hooks([])


@pytest.fixture
def flow(mock_kafka: MockKafka, server: ValkeyServer, tmp_path: Path, watch: Watch) -> RedisFlow:
    """Two partitions on the mock broker."""
    topic = f"topic-{uuid.uuid4().hex[:8]}"
    mock_kafka.create_topic(topic, 2)
    flow = RedisFlow(mock_kafka.bootstrap, topic, tmp_path, watch)
    flow.url = server.url
    return flow


@pytest.fixture
def real_flow(
    kafka_server: KafkaServer,
    kafka_topic: TopicFactory,
    server: ValkeyServer,
    tmp_path: Path,
    watch: Watch,
) -> RedisFlow:
    """Two partitions on Apache Kafka."""
    flow = RedisFlow(kafka_server.bootstrap, kafka_topic(2), tmp_path, watch)
    flow.url = server.url
    return flow


def repeat(flow: Flow, ids: Sequence[str], partition: int) -> None:
    """Deliver events once more, as a producer that tries again may."""
    for each in ids:
        flow.produce(b"payload of " + each.encode(), headers=id_header(each), partition=partition)


def committed(flow: Flow) -> int:
    return sum(batch.delivered for batch in flow.watch.of(BatchCommitted))


def test_a_copy_in_another_partition_takes_no_effect(real_flow: RedisFlow) -> None:
    flow = real_flow
    ids = flow.send(20)
    repeat(flow, ids, partition=1)
    flow.job()
    repeat(flow, ids[:5], partition=1)
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_url_is_all_that_it_takes(flow: RedisFlow) -> None:
    ids = flow.send(3)
    flow.job(store=f"{flow.url}?durability=host")
    flow.job(store=f"{flow.url}?durability=host")
    assert flow.effects() == once_each(ids)


def test_a_killed_server_holds_the_group_and_loses_nothing(
    flow: RedisFlow, server: ValkeyServer
) -> None:
    ids = flow.send(10)
    with flow.member() as member:
        flow.watch.until(lambda: committed(flow) == 10)
        server.kill()
        ids += flow.send(10, partition=0) + flow.send(10, partition=1)
        flow.watch.until(lambda: flow.watch.of(StoreOutage))
        assert "cannot be reached" in member.errors()[0]
        server.restart()
        flow.watch.until(lambda: committed(flow) == 30)
    began, *_, over = flow.watch.of(StoreOutage)
    assert (began.over, over.over) == (False, True)
    assert flow.effects() == once_each(ids)


def test_a_frozen_server_is_answered_once_however_often_it_was_asked(
    flow: RedisFlow, server: ValkeyServer
) -> None:
    ids: list[str] = []
    assert server.pid is not None

    def freeze_once(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if event.id == ids[4] and not flow.watch.of(str):
            flow.watch.note("frozen")
            os.kill(server.pid or 0, signal.SIGSTOP)

    ids += flow.send(10)
    try:
        with flow.member(freeze_once):
            flow.watch.until(lambda: flow.watch.of(StoreOutage))
            os.kill(server.pid, signal.SIGCONT)
            flow.watch.until(lambda: committed(flow) >= 10)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_server_that_is_full_holds_the_group_before_a_handler_runs(
    flow: RedisFlow, server: ValkeyServer
) -> None:
    ids = flow.send(5)
    ran: list[str] = []

    def outside(event: eo.Event) -> None:
        ran.append(event.id)
        flow.watch.note(event.id)

    effects = eo.Outside(on_doubt="repeat")
    with Redis.from_url(flow.url) as admin, flow.member(outside, effects=effects):
        flow.watch.until(lambda: committed(flow) == 5)
        admin.config_set("maxmemory", 1)
        ids += flow.send(5)
        flow.watch.until(lambda: flow.watch.of(StoreOutage))
        assert ran == ids[:5]
        admin.config_set("maxmemory", 0)
        flow.watch.until(lambda: committed(flow) == 10)
    assert ran == ids


def test_members_hand_over_without_loss_or_repeat(real_flow: RedisFlow) -> None:
    flow = real_flow
    ids = flow.send(50, partition=0) + flow.send(50, partition=1)
    with flow.member():
        flow.watch.until(lambda: committed(flow) == 100)
        with flow.member():
            flow.watch.until(lambda: len(flow.watch.of(PartitionBegan)) >= 3)
            ids += flow.send(50, partition=0) + flow.send(50, partition=1)
            flow.watch.until(lambda: committed(flow) >= 200)
    repeat(flow, ids, partition=1)
    flow.job()
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("effects", [eo.InStore(), eo.Outside(on_doubt="repeat")], ids=str)
def test_a_local_index_catches_copies_across_members_outages_and_restarts(
    real_flow: RedisFlow, server: ValkeyServer, effects: eo.InStore | eo.Outside
) -> None:
    flow, ids, handled = real_flow, list[str](), Counter[str]()
    how = {"store": f"{flow.url}?layout=partition&index=local", "effects": effects}

    def in_store(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)

    def outside(event: eo.Event) -> None:
        handled[str(event.id)] += 1

    def deliver(events: int) -> None:
        """To each partition, and all that it ever had once more."""
        for partition in (0, 1):
            ids.extend(flow.send(events, partition=partition))
            mine[partition] += flow.ids[-events:]
            repeat(flow, mine[partition], partition)

    mine: dict[int, list[str]] = {0: [], 1: []}
    handler = in_store if isinstance(effects, eo.InStore) else outside
    deliver(20)
    with flow.member(handler, **how):
        flow.watch.until(lambda: committed(flow) == 80)
        with flow.member(handler, **how):
            flow.watch.until(lambda: len(flow.watch.of(PartitionBegan)) >= 3)
            deliver(20)
            flow.watch.until(lambda: committed(flow) >= 200)
        server.kill()
        deliver(20)
        flow.watch.until(lambda: flow.watch.of(StoreOutage))
        server.restart()
        flow.watch.until(lambda: committed(flow) >= 360)
    deliver(5)
    flow.job(handler, **how)
    found = flow.effects() if isinstance(effects, eo.InStore) else handled
    assert found == once_each(ids)


def test_commands_take_effect_with_their_event(flow: RedisFlow, server: ValkeyServer) -> None:
    seen: list[str] = []

    def handler(event: eo.Event, tx: RedisTx) -> None:
        tx.incrby("total")
        tx.sadd("ids", event.id)
        seen.append(event.id)
        if len(seen) == 3:
            raise RuntimeError("the third attempt fails, and its commands with it")

    ids = flow.send(10)
    repeat(flow, ids, partition=1)
    flow.job(handler)
    flow.job(handler)
    assert len(seen) == 11
    with Redis.from_url(flow.url) as client:
        assert client.get("total") == b"10"
        assert client.smembers("ids") == {each.encode() for each in ids}


def test_a_flushed_server_is_refused_by_kafkas_witness(flow: RedisFlow) -> None:
    flow.send(3)
    flow.job()
    with Redis.from_url(flow.url) as client:
        client.flushall()
    with pytest.raises(eo.StartRefused) as refused:
        flow.job()
    assert refused.value.row == "2"


def test_rows_that_were_lost_are_refused_by_kafkas_witness(flow: RedisFlow) -> None:
    flow.send(3)
    flow.job()
    with Redis.from_url(flow.url) as client:
        (positions,) = client.keys("effectonce:*:positions")
        client.delete(positions)
    with pytest.raises(eo.StartRefused) as refused:
        flow.job()
    assert refused.value.row == "3"


def test_a_lost_suffix_is_found_and_its_effects_come_again(flow: RedisFlow) -> None:
    ids = flow.send(3)
    flow.job()
    with Redis.from_url(flow.url) as client:
        backup = {key: client.dump(key) for key in client.keys("*")}
        ids += flow.send(3)
        flow.job()
        client.flushall()
        for key, value in backup.items():
            client.restore(key, 0, value)
    flow.job()
    assert "8" in [began.row for began in flow.watch.of(PartitionBegan)]
    assert flow.effects() == once_each(ids)


def test_a_failover_that_loses_a_suffix_is_found_by_the_running_member(flow: RedisFlow) -> None:
    ids = flow.send(3)
    handled: list[str] = []

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        handled.append(event.id)

    with flow.member(handler), Redis.from_url(flow.url) as client:
        flow.watch.until(lambda: committed(flow) == 3)
        backup = {key: client.dump(key) for key in client.keys("*")}
        ids += flow.send(3)
        flow.watch.until(lambda: committed(flow) == 6)
        with client.pipeline(transaction=True) as at_once:
            at_once.flushall()
            for key, value in backup.items():
                at_once.restore(key, 0, value)
            at_once.execute()
        ids += flow.send(1)
        flow.watch.until(lambda: committed(flow) == 10)
    assert handled == [*ids[:6], *ids[3:]], "the effects went back, and so does the position"
    assert flow.effects() == once_each(ids)


def test_a_commit_that_is_refused_is_told_once_and_not_at_every_turn(
    flow: RedisFlow, caplog: pytest.LogCaptureFixture
) -> None:
    """Its partition stopped, and the commit went out again each turn until the job's end."""
    with Redis.from_url(flow.url) as admin:
        admin.set("text", "x")

    def step(event: eo.Event, tx: RedisTx) -> None:
        tx.incrby("text")

    flow.send(1)
    flow.send(1, partition=1)
    with stops(eo.StoreError, "tx.incrby meets a value"):
        flow.job(step)
    told = [line for line in caplog.messages if line.startswith("stopped: ")]
    assert len(told) == 2, told
