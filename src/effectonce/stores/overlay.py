"""The key-value `tx`: a batch's effects, layer upon layer, until one `Commit` carries them all.

    store's rows  <-  the batch: events kept so far  <-  one event's `tx`

A read falls through to the next layer on the left; a write stays in its own. `keep` lays an event's
writes over the batch's, `discard` forgets them, so an event that fails leaves no trace and the
events after it see exactly what will be committed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, TypeAlias

from effectonce.errors import TransactionClosed
from effectonce.model import Write

Row: TypeAlias = tuple[bytes, bytes]

MAX_KEY_BYTES: Final = 8 * 1024
"""RocksDB keeps keys whole in its index blocks, so it advises small ones."""

MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
"""Sixteen times what a Kafka broker takes as one record by default; rows above belong elsewhere."""


class Rows(Protocol):
    """What an overlay can lie upon: a store's committed rows of one partition."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes) -> Iterator[Row]:
        """Rows whose key begins with `prefix`, in key order."""
        ...


@dataclass(slots=True)
class Fuse:
    """Shared by a batch and its events; blown by any thread, never mended."""

    blown: bool = False


class Overlay:
    """One event's reads and writes over the partition's own rows. Keys and values are bytes.

    Valid while its event lasts: afterwards every call raises TransactionClosed.
    """

    __slots__ = ("_below", "_changes", "_closed", "_fuse", "_order")

    def __init__(self, below: Rows, fuse: Fuse) -> None:
        self._below = below
        self._fuse = fuse
        self._closed = False
        self._changes: dict[bytes, bytes | None] = {}
        self._order: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` as this event sees it, or None."""
        self._check(key)
        if key in self._changes:
            return self._changes[key]
        return self._below.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._check(key)
        if not isinstance(value, bytes):
            raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        if len(value) > MAX_VALUE_BYTES:
            raise ValueError(f"a value may have {MAX_VALUE_BYTES} bytes; this one has {len(value)}")
        self._change(key, value)

    def delete(self, key: bytes) -> None:
        """Remove `key`, whether or not it is there."""
        self._check(key)
        self._change(key, None)

    def scan(self, prefix: bytes = b"") -> Iterator[Row]:
        """Rows whose key begins with `prefix`, in key order, as they are now.

        Writes made while the scan runs do not show in it.
        """
        self._check(prefix)
        start = bisect_left(self._order, prefix)
        changes = [
            (key, self._changes[key])
            for key in _while_prefixed(islice(self._order, start, None), prefix)
        ]
        return self._alive(_merged(changes, self._below.scan(prefix)))

    def changes(self) -> tuple[Write, ...]:
        return tuple(self._changes.items())

    def absorb(self, changes: Sequence[Write]) -> None:
        for key, value in changes:
            self._change(key, value)

    def close(self) -> None:
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed or self._fuse.blown

    def _change(self, key: bytes, value: bytes | None) -> None:
        if key not in self._changes:
            insort(self._order, key)
        self._changes[key] = value

    def _check(self, key: bytes) -> None:
        self._check_open()
        if not isinstance(key, bytes):
            raise TypeError(f"a key must be bytes, not {type(key).__name__}")
        if len(key) > MAX_KEY_BYTES:
            raise ValueError(f"a key may have {MAX_KEY_BYTES} bytes; this one has {len(key)}")

    def _check_open(self) -> None:
        if self._fuse.blown:
            raise TransactionClosed("the handler was cut off: this transaction takes no more calls")
        if self._closed:
            raise TransactionClosed(
                "this transaction ended with its event; use it only inside the handler"
            )

    def _alive(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self._check_open()
            yield row


class KeyValueTransaction:
    """`ports.Transaction` over rows of bytes: a batch's overlay, and one more for each event."""

    def __init__(self, rows: Rows) -> None:
        self._fuse = Fuse()
        self._batch = Overlay(rows, self._fuse)
        self._open: set[Overlay] = set()

    def begin(self) -> Overlay:
        if self._fuse.blown:
            raise TransactionClosed("this batch was cut off: no event can begin in it")
        tx = self._layer()
        self._open.add(tx)
        return tx

    def _layer(self) -> Overlay:
        return Overlay(self._batch, self._fuse)

    def keep(self, tx: object) -> None:
        overlay = self._ended(tx)
        self._batch.absorb(overlay.changes())

    def discard(self, tx: object) -> None:
        if isinstance(tx, Overlay) and tx in self._open:
            tx.close()
            self._open.remove(tx)

    def writes(self) -> tuple[Write, ...]:
        return self._batch.changes()

    def kill(self) -> None:
        self._fuse.blown = True

    def _ended(self, tx: object) -> Overlay:
        if not isinstance(tx, Overlay) or tx not in self._open or self._fuse.blown:
            raise TransactionClosed("this is no open transaction of this batch")
        tx.close()
        self._open.remove(tx)
        return tx


def _while_prefixed(keys: Iterator[bytes], prefix: bytes) -> Iterator[bytes]:
    for key in keys:
        if not key.startswith(prefix):
            return
        yield key


def _merged(changes: Sequence[Write], below: Iterator[Row]) -> Iterator[Row]:
    """Both in key order; a change hides the row below it, a change to None hides itself too."""
    row = next(below, None)
    for key, value in changes:
        while row is not None and row[0] < key:
            yield row
            row = next(below, None)
        if row is not None and row[0] == key:
            row = next(below, None)
        if value is not None:
            yield key, value
    while row is not None:
        yield row
        row = next(below, None)
