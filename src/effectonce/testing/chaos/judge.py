"""The judge: from the plan, the journal and the stores to what was lost, repeated and shown.

Pure, and it trusts no consumer: an effect counts where its target saw it (the journal), or, in the
store, where it is read back after everybody has gone.

    lost                  a produced event without an effect
    repeated              an effect beyond its event's first
    explained             (outside) the process that ran it before was then killed or frozen, had
                          committed nothing beyond it, and left no more than one batch of these;
                          or the store was killed as the process ran it, which could then not mark
                          it before it had to give the partition up; or the process that ran it
                          again had been frozen in it, and the other ran it meanwhile: one a freeze
    kill near an effect   the killed process made one within 200 ms before
    kill between effect and commit
                          an effect that it never committed, and that another had to make
    freeze                another process was given a partition that the frozen one held
    rebalance             partitions handed out, with no more than 100 ms between two of them
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import NamedTuple

from effectonce.testing.chaos.journal import Kind, Record
from effectonce.testing.chaos.plan import Mode, Spec

NEAR_NS = 200_000_000
ROUND_NS = 100_000_000
SIGKILLED = -9


class Counted(NamedTuple):
    """How often an event took effect in the store, and the worker that did it last."""

    times: int
    worker: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run showed. Zeros in the first block are the promise."""

    lost: int
    repeated: int
    unexplained_repeats: int
    unknown_effects: int
    """Effects of events that were never produced."""
    worker_failures: int
    """Workers that ended by themselves, or not cleanly when they were asked to leave."""

    effects: int
    suppressed: int
    """Repeats that workers said they skipped. What a killed one could not say is missing."""
    kills: int
    kills_near_effect: int
    kills_between_effect_and_commit: int
    freezes: int
    leaves: int
    rebalances: int

    def broken(self, mode: Mode) -> list[str]:
        """Where the promise of the mode was not kept, in words."""
        found = []
        if self.lost:
            found.append(f"{self.lost} events never took effect")
        if mode is Mode.IN_STORE and self.repeated:
            found.append(f"{self.repeated} effects were repeats")
        if mode is Mode.OUTSIDE_REPEAT and self.unexplained_repeats:
            found.append(f"{self.unexplained_repeats} repeats have no kill or freeze behind them")
        if self.unknown_effects:
            found.append(f"{self.unknown_effects} effects belong to no event that was produced")
        if self.worker_failures:
            found.append(f"{self.worker_failures} workers ended by themselves or uncleanly")
        return found

    def not_shown(self, spec: Spec) -> list[str]:
        """Faults that were demanded and did not happen: without them the run proves nothing."""
        demands = (
            ("kills", self.kills, spec.kills),
            ("kills near an effect", self.kills_near_effect, spec.kills_near_effect),
            (
                "kills between an effect and its commit",
                self.kills_between_effect_and_commit,
                spec.kills_between_effect_and_commit,
            ),
            ("freezes past the session", self.freezes, spec.freezes),
            ("graceful leaves", self.leaves, spec.leaves),
            ("rebalances", self.rebalances, spec.kills),
        )
        return [
            f"{found} {what}, {wanted} demanded"
            for what, found, wanted in demands
            if found < wanted
        ]


def judge(
    mode: Mode,
    batch: int,
    produced: Iterable[bytes],
    journal: Sequence[Record],
    in_store: Mapping[bytes, Counted] | None,
    store_killed_ns: Sequence[int] = (),
) -> Verdict:
    """`produced` are the distinct events; `in_store` is what the stores held in the end."""
    history = _History(journal)
    if mode is Mode.IN_STORE:
        assert in_store is not None
        times = Counter({event: counted.times for event, counted in in_store.items()})
        committed_by = {event: counted.worker for event, counted in in_store.items()}
    else:
        times = Counter({event: len(runs) for event, runs in history.runs.items()})
        committed_by = {event: runs[-1].worker for event, runs in history.runs.items()}
    distinct = set(produced)
    repeated = times.total() - len(times)
    outside = mode is Mode.OUTSIDE_REPEAT
    explained = history.explained_repeats(batch, store_killed_ns) if outside else 0
    return Verdict(
        lost=sum(1 for event in distinct if not times[event]),
        repeated=repeated,
        unexplained_repeats=repeated - explained,
        unknown_effects=sum(n for event, n in times.items() if event not in distinct),
        worker_failures=history.worker_failures(),
        effects=times.total(),
        suppressed=sum(record.b for record in history.of(Kind.COMMITTED)),
        kills=len(history.killed),
        kills_near_effect=sum(map(history.was_near_effect, history.killed)),
        kills_between_effect_and_commit=sum(
            history.undid_an_effect(worker, committed_by) for worker in history.killed
        ),
        freezes=sum(map(history.lost_its_partitions, history.of(Kind.FROZEN))),
        leaves=len({r.worker for r in history.of(Kind.ASKED) if history.exits.get(r.worker) == 0}),
        rebalances=_rounds(record.time_ns for record in history.of(Kind.ASSIGNED)),
    )


