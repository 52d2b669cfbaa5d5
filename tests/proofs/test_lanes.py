"""Lanes on Apache Kafka: what the target sees, whoever is killed, revoked, stuck or hung."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import effectonce as eo
from effectonce.hooks import PartitionAssigned, PartitionReleased, PartitionStalled
from effectonce.identity.record import Record
from tests.bad_input.kit import PATIENCE_SECONDS, id_header
from tests.proofs.kit import CLASSIC, RealFlow
from tests.proofs.lanes_worker import COMMIT_SECONDS, HANDLER_SECONDS, LANES

OUTSIDE = eo.Outside(on_doubt="repeat")


def send(flow: RealFlow, keys: list[str], partitions: int = 1) -> list[tuple[str, str]]:
    """A record for each of these keys: (key, event ID). A key has its partition."""
    sent = []
    for key in keys:
        made = f"event-{len(flow.ids):05}-{flow.group}"
        flow.ids.append(made)
        partition = sum(key.encode()) % partitions
        flow.produce(made.encode(), key=key.encode(), headers=id_header(made), partition=partition)
        sent.append((key, made))
    return sent


def by_key(seen: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, event_id in seen:
        found.setdefault(key, []).append(event_id)
    return found


class Target:
    """Where effects arrive, in the order in which they do."""

    def __init__(self, flow: RealFlow) -> None:
        self._flow = flow
        self.seen: list[tuple[str, str]] = []
        self.maybe: set[str] = set()

    def takes(self, event: eo.Event) -> None:
        self.seen.append(((event.key or b"").decode(), event.id))
        if event.maybe_repeated:
            self.maybe.add(event.id)
        self._flow.watch.note(("took", event.id))

    @property
    def ids(self) -> list[str]:
        return [event_id for _, event_id in self.seen]


@contextmanager
def running(
    flow: RealFlow, handler: Callable[[eo.Event], object], how: dict[str, Any], **policy: Any
) -> Iterator[eo.OnceConsumer]:
    """A member with lanes on a thread of its own; stopped at the end of the `with`."""
    raised: list[BaseException] = []
    with flow.consumer(effects=OUTSIDE, **policy) as consumer:

        def run() -> None:
            try:
                consumer.run(handler, **how)
            except BaseException as error:  # noqa: BLE001 - raised below
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield consumer
        finally:
            consumer.stop()
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
    if raised:
        raise raised[0]


def test_effects_of_a_key_arrive_in_its_order_though_members_come_and_go(
    flows: Callable[[int], RealFlow],
) -> None:
    flow, chance = flows(4), random.Random(7)
    target = Target(flow)
    sent = send(flow, [f"key-{chance.randrange(40)}" for _ in range(1200)], 4)

    def handler(event: eo.Event) -> None:
        time.sleep(0.01 * chance.random())
        target.takes(event)

    how = {"lanes": 16}
    with running(flow, handler, how, config=CLASSIC):
        flow.watch.until(lambda: len(target.seen) > 200)
        with running(flow, handler, how, config=CLASSIC):
            flow.watch.until(lambda: len(flow.watch.of(PartitionReleased)) >= 1)
            flow.watch.until(lambda: len(flow.watch.of(PartitionAssigned)) >= 6)
        flow.watch.until(lambda: len(set(target.ids)) == len(sent))
    assert Counter(target.ids) == Counter(dict.fromkeys(flow.ids, 1)), "a revoke drains"
    assert by_key(target.seen) == by_key(sent)


@pytest.mark.parametrize("then", [1, 4])
@pytest.mark.parametrize("first", [1, 4])
def test_what_a_run_had_in_hand_as_it_was_broken_off_comes_again_before_a_job_ends(
    flow: RealFlow, first: int, then: int
) -> None:
    sent, target, exits = send(flow, list("abcab")), Target(flow), ["once"]

    def find(record: Record) -> str:
        if exits:
            sys.exit(exits.pop())
        return (record.value or b"").decode()

    with flow.consumer(effects=OUTSIDE, identify=eo.custom(find, version="1")) as consumer:
        with pytest.raises(SystemExit):
            consumer.run(target.takes, lanes=first)
        consumer.run(target.takes, until=eo.END, lanes=then)
    assert by_key(target.seen) == by_key(sent)


def test_a_stuck_key_holds_its_lane_alone_until_as_many_are_held_as_may_be(
    flow: RealFlow,
) -> None:
    held, gate = 60, threading.Event()
    sent = send(flow, ["stuck", *(f"key-{n % 10}" for n in range(199))])
    target = Target(flow)

    def handler(event: eo.Event) -> None:
        if event.key == b"stuck":
            assert gate.wait(PATIENCE_SECONDS)
        target.takes(event)

    limits = eo.Limits(held=held, batch=20, commit_seconds=0.01)
    with running(flow, handler, {"lanes": 4}, limits=limits) as consumer:
        flow.watch.until(lambda: len(target.seen) == held - 1)
        time.sleep(0.3)  # more would have come by now
        assert len(target.seen) == held - 1
        (row,) = consumer.health().partitions
        assert (row.next, row.held) == (0, held)
        gate.set()
        flow.watch.until(lambda: len(target.seen) == len(sent))
    assert by_key(target.seen) == by_key(sent)
    assert flow.position().next == len(sent)


def test_a_poisoned_key_stops_its_partition_once_all_in_front_is_passed_and_repeats_nothing(
    flow: RealFlow,
) -> None:
    sent = send(flow, [f"key-{n % 5}" for n in range(30)] + ["bad"] + ["key-0", "bad", "key-1"])
    target, poisoned = Target(flow), threading.Event()
    poisoned.set()

    def handler(event: eo.Event) -> None:
        time.sleep(0.005)
        if event.key == b"bad" and poisoned.is_set():
            raise ValueError
        target.takes(event)

    with (
        pytest.raises(eo.HandlerFailed, match="offset 30: the handler failed 2 times"),
        flow.consumer(effects=OUTSIDE) as consumer,
    ):
        consumer.run(handler, lanes=8, until=eo.END)
    assert [stalled.offset for stalled in flow.watch.of(PartitionStalled)] == [30]
    assert flow.position().next == 30
    assert sorted(target.ids[:30]) == sorted(event_id for _, event_id in sent[:30])
    poisoned.clear()
    with flow.consumer(effects=OUTSIDE) as consumer:
        consumer.run(handler, lanes=8, until=eo.END)
    assert Counter(target.ids) == Counter(dict.fromkeys(flow.ids, 1))
    assert by_key(target.seen) == by_key(sent)
    assert sent[30][1] in target.maybe, "it failed, and may have had its effect"


@pytest.mark.confluent  # a task is cancelled: test_aio_lanes.py
def test_a_hung_handler_is_cut_off_and_what_the_others_did_is_kept(flow: RealFlow) -> None:
    sent = send(flow, ["a", "hangs", "b", "c"])
    target, gate = Target(flow), threading.Event()

    def handler(event: eo.Event) -> None:
        if event.key == b"hangs":
            gate.wait(PATIENCE_SECONDS)
            return
        target.takes(event)

    limits = eo.Limits(handler_timeout_seconds=1.0, drain_seconds=0.1)
    with (
        pytest.raises(eo.HandlerTimeout),
        flow.consumer(effects=OUTSIDE, limits=limits) as consumer,
    ):
        consumer.run(handler, lanes=4)
    assert sorted(key for key, _ in target.seen) == ["a", "b", "c"]
    with flow.consumer(effects=OUTSIDE) as consumer:
        consumer.run(target.takes, lanes=4, until=eo.END)
    assert target.ids[3:] == [sent[1][1]]
    assert target.maybe == {sent[1][1]}
    gate.set()


def test_a_kill_repeats_what_was_in_a_handler_or_just_out_of_it_and_nothing_else(
    flows: Callable[[int], RealFlow], tmp_path: Path
) -> None:
    flow, chance = flows(2), random.Random(11)
    sent = send(flow, [f"key-{chance.randrange(50)}" for _ in range(1500)], 2)
    path = tmp_path / "target"
    job = {
        "config": {"bootstrap.servers": flow.bootstrap, "group.id": flow.group, **CLASSIC},
        "topic": flow.topic,
        "state": str(flow.state),
        "target": str(path),
    }

    def lines() -> list[list[str]]:
        text = path.read_text() if path.exists() else ""
        return [line.split() for line in text.splitlines()]

    kills = 3
    for turn in range(kills + 1):
        member = subprocess.Popen(
            [sys.executable, "-m", "tests.proofs.lanes_worker", json.dumps({**job, "seed": turn})]
        )
        until = time.monotonic() + PATIENCE_SECONDS
        wanted = (turn + 1) * 400 if turn < kills else len(sent)
        while turn < kills and len(lines()) < wanted:
            assert member.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        if turn < kills:
            member.kill()
        assert member.wait(PATIENCE_SECONDS) == (-9 if turn < kills else 0)
    first: dict[str, str] = {}
    again: list[str] = []
    for key, event_id, word in lines():
        if event_id in first:
            again.append(word)
        first.setdefault(event_id, key)
    assert set(first) == set(flow.ids), "nothing is lost"
    assert set(again) <= {"maybe"}, "whoever repeats is told"
    # in a handler, or ended since a commit that came a little late
    ended = LANES * (4 * COMMIT_SECONDS / HANDLER_SECONDS)
    assert len(again) <= kills * (LANES + ended)
    by_first = [(key, event_id) for event_id, key in first.items()]
    assert by_key(by_first) == by_key(sent), "across a crash they only replay"
