"""The store: what is durable (`Disk`), and a process's way to it (`SimStore`).

    embedded   one LOCK a partition, held by a process until it releases it or dies; an event ID is
               caught in its own partition
    keyed      no LOCK, an event ID is caught in its own partition
    shared     no LOCK, an event ID is caught in all partitions

Each call ends in one of four ways: ok, failed, unknown but applied, unknown and not applied. What
a commit meets is decided by stores/commits.py, as in the real stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from effectonce.asking import FRESH_SECONDS
from effectonce.errors import StoreError, StoreLocked, StoreUnavailable
from effectonce.model import (
    UNSET,
    Applied,
    Commit,
    CommitResult,
    Conflict,
    Keys,
    Known,
    Marker,
    OnExisting,
    Opened,
    Partition,
    Position,
    Query,
    Stale,
    Unknown,
)
from effectonce.ports import Durability, Reach, Traits
from effectonce.stores.commits import are_facts, behind, generation_of, judge
from effectonce.stores.index import split
from effectonce.stores.overlay import KeyValueTransaction, Row

Mark = tuple[int, int]
"""Fingerprint and generation."""
Place = tuple[Partition | None, int, bytes]
"""Where a marker stands: its partition (None where all share them), run and key."""


class Disk:
    """Everything durable, and who holds which LOCK."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.id = bytes(range(16))
        self.positions: dict[Partition, Position] = {}
        self.markers: dict[Place, Mark] = {}
        self.rows: dict[Partition, dict[bytes, bytes]] = {}
        self.locks: dict[Partition, str] = {}

    def copy(self) -> Disk:
        """A backup."""
        other = Disk(self.reach)
        other.positions, other.markers = dict(self.positions), dict(self.markers)
        other.rows = {at: dict(rows) for at, rows in self.rows.items()}
        return other

    def put_back(self, backup: Disk) -> None:
        """The contents of an older copy; nobody may have it open, unless it is shared."""
        old = backup.copy()
        self.positions, self.markers, self.rows = old.positions, old.markers, old.rows

    def open(self, at: Partition, topic_id: bytes, above: int = 0) -> Opened:
        row = self.positions.get(at)
        if row is None:
            row = Position(store_id=self.id, topic_id=topic_id, epoch=0)
        epoch = max(row.epoch, above) + 1
        self.positions[at] = replace(row, epoch=epoch)
        return Opened(None if row.next == UNSET else row, epoch)

    def place(self, at: Partition, run: int, key: bytes) -> Place:
        return (None if self.reach is Reach.SHARED else at, run, key)

    def known(self, at: Partition, keys: Keys, run: int) -> Known:
        found = [self.markers.get(self.place(at, run, key)) for key in split(keys)]
        return Known(
            seen=np.array([mark is not None for mark in found], np.bool_),
            fingerprints=np.array([mark[0] if mark else 0 for mark in found], np.uint32),
        )

    def commit(self, commit: Commit) -> CommitResult:
        at, new, markers = commit.at, commit.position, commit.markers
        answer = judge(commit, self.positions.get(at))
        kept = self.reach is not Reach.EMBEDDED and are_facts(commit)
        if isinstance(answer, Stale) and at in self.positions and kept:
            self._mark(commit)
        if answer is not None:
            return answer
        existing = 0
        if markers is not None and len(markers):
            places = [self.place(at, new.run, key) for key in split(markers.keys)]
            there = [row for row, place in enumerate(places) if place in self.markers]
            existing = len(there)
            if existing and commit.on_existing is OnExisting.REFUSE:
                return Conflict(tuple(there))
            self._mark(commit)
        risen = new.floor > self.positions[at].floor
        self.positions[at] = new
        rows = self.rows.setdefault(at, {})
        for key, value in commit.writes:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        if risen:
            self._expire(at)
        return Applied(existing)

    def _mark(self, commit: Commit) -> None:
        assert commit.markers is not None
        generation = generation_of(commit.position)
        fingerprints = commit.markers.fingerprints.tolist()
        for key, fingerprint in zip(split(commit.markers.keys), fingerprints, strict=True):
            place = self.place(commit.at, commit.position.run, key)
            self.markers.setdefault(place, (fingerprint, generation))

    def _expire(self, at: Partition) -> None:
        """Drop what everyone who shares the markers has passed."""
        if self.reach is not Reach.SHARED:
            floor = self.positions[at].floor
        else:
            floor = min(row.floor for row in self.positions.values())
        mine = (at, None)
        self.markers = {
            place: mark
            for place, mark in self.markers.items()
            if mark[1] >= floor or place[0] not in mine
        }


