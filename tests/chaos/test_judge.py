"""The judge finds what is planted, and its counts of faults cannot be had for less."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from effectonce.testing.chaos.journal import Kind, Record
from effectonce.testing.chaos.judge import SIGKILLED, Counted, Verdict, judge
from effectonce.testing.chaos.plan import Mode, Spec

MS = 1_000_000
A, B, C, D = (bytes([n]) * 16 for n in range(4))


class Journal:
    """Records a millisecond apart, unless `wait` says more."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._now = 0

    def add(
        self,
        kind: Kind,
        worker: int,
        partition: int = 0,
        offset: int = 0,
        a: int = 0,
        b: int = 0,
        event: bytes = bytes(16),
    ) -> "Journal":
        self._now += MS
        self.records.append(Record(kind, worker, self._now, partition, offset, a, b, event))
        return self

    def wait(self, milliseconds: int) -> "Journal":
        self._now += milliseconds * MS
        return self

    def effect(self, worker: int, event: bytes, offset: int, partition: int = 0) -> "Journal":
        return self.add(Kind.EFFECT, worker, partition, offset, event=event)

    def commit(self, worker: int, following: int, partition: int = 0) -> "Journal":
        return self.add(Kind.COMMITTED, worker, partition, following)

    def kill(self, worker: int) -> "Journal":
        return self.add(Kind.KILLED, worker).add(Kind.ENDED, worker, a=SIGKILLED)

    def outside(self, *produced: bytes, batch: int = 10) -> Verdict:
        return judge(Mode.OUTSIDE_REPEAT, batch, produced, self.records, None)

    def in_store(self, produced: list[bytes], found: Mapping[bytes, Counted]) -> Verdict:
        return judge(Mode.IN_STORE, 10, produced, self.records, found)


# -- lost, repeated, explained ---------------------------------------------------------------------


def test_an_event_that_no_target_saw_is_lost() -> None:
    assert Journal().effect(1, A, 0).commit(1, 2).outside(A, B).lost == 1


def test_an_event_that_no_store_holds_is_lost_whatever_the_workers_said() -> None:
    journal = Journal().effect(1, A, 0).effect(1, B, 1).commit(1, 2)
    assert journal.in_store([A, B], {A: Counted(1, 1)}).lost == 1


def test_a_count_of_two_in_the_store_is_a_repeat_that_no_kill_excuses() -> None:
    journal = Journal().effect(1, A, 0).kill(1).effect(2, A, 0).commit(2, 1)
    verdict = journal.in_store([A], {A: Counted(2, 2)})
    assert (verdict.effects, verdict.repeated, verdict.unexplained_repeats) == (2, 1, 1)
    assert verdict.broken(Mode.IN_STORE)


def test_an_effect_that_nobody_ordered_is_found() -> None:
    verdict = Journal().effect(1, A, 0).effect(1, B, 1).commit(1, 2).outside(A)
    assert verdict.unknown_effects == 1
    assert verdict.broken(Mode.OUTSIDE_REPEAT)


def test_a_repeat_after_a_kill_is_explained_if_nothing_was_committed_beyond_it() -> None:
    verdict = Journal().effect(1, A, 0).kill(1).effect(2, A, 0).commit(2, 1).outside(A)
    assert (verdict.repeated, verdict.unexplained_repeats) == (1, 0)
    assert not verdict.broken(Mode.OUTSIDE_REPEAT)


def test_a_repeat_of_what_was_committed_is_unexplained_though_its_process_was_killed() -> None:
    journal = Journal().effect(1, A, 0).commit(1, 1).kill(1).effect(2, A, 0).commit(2, 1)
    verdict = journal.outside(A)
    assert verdict.unexplained_repeats == 1
    assert verdict.broken(Mode.OUTSIDE_REPEAT)


def test_a_commit_of_another_partition_covers_nothing() -> None:
    journal = Journal().effect(1, A, 0).commit(1, 9, partition=1).kill(1).effect(2, A, 0)
    assert journal.outside(A).unexplained_repeats == 0


def test_a_producers_copy_that_runs_again_is_unexplained() -> None:
    verdict = Journal().effect(1, A, 0).effect(1, A, 1).commit(1, 2).outside(A)
    assert verdict.unexplained_repeats == 1


