"""What identity reads: a batch as columns, a record as a view on one row; and why there is no ID.

No text here ever shows an ID, or the bytes around it: IDs are credentials.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, TypeAlias

from effectonce.model import Offsets

Headers: TypeAlias = Sequence[tuple[str, bytes | None]] | None


class _Unreadable(tuple[tuple[str, bytes | None], ...]):
    __slots__ = ()


UNREADABLE_HEADERS: Final = _Unreadable()
"""Stands for headers that are there and that the client cannot read: not to be taken for none."""

MAX_ID_BYTES: Final = 1024
"""Room for any real ID (a CloudEvents source is a URI), and a bound on the work for a false one."""


class Columns(Protocol):
    """The columns of one partition's records that identity reads; `Records` has them all."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    def __len__(self) -> int: ...
    def offsets(self) -> Offsets: ...
    def values(self) -> Sequence[bytes | None]: ...
    def keys(self) -> Sequence[bytes | None]: ...
    def headers(self) -> Sequence[Headers]: ...
    def only_header(self, name: str) -> list[bytes | None] | None:
        """Its value of each record; None unless each has this header and no other."""
        ...


def only_header(headers: Iterable[Headers], name: str, records: int) -> list[bytes | None] | None:
    """The value of that header of each record; None unless each has this header and no other."""
    try:
        ids = [value for ((found, value),) in headers if found == name]  # type: ignore[misc]
    except (TypeError, ValueError):
        return None
    return ids if len(ids) == records else None


class Record:
    """One record, as a `custom` function is given it. A column is read when it is first asked."""

    __slots__ = ("_columns", "_row")

    def __init__(self, columns: Columns, row: int) -> None:
        self._columns = columns
        self._row = row

    @property
    def topic(self) -> str:
        return self._columns.topic

    @property
    def partition(self) -> int:
        return self._columns.partition

    @property
    def offset(self) -> int:
        return int(self._columns.offsets()[self._row])

    @property
    def key(self) -> bytes | None:
        return self._columns.keys()[self._row]

    @property
    def value(self) -> bytes | None:
        return self._columns.values()[self._row]

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """In the order of the record; a name may occur more than once."""
        headers = self._columns.headers()[self._row]
        if headers is UNREADABLE_HEADERS:
            raise NoId(
                ProblemKind.UNREADABLE, "the headers cannot be read: a name in them is not UTF-8"
            )
        return headers or ()

    def __repr__(self) -> str:
        return f"Record({self.topic}[{self.partition}] at {self.offset})"


class ProblemKind(Enum):
    """Why a record has no usable event ID. Only MISSING lets the next source of a chain answer.

    The others are an ID that is there and broken. The producer that repairs it sends the same
    event with its proper ID, so an answer from elsewhere would give one event two keys.
    """

    MISSING = "missing"
    EMPTY = "empty"
    """There, but empty or null."""
    TOO_LONG = "too-long"
    NOT_UTF8 = "not-utf8"
    REPEATED = "repeated"
    """Two answers, and no telling which one counts."""
    NULL_VALUE = "null-value"
    """The value was to be read, and the record is a tombstone."""
    UNREADABLE = "unreadable"
    FAILED = "failed"
    """The user's own function raised, or returned no ID."""


@dataclass(frozen=True, slots=True)
class IdProblem:
    """Why one record has no usable event ID."""

    kind: ProblemKind
    text: str
    """For a log line: names the source and what is wrong with it, never the ID."""


class NoId(Exception):
    """How a source says that it has no ID; never leaves this package."""

    def __init__(self, kind: ProblemKind, text: str) -> None:
        self.problem = IdProblem(kind, text)
        super().__init__(text)


def checked_bytes(raw: object, what: object) -> bytes:
    """`raw` if it can be an ID. `what` names its origin for the problem's text."""
    if raw is None:
        raise NoId(ProblemKind.EMPTY, f"{what} is null")
    if not isinstance(raw, bytes):
        raise NoId(ProblemKind.UNREADABLE, f"{what} is {type(raw).__name__}, not bytes")
    if not raw:
        raise NoId(ProblemKind.EMPTY, f"{what} is empty")
    if len(raw) > MAX_ID_BYTES:
        raise NoId(
            ProblemKind.TOO_LONG, f"{what} has {len(raw)} bytes, an ID at most {MAX_ID_BYTES}"
        )
    return raw


def checked_text(raw: object, what: object) -> bytes:
    """As `checked_bytes`, for an ID that must be UTF-8 text."""
    text = checked_bytes(raw, what)
    if not is_utf8(text):
        raise NoId(ProblemKind.NOT_UTF8, f"{what} is not UTF-8 text")
    return text


def encoded(text: str, what: object) -> bytes:
    """As `checked_text`, for an ID that was decoded already."""
    try:
        return checked_bytes(text.encode(), what)
    except UnicodeEncodeError:  # half a surrogate pair, as JSON's \ud800 yields it
        raise NoId(ProblemKind.NOT_UTF8, f"{what} cannot be written as UTF-8") from None


def is_utf8(raw: bytes) -> bool:
    """Whether these bytes are UTF-8 text, without surrogates."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
