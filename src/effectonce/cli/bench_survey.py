"""What a sample holds, read once before anything is measured: IDs, repeats, conflicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from effectonce.cli.bench_reading import Sample, SampleClient
from effectonce.errors import BrokerError
from effectonce.identity import Identity
from effectonce.ports import Records, TopicPartition

FETCH: Final = 1_000
FETCH_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts are of records."""

    records: int
    value_bytes: int
    repeats: int
    """With an ID that came before, in whatever partition."""
    elsewhere: int
    """Of those, the ones that a store which keeps partitions apart does not catch."""
    conflicts: int
    """Event IDs with more than one payload, as far as the store compares them."""
    missing: Mapping[str, int]
    """Without a usable ID, by what is wrong."""
    headers: Sequence[str] = ()
    """The names in the first of those."""

    @property
    def without_id(self) -> int:
        return sum(self.missing.values())

    def caught(self, *, everywhere: bool) -> int:
        """The repeats that the store finds."""
        return self.repeats if everywhere else self.repeats - self.elsewhere


@dataclass(slots=True)
class _Columns:
    """What is kept of the records that have an ID: partition, key, fingerprint."""

    rows: list[NDArray[np.uint64]] = field(default_factory=list)
    records: int = 0
    value_bytes: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    headers: Sequence[str] = ()

    def add(self, records: Records, identity: Identity) -> None:
        identified = identity.identify(records)
        if identified.problems and not self.missing:
            first = records.headers()[min(identified.problems)]
            self.headers = [name for name, _ in first or ()]
        self.missing.update(problem.text for problem in identified.problems.values())
        self.records += len(records)
        self.value_bytes += sum(len(value) for value in records.values() if value is not None)
        rows = np.empty((len(records), 4), np.uint64)
        rows[:, 0] = records.partition
        rows[:, 1:3] = identified.keys
        rows[:, 3] = identified.fingerprints
        self.rows.append(np.delete(rows, list(identified.problems), axis=0))


def survey(
    config: Mapping[str, Any], sample: Sample, identity: Identity, *, everywhere: bool
) -> Survey:
    """Read the sample. Raises BrokerError."""
    columns = _Columns()
    client = SampleClient(config, sample)
    try:
        client.subscribe([sample.topic], _Alone())
        left = {(sample.topic, number): span for number, span in sample.filled.items()}
        for at, (begin, _) in left.items():
            client.seek(at, begin)
        client.resume(list(left))
        while left:
            for records in client.fetch(FETCH, FETCH_SECONDS):
                columns.add(records, identity)
            # control records at the end are never delivered, but the client passes them
            left = {at: span for at, span in left.items() if client.position(at) < span[1]}
    finally:
        client.close()
    rows = np.concatenate(columns.rows) if columns.rows else np.empty((0, 4), np.uint64)
    apart, together = _distinct(rows[:, :3]), _distinct(rows[:, 1:3])
    compared = rows[:, 1:] if everywhere else rows
    return Survey(
        columns.records,
        columns.value_bytes,
        repeats=len(rows) - together,
        elsewhere=apart - together,
        conflicts=_distinct(compared) - (together if everywhere else apart),
        missing=columns.missing,
        headers=columns.headers,
    )


def _distinct(rows: NDArray[np.uint64]) -> int:
    if not len(rows):
        return 0
    ordered = rows[np.lexsort(rows.T)]
    return 1 + int((ordered[1:] != ordered[:-1]).any(axis=1).sum())


class _Alone:
    """A listener to whom no rebalance happens."""

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_lost(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_commit_refused(self, partitions: Sequence[TopicPartition]) -> None: ...

    def on_position_gone(self, partition: TopicPartition, reason: str) -> None:
        raise BrokerError(f"{partition[0]}[{partition[1]}]: the sample is gone: {reason}")

    def on_topic_gone(self, topic: str, reason: str) -> None:
        raise BrokerError(f"{topic} is gone: {reason}")
