"""What a handler sees: an `Event`, or a `Batch` of them. Repeats never get this far.

An event ends once: done (a marker), ignored (no marker, the position moves), or failed (it will be
run again). One that is never touched stays as it was and is handed over again.

Objects are made for events that run, and for nothing else: a skipped record costs no object.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from effectonce.identity import UNREADABLE_HEADERS
from effectonce.model import Ending, Offsets, Rows
from effectonce.policy import IGNORED

__all__ = ["Batch", "Event"]


# as plain numbers: numpy looks an enum over for 6 us before it takes its value
_UNTOUCHED, _DONE = int(Ending.UNTOUCHED), int(Ending.DONE)
_IGNORED, _FAILED = int(Ending.IGNORED), int(Ending.FAILED)


class Source(Protocol):
    """One partition's records, as a client gave them (`ports.Records` is one)."""

    topic: str
    partition: int

    def offsets(self) -> Offsets: ...
    def values(self) -> Sequence[bytes | None]: ...
    def keys(self) -> Sequence[bytes | None]: ...
    def headers(self) -> Sequence[Sequence[tuple[str, bytes | None]] | None]: ...
    def timestamp_ms(self, row: int) -> int: ...
    def leader_epoch(self, row: int) -> int: ...


class Texts(Protocol):
    """The event IDs as text, row by row, and as keys."""

    def key(self, row: int) -> bytes: ...
    def text(self, row: int) -> str: ...


class Effects(Protocol):
    """Where in-store effects collect (`ports.Transaction` is one)."""

    def begin(self) -> object: ...
    def keep(self, tx: object) -> None: ...
    def discard(self, tx: object) -> None: ...


class Work:
    """One partition's records while their handlers run, and how each of them ended."""

    __slots__ = (
        "_left",
        "_open",
        "effects",
        "endings",
        "failures",
        "identified",
        "in_batch",
        "marks",
        "maybe_repeated_below",
        "outcomes",
        "progressed",
        "records",
        "runs",
        "scope",
        "tried",
    )

    def __init__(
        self,
        records: Source,
        identified: Texts,
        runs: Rows,
        *,
        size: int,
        scope: str,
        effects: Effects | None,
        maybe_repeated_below: int,
    ) -> None:
        self.records = records
        self.identified = identified
        self.runs = runs
        self.scope = scope
        self.effects = effects
        self.maybe_repeated_below = maybe_repeated_below
        # two views of the same bytes: storing an enum in an array costs 1.5 us, in bytes 30 ns
        self.marks = bytearray(size)
        self.endings = np.frombuffer(self.marks, np.uint8)
        """How each row ended, an `Ending` a byte."""
        self.outcomes: dict[int, object] = {}
        self.failures: dict[int, BaseException] = {}
        self.progressed: Callable[[], None] = _quietly
        """Told of each ending in a loop of the user's, where one call would look like a batch."""
        self.in_batch = False
        """A batch handler has begun, and its writes and endings are not settled yet."""
        self.tried: set[int] = set()
        """Rows of lanes that have run before, here, and failed."""
        self._open: dict[int, object] = {}
        self._left: set[int] = set()

    def begin(self, row: int) -> object:
        """The event's own `tx`; None where effects live outside."""
        if not self.is_untouched(row) or row in self._open:
            raise RuntimeError("this event has begun already; an event takes effect once")
        if self.effects is None:
            return None
        tx = self.effects.begin()
        self._open[row] = tx
        return tx

    def done(self, row: int, outcome: object) -> None:
        """Say that it took effect. A failure that was said stands."""
        self._check_open(row)
        self.progressed()
        if self.has_failed(row):
            return
        if outcome is IGNORED:
            self.marks[row] = _IGNORED
            return
        self.marks[row] = _DONE
        if outcome is not None:
            self.outcomes[row] = outcome

    def failed(self, row: int, error: BaseException) -> None:
        """Say that it did not, whatever was said before."""
        self._check_open(row)
        self.progressed()
        self.outcomes.pop(row, None)
        self.marks[row] = _FAILED
        self.failures[row] = error

    def leave(self, row: int) -> None:
        """The event's `tx` ends with the event: kept if it is done, forgotten if not."""
        tx = self._open.get(row)
        if tx is None or self.effects is None:
            return
        self._left.add(row)
        if self.marks[row] == _DONE:
            self.effects.keep(tx)
        else:
            self.effects.discard(tx)
        del self._open[row]

    @property
    def is_torn(self) -> bool:
        """Broken off as something ended (Ctrl-C): its writes and what was said of it may differ."""
        return self.in_batch or any(not self.is_untouched(row) for row in self._open)

    def _check_open(self, row: int) -> None:
        if row in self._left:
            raise RuntimeError("this event has ended, and its writes with it")

    def is_untouched(self, row: int) -> bool:
        return self.marks[row] == _UNTOUCHED

    def has_failed(self, row: int) -> bool:
        return self.marks[row] == _FAILED

    def try_again(self, row: int) -> BaseException | None:
        """A row of a lane has failed, and is as if it were untouched; what failed it."""
        self.marks[row] = _UNTOUCHED
        self.tried.add(row)
        return self.failures.pop(row, None)

    def finish(self, rows: Rows) -> None:
        """A batch handler returned: what it did not mark is done."""
        if self.marks.count(_UNTOUCHED) == len(self.marks):  # it marked none
            self.endings[rows] = _DONE
            return
        ended = self.endings[rows]
        self.endings[rows] = np.where(ended == _UNTOUCHED, _DONE, ended)

    def undo(self, rows: Rows, error: BaseException) -> None:
        """The effects of these events were rolled back together."""
        for row in rows.tolist():
            self.failed(row, error)

    def fail_rest(self, rows: Rows, error: BaseException) -> None:
        """A batch handler raised: what it did not mark has failed."""
        for row in rows.tolist():
            if self.is_untouched(row):
                self.failed(row, error)


