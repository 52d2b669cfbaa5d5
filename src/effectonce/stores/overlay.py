"""The key-value `tx`: a batch's effects, layer upon layer, until one `Commit` carries them all.

    store's rows  <-  the batch: events kept so far  <-  one event's `tx`

A read falls through to the next layer on the left; a write stays in its own. `keep` lays an event's
writes over the batch's, `discard` forgets them, so an event that fails leaves no trace and the
events after it see exactly what will be committed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from effectonce.errors import TransactionClosed
from effectonce.model import Write

Row: TypeAlias = tuple[bytes, bytes]
L = TypeVar("L", bound="Layer")

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


class Layer:
    """One layer's writes. Keys and values are bytes; how it reads below it, its subclass says.

    Valid while its event lasts: afterwards every call raises TransactionClosed.
    """

    __slots__ = ("_changes", "_closed", "_fuse", "_order")

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse
        self._closed = False
        self._changes: dict[bytes, bytes | None] = {}
        self._order: list[bytes] = []
        """The keys of the first so many changes, sorted; the others came since somebody scanned."""

    def put(self, key: bytes, value: bytes) -> None:
        self._check(key)
        if not isinstance(value, bytes):
            raise TypeError(f"a value must be bytes, not {type(value).__name__}")
        if len(value) > MAX_VALUE_BYTES:
            raise ValueError(f"a value may have {MAX_VALUE_BYTES} bytes; this one has {len(value)}")
        self._changes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`, whether or not it is there."""
        self._check(key)
        self._changes[key] = None

    def changes(self) -> tuple[Write, ...]:
        return tuple(self._changes.items())

    def changes_under(self, prefix: bytes) -> list[Write]:
        """The changes of keys that begin with `prefix`, in key order."""
        order = self._order
        if len(order) < len(self._changes):
            # bound at once: a read that a signal breaks off, or two threads, must leave it whole
            order = self._order = sorted([*order, *islice(self._changes, len(order), None)])
        start = bisect_left(order, prefix)
        return [
            (key, self._changes[key]) for key in _while_prefixed(islice(order, start, None), prefix)
        ]

    def change_of(self, key: bytes) -> Write | None:
        """What this layer makes of `key`, if anything."""
        return (key, self._changes[key]) if key in self._changes else None

    def absorb(self, layer: Layer) -> None:
        """Lay its changes over these."""
        self._changes.update(layer._changes)

    def close(self) -> None:
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed or self._fuse.blown

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


class Overlay(Layer):
    """One event's reads and writes over the partition's own rows."""

    __slots__ = ("_below",)

    def __init__(self, below: Rows, fuse: Fuse) -> None:
        super().__init__(fuse)
        self._below = below

    def get(self, key: bytes) -> bytes | None:
        """The value of `key` as this event sees it, or None."""
        self._check(key)
        if key in self._changes:
            return self._changes[key]
        return self._below.get(key)

    def scan(self, prefix: bytes = b"") -> Iterator[Row]:
        """Rows whose key begins with `prefix`, in key order, as they are now.

        Writes made while the scan runs do not show in it.
        """
        self._check(prefix)
        return self._alive(merged(self.changes_under(prefix), self._below.scan(prefix)))

    def _alive(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self._check_open()
            yield row


class LayeredTransaction(Generic[L]):
    """`ports.Transaction`: a batch's layer, and one more for each event."""

    def __init__(self, batch: L, fuse: Fuse) -> None:
        self._fuse = fuse
        self._batch = batch
        self._open: dict[int, L] = {}

    def begin(self) -> L:
        if self._fuse.blown:
            raise TransactionClosed("this batch was cut off: no event can begin in it")
        tx = self._layer()
        self._open[id(tx)] = tx
        return tx

    def _layer(self) -> L:
        """One over the batch's."""
        raise NotImplementedError

    def keep(self, tx: object) -> None:
        self._batch.absorb(self._ended(tx))

    def discard(self, tx: object) -> None:
        layer = self._open.pop(id(tx), None)
        if layer is not None:
            layer.close()

    def writes(self) -> tuple[Write, ...]:
        return self._batch.changes()

    def kill(self) -> None:
        self._fuse.blown = True

    def _ended(self, tx: object) -> L:
        layer = self._open.pop(id(tx), None)
        if layer is None or self._fuse.blown:
            raise TransactionClosed("this is no open transaction of this batch")
        layer.close()
        return layer


class KeyValueTransaction(LayeredTransaction[Overlay]):
    """The transaction of stores that are read at once."""

    def __init__(self, rows: Rows) -> None:
        fuse = Fuse()
        super().__init__(Overlay(rows, fuse), fuse)

    def _layer(self) -> Overlay:
        return Overlay(self._batch, self._fuse)


def _while_prefixed(keys: Iterator[bytes], prefix: bytes) -> Iterator[bytes]:
    for key in keys:
        if not key.startswith(prefix):
            return
        yield key


def merged(changes: Sequence[Write], below: Iterator[Row]) -> Iterator[Row]:
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
