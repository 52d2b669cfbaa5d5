"""The key-value `tx` for coroutines: reads are awaited, writes are collected as they are said.

    balance = await tx.get(key)
    tx.put(key, b"...")
    async for key, value in tx.scan(b"account:"): ...

Layers, and what they see, are overlay.py's. A write waits for nothing, so it is no coroutine: what
is forgotten by a missing `await` is never an effect. A scan reads all rows of its prefix with its
first step, so that no cursor stays open in the store between two steps of the handler's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from effectonce.model import Write
from effectonce.stores.overlay import Fuse, Layer, LayeredTransaction, Row, merged


class AsyncRows(Protocol):
    """A store's committed rows of one partition."""

    async def get(self, key: bytes) -> bytes | None: ...
    async def scan(self, prefix: bytes) -> Sequence[Row]:
        """Rows whose key begins with `prefix`, in key order."""
        ...


class AsyncOverlay(Layer):
    """One event's reads and writes over the partition's own rows.

    What it does not say itself, the batch says, and what the batch does not say, the rows say.
    """

    __slots__ = ("_batch", "_rows")

    def __init__(self, rows: AsyncRows, batch: Layer, fuse: Fuse) -> None:
        super().__init__(fuse)
        self._rows = rows
        self._batch = batch

    async def get(self, key: bytes) -> bytes | None:
        """The value of `key` as this event sees it, or None."""
        self._check(key)
        for layer in (self, self._batch):
            change = layer.change_of(key)
            if change is not None:
                return change[1]
        value = await self._rows.get(key)
        self._check_open()
        return value

    def scan(self, prefix: bytes = b"") -> AsyncIterator[Row]:
        """Rows whose key begins with `prefix`, in key order, as they are now.

        Writes made while the scan runs do not show in it.
        """
        self._check(prefix)
        return self._scanned(prefix, self._batch.changes_under(prefix), self.changes_under(prefix))

    async def _scanned(
        self, prefix: bytes, batch: list[Write], own: list[Write]
    ) -> AsyncIterator[Row]:
        rows = iter(await self._rows.scan(prefix))
        for row in merged(own, merged(batch, rows)):
            self._check_open()
            yield row


class AsyncKeyValueTransaction(LayeredTransaction[Layer]):
    """The transaction of stores that are read by awaiting."""

    def __init__(self, rows: AsyncRows) -> None:
        fuse = Fuse()
        super().__init__(Layer(fuse), fuse)
        self._rows = rows

    def _layer(self) -> AsyncOverlay:
        return AsyncOverlay(self._rows, self._batch, self._fuse)
