"""The driver over a store that answers later: what must not wait, nor be forgotten."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import cast

import numpy as np
import pytest

import effectonce as eo
from effectonce.asking import FRESH_SECONDS
from effectonce.assignment import Assignment
from effectonce.core.start import read_witness
from effectonce.desk import Desk
from effectonce.errors import StoreError, StoreUnavailable
from effectonce.identity import Identity
from effectonce.keeper import SystemClock
from effectonce.model import (
    NO_ID,
    Applied,
    Commit,
    CommitResult,
    Ending,
    Known,
    Markers,
    Opened,
    Partition,
    Position,
    Query,
    Unknown,
)
from effectonce.now import OursNow, now, store_now
from effectonce.owned import Owned, Stage
from effectonce.ports import Records, TopicPartition
from effectonce.testing.owner import Owner
from tests.unit.lone import (
    HOME,
    IDS,
    TOPIC,
    FarStore,
    Handmade,
    Log,
    LogClient,
    LogsClient,
    SomeRecords,
    consumer_of,
    count,
    effects_in,
)

pytestmark = pytest.mark.timeout(30)
REPEAT = eo.Outside(on_doubt="repeat")


class NewTopic(LogClient):
    """The topic is made anew, with the same records, while they flow without a pause."""

    made_anew = b"U" * 16
    polls = 0

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.polls += 1
        if self.polls == 3 and self._listener is not None:
            self.topic_id = self.made_anew
            ours = cast(Assignment, cast(OursNow, self._listener)._ours)
            now(ours.check_topics)
        return super().fetch(limit, timeout_seconds)


def test_a_topic_made_anew_is_begun_while_records_flow_or_its_first_would_wait_for_a_pause() -> (
    None
):
    log = Log(dict(enumerate(f"{n:04}" for n in range(100))))
    offsets: list[int] = []

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        offsets.append(event.offset)
        if len(offsets) == 12:
            consumer.stop()

    with consumer_of(NewTopic(log), FarStore()) as consumer:
        consumer.run(handler)
    assert log.committed is not None
    witness = read_witness(log.committed.metadata)
    assert witness is not None
    assert witness.topic_id == NewTopic.made_anew


def test_a_loop_that_ends_has_its_last_commit_answered_or_it_would_not_hear_of_a_failure() -> None:
    store = FarStore()
    consumer = consumer_of(LogClient(Log()), store)
    for batch in consumer:
        for event in batch:
            with event as tx:
                count(event, cast(eo.KeyValueTx, tx))
        consumer.stop()
    assert effects_in(store) == IDS[:2]
    consumer.close()


def test_a_revoke_beside_a_commit_that_is_being_sent_does_not_forget_it() -> None:
    """It finds nothing on its way, and the other thread sends before it goes on.

    Forgotten, the next batch would follow the row before it, and pass it if it had not arrived.
    """
    owned = Owned(Partition("billing", "billing", TOPIC, 0), assigned_at=0.0)

    class Interrupted(Desk):
        """The GIL changes hands just when `_sent` was read."""

        def __getattribute__(self, name: str) -> object:
            found = object.__getattribute__(self, name)
            if name == "_sent" and found is None:
                self._sent = owned
            return found

    once = eo.Once(FarStore(), identify=eo.header("event-id"), effects=eo.InStore())
    desk = Interrupted(once, store_now(once.store), SystemClock(), tuple)
    now(desk.collect)
    assert desk._sent is owned


def test_a_revoke_beside_a_handler_that_returns_does_not_fail() -> None:
    """The keeper's thread saw that it was busy, and a moment later it no longer was."""

    class Returning(Assignment):
        def __getattribute__(self, name: str) -> object:
            found = object.__getattribute__(self, name)
            if name == "busy":
                self.busy = None
            return found

    consumer = consumer_of(LogClient(Log()), FarStore())

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        ours = consumer._assignment
        ours.__class__ = Returning
        now(ours.on_revoked, [HOME])
        ours.__class__ = Assignment
        assert ours.fatal is None
        consumer.stop()

    consumer.run(handler)
    consumer.close()


