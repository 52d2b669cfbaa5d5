"""What is known before the first delivery: the same keys in every store, put there beforehand.

A store of ours is filled by the library's own decisions and its own commit, 500 markers at a time,
as a consumer would have done it. With RocksDB each run then works on a copy of that folder, as on a
restored backup; Valkey is filled anew for each. The rows say that they were written for an earlier
topic of the same name, so each consumer takes row 4 of the start table: the topic was created anew,
its markers are kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np
from redis import Redis

import effectonce as eo
from benchmarks.loads import HEADER, PARTITIONS, VALUE, partition_of
from effectonce.core.plan import Columns, plan
from effectonce.core.settle import FIRST_SERIAL, Ended, Moment, commit_id, settle
from effectonce.model import (
    NO_ID,
    Applied,
    Commit,
    Ending,
    Offsets,
    Partition,
    Position,
    Query,
)
from effectonce.stores.redis import RedisStore
from effectonce.stores.rocksdb import RocksDBStore

GROUP: Final = "bench"
BATCH: Final = 500
TTL_SECONDS: Final = 7 * 86_400
"""As long as the library's default window."""

_STORE_ID: Final = "effectonce:id"
_FORMER_TOPIC: Final = bytes(15) + b"\1"


def once_on(state: str) -> eo.Once:
    """The configuration that is measured; `state` is a folder, or the URL of a Valkey."""
    return eo.Once(
        RedisStore(state) if "://" in state else RocksDBStore(state),
        identify=eo.header(HEADER),
        effects=eo.Outside(on_doubt="repeat"),
        scope="bench",
    )


class _Records:
    """Records of one partition, as far as identity reads them."""

    def __init__(self, at: Partition, offset: int, ids: Sequence[str]) -> None:
        self.topic, self.partition = at.topic, at.number
        self._offset = offset
        self._ids = [each.encode() for each in ids]

    def __len__(self) -> int:
        return len(self._ids)

    def offsets(self) -> Offsets:
        return np.arange(self._offset, self._offset + len(self), dtype=np.int64)

    def values(self) -> Sequence[bytes | None]:
        return [VALUE] * len(self)

    def keys(self) -> Sequence[bytes | None]:
        return self._ids

    def headers(self) -> Sequence[Sequence[tuple[str, bytes | None]]]:
        return [((HEADER, each),) for each in self._ids]


def fill(state: str, topic: str, ids: Sequence[str]) -> None:
    """A store in which these events took effect, each in the partition of its ID."""
    if "://" in state:
        flush(state)
    once = once_on(state)
    homes: list[list[str]] = [[] for _ in range(PARTITIONS)]
    for event_id in ids:
        homes[partition_of(event_id)].append(event_id)
    for number, home in enumerate(homes):
        _fill_partition(once, Partition("bench", GROUP, topic, number), home)
    once.store.close()


def _fill_partition(once: eo.Once, at: Partition, ids: Sequence[str]) -> None:
    store_id = once.store.prepare()
    epoch = once.store.open(at, _FORMER_TOPIC).epoch
    position = Position(
        store_id,
        _FORMER_TOPIC,
        epoch,
        next=0,
        commit_id=commit_id(epoch, 0),
        identify_fingerprint=once.start_policy.identify_fingerprint,
        window_seconds=once.window.seconds,
    )
    _commit(once, Commit(at, NO_ID, position))
    for serial, start in enumerate(range(0, len(ids), BATCH), FIRST_SERIAL):
        records = _Records(at, start, ids[start : start + BATCH])
        identified = once.identity.identify(records)
        columns = Columns(at, records.offsets(), identified.keys, identified.fingerprints)
        (known,) = once.store.lookup([Query(at, columns.keys, run=0)])
        if isinstance(known, eo.errors.StoreError):
            raise known
        wall_ms = time.time_ns() // 1_000_000
        commit = settle(
            position,
            columns,
            plan(columns, known, position.next),
            Ended(np.full(len(columns), Ending.DONE, np.uint8)),
            moment=Moment(wall_ms, wall_ms),
            half_ms=once.window.half_ms,
            serial=serial,
            on_existing=once.on_existing,
            as_of=known.as_of,
        )
        assert commit is not None
        _commit(once, commit)
        position = commit.position


def _commit(once: eo.Once, commit: Commit) -> None:
    (answer,) = once.store.commit([commit])
    if answer != Applied():
        raise RuntimeError(f"{commit.at}: a commit to an empty store was answered {answer}")


_SET_ALL: Final = """
for _, key in ipairs(ARGV) do server.call('SET', key, '1', 'EX', 604800) end
"""


def flush(url: str) -> None:
    """Nothing is left in that Valkey but its id as a store.

    Under another one, Kafka's committed offsets of the run before would be a stranger's (row 2).
    """
    client = Redis.from_url(url)
    store_id = client.get(_STORE_ID)
    client.flushall()
    if store_id is not None:
        client.set(_STORE_ID, store_id)
    client.close()


def fill_valkey(url: str, ids: Sequence[str]) -> None:
    """Nothing but these events, as the hand-written loop would have marked them."""
    flush(url)
    client = Redis.from_url(url)
    for start in range(0, len(ids), 5_000):
        client.eval(_SET_ALL, 0, *ids[start : start + 5_000])
    client.close()
