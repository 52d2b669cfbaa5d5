"""One partition's database: who owns it, what it has marked, and its one write a commit.

    closed --open--> open --a write fails--> in doubt --next call--> open again, or no longer ours
                     open --release--> closed

A write that fails may have landed or not, and RocksDB may refuse more from then on. So whatever
memory holds is thrown away with the database handle, and the next call reads it all again: the
commit id in the row then tells which it was. The LOCK was free in between; if another process was
quicker, epoch and incarnation in the row differ from ours, and we are stale.

One lock around every call: a handle may not be closed while another thread is inside.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Lock
from typing import Final, TypeVar

import numpy as np
from rocksdict import Rdict, WriteBatch, WriteOptions

from effectonce.errors import ConfigError, NotOpen, StoreCorrupt, StoreError
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
    Position,
    Stale,
    Unknown,
)
from effectonce.stores.commits import generation_of, judge, select
from effectonce.stores.encoding import (
    POSITION_KEY,
    USER,
    PositionRow,
    encode_generation,
    encode_outcome,
    encode_packed,
    encode_position,
    generation_key,
    outcome_key,
    packed_key,
)
from effectonce.stores.marked import MarkedKeys
from effectonce.stores.overlay import Row
from effectonce.stores.rocksdb_files import Folder, damaged, failure, holds_lock, locked
from effectonce.stores.rocksdb_image import CHUNK, Image, find, load, read_rows
from effectonce.stores.rocksdb_options import Shared, open_database

log: Final = logging.getLogger(__name__)

T = TypeVar("T")

_NO_KEY: Final = bytes(16)


class PartitionDatabase:
    """One partition, in one process. Every method may be called from any thread."""

    def __init__(self, folder: Folder, shared: Shared, *, store_id: bytes, sync: bool) -> None:
        self._folder = folder
        self._shared = shared
        self._store_id = store_id
        self._synced, self._as_asked = WriteOptions(), WriteOptions()
        self._synced.sync, self._as_asked.sync = True, sync
        self._lock = Lock()
        self._db: Rdict | None = None
        self._image: Image | None = None
        self._ours: tuple[int, bytes] | None = None
        """Epoch and incarnation of our ownership; None: closed."""

    def open(self, topic_id: bytes, above: int = 0) -> Opened:
        with self._lock:
            image = self._image if self._image is not None else self._connect()
            before = image.row if image is not None else self._blank(topic_id)
            epoch = max(before.position.epoch, above) + 1
            after = replace(
                before,
                position=replace(before.position, epoch=epoch),
                incarnation=os.urandom(8),
            )
            batch = WriteBatch(raw_mode=True)
            batch.put(POSITION_KEY, encode_position(after))
            error = self._write(batch, self._synced)
            if error is not None:
                raise error
            if image is None:
                image = Image(after)
            image.row = after
            self._image, self._ours = image, (epoch, after.incarnation)
            was = before.position
            return Opened(row=None if was.next == UNSET else was, epoch=epoch)

    def position(self) -> Position | None:
        """The row as it is, where this process has it open."""
        with self._lock:
            return self._image.row.position if self._image is not None else None

    def lookup(self, keys: Keys, run: int) -> Known:
        with self._lock:
            return _known(self._live(), keys, run)

    def commit(self, commit: Commit) -> CommitResult:
        with self._lock:
            try:
                return self._commit(self._live(), commit)
            except NotOpen:
                return Stale()
            except StoreError as error:
                return Unknown(error)

    def find(self, key: bytes) -> Marker | None:
        with self._lock:
            self._live()
            return self._reading(lambda db: find(db, key))

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            self._live()
            value: bytes | None = self._reading(lambda db: db.get(USER + key))
            return value

    def scan(self, prefix: bytes) -> Iterator[Row]:
        start = USER + prefix
        while rows := self._chunk(USER + prefix, start):
            for key, value in rows:
                yield key[len(USER) :], value
            start = rows[-1][0] + b"\0"

    def close(self) -> None:
        """Let go of the LOCK. Safe to call twice."""
        with self._lock:
            self._ours = None
            self._disconnect()

    # -- under the lock: the handle --

    def _live(self) -> Image:
        """What memory holds, read again if a write left it in doubt. Raises NotOpen."""
        image = self._image
        if image is None:
            image = self._connect() if self._ours is not None else None
            row = image.row if image is not None else None
            if row is None or self._ours != (row.position.epoch, row.incarnation):
                self._ours = None
                self._disconnect()
                raise NotOpen(
                    f"{self._folder.at} is not open in this process: it was released, or somebody "
                    "else has opened it since"
                )
            self._image = image
        assert image is not None
        return image

    def _connect(self) -> Image | None:
        """Open the database and read all of it; None where it is new."""
        self._disconnect()
        try:
            self._folder.make()
            self._db = open_database(self._folder.path, self._shared)
            self._folder.write_owner()
            return load(self._db)
        except BaseException as error:
            self._disconnect()
            if isinstance(error, ConfigError) or not isinstance(error, Exception):
                raise
            raise self._translated(error) from error

    def _disconnect(self) -> None:
        db, self._db, self._image = self._db, None, None
        if db is None:
            return
        self._folder.remove_owner()
        try:
            db.close()
        except Exception as error:  # noqa: BLE001  rocksdict knows no better type
            # raised after a full disk: the handle is closed and the LOCK free all the same, and
            # what was acknowledged is in the log that the next open reads
            log.debug("%s: closing its database: %s", self._folder.at, error)

    def _write(self, batch: WriteBatch, options: WriteOptions) -> StoreError | None:
        """All of `batch` or nothing; an error does not say which.

        From here on memory is in doubt, until the caller puts the image back: whatever comes
        between, an interrupt too, makes the next call read again.
        """
        assert self._db is not None
        self._image = None
        try:
            self._db.write(batch, options)
        except Exception as error:  # noqa: BLE001  rocksdict knows no better type
            self._disconnect()
            return self._translated(error)
        return None

    def _chunk(self, prefix: bytes, start: bytes) -> list[Row]:
        with self._lock:
            self._live()
            return self._reading(lambda db: read_rows(db, prefix, start, CHUNK))

    def _reading(self, read: Callable[[Rdict], T]) -> T:
        assert self._db is not None
        try:
            return read(self._db)
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> StoreError:
        at, path = self._folder.at, self._folder.path
        if isinstance(error, StoreCorrupt):
            return damaged(str(error), at, path)
        if isinstance(error, StoreError):
            return error
        return locked(self._folder) if holds_lock(error) else failure(error, at, path)

    # -- under the lock: commits --

    def _blank(self, topic_id: bytes) -> PositionRow:
        position = Position(store_id=self._store_id, topic_id=topic_id, epoch=0)
        return PositionRow(position, incarnation=bytes(8))

    def _commit(self, image: Image, commit: Commit) -> CommitResult:
        answer = judge(commit, image.row.position)
        if answer is not None:
            return answer
        markers, existing = commit.markers, 0
        unseen = commit.as_of == image.row.next_seq
        if markers is not None and commit.position.run == image.row.position.run and not unseen:
            seen, _ = image.marked.look_up(markers.keys)
            existing = int(np.count_nonzero(seen))
            if existing and commit.on_existing is OnExisting.REFUSE:
                return Conflict(tuple(seen.nonzero()[0].tolist()))
            if existing:
                markers = select(markers, ~seen)
        batch, next_seq = _batch(image, commit, markers)
        error = self._write(batch, self._as_asked)
        if error is not None:
            return Unknown(error)
        _follow(image, commit.position, markers, next_seq)
        self._image = image
        return Applied(existing)


def _known(image: Image, keys: Keys, run: int) -> Known:
    # what another run marked says nothing
    marked = image.marked if run == image.row.position.run else MarkedKeys()
    seen, fingerprints = marked.look_up(keys)
    # each packed row has a number of its own, so an equal count means that none was added
    return Known(seen, fingerprints, as_of=image.row.next_seq)


def _batch(image: Image, commit: Commit, markers: Markers | None) -> tuple[WriteBatch, int]:
    """Everything a commit changes on the disk, and the seq that its successor begins with."""
    old, new, seq = image.row.position, commit.position, image.row.next_seq
    batch = WriteBatch(raw_mode=True)
    if new.floor > old.floor:
        batch.delete_range(packed_key(0), packed_key(new.floor))
        batch.delete_range(generation_key(0), generation_key(new.floor))
        batch.delete_range(outcome_key(0, _NO_KEY), outcome_key(new.floor, _NO_KEY))
    for start in new.generations:
        if start not in old.generations:
            first_seq = image.first_seqs.get(start.generation, seq)
            batch.put(*encode_generation(start, first_seq))
    if markers is not None and len(markers):
        for key, value in encode_packed(new, markers, seq):
            batch.put(key, value)
            seq += 1
        for row, outcome in markers.outcomes.items():
            key = outcome_key(generation_of(new), markers.keys[row].tobytes())
            batch.put(key, encode_outcome(key, outcome))
    for key, change in commit.writes:
        if change is None:
            batch.delete(USER + key)
        else:
            batch.put(USER + key, change)
    successor = PositionRow(new, image.row.incarnation, next_seq=seq)
    batch.put(POSITION_KEY, encode_position(successor))
    return batch, seq


def _follow(image: Image, new: Position, markers: Markers | None, next_seq: int) -> None:
    """Memory does what the disk has done."""
    old = image.row
    if new.run != old.position.run:
        image.marked = MarkedKeys()
    for start in new.generations:
        image.first_seqs.setdefault(start.generation, old.next_seq)
    if markers is not None and len(markers):
        image.marked.insert(generation_of(new), markers.keys, markers.fingerprints)
    if new.floor > old.position.floor:
        image.drop_below(new.floor)
    image.row = PositionRow(new, old.incarnation, next_seq)
