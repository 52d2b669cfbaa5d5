"""The start table on Apache Kafka: every disagreement that can be brought about there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import effectonce as eo
from effectonce.aiokafka_client import AiokafkaClient
from effectonce.hooks import BatchCommitted, PartitionBegan, PartitionStalled
from effectonce.model import NO_ID, LogEnds
from effectonce.policy import Window
from effectonce.ports import KafkaOffset
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore
from tests.bad_input.kit import id_header, once_each
from tests.proofs.kit import RealFlow


def refused(flow: RealFlow, row: str, **policy: Any) -> str:
    """A start that must be refused by this row; returns what it says."""
    before = flow.effects() if flow.state.exists() else None
    with pytest.raises(eo.StartRefused) as refusal:
        flow.job(**policy)
    assert refusal.value.row == row
    assert "Nothing was run" in str(refusal.value)
    assert before is None or flow.effects() == before
    return str(refusal.value)


def test_row_1_and_4_a_topic_recreated_between_runs_begins_at_its_start_or_events_are_lost(
    flow: RealFlow,
) -> None:
    old = flow.send(10)
    flow.job()
    flow.server.delete_topic(flow.topic)
    flow.server.create_topic(flow.topic, 1)
    new = flow.send(4)
    for repeat in old[:3]:
        flow.produce(b"payload of " + repeat.encode(), headers=id_header(repeat))
    flow.job()
    assert flow.rows() == ["5", "4"]
    assert flow.effects() == once_each(old + new), "markers are kept, new events run"


@pytest.mark.confluent  # aiokafka sees at once that the topic is gone, and that is a reason to stop
def test_row_4_a_topic_recreated_under_a_running_consumer_loses_no_event(flow: RealFlow) -> None:
    old = flow.send(10)
    with flow.member():
        flow.watch.until(lambda: passed(flow) == 10)
        flow.server.delete_topic(flow.topic)
        flow.server.create_topic(flow.topic, 1)
        for repeat in old[:3]:
            flow.produce(b"payload of " + repeat.encode(), headers=id_header(repeat))
        new = flow.send(15)
        flow.watch.until(lambda: flow.rows()[-1] == "4", seconds=60)
        flow.watch.until(lambda: sum(b.fresh for b in flow.watch.of(BatchCommitted)) == 25)
    assert flow.effects() == once_each(old + new)


def passed(flow: RealFlow) -> int:
    return sum(batch.delivered for batch in flow.watch.of(BatchCommitted))


def test_row_1_a_witness_of_a_deleted_topic_is_not_taken_for_a_lost_store(flow: RealFlow) -> None:
    """This broker forgets a group's offsets with the topic; a late commit brings one back."""
    flow.send(5)
    flow.job()
    old = flow.committed()
    assert old is not None
    shutil.rmtree(flow.partition_folder())
    flow.server.delete_topic(flow.topic)
    flow.server.create_topic(flow.topic, 1)
    new = flow.send(7)
    assert flow.committed() is None
    flow.commit_plainly(old.offset, metadata=old.metadata)
    flow.job()
    assert (flow.rows(), flow.effects()) == (["5", "5"], once_each(new))


def test_row_2_a_lost_state_directory_is_refused_or_its_events_would_repeat(
    flow: RealFlow,
) -> None:
    flow.send(5)
    flow.job()
    shutil.rmtree(flow.state)
    assert 'moved="accept"' in refused(flow, "2")


@pytest.mark.confluent
def test_row_2_moved_accept_goes_on_where_kafka_stands(flow: RealFlow) -> None:
    flow.send(5)
    flow.job()
    shutil.rmtree(flow.state)
    new = flow.send(3)
    flow.job(moved="accept")
    assert (flow.rows(), flow.effects()) == (["5", "2"], once_each(new))
    assert flow.position().horizon == 5


