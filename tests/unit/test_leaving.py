"""A close in a thread of its own: broken off, without a thread, and with what it raises."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest

from effectonce import leaving
from effectonce.leaving import Leaving


def test_a_second_close_after_a_ctrl_c_at_any_line_of_the_first_closes_once() -> None:
    at = 1
    while broken_off(at):
        at += 1
    assert at > 4, "no line was reached"


@pytest.mark.parametrize("started", [False, True])
def test_a_second_close_after_a_ctrl_c_as_the_thread_starts_closes_once(
    monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    left, closed, start = Leaving(), list[int](), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if started:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        left.end(lambda: closed.append(1))
    monkeypatch.undo()
    left.end(lambda: closed.append(1))
    assert closed == [1]


def broken_off(at: int) -> bool:
    """Whether the close has so many lines; interrupted there, and closed again."""
    left, closed, lines = Leaving(), list[threading.Event](), 0
    ended = threading.Event()

    def close() -> None:
        closed.append(ended)
        ended.set()

    def in_line(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return in_line

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        return in_line if frame.f_code is Leaving.end.__code__ else None

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        left.end(close)
    except KeyboardInterrupt:
        interrupted = True
    else:
        interrupted = False
    finally:
        sys.settrace(former)
    left.end(close)
    assert closed == [ended], f"line {at}"
    return interrupted


def test_where_no_thread_can_be_started_any_more_it_is_closed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From Python 3.12 on, as the interpreter ends: in `atexit`, say."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    closed: list[int] = []
    Leaving().end(lambda: closed.append(threading.get_ident()))
    assert closed == [threading.get_ident()]


def test_what_the_close_raises_is_raised_once() -> None:
    def close() -> None:
        raise ZeroDivisionError

    left = Leaving()
    with pytest.raises(ZeroDivisionError):
        left.end(close)
    left.end(close)


def test_a_close_that_does_not_end_is_left_behind_and_not_begun_twice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leaving, "CLOSE_SECONDS", 0.01)
    goes_on, begun = threading.Event(), list[int]()

    def close() -> None:
        begun.append(1)
        goes_on.wait()

    left = Leaving()
    left.end(close)
    left.end(close)
    assert caplog.text.count("may never") == 2
    goes_on.set()
    monkeypatch.setattr(leaving, "CLOSE_SECONDS", 10.0)
    left.end(close)
    assert begun == [1]


def test_within_another_call_of_the_consumer_it_is_closed_by_the_caller_itself() -> None:
    """A thread would wait until that call is over: 30 s, in a signal's handler (seen)."""
    closed: list[int] = []
    left = Leaving()
    assert not left.has_begun
    left.end(lambda: closed.append(threading.get_ident()), here=True)
    assert closed == [threading.get_ident()]
    assert left.has_begun
