"""A store in this process, for tests: no kinder than a database, and gone with the process.

What is written becomes visible only by a commit, every owner but the last is fenced, and keys are
unique in a scope whatever partition they came from, as in a database that all members share. The
object outlives the consumers that use it: hand the same one to the next, and that is a restart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TypeAlias

import numpy as np

from effectonce.errors import StoreError
from effectonce.model import (
    UNSET,
    Applied,
    Commit,
    CommitResult,
    Conflict,
    Keys,
    Known,
    Marker,
    Markers,
    OnExisting,
    Opened,
    Partition,
    Position,
    Query,
    Stale,
    Write,
)
from effectonce.ports import Durability, Reach, Traits
from effectonce.stores.commits import are_facts, generation_of, judge, select, status_of
from effectonce.stores.overlay import KeyValueTransaction, Row

Table: TypeAlias = dict[tuple[int, bytes], Marker]
"""The markers of one scope, by run and key."""


@dataclass(slots=True)
class _Tables:
    positions: dict[Partition, Position] = field(default_factory=dict)
    markers: dict[str, Table] = field(default_factory=dict)
    rows: dict[Partition, dict[bytes, bytes]] = field(default_factory=dict)


class MemoryStore:
    """Positions, markers and rows in dictionaries. Safe to share between threads."""

    traits = Traits(
        name="memory", reach=Reach.SHARED, durability=Durability.NONE, in_store_effects=True
    )

    def __init__(self) -> None:
        self._id = os.urandom(16)
        self._lock = Lock()
        self._tables = _Tables()

    def prepare(self) -> bytes:
        return self._id

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        with self._lock:
            row = self._tables.positions.get(at)
            if row is None:
                row = Position(store_id=self._id, topic_id=topic_id, epoch=0)
            epoch = max(row.epoch, above) + 1
            self._tables.positions[at] = replace(row, epoch=epoch)
            return Opened(row=None if row.next == UNSET else row, epoch=epoch)

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        with self._lock:
            return any(
                (at.scope, at.group, at.topic) == (scope, group, topic) and row.next != UNSET
                for at, row in self._tables.positions.items()
            )

    def newest_ms(self, scope: str) -> int:
        with self._lock:
            rows = self._tables.positions.items()
            return max((row.log_time_ms for at, row in rows if at.scope == scope), default=UNSET)

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        with self._lock:
            return [self._known(query.at, query.keys, query.run) for query in queries]

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        with self._lock:
            return [self._commit(commit) for commit in commits]

    def find(self, at: Partition, key: bytes) -> Marker | None:
        with self._lock:
            table = self._tables.markers.get(at.scope, {})
            found = [marker for (_, marked), marker in table.items() if marked == key]
            return max(found, key=lambda marker: marker.run, default=None)

    def transaction(self, at: Partition) -> KeyValueTransaction:
        return KeyValueTransaction(_PartitionRows(self._tables, self._lock, at))

    def release(self, at: Partition) -> None:
        """Nothing to give up: the epoch alone says who owns a partition."""

    def close(self) -> None:
        """Nothing to close: the next consumer finds everything as it was."""

    # -- under the lock --

    def _known(self, at: Partition, keys: Keys, run: int) -> Known:
        table = self._tables.markers.get(at.scope, {})
        found = [table.get((run, key)) for key in _split(keys)]
        return Known(
            seen=np.array([marker is not None for marker in found], np.bool_),
            fingerprints=np.array([marker.fingerprint if marker else 0 for marker in found], "u4"),
        )

    def _commit(self, commit: Commit) -> CommitResult:
        at, new, markers = commit.at, commit.position, commit.markers
        row = self._tables.positions.get(at)
        answer = judge(commit, row)
        if isinstance(answer, Stale) and row is not None and are_facts(commit):
            assert markers is not None
            seen = self._known(at, markers.keys, new.run).seen
            self._mark(at.scope, new, select(markers, ~seen))
        if answer is not None:
            return answer
        existing = 0
        if markers is not None and len(markers):
            generation_of(new)
            seen = self._known(at, markers.keys, new.run).seen
            existing = int(seen.sum())
            if existing and commit.on_existing is OnExisting.REFUSE:
                return Conflict(tuple(seen.nonzero()[0].tolist()))
            self._mark(at.scope, new, select(markers, ~seen) if existing else markers)
        risen = new.floor > self._tables.positions[at].floor
        self._tables.positions[at] = new
        self._write(at, commit.writes)
        if risen:
            self._expire(at.scope)
        return Applied(existing)

    def _mark(self, scope: str, position: Position, markers: Markers) -> None:
        table = self._tables.markers.setdefault(scope, {})
        columns = zip(
            _split(markers.keys),
            markers.fingerprints.tolist(),
            markers.offsets.tolist(),
            strict=True,
        )
        for row, (key, fingerprint, offset) in enumerate(columns):
            outcome = markers.outcomes.get(row)
            table[position.run, key] = Marker(
                key=key,
                fingerprint=fingerprint,
                status=status_of(outcome),
                offset=offset,
                generation=generation_of(position),
                run=position.run,
                epoch=position.epoch,
                log_time_ms=position.log_time_ms,
                wall_ms=position.wall_ms,
                outcome=outcome,
            )

    def _write(self, at: Partition, writes: Sequence[Write]) -> None:
        rows = self._tables.rows.setdefault(at, {})
        for key, value in writes:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def _expire(self, scope: str) -> None:
        """Drop what every partition of the scope has passed: a laggard may still bring a copy."""
        floor = min(row.floor for at, row in self._tables.positions.items() if at.scope == scope)
        table = self._tables.markers.get(scope, {})
        old = [key for key, marker in table.items() if marker.generation < floor]
        for key in old:
            del table[key]


@dataclass(frozen=True, slots=True)
class _PartitionRows:
    """The committed rows of one partition, for a transaction to lie upon."""

    tables: _Tables
    lock: Lock
    at: Partition

    def get(self, key: bytes) -> bytes | None:
        with self.lock:
            return self.tables.rows.get(self.at, {}).get(key)

    def scan(self, prefix: bytes) -> Iterator[Row]:
        with self.lock:
            rows = self.tables.rows.get(self.at, {})
            return iter(sorted(row for row in rows.items() if row[0].startswith(prefix)))


def _split(keys: Keys) -> list[bytes]:
    raw = keys.tobytes()
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]
