"""A batch of records becomes keys, fingerprints and problems, row for row.

The fast way takes a column of IDs from the first source and proves with one comparison that all
are UUIDs. Rows that it cannot speak for are asked one by one (`Source.find`), which gives the
same answers, and words the problems.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from hashlib import blake2b
from typing import Final, TypeGuard

import numpy as np
from xxhash import xxh3_64_intdigest

from effectonce.identity.keys import SCHEME, Composite, composite_keys, keys_of, uuid_keys
from effectonce.identity.record import (
    MAX_ID_BYTES,
    Columns,
    IdProblem,
    NoId,
    Record,
    is_utf8,
)
from effectonce.identity.source import Identify, Replacing, Source, ask, chained, current
from effectonce.model import Fingerprints, Keys
from effectonce.native import native
from effectonce.values import dataclass

NULL_FINGERPRINT: Final = 0x6E756C6C
"""Of a null value ("null" in ASCII): a tombstone is not an empty payload."""

SECRET_BYTES: Final = (16, 64)
"""From what cannot be guessed up to what BLAKE2b takes as a key."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Identified:
    """A batch, row for row. A row of `problems` has a key of zeros, which must not be used."""

    keys: Keys
    fingerprints: Fingerprints
    problems: Mapping[int, IdProblem]
    sources: Mapping[str, int]
    """How many rows each source answered for, by its name."""
    ids: Sequence[bytes | None] = field(default=())
    """The IDs of one part; None where `text` must show the key."""

    def text(self, row: int) -> str:
        """The ID for the user's handler: its own text where it is one, else its key in hex.

        A secret, to be treated as such. Two records are one event if their keys are equal.
        Raises LookupError for a row of `problems`.
        """
        key = self.key(row)
        raw = self.ids[row]
        return raw.decode() if raw is not None and is_utf8(raw) else key.hex()

    def key(self, row: int) -> bytes:
        """The 16 bytes of one row. Raises LookupError for a row of `problems`."""
        if row in self.problems:
            raise LookupError(f"no event ID: {self.problems[row].text}")
        return bytes(self.keys[row])

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:  # no keys: a UUID is in there as it is
        return f"Identified({len(self)} records, {len(self.problems)} of them without an ID)"


@dataclass(frozen=True, slots=True)
class Identity:
    """How records are identified: where the ID stands, and the secret that its hash is keyed by."""

    source: Identify
    secret: bytes | None = field(default=None, repr=False)

    def problems(self) -> Iterator[str]:
        """What is wrong with the configuration; the methods below may be used if nothing is."""
        source: object = self.source
        secret: object = self.secret
        if isinstance(source, Identify):
            yield from source.problems()
        else:
            yield (
                f"identify={source!r}: say where the event ID comes from, "
                'effectonce.header("event-id") for example'
            )
        least, most = SECRET_BYTES
        if secret is None:
            return
        if not isinstance(secret, bytes) or not least <= len(secret) <= most:
            yield f"secret: must be {least} to {most} random bytes"

    @property
    def fingerprint(self) -> bytes:
        """8 bytes for the position row: others, whenever a record could get another key."""
        return self._fingerprint_of(current(self.source))

    @property
    def accepted(self) -> frozenset[bytes]:
        """The fingerprints that may stand in the row: this one and those announced as replaced."""
        former = self.source.former if isinstance(self.source, Replacing) else ()
        return frozenset(map(self._fingerprint_of, (current(self.source), *former)))

    def _fingerprint_of(self, source: Source) -> bytes:
        text = json.dumps([SCHEME, source.spec()], separators=(",", ":")).encode()
        key = self.secret or b""
        return blake2b(text, digest_size=8, key=key, person=b"eo1/identity").digest()

    def identify(self, columns: Columns) -> Identified:
        """Keys and fingerprints of a whole batch.

        Measured with batches of 500, values of 100 bytes, the client's own reading of a column
        left out; ns a record, of which 46 are the payload's fingerprint:

            header, UUID, no other header      141      record_key, UUID                 117
            header, UUID, the second of three  228      record_key, other text           593
            header, other text                 615      with a secret, any header        690
            header, UUID, 2% have none         440      one of 500 IDs is no UUID        480

        Sources without a column cost 2,500 (payload_hash) to 8,500 (field) each.
        """
        chain = chained(current(self.source))
        first = chain[0]
        ids = first.column(columns)
        fingerprints = _fingerprints(columns.values())
        keys = uuid_keys(ids) if self.secret is None else None
        if keys is None and _are_plain(ids, first):
            keys = keys_of(ids, self.secret)
        if keys is None:
            return self._identify_rows(columns, chain, ids, fingerprints)
        return Identified(keys, fingerprints, {}, {str(first): len(ids)}, ids)

    def _identify_rows(
        self,
        columns: Columns,
        chain: Sequence[Source],
        ids: list[bytes | None],
        fingerprints: Fingerprints,
    ) -> Identified:
        rows = _rows_to_ask(ids, chain[0])
        answers = Counter({str(chain[0]): len(ids) - len(rows)})
        composites: dict[int, Composite] = {}
        problems: dict[int, IdProblem] = {}
        for row in rows:
            ids[row] = None
            try:
                source, found = ask(chain, Record(columns, row))
            except NoId as no:
                problems[row] = no.problem
                continue
            answers[str(source)] += 1
            if isinstance(found, Composite):
                composites[row] = found
            else:
                ids[row] = found
        keys = self._keys(ids, composites)
        return Identified(keys, fingerprints, problems, +answers, ids)

    def _keys(self, ids: Sequence[bytes | None], composites: Mapping[int, Composite]) -> Keys:
        keys = np.zeros((len(ids), 2), np.uint64)
        if single := [row for row, raw in enumerate(ids) if raw is not None]:
            keys[single] = keys_of([raw for raw in ids if raw is not None], self.secret)
        if composites:
            keys[list(composites)] = composite_keys(composites.values(), self.secret)
        return keys


def _rows_to_ask(ids: Sequence[bytes | None], source: Source) -> list[int]:
    if _are_plain([raw for raw in ids if raw], source):
        return [row for row, raw in enumerate(ids) if not raw]
    return [row for row, raw in enumerate(ids) if not _are_plain((raw,), source)]


def _are_plain(ids: Sequence[bytes | None], source: Source) -> TypeGuard[list[bytes]]:
    """Whether each is an ID as it stands, so that `find` would say the same."""
    try:
        joined = b"\n".join(ids)  # type: ignore[arg-type]
    except TypeError:  # a None: somewhere there is no ID
        return False
    return (
        all(ids)
        and max(map(len, ids), default=0) <= MAX_ID_BYTES  # type: ignore[arg-type]
        and (not source.needs_utf8 or is_utf8(joined))
    )


def _fingerprints(values: Sequence[bytes | None]) -> Fingerprints:
    """The low half of XXH3-64: it must catch accidents, not attacks."""
    if native is not None and isinstance(values, list):
        found = native.fingerprints(values, xxh3_64_intdigest)
        if found is not None:
            return np.frombuffer(found, np.uint32)
    return fingerprints_in_python(values)


def fingerprints_in_python(values: Sequence[bytes | None]) -> Fingerprints:
    """The same, without C; and of null values."""
    count = len(values)
    try:
        wide = np.fromiter(map(xxh3_64_intdigest, values), np.uint64, count)  # type: ignore[arg-type]
    except TypeError:  # a null value
        digests = (NULL_FINGERPRINT if v is None else xxh3_64_intdigest(v) for v in values)
        wide = np.fromiter(digests, np.uint64, count)
    return wide.astype(np.uint32)
