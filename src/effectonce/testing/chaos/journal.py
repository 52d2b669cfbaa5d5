"""The journal of a run: fixed records, in the order in which the witness saw them.

The target of the effects keeps it (`witness`), so it knows nothing of what a consumer believes.
Times are CLOCK_MONOTONIC nanoseconds, one clock for every process of a host, taken by the sender.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

NO_EVENT = bytes(16)

ANSWER = b"."
"""What the witness says to an effect that it has journalled, and when it is ready."""


class Kind(IntEnum):
    """What a record says; `a` and `b` as noted. `worker` is a process, never used again."""

    STARTED = 1  # a: pid
    EFFECT = 2  # partition, offset, event
    COMMITTED = 3  # partition, offset: next; a: fresh, b: repeats
    ASSIGNED = 4  # partition
    BEGAN = 5  # partition, offset
    RELEASED = 6  # partition
    KILLED = 7
    FROZEN = 8
    THAWED = 9
    ASKED = 10  # to leave, by SIGTERM
    DISMISSED = 11  # by SIGTERM as well: the run is over
    ENDED = 12  # a: exit code, negative for a signal
    ARM = 13  # an order to the witness, not journalled; offset: signal, a: effects, b: delay in ns


class Record(NamedTuple):
    """One line of the journal."""

    kind: int
    worker: int
    time_ns: int
    partition: int = 0
    offset: int = 0
    a: int = 0
    b: int = 0
    event: bytes = NO_EVENT


_LAYOUT = struct.Struct("<BIqHqqq16s")
SIZE = _LAYOUT.size


def pack(record: Record) -> bytes:
    """Its bytes, always `SIZE` of them."""
    return _LAYOUT.pack(*record)


def now(
    kind: Kind,
    worker: int,
    partition: int = 0,
    offset: int = 0,
    a: int = 0,
    b: int = 0,
    event: bytes = NO_EVENT,
) -> bytes:
    """A packed record of this moment."""
    return _LAYOUT.pack(kind, worker, time.monotonic_ns(), partition, offset, a, b, event)


def unpack(data: bytes) -> Iterator[Record]:
    """The whole records in `data`; a torn last one is left out."""
    return map(Record._make, _LAYOUT.iter_unpack(data[: len(data) - len(data) % SIZE]))


class Tail:
    """Reads a journal that is being written, from where it last was."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def read(self) -> Iterator[Record]:
        data = self._file.read()
        if torn := len(data) % SIZE:
            self._file.seek(-torn, 1)
        return unpack(data)

    def close(self) -> None:
        self._file.close()
