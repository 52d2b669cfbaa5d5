"""Lanes in the driver: `run(handler, lanes=...)` on a client that lives in this process."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

import effectonce as eo
from effectonce.errors import StoreUnavailable
from effectonce.hooks import BatchCommitted, HookEvent, PartitionStalled, Retrying
from effectonce.model import Commit, CommitResult, Position, Stale, Unknown
from effectonce.ports import Records
from effectonce.stores.memory import MemoryStore
from tests.unit.lone import Log, LogClient, SomeRecords, consumer_of

pytestmark = pytest.mark.timeout(30)

PATIENCE = 10.0
OUTSIDE = eo.Outside("repeat")
TWICE = eo.Retry(2, wait_initial=timedelta(0), wait_max=timedelta(0))


class KeyedRecords(SomeRecords):
    """An ID is written `key/n`, or `n` alone for a record without a key."""

    def keys(self) -> Sequence[bytes | None]:
        return [each.encode().rpartition(b"/")[0] or None for _, each in self.rows]


class KeyedLog(Log):
    def read(self, offset: int, limit: int) -> SomeRecords:
        return KeyedRecords(super().read(offset, limit).rows)


def log_of(*ids: str) -> KeyedLog:
    return KeyedLog(dict(enumerate(ids)))


def key_of(event: eo.Event) -> str:
    return event.id.rpartition("/")[0]


class Kept(MemoryStore):
    """What its position and its markers are."""

    def row(self) -> Position:
        (row,) = self._tables.positions.values()
        return row


def lanes_of(log: Log, store: MemoryStore | None = None, **policy: Any) -> eo.OnceConsumer:
    usual: dict[str, Any] = {"effects": OUTSIDE, "retry": TWICE}
    return consumer_of(LogClient(log, a_poll=100), store or MemoryStore(), **{**usual, **policy})


@contextmanager
def watched() -> Iterator[list[HookEvent]]:
    seen: list[HookEvent] = []
    eo.hooks.set_hooks([seen.append])
    try:
        yield seen
    finally:
        eo.hooks.set_hooks([])


class Gate:
    """Who waits at it, in which order they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.came: list[str] = []
        self._open: set[str] = set()

    def pass_through(self, name: str) -> None:
        with self._changed:
            self.came.append(name)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: name in self._open, PATIENCE), name

    def note(self, name: str) -> None:
        with self._changed:
            self.came.append(name)
            self._changed.notify_all()

    def open(self, *names: str) -> None:
        with self._changed:
            self._open.update(names)
            self._changed.notify_all()

    def until(self, what: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(what, PATIENCE), self.came


# -- order -----------------------------------------------------------------------------------------


def test_records_of_one_key_run_in_order_and_others_beside_them() -> None:
    ids = [f"{'abcd'[n % 4]}/{n}" for n in range(80)]
    ran: dict[str, list[int]] = {}
    most, now, lock = 0, Counter[str](), threading.Lock()

    def handler(event: eo.Event) -> None:
        nonlocal most
        key = key_of(event)
        with lock:
            now[key] += 1
            assert now[key] == 1, "two of a lane at once"
            most = max(most, now.total())
            ran.setdefault(key, []).append(event.offset)
        time.sleep(0.001)
        with lock:
            now[key] -= 1

    with lanes_of(log_of(*ids)) as consumer:
        consumer.run(handler, until=eo.END, lanes=8)
    assert {key: sorted(offsets) for key, offsets in ran.items()} == ran
    assert sum(map(len, ran.values())) == 80
    assert 2 <= most <= 4


def test_a_stuck_key_holds_up_its_own_lane_and_no_other() -> None:
    gate = Gate()

    def handler(event: eo.Event) -> None:
        if event.id == "a/0":
            gate.pass_through("a/0")
        else:
            gate.note(event.id)

    with lanes_of(log_of("a/0", "b/1", "a/2", "c/3", "4")) as consumer:
        thread = threading.Thread(target=lambda: consumer.run(handler, until=eo.END, lanes=3))
        thread.start()
        gate.until(lambda: set(gate.came) == {"a/0", "b/1", "c/3", "4"})
        gate.open("a/0")
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert gate.came[-1] == "a/2"


def test_a_lane_of_the_users_own_decides_what_runs_in_order() -> None:
    ran: list[str] = []

    def handler(event: eo.Event) -> None:
        ran.append(event.id)

    ids = [f"{n % 2}/{n}" for n in range(20)]
    with lanes_of(log_of(*ids)) as consumer:
        consumer.run(handler, until=eo.END, lanes=4, lane=lambda event: "all of them")
    assert ran == ids


def test_in_the_order_of_the_partition_no_two_run_at_once() -> None:
    now, most = [0], [0]

    def handler(event: eo.Event) -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.001)
        now[0] -= 1

    with lanes_of(log_of("a/0", "b/1", "c/2", "3")) as consumer:
        consumer.run(handler, until=eo.END, lanes=2, order="partition")
    assert most == [1]


