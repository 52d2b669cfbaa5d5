"""The table of `core/start.py`, a test a row; and what must hold wherever a crash comes."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from effectonce.core.generation import turn
from effectonce.core.settle import commit_id
from effectonce.core.stall import first_start
from effectonce.core.start import (
    Begin,
    Refuse,
    Reopen,
    Situation,
    StartPolicy,
    Witness,
    first_mark,
    read_witness,
    start,
    witness_of,
)
from effectonce.model import (
    NO_ID,
    UNSET,
    Committed,
    GenerationStart,
    LogEnds,
    Position,
)
from effectonce.policy import Gap, Moved, OnReset
from tests.unit.builders import AT, ROW

STORE, OTHER_STORE = ROW.store_id, b"O" * 16
TOPIC, OLD_TOPIC = ROW.topic_id, b"t" * 16
EPOCH: Final = 7

HAS: Final = replace(
    ROW,
    epoch=EPOCH,
    next=50,
    horizon=20,
    commit_id=commit_id(EPOCH, 9),
    log_time_ms=90_000,
    generations=(GenerationStart(1, 20, 20, 0), GenerationStart(2, 30, 30, 60_000)),
)
"""A row that has run: its markers begin at 20, its position is 50."""
UNTOUCHED: Final = replace(HAS, commit_id=commit_id(EPOCH, 0))
POLICY: Final = StartPolicy(
    identify_fingerprint=ROW.identify_fingerprint,
    accepted_identities=frozenset({ROW.identify_fingerprint, b"previous"}),
    window_seconds=ROW.window_seconds,
)


def ours(
    offset: int, *, store_id: bytes = STORE, topic_id: bytes = TOPIC, epoch: int = EPOCH
) -> Committed:
    return Committed(offset, str(Witness(store_id, epoch, topic_id)))


def foreign(offset: int) -> Committed:
    return Committed(offset, "")


def situation(
    row: Position | None,
    committed: Committed | None,
    *,
    topic_id: bytes = TOPIC,
    log: tuple[int, int] = (0, 100),
    shared: bool = False,
) -> Situation:
    return Situation(
        at=AT,
        row=row,
        epoch=EPOCH + 1,
        store_id=STORE,
        topic_id=topic_id,
        committed=committed,
        log=LogEnds(*log),
        shared=shared,
    )


def decide(s: Situation, policy: StartPolicy) -> tuple[Situation, Begin | Refuse]:
    """Opened anew above an epoch that Kafka has seen, as the driver does it."""
    decided = start(s, policy)
    if isinstance(decided, Reopen):
        assert decided.above >= s.epoch
        row = replace(s.row, epoch=s.epoch) if s.row else None
        s = replace(s, row=row, epoch=decided.above + 1)
        decided = start(s, policy)
    assert not isinstance(decided, Reopen), "asked for ever"
    return s, decided


def begun(s: Situation, policy: StartPolicy = POLICY) -> Begin:
    _, decided = decide(s, policy)
    assert isinstance(decided, Begin), decided
    return decided


def refused(s: Situation, policy: StartPolicy = POLICY) -> Refuse:
    _, decided = decide(s, policy)
    assert isinstance(decided, Refuse), decided
    return decided


# -- the rows --------------------------------------------------------------------------------------


def test_row_1_a_witness_of_an_old_topic_counts_for_nothing_or_its_offset_would_be_believed() -> (
    None
):
    begin = begun(situation(None, ours(70, topic_id=OLD_TOPIC)))
    assert (begin.row, begin.position.next) == ("5", 0)
    begin = begun(situation(HAS, ours(70, topic_id=OLD_TOPIC), shared=True))
    assert (begin.row, begin.position.next) == ("7", 50)


@pytest.mark.parametrize("row", [None, HAS], ids=["none", "has"])
def test_row_2_a_partition_from_another_store_is_refused_or_all_of_its_effects_would_repeat(
    row: Position | None,
) -> None:
    refuse = refused(situation(row, ours(70, store_id=OTHER_STORE)))
    assert refuse.row == "2"
    assert OTHER_STORE.hex()[:8] in refuse.message
    assert 'moved="accept"' in refuse.message


@pytest.mark.parametrize("row", [None, HAS], ids=["none", "has"])
def test_row_2_a_move_that_is_accepted_goes_on_at_the_witness(row: Position | None) -> None:
    accept = replace(POLICY, moved=Moved.ACCEPT)
    begin = begun(situation(row, ours(70, store_id=OTHER_STORE)), accept)
    assert (begin.row, begin.position.next, begin.position.horizon) == ("2", 70, 70)
    assert begin.write
    assert begin.loud


def test_row_2_a_shared_store_that_was_swapped_is_refused_whatever_was_accepted() -> None:
    accept = replace(POLICY, moved=Moved.ACCEPT)
    for row in (None, HAS):
        refuse = refused(situation(row, ours(70, store_id=OTHER_STORE), shared=True), accept)
        assert refuse.row == "2"


def test_row_2_a_directory_copied_from_another_store_is_refused() -> None:
    for policy in (POLICY, replace(POLICY, moved=Moved.ACCEPT)):
        refuse = refused(situation(replace(HAS, store_id=OTHER_STORE), ours(50)), policy)
        assert refuse.row == "2"


@pytest.mark.parametrize("shared", [False, True])
def test_row_3_a_store_that_lost_its_rows_is_refused_or_everything_would_repeat(
    shared: bool,
) -> None:
    refuse = refused(situation(None, ours(70), shared=shared))
    assert refuse.row == "3"
    assert "70" in refuse.message
    assert ("directory" in refuse.message) is not shared, "it has none"


@pytest.mark.parametrize(
    "committed",
    [None, foreign(60), ours(70, topic_id=OLD_TOPIC), ours(3)],
    ids=["none", "foreign", "old topic", "ours"],
)
def test_row_4_a_topic_created_again_begins_at_its_start_or_its_first_records_would_be_lost(
    committed: Committed | None,
) -> None:
    row = replace(HAS, topic_id=OLD_TOPIC, marked_until=60)
    begin = begun(situation(row, committed, log=(2, 9)))
    new = begin.position
    assert (begin.row, new.next, new.horizon, new.topic_id) == ("4", 2, 2, TOPIC)
    assert new.marked_until == UNSET
    assert [(g.generation, g.offset, g.until) for g in new.generations] == [
        (1, 1, 2),
        (2, 1, 2),
    ]
    assert new.run == row.run
    assert begin.write
    assert begin.loud


def test_row_5_a_first_start_is_pinned_or_a_crash_would_start_elsewhere() -> None:
    begin = begun(situation(None, None, log=(5, 100)))
    assert (begin.row, begin.position.next, begin.position.horizon) == ("5", 5, 5)
    assert begin.write
    assert (begin.position.store_id, begin.position.topic_id) == (STORE, TOPIC)
    assert begin.position.epoch == EPOCH + 1


def mark(offset: int, *, store_id: bytes = STORE, topic_id: bytes = TOPIC) -> Committed:
    return Committed(offset, first_mark(store_id, topic_id))


def test_row_5_begins_at_the_mark_of_a_first_start_or_latest_would_hold_for_one_partition() -> None:
    for store_id in (STORE, OTHER_STORE):  # another host of a group that came at the same time
        begin = begun(situation(None, mark(90, store_id=store_id)))
        assert (begin.row, begin.position.next, begin.position.horizon) == ("5", 90, 90)
    assert begun(situation(None, mark(90, topic_id=OLD_TOPIC))).position.next == 0


def test_row_9_a_late_mark_says_nothing_to_a_row_or_two_first_starts_would_refuse() -> None:
    for store_id in (STORE, OTHER_STORE):
        begin = begun(situation(HAS, mark(HAS.next + 3, store_id=store_id)))
        assert (begin.row, begin.position.next, begin.loud) == ("9", HAS.next, None)


def test_row_6_a_plain_group_is_adopted_where_it_stands_or_its_backlog_would_run_again() -> None:
    begin = begun(situation(None, foreign(40)))
    assert (begin.row, begin.position.next, begin.position.horizon) == ("6", 40, 40)
    assert begin.write
    assert begin.loud


def test_row_7_a_shared_store_outlives_offsets_that_expired() -> None:
    begin = begun(situation(HAS, None, shared=True))
    assert (begin.row, begin.position.next, begin.write) == ("7", 50, False)


def test_row_7_an_untouched_row_goes_on_or_a_crash_in_the_first_start_would_need_a_person() -> None:
    begin = begun(situation(UNTOUCHED, None))
    assert (begin.row, begin.position.next, begin.write) == ("7", 50, False)


def test_row_7_a_directory_without_a_witness_is_refused_or_an_old_copy_would_repeat() -> None:
    refuse = refused(situation(HAS, None))
    assert refuse.row == "7"
    assert "50" in refuse.message


@pytest.mark.parametrize("epoch", [EPOCH, EPOCH + 1])
@pytest.mark.parametrize("shared", [False, True])
def test_row_8_a_store_that_went_back_says_so_loudly(epoch: int, shared: bool) -> None:
    begin = begun(situation(HAS, ours(51, epoch=epoch), shared=shared))
    assert (begin.row, begin.position.next, begin.write) == ("8", 50, False)
    assert begin.loud


@pytest.mark.parametrize("gap", [False, True], ids=["8", "12"])
def test_what_a_store_that_went_back_has_forgotten_is_in_doubt_wherever_it_begins(
    gap: bool,
) -> None:
    log = (52, 100) if gap else (0, 100)
    policy = replace(POLICY, gap=Gap.ACCEPT)
    begin = begun(situation(HAS, ours(60), log=log), policy)
    assert (begin.row, begin.in_doubt) == ("12" if gap else "8", True)
    assert not begun(situation(HAS, ours(50), log=log), policy).in_doubt


@pytest.mark.parametrize("seen", [EPOCH + 1, EPOCH + 9])
@pytest.mark.parametrize("row", [None, HAS])
@pytest.mark.parametrize("topic_id", [TOPIC, OLD_TOPIC])
def test_an_epoch_that_kafka_has_seen_is_not_used_again_or_two_owners_were_one(
    seen: int, row: Position | None, topic_id: bytes
) -> None:
    decided = start(situation(row, ours(50, epoch=seen, topic_id=topic_id)), POLICY)
    assert decided == Reopen(above=seen)


@pytest.mark.parametrize(
    ("refused", "until"),
    [
        (replace(HAS, marked_until=70), 70),
        (replace(HAS, marked_until=40), 60),
        (replace(HAS, marked_until=70, topic_id=OLD_TOPIC), 60),
        (replace(HAS, marked_until=70, run=HAS.run + 1), 60),
    ],
    ids=["ahead", "behind", "other topic", "other run"],
)
def test_markers_that_a_refused_commit_left_ahead_pin_their_generation_or_copies_would_run_again(
    refused: Position, until: int
) -> None:
    s = replace(situation(replace(HAS, marked_until=60), ours(50)), refused=refused)
    assert begun(s).position.marked_until == until


def test_an_epoch_of_another_store_is_none_of_ours() -> None:
    assert refused(situation(HAS, ours(50, epoch=EPOCH + 9, store_id=OTHER_STORE))).row == "2"


@pytest.mark.parametrize("committed", [ours(50), ours(49, epoch=3), ours(0)])
def test_row_9_the_store_is_believed_where_kafka_lags_or_the_difference_would_run_again(
    committed: Committed,
) -> None:
    begin = begun(situation(HAS, committed))
    assert begin == Begin("9", replace(HAS, epoch=EPOCH + 1), write=False)


def test_row_10_an_offset_set_to_where_we_stand_changes_nothing() -> None:
    for row, shared in ((HAS, True), (UNTOUCHED, False)):
        begin = begun(situation(row, foreign(50), shared=shared))
        assert (begin.row, begin.position.next, begin.write) == ("10", 50, False)


def test_row_10_what_an_untouched_row_has_answered_is_not_asked_again() -> None:
    begin = begun(situation(replace(UNTOUCHED, pinned_start=30), foreign(30)))
    assert (begin.row, begin.position.next, begin.write) == ("10", 50, False)
    assert begin.loud
    assert refused(situation(replace(HAS, pinned_start=30), foreign(30))).row == "11"


def test_row_10_what_kafka_had_from_us_was_no_reset_or_a_real_one_would_go_unheard() -> None:
    accepted = begun(situation(HAS, ours(50), log=(54, 100)), replace(POLICY, gap=Gap.ACCEPT))
    assert refused(situation(accepted.position, foreign(50))).row == "11"


@pytest.mark.parametrize("to", [30, 50, 70])
def test_row_11_a_reset_is_refused_until_the_user_says_what_it_means(to: int) -> None:
    refuse = refused(situation(HAS, foreign(to)))
    assert refuse.row == "11"
    assert str(to) in refuse.message


def test_row_11_dedupe_goes_back_to_where_markers_are() -> None:
    dedupe = replace(POLICY, on_reset=OnReset.DEDUPE)
    stalled = replace(
        HAS, stalled_opens=2, attempt_offset=50, attempts=1, in_flight=True, leader_epoch=3
    )
    new = begun(situation(stalled, foreign(20)), dedupe).position
    assert (new.next, new.run, new.horizon) == (20, 0, 20)
    assert (new.stalled_opens, new.attempt_offset, new.attempts) == (0, UNSET, 0)
    assert new.leader_epoch == UNSET
    assert new.in_flight, "a killed owner's effects may lie ahead of it still"


def test_row_11_dedupe_goes_forward_too() -> None:
    begin = begun(situation(HAS, foreign(70)), replace(POLICY, on_reset=OnReset.DEDUPE))
    assert (begin.row, begin.position.next, begin.write) == ("11", 70, True)


def test_row_11_dedupe_refuses_to_go_where_markers_are_gone_or_effects_would_repeat() -> None:
    refuse = refused(situation(HAS, foreign(19)), replace(POLICY, on_reset=OnReset.DEDUPE))
    assert refuse.row == "11"
    assert "20" in refuse.message


def test_row_11_reprocess_is_a_new_run_or_its_markers_would_answer_everything() -> None:
    begin = begun(situation(HAS, foreign(10)), replace(POLICY, on_reset=OnReset.REPROCESS))
    new = begin.position
    assert (begin.row, new.next, new.run, new.horizon, begin.write) == ("11", 10, 1, 10, True)


@pytest.mark.parametrize(("to", "begins"), [(70, 70), (30, 50)], ids=["forward", "backward"])
def test_row_11_skip_follows_forward_only(to: int, begins: int) -> None:
    begin = begun(situation(HAS, foreign(to)), replace(POLICY, on_reset=OnReset.SKIP))
    assert (begin.row, begin.position.next, begin.position.run) == ("11", begins, 0)


@pytest.mark.parametrize(
    ("row", "committed"),
    [(HAS, ours(50)), (HAS, ours(60)), (None, foreign(50)), (UNTOUCHED, None)],
    ids=["9", "8", "6", "7"],
)
def test_row_12_records_gone_by_retention_are_never_passed_over_in_silence(
    row: Position | None, committed: Committed | None
) -> None:
    refuse = refused(situation(row, committed, log=(54, 100)))
    assert refuse.row == "12"
    assert "4 records from 50 to 53" in refuse.message
    begin = begun(situation(row, committed, log=(54, 100)), replace(POLICY, gap=Gap.ACCEPT))
    assert (begin.row, begin.position.next, begin.write) == ("12", 54, True)
    assert begin.loud
    assert "4 records from 50 to 53" in begin.loud


def test_row_12_says_also_what_the_row_before_it_had_to_say() -> None:
    begin = begun(
        situation(HAS, ours(60), log=(54, 100)),
        replace(POLICY, gap=Gap.ACCEPT),
    )
    assert begin.loud
    assert "older than Kafka's witness" in begin.loud


@pytest.mark.parametrize("ahead", [False, True])
def test_row_12_markers_ahead_that_the_jump_passes_live_a_window_from_there_or_copies_would_run(
    ahead: bool,
) -> None:
    """Log time may jump a whole window with the first record behind the gap."""
    half_ms = 500 * POLICY.window_seconds
    row = replace(HAS, marked_until=60 if ahead else 50)
    policy = replace(POLICY, gap=Gap.ACCEPT)
    jumped = begun(situation(row, ours(50), log=(70, 100)), policy).position
    far = 100 * half_ms
    first = replace(turn(jumped, far, half_ms), next=71)
    assert (2 in _numbers(first)) == ahead
    assert (2 in _numbers(turn(first, far + 2 * half_ms, half_ms))) == ahead
    assert 2 not in _numbers(turn(first, far + 3 * half_ms, half_ms))


def _numbers(position: Position) -> list[int]:
    return [g.generation for g in position.generations]


@pytest.mark.parametrize(
    ("row", "committed"), [(HAS, ours(50)), (None, foreign(50))], ids=["9", "6"]
)
def test_row_13_a_log_that_was_cut_off_is_refused_or_its_next_records_would_be_skipped(
    row: Position | None, committed: Committed
) -> None:
    refuse = refused(situation(row, committed, log=(0, 49)))
    assert refuse.row == "13"
    assert begun(situation(row, committed, log=(0, 50))).position.next == 50


def test_another_identify_is_refused_or_everything_would_look_new() -> None:
    assert refused(situation(replace(HAS, identify_fingerprint=b"stranger"), ours(50))).row == (
        "identify"
    )


def test_an_announced_identify_is_taken_over_and_written_down() -> None:
    for row, committed in ((HAS, ours(50)), (UNTOUCHED, ours(50)), (HAS, ours(50, epoch=9))):
        before = replace(row, identify_fingerprint=b"previous")
        begin = begun(situation(before, committed))
        assert begin.write
        assert begin.position.identify_fingerprint == ROW.identify_fingerprint
        once = replace(POLICY, accepted_identities=frozenset())
        assert begun(situation(begin.position, committed), once).position.next == 50


def test_a_row_that_has_run_stays_one_that_has_run_or_its_lost_witness_would_go_unnoticed() -> None:
    before = replace(HAS, identify_fingerprint=b"previous")
    begin = begun(situation(before, ours(50)))
    assert refused(situation(begin.position, None)).row == "7"
    started = first_start(AT, begun(situation(None, None)).position, 2).position
    assert refused(situation(started, None)).row == "7"


def test_another_window_is_refused_or_markers_would_go_at_another_time_than_promised() -> None:
    assert refused(situation(replace(HAS, window_seconds=1), ours(50))).row == "window"


def test_a_broker_without_topic_ids_contradicts_nothing_and_makes_nothing_forgotten() -> None:
    for row, committed, topic_id in (
        (HAS, ours(50), NO_ID),
        (replace(HAS, topic_id=NO_ID), ours(50, topic_id=NO_ID), TOPIC),
        (HAS, ours(50, topic_id=NO_ID), TOPIC),
    ):
        begin = begun(situation(row, committed, topic_id=topic_id))
        assert (begin.row, begin.position.next, begin.position.topic_id) == ("9", 50, TOPIC)


# -- the witness -----------------------------------------------------------------------------------

IDS = st.binary(min_size=16, max_size=16)


@given(IDS, st.integers(0, 2**62 - 1), IDS)
def test_a_witness_is_read_as_it_was_written(store_id: bytes, epoch: int, topic_id: bytes) -> None:
    witness = Witness(store_id, epoch, topic_id)
    assert read_witness(str(witness)) == witness
    position = replace(ROW, store_id=store_id, epoch=epoch, topic_id=topic_id)
    assert read_witness(witness_of(position)) == witness


FIELDS = st.one_of(
    st.text("0123456789abcdefAF ;", max_size=33),
    st.sampled_from(["", "eo1", "eo2", STORE.hex(), TOPIC.hex(), STORE.hex().upper(), "7", "07"]),
    st.sampled_from(
        ["-7", "+7", "7 ", "\u0667", "²", "1_0", "9" * 30, "9" * 5_000, f"{STORE.hex()} "]
    ),
)


@given(st.one_of(st.text(), st.lists(FIELDS, max_size=6).map(";".join)))
@example(f"eo1;{STORE.hex()};\u0667;{TOPIC.hex()}")
@example(f"eo1;{STORE.hex()};-7;{TOPIC.hex()}")
@example(f"eo1;{STORE.hex()};{'9' * 5_000};{TOPIC.hex()}")
@example(f"eo1;{STORE.hex()[:30]}  ;7;{TOPIC.hex()}")
@example(f"eo1;{STORE.hex()};7;{TOPIC.hex()};")
@example(f"eo2;{STORE.hex()};7;{TOPIC.hex()}")
@example(f"eo1;{STORE.hex()[:30]};7;{TOPIC.hex()}")
def test_what_we_did_not_write_is_never_taken_for_a_witness(metadata: str) -> None:
    read = read_witness(metadata)
    assert read is None or (
        str(read) == metadata
        and (len(read.store_id), len(read.topic_id)) == (16, 16)
        and read.epoch >= 0
    )


# -- wherever a crash comes ------------------------------------------------------------------------
#
# A small world, whole: every state of row, witness, log and policy, with offsets and epochs on both
# sides of each other.

OFFSETS: Final = (0, 2, 3)
GENERATIONS: Final = (GenerationStart(1, 1, 1, 0), GenerationStart(2, 2, 2, 60_000))


def rows() -> Iterator[Position | None]:
    yield None
    for topic_id, at, (serial, pinned) in product(
        (TOPIC, OLD_TOPIC, NO_ID), OFFSETS, ((0, UNSET), (0, 2), (1, UNSET), (9, 2))
    ):
        yield replace(
            ROW,
            topic_id=topic_id,
            epoch=5,
            next=at,
            horizon=min(at, 1),
            commit_id=commit_id(5, serial),
            pinned_start=pinned,
            generations=GENERATIONS if at == 3 else (),
        )
    row = replace(ROW, epoch=5, next=2)
    yield replace(row, identify_fingerprint=b"previous")
    yield replace(row, identify_fingerprint=b"stranger")
    yield replace(row, window_seconds=1)
    yield replace(row, store_id=OTHER_STORE)


def witnesses() -> Iterator[Committed | None]:
    yield None
    for offset in OFFSETS:
        yield foreign(offset)
        for store_id, topic_id, epoch in product(
            (STORE, OTHER_STORE), (TOPIC, OLD_TOPIC, NO_ID), (0, 4, 6)
        ):
            yield ours(offset, store_id=store_id, topic_id=topic_id, epoch=epoch)


def policies() -> Iterator[StartPolicy]:
    for on_reset, moved, gap in product(OnReset, Moved, Gap):
        yield replace(POLICY, on_reset=on_reset, moved=moved, gap=gap)


def worlds(shared: bool, topic_id: bytes, log: LogEnds) -> Iterator[tuple[Situation, StartPolicy]]:
    for row, committed in product(rows(), witnesses()):
        found = situation(
            row, committed, topic_id=topic_id, log=(log.start, log.end), shared=shared
        )
        for policy in policies():
            yield found, policy


def after_a_crash(s: Situation, begin: Begin, told: bool) -> Situation:
    """What the next owner finds: the row as it was left, Kafka told or not, the log longer."""
    position = begin.position
    written = position if begin.write or s.row is None else replace(s.row, epoch=s.epoch)
    return replace(
        s,
        row=written,
        epoch=s.epoch + 1,
        committed=Committed(position.next, witness_of(position)) if told else s.committed,
        log=replace(s.log, end=s.log.end + 1),
    )


def check_refusal(refuse: Refuse) -> None:
    assert "orders[0]" in refuse.message
    assert "Nothing was run. " in refuse.message


def check_begin(s: Situation, policy: StartPolicy, begin: Begin) -> None:
    new, row = begin.position, s.row
    assert (new.epoch, new.store_id) == (s.epoch, STORE)
    assert s.log.start <= new.next <= s.log.end
    assert new.identify_fingerprint == policy.identify_fingerprint
    assert s.topic_id in (new.topic_id, NO_ID)
    if row is None:
        assert begin.write
        return
    assert begin.write or new == replace(row, epoch=s.epoch)
    assert not begin.write or new.commit_id != row.commit_id
    assert new.run == row.run or policy.on_reset is OnReset.REPROCESS
    if begin.row != "4" and new.run == row.run:
        assert new.horizon >= row.horizon
    if policy == POLICY and begin.row != "4":
        assert new.next == row.next, "moved, and nobody asked for it"


def check_asked_again(s: Situation, policy: StartPolicy, first: Begin) -> None:
    """Once more in one ownership period: the row is written, Kafka was told or did not answer."""
    for told in (False, True):
        _, again = decide(replace(after_a_crash(s, first, told), epoch=s.epoch), policy)
        assert isinstance(again, Begin), again
        assert again.position.next == first.position.next
        # one commit id, one content: or the store would take one for a re-send of the other
        content = replace(again.position, epoch=first.position.epoch)
        assert content == first.position or content.commit_id != first.position.commit_id
        assert not told or again.row != "8", "our own witness is no sign of an older store"


def check_crashes(s: Situation, policy: StartPolicy, first: Begin) -> None:
    """Die, again and again, before Kafka is told, and at last after it."""
    begin = first
    for told in (False, False, True):
        s = after_a_crash(s, begin, told)
        s, again = decide(s, policy)
        assert isinstance(again, Begin), again
        assert again.position.next == first.position.next
        assert again.position.run >= first.position.run
        assert again.position.horizon == first.position.horizon
        begin = again


@pytest.mark.parametrize("log", [LogEnds(0, 2), LogEnds(2, 3)], ids=["young", "aged"])
@pytest.mark.parametrize(
    ("shared", "topic_id"),
    [(False, TOPIC), (False, NO_ID), (True, TOPIC)],
    ids=["embedded", "embedded, no topic ids", "shared"],
)
def test_whatever_is_found_a_start_is_decided_and_a_crash_changes_nothing(
    shared: bool, topic_id: bytes, log: LogEnds
) -> None:
    met = set()
    for s, policy in worlds(shared, topic_id, log):
        s, decided = decide(s, policy)
        try:
            if isinstance(decided, Refuse):
                check_refusal(decided)
            else:
                check_begin(s, policy, decided)
                check_asked_again(s, policy, decided)
                check_crashes(s, policy, decided)
        except AssertionError as error:
            raise AssertionError(f"{decided}\nfor {s}\nunder {policy}") from error
        met.add((type(decided).__name__, decided.row))
    assert len(met) > 10, sorted(met)