class Event:
    """One event that has not taken effect yet. Bytes are as Kafka has them.

    As a context manager (in your own loop) it is done on a clean exit and failed on an exception;
    what it enters is the `tx` for in-store effects, else the event itself.
    """

    __slots__ = ("_row", "_work")

    def __init__(self, work: Work, row: int) -> None:
        self._work = work
        self._row = row

    @property
    def id(self) -> str:
        """The event ID as text; for a composite or hashed one 32 hex digits.

        Raises LookupError for an event that has none (`on_unidentified="process"`).
        """
        return self._work.identified.text(self._row)

    @property
    def value(self) -> bytes | None:
        return self._work.records.values()[self._row]

    @property
    def key(self) -> bytes | None:
        return self._work.records.keys()[self._row]

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """Raises ValueError where a name is not UTF-8: the client reads none of them then."""
        headers = self._work.records.headers()[self._row]
        if headers is UNREADABLE_HEADERS:
            raise ValueError(f"{self}: a header's name is not UTF-8, so none can be read")
        return list(headers or ())

    @property
    def topic(self) -> str:
        return self._work.records.topic

    @property
    def partition(self) -> int:
        return self._work.records.partition

    @property
    def offset(self) -> int:
        return int(self._work.records.offsets()[self._row])

    @property
    def timestamp_ms(self) -> int:
        """Milliseconds since 1970, or -1 where the record has no timestamp."""
        return self._work.records.timestamp_ms(self._row)

    @property
    def maybe_repeated(self) -> bool:
        """This event may have run before: its former owner ended without saying, or it failed here.

        Always false for in-store effects, which were rolled back.
        """
        work = self._work
        return self.offset < work.maybe_repeated_below or self._row in work.tried

    def json(self) -> Any:
        """The value as JSON, typed as `json.loads` is. Raises ValueError where it is none."""
        if self.value is None:
            raise ValueError(f"{self}: a null value is no JSON")
        try:
            return json.loads(self.value)
        except RecursionError:  # brackets without end are cheap to send
            raise ValueError(f"{self}: a value of too many levels") from None

    def key_for(self, name: str) -> str:
        """An idempotency key for another system: the same for every run of this event.

        A UUID (version 8) of scope, `name` and the event's key, so that two systems, or two
        consumers of one topic, never share one. Raises LookupError for an event without an ID: one
        key for all of those would make the other system take the second for a repeat.
        """
        digest = blake2b(digest_size=16, person=b"effectonce/down")
        for part in (self._work.scope.encode(), name.encode()):
            digest.update(len(part).to_bytes(4, "big") + part)
        digest.update(self._work.identified.key(self._row))
        raw = bytearray(digest.digest())
        raw[6] = (raw[6] & 0x0F) | 0x80
        raw[8] = (raw[8] & 0x3F) | 0x80
        return str(uuid.UUID(bytes=bytes(raw)))

    def done(self, outcome: object = None) -> None:
        """It took effect; `outcome` is kept (msgpack), or `IGNORED` for "nothing to do"."""
        self._work.done(self._row, outcome)

    def failed(self, error: BaseException) -> None:
        """It did not; it will be run again after a backoff."""
        self._work.failed(self._row, error)

    def __enter__(self) -> object:
        tx = self._work.begin(self._row)
        return self if tx is None else tx

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(error)
        elif self._work.is_untouched(self._row):
            self.done()
        self._work.leave(self._row)

    def __repr__(self) -> str:
        return f"<Event {self.topic}[{self.partition}]@{self.offset}>"


class Batch:
    """Events of one partition that have not taken effect yet, in delivered order.

    `values()` reads them as a column: for handlers that insert many at once it makes no objects.
    """

    __slots__ = ("_rows", "_work")

    def __init__(self, work: Work, rows: Rows) -> None:
        self._work = work
        self._rows = rows

    @property
    def topic(self) -> str:
        return self._work.records.topic

    @property
    def partition(self) -> int:
        return self._work.records.partition

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Event]:
        work = self._work
        return (Event(work, row) for row in self._rows.tolist())

    def __getitem__(self, index: int) -> Event:
        return Event(self._work, int(self._rows[index]))

    def values(self) -> list[bytes | None]:
        """The values of all events, in order."""
        values = self._work.records.values()
        if len(self._rows) == len(values):
            return list(values)
        return [values[row] for row in self._rows.tolist()]

    def ids(self) -> list[str]:
        """The event IDs of all events, in order, as `Event.id` gives them, or LookupError."""
        text = self._work.identified.text
        return [text(row) for row in self._rows.tolist()]

    def __repr__(self) -> str:
        return f"<Batch {self.topic}[{self.partition}], {len(self)} events>"


def _quietly() -> None:
    """Nobody needs to know."""
