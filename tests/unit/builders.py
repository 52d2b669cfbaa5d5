"""Batches, markers and endings in a line of text, for tests of the decisions.

A record is a letter, its event ID; `a'` is the same ID with another payload; `?` has no ID. Endings
are `d`one, `i`gnored, `f`ailed and `u`ntouched, a letter a record.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from effectonce.core.plan import Columns, Pending, Plan, Unidentified, plan
from effectonce.core.settle import Ended, Endings, Moment, settle
from effectonce.model import (
    UNSET,
    Commit,
    Ending,
    Keys,
    Known,
    OnExisting,
    Outcome,
    Partition,
    Position,
    Write,
)

AT: Final = Partition("payments", "billing", "orders", 0)
ELSEWHERE: Final = Partition("payments", "billing", "orders", 1)
HALF_MS: Final = 50_000
WALL_MS: Final = 1_000 * HALF_MS
NOW: Final = Moment(WALL_MS, WALL_MS)
ROW: Final = Position(
    store_id=b"S" * 16,
    topic_id=b"T" * 16,
    epoch=1,
    next=0,
    identify_fingerprint=b"identity",
    window_seconds=2 * HALF_MS // 1_000,
)
_ENDINGS: Final = {
    "d": Ending.DONE,
    "i": Ending.IGNORED,
    "f": Ending.FAILED,
    "u": Ending.UNTOUCHED,
}


def keys_of(ids: Iterable[str]) -> Keys:
    """A key an ID. Those of even letters share one mixed word, so only exactness tells them."""
    codes = np.array([ord(event_id) for event_id in ids], np.uint64)
    even = codes % np.uint64(2) == 0
    low = np.where(even, codes * np.uint64(0x9E3779B97F4A7C15), codes)
    return np.stack([low, np.where(even, codes, 0)], axis=1)


def key(event_id: str) -> bytes:
    return keys_of([event_id]).tobytes()


def payload(record: str) -> int:
    """The fingerprint of a record's payload."""
    return record.count("'")


def batch(records: str, first: int = 0, offsets: Sequence[int] | None = None) -> Columns:
    rows = records.split()
    return Columns(
        at=AT,
        offsets=np.array(offsets or range(first, first + len(rows)), np.int64),
        keys=keys_of(row[0] for row in rows),
        fingerprints=np.array([payload(row) for row in rows], np.uint32),
        unidentified=[i for i, row in enumerate(rows) if row == "?"],
    )


def known(columns: Columns, markers: str = "") -> Known:
    """What a store with these markers answers; noise where it has none, as a store may."""
    stored = {key(row[0]): payload(row) for row in markers.split()}
    found = [stored.get(columns.keys[row].tobytes()) for row in range(len(columns))]
    return Known(
        seen=np.array([one is not None for one in found], np.bool_),
        fingerprints=np.array([7 if one is None else one for one in found], np.uint32),
    )


def pending(records: str, at: Partition = ELSEWHERE) -> dict[bytes, Pending]:
    return {key(row[0]): Pending(at, payload(row)) for row in records.split()}


def planned(
    columns: Columns,
    markers: str = "",
    *,
    position_next: int = 0,
    waiting: Mapping[bytes, Pending] | None = None,
    unidentified: Unidentified = Unidentified.BLOCKS,
    front: str = "",
) -> Plan:
    """`front`: what was planned before; its rows count from 0, whatever the columns' do."""
    rows = {key(row[0]): (i, payload(row)) for i, row in enumerate(front.split())}
    return plan(columns, known(columns, markers), position_next, waiting, unidentified, rows)


def endings(text: str) -> Endings:
    return np.array([_ENDINGS[letter] for letter in text.split()], np.uint8)


def settled(
    columns: Columns,
    made: Plan,
    ended: str,
    *,
    position: Position = ROW,
    outcomes: Mapping[int, Outcome] | None = None,
    writes: tuple[Write, ...] = (),
    moment: Moment = NOW,
    serial: int = 2,
) -> Commit | None:
    return settle(
        position,
        columns,
        made,
        Ended(endings(ended), outcomes or {}, writes),
        moment=moment,
        half_ms=HALF_MS,
        serial=serial,
        on_existing=OnExisting.KEEP_FIRST,
    )


def marked(commit: Commit | None) -> list[int]:
    """The offsets that a commit leaves markers for."""
    if commit is None or commit.markers is None:
        return []
    offsets: list[int] = commit.markers.offsets.tolist()
    return offsets


def reached(commit: Commit | None) -> int:
    return UNSET if commit is None else commit.position.next
