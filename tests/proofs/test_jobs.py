"""`run(handler, until=END)`: a job ends when all is done, neither before nor never."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Producer

import effectonce as eo
from effectonce.hooks import PartitionBegan
from tests.bad_input.kit import PATIENCE_SECONDS, count, id_header, once_each
from tests.proofs.driver_kit import process
from tests.proofs.kit import PROTOCOLS, RealFlow


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_members_of_a_job_do_not_all_leave_while_a_partition_is_on_its_way_between_them(
    flows: Callable[[int], RealFlow], protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls are short, so that the loop looks around in the middle of each rebalance."""
    for driver in ("consumer", "aio"):
        monkeypatch.setattr(f"effectonce.{driver}.FETCH_SECONDS", 0.001)
    flow = flows(2)
    ids = flow.send(15, 0) + flow.send(15, 1)

    def slow(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        flow.watch.note(event.id)
        threading.Event().wait(0.04)

    def job() -> None:
        flow.job(slow, config=PROTOCOLS[protocol], limits=eo.Limits(batch=1))

    with ThreadPoolExecutor() as pool:
        first = pool.submit(job)
        flow.watch.until(lambda: len(flow.watch.of(str)) >= 4)
        second = pool.submit(job)
        first.result(PATIENCE_SECONDS)
        second.result(PATIENCE_SECONDS)
    assert flow.effects() == once_each(ids)


@pytest.mark.confluent
def test_a_job_waits_for_a_partition_that_a_killed_member_still_holds_or_it_stays_undone(
    flows: Callable[[int], RealFlow],
) -> None:
    """Under KIP-848 the others keep their own at once, and the dead one its own for a while."""
    flow, config = flows(2), PROTOCOLS["kip-848"]
    flow.long_sessions()
    held, free = flow.send(6, 0), flow.send(6, 1)
    with (
        process(flow, at=held[0], act="hold", config=config) as member,
        ThreadPoolExecutor() as pool,
    ):
        member.until(f"in {held[0]}")
        job = pool.submit(flow.job, config=config)
        flow.watch.until(lambda: bool(flow.watch.of(PartitionBegan)))
        member.popen.kill()
        job.result(PATIENCE_SECONDS)
    assert flow.effects() == once_each(held + free)


def test_a_job_on_an_empty_topic_ends(flow: RealFlow) -> None:
    flow.job()
    assert flow.rows() == ["5"]


def test_a_job_ends_at_the_end_that_it_found_though_more_keeps_coming(flow: RealFlow) -> None:
    flow.send(3)

    def feeds(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        flow.send(1)

    flow.job(feeds, limits=eo.Limits(batch=1))
    assert 3 <= len(flow.effects()) <= 4


def test_a_job_ends_on_a_log_in_which_every_transaction_was_aborted(flow: RealFlow) -> None:
    """Nothing is ever delivered, so only the client's position tells that the end is reached."""
    abort_one(flow)
    flow.job()
    assert not flow.effects()


ENDLESS = 2_000


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_job_ends_though_another_partition_is_never_quiet(
    flows: Callable[[int], RealFlow], lanes: int
) -> None:
    flow = flows(2)
    abort_one(flow)
    flow.send(30, 1)
    seen: list[str] = []

    def feeds(event: eo.Event) -> None:
        seen.append(event.id)
        if len(seen) < ENDLESS:
            flow.send(1, 1)

    with flow.consumer(effects=eo.Outside(on_doubt="repeat")) as consumer:
        consumer.run(feeds, until=eo.END, lanes=lanes)
    assert 1 <= len(seen) < ENDLESS


def abort_one(flow: RealFlow) -> None:
    """A record of partition 0 that no reader sees, and the mark behind it."""
    settings = {"bootstrap.servers": flow.bootstrap, "transactional.id": flow.topic, "log_level": 0}
    producer = Producer(settings)
    producer.init_transactions(PATIENCE_SECONDS)
    producer.begin_transaction()
    producer.produce(flow.topic, b"aborted", headers=list(id_header("aborted")), partition=0)
    producer.flush(PATIENCE_SECONDS)
    producer.abort_transaction(PATIENCE_SECONDS)
