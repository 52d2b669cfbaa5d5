"""An event ID becomes a 16-byte key.

| ID | key | variant bits |
| --- | --- | --- |
| lower-case 36-character UUID text, RFC 4122 variant, no secret | its 16 bytes | `10` |
| anything else that is one text or byte string | BLAKE2b-128 | `11` |
| several parts, a payload, a delivery | BLAKE2b-128, personalised by its domain | `11` |
| no ID | 16 zero bytes, never to be looked up | `00` |

The variant bits are the top two of byte 8. Hashes have them forced to `11`, so no crafted UUID
equals the hash of somebody else's ID; and with a secret, which keys the hash, every ID is hashed.
An ID has one key wherever it was found: moving it from a header to the record key changes nothing.
Keys are stored: whatever changes one here makes every event new, and needs another `SCHEME`.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import compress
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from effectonce.model import Keys
from effectonce.native import native

SCHEME: Final = "eo1"
KEY_BYTES: Final = 16

_UUID: Final = b"hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh"
_CLASSES: Final = bytes(
    ord("h") if c in b"0123456789abcdef" else c if c in b"-\n" else 0 for c in range(256)
)
_VARIANT_AT: Final = 19
_VARIANTS: Final = b"89ab"
_VARIANT_BYTE: Final = 8
_HASH_BITS: Final = 0xC0


PARTS: Final = b"eo1/parts"
PAYLOAD: Final = b"eo1/payload"
DELIVERY: Final = b"eo1/delivery"
"""Domains: what a composite is made of, as its hash's personalisation. None is a prefix of another,
and none may be longer than BLAKE2b's 16 bytes."""


class Composite(NamedTuple):
    """An identity of more than one text: only its hash is ever used."""

    domain: bytes
    data: bytes


EventId: TypeAlias = bytes | Composite


def packed(fields: Iterable[bytes]) -> bytes:
    """Length-prefixed, so that ("a", "bc") and ("ab", "c") stay two."""
    return b"".join([len(field).to_bytes(4, "big") + field for field in fields])


def parts(ids: Iterable[EventId]) -> Composite:
    """Several IDs as one. Their first byte tells a text from a part that is itself composite."""
    fields = [b"=" + part if isinstance(part, bytes) else b"".join(part) for part in ids]
    return Composite(PARTS, packed(fields))


def uuid_keys(ids: Sequence[bytes | None]) -> Keys | None:
    """The keys of a batch in which every ID is a UUID; None if a single one is not."""
    if native is None or not isinstance(ids, list):
        return uuid_keys_at_once(ids)
    raw = native.uuid_keys(ids)
    return None if raw is None else np.frombuffer(raw, np.uint64).reshape(-1, 2)


def uuid_keys_at_once(ids: Sequence[bytes | None]) -> Keys | None:
    """The same, without C.

    One comparison proves them all. Joined by newlines, they equal the template only if every
    newline stands where a join of 36-character texts has it; there are no more newlines than the
    join put in, so no ID holds one, and each ID is one line.
    """
    try:
        joined = b"\n".join(ids)  # type: ignore[arg-type]
    except TypeError:  # a None: somewhere there is no ID
        return None
    if joined.translate(_CLASSES) != ((_UUID + b"\n") * len(ids))[:-1]:
        return None
    if joined[_VARIANT_AT :: len(_UUID) + 1].strip(_VARIANTS):
        return None
    return _raw(joined)


def keys_of(ids: Sequence[bytes], secret: bytes | None) -> Keys:
    """The keys of single IDs of any kind, row for row."""
    if secret is not None:
        return _hashed(ids, secret)
    if (keys := uuid_keys(ids)) is not None:
        return keys
    uuids = [row for row, raw in enumerate(ids) if len(raw) == len(_UUID) and _is_uuid(raw)]
    if not uuids:
        return _hashed(ids, None)
    hashed = np.ones(len(ids), np.bool_)
    hashed[uuids] = False
    keys = np.empty((len(ids), 2), np.uint64)
    keys[uuids] = _raw(b"\n".join([ids[row] for row in uuids]))
    keys[hashed] = _hashed(list(compress(ids, hashed)), None)
    return keys


def composite_keys(composites: Iterable[Composite], secret: bytes | None) -> Keys:
    """The keys of composite IDs, row for row."""
    key = secret or b""
    return _with_hash_bits(
        [
            blake2b(data, digest_size=KEY_BYTES, key=key, person=domain).digest()
            for domain, data in composites
        ]
    )


def _is_uuid(raw: bytes) -> bool:
    return raw.translate(_CLASSES) == _UUID and raw[_VARIANT_AT] in _VARIANTS


def _raw(joined: bytes) -> Keys:
    raw = unhexlify(joined.translate(None, b"-\n"))
    return np.frombuffer(raw, np.uint64).reshape(-1, 2)


def _hashed(ids: Sequence[bytes], secret: bytes | None) -> Keys:
    key = secret or b""
    return _with_hash_bits([blake2b(raw, digest_size=KEY_BYTES, key=key).digest() for raw in ids])


def _with_hash_bits(digests: Sequence[bytes]) -> Keys:
    raw = np.frombuffer(bytearray().join(digests), np.uint8).reshape(-1, KEY_BYTES)
    raw[:, _VARIANT_BYTE] |= _HASH_BITS
    return raw.view(np.uint64)
