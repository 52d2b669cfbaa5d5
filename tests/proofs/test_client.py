"""What the driver takes for granted of librdkafka."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from effectonce.kafka import ConfluentClient
from effectonce.ports import TopicPartition
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
    """A callback of the user's raises out of each poll."""

    def poll(self, seconds: float) -> None:
        raise ZeroDivisionError(seconds)


@pytest.mark.confluent
def test_what_a_users_callback_raises_at_the_close_would_keep_the_member_in_its_group(
    flow: RealFlow,
) -> None:
    client = ConfluentClient({"bootstrap.servers": flow.bootstrap, "group.id": flow.group})
    assigned(client, flow)
    raising: Any = Raising(client._consumer)
    client._consumer = raising
    with pytest.raises(ZeroDivisionError):
        client.close()
    assert raising.assigned_at_close
    assert members_of(flow) == []


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
