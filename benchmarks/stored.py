"""What is known before the first delivery: the same keys in every store, put there beforehand.

A store of ours is filled by the library's own decisions and its own commit, 500 markers at a time,
as a consumer would have done it: 1e7 keys with RocksDB in 10 to 20 s. Each run then works on a copy
of that folder, as on a restored backup, in which the table files are hard links: 5e7 keys cost a
run no copying. Valkey is filled anew for each. The rows say that they were written for an earlier
topic of the same name, so each consumer takes row 4 of the start table: the topic was created anew,
its markers are kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from redis import Redis

import effectonce as eo
from benchmarks.loads import HEADER, PARTITIONS, VALUE_BYTES, EventIds
from effectonce.core.plan import Columns, plan
from effectonce.core.settle import FIRST_SERIAL, Ended, Moment, commit_id, settle
from effectonce.identity import only_header
from effectonce.model import (
    NO_ID,
    Applied,
    Commit,
    Ending,
    Keys,
    Known,
    Offsets,
    Partition,
    Position,
    Query,
)
from effectonce.stores import open_store
from effectonce.stores.rocksdb import RocksDBStore

GROUP: Final = "bench"
BATCH: Final = 500
REWRITE_LOOK_SECONDS: Final = 0.02
"""The server tells nobody when it is done."""
TTL_SECONDS: Final = 7 * 86_400
"""As long as the library's default window."""

_STORE_ID: Final = "effectonce:id"
_OUTSIDE: Final = eo.Outside(on_doubt="repeat")
_FORMER_TOPIC: Final = bytes(15) + b"\1"


def once_on(state: str, batch: int = BATCH, effects: eo.InStore | eo.Outside = _OUTSIDE) -> eo.Once:
    """The configuration that is measured; `state` is a folder, or a store's URL."""
    return eo.Once(
        open_store(state) if "://" in state else RocksDBStore(state),
        identify=eo.header(HEADER),
        effects=effects,
        scope="bench",
        limits=eo.Limits(batch=batch),
    )


class Writer:
    """Marks keys in one partition as a consumer would: look up, plan, settle, commit."""

    def __init__(self, once: eo.Once, at: Partition, fingerprint: int) -> None:
        self._once, self._at, self._fingerprint = once, at, fingerprint
        self._serial = FIRST_SERIAL
        store_id = once.store.prepare()
        epoch = once.store.open(at, _FORMER_TOPIC).epoch
        self._position = Position(
            store_id,
            _FORMER_TOPIC,
            epoch,
            next=0,
            commit_id=commit_id(epoch, 0),
            identify_fingerprint=once.start_policy.identify_fingerprint,
            window_seconds=once.window.seconds,
        )
        _commit(once, Commit(at, NO_ID, self._position))

    def write(self, keys: Keys, now_ms: int) -> None:
        """One batch of records that nobody has seen, delivered at `now_ms`."""
        once, position = self._once, self._position
        offsets = np.arange(position.next, position.next + len(keys), dtype=np.int64)
        fingerprints = np.full(len(keys), self._fingerprint, np.uint32)
        columns = Columns(self._at, offsets, keys, fingerprints)
        known = self.lookup(keys)
        commit = settle(
            position,
            columns,
            plan(columns, known, position.next),
            Ended(np.full(len(keys), Ending.DONE, np.uint8)),
            moment=Moment(now_ms, now_ms),
            half_ms=once.window.half_ms,
            serial=self._serial,
            on_existing=once.on_existing,
            as_of=known.as_of,
        )
        assert commit is not None
        _commit(once, commit)
        self._position = commit.position
        self._serial += 1

    def lookup(self, keys: Keys) -> Known:
        (known,) = self._once.store.lookup([Query(self._at, keys, run=0)])
        if isinstance(known, eo.errors.StoreError):
            raise known
        return known


def fill(state: str, topic: str, ids: EventIds, value_bytes: int = VALUE_BYTES) -> None:
    """A store in which these events took effect, each in the partition of its ID."""
    if state.startswith("unix:"):
        flush(state.partition("?")[0])
    once = once_on(state)
    fingerprint = fingerprint_of(once, value_bytes)
    homes = ids.partitions()
    for number in range(PARTITIONS):
        writer = Writer(once, Partition("bench", GROUP, topic, number), fingerprint)
        raw = ids.raw[homes == number]
        # the key of a lower-case UUID is its 16 bytes
        keys = raw.view(np.uint64)
        for start in range(0, len(keys), BATCH):
            writer.write(keys[start : start + BATCH], time.time_ns() // 1_000_000)
    once.store.close()
    if state.startswith("unix:"):
        compact(state.partition("?")[0])


def fingerprint_of(once: eo.Once, value_bytes: int) -> int:
    """What the library makes of a value of so many bytes: a repeat must carry the same."""
    records = OneRecord("bench", 0, bytes(value_bytes))
    return int(once.identity.identify(records).fingerprints[0])


@dataclass(frozen=True, slots=True)
class OneRecord:
    """A record, as far as identity reads it."""

    topic: str
    partition: int
    value: bytes

    def __len__(self) -> int:
        return 1

    def offsets(self) -> Offsets:
        return np.zeros(1, np.int64)

    def values(self) -> Sequence[bytes | None]:
        return [self.value]

    def keys(self) -> Sequence[bytes | None]:
        return [b""]

    def headers(self) -> Sequence[Sequence[tuple[str, bytes | None]]]:
        return [((HEADER, b"any"),)]

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header(self.headers(), name, len(self))


def linked_copy(filled: Path, copy: Path) -> Path:
    """A store as `filled` is, in no time: RocksDB's table files never change once written.

    So they are hard links, as in RocksDB's own checkpoints; what is appended to (the log, the
    manifest) is copied. The original is not touched by whoever opens the copy.
    """
    shutil.copytree(filled, copy, copy_function=_link_tables)
    return copy


def _link_tables(source: str, target: str) -> None:
    if source.endswith(".sst"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


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
    compact(url)


def compact(url: str) -> None:
    """Have its append-only file rewritten now.

    Being filled is what makes it due; else the server's child would write a million keys in the
    middle of a run, on one of two cores, and take a run of 3.0 us a message to 5.3.
    """
    client = Redis.from_url(url)
    while _rewrites(client):  # one that began by itself is of half the keys
        time.sleep(REWRITE_LOOK_SECONDS)
    client.bgrewriteaof()
    while _rewrites(client):
        time.sleep(REWRITE_LOOK_SECONDS)
    client.close()


def _rewrites(client: Redis) -> bool:
    info: Any = client.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])