class _History:
    """The journal, sorted by what the questions ask."""

    def __init__(self, journal: Sequence[Record]) -> None:
        self._kinds: dict[int, list[Record]] = defaultdict(list)
        for record in sorted(journal, key=lambda record: record.time_ns):
            self._kinds[record.kind].append(record)
        self.exits = {record.worker: record.a for record in self.of(Kind.ENDED)}
        self.killed = {
            record.worker: record.time_ns
            for record in self.of(Kind.KILLED)
            if self.exits.get(record.worker) == SIGKILLED  # else it had ended before the signal
        }
        self.runs: dict[bytes, list[Record]] = defaultdict(list)
        self._made: dict[int, list[Record]] = defaultdict(list)
        for effect in self.of(Kind.EFFECT):
            self.runs[effect.event].append(effect)
            self._made[effect.worker].append(effect)
        self._commits: dict[tuple[int, int], list[Record]] = defaultdict(list)
        for commit in self.of(Kind.COMMITTED):
            self._commits[commit.worker, commit.partition].append(commit)

    def of(self, kind: Kind) -> list[Record]:
        """In the order of their times."""
        return self._kinds[kind]

    def was_near_effect(self, worker: int) -> bool:
        made = self._made[worker]
        return bool(made) and made[-1].time_ns >= self.killed[worker] - NEAR_NS

    def undid_an_effect(self, worker: int, committed_by: Mapping[bytes, int]) -> bool:
        """Not merely unsaid: a commit whose note was cut off leaves nothing for others to do."""
        return any(
            committed_by.get(effect.event) not in (None, worker) and not self._committed(effect)
            for effect in self._made[worker]
        )

    def explained_repeats(self, batch: int, store_killed_ns: Sequence[int]) -> int:
        in_doubt: Counter[tuple[int, float]] = Counter()
        thawed_in: set[tuple[int, int]] = set()
        for runs in self.runs.values():
            for first, repeat in pairwise(runs):
                struck = self._struck_after(first)
                outages = [at for at in store_killed_ns if at >= first.time_ns - NEAR_NS]
                struck = min(struck, *outages) if outages else struck
                if struck < repeat.time_ns and not self._committed(first, repeat.time_ns):
                    in_doubt[first.worker, struck] += 1
                elif (thawed := self._frozen_in(first, repeat)) is not None:
                    thawed_in.add((repeat.worker, thawed))
        return sum(min(count, batch) for count in in_doubt.values()) + len(thawed_in)

    def _frozen_in(self, first: Record, repeat: Record) -> int | None:
        """When the repeating process was thawed, if it was frozen as the other ran the event."""
        mine = [r.time_ns for r in self.of(Kind.THAWED) if r.worker == repeat.worker]
        thawed = max((at for at in mine if at < repeat.time_ns), default=0)
        frozen = [r.time_ns for r in self.of(Kind.FROZEN) if r.worker == repeat.worker]
        since = max((at for at in frozen if at < thawed), default=thawed)
        return thawed if since < first.time_ns < thawed else None

    def lost_its_partitions(self, frozen: Record) -> bool:
        thawed = next(
            (
                record.time_ns
                for record in self.of(Kind.THAWED)
                if record.worker == frozen.worker and record.time_ns > frozen.time_ns
            ),
            frozen.time_ns,
        )
        held: set[int] = set()
        for record in sorted(
            self.of(Kind.ASSIGNED) + self.of(Kind.RELEASED), key=lambda record: record.time_ns
        ):
            if record.time_ns > thawed:
                break
            if record.worker == frozen.worker:
                change = held.add if record.kind == Kind.ASSIGNED else held.discard
                change(record.partition)
            elif (
                record.time_ns > frozen.time_ns
                and record.kind == Kind.ASSIGNED
                and record.partition in held
            ):
                return True
        return False

    def worker_failures(self) -> int:
        asked = {record.worker for record in self.of(Kind.ASKED) + self.of(Kind.DISMISSED)}
        return sum(
            1
            for worker, code in self.exits.items()
            if worker not in self.killed and (code != 0 or worker not in asked)
        )

    def _struck_after(self, effect: Record) -> float:
        """When the process that made this effect was next killed or frozen; never: infinity."""
        strikes = [
            record.time_ns for record in self.of(Kind.FROZEN) if record.worker == effect.worker
        ]
        strikes += [self.killed[effect.worker]] if effect.worker in self.killed else []
        return min((time for time in strikes if time >= effect.time_ns), default=inf)

    def _committed(self, effect: Record, before_ns: float = inf) -> bool:
        """Whether the process that made this effect went on to commit past it."""
        return any(
            commit.offset > effect.offset and effect.time_ns <= commit.time_ns < before_ns
            for commit in self._commits[effect.worker, effect.partition]
        )


def _rounds(times_ns: Iterable[int]) -> int:
    rounds, last = 0, -inf
    for time_ns in times_ns:
        if time_ns - last > ROUND_NS:
            rounds += 1
        last = time_ns
    return rounds
