"""The keeper's lock and its hours: who may touch the client, and when a handler counts as slow."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from effectonce.keeper import ThreadKeeper

PATIENCE_SECONDS = 10.0
AFTER_SECONDS = 0.02
NEVER_SECONDS = 1_000.0


class Charged:
    """A charge that notes what is asked of it; `meanwhile` runs in every tend."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile = meanwhile
        self.tended = threading.Semaphore(0)
        self.cut = threading.Event()
        self.thread: threading.Thread | None = None

    def tend(self) -> None:
        self.thread = threading.current_thread()
        self.tended.release()
        self.meanwhile()

    def cut_off(self) -> None:
        self.thread = threading.current_thread()
        self.cut.set()

    def was_tended(self) -> bool:
        return self.tended.acquire(timeout=PATIENCE_SECONDS)


@contextmanager
def kept(charge: Charged, deadline_seconds: float = NEVER_SECONDS) -> Iterator[ThreadKeeper]:
    keeper = ThreadKeeper()
    keeper.start(charge, after_seconds=AFTER_SECONDS, deadline_seconds=deadline_seconds)
    try:
        yield keeper
    finally:
        keeper.stop()
    assert charge.thread is None or not charge.thread.is_alive()


def test_a_slow_handler_is_tended_again_and_again_or_the_membership_would_be_lost() -> None:
    charge = Charged()
    with kept(charge) as keeper:
        keeper.entered()
        assert all(charge.was_tended() for _ in range(3))
        keeper.left()
        assert charge.thread is not threading.current_thread()


def test_nobody_is_tended_between_handlers_or_two_threads_would_touch_the_client() -> None:
    charge = Charged()
    with kept(charge) as keeper:
        keeper.entered()
        assert charge.was_tended()
        keeper.left()
        while charge.tended.acquire(blocking=False):
            pass
        assert not charge.tended.acquire(timeout=10 * AFTER_SECONDS)


def test_left_waits_for_the_keepers_poll_or_the_client_would_be_polled_twice_at_once() -> None:
    gate = threading.Event()
    charge = Charged(lambda: gate.wait(PATIENCE_SECONDS))
    with kept(charge) as keeper:
        keeper.entered()
        assert charge.was_tended()
        leaving = threading.Thread(target=keeper.left)
        leaving.start()
        leaving.join(10 * AFTER_SECONDS)
        assert leaving.is_alive()
        gate.set()
        leaving.join(PATIENCE_SECONDS)
        assert not leaving.is_alive()


def test_a_handler_past_its_deadline_is_cut_off_once_or_it_would_hold_its_partition() -> None:
    charge = Charged()
    with kept(charge, deadline_seconds=5 * AFTER_SECONDS) as keeper:
        keeper.entered()
        assert charge.cut.wait(PATIENCE_SECONDS)
        assert charge.thread is not None
        charge.thread.join(PATIENCE_SECONDS)
        assert not charge.thread.is_alive(), "there is nothing left to tend"
        keeper.left()


def test_progress_moves_the_deadline_or_a_long_batch_would_be_cut_off() -> None:
    charge = Charged()
    with kept(charge, deadline_seconds=0.5) as keeper:
        keeper.entered()
        for _ in range(30):
            keeper.progress += 1.0
            assert not charge.cut.wait(0.05)
        keeper.left()


def test_a_revoke_on_the_keepers_thread_waits_for_the_handler_to_have_settled() -> None:
    settled, waited = threading.Event(), list[bool]()
    keeper = ThreadKeeper()

    def revoked() -> None:
        keeper.await_left(PATIENCE_SECONDS)
        waited.append(settled.is_set())

    charge = Charged(revoked)
    keeper.start(charge, after_seconds=AFTER_SECONDS, deadline_seconds=NEVER_SECONDS)
    keeper.entered()
    assert charge.was_tended()
    settled.set()
    keeper.left()
    keeper.stop()
    assert waited == [True]


def test_a_revoke_waits_no_longer_than_its_deadline_or_the_group_would_be_lost() -> None:
    over = threading.Event()
    keeper = ThreadKeeper()

    def revoked() -> None:
        keeper.await_left(AFTER_SECONDS)
        over.set()

    keeper.start(Charged(revoked), after_seconds=AFTER_SECONDS, deadline_seconds=NEVER_SECONDS)
    keeper.entered()
    assert over.wait(PATIENCE_SECONDS), "the handler has not left"
    keeper.left()
    keeper.stop()


def test_a_revoke_on_the_handlers_own_thread_waits_for_nothing_or_it_would_wait_for_itself() -> (
    None
):
    with kept(Charged()) as keeper:
        keeper.entered()
        asking = threading.Thread(target=keeper.await_left, args=(NEVER_SECONDS,))
        asking.start()
        asking.join(PATIENCE_SECONDS)
        assert not asking.is_alive()
        keeper.left()


def test_a_charge_that_raises_is_tended_again_or_one_error_would_cost_the_membership(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise OSError("the broker is away")

    charge = Charged(broken)
    with caplog.at_level(logging.ERROR, "effectonce"), kept(charge) as keeper:
        keeper.entered()
        assert charge.was_tended()
        charge.meanwhile = lambda: None
        assert charge.was_tended()
        keeper.left()
    assert "could not tend the group; it goes on" in caplog.text


def test_stop_ends_the_thread_and_may_come_before_the_start_and_twice() -> None:
    charge = Charged()
    keeper = ThreadKeeper()
    keeper.stop()
    with kept(charge) as started:
        started.entered()
        assert charge.was_tended()
        started.left()
        started.stop()
