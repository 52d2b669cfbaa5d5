"""What a handler returned, made storable. Nothing after the handler may fail its record.

| returned                         | kept as                                    |
| -------------------------------- | ------------------------------------------ |
| None                             | nothing: the marker alone says "done"      |
| msgpack can hold it, small       | its msgpack                                |
| larger than `limit_bytes`        | UNSTORABLE: "too large", size, digest      |
| anything that msgpack cannot hold | UNSTORABLE: the type's name               |
"""

from __future__ import annotations

from hashlib import blake2b

import msgpack

from effectonce.model import Outcome, OutcomeKind


def encode_outcome(value: object, limit_bytes: int) -> Outcome | None:
    """The row above that fits; never raises."""
    if value is None:
        return None
    try:
        data: bytes = msgpack.packb(value, datetime=True)
        # {(1, 2): 3} can be written and not read
        decode_outcome(Outcome(OutcomeKind.VALUE, data))
    except Exception:  # noqa: BLE001 - packing a mapping of the user's runs code of the user's
        return _unstorable(f"not serialisable: {type(value).__name__}", 0, b"")
    if len(data) > limit_bytes:
        return _unstorable("too large", len(data), blake2b(data, digest_size=16).digest())
    return Outcome(OutcomeKind.VALUE, data)


def _unstorable(reason: str, size: int, digest: bytes) -> Outcome:
    return Outcome(OutcomeKind.UNSTORABLE, msgpack.packb((reason[:200], size, digest)))


def decode_outcome(outcome: Outcome) -> object:
    """What the handler returned (tuples come back as lists); for UNSTORABLE (reason, size, digest).

    Raises ValueError where the bytes are not what `encode_outcome` wrote.
    """
    try:
        value: object = msgpack.unpackb(
            outcome.data, timestamp=3, strict_map_key=False, use_list=True
        )
    except Exception as error:  # msgpack raises a family of unrelated types
        raise ValueError(f"an outcome that cannot be read: {error}") from error
    return value