def test_in_no_order_two_of_one_key_run_at_once() -> None:
    both = threading.Barrier(2)
    with lanes_of(log_of("a/0", "a/1", "a/2", "a/3")) as consumer:
        consumer.run(lambda event: both.wait(PATIENCE), until=eo.END, lanes=2, order="none")


def test_a_lane_that_raises_stops_its_partition_there_once_all_in_front_is_passed() -> None:
    ran: list[str] = []

    def lane(event: eo.Event) -> str:
        if event.id == "2":
            raise KeyError("customer")
        return "one"

    store = Kept()
    with (
        lanes_of(log_of("0", "1", "2", "3"), store) as consumer,
        pytest.raises(eo.HandlerFailed, match=r"offset 2: lane=\.\.\. raised KeyError"),
    ):
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=4, lane=lane)
    assert ran == ["0", "1"]
    assert store.row().next == 2


def test_a_repeat_behind_a_lane_that_raises_does_not_end_the_consumer_instead() -> None:
    store = Kept()
    with lanes_of(log_of("a", "b"), store) as consumer:
        consumer.run(lambda event: None, until=eo.END, lanes=2)

    def lane(event: eo.Event) -> str:
        if event.id == "d":
            raise KeyError("customer")
        return "one"

    with (
        lanes_of(log_of("a", "b", "c", "d", "a"), store) as consumer,
        pytest.raises(eo.HandlerFailed, match="offset 3: lane="),
    ):
        consumer.run(lambda event: None, until=eo.END, lanes=2, lane=lane)
    assert store.row().next == 3


# -- what fails ------------------------------------------------------------------------------------


def test_what_fails_is_tried_again_in_its_lane_and_told_so() -> None:
    told: list[tuple[str, bool]] = []

    def handler(event: eo.Event) -> None:
        told.append((event.id, event.maybe_repeated))
        if event.id == "a/0" and not event.maybe_repeated:
            raise ValueError

    with watched() as seen, lanes_of(log_of("a/0", "a/1", "b/2")) as consumer:
        consumer.run(handler, until=eo.END, lanes=3)
    in_lane = [each for each in told if each[0].startswith("a")]
    assert in_lane == [("a/0", False), ("a/0", True), ("a/1", False)]
    assert ("b/2", False) in told
    (retrying,) = [each for each in seen if isinstance(each, Retrying)]
    assert (retrying.offset, retrying.attempt) == (0, 1)


def test_a_poisoned_key_stops_its_partition_after_all_in_front_and_a_restart_repeats_nothing() -> (
    None
):
    ran, store, log = list[str](), Kept(), log_of("a/0", "b/1", "c/2", "b/3", "a/4")
    after = threading.Event()

    def handler(event: eo.Event) -> None:
        ran.append(event.id)
        if event.id == "c/2":
            after.set()
        if event.id == "b/1":
            assert after.wait(PATIENCE)
            raise ValueError

    with (
        watched() as seen,
        lanes_of(log, store) as consumer,
        pytest.raises(eo.HandlerFailed, match="offset 1: the handler failed 2 times"),
    ):
        consumer.run(handler, until=eo.END, lanes=3)
    assert "b/3" not in ran, "it stands behind the one that failed"
    assert [each.offset for each in seen if isinstance(each, PartitionStalled)] == [1]
    assert store.row().next == 1
    first, ran = ran, []
    with lanes_of(log, store) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=3)
    done_before = {"a/0", "c/2"} | ({"a/4"} & set(first))
    assert sorted(ran) == sorted({"b/1", "b/3", "a/4"} - done_before)


def test_sys_exit_in_a_lane_lets_the_others_end_and_leaves_its_record_unmarked() -> None:
    ran, store, log, gate = list[str](), Kept(), log_of("a/0", "b/1"), Gate()

    def handler(event: eo.Event) -> None:
        if event.id == "a/0":
            gate.until(lambda: bool(gate.came))
            raise SystemExit(3)
        gate.note(event.id)
        time.sleep(0.05)
        ran.append(event.id)

    with lanes_of(log, store) as consumer:
        with pytest.raises(SystemExit) as raised:
            consumer.run(handler, lanes=2)
        assert raised.value.code == 3
        assert ran == ["b/1"]
    with lanes_of(log, store) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=2)
    assert ran == ["b/1", "a/0"]