def test_a_copy_that_ran_before_the_kill_is_not_excused_by_it() -> None:
    verdict = Journal().effect(1, A, 0).effect(1, A, 1).kill(1).outside(A)
    assert verdict.unexplained_repeats == 1


def test_a_kill_of_somebody_else_explains_nothing() -> None:
    verdict = Journal().effect(1, A, 0).kill(3).effect(2, A, 0).outside(A)
    assert verdict.unexplained_repeats == 1


def test_one_kill_excuses_no_more_than_one_batch() -> None:
    events = (A, B, C, D)
    journal = Journal()
    for offset, event in enumerate(events):
        journal.effect(1, event, offset)
    journal.kill(1)
    for offset, event in enumerate(events):
        journal.effect(2, event, offset)
    assert journal.outside(*events, batch=3).unexplained_repeats == 1
    assert journal.outside(*events, batch=4).unexplained_repeats == 0


def test_a_repeat_is_explained_by_a_store_that_was_killed_meanwhile_and_by_no_other() -> None:
    journal = Journal().effect(1, A, 0).wait(50).effect(1, A, 0)
    first, repeat = (record.time_ns for record in journal.records)

    def unexplained(*killed_ns: int) -> int:
        verdict = judge(Mode.OUTSIDE_REPEAT, 10, [A], journal.records, None, killed_ns)
        return verdict.unexplained_repeats

    assert unexplained(first + 1) == 0
    assert unexplained() == unexplained(repeat + 1) == unexplained(first - 300 * MS) == 1


def test_a_repeat_during_a_freeze_is_explained_and_one_after_its_own_commit_is_not() -> None:
    frozen = Journal().effect(1, A, 0).add(Kind.FROZEN, 1).effect(2, A, 0).add(Kind.THAWED, 1)
    assert frozen.outside(A).unexplained_repeats == 0
    thawed = Journal().effect(1, A, 0).add(Kind.FROZEN, 1).add(Kind.THAWED, 1).commit(1, 1)
    assert thawed.effect(2, A, 0).outside(A).unexplained_repeats == 1


# -- the faults: each counts for what it did ------------------------------------------------------


def test_one_event_a_freeze_may_run_in_the_thawed_process_though_another_ran_it_meanwhile() -> None:
    meanwhile = Journal().add(Kind.FROZEN, 1).effect(2, A, 0).effect(2, B, 1).commit(2, 2)
    thawed = meanwhile.add(Kind.THAWED, 1).effect(1, A, 0)
    assert thawed.outside(A, B).unexplained_repeats == 0
    assert thawed.effect(1, B, 1).outside(A, B).unexplained_repeats == 1
    before = Journal().effect(2, A, 0).commit(2, 1).add(Kind.FROZEN, 1).add(Kind.THAWED, 1)
    assert before.effect(1, A, 0).outside(A).unexplained_repeats == 1


def test_a_kill_is_near_an_effect_for_200_ms() -> None:
    assert Journal().effect(1, A, 0).wait(198).kill(1).outside(A).kills_near_effect == 1
    assert Journal().effect(1, A, 0).wait(200).kill(1).outside(A).kills_near_effect == 0
    assert Journal().effect(2, A, 0).kill(1).outside(A).kills_near_effect == 0


def test_a_kill_is_between_effect_and_commit_only_if_another_had_to_make_that_effect() -> None:
    open_effect = Journal().effect(1, A, 0).kill(1)
    assert open_effect.outside(A).kills_between_effect_and_commit == 0
    assert open_effect.effect(2, A, 0).outside(A).kills_between_effect_and_commit == 1


def test_in_the_store_it_is_the_last_writer_who_tells_what_a_kill_undid() -> None:
    journal = Journal().effect(1, A, 0).kill(1).effect(2, A, 0).commit(2, 1)
    assert journal.in_store([A], {A: Counted(1, 2)}).kills_between_effect_and_commit == 1
    unsaid = Journal().effect(1, A, 0).kill(1)  # the commit was made, its note cut off
    assert unsaid.in_store([A], {A: Counted(1, 1)}).kills_between_effect_and_commit == 0


def test_a_kill_after_the_commit_is_not_between() -> None:
    journal = Journal().effect(1, A, 0).commit(1, 1).kill(1).effect(2, A, 0)
    assert journal.outside(A).kills_between_effect_and_commit == 0


