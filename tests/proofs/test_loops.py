"""Your own loop, batches, ends of logs: what a consumer of Apache Kafka must not lose or repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from confluent_kafka import Producer

import effectonce as eo
from tests.bad_input.kit import PATIENCE_SECONDS, count, id_header, once_each
from tests.proofs.kit import RealFlow


def test_leaving_a_loop_early_commits_what_ended_and_never_what_was_not_entered(
    flow: RealFlow,
) -> None:
    ids = flow.send(5)
    with flow.consumer() as consumer:
        for batch in consumer:
            for event in batch:
                with event as tx:
                    count(event, cast(eo.KeyValueTx, tx))
                if event.id == ids[1]:
                    break
            break
    assert flow.effects() == once_each(ids[:2])
    assert flow.position().next == 2
    flow.job()
    assert flow.effects() == once_each(ids)


def test_an_event_entered_twice_takes_effect_once(flow: RealFlow) -> None:
    ids = flow.send(1)
    with flow.consumer() as consumer:
        batch = next(iter(consumer))
        with batch[0] as tx:
            count(batch[0], cast(eo.KeyValueTx, tx))
        with pytest.raises(RuntimeError, match="takes effect once"), batch[0]:
            pass
    assert flow.effects() == once_each(ids)


def test_done_and_then_raised_has_failed_and_failed_and_then_done_stays_failed(
    flow: RealFlow,
) -> None:
    ids = flow.send(2)
    with flow.consumer() as consumer:
        batch = next(iter(consumer))
        with pytest.raises(ZeroDivisionError), batch[0] as tx:  # noqa: PT012 - all of it
            count(batch[0], cast(eo.KeyValueTx, tx))
            batch[0].done()
            raise ZeroDivisionError
        with batch[1] as tx:
            count(batch[1], cast(eo.KeyValueTx, tx))
            batch[1].failed(ValueError("no"))
            batch[1].done()
    assert not flow.effects()
    flow.job()
    assert flow.effects() == once_each(ids)


def test_an_ignored_event_writes_nothing_and_leaves_no_marker(flow: RealFlow) -> None:
    (ignored,) = flow.send()

    def ignore(event: eo.Event, tx: eo.KeyValueTx) -> object:
        count(event, tx)
        return eo.IGNORED

    flow.job(ignore)
    assert flow.position().next == 1
    assert not flow.effects()
    flow.produce(b"payload of " + ignored.encode(), headers=id_header(ignored))
    flow.job()
    assert flow.effects() == once_each([ignored]), "no marker answered for it"


def test_a_job_ends_behind_transaction_markers_and_aborted_events_take_no_effect(
    flow: RealFlow,
) -> None:
    def send(event_id: str) -> None:
        producer.produce(flow.topic, b"v", headers=list(id_header(event_id)), partition=0)

    with transactions(flow) as producer:
        producer.begin_transaction()
        send("committed")
        producer.commit_transaction(PATIENCE_SECONDS)
        producer.begin_transaction()
        send("aborted")
        producer.flush(PATIENCE_SECONDS)
        producer.abort_transaction(PATIENCE_SECONDS)
    flow.job()
    assert flow.effects() == once_each(["committed"])
    later = flow.send(1)
    flow.job()
    assert flow.effects() == once_each(["committed", *later])


@contextmanager
def transactions(flow: RealFlow) -> Iterator[Producer]:
    producer = Producer({"bootstrap.servers": flow.bootstrap, "transactional.id": flow.group})
    producer.init_transactions(PATIENCE_SECONDS)
    yield producer