def test_ctrl_c_lets_what_runs_end_and_is_raised_then() -> None:
    ran, store, log = list[str](), Kept(), log_of("a/0", "b/1", "a/2")

    def handler(event: eo.Event) -> None:
        if event.id == "a/0":
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)
        ran.append(event.id)

    with lanes_of(log, store) as consumer, pytest.raises(KeyboardInterrupt):
        consumer.run(handler, lanes=2)
    first, ran = ran, []
    assert {"a/0", "b/1"} <= set(first)
    with lanes_of(log, store) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=2)
    assert sorted(first + ran) == ["a/0", "a/2", "b/1"]


class GoesDown(MemoryStore):
    """No commit is answered while it is down; the second one meets a Ctrl-C."""

    down = False
    refused = 0

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        if not self.down:
            return super().commit(commits)
        self.refused += 1
        if self.refused == 2:
            signal.raise_signal(signal.SIGINT)
        return [Unknown(StoreUnavailable("down")) for _ in commits]


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_lanes_had_in_hand_as_the_store_was_down_comes_before_what_is_behind_it(
    lanes: int,
) -> None:
    """Those behind it ran first, and the position passed over it: lost (seen)."""
    ran, store, ids = list[str](), GoesDown(), [str(uuid.UUID(int=n)) for n in range(40)]

    def handler(event: eo.Event) -> None:
        ran.append(event.id)
        store.down = True
        time.sleep(0.1)  # longer than `commit_seconds`: it is settled with the store

    limits = eo.Limits(batch=20, held=10, commit_seconds=0.05)
    client = LogClient(Log(dict(enumerate(ids))), a_poll=20)
    with consumer_of(client, store, effects=OUTSIDE, limits=limits) as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.run(handler, lanes=2)
        store.down = False
        consumer.run(lambda event: ran.append(event.id), lanes=lanes, until=eo.END)
    assert set(ran) == set(ids)


def test_a_stop_waits_for_a_stuck_handler_once_and_not_again_at_the_close() -> None:
    gate, limits = Gate(), eo.Limits(drain_seconds=0.6)

    def handler(event: eo.Event) -> None:
        if event.id == "b/1":
            gate.pass_through(event.id)
        else:
            consumer.stop()

    with lanes_of(log_of("a/0", "b/1"), limits=limits) as consumer:
        consumer.run(handler, lanes=2)
        ended = time.monotonic()
    assert time.monotonic() - ended < 0.3
    gate.open("b/1")


def test_a_hanging_handler_is_cut_off_and_what_others_did_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, log, gate, ran = Kept(), log_of("a/0", "b/1", "c/2"), Gate(), list[str]()

    def handler(event: eo.Event) -> None:
        if event.id == "b/1":
            gate.pass_through(event.id)
        ran.append(event.id)

    limits = eo.Limits(handler_timeout_seconds=0.2, drain_seconds=0.1)
    with lanes_of(log, store, limits=limits) as consumer:
        with pytest.raises(eo.HandlerTimeout, match=r"\[0\] offset 1: "):
            consumer.run(handler, lanes=3)
        assert "pass_through" in caplog.text, "where it hangs"
        assert caplog.text.count("-- effectonce-lane-") == 1, "and nobody else's stack"
        assert sorted(ran) == ["a/0", "c/2"]
        assert store.row().next == 1
        assert store.row().in_flight, "what hangs may have its effect yet"
    gate.open("b/1")
    told: list[tuple[str, bool]] = []
    with lanes_of(log, store) as consumer:
        consumer.run(
            lambda event: told.append((event.id, event.maybe_repeated)), until=eo.END, lanes=3
        )
    assert told == [("b/1", True)]


# -- how it ends -----------------------------------------------------------------------------------


def test_stop_from_a_handler_starts_nothing_more_and_settles_what_ran() -> None:
    store, log, ran = Kept(), log_of(*map(str, range(50))), list[str]()
    with lanes_of(log, store) as consumer:

        def handler(event: eo.Event) -> None:
            ran.append(event.id)
            consumer.stop()

        consumer.run(handler, lanes=4)
        assert 1 <= len(ran) <= 8
    again: list[str] = []
    with lanes_of(log, store) as consumer:
        consumer.run(lambda event: again.append(event.id), until=eo.END, lanes=4)
    assert sorted(ran + again) == sorted(map(str, range(50)))