def test_a_signal_to_a_process_that_ended_otherwise_is_no_kill() -> None:
    journal = Journal().effect(1, A, 0).add(Kind.KILLED, 1).add(Kind.ENDED, 1, a=1)
    verdict = journal.outside(A)
    assert (verdict.kills, verdict.worker_failures) == (0, 1)


def test_a_freeze_counts_only_if_another_got_its_partition_meanwhile() -> None:
    def freezes(journal: Journal) -> int:
        return journal.outside().freezes

    def held() -> Journal:
        return Journal().add(Kind.ASSIGNED, 1, 5).add(Kind.FROZEN, 1)

    assert freezes(held().add(Kind.ASSIGNED, 2, 5).add(Kind.THAWED, 1)) == 1
    assert freezes(held().add(Kind.THAWED, 1).add(Kind.ASSIGNED, 2, 5)) == 0
    assert freezes(held().add(Kind.ASSIGNED, 2, 6).add(Kind.THAWED, 1)) == 0
    given_up = Journal().add(Kind.ASSIGNED, 1, 5).add(Kind.RELEASED, 1, 5).add(Kind.FROZEN, 1)
    assert freezes(given_up.add(Kind.ASSIGNED, 2, 5).add(Kind.THAWED, 1)) == 0


def test_a_leave_counts_only_if_it_ended_well() -> None:
    def leave(code: int) -> Verdict:
        return Journal().add(Kind.ASKED, 1).add(Kind.ENDED, 1, a=code).outside()

    assert (leave(0).leaves, leave(0).worker_failures) == (1, 0)
    assert (leave(1).leaves, leave(1).worker_failures) == (0, 1)
    assert (leave(SIGKILLED).leaves, leave(SIGKILLED).worker_failures) == (0, 1)


@pytest.mark.parametrize("code", [0, 1, -11])
def test_a_worker_that_ends_by_itself_breaks_the_promise(code: int) -> None:
    verdict = Journal().add(Kind.STARTED, 1).add(Kind.ENDED, 1, a=code).outside()
    assert verdict.worker_failures == 1
    assert verdict.broken(Mode.OUTSIDE_REPEAT)


def test_partitions_handed_out_together_are_one_rebalance() -> None:
    journal = Journal().add(Kind.ASSIGNED, 1, 0).add(Kind.ASSIGNED, 2, 1).wait(150)
    assert journal.add(Kind.ASSIGNED, 1, 1).outside().rebalances == 2


# -- the sentence ----------------------------------------------------------------------------------

SPEC = Spec(seed=0, kills=5, freezes=1, leaves=1)
CLEAN = Verdict(
    lost=0,
    repeated=0,
    unexplained_repeats=0,
    unknown_effects=0,
    worker_failures=0,
    effects=10,
    suppressed=0,
    kills=5,
    kills_near_effect=4,
    kills_between_effect_and_commit=1,
    freezes=1,
    leaves=1,
    rebalances=5,
)


def test_a_clean_run_has_nothing_to_complain_of() -> None:
    assert not CLEAN.broken(Mode.IN_STORE)
    assert not CLEAN.broken(Mode.OUTSIDE_REPEAT)
    assert not CLEAN.not_shown(SPEC)


@pytest.mark.parametrize(
    ("mode", "field"),
    [
        *((mode, name) for mode in Mode for name in ("lost", "unknown_effects", "worker_failures")),
        (Mode.IN_STORE, "repeated"),
        (Mode.OUTSIDE_REPEAT, "unexplained_repeats"),
    ],
)
def test_a_broken_promise_is_said(mode: Mode, field: str) -> None:
    assert len(replace(CLEAN, **{field: 1}).broken(mode)) == 1


def test_explained_repeats_break_no_promise_outside() -> None:
    assert not replace(CLEAN, repeated=3).broken(Mode.OUTSIDE_REPEAT)


@pytest.mark.parametrize(
    "field",
    [
        *("kills", "kills_near_effect", "kills_between_effect_and_commit"),
        *("freezes", "leaves", "rebalances"),
    ],
)
def test_a_fault_too_few_fails_the_run(field: str) -> None:
    short = replace(CLEAN, **{field: getattr(CLEAN, field) - 1})
    assert len(short.not_shown(SPEC)) == 1
