"""A store that loses its last moments under members that live on: a failover, a restore.

Whoever idles hears of it, and Kafka's word is believed only as far as a store can have given it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

import effectonce as eo
from effectonce.model import Applied, Commit, CommitResult, Committed
from effectonce.ports import KeyValueTx, Store
from effectonce.stores.memory import MemoryStore
from effectonce.stores.rocksdb import RocksDBStore
from tests.unit.lone import (
    IDS,
    Log,
    LogClient,
    SlowPolls,
    StoreWithBackup,
    consumer_of,
    count,
    effects_in,
)

pytestmark = pytest.mark.timeout(30)


def run(log: Log, store: Store) -> None:
    with consumer_of(LogClient(log), store) as consumer:
        consumer.run(count, until=eo.END)


# -- a partition at its end ------------------------------------------------------------------------


def test_a_partition_that_idles_since_it_was_taken_over_hears_that_the_store_went_back() -> None:
    """Nothing ever ran there in this ownership period, so no commit of it can turn out stale."""
    log, store = Log(dict(enumerate(IDS[:2]))), StoreWithBackup()
    run(log, store)
    store.back_up()
    log.ids = dict(enumerate(IDS))
    run(log, store)
    client = SlowPolls(log, seconds=20.0)
    with consumer_of(client, store) as idle:
        client.at_poll = {10: store.go_back, 20: idle.stop}
        idle.run(count)
    assert effects_in(store) == IDS


class StoreThatCounts(MemoryStore):
    applied = 0

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        results = super().commit(commits)
        self.applied += sum(isinstance(result, Applied) for result in results)
        return results


def test_an_idle_partition_costs_a_shared_store_no_writes() -> None:
    """A thousand idle partitions would be a hundred writes a second, for nothing."""
    log, store = Log(), StoreThatCounts()
    client, applied = SlowPolls(log, seconds=20.0), list[int]()
    with consumer_of(client, store) as idle:
        client.at_poll = {n: lambda: applied.append(store.applied) for n in (10, 20)}
        client.at_poll[21] = idle.stop
        idle.run(count)
    assert applied[0] == applied[1] > 0


# -- epochs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [2**64 - 1, 2**64, 10**30])
@pytest.mark.parametrize("embedded", [False, True], ids=["memory", "rocksdb"])
def test_a_witness_of_an_epoch_that_no_store_has_room_for_is_a_strangers_and_stops_nobody(
    embedded: bool, epoch: int, tmp_path: Path
) -> None:
    """Anyone who may commit for the group can write it: it must not break the store at each start.

    The row's own epoch is one: what is believed would have to be outbid.
    """
    log, store = Log(), RocksDBStore(tmp_path) if embedded else MemoryStore()
    run(log, store)
    witness = f"eo1;{store.prepare().hex()};{epoch};{LogClient.topic_id.hex()}"
    log.committed, ran = Committed(2, witness), list[str]()
    log.ids[5] = "one-more"

    def handler(event: eo.Event, tx: eo.KeyValueTx) -> None:
        count(event, tx)
        ran.append(event.id)

    with consumer_of(LogClient(log), store, on_reset="dedupe") as consumer:
        consumer.run(handler, until=eo.END)
    store.close()
    assert ran == ["one-more"]


def take(consumer: eo.OnceConsumer, expected: Sequence[str]) -> None:
    """One batch of them takes effect; that is committed when the next is asked for."""
    batch = list(next(iter(consumer)))
    assert [event.id for event in batch] == expected
    for event in batch:
        with event as tx:
            count(event, cast(KeyValueTx, tx))


def test_an_owner_that_was_frozen_does_not_commit_over_a_successor_of_the_same_epoch() -> None:
    """The store went back and Kafka's offsets are gone: nobody knows that the epoch is not new.

    The two have done as much, so their commits would bear one id, were it counted only.
    """
    ids = [f"id-{n}" for n in range(8)]
    log, store = Log(dict(enumerate(ids[:2]))), StoreWithBackup()
    run(log, store)
    store.back_up()
    log.ids = dict(enumerate(ids))
    with (
        consumer_of(LogClient(log), store) as frozen,
        consumer_of(LogClient(log), store, limits=eo.Limits(batch=1)) as successor,
    ):
        take(frozen, ids[2:4])
        take(frozen, ids[4:6])
        store.go_back()
        log.committed = None
        take(successor, ids[2:3])
        take(successor, ids[3:4])
        frozen.close()  # it thaws, and commits what it holds
        successor.run(count, until=eo.END)
    assert effects_in(store) == ids
