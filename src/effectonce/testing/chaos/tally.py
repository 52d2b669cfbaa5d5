"""The journal folded as it grows: what the director, the view and the end of the run go by."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping

from effectonce.testing.chaos.journal import Kind, Record

_STRIKES = {
    Kind.KILLED: "killed (SIGKILL)",
    Kind.FROZEN: "frozen (SIGSTOP)",
    Kind.ASKED: "asked to leave (SIGTERM)",
}


class Tally:
    """Running sums. `worker` numbers are processes, as in the journal."""

    def __init__(self) -> None:
        self.effects: Counter[int] = Counter()
        """By worker, committed or not."""
        self.fresh = 0
        self.suppressed = 0
        self.next: dict[int, int] = {}
        """By partition, the furthest position that a store holds."""
        self.owner: dict[int, int] = {}
        self.strikes: Counter[int] = Counter()
        """By kind: KILLED, FROZEN, ASKED."""
        self.started: set[int] = set()
        self.frozen: dict[int, int] = {}
        """Workers that are frozen, and since when (ns)."""
        self.overtaken: set[int] = set()
        """Frozen workers of whose partitions another process has been given one."""
        self.last_progress = time.monotonic()
        self.news: deque[str] = deque(maxlen=8)
        self._uncommitted: dict[int, dict[int, list[int]]] = {}

    def add(self, record: Record) -> None:
        match record.kind:
            case Kind.EFFECT:
                self.effects[record.worker] += 1
                mine = self._uncommitted.setdefault(record.worker, {})
                mine.setdefault(record.partition, []).append(record.offset)
            case Kind.COMMITTED:
                self.fresh += record.a
                self.suppressed += record.b
                self._reach(record.partition, record.offset)
                mine = self._uncommitted.setdefault(record.worker, {})
                left = [o for o in mine.get(record.partition, ()) if o >= record.offset]
                mine[record.partition] = left
            case Kind.BEGAN:
                self._reach(record.partition, record.offset)
            case Kind.ASSIGNED:
                before = self.owner.get(record.partition, record.worker)
                if before != record.worker and before in self.frozen:
                    self.overtaken.add(before)
                self.owner[record.partition] = record.worker
            case Kind.RELEASED if self.owner.get(record.partition) == record.worker:
                del self.owner[record.partition]
            case _:
                self._note_worker(record)

    def uncommitted(self, worker: int) -> int:
        """Effects that this worker has made and not committed."""
        return sum(map(len, self._uncommitted.get(worker, {}).values()))

    @property
    def passed(self) -> int:
        """Records that the stored positions have passed."""
        return sum(self.next.values())

    def caught_up(self, ends: Mapping[int, int]) -> bool:
        return all(self.next.get(partition, 0) >= end for partition, end in ends.items())

    def _reach(self, partition: int, offset: int) -> None:
        if offset > self.next.get(partition, 0):
            self.next[partition] = offset
            self.last_progress = time.monotonic()

    def _note_worker(self, record: Record) -> None:
        if record.kind in _STRIKES:
            self.strikes[record.kind] += 1
            left = self.uncommitted(record.worker)
            self.news.append(
                f"worker {record.worker} {_STRIKES[Kind(record.kind)]}"
                + (f", {left} effects not committed" if left else "")
            )
        if record.kind == Kind.STARTED:
            self.started.add(record.worker)
        elif record.kind == Kind.FROZEN:
            self.frozen[record.worker] = record.time_ns
        elif record.kind == Kind.THAWED:
            self.frozen.pop(record.worker, None)
            self.overtaken.discard(record.worker)
            self.news.append(f"worker {record.worker} thawed (SIGCONT)")
        elif record.kind == Kind.ENDED:
            self._uncommitted.pop(record.worker, None)
            self.frozen.pop(record.worker, None)
            self.owner = {p: w for p, w in self.owner.items() if w != record.worker}