class Recorded(FarStore):
    """Notes what is asked of it, and when the answer is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def ask(self, query: Query) -> Callable[[], Known | StoreError]:
        answer = super().ask(query)
        self.log.append("ask")

        def taken() -> Known | StoreError:
            self.log.append("answer")
            return answer()

        return taken


class RecordedPolls(LogClient):
    def __init__(self, log: Log, store: Recorded) -> None:
        super().__init__(log)
        self._notes = store.log

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        found = super().fetch(limit, timeout_seconds)
        self._notes.append(f"fetch {sum(map(len, found))}")
        return found


def test_records_are_fetched_while_the_last_are_looked_up_or_a_batch_waits_for_the_way_twice() -> (
    None
):
    store = Recorded()
    with consumer_of(RecordedPolls(Log(), store), store) as consumer:
        consumer.run(count, until=eo.END)
    assert effects_in(store) == IDS
    begun = store.log.index("fetch 2")
    assert store.log[begun : begun + 9] == [
        *("fetch 2", "ask", "fetch 2", "ask", "answer"),
        *("fetch 1", "ask", "answer", "fetch 0"),
    ]


def test_what_is_marked_on_the_ordinary_way_behind_a_look_up_is_not_called_new() -> None:
    """The copy is asked for before the first is marked, with a commit that cannot be sent ahead."""
    store, failed = FarStore(), list[str]()

    def handler(event: eo.Event) -> None:
        if event.id == IDS[1] and not failed:
            failed.append(event.id)
            raise ValueError("once")
        ran.append(event.id)

    ran: list[str] = []
    log = Log(dict(enumerate((IDS[0], IDS[1], IDS[0], IDS[2]))))
    with consumer_of(LogClient(log), store, effects=REPEAT) as consumer:
        consumer.run(handler, until=eo.END)
    assert failed
    assert ran == IDS[:3]


@pytest.mark.parametrize("seconds", [0.001, 0.1], ids=["quick", "slow"])
def test_behind_a_slow_handler_it_is_asked_again_or_what_others_did_meanwhile_would_run_again(
    seconds: float,
) -> None:
    store, clock, ran = FarStore(), Handmade(), list[str]()
    log = Log(dict(enumerate(IDS[:4])))
    client = LogClient(log)
    client.clock = clock

    def handler(event: eo.Event) -> None:
        if event.id == IDS[0]:
            clock.now += seconds
            mark_elsewhere(store, IDS[2])
        ran.append(event.id)

    with consumer_of(client, store, effects=REPEAT) as consumer:
        consumer.run(handler, until=eo.END)
    assert ran == ([IDS[0], IDS[1], IDS[3]] if seconds > FRESH_SECONDS else IDS[:4])


class Stalled(FarStore):
    """The way back from the server takes a second, once: a packet was lost."""

    clock = Handmade()
    stalls = True

    def ask(self, query: Query) -> Callable[[], Known | StoreError]:
        answer = super().ask(query)

        def take() -> Known | StoreError:
            found = answer()
            if self.stalls and len(query.keys) == 2 and not mark_of(query, IDS[0]):
                self.stalls = False
                mark_elsewhere(self, IDS[2])
                self.clock.now += 1.0
            return found

        return take


def mark_of(query: Query, event_id: str) -> bool:
    found = Identity(eo.header("event-id")).identify(SomeRecords([(0, event_id)]))
    return bool((query.keys == found.keys).all(axis=1).any())


def test_an_answer_that_was_long_on_its_way_is_asked_for_again() -> None:
    store, ran = Stalled(), list[str]()
    client = LogClient(Log(dict(enumerate(IDS[:4]))))
    client.clock = store.clock
    with consumer_of(client, store, effects=REPEAT) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END)
    assert not store.stalls
    assert ran == [IDS[0], IDS[1], IDS[3]]


def mark_elsewhere(store: FarStore, event_id: str) -> None:
    """Another member has just done a copy, in its own partition."""
    owner = Owner.open(store, Partition("billing", "billing", TOPIC, 1))
    found = Identity(eo.header("event-id")).identify(SomeRecords([(0, event_id)]))
    markers = Markers(found.keys, found.fingerprints, np.zeros(1, np.int64))
    assert store.commit([replace(owner.prepared([1]), markers=markers)]) == [Applied()]


class RevokedBehind(LogClient):
    """All is revoked by the first poll behind a look-up, and given again by the next one."""

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self.revokes_at = 3

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.revokes_at -= 1
        if not self.revokes_at and self._listener is not None:
            self._listener.on_revoked([HOME])
            self._assigned = False
            return ()
        return super().fetch(limit, timeout_seconds)


def test_records_revoked_while_they_are_looked_up_do_not_run_without_an_owner() -> None:
    store, owners = FarStore(), list[int]()

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        owners.append(len(consumer.health().partitions))
        count(event, tx)

    with consumer_of(client := RevokedBehind(Log()), store) as consumer:
        consumer.run(handler, until=eo.END)
    assert client.revokes_at < 0
    assert owners == [1] * len(IDS)
    assert effects_in(store) == IDS


def test_a_look_up_that_left_before_a_commit_was_sent_again_is_not_believed() -> None:
    """What that one marks is new to it, and pending no more: a copy would run again."""
    copy = SomeRecords([(0, IDS[0])], partition=1)
    once = eo.Once(FarStore(), identify=eo.header("event-id"), effects=REPEAT)
    here, there = (begun(once, number) for number in (0, 1))
    desk = Desk(once, store_now(once.store), SystemClock(), lambda: (here, there))
    task = now(desk.decide, here, SomeRecords([(0, IDS[0])]))
    assert task is not None
    task.work.endings[:] = Ending.DONE
    now(desk.conclude, task)
    assert here.unsent is not None
    here.unsent = replace(here.unsent, receipt=None)  # it was not answered, and did not arrive
    desk._sent = None
    once.store._on_its_way.clear()  # type: ignore[attr-defined]
    there.held.append(copy)
    assert desk.ask(there)
    now(desk.resend, here)
    task = now(desk.decide, there, there.held.popleft())
    assert task is not None
    assert not len(task.plan.runs)


def begun(once: eo.Once, number: int) -> Owned:
    at = Partition("billing", "billing", TOPIC, number)
    owned = Owned(at, assigned_at=0.0, stage=Stage.RUNNING, counted=True)
    opened = once.store.open(at, LogClient.topic_id)
    position = Position(
        once.store.prepare(), LogClient.topic_id, opened.epoch, next=0, commit_id=NO_ID
    )
    assert once.store.commit([Commit(at, NO_ID, position)]) == [Applied()]
    owned.position = position
    return owned


FLOWS, OTHER = HOME, (TOPIC, 1)


class TwoPartitions(LogsClient):
    """One with a backlog, two records a poll; and another with a few."""

    def __init__(self) -> None:
        super().__init__({FLOWS: Log(numbered(0, 200)), OTHER: Log(numbered(1_000, 12))})

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        if not self._assigned and self._listener is not None:
            self._assigned = True
            self._listener.on_assigned([*self.logs])
            return ()
        got = []
        for home in (home for home in self.logs if home not in self.paused):
            found = self.logs[home].read(self.next[home], self._a_poll)
            if found.rows:
                self.next[home] = found.rows[-1][0] + 1
                got.append(replace(found, partition=home[1]))
        return got


def numbered(first: int, count: int) -> dict[int, str]:
    return {n: str(uuid.UUID(int=first + n)) for n in range(count)}


class OnceTroubled(FarStore):
    """The first open, or commit, of the other partition fails."""

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.trouble = trouble

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        if self.trouble == "open" and at.number == OTHER[1]:
            self.trouble = ""
            raise StoreUnavailable("not now")
        return super().open(at, topic_id, above=above)

    def send(self, commit: Commit) -> Callable[[], CommitResult]:
        if self.trouble == "commit" and commit.at.number == OTHER[1]:
            self.trouble = ""
            return lambda: Unknown(StoreUnavailable("cut off"))
        return super().send(commit)


@pytest.mark.parametrize("trouble", ["handler", "open", "commit"])
def test_a_partition_in_trouble_goes_on_beside_a_backlog_or_it_would_wait_for_all_of_it(
    trouble: str,
) -> None:
    order, store = list[int](), OnceTroubled(trouble)

    def handler(event: eo.Event) -> None:
        if store.trouble == "handler" and event.partition == OTHER[1]:
            store.trouble = ""
            raise ValueError("once")
        order.append(event.partition)
        clock.now += 0.01

    client, clock = TwoPartitions(), Handmade()
    client.clock = clock
    waits = timedelta(milliseconds=20)
    retry = eo.Retry(wait_initial=waits, wait_max=waits)
    with consumer_of(client, store, effects=REPEAT, retry=retry) as consumer:
        consumer.run(handler, until=eo.END)
    assert (store.trouble, len(order)) == ("", 212)
    assert max(at for at, number in enumerate(order) if number == OTHER[1]) < 150


class LongPolls(TwoPartitions):
    """Each takes two seconds, and brings records of both partitions."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.handmade = Handmade()
        self.pauses: list[TopicPartition] = []

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.handmade.now += 2.0
        return super().fetch(limit, timeout_seconds)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        super().pause(partitions)
        self.pauses += partitions


def test_a_poll_that_lasted_was_not_long_ago_or_all_would_be_paused_and_fetched_again() -> None:
    client, ran = LongPolls(), list[int]()

    def handler(event: eo.Event) -> None:
        if not ran:
            client.pauses.clear()  # those of the start
        ran.append(event.offset)
        if len(ran) == 40:
            consumer.stop()

    with consumer_of(client, FarStore(), effects=REPEAT) as consumer:
        consumer.run(handler)
        assert client.pauses == []
