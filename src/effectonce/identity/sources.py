"""Where an event ID may stand in a record.

| source | ID | none |
| --- | --- | --- |
| `header(name)` | UTF-8 text, the one header of that name | no such header |
| `cloudevent()` | source + id, binary or structured JSON mode | not a CloudEvent |
| `field(path)` | text or integer of the value, by jmespath | not there, null, tombstone |
| `record_key()` | the bytes of the record's key | no key |
| `joined(a, b)` | all of these IDs together | none of them is there |
| `custom(fn)` | what your function returns | it returned None |
| `payload_hash()` | a hash of the value | |
| `delivery()` | topic, partition, offset | |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal

from effectonce.identity.decode import (
    Document,
    canonical,
    leave_out,
    read_exact_json,
    read_json,
    read_msgpack,
)
from effectonce.identity.keys import DELIVERY, PAYLOAD, Composite, EventId, packed, parts
from effectonce.identity.record import (
    Columns,
    NoId,
    ProblemKind,
    Record,
    checked_bytes,
    checked_text,
    encoded,
)
from effectonce.identity.source import Source, Spec, Stands, no_sources

# -- one ID --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header(Source):
    """Once in the record: of two, the producer and a proxy may each mean its own."""

    name: str

    def find(self, record: Record) -> bytes:
        values = [value for name, value in record.headers if name == self.name]
        if not values:
            raise NoId(ProblemKind.MISSING, f"{self} is missing")
        if len(values) > 1:
            raise NoId(ProblemKind.REPEATED, f"{self} occurs {len(values)} times")
        return checked_text(values[0], self)

    def column(self, columns: Columns) -> list[bytes | None]:
        only = columns.only_header(self.name)
        if only is not None:
            return only
        ids: list[bytes | None] = []
        for several in columns.headers():
            found = None
            for name, value in several or ():
                if name == self.name:
                    found = value if value and found is None else b""  # null or repeated
            ids.append(found)
        return ids

    def spec(self) -> Spec:
        return ["header", self.name]

    def problems(self) -> Iterator[str]:
        if not _is_name(self.name):
            yield f"{self}: the name is empty, or no text"

    def __str__(self) -> str:
        return f'header("{self.name}")'


@dataclass(frozen=True, slots=True)
class RecordKey(Source):
    """The bytes that the producer partitions by, where it partitions by event ID."""

    needs_utf8: ClassVar[bool] = False

    def find(self, record: Record) -> bytes:
        if record.key is None:
            raise NoId(ProblemKind.MISSING, f"{self} is missing: the record has no key")
        return checked_bytes(record.key, self)

    def column(self, columns: Columns) -> list[bytes | None]:
        return list(columns.keys())

    def spec(self) -> Spec:
        return ["record_key"]

    def __str__(self) -> str:
        return "record_key()"


@dataclass(frozen=True, slots=True)
class Field(Source):
    """Text or an integer. A float has many spellings, and true is no ID."""

    path: str
    format: Literal["json", "msgpack"]

    def find(self, record: Record) -> bytes:
        if record.value is None:
            raise NoId(ProblemKind.MISSING, f"{self} is missing: the value is null")
        read = read_json if self.format == "json" else read_msgpack
        found = self._search(read(record.value))
        match found:
            case None:
                raise NoId(ProblemKind.MISSING, f"{self} is missing")
            case str():
                return encoded(found, self)
            case int() if not isinstance(found, bool):
                return encoded(_decimal(found, self), self)
            case _:
                raise NoId(
                    ProblemKind.UNREADABLE,
                    f"{self} is of type {type(found).__name__}; an ID is text or an integer",
                )

    def _search(self, document: Document) -> object:
        try:
            return _expression(self.path).search(document)
        except MemoryError:
            raise  # the machine's trouble, not the record's
        except Exception as error:  # noqa: BLE001 - jmespath lets TypeError and others pass
            reason = type(error).__name__
            raise NoId(
                ProblemKind.UNREADABLE, f"{self} does not fit the value ({reason})"
            ) from None

    def spec(self) -> Spec:
        return ["field", self.path, self.format]

    def problems(self) -> Iterator[str]:
        if self.format not in ("json", "msgpack"):
            yield f"{self}: format is {self.format!r}, must be json or msgpack"
        try:
            _expression(self.path)
        except ImportError:
            yield f"{self} needs the package jmespath: pip install effectonce[jmespath]"
            return
        except (ValueError, TypeError, RecursionError):
            yield f"{self}: not a jmespath expression (https://jmespath.org)"
            return
        try:
            answer = self._search({})
        except NoId:  # a function in it refuses an empty document
            return
        if answer is not None:  # to_string(id) gives "null"
            yield (
                f"{self} finds an ID even in an empty document: all events without one would be"
                " the same event"
            )

    def __str__(self) -> str:
        return f'field("{self.path}")'


def _decimal(number: int, what: object) -> str:
    try:
        return str(number)
    except ValueError:  # beyond sys.get_int_max_str_digits()
        raise NoId(ProblemKind.TOO_LONG, f"{what} is too long a number") from None


@lru_cache(maxsize=64)
def _expression(path: str) -> Any:
    import jmespath  # an optional package

    return jmespath.compile(path)


@dataclass(frozen=True, slots=True)
class Custom(Source):
    """The user's function; its version stands for its code."""

    fn: Callable[[Record], object]  # what it returns is checked
    version: str

    def find(self, record: Record) -> bytes:
        try:
            found = self.fn(record)
        except (MemoryError, NoId):
            raise  # the machine's trouble, or the record's own; not the function's
        except Exception as error:  # noqa: BLE001 - it is theirs; its text may show the ID
            raise NoId(ProblemKind.FAILED, f"{self} raised {type(error).__name__}") from None
        match found:
            case None:
                raise NoId(ProblemKind.MISSING, f"{self} found none")
            case str():
                return encoded(found, self)
            case bytes():
                return checked_bytes(found, self)
            case _:
                kind = type(found).__name__
                raise NoId(ProblemKind.FAILED, f"{self} returned {kind}, not str, bytes or None")

    def spec(self) -> Spec:
        return ["custom", self.version]

    def problems(self) -> Iterator[str]:
        fn: object = self.fn
        if not callable(fn):
            yield f"{self}: {fn!r} cannot be called; it takes a record and returns str, bytes, None"
        if not _is_name(self.version):
            yield (
                f"{self} needs a version= of text; change it whenever the function would give"
                " a record another ID"
            )

    def __str__(self) -> str:
        return f"custom({getattr(self.fn, '__name__', type(self.fn).__name__)})"