@pytest.mark.confluent
def test_row_2_a_partition_directory_of_another_store_is_refused(flow: RealFlow) -> None:
    flow.send(5)
    flow.job()
    other = flow.state.parent / "other"
    shutil.move(flow.state, other)
    flow.job(moved="accept")
    shutil.rmtree(flow.partition_folder())
    shutil.copytree(
        other / flow.partition_folder().relative_to(flow.state), flow.partition_folder()
    )
    assert "copied here alone" in refused(flow, "2", moved="accept")


def test_row_2_a_shared_store_that_was_swapped_is_refused_whatever_was_accepted(
    flow: RealFlow,
) -> None:
    store, ran = MemoryStore(), list[str]()
    flow.send(3)
    flow.job(noting(ran), store=store)
    flow.send(2)
    refused(flow, "2", store=MemoryStore(), moved="accept")
    flow.job(noting(ran), store=store)
    assert ran == flow.ids


@pytest.mark.confluent
def test_row_3_a_lost_partition_directory_is_refused_until_it_is_back(flow: RealFlow) -> None:
    ids = flow.send(5)
    flow.job()
    kept = flow.state.parent / "kept"
    shutil.move(flow.partition_folder(), kept)
    member = flow.member()
    member.start()
    member.join()  # by itself: no partition is left
    assert isinstance(member.error, eo.StartRefused)
    assert member.error.row == "3"
    shutil.rmtree(flow.partition_folder())
    shutil.move(kept, flow.partition_folder())
    more = flow.send(2)
    flow.job()
    assert flow.effects() == once_each(ids + more)


def test_row_5_earliest_is_the_default_or_a_new_group_would_skip_its_backlog(
    flow: RealFlow,
) -> None:
    ids = flow.send(3)
    flow.job()
    assert (flow.rows(), flow.effects()) == (["5"], once_each(ids))


def test_row_5_latest_skips_the_backlog_of_every_partition_and_nothing_after(
    flows: Callable[[int], RealFlow],
) -> None:
    flow = flows(4)
    for partition in range(4):
        flow.send(3, partition)
    with flow.member(start="latest"), flow.member(start="latest"):
        flow.watch.until(lambda: len({b.at for b in flow.watch.of(PartitionBegan)}) == 4)
        new = [each for partition in range(4) for each in flow.send(2, partition)]
        flow.watch.until(lambda: passed(flow) == len(new))
    assert flow.effects() == once_each(new)


def test_row_5_a_partition_added_later_begins_at_its_first_record_under_latest(
    flow: RealFlow,
) -> None:
    flow.send(3)
    flow.job(start="latest")
    flow.grow(2)
    new = flow.send(4, partition=1)
    flow.job(start="latest")
    assert flow.effects() == once_each(new)


