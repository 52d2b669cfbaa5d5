"""Processes that are killed or cut off at their worst moment, on Apache Kafka."""

from __future__ import annotations

import signal

import pytest

import effectonce as eo
from effectonce.hooks import BatchCommitted
from tests.bad_input.kit import count, once_each
from tests.proofs.driver_kit import process
from tests.proofs.kit import RealFlow


def fresh(flow: RealFlow) -> int:
    return sum(batch.fresh for batch in flow.watch.of(BatchCommitted))


def test_a_kill_in_a_handler_rolls_its_effect_back_and_the_successor_runs_it_once(
    flow: RealFlow,
) -> None:
    ids, ran = flow.send(4), list[str]()

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        ran.append(event.id)
        count(event, tx)

    with process(flow, at=ids[2], act="kill") as member:
        assert member.exit_code() == -signal.SIGKILL
        assert f"in {ids[2]}" in member.lines()
    assert not flow.effects()
    flow.job(handler)
    assert ran == ids
    assert flow.effects() == once_each(ids)


def test_a_kill_between_the_stores_commit_and_kafkas_repeats_nothing(flow: RealFlow) -> None:
    ids, ran = flow.send(4), list[str]()
    with process(flow, act="kill after commit") as member:
        assert member.exit_code() == -signal.SIGKILL
    assert flow.effects() == once_each(ids)
    told = flow.committed()
    assert told is None or told.offset == 0
    flow.job(lambda event, tx: ran.append(event.id))
    assert not ran
    assert flow.effects() == once_each(ids)


@pytest.mark.confluent
def test_a_hanging_handler_is_cut_off_and_another_process_takes_over_or_it_would_wait_for_ever(
    flow: RealFlow,
) -> None:
    ids = flow.send(3)
    with process(
        flow, at=ids[1], act="hold", limits={"handler_timeout_seconds": 1.5, "drain_seconds": 0.1}
    ) as hangs:
        hangs.until(f"in {ids[1]}")
        with flow.member():
            flow.watch.until(lambda: fresh(flow) == 3)
        assert hangs.popen.poll() is None, "it hangs still, and holds nobody up"
        assert flow.effects() == once_each(ids)
        hangs.go()
        assert hangs.exit_code() == 1
        assert "HandlerTimeout" in hangs.said(), hangs.said()
    assert flow.effects() == once_each(ids)