# -- several IDs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Joined(Source):
    """All of its sources, together. Where only some answer the ID is broken, not missing."""

    sources: tuple[Source, ...]

    def find(self, record: Record) -> Composite:
        found: list[EventId] = []
        missing: list[str] = []
        for source in self.sources:
            try:
                found.append(source.find(record))
            except NoId as no:
                if no.problem.kind is not ProblemKind.MISSING:
                    raise
                missing.append(no.problem.text)
        if not found:
            raise NoId(ProblemKind.MISSING, "; ".join(missing))
        if missing:
            raise NoId(
                ProblemKind.UNREADABLE, "half an ID: " + "; ".join(missing) + ", the rest is there"
            )
        return parts(found)

    def spec(self) -> Spec:
        return ["joined", *(source.spec() for source in self.sources)]

    def problems(self) -> Iterator[str]:
        if len(self.sources) < 2:
            yield f"{self}: joins two sources or more"
        if strangers := list(no_sources(self.sources, str(self))):
            yield from strangers
            return
        for source in self.sources:
            yield from source.problems()
        if any(isinstance(leaf, Delivery) for leaf in self.leaves()):
            yield f"{self}: delivery() identifies a delivery, not an event; it cannot be a part"

    def leaves(self) -> Iterator[Source]:
        for source in self.sources:
            yield from source.leaves()

    def __str__(self) -> str:
        return f"joined({', '.join(map(str, self.sources))})"


@dataclass(frozen=True, slots=True)
class CloudEvent(Source):
    """CloudEvents 1.0 on Kafka: an event is identified by source and id, in either mode."""

    def find(self, record: Record) -> Composite:
        types = [_media_type(value) for name, value in record.headers if name == "content-type"]
        if not types or not any(type_.startswith(_STRUCTURED) for type_ in types):
            return _BINARY_MODE.find(record)
        if len(types) > 1:
            raise NoId(ProblemKind.REPEATED, f'{self}: header("content-type") occurs twice')
        if types[0] != _STRUCTURED + b"+json":
            raise NoId(ProblemKind.UNREADABLE, f"{self}: of structured modes only JSON is read")
        if record.value is None:
            raise NoId(ProblemKind.NULL_VALUE, f"{self}: structured mode, but the value is null")
        document = read_json(record.value)
        return parts([self._attribute(document, "source"), self._attribute(document, "id")])

    def _attribute(self, document: Document, name: str) -> bytes:
        found = document.get(name) if isinstance(document, dict) else None
        if not isinstance(found, str):
            raise NoId(ProblemKind.UNREADABLE, f'{self}: the value has no text "{name}"')
        return encoded(found, f'{self}: "{name}"')

    def spec(self) -> Spec:
        return ["cloudevent"]

    def __str__(self) -> str:
        return "cloudevent()"