def test_a_serial_run_goes_on_where_lanes_have_ended() -> None:
    store, log, ran = Kept(), log_of("a/0", "b/1"), list[str]()
    with lanes_of(log, store) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=4)
        log.ids |= {2: "a/2", 3: "b/3"}

        def handler(event: eo.Event) -> None:
            ran.append(event.id)
            if event.id == "b/3":
                consumer.stop()

        consumer.run(handler)
    assert sorted(ran[:2]) == ["a/0", "b/1"]
    assert ran[2:] == ["a/2", "b/3"]
    assert store.row().next == 4


# -- commits ---------------------------------------------------------------------------------------


def test_many_that_end_together_are_one_commit() -> None:
    with watched() as seen, lanes_of(log_of(*map(str, range(90)))) as consumer:
        consumer.run(lambda event: None, until=eo.END, lanes=8)
    commits = [each for each in seen if isinstance(each, BatchCommitted)]
    assert sum(each.fresh for each in commits) == 90
    assert len(commits) <= 10


def test_markers_behind_a_gap_are_there_before_the_gap_is_closed() -> None:
    store, gate, ran = Kept(), Gate(), list[str]()

    def handler(event: eo.Event) -> None:
        if event.id == "a/0":
            gate.pass_through(event.id)
        ran.append(event.id)
        gate.note(event.id)

    limits = eo.Limits(commit_seconds=0.01)
    with watched() as seen, lanes_of(log_of("a/0", "b/1", "c/2"), store, limits=limits) as consumer:
        thread = threading.Thread(target=lambda: consumer.run(handler, until=eo.END, lanes=3))
        thread.start()
        gate.until(lambda: len(gate.came) == 3)
        deadline = time.monotonic() + PATIENCE
        while store.row().marked_until != 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert (store.row().next, store.row().marked_until) == (0, 3)
        assert consumer.health().partitions[0].held == 3
        gate.open("a/0")
        thread.join(PATIENCE)
    assert store.row().next == 3
    assert sum(e.fresh for e in seen if isinstance(e, BatchCommitted)) == 3


class Silent(Kept):
    """Answers of commits with markers are lost, so many times; what was sent is kept."""

    def __init__(self, lost: int, *, applied: bool) -> None:
        super().__init__()
        self.lost, self.applied = lost, applied
        self.sent: list[Commit] = []

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        if not any(each.markers for each in commits):
            return super().commit(commits)
        self.sent += commits
        if self.lost:
            self.lost -= 1
            if self.applied:
                super().commit(commits)
            return [Unknown(StoreUnavailable("gone")) for _ in commits]
        return super().commit(commits)


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_without_an_answer_is_sent_again_as_it_was(applied: bool) -> None:
    store, ran = Silent(2, applied=applied), list[str]()
    with lanes_of(log_of("a/0", "b/1", "c/2"), store) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=3)
    assert sorted(ran) == ["a/0", "b/1", "c/2"]
    assert store.sent[0] is store.sent[1] is store.sent[2]
    assert store.row().next == 3


class OpenedByAnother(Kept):
    """Another opens the partition before the first commit with markers."""

    done = False

    def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
        if not self.done and any(each.markers for each in commits):
            self.done = True
            self.open(commits[0].at, self.row().topic_id)
            results = super().commit(commits)
            assert isinstance(results[0], Stale)
            return results
        return super().commit(commits)


def test_what_is_in_a_handler_ends_before_a_stale_partition_begins_anew_or_two_ran_at_once() -> (
    None
):
    store, gate = OpenedByAnother(), Gate()
    now, ran, lock = Counter[str](), list[str](), threading.Lock()

    def handler(event: eo.Event) -> None:
        with lock:
            now[event.id] += 1
            assert now[event.id] == 1
            ran.append(event.id)
        if event.id == "a/0" and ran.count("a/0") == 1:
            gate.until(lambda: store.done)
            time.sleep(0.05)
        with lock:
            now[event.id] -= 1

    limits = eo.Limits(commit_seconds=0.01)
    with lanes_of(log_of("a/0", "b/1", "a/2"), store, limits=limits) as consumer:
        thread = threading.Thread(target=lambda: consumer.run(handler, until=eo.END, lanes=3))
        thread.start()
        while not store.done:
            time.sleep(0.001)
        gate.note("stale")
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert store.row().next == 3
    assert ran.count("a/2") == 1


# -- backpressure ----------------------------------------------------------------------------------


