"""Topics that are not there and brokers that are down, on Apache Kafka itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest

import effectonce as eo
from effectonce import assignment, kafka
from effectonce.hooks import BatchCommitted
from effectonce.testing.plugin import TopicFactory
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import CLASSIC, KIP_848, Flow, count, once_each, stops

PROTOCOLS = {"classic": CLASSIC, "kip-848": KIP_848}


def fresh(flow: Flow) -> int:
    return sum(each.fresh for each in flow.watch.of(BatchCommitted))


# -- topics ----------------------------------------------------------------------------------------


def test_topics_that_do_not_exist_are_named_at_once_and_nothing_begins(real_flow: Flow) -> None:
    flow = real_flow
    ids = flow.send(2)
    with stops(eo.UnknownTopic, "ordres, paymets", "Nothing was consumed", "mend the name"):
        flow.job(topics=["ordres", "paymets"])
    assert not flow.effects()
    flow.job()
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_topic_that_vanishes_ends_the_run_and_is_not_waited_for_in_silence(
    real_flow: Flow, kafka_server: KafkaServer, protocol: str
) -> None:
    flow = real_flow
    ids = flow.send(2) + flow.send(2, partition=1)
    member = flow.member(config=PROTOCOLS[protocol])
    member.start()
    flow.watch.until(lambda: fresh(flow) == 4)
    kafka_server.delete_topic(flow.topic)
    member.join()
    kafka_server.create_topic(flow.topic, 2)  # deleted once more by its fixture
    assert isinstance(member.error, eo.UnknownTopic)
    said = str(member.error)
    assert said.startswith(flow.topic)
    assert "the topic is gone" in said
    assert "What took effect is in the store" in said
    assert not member.consumer.health().ok
    ids += flow.send(2)
    flow.job(config=PROTOCOLS[protocol])
    assert flow.effects() == once_each(ids)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_topic_that_vanishes_leaves_the_others_running(
    real_flow: Flow, kafka_server: KafkaServer, kafka_topic: TopicFactory, protocol: str
) -> None:
    flow, other = real_flow, f"{real_flow.topic}-other"
    kafka_server.create_topic(other)
    ids = flow.send(2)
    with flow.member(config=PROTOCOLS[protocol], topics=[other]) as member:
        flow.watch.until(lambda: fresh(flow) == 2)
        kafka_server.delete_topic(other)
        flow.watch.until(lambda: any("is gone" in text for text in flow.watch.of(str)))
        assert not member.consumer.health().ok
        ids += flow.send(3) + flow.send(2, partition=1)
        flow.watch.until(lambda: fresh(flow) == 7)
    assert flow.effects() == once_each(ids)


def test_a_job_over_a_topic_that_vanishes_does_not_end_as_if_it_were_done(
    real_flow: Flow, kafka_server: KafkaServer
) -> None:
    flow = real_flow
    flow.send(2)

    def deletes(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if event.offset == 0:
            kafka_server.delete_topic(flow.topic)

    with stops(eo.UnknownTopic, flow.topic, "the topic is gone"):
        flow.job(deletes)
    kafka_server.create_topic(flow.topic, 2)


# -- brokers ---------------------------------------------------------------------------------------


def test_no_broker_at_the_start_is_told_after_a_bounded_time(
    real_flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = real_flow
    ids = flow.send(2)
    monkeypatch.setattr(kafka, "CALL_SECONDS", 0.5)
    began = time.monotonic()
    nowhere: Mapping[str, object] = {**KIP_848, "bootstrap.servers": "127.0.0.1:19"}
    with stops(
        eo.BrokerError,
        "no broker answered at bootstrap.servers=127.0.0.1:19",
        "Nothing was consumed, nothing is lost",
    ):
        flow.job(config=nowhere)
    assert time.monotonic() - began < 5
    monkeypatch.undo()
    flow.job()
    assert flow.effects() == once_each(ids)


def test_a_broker_that_dies_and_comes_back_is_waited_for(
    real_flow: Flow, kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = real_flow
    # an outage of minutes, in seconds: every call is made, and times out
    monkeypatch.setattr(kafka, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(assignment, "TOPIC_CHECK_SECONDS", 0.5)
    ids = flow.send(2) + flow.send(2, partition=1)
    reached, down = threading.Event(), threading.Event()

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        if event.offset == 2 and not reached.is_set():
            reached.set()
            assert down.wait(30)

    with flow.member(handler) as member:
        flow.watch.until(lambda: fresh(flow) == 4)
        ids += flow.send(1)
        assert reached.wait(30)
        kafka_server.kill()
        down.set()
        flow.watch.until(lambda: fresh(flow) == 5)  # the store needs no broker
        kafka_server.restart()
        ids += flow.send(3) + flow.send(2, partition=1)
        flow.watch.until(lambda: fresh(flow) == 10)
        assert member.consumer.health().ok
    assert flow.effects() == once_each(ids)
