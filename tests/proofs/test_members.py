"""Members that come, go, are slow, frozen or killed, on Apache Kafka, in every group protocol."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import effectonce as eo
from effectonce.hooks import BatchCommitted, PartitionAssigned, PartitionBegan
from tests.bad_input.kit import PATIENCE_SECONDS, count, once_each
from tests.proofs.kit import PROTOCOLS, RealFlow
from tests.proofs.worker import Worker

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def fresh(flow: RealFlow) -> int:
    return sum(batch.fresh for batch in flow.watch.of(BatchCommitted))


@each_protocol
def test_members_that_come_and_go_lose_and_repeat_nothing(
    flows: Callable[[int], RealFlow], protocol: str
) -> None:
    flow, config = flows(4), PROTOCOLS[protocol]
    for partition in range(4):
        flow.send(25, partition)
    with flow.member(config=config):
        flow.watch.until(lambda: fresh(flow) >= 50)
        with flow.member(config=config):
            flow.watch.until(lambda: any(b.epoch == 2 for b in flow.watch.of(PartitionBegan)))
            for partition in range(4):
                flow.send(25, partition)
            flow.watch.until(lambda: fresh(flow) == 200)
        for partition in range(4):
            flow.send(5, partition)
        flow.watch.until(lambda: fresh(flow) == 220)
    assert flow.effects() == once_each(flow.ids)


@each_protocol
def test_a_slow_handler_keeps_its_membership_and_a_rebalance_does_not_wait_for_it(
    flows: Callable[[int], RealFlow], protocol: str
) -> None:
    flow = flows(2)
    config = {**PROTOCOLS[protocol], "max.poll.interval.ms": 2000}
    slow, go_on, ran = threading.Event(), threading.Event(), list[str]()
    (long,) = flow.send(1, 0)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        ran.append(event.id)
        count(event, tx)
        if event.id == long:
            slow.set()
            assert go_on.wait(PATIENCE_SECONDS)

    with flow.member(handler, config=config) as first:
        assert slow.wait(PATIENCE_SECONDS)
        with flow.member(handler, config=config):
            # longer than the session and max.poll.interval.ms: only the keeper polls meanwhile
            flow.watch.until(lambda: len(flow.watch.of(PartitionAssigned)) >= 3)
            flow.send(3, 1)
            go_on.set()
            flow.watch.until(lambda: fresh(flow) == 4)
        flow.send(2, 0)
        flow.send(2, 1)
        flow.watch.until(lambda: fresh(flow) == 8)
    assert first.error is None
    assert sorted(ran) == sorted(flow.ids), "every event ran once"
    assert flow.effects() == once_each(flow.ids)


@pytest.fixture
def hold(flow: RealFlow) -> Any:
    """Handlers of workers do not return while this file is there."""
    path = flow.state.parent / "hold"
    path.touch()
    yield path
    path.unlink(missing_ok=True)


@each_protocol
def test_a_member_frozen_in_a_handler_finishes_its_event_once_when_thawed(
    flow: RealFlow, hold: Any, protocol: str
) -> None:
    ids = flow.send(20)
    config = PROTOCOLS[protocol]
    with Worker(flow, config) as frozen:
        frozen.until(lambda: frozen.steps("enter"))
        frozen.send(signal.SIGSTOP)
        with flow.member(config=config) as successor:
            # given the partition by the group, and held up by the LOCK of the frozen process
            flow.watch.until(lambda: assigned(successor), seconds=PATIENCE_SECONDS)
            assert not flow.watch.of(PartitionBegan)
            hold.unlink()
            frozen.send(signal.SIGCONT)
            flow.watch.until(lambda: flow.watch.of(PartitionBegan))
            more = flow.send(3)
            flow.watch.until(lambda: len(frozen.steps("leave")) + fresh(flow) >= 23)
            frozen.send(signal.SIGTERM)
            assert frozen.ended() == 0
    assert flow.effects() == once_each(ids + more)


def assigned(member: Any) -> bool:
    return bool(member.consumer.health().partitions)


def test_sigterm_drains_and_the_next_start_runs_nothing_again(flow: RealFlow) -> None:
    ids = flow.send(50)
    with Worker(flow, PROTOCOLS["kip-848"]) as worker:
        worker.until(lambda: len(worker.steps("leave")) >= 5)
        worker.send(signal.SIGTERM)
        assert worker.ended() == 0
        done = worker.steps("leave")
    told = flow.committed()
    assert told is not None
    assert told.offset == flow.position().next == len(done)
    flow.job()
    assert fresh(flow) == len(ids) - len(done)
    assert flow.effects() == once_each(ids)


def test_a_record_that_kills_the_process_is_found_and_run_alone(flow: RealFlow) -> None:
    before, (deadly,) = flow.send(2), flow.send(1)
    said: list[str] = []
    for _ in range(5):
        with Worker(flow, PROTOCOLS["kip-848"], deadly=deadly) as worker:
            assert worker.ended() == 9
            said += worker.lines
    alone = [line for line in said if "does this record kill the process" in line]
    assert [line.split("offset ")[1][:12] for line in alone] == [
        "0 alone, att", "1 alone, att", "2 alone, att", "2 alone, att",
    ]  # fmt: skip
    assert (flow.position().attempt_offset, flow.position().attempts) == (2, 2)
    assert flow.effects() == once_each(before), "what stands before it is committed"


def test_after_a_kill_an_outside_event_says_that_it_may_have_run(flow: RealFlow) -> None:
    first, (deadly,), behind = flow.send(2), flow.send(1), flow.send(2)
    with Worker(flow, PROTOCOLS["kip-848"], effects="outside", deadly=deadly) as killed:
        assert killed.ended() == 9
        assert killed.steps("fresh") == [*first, deadly]
    with Worker(flow, PROTOCOLS["kip-848"], effects="outside") as second:
        second.until(lambda: second.steps("maybe")[-1:] == behind[-1:])
        (new,) = flow.send(1)
        second.until(lambda: second.steps("fresh") == [new])
        second.send(signal.SIGTERM)
        assert second.ended() == 0
    (newer,) = flow.send(1)
    with Worker(flow, PROTOCOLS["kip-848"], effects="outside") as third:
        third.until(lambda: third.steps("fresh") == [newer])
        assert not third.steps("maybe")
