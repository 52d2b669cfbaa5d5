"""One partition in lanes, moved by hand: its log, a store of markers and the position.

Records are written as in builders.py; their lanes likewise, a letter a record, `.` for its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import numpy as np

from effectonce.core.lanes import Admitted, Lanes
from effectonce.core.order import LaneIds
from effectonce.core.plan import Columns, Pending
from effectonce.core.settle import settle
from effectonce.core.stretch import Settlement
from effectonce.model import Commit, Known, OnExisting, Position
from effectonce.policy import Retry
from tests.unit.builders import AT, HALF_MS, NOW, ROW, batch

RETRY: Final = Retry(3, wait_initial=timedelta(seconds=1), jitter=0.0)
ALL: Final = 1_000


def lanes_from(text: str) -> LaneIds | None:
    return [None if lane == "." else lane for lane in text.split()] or None


@dataclass
class Hand:
    """What a driver does, without its loop."""

    lanes: Lanes = field(default_factory=lambda: Lanes(AT, RETRY))
    position: Position = ROW
    store: dict[bytes, int] = field(default_factory=dict)
    come: int = 0
    serial: int = 2
    underway: tuple[Settlement, Commit | None] | None = None

    def known(self, columns: Columns) -> Known:
        found = [self.store.get(columns.keys[i].tobytes()) for i in range(len(columns))]
        return Known(
            np.array([one is not None for one in found], np.bool_),
            np.array([7 if one is None else one for one in found], np.uint32),
        )

    def admit(
        self, records: str, lanes: str = "", pending: Mapping[bytes, Pending] | None = None
    ) -> Admitted:
        """The next records of the log come; what is not admitted comes once more the next time."""
        columns = batch(records, first=self.come)
        admitted = self.admit_columns(columns, lanes_from(lanes), pending)
        self.come += admitted.size
        return admitted

    def admit_columns(
        self,
        columns: Columns,
        lanes: LaneIds | None = None,
        pending: Mapping[bytes, Pending] | None = None,
    ) -> Admitted:
        return self.lanes.admit(
            columns,
            self.known(columns),
            self.position.next,
            asked=self.lanes.commits,
            lanes=lanes,
            pending=pending,
        )

    def start(self, free: int = ALL, now: float = 0.0) -> list[int]:
        return [start.row for start in self.lanes.starts(free, now)]

    def done(self, *rows: int) -> None:
        for row in rows:
            self.lanes.done(row)

    def fail(self, row: int, now: float = 0.0) -> float | None:
        return self.lanes.failed(row, now, 0.0)

    def exhaust(self, row: int) -> None:
        """`row` is in flight, and fails until it may no more."""
        while (wait := self.fail(row)) is not None:
            assert row in self.start(now=wait)

    def send(self) -> Commit | None:
        made = self.lanes.settlement()
        commit = settle(
            self.position,
            made.columns,
            made.plan,
            made.ended,
            moment=replace(NOW),
            half_ms=HALF_MS,
            serial=self.serial,
            on_existing=OnExisting.KEEP_FIRST,
            as_of=made.as_of,
        )
        self.serial += 1
        self.underway = (made, commit)
        return commit

    def answer(self) -> Commit | None:
        assert self.underway is not None
        (made, commit), self.underway = self.underway, None
        if commit is not None:
            self.position = commit.position
            if commit.markers is not None:
                raw = commit.markers.keys.tobytes()
                for i, fingerprint in enumerate(commit.markers.fingerprints.tolist()):
                    self.store[raw[16 * i : 16 * i + 16]] = fingerprint
        self.lanes.committed(made)
        return commit

    def commit(self) -> Commit | None:
        self.send()
        return self.answer()
