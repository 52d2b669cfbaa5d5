"""One owner of one partition, as contract tests and scripts play it: opens, commits, looks back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from effectonce.errors import StoreError
from effectonce.model import (
    UNSET,
    Applied,
    Commit,
    CommitResult,
    GenerationStart,
    Keys,
    Known,
    Marker,
    Markers,
    OnExisting,
    Outcome,
    OutcomeKind,
    Partition,
    Position,
    Query,
    Write,
)
from effectonce.ports import KeyValueTx, Store, Transaction

AT: Final = Partition("payments", "billing", "orders", 0)
OTHER: Final = replace(AT, number=1)
TOPIC_ID: Final = bytes(range(16))

VALUE: Final = Outcome(OutcomeKind.VALUE, b"\x93\x01\x02\x03")
UNSTORABLE: Final = Outcome(OutcomeKind.UNSTORABLE, b"\x93\xa9too large\xcd\x03\xe8\xc0")

EVERY_FIELD: Final = Position(
    store_id=bytes(16),
    topic_id=b"another topic id",
    epoch=1,
    next=2**62,
    leader_epoch=2**31 - 1,
    run=2**32 - 1,
    horizon=2**62 - 1,
    log_time_ms=2**60,
    floor=3,
    marked_until=2**62 + 9,
    stalled_opens=70_000,
    attempt_offset=2**62 + 1,
    attempts=70_001,
    pinned_start=17,
    identify_fingerprint=b"\x00\xff12345\x00",
    window_seconds=2**32 - 1,
    wall_ms=2**61,
    in_flight=True,
    generations=(
        GenerationStart(3, 2**61, 2**61 + 1, 2**59),
        GenerationStart(5, 2**62, 2**62 + 7, UNSET),
    ),
)
"""No field as it is by default, and the numbers near the ends of what their columns hold."""


def keys_of(*numbers: int) -> Keys:
    """A key a number: distinct, and spread like digests."""
    rows = np.array(numbers, np.uint64).reshape(-1, 1)
    mixed = (rows + np.uint64(1)) * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
    return np.ascontiguousarray(mixed)


def key_bytes(number: int) -> bytes:
    """The key of a number, as a marker holds it."""
    return keys_of(number).tobytes()


def fingerprint_of(number: int) -> int:
    """Any function will do that differs from number to number."""
    return (number * 2_654_435_761 + 7) % 2**32


def markers_of(
    numbers: Sequence[int], first_offset: int, outcomes: Mapping[int, Outcome] | None = None
) -> Markers:
    """Markers of records that follow each other, a number an event."""
    return Markers(
        keys=keys_of(*numbers),
        fingerprints=np.array([fingerprint_of(n) for n in numbers], np.uint32),
        offsets=np.arange(first_offset, first_offset + len(numbers), dtype=np.int64),
        outcomes=outcomes or {},
    )


def start_of(row: Position) -> Position:
    """What a start writes where nothing was: offset 0, generation 1."""
    return replace(row, next=0, generations=(GenerationStart(1, 0, 0, 1_000),), floor=1)


def tx_of(transaction: Transaction) -> KeyValueTx:
    """The `tx` of the next event, as the type that key-value stores hand out."""
    tx = transaction.begin()
    assert isinstance(tx, KeyValueTx)
    return tx


@dataclass(slots=True)
class Owner:
    """One ownership period of one partition: remembers the position it may expect."""

    store: Store
    at: Partition
    position: Position
    serial: int = 0

    @staticmethod
    def open(store: Store, at: Partition = AT) -> Owner:
        """Open the partition; where nothing was, start it at offset 0."""
        owner = Owner.unstarted(store, at)
        if owner.position.next == UNSET:
            assert owner.commit(to=start_of(owner.position)) == Applied()
        return owner

    @staticmethod
    def unstarted(store: Store, at: Partition = AT) -> Owner:
        """Open the partition and write nothing."""
        opened = store.open(at, TOPIC_ID)
        if opened.row is not None:
            return Owner(store, at, replace(opened.row, epoch=opened.epoch))
        blank = Position(store_id=store.prepare(), topic_id=TOPIC_ID, epoch=opened.epoch)
        return Owner(store, at, blank)

    def commit(
        self,
        numbers: Sequence[int] = (),
        *,
        to: Position | None = None,
        outcomes: Mapping[int, Outcome] | None = None,
        writes: tuple[Write, ...] = (),
        on_existing: OnExisting = OnExisting.KEEP_FIRST,
    ) -> CommitResult:
        """Mark `numbers` as the next records, or write the position `to`."""
        commit = self.prepared(
            numbers, to=to, outcomes=outcomes, writes=writes, on_existing=on_existing
        )
        result = self.send(commit)
        if isinstance(result, Applied):
            self.position = commit.position
        return result

    def prepared(
        self,
        numbers: Sequence[int] = (),
        *,
        to: Position | None = None,
        outcomes: Mapping[int, Outcome] | None = None,
        writes: tuple[Write, ...] = (),
        on_existing: OnExisting = OnExisting.KEEP_FIRST,
    ) -> Commit:
        self.serial += 1
        before = self.position
        after = to or replace(before, next=before.next + len(numbers))
        commit_id = after.epoch.to_bytes(8, "big") + self.serial.to_bytes(8, "big")
        return Commit(
            at=self.at,
            follows=before.commit_id,
            position=replace(after, commit_id=commit_id),
            markers=markers_of(numbers, max(before.next, 0), outcomes) if numbers else None,
            writes=writes,
            on_existing=on_existing,
        )

    def send(self, commit: Commit) -> CommitResult:
        (result,) = self.store.commit([commit])
        return result

    def seen(self, *numbers: int, run: int | None = None) -> list[bool]:
        known = self.known(*numbers, run=run)
        mask: list[bool] = known.seen.tolist()
        return mask

    def known(self, *numbers: int, run: int | None = None) -> Known:
        run = self.position.run if run is None else run
        (answer,) = self.store.lookup([Query(self.at, keys_of(*numbers), run)])
        assert not isinstance(answer, StoreError)
        return answer

    def marker(self, number: int) -> Marker:
        marker = self.store.find(self.at, key_bytes(number))
        assert marker is not None
        return marker

    def put(self, *rows: tuple[bytes, bytes]) -> CommitResult:
        """Commit rows of the user's own through a transaction."""
        transaction = self.store.transaction(self.at)
        tx = tx_of(transaction)
        for key, value in rows:
            tx.put(key, value)
        transaction.keep(tx)
        return self.commit(writes=transaction.writes())

    def rows(self, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        return list(tx_of(self.store.transaction(self.at)).scan(prefix))


def next_generation(position: Position, generation: int, floor: int) -> Position:
    """`position` as the core turns it when log time enters `generation`."""
    until = max(position.next, position.marked_until)
    entered = GenerationStart(generation, position.next, until, 1_000 * generation)
    return replace(
        position,
        generations=tuple(g for g in (*position.generations, entered) if g.generation >= floor),
        floor=floor,
    )