_STRUCTURED: Final = b"application/cloudevents"
_BINARY_MODE: Final = Joined((Header("ce_source"), Header("ce_id")))


def _media_type(value: object) -> bytes:
    """`application/json` of `Application/JSON; charset=UTF-8`."""
    return value.partition(b";")[0].strip().lower() if isinstance(value, bytes) else b""


# -- no ID of its own ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PayloadHash(Source):
    """Two records with one payload are one event. Where nothing is left to hash, none is."""

    stands: ClassVar[Stands] = Stands.ALONE

    without: tuple[str, ...]
    headers: tuple[str, ...]
    with_key: bool

    def find(self, record: Record) -> Composite:
        if record.value is None:
            raise NoId(ProblemKind.NULL_VALUE, f"{self}: the value is null, as any tombstone's")
        fields = [self._payload(record.value)]
        fields += [Header(name).find(record) for name in self.headers]
        if self.with_key:
            fields.append(RecordKey().find(record))
        return Composite(PAYLOAD, packed(fields))

    def _payload(self, value: bytes) -> bytes:
        payload = self._trimmed(value) if self.without else value
        if not payload:
            raise NoId(ProblemKind.EMPTY, f"{self}: nothing is there to be hashed")
        return payload

    def _trimmed(self, value: bytes) -> bytes:
        document = read_exact_json(value)
        for path in self.without:
            leave_out(document, path)
        return b"" if document in (None, "", [], {}) else canonical(document).encode()

    def spec(self) -> Spec:
        return ["payload_hash", list(self.without), list(self.headers), self.with_key]

    def problems(self) -> Iterator[str]:
        for path in self.without:
            if not _is_name(path) or not all(path.split(".")):
                yield f"{self}: without={path!r} is not names separated by dots"
        for name in self.headers:
            yield from Header(name).problems()

    def __str__(self) -> str:
        return "payload_hash()"


@dataclass(frozen=True, slots=True)
class Delivery(Source):
    """Where the record stands in its log."""

    stands: ClassVar[Stands] = Stands.ALONE

    def find(self, record: Record) -> Composite:
        place = (record.topic, str(record.partition), str(record.offset))
        return Composite(DELIVERY, packed(text.encode() for text in place))

    def spec(self) -> Spec:
        return ["delivery"]

    def __str__(self) -> str:
        return "delivery()"


# -- the public names ----------------------------------------------------------------------------


def header(name: str) -> Source:
    """The header `name`: UTF-8 text of at most 1 KiB, once in the record."""
    return Header(name)


def cloudevent() -> Source:
    """`source` and `id` of a CloudEvent: headers (binary mode) or a JSON value (structured)."""
    return CloudEvent()


def field(
    path: str,
    *,
    format: Literal["json", "msgpack"] = "json",  # noqa: A002 - the word for it
) -> Source:
    """What the jmespath expression `path` finds in the value: text, or an integer as decimals.

    Needs the package jmespath.
    """
    return Field(path, format)


def record_key() -> Source:
    """The record's key: any bytes, at most 1 KiB."""
    return RecordKey()


def payload_hash(
    *, without: Iterable[str] = (), headers: Iterable[str] = (), with_key: bool = False
) -> Source:
    """A hash of the value, and if asked of some headers and the record key, which must be there.

    Bare, the value's bytes count. `without` names members of a JSON value to leave out
    ("sent_at", "meta.trace"); then its canonical form counts, whatever the order of its names.
    """
    return PayloadHash(_names(without), _names(headers), with_key)


def _is_name(value: object) -> bool:
    """Whether it is text, and not empty; what a user gives may be anything."""
    return isinstance(value, str) and bool(value)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({names} if isinstance(names, str) else set(names)))


def joined(*sources: Source) -> Source:
    """Several IDs as one, each length-prefixed: `joined(header("tenant"), field("order.id"))`."""
    return Joined(sources)


def custom(fn: Callable[[Record], str | bytes | None], *, version: str) -> Source:
    """Your own function of the record; None where it has no ID. It must always answer the same.

    `version` stands for the function's code: change it whenever a record would get another ID.
    """
    return Custom(fn, version)


def delivery() -> Source:
    """Topic, partition and offset. They identify a *delivery*, not an event.

    Catches the redelivery of one record, and never a producer's second send of the same event.
    A topic that is deleted and created again counts from 0 again: give it another scope.
    """
    return Delivery()