def test_row_5_a_crash_before_kafka_was_told_begins_at_the_same_place(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.send(3)
    with monkeypatch.context() as patch:
        flow.on_commit(patch, before=crashing(above=-1))
        with pytest.raises(Crash):
            flow.job()
    assert flow.committed() is None
    assert flow.position().next == 0, "the row was written"
    flow.job()
    assert flow.rows() == ["7"]
    assert flow.effects() == once_each(flow.ids)


class Crash(BaseException):
    """What no handler of errors catches: the process is as good as gone."""


def crashing(above: int) -> Callable[[Sequence[KafkaOffset]], None]:
    """A commit to Kafka that the process does not survive, if it tells of more than `above`."""

    def crash(offsets: Sequence[KafkaOffset]) -> None:
        if any(told.offset > above for told in offsets):
            raise Crash

    return crash


def test_row_6_a_plain_group_is_adopted_where_it_stands(flow: RealFlow) -> None:
    flow.send(5)
    flow.commit_plainly(3)
    flow.job()
    assert (flow.rows(), flow.effects()) == (["6"], once_each(flow.ids[3:]))


@pytest.mark.confluent
def test_row_7_a_deleted_group_is_refused_by_an_embedded_store(flow: RealFlow) -> None:
    flow.send(3)
    flow.job()
    flow.delete_group()
    assert "--reset-offsets" in refused(flow, "7")
    flow.reset("--to-offset", "3")
    new = flow.send(2)
    flow.job(on_reset="dedupe")
    assert flow.effects() == once_each(flow.ids[:3] + new)


def test_row_7_a_deleted_group_goes_on_with_a_shared_store(flow: RealFlow) -> None:
    store, ran = MemoryStore(), list[str]()
    note = noting(ran)
    flow.send(3)
    flow.job(note, store=store)
    flow.delete_group()
    flow.send(2)
    flow.job(note, store=store)
    assert (flow.rows(), ran) == (["5", "7"], flow.ids)


def noting(ran: list[str]) -> Callable[[eo.Event, eo.KeyValueTx], None]:
    return lambda event, tx: ran.append(event.id)


def test_row_8_an_old_copy_of_the_store_is_loud_and_its_effects_stay_consistent(
    flow: RealFlow, caplog: pytest.LogCaptureFixture
) -> None:
    first = flow.send(5)
    flow.job()
    copy = flow.state.parent / "copy"
    shutil.copytree(flow.state, copy)
    second = flow.send(5)
    flow.job()
    assert flow.effects() == once_each(first + second)
    shutil.rmtree(flow.state)
    shutil.move(copy, flow.state)
    assert flow.effects() == once_each(first), "the effects went back with the copy"
    with caplog.at_level(logging.WARNING, "effectonce"):
        flow.job()
    assert flow.rows()[-1] == "8"
    assert "older than Kafka's witness" in caplog.text
    assert flow.effects() == once_each(first + second)


def test_row_9_kafka_lags_after_a_kill_and_the_store_is_believed(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.send(5)
    with monkeypatch.context() as patch:
        flow.on_commit(patch, before=crashing(above=0))
        with pytest.raises(Crash):
            flow.job()
    told = flow.committed()
    assert told is not None
    assert told.offset == 0
    stood = flow.position().next
    assert stood > 0
    flow.job()
    assert (flow.rows()[-1], flow.effects()) == ("9", once_each(flow.ids))
    assert began_at(flow) == stood, "markers would hide a step back to what Kafka knew"


def began_at(flow: RealFlow) -> int:
    return int(flow.watch.of(PartitionBegan)[-1].offset)


def test_row_10_a_foreign_commit_of_the_same_offset_is_no_reset_of_a_shared_store(
    flow: RealFlow,
) -> None:
    store, ran = MemoryStore(), list[str]()
    flow.send(3)
    flow.job(noting(ran), store=store)
    flow.commit_plainly(3)
    flow.send(1)
    flow.job(noting(ran), store=store)
    assert (flow.rows(), ran) == (["5", "10"], flow.ids)


@pytest.mark.parametrize(("on_reset", "runs"), [("reprocess", 1), ("skip", 0)])
def test_row_10_a_crash_before_kafka_was_told_answers_a_reset_once(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch, on_reset: str, runs: int
) -> None:
    flow.send(4)
    flow.job()
    flow.reset("--to-offset", "1")
    with monkeypatch.context() as patch:
        flow.on_commit(patch, before=crashing(above=-1))
        with pytest.raises(Crash):
            flow.job(on_reset=on_reset)
    told = flow.committed()
    assert (told.offset if told else None) == 1, "Kafka was not told"
    stood = flow.position().next
    flow.job(on_reset=on_reset)
    assert (flow.rows()[-1], began_at(flow)) == ("10", stood)
    assert flow.position().run == runs


def test_row_11_a_reset_is_refused_until_somebody_says_what_is_meant(flow: RealFlow) -> None:
    flow.send(6)
    flow.job()
    flow.reset("--to-offset", "2")
    text = refused(flow, "11")
    assert all(f'"{word}"' in text for word in ("dedupe", "reprocess", "skip"))


def test_row_11_dedupe_goes_back_and_answers_what_took_effect(flow: RealFlow) -> None:
    flow.send(6)
    flow.job()
    flow.reset("--to-earliest")
    new = flow.send(1)
    flow.job(on_reset="dedupe")
    assert flow.effects() == once_each(flow.ids)
    repeats = sum(batch.repeats for batch in flow.watch.of(BatchCommitted))
    assert (repeats, len(new)) == (6, 1)


@pytest.mark.confluent
def test_row_11_dedupe_below_the_first_marker_is_refused_or_effects_would_repeat(
    flow: RealFlow,
) -> None:
    flow.send(5)
    flow.commit_plainly(3)
    flow.job()
    flow.reset("--to-offset", "1")
    assert "markers only from 3 on" in refused(flow, "11", on_reset="dedupe")


def test_row_11_reprocess_runs_everything_again_as_a_new_run(flow: RealFlow) -> None:
    flow.send(6)
    flow.job()
    flow.reset("--to-offset", "2")
    flow.job(on_reset="reprocess")
    effects = flow.effects()
    assert [effects[each] for each in flow.ids] == [1, 1, 2, 2, 2, 2]
    assert flow.position().run == 1
    flow.job()
    assert flow.effects() == effects, "once only, though the option may stay"


@pytest.mark.confluent
def test_row_11_skip_follows_forward_and_ignores_backward(flow: RealFlow) -> None:
    flow.send(4)
    flow.job()
    flow.reset("--to-offset", "1")
    flow.job(on_reset="skip")
    assert (began_at(flow), flow.effects()) == (4, once_each(flow.ids))
    skipped, new = flow.send(2), flow.send(2)
    flow.reset("--to-offset", "6")
    flow.job(on_reset="skip")
    assert flow.effects() == once_each([*flow.ids[:4], *new])
    assert len(skipped) == 2


def test_row_12_records_gone_by_retention_are_refused_or_accepted_by_name(
    flow: RealFlow,
) -> None:
    flow.send(4)
    flow.job()
    flow.send(4)
    flow.server.delete_records(flow.topic, {0: 6})
    assert "2 records from 4 to 5 are gone" in refused(flow, "12")
    flow.job(gap="accept")
    assert flow.effects() == once_each(flow.ids[:4] + flow.ids[6:])


def test_row_13_a_log_that_ends_before_the_position_is_refused(
    flow: RealFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One broker never loses its tail, so the client is told of an earlier end."""
    flow.send(3)
    flow.job()

    async def cut_off(*_: object) -> LogEnds:
        return LogEnds(0, 2)

    is_async = flow.client is AiokafkaClient
    monkeypatch.setattr(flow.client, "log_ends", cut_off if is_async else lambda *_: LogEnds(0, 2))
    assert "cut off" in refused(flow, "13")


def test_a_changed_identity_is_refused_or_every_event_would_look_new(flow: RealFlow) -> None:
    flow.send(3)
    flow.job()
    other = eo.header("other-id") | eo.header("event-id")
    refused(flow, "identify", identify=other)
    new = flow.send(2)
    flow.job(identify=other.replaces(eo.header("event-id")))
    assert flow.effects() == once_each(flow.ids[:3] + new)


@pytest.mark.confluent
def test_a_changed_window_is_refused_or_its_generations_would_be_dropped(flow: RealFlow) -> None:
    flow.send(2)
    flow.job()
    refused(flow, "window", window=Window().length * 2)


def test_a_refused_partition_stops_alone_and_frees_its_lock(
    flows: Callable[[int], RealFlow], tmp_path: Path
) -> None:
    flow = flows(2)
    flow.send(2, 0)
    flow.send(2, 1)
    flow.job()
    shutil.move(flow.partition_folder(0), tmp_path / "lost")
    new = flow.send(3, 1)
    with flow.member():
        flow.watch.until(lambda: flow.watch.of(PartitionStalled))
        flow.watch.until(lambda: passed(flow) == 7)
        # the member lives on, and whoever mends the directory must not find its LOCK held
        mender = RocksDBStore(flow.state)
        assert mender.open(flow.at(0), NO_ID).row is None
        mender.close()
    (stalled,) = flow.watch.of(PartitionStalled)
    assert isinstance(stalled.error, eo.StartRefused)
    assert (stalled.error.row, stalled.at.number) == ("3", 0)
    assert flow.effects() == once_each(flow.ids[2:4] + new)
