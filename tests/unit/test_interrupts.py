"""Ctrl-C at every line of the driver: no event is lost, and no in-store effect happens twice.

Python raises KeyboardInterrupt between any two lines of the main thread, in the library too. Here
each line that a short run passes is interrupted once, on a client that lives in this process. What
was interrupted is closed, or asked to go on; a consumer after it must find everything in order.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

import pytest

import effectonce as eo
from effectonce.stores.memory import MemoryStore
from tests.unit.lone import CONFIG, IDS, TOPIC, FarStore, Log, LogClient, count

DRIVER = Path(eo.__file__).parent
HANDING = ("consumer", "handlers", "event", "overlay")
INTERRUPTED = (*HANDING, "assignment", "begin", "desk", "keeper")
"""Modules whose lines are interrupted. The memory store is left whole: it stands for a database."""


# -- interrupts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A line of the driver, as it is passed for the nth time."""

    module: str
    line: int
    nth: int


@cache  # asked for each call and each line: as a path anew each time, it took most of the test
def module_of(code: CodeType) -> str:
    """Of the driver's code, whose lines a Ctrl-C may come between; else nothing."""
    path = Path(code.co_filename)
    if DRIVER not in path.parents or code.co_name.startswith("on_"):
        return ""  # in a callback of librdkafka's, it would have no way to go on
    return path.stem


class Tracer:
    """Notes the points that are passed; raises KeyboardInterrupt at one of them."""

    def __init__(self, at: Point | None = None, modules: Sequence[str] = INTERRUPTED) -> None:
        self.at = at
        self.modules = modules
        self.passed: Counter[tuple[str, int]] = Counter()

    def __call__(self, frame: FrameType, event: str, arg: object) -> Tracer | None:
        module = module_of(frame.f_code)
        if module not in self.modules:
            return None
        if event == "line":
            place = module, frame.f_lineno
            self.passed[place] += 1
            if self.at == Point(*place, self.passed[place]):
                raise KeyboardInterrupt
        return self

    def points(self, modules: Sequence[str]) -> list[Point]:
        """Each line once: the second time that it is passed, if there is one."""
        lines = [(place, times) for place, times in self.passed.items() if place[0] in modules]
        return [Point(*place, min(times, 2)) for place, times in lines]


@contextmanager
def traced(tracer: Tracer) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)


# -- lives -----------------------------------------------------------------------------------------


def by_event(consumer: eo.OnceConsumer) -> None:
    consumer.run(count, until=eo.END)


def by_batch(consumer: eo.OnceConsumer) -> None:
    def count_all(batch: eo.Batch, tx: eo.KeyValueTx) -> None:
        for event in batch:
            count(event, tx)

    consumer.run_batches(count_all, until=eo.END)


def by_loop(consumer: eo.OnceConsumer) -> None:
    for batch in consumer:
        for event in batch:
            with event as tx:
                count(event, cast(eo.KeyValueTx, tx))
        if batch[-1].id == IDS[-1]:
            return


LIVES = {
    "run": (by_event, INTERRUPTED),
    "run-batches": (by_batch, HANDING),
    "own-loop": (by_loop, HANDING),
}


def once_with(store: MemoryStore) -> eo.Once:
    at_once = eo.Retry(wait_initial=timedelta(0), wait_max=timedelta(0))
    return eo.Once(store, identify=eo.header("event-id"), effects=eo.InStore(), retry=at_once)


def effects_in(store: MemoryStore) -> dict[str, int]:
    (rows,) = store._tables.rows.values()
    return {key.decode(): int(value) for key, value in rows.items()}


@pytest.mark.parametrize("goes_on", [False, True], ids=["closed", "goes-on"])
@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("kind", [MemoryStore, FarStore])
def test_ctrl_c_at_any_line_loses_no_event_and_repeats_no_effect(
    kind: type[MemoryStore], life: str, goes_on: bool
) -> None:
    way, modules = LIVES[life]
    whole, before = Tracer(), keepers()
    live(way, whole, kind(), Log(), goes_on=False)
    for point in whole.points(modules):
        store, log = kind(), Log()
        live(way, Tracer(point), store, log, goes_on)
        assert keepers() == before, f"one goes on, as a member that nobody holds: {point}"
        with eo.OnceConsumer(CONFIG, [TOPIC], once_with(store), client=LogClient(log)) as consumer:
            consumer.run(count, until=eo.END)
        assert effects_in(store) == dict.fromkeys(IDS, 1), point


def keepers() -> set[threading.Thread]:
    """Those of other tests may be there too."""
    return {each for each in threading.enumerate() if each.name == "effectonce-keeper"}


def live(
    way: Callable[[eo.OnceConsumer], Any],
    tracer: Tracer,
    store: MemoryStore,
    log: Log,
    goes_on: bool,
) -> None:
    consumer = eo.OnceConsumer(CONFIG, [TOPIC], once_with(store), client=LogClient(log))
    try:
        with traced(tracer), consumer:
            try:
                way(consumer)
            except KeyboardInterrupt:
                if not goes_on:
                    raise
                # broken off before the first line of a `finally`, it takes itself for busy
                with suppress(RuntimeError):
                    way(consumer)
    except KeyboardInterrupt:
        consumer.close()