class SimStore:
    """One process's `ports.Store`."""

    def __init__(self, process: Any, disk: Disk) -> None:
        self._process = process
        self._disk = disk
        self.traits = Traits("simulated", disk.reach, Durability.HOST, in_store_effects=True)

    def prepare(self) -> bytes:
        return self._disk.id

    def open(self, at: Partition, topic_id: bytes, *, above: int = 0) -> Opened:
        fate = self._process.enter("store.open")
        holder = self._disk.locks.get(at)
        embedded = self._disk.reach is Reach.EMBEDDED
        if embedded and holder not in (None, self._process.name):
            raise StoreLocked(f"held by {holder}")
        if fate.before:
            raise StoreUnavailable("simulated")
        if embedded:
            self._disk.locks[at] = self._process.name
        opened = self._disk.open(at, topic_id, above)
        log_time_ms = max(row.log_time_ms for row in self._disk.positions.values())
        self._process.world.judge.opened(at, self._process.name, opened.epoch, log_time_ms)
        self._process.leave("store.open", f"epoch {opened.epoch}, {at}")
        if fate.after:
            raise StoreUnavailable("simulated, but done")
        return opened

    def has_positions(self, scope: str, group: str, topic: str) -> bool:
        return any(
            (at.scope, at.group, at.topic) == (scope, group, topic) and row.next != UNSET
            for at, row in self._disk.positions.items()
        )

    def newest_ms(self, scope: str) -> int:
        fate = self._process.enter("store.newest")
        if fate.before or fate.after:
            raise StoreUnavailable("simulated")
        rows = self._disk.positions.items()
        return max((row.log_time_ms for at, row in rows if at.scope == scope), default=UNSET)

    def lookup(self, queries: Sequence[Query]) -> list[Known | StoreError]:
        return [self.answer(query, *self.look(query)) for query in queries]

    def look(self, query: Query) -> tuple[Known | StoreError, float]:
        """What is found, and when."""
        fate = self._process.enter("store.lookup")
        now = self._process.world.schedule.now
        if fate.before or fate.after:
            return StoreUnavailable("simulated"), now
        return self._disk.known(query.at, query.keys, query.run), now

    def answer(self, query: Query, found: Known | StoreError, when: float) -> Known | StoreError:
        """It is told."""
        if isinstance(found, Known):
            world, name = self._process.world, self._process.name
            in_lanes = world.lanes is not None
            world.judge.asked_for(name, query.at, split(query.keys), when, in_lanes=in_lanes)
        return found

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        results: list[CommitResult] = []
        for commit in commits:
            fate = self._process.enter("store.commit")
            said = self._process.world.judge.answered
            unanswered = fate.before or fate.after
            said(commit.at, self._process.name, self._process.steps, answered=not unanswered)
            if fate.before:
                results.append(Unknown(StoreUnavailable("simulated, not applied")))
                continue
            holder = self._disk.locks.get(commit.at)
            if self._disk.reach is Reach.EMBEDDED and holder != self._process.name:
                results.append(Unknown(StoreUnavailable("its database is closed")))
                continue
            before = self._disk.positions.get(commit.at)
            result = self._disk.commit(commit)
            self._process.world.judge.committed(self._process.name, commit, before, result)
            self._process.world.log_time_ms((commit.at.topic, commit.at.number))
            self._process.leave(
                "store.commit",
                f"{type(result).__name__} {commit.at} to {commit.position.next}",
            )
            lost = Unknown(StoreUnavailable("simulated, applied"))
            results.append(lost if fate.after else result)
        return results

    def find(self, at: Partition, key: bytes) -> Marker | None:
        raise NotImplementedError("for people; no driver asks it")

    def transaction(self, at: Partition) -> KeyValueTransaction:
        return KeyValueTransaction(_Rows(self._disk, at))

    def release(self, at: Partition) -> None:
        self._process.enter("store.release")
        running = self._process.running.values()
        late = [event.offset for event in running if event.partition == at.number]
        self._process.world.judge.released(
            at,
            self._process.name,
            self._process.steps,
            busy=bool(late),
            late=late if self._process.world.lanes is not None else None,
        )
        if self._disk.locks.get(at) == self._process.name:
            del self._disk.locks[at]

    def close(self) -> None:
        """The process ends; `Process` frees what it held."""


class SimSharedStore(SimStore):
    """It is on the other side of a wire, so its answers can be waited for later.

    A look-up is answered at the moment that it is sent. What leaves behind it and is applied before
    the answer is taken, is added to it as the real stores do; behind all else it is sent again.
    """

    def __init__(self, process: Any, disk: Disk) -> None:
        super().__init__(process, disk)
        self._questions: list[list[tuple[Commit, CommitResult]]] = []
        """Of each look-up without an answer, what was sent behind it."""

    def send(self, commit: Commit) -> Callable[[], CommitResult]:
        (result,) = self.commit([commit])

        def receipt() -> CommitResult:
            self._process.enter("store.answer")
            return result

        return receipt

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        results = super().commit(commits)
        for question in self._questions:
            question.extend(zip(commits, results, strict=True))
        return results

    def ask(self, query: Query) -> Callable[[], Known | StoreError]:
        found, when = self.look(query)
        sent: list[tuple[Commit, CommitResult]] = []
        self._questions.append(sent)

        def receipt() -> Known | StoreError:
            taken = self._process.world.schedule.now
            self._process.enter("store.answer")
            self._questions = [each for each in self._questions if each is not sent]
            # believed longer than that, what others marked meanwhile would run again
            return self._told(query, found, max(when, taken - FRESH_SECONDS), sent)

        return receipt

    def _told(
        self,
        query: Query,
        found: Known | StoreError,
        when: float,
        sent: Sequence[tuple[Commit, CommitResult]],
    ) -> Known | StoreError:
        for commit, result in sent:
            elsewhere = self._disk.reach is Reach.KEYED and commit.at != query.at
            if elsewhere or commit.position.run != query.run:
                continue
            if isinstance(found, StoreError) or result != Applied():
                return self.lookup([query])[0]
            found = behind(found, query.keys, commit.markers)
        return self.answer(query, found, when)


def store_of(process: Any, disk: Disk) -> SimStore:
    """As far away as the real ones of its reach."""
    return (SimStore if disk.reach is Reach.EMBEDDED else SimSharedStore)(process, disk)


@dataclass(frozen=True, slots=True)
class _Rows:
    disk: Disk
    at: Partition

    def get(self, key: bytes) -> bytes | None:
        return self.disk.rows.get(self.at, {}).get(key)

    def scan(self, prefix: bytes) -> Iterator[Row]:
        rows = self.disk.rows.get(self.at, {})
        return iter(sorted(row for row in rows.items() if row[0].startswith(prefix)))
