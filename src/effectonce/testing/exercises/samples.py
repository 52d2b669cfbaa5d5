"""The records that a handler is exercised with: `Sample`, and a log of them.

| given as              | is                                                       |
| --------------------- | -------------------------------------------------------- |
| `Sample(...)`         | itself                                                   |
| `(id, value)`         | `Sample(id, value)`                                      |
| `{"id": ..., ...}`    | `Sample(**it)`                                           |
| value: bytes, None    | itself                                                   |
| value: str            | its UTF-8                                                |
| value: anything else  | its JSON                                                 |
| headers: left out     | `event-id` with the sample's id, where most look for it  |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from effectonce.identity import Identity, only_header
from effectonce.model import UNSET, Offsets
from effectonce.ports import Headers, Records

BORN_MS: Final = 1_800_000_000_000
"""Every sample's timestamp, and where the members' wall clocks start."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One record as a producer would send it. `id` is how the report names it."""

    id: str
    value: object = None
    key: bytes | str | None = None
    headers: Mapping[str, bytes | str] | None = None

    def problems(self) -> Iterator[str]:
        """What could not be sent."""
        if not _is(str, self.id) or not self.id:
            yield f"id={self.id!r}: a text, for the report to name the record by"
        if not _is(bytes | str | None, self.key):
            yield f"key={self.key!r}: bytes, str or None"
        if self.headers is not None and not (
            _is(Mapping, self.headers)
            and _is(str, *self.headers)
            and _is(bytes | str, *self.headers.values())
        ):
            yield f"headers={self.headers!r}: a mapping of str to bytes or str"
        try:
            self.value_bytes()
        except (TypeError, ValueError) as error:
            yield f"value: bytes, str, None, or what JSON can say: {error}"

    def value_bytes(self) -> bytes | None:
        if self.value is None or isinstance(self.value, bytes | str):
            return _bytes(self.value)
        return json.dumps(self.value).encode()

    def key_bytes(self) -> bytes | None:
        return _bytes(self.key)

    def header_pairs(self) -> list[tuple[str, bytes | None]]:
        headers = {"event-id": self.id} if self.headers is None else self.headers
        return [(name, _bytes(value)) for name, value in headers.items()]


class SampleLog:
    """`ports.Records` over samples, the first of which has the offset `first`."""

    __slots__ = ("first", "partition", "samples", "topic")

    def __init__(self, topic: str, samples: Sequence[Sample], first: int = 0) -> None:
        self.topic, self.partition = topic, 0
        self.samples, self.first = samples, first

    def __len__(self) -> int:
        return len(self.samples)

    def offsets(self) -> Offsets:
        return np.arange(self.first, self.first + len(self.samples), dtype=np.int64)

    def values(self) -> Sequence[bytes | None]:
        return [sample.value_bytes() for sample in self.samples]

    def keys(self) -> Sequence[bytes | None]:
        return [sample.key_bytes() for sample in self.samples]

    def headers(self) -> Sequence[Headers]:
        return [sample.header_pairs() for sample in self.samples]

    def only_header(self, name: str) -> list[bytes | None] | None:
        return only_header(self.headers(), name, len(self))

    def timestamp_ms(self, row: int) -> int:
        return BORN_MS + self.first + row

    def leader_epoch(self, row: int) -> int:
        del row
        return UNSET

    def part(self, start: int, stop: int | None = None) -> Records:
        return SampleLog(self.topic, self.samples[start:stop], self.first + start)

    def then(self, behind: SampleLog) -> Records:
        return SampleLog(self.topic, [*self.samples, *behind.samples], self.first)


def samples_of(records: object, problems: list[str]) -> list[Sample]:
    """The samples that are meant; what none can be made of is added to `problems`."""
    if isinstance(records, str | bytes | Mapping) or not isinstance(records, Sequence):
        problems.append("records: a list of Sample(...), (id, value) or dicts")
        return []
    if not records:
        problems.append("records: at least one; two or three show the most")
    samples: list[Sample] = []
    for number, record in enumerate(records):
        sample = _sample(record)
        if sample is None:
            problems.append(
                f"records[{number}]: a Sample(...), (id, value) or a dict of its fields"
            )
        elif found := list(sample.problems()):
            problems += [f"records[{number}]: {problem}" for problem in found]
        else:
            samples.append(sample)
    names = [sample.id for sample in samples]
    for twice in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"records: the id {twice!r} stands twice; copies are made for you")
    return samples


def id_problems(samples: Sequence[Sample], topic: str, identity: Identity) -> Iterator[str]:
    """Where `identify` would find no event ID, or one ID in two samples."""
    identified = identity.identify(SampleLog(topic, samples))
    owner: dict[bytes, str] = {}
    for row, sample in enumerate(samples):
        if row in identified.problems:
            yield (
                f"record {sample.id!r}: `identify` finds no event ID: "
                f"{identified.problems[row].text}; give Sample(headers=...) or a value that has it"
            )
        elif (first := owner.setdefault(identified.key(row), sample.id)) != sample.id:
            yield f"records {first!r} and {sample.id!r} have one event ID; copies are made for you"


def _sample(record: Any) -> Sample | None:
    try:
        match record:
            case Sample():
                return record
            case Mapping():
                return Sample(**record)
            case (sample_id, value):
                return Sample(sample_id, value)
            case _:
                return None
    except TypeError:
        return None


def _is(kind: Any, *values: object) -> bool:
    """Whether they have the type that they are annotated with: users need not run mypy."""
    return all(isinstance(value, kind) for value in values)


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
