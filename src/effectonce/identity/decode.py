"""Documents from strangers, read strictly: JSON and msgpack, and a canonical form to hash.

Refused, because two readers would not agree on the ID: a name that occurs twice in one object,
NaN and Infinity, text that is not UTF-8, bytes behind the document. Refused, because one record
must not stall a partition: more than MAX_BYTES, more than MAX_DEPTH levels. A msgpack map's keys
must be text or bytes (numbers can be crafted so that they all collide in Python's dict).

Whatever the bytes, only `NoId` comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeAlias, cast

import msgpack

from effectonce.identity.record import NoId, ProblemKind

MAX_BYTES: Final = 16 * 1024 * 1024
"""Sixteen times what a Kafka broker takes by default (message.max.bytes)."""

MAX_DEPTH: Final = 128
"""As serde_json; below Python's own limit, which depends on how deep the caller stands."""

Document: TypeAlias = object


def read_json(value: bytes) -> Document:
    """Numbers as Python has them."""
    return _read("JSON", value, lambda raw: _JSON.decode(raw.decode()))


def read_exact_json(value: bytes) -> Document:
    """Every number is a `Number`, so that none is rounded."""
    return _read("JSON", value, lambda raw: _EXACT_JSON.decode(raw.decode()))


def read_msgpack(value: bytes) -> Document:
    """Timestamps and extensions as msgpack's own types."""
    return _read("msgpack", value, partial(msgpack.unpackb, object_pairs_hook=_object))


def _read(form: str, value: bytes, decode: Callable[[bytes], object]) -> Document:
    if len(value) > MAX_BYTES:
        raise NoId(
            ProblemKind.UNREADABLE, f"the value has {len(value)} bytes; {MAX_BYTES} are read"
        )
    try:
        document = decode(value)
    except (ValueError, RecursionError) as error:
        # the error's own text may quote the value
        raise NoId(
            ProblemKind.UNREADABLE, f"the value is not {form} ({type(error).__name__})"
        ) from None
    if _too_deep(document):
        raise NoId(ProblemKind.UNREADABLE, f"the value has more than {MAX_DEPTH} levels")
    return document


def _too_deep(document: Document) -> bool:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: object) -> Iterable[object]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NoId(ProblemKind.REPEATED, "a name occurs twice in one object of the value")
    return members


class Number(str):
    """A number of a document as its exact decimal value: `-12e3`, with no zeros at the end.

    1, 1.0 and 10e-1 are one number; 0.1 and 0.10000000000000001 are two, though not as floats.
    """

    __slots__ = ()

    @classmethod
    def read(cls, literal: str) -> Number:
        mantissa, _, exponent = literal.lower().partition("e")
        whole, _, fraction = mantissa.partition(".")
        sign = "-" if whole.startswith("-") else ""
        digits = (whole + fraction).lstrip("-0")
        if not digits:
            return cls("0")
        significant = digits.rstrip("0")
        scale = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
        return cls(f"{sign}{significant}e{scale}")


def canonical(document: Document) -> str:
    """JSON with one spelling a document: names sorted, no spaces, ASCII, `Number` as it is.

    Like RFC 8785, which however rounds numbers to doubles: two amounts could become one event.
    """
    if isinstance(document, dict):
        members = sorted(cast(dict[str, object], document).items())
        return "{" + ",".join(f"{json.dumps(k)}:{canonical(v)}" for k, v in members) + "}"
    if isinstance(document, list):
        return "[" + ",".join(map(canonical, document)) + "]"
    return document if isinstance(document, Number) else json.dumps(document)


def leave_out(document: Document, path: str) -> None:
    """Remove the member at `path` (names, separated by dots), where there is one."""
    *parents, last = path.split(".")
    for name in parents:
        document = document.get(name) if isinstance(document, dict) else None
    if isinstance(document, dict):
        document.pop(last, None)


def _no_number(literal: str) -> object:
    raise ValueError(literal)  # NaN, Infinity, -Infinity


_JSON: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)
_EXACT_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_no_number,
    parse_int=Number.read,
    parse_float=Number.read,
)
