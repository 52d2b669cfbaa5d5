"""Hooks watch: nothing that they do, or fail to do, reaches the batch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import pytest

from effectonce import hooks
from effectonce.hooks import BatchStarted, HookEvent, PartitionAssigned
from effectonce.model import Partition

AT = Partition("payments", "billing", "orders", 3)
ASSIGNED = PartitionAssigned(AT)
BATCH = BatchStarted(AT, delivered=3, fresh=2, repeats=1)


@pytest.fixture(autouse=True)
def _silence_afterwards() -> Iterator[None]:
    yield
    hooks.set_hooks([])


class HandlerBroke(Exception):
    pass


class Around:
    """A hook whose context manager does as told, and remembers what it saw."""

    def __init__(self, on_enter: Exception | None = None, on_exit: Exception | bool = False):
        self.on_enter = on_enter
        self.on_exit = on_exit
        self.seen: list[object] = []

    def __call__(self, event: HookEvent) -> None:
        self.seen.append(event)

    def around_batch(self, batch: BatchStarted) -> "Around":
        self.seen.append(batch)
        return self

    def __enter__(self) -> None:
        if self.on_enter:
            raise self.on_enter

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.seen.append(error)
        if isinstance(self.on_exit, Exception):
            raise self.on_exit
        return self.on_exit


def reports(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_hooks_are_called_in_order_and_replaced_whole() -> None:
    calls: list[tuple[str, HookEvent]] = []
    hooks.set_hooks([lambda e: calls.append(("a", e)), lambda e: calls.append(("b", e))])
    hooks.emit(ASSIGNED)
    hooks.set_hooks([lambda e: calls.append(("c", e))])
    hooks.emit(ASSIGNED)
    assert calls == [("a", ASSIGNED), ("b", ASSIGNED), ("c", ASSIGNED)]


def test_a_hook_that_raises_reaches_neither_the_batch_nor_the_hook_beside_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(event: HookEvent) -> None:
        raise ValueError("the dashboard is gone")

    beside = Around()
    hooks.set_hooks([broken, beside])
    hooks.emit(ASSIGNED)
    assert beside.seen == [ASSIGNED]
    (report,) = reports(caplog)
    assert report.exc_info is not None
    assert isinstance(report.exc_info[1], ValueError)


def test_a_hook_that_raises_on_every_event_is_reported_once_until_it_is_set_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(event: HookEvent) -> None:
        raise ValueError

    hooks.set_hooks([broken])
    for _ in range(100):
        hooks.emit(ASSIGNED)
    assert len(reports(caplog)) == 1
    hooks.set_hooks([broken])
    hooks.emit(ASSIGNED)
    assert len(reports(caplog)) == 2


def test_two_broken_hooks_are_both_reported(caplog: pytest.LogCaptureFixture) -> None:
    def one(event: HookEvent) -> None:
        raise ValueError

    def two(event: HookEvent) -> None:
        raise KeyError

    hooks.set_hooks([one, two])
    hooks.emit(ASSIGNED)
    hooks.emit(ASSIGNED)
    assert len(reports(caplog)) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_stop_of_the_process_is_not_swallowed_as_a_hook_that_raises(
    error: type[BaseException],
) -> None:
    def stopping(event: HookEvent) -> None:
        raise error

    hooks.set_hooks([stopping])
    with pytest.raises(error):
        hooks.emit(ASSIGNED)


def test_context_managers_enclose_the_batch_and_are_left_in_reverse_order() -> None:
    trail: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, event: HookEvent) -> None: ...

        @contextmanager
        def around_batch(self, batch: BatchStarted) -> Iterator[None]:
            assert batch is BATCH
            trail.append(f"+{self.name}")
            yield
            trail.append(f"-{self.name}")

    hooks.set_hooks([Named("a"), print, Named("b")])
    with hooks.around_batch(BATCH):
        trail.append("batch")
    assert trail == ["+a", "+b", "batch", "-b", "-a"]


def test_a_context_manager_sees_what_the_handlers_raised_and_it_goes_on() -> None:
    outer, inner = Around(), Around()
    hooks.set_hooks([outer, inner])
    error = HandlerBroke()
    with pytest.raises(HandlerBroke) as caught, hooks.around_batch(BATCH):
        raise error
    assert caught.value is error
    assert outer.seen == [BATCH, error]
    assert inner.seen == [BATCH, error]


@pytest.mark.parametrize("error", [HandlerBroke(), StopIteration(), KeyboardInterrupt()])
def test_a_context_manager_that_returns_true_swallows_nothing(error: BaseException) -> None:
    hooks.set_hooks([Around(on_exit=True)])
    with pytest.raises(type(error)) as caught, hooks.around_batch(BATCH):
        raise error
    assert caught.value is error


def test_a_generator_that_swallows_swallows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Swallowing:
        def __call__(self, event: HookEvent) -> None: ...

        @contextmanager
        def around_batch(self, batch: BatchStarted) -> Iterator[None]:
            with suppress(HandlerBroke):
                yield

    hooks.set_hooks([Swallowing()])
    with pytest.raises(HandlerBroke), hooks.around_batch(BATCH):
        raise HandlerBroke
    assert not reports(caplog)


def test_a_context_manager_that_raises_on_exit_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outer = Around()
    hooks.set_hooks([outer, Around(on_exit=ValueError("the span is gone"))])
    ran = False
    with hooks.around_batch(BATCH):
        ran = True
    assert ran
    assert outer.seen == [BATCH, None]
    assert len(reports(caplog)) == 1


def test_a_context_manager_that_raises_on_exit_does_not_replace_the_handlers_exception() -> None:
    outer = Around()
    hooks.set_hooks([outer, Around(on_exit=ValueError("the span is gone"))])
    error = HandlerBroke()
    with pytest.raises(HandlerBroke) as caught, hooks.around_batch(BATCH):
        raise error
    assert caught.value is error
    assert error.__context__ is None
    assert outer.seen == [BATCH, error]


def test_a_context_manager_that_raises_on_entry_is_not_left_and_the_batch_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, beside = Around(on_enter=ValueError()), Around()
    hooks.set_hooks([broken, beside])
    ran = False
    with hooks.around_batch(BATCH):
        ran = True
    assert ran
    assert broken.seen == [BATCH]
    assert beside.seen == [BATCH, None]
    assert len(reports(caplog)) == 1


def test_an_around_batch_that_gives_no_context_manager_is_reported_and_the_batch_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Wrong:
        def __call__(self, event: HookEvent) -> None: ...

        def around_batch(self, batch: BatchStarted) -> None: ...

    hooks.set_hooks([Wrong()])
    ran = False
    with hooks.around_batch(BATCH):
        ran = True
    assert ran
    assert len(reports(caplog)) == 1


def test_hooks_replaced_inside_a_batch_leave_the_old_ones_context_managers() -> None:
    old = Around()
    hooks.set_hooks([old])
    with hooks.around_batch(BATCH):
        hooks.set_hooks([])
    assert old.seen == [BATCH, None]
