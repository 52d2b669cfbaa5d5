"""`event.maybe_repeated`: whoever runs an effect outside again, and can know, says so.

Nobody takes it back before the record is passed: no orderly stop of a later owner's, no reset of
the offsets, no store that went back to a time before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import effectonce as eo
from effectonce.desk import Desk
from effectonce.model import Commit, CommitResult, Committed
from effectonce.ports import CommitMode, KafkaOffset, Store
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore
from tests.unit.lone import (
    IDS,
    Log,
    LogClient,
    SlowPolls,
    StoreWithBackup,
    consumer_of,
)

pytestmark = pytest.mark.timeout(30)

OUTSIDE = eo.Outside("repeat")
ALL_AT_ONCE = len(IDS)


class Killed(BaseException):
    """As good as SIGKILL: from here on the process writes nothing."""


@contextmanager
def killed_before_it_marks(store: Store) -> Iterator[None]:
    """The handlers are through, and the store never hears of it."""
    real, dead = store.commit, False

    def commit(commits: Sequence[Commit]) -> list[CommitResult]:
        nonlocal dead
        dead = dead or any(each.markers is not None for each in commits)
        if dead:
            raise Killed
        return real(commits)

    with patch.object(store, "commit", commit), pytest.raises(Killed):
        yield


def nothing(event: eo.Event) -> None:
    """An effect outside that nobody looks at."""


def run(log: Log, store: Store, handler: Callable[[eo.Event], None], **policy: Any) -> None:
    client = LogClient(log, a_poll=ALL_AT_ONCE)
    with consumer_of(client, store, effects=OUTSIDE, **policy) as consumer:
        consumer.run(handler, until=eo.END)


# -- an orderly stop -------------------------------------------------------------------------------


@pytest.mark.parametrize("embedded", [False, True], ids=["memory", "rocksdb"])
def test_an_orderly_stop_does_not_take_back_the_doubt_that_a_killed_owner_left(
    embedded: bool, tmp_path: Path
) -> None:
    """One is killed with five effects unmarked; the next runs the first, and stops on SIGTERM."""
    log, store = Log(), RocksDBStore(tmp_path) if embedded else MemoryStore()
    ran: list[str] = []
    with killed_before_it_marks(store):
        run(log, store, lambda event: ran.append(event.id))
    assert ran == IDS
    told: dict[str, bool] = {}
    client = LogClient(log, a_poll=ALL_AT_ONCE)
    with consumer_of(client, store, effects=OUTSIDE) as second:

        def one(event: eo.Event) -> None:
            told[event.id] = event.maybe_repeated
            second.stop()

        second.run(one)
    assert told == {IDS[0]: True}
    run(log, store, lambda event: told.update({event.id: event.maybe_repeated}))
    store.close()
    assert told == dict.fromkeys(IDS, True)


def test_a_killed_owner_that_was_idle_leaves_no_doubt_about_what_comes_after_a_clean_end() -> None:
    """All that it had begun was marked; whoever came next saw that nothing lay ahead."""
    log, store = Log(), MemoryStore()
    with patch.object(Desk, "rest"):
        run(log, store, nothing)
    run(log, store, nothing)
    log.ids = {**log.ids, len(IDS): "new"}
    told: dict[str, bool] = {}
    run(log, store, lambda event: told.update({event.id: event.maybe_repeated}))
    assert told == {"new": False}


def test_of_two_events_that_failed_the_second_is_not_forgotten_at_an_orderly_stop() -> None:
    """The first is done at its next attempt: the second is still ahead, and may have happened."""
    log, store = Log(), MemoryStore()
    client = LogClient(log, a_poll=ALL_AT_ONCE)
    with consumer_of(client, store, effects=OUTSIDE) as consumer:
        for event in next(iter(consumer)):
            if event.id in (IDS[0], IDS[2]):
                event.failed(ValueError("after it had its effect"))
            else:
                event.done()
        for event in next(consumer):
            if event.id == IDS[0]:
                event.done()
    told: list[tuple[str, bool]] = []
    run(log, store, lambda event: told.append((event.id, event.maybe_repeated)))
    assert told == [(IDS[2], True)]


# -- a reset ---------------------------------------------------------------------------------------


def test_a_reset_of_the_offsets_does_not_take_back_the_doubt_that_a_killed_owner_left() -> None:
    log, store = Log(dict(enumerate(IDS[:2]))), MemoryStore()
    run(log, store, nothing)
    log.ids = dict(enumerate(IDS))
    ran: list[str] = []
    with killed_before_it_marks(store):
        run(log, store, lambda event: ran.append(event.id))
    assert ran == IDS[2:]
    log.committed = Committed(1)  # kafka-consumer-groups --reset-offsets
    told: dict[str, bool] = {}
    run(
        log,
        store,
        lambda event: told.update({event.id: event.maybe_repeated}),
        on_reset="dedupe",
    )
    assert told == dict.fromkeys(IDS[2:], True)


# -- a store that went back ------------------------------------------------------------------------


def test_what_a_store_restored_from_a_backup_has_forgotten_is_repeated_with_a_doubt() -> None:
    """Row 8 knows that these ran: Kafka stands behind them, under our name."""
    log, store = Log(dict(enumerate(IDS[:2]))), StoreWithBackup()
    run(log, store, nothing)
    store.back_up()
    log.ids = dict(enumerate(IDS))
    run(log, store, nothing)
    store.go_back()
    told: list[tuple[str, bool]] = []
    run(log, store, lambda event: told.append((event.id, event.maybe_repeated)))
    assert told == [(each, True) for each in IDS[2:]]


def test_where_kafka_has_seen_our_epoch_what_its_owner_ran_is_repeated_with_a_doubt() -> None:
    """The store lost the opening of a killed owner; offsets and position agree (row 9)."""
    log, store = Log(dict(enumerate(IDS[:2]))), StoreWithBackup()
    run(log, store, nothing)
    store.back_up()
    log.ids = dict(enumerate(IDS))
    with killed_before_it_marks(store):
        run(log, store, nothing)
    store.go_back()
    told: list[tuple[str, bool]] = []
    run(log, store, lambda event: told.append((event.id, event.maybe_repeated)))
    assert told == [(each, True) for each in IDS[2:]]


class NeverTold(SlowPolls):
    """Kafka hears of the start only: it cannot know how far we came."""

    def commit(self, offsets: Sequence[KafkaOffset], mode: CommitMode) -> None:
        if mode is CommitMode.SYNC:
            super().commit(offsets, mode)


@pytest.mark.parametrize("client_of", [SlowPolls, NeverTold], ids=["told", "never-told"])
def test_what_a_store_forgets_under_a_running_member_is_repeated_with_a_doubt(
    client_of: type[SlowPolls],
) -> None:
    """Kafka may not have heard of it yet (row 9); the member that ran it knows all the same."""
    log, store = Log(dict(enumerate(IDS[:2]))), StoreWithBackup()
    run(log, store, nothing)
    store.back_up()
    log.ids = dict(enumerate(IDS))
    told: list[tuple[str, bool]] = []
    client = client_of(log, seconds=20.0)
    with consumer_of(client, store, effects=OUTSIDE) as member:
        client.at_poll = {10: store.go_back, 20: member.stop}
        member.run(lambda event: told.append((event.id, event.maybe_repeated)))
    assert told == [(each, again) for again in (False, True) for each in IDS[2:]]