def test_a_partition_is_paused_while_as_many_are_held_as_may_be_and_goes_on_then() -> None:
    log, gate = log_of(*(f"{'ab'[n > 0]}/{n}" for n in range(60))), Gate()
    most = 0

    def handler(event: eo.Event) -> None:
        if event.id == "a/0":
            gate.pass_through(event.id)
        gate.note(event.id)

    limits = eo.Limits(held=10, batch=4, commit_seconds=0.01)
    with lanes_of(log, limits=limits) as consumer:
        thread = threading.Thread(target=lambda: consumer.run(handler, until=eo.END, lanes=4))
        thread.start()
        gate.until(lambda: len(gate.came) == 10)
        for _ in range(20):
            most = max(most, consumer.health().partitions[0].held)
            time.sleep(0.002)
        assert most == 10
        assert len(gate.came) == 10, "what is held behind a stuck key is bounded"
        gate.open("a/0")
        thread.join(PATIENCE)
    assert len(set(gate.came)) == 60


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"lanes": 0}, "lanes=0"),
        ({"lanes": True}, "lanes=True"),
        ({"lanes": 2, "order": "any"}, "order='any': one of 'key', 'partition', 'none'"),
        ({"lanes": 2, "lane": "key"}, "lane='key': a function"),
        ({"lanes": 2, "order": "none", "lane": str}, "leave order='none' out"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(how: Any, says: str) -> None:
    with lanes_of(log_of("a/0")) as consumer, pytest.raises(eo.ConfigError, match=says):
        consumer.run(lambda event: None, until=eo.END, **how)


def test_effects_in_the_store_are_in_order_by_partition_or_refused() -> None:
    ran: list[str] = []
    with lanes_of(log_of("a/0", "b/1"), effects=eo.InStore()) as consumer:
        with pytest.raises(eo.ConfigError, match='Say order="partition", or lanes=1'):
            consumer.run(lambda event, tx: None, until=eo.END, lanes=2)
        consumer.run(
            lambda event, tx: ran.append(event.id), until=eo.END, lanes=2, order="partition"
        )
    assert ran == ["a/0", "b/1"]


# -- who has time ----------------------------------------------------------------------------------


class CountedPolls(LogClient):
    polls = 0

    def fetch(self, limit: int, timeout_seconds: float) -> Sequence[Records]:
        self.polls += 1
        found = super().fetch(limit, timeout_seconds)
        if not found and timeout_seconds > 0:
            time.sleep(timeout_seconds)  # as a broker without records
        return found


def test_a_backoff_is_waited_for_or_the_loop_would_spin() -> None:
    client = CountedPolls(log_of("a/0", "a/1"), a_poll=100)
    slow = eo.Retry(2, wait_initial=timedelta(seconds=0.3), jitter=0.0)
    tried: list[str] = []

    def handler(event: eo.Event) -> None:
        tried.append(event.id)
        if not event.maybe_repeated and event.id == "a/0":
            raise ValueError

    with consumer_of(client, MemoryStore(), effects=OUTSIDE, retry=slow) as consumer:
        consumer.run(handler, until=eo.END, lanes=2)
    assert tried == ["a/0", "a/0", "a/1"]
    assert client.polls < 30


def test_the_store_down_as_a_record_begins_is_waited_for_or_it_would_be_opened_without_end() -> (
    None
):
    class Down(Kept):
        opens, failures = 0, 3

        def open(self, at: Any, topic_id: bytes, *, above: int = 0) -> Any:
            self.opens += 1
            return super().open(at, topic_id, above=above)

        def commit(self, commits: Sequence[Commit]) -> list[CommitResult]:
            starts = [each for each in commits if each.position.in_flight and not each.markers]
            if starts and self.failures:
                self.failures -= 1
                return [Unknown(StoreUnavailable("gone")) for _ in commits]
            return super().commit(commits)

    store, ran = Down(), list[str]()
    began = time.monotonic()
    with lanes_of(log_of("a/0", "b/1"), store) as consumer:
        consumer.run(lambda event: ran.append(event.id), until=eo.END, lanes=2)
    assert sorted(ran) == ["a/0", "b/1"]
    assert time.monotonic() - began >= 3 * 0.05, "a wait after each failure"
    assert store.opens == 4


def test_a_run_beside_a_run_is_refused() -> None:
    raised: list[BaseException] = []
    with lanes_of(log_of("a/0")) as consumer:

        def handler(event: eo.Event) -> None:
            try:
                consumer.run(handler, lanes=2)
            except RuntimeError as error:
                raised.append(error)

        consumer.run(handler, until=eo.END, lanes=2)
    assert "in a handler" in str(raised[0])
