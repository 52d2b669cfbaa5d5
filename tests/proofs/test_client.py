"""What the driver takes for granted of librdkafka."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

import effectonce as eo
from effectonce import leaving
from effectonce.kafka import ConfluentClient
from effectonce.ports import TopicPartition
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import PATIENCE_SECONDS
from tests.proofs.kit import PROTOCOLS, RealFlow


class Assigned:
    """A listener that notes its partitions, and leaves them as they are: paused."""

    def __init__(self) -> None:
        self.partitions: list[TopicPartition] = []

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self.partitions += partitions

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.partitions = [each for each in self.partitions if each not in partitions]

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_position_gone(self, partition: TopicPartition, reason: str) -> None: ...
    def on_topic_gone(self, topic: str, reason: str) -> None: ...
    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None: ...


def assigned(client: ConfluentClient, flow: RealFlow) -> Assigned:
    ours, until = Assigned(), time.monotonic() + PATIENCE_SECONDS
    client.subscribe([flow.topic], ours)
    while not ours.partitions and time.monotonic() < until:
        client.fetch(1, 0.1)
    assert ours.partitions
    return ours


@pytest.mark.confluent
def test_a_partition_that_was_paused_is_fetched_from_at_once_or_a_takeover_takes_a_second_more(
    flow: RealFlow,
) -> None:
    """Left to itself librdkafka's first fetch after seek and resume comes 1.0 s later (seen)."""
    flow.send(5)
    client = ConfluentClient({"bootstrap.servers": flow.bootstrap, "group.id": flow.group})
    until = time.monotonic() + PATIENCE_SECONDS
    assigned(client, flow)
    client.fetch(1, 0.2)  # paused: nothing comes, and the fetcher goes to sleep
    client.seek((flow.topic, 0), 3)
    client.resume([(flow.topic, 0)])
    began = time.monotonic()
    while not (found := client.fetch(1, 0.1)):
        assert time.monotonic() < until
    took = time.monotonic() - began
    client.close()
    assert found[0].offsets().tolist() == [3]
    assert took < 0.8


class Watched:
    """librdkafka's consumer; what was assigned when it was closed is noted."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.assigned_at_close: list[object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def close(self) -> None:
        if self.assigned_at_close is None:
            self.assigned_at_close = self._real.assignment()
        self._real.close()


@pytest.mark.confluent
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_is_given_back_before_the_client_closes_or_librdkafka_may_wait_for_ever(
    flow: RealFlow, protocol: str
) -> None:
    flow.send(200)
    config = {"bootstrap.servers": flow.bootstrap, "group.id": flow.group, **PROTOCOLS[protocol]}
    client = ConfluentClient(config)
    ours = assigned(client, flow)
    client.resume(ours.partitions)
    until = time.monotonic() + PATIENCE_SECONDS
    while not client.fetch(1, 0.1):  # the other 199 wait in the client
        assert time.monotonic() < until
    watched: Any = Watched(client._consumer)
    client._consumer = watched
    began = time.monotonic()
    client.close()
    took = time.monotonic() - began
    client.close()  # as after a Ctrl-C in the first
    assert (watched.assigned_at_close, ours.partitions) == ([], [])
    assert took < 3


class Raising(Watched):
    """A callback of the user's raises out of the first polls."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.raises = 3

    def poll(self, seconds: float) -> object:
        self.raises -= 1
        if self.raises >= 0:
            raise ZeroDivisionError(seconds)
        return self._real.poll(seconds)


@pytest.mark.confluent
def test_what_a_users_callback_raises_at_the_close_is_raised_once_all_is_given_back(
    flow: RealFlow,
) -> None:
    client = ConfluentClient({"bootstrap.servers": flow.bootstrap, "group.id": flow.group})
    assigned(client, flow)
    raising: Any = Raising(client._consumer)
    client._consumer = raising
    with pytest.raises(ZeroDivisionError):
        client.close()
    assert raising.assigned_at_close == []
    assert members_of(flow) == []


class Stuck(Watched):
    """librdkafka waits for an answer of its own that was destroyed."""

    def __init__(self, real: Any) -> None:
        super().__init__(real)
        self.goes_on = threading.Event()

    def close(self) -> None:
        assert self.goes_on.wait(PATIENCE_SECONDS)
        super().close()


@pytest.mark.confluent
def test_a_close_that_never_ends_is_told_of_and_holds_no_process(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaving, "CLOSE_SECONDS", 0.1)
    client = ConfluentClient({"bootstrap.servers": flow.bootstrap, "group.id": flow.group})
    assigned(client, flow)
    stuck: Any = Stuck(client._consumer)
    client._consumer = stuck
    client.close()
    assert "librdkafka has not closed within 0 s" in caplog.text
    caplog.clear()
    monkeypatch.setattr(leaving, "CLOSE_SECONDS", PATIENCE_SECONDS)
    stuck.goes_on.set()
    client.close()
    assert (stuck.assigned_at_close, caplog.text) == ([], "")
    assert members_of(flow) == []


@pytest.mark.confluent
def test_the_last_commit_holds_no_close_though_the_broker_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A synchronous one stood for nine minutes, and no signal reached it (seen)."""
    monkeypatch.setattr(leaving, "CLOSE_SECONDS", 1.0)
    ran: list[int] = []
    with KafkaServer.start() as server:
        server.create_topic("payments", 1)
        producer = Producer({"bootstrap.servers": server.bootstrap})
        producer.produce("payments", b"", headers=[("event-id", b"e1")])
        assert producer.flush(PATIENCE_SECONDS) == 0
        once = eo.Once("memory:", identify=eo.header("event-id"), effects=eo.Outside("repeat"))
        config = {"bootstrap.servers": server.bootstrap, "group.id": "billing"}
        consumer = eo.OnceConsumer(config, ["payments"], once)
        consumer.run(lambda event: ran.append(event.offset), until=eo.END)
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        closing = threading.Thread(target=consumer.close, daemon=True)
        closing.start()
        closing.join(20.0)
        ended = not closing.is_alive()
        os.kill(pid, signal.SIGCONT)
    assert ran == [0]
    assert ended


def members_of(flow: RealFlow) -> list[str]:
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    (described,) = admin.describe_consumer_groups([flow.group]).values()
    return [str(member.group_instance_id) for member in described.result(10).members]


@pytest.mark.confluent
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_static_member_stays_when_it_closes_or_each_restart_would_cost_a_rebalance(
    flow: RealFlow, protocol: str
) -> None:
    config = {
        "bootstrap.servers": flow.bootstrap,
        "group.id": flow.group,
        "group.instance.id": "till-1",
        **PROTOCOLS[protocol],
    }
    client = ConfluentClient(config)
    assigned(client, flow)
    client.close()
    assert members_of(flow) == ["till-1"]
