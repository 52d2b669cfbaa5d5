"""The passes over a batch that are written in C too: `native` is that module, or None.

| _native.c      | its twin, which is the rule                       |
| -------------- | ------------------------------------------------- |
| `only_header`  | `identity/record.py`: `only_header`               |
| `uuid_keys`    | `identity/keys.py`: `uuid_keys_at_once`           |
| `fingerprints` | `identity/identify.py`: `fingerprints_in_python`  |
| `may_repeat`   | `core/plan.py`: `may_repeat_sorted`               |
| `repeats`      | `core/plan.py`: `plan`                            |
| `find`, `put`  | `stores/index.py`: `_find_`, `_put_in_buckets`    |
| `marked`       | `stores/index.py`: `KeyIndex._marked`             |
| `columns`      | `stores/encoding.py`: `columns_in_numpy`          |
| `survey`       | `kafka.py`: `fetch`, where the collector walks on |

It is built where there is a C compiler and Python's headers, and missed nowhere: every answer is
the same without it, and tests hold it to that. EFFECTONCE_NATIVE=0 leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Protocol, cast

from numpy.typing import NDArray


class Native(Protocol):
    """_native.c: arrays are read and written in place."""

    def uuid_keys(self, ids: list[bytes | None], /) -> bytes | None:
        """16 bytes each; None where one is no UUID."""
        ...

    def fingerprints(
        self, values: list[bytes | None], digest: Callable[[bytes], int], /
    ) -> bytearray | None:
        """The low half of each digest (u32); None where one is not bytes."""
        ...

    def survey(
        self,
        messages: list[Any],
        error: Callable[[Any], object],
        partition: Callable[[Any], Any],
        /,
    ) -> list[int] | int | None:
        """The partition of each, or of all; None where one is an error, or there is none.

        Python's collector walks them no more, nor what `only_header` reads of them.
        """
        ...

    def only_header(
        self, messages: list[Any], read: Callable[[Any], object], name: str, /
    ) -> list[bytes | None] | int | None:
        """The number of the message that `read` failed on."""
        ...

    def may_repeat(self, keys: NDArray[Any], /) -> bool: ...
    def repeats(
        self, seen: NDArray[Any], known: NDArray[Any], own: NDArray[Any], repeat: int, /
    ) -> tuple[bytearray, bytearray] | None:
        """A decision a row (u8), and the rows that are new (i64); None where a payload differs."""
        ...

    def columns(
        self, keys: NDArray[Any], fingerprints: NDArray[Any], offsets: NDArray[Any], /
    ) -> tuple[int, int, bytes]:
        """The least offset, the greatest, and the columns of a packed row."""
        ...

    def find(
        self,
        keys: NDArray[Any],
        secret: bytes,
        tags: NDArray[Any],
        rows: NDArray[Any],
        log: NDArray[Any],
        least: int,
        base: int,
        /,
    ) -> tuple[bytearray, bytearray]:
        """Positions (i64) or -1, and which keys are not there and have a full bucket (u32)."""
        ...

    def marked(
        self,
        keys: NDArray[Any],
        secret: bytes,
        tags: NDArray[Any],
        rows: NDArray[Any],
        log: NDArray[Any],
        fingerprints: NDArray[Any],
        least: int,
        /,
    ) -> tuple[bytearray, bytearray]:
        """Which are there (a byte each), and their fingerprints (u32)."""
        ...

    def put(
        self,
        keys: NDArray[Any],
        secret: bytes,
        tags: NDArray[Any],
        rows: NDArray[Any],
        log: NDArray[Any],
        fill: NDArray[Any],
        spilled: NDArray[Any],
        start: int,
        /,
    ) -> None:
        """Into `spilled` (u32): how many rows found their bucket full, then these."""
        ...


def _built() -> Native | None:
    if os.environ.get("EFFECTONCE_NATIVE") == "0":
        return None
    try:
        return cast("Native", import_module("effectonce._native"))
    except ImportError:
        return None


native: Final = _built()
