"""Starts that break off between the row and Kafka; logs that change under a running consumer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import effectonce as eo
from effectonce.errors import BrokerError
from effectonce.testing.servers import KafkaServer
from tests.bad_input.kit import Watch, count, once_each
from tests.proofs.kit import PROTOCOLS, RealFlow


class Dies(BaseException):
    """The process ends here."""


def dies(*_: object) -> None:
    raise Dies


def loses_an_answer() -> Callable[[object], None]:
    """After a commit that was applied; the first time, nobody hears of it."""
    lost = list[str]()

    def after(offsets: object) -> None:
        if offsets and not lost:
            lost.append("this one")
            raise BrokerError("Kafka, commit: Local: Timed out")

    return after


# -- each kind of start that writes a row: what it finds, and what it is told ---------------------


def first(flow: RealFlow) -> Mapping[str, Any]:
    flow.send(4)
    return {}


def adopted(flow: RealFlow) -> Mapping[str, Any]:
    flow.send(4)
    flow.commit_plainly(0)
    return {}


def reset(flow: RealFlow, policy: str) -> Mapping[str, Any]:
    flow.send(4)
    flow.job()
    flow.commit_plainly(0)
    return {"on_reset": policy}


def gap(flow: RealFlow) -> Mapping[str, Any]:
    flow.send(4)
    flow.commit_plainly(0)
    flow.server.delete_records(flow.topic, {0: 2})
    flow.send(2)
    return {"gap": "accept"}


STARTS: Mapping[str, tuple[Callable[[RealFlow], Mapping[str, Any]], int]] = {
    "first": (first, 1),
    "adopted": (adopted, 1),
    "dedupe": (lambda flow: reset(flow, "dedupe"), 1),
    "reprocess": (lambda flow: reset(flow, "reprocess"), 2),
    "skip": (lambda flow: reset(flow, "skip"), 1),
    "gap": (gap, 1),
}


@pytest.mark.parametrize("start", ["adopted", "dedupe", "reprocess", "skip", "gap"])
def test_a_start_that_died_before_kafka_was_told_is_finished_and_not_made_twice(
    flow: RealFlow, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, times = STARTS[start]
    policy = prepare(flow)
    with monkeypatch.context() as patch:
        flow.on_commit(patch, before=dies)
        with pytest.raises(Dies):
            flow.job(**policy)
    flow.job(**policy)
    assert list(flow.effects().values()) == [times] * 4


@pytest.mark.parametrize("start", ["first", "reprocess", "gap"])
def test_a_start_whose_commit_was_applied_and_not_answered_is_finished_and_not_refused(
    flow: RealFlow, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, times = STARTS[start]
    policy = prepare(flow)
    with monkeypatch.context() as patch:
        flow.on_commit(patch, after=loses_an_answer())
        flow.job(**policy)
    flow.job(**policy)
    assert list(flow.effects().values()) == [times] * 4


# -- the log changes -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["range", "kip-848"])
@pytest.mark.parametrize("records", [4, 10], ids=["shorter", "as-long"])
def test_a_topic_made_anew_with_no_more_records_than_were_read_loses_none_of_them(
    flow: RealFlow, records: int, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ever delivered from behind the old position, so only the topic's id tells."""
    monkeypatch.setattr("effectonce.assignment.TOPIC_CHECK_SECONDS", 0.3)
    flow.send(10)
    config = PROTOCOLS[protocol]
    member = flow.member(counting(flow.watch), config=config)
    member.start()
    flow.watch.until(lambda: len(ran(flow)) == 10)
    flow.server.delete_topic(flow.topic)
    flow.server.create_topic(flow.topic)
    flow.send(records)
    flow.watch.until(lambda: len(ran(flow)) == 10 + records or member in flow.watch.of(object))
    member.consumer.stop()
    member.join()
    if member.error is not None:  # it looked while there was no topic, which is a reason to stop
        assert isinstance(member.error, eo.UnknownTopic)
        flow.job(config=config)
    assert flow.effects() == once_each(flow.ids)


def counting(watch: Watch) -> Callable[[eo.Event, eo.KeyValueTx], None]:
    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        watch.note(event.id)

    return handler


def ran(flow: RealFlow) -> list[str]:
    return [each for each in flow.watch.of(str) if each in flow.ids]


def test_row_12_records_gone_under_a_running_consumer_stop_it_or_it_would_jump_over_them(
    flow: RealFlow,
) -> None:
    """librdkafka with `auto.offset.reset=latest` goes on at the end, with a log line only."""
    sparing = {"queued.min.messages": 1, "fetch.message.max.bytes": 10}
    ids = [event_id for _ in range(20) for event_id in flow.send(1)]
    count_and_note = counting(flow.watch)

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        if event.id == ids[0]:
            flow.server.delete_records(flow.topic, {0: 18})
        count_and_note(event, tx)

    with pytest.raises(eo.StartRefused, match="gone by retention") as refusal:
        flow.job(handler, config=sparing, limits=eo.Limits(batch=1))
    assert refusal.value.row == "12"
    before = flow.effects()
    assert before == once_each(ids[: len(before)])
    assert len(before) < 18
    flow.job(gap="accept")
    assert flow.effects() == before + once_each(ids[18:])


def test_row_13_a_partition_restored_from_an_older_copy_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "kafka"
    with KafkaServer.start(home) as server:
        server.create_topic("restored")
        flow = RealFlow(server, "restored", tmp_path / "state", Watch())
        flow.send(4)
        server.stop()
        shutil.copytree(home / "data" / "restored-0", tmp_path / "copy")
        server.restart()
        flow.send(4)
        flow.job()
        server.stop()
        shutil.rmtree(home / "data" / "restored-0")
        shutil.move(tmp_path / "copy", home / "data" / "restored-0")
        server.restart()
        with pytest.raises(eo.StartRefused, match="position is 8 and the log ends at 4") as refusal:
            flow.job()
    assert refusal.value.row == "13"
    assert flow.effects() == once_each(flow.ids)
