"""The driver over a store that answers later: what must not wait, nor be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

import effectonce as eo
from effectonce.assignment import Assignment
from effectonce.core.start import read_witness
from effectonce.desk import Desk
from effectonce.keeper import SystemClock
from effectonce.model import Partition
from effectonce.now import OursNow, now, store_now
from effectonce.owned import Owned
from effectonce.ports import Records
from tests.unit.lone import (
    HOME,
    IDS,
    TOPIC,
    FarStore,
    Log,
    LogClient,
    consumer_of,
    count,
    effects_in,
)

pytestmark = pytest.mark.timeout(30)


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
