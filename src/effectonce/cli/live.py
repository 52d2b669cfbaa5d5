"""A chaos run as it goes: a live view on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from effectonce.testing.chaos.run import Condition, Snapshot, WorkerView

FRAMES_A_SECOND: Final = 8
LINE_SECONDS: Final = 5.0

_LOOKS: Final = {
    Condition.STARTING: ("starting", "yellow"),
    Condition.WORKING: ("working", "green"),
    Condition.FROZEN: ("frozen", "bold cyan"),
    Condition.GONE: ("gone", "bold red"),
}


def console() -> Console:
    """As wide as the terminal; where there is none, wide enough that no line is broken."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


class LiveView:
    """Give its `watch` to `run`; as a context manager it owns the screen."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._every = 1 / FRAMES_A_SECOND if console.is_terminal else LINE_SECONDS
        self._next = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def watch(self, shot: Snapshot) -> None:
        """Show it, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        if self._console.is_terminal:
            self._live.update(_frame(self._title, shot), refresh=True)
        else:
            self._console.print(_line(shot))


def _frame(title: str, shot: Snapshot) -> RenderableType:
    bars = Table.grid(padding=(0, 2))
    bars.add_column(style="dim")
    bars.add_column(width=40)
    bars.add_column(justify="right")
    for name, done in (("produced", shot.produced), ("consumed", shot.passed)):
        bar = ProgressBar(total=shot.spec.delivered, completed=done)
        bars.add_row(name, bar, f"{done:,} of {shot.spec.delivered:,}")
    return Padding(
        Group(
            Text(title, style="bold"),
            Text(),
            bars,
            Text(),
            _sums(shot),
            Text(),
            _workers(shot.workers),
            Text(),
            *(Text(line, style="dim", no_wrap=True) for line in shot.news),
        ),
        (1, 2),
    )


def _sums(shot: Snapshot) -> Table:
    table = Table.grid(padding=(0, 3))
    for _ in range(5):
        table.add_column(justify="left")
    cells = (
        (shot.effects, "effects committed", "green"),
        (shot.suppressed, "repeats skipped", "blue"),
        (shot.kills, "killed", "red"),
        (shot.freezes, "frozen", "cyan"),
        (shot.leaves, "left", "yellow"),
    )
    table.add_row(
        *(
            Text.assemble((f"{number:,}", f"bold {colour}"), f" {what}")
            for number, what, colour in cells
        )
    )
    return table


def _workers(workers: tuple[WorkerView, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("worker", "process", "state", "partitions", "effects"):
        table.add_column(heading, min_width=10)
    for worker in workers:
        name, style = _LOOKS[worker.condition]
        table.add_row(
            str(worker.worker),
            str(worker.pid or "-"),
            Text(name, style=style),
            " ".join(map(str, worker.partitions)) or "-",
            f"{worker.effects:,}",
        )
    return table


def _line(shot: Snapshot) -> str:
    return (
        f"{shot.seconds:4.0f} s  {shot.produced:,} produced, {shot.passed:,} consumed, "
        f"{shot.effects:,} effects, {shot.suppressed:,} repeats skipped, "
        f"{shot.kills} killed, {shot.freezes} frozen, {shot.leaves} left"
    )
