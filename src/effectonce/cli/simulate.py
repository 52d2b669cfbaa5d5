"""`effectonce simulate`: seeds and mutants through the simulator, on all cores, and the report."""

from __future__ import annotations

import json
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from effectonce.cli import live
from effectonce.cli.replay import command, tell_shortest
from effectonce.ports import Reach
from effectonce.testing.simulator import coverage
from effectonce.testing.simulator.sweep import Sweep, Swept, Where
from effectonce.testing.simulator.world import Mode, Report

SHOWN: Final = (
    *("seed", "seeds", "runs", "deliveries_least", "faults_fired_least", "violations", "mutants"),
    *("mutants_survived", "faults_never_fired", "pairs_never_reached", "seeds_per_second"),
)


def where(mode: str | None, reach: Reach | None) -> Where:
    """All of them, or the one that is named."""
    return Where(
        tuple(Mode) if mode is None else (Mode(mode),),
        tuple(Reach) if reach is None else (reach,),
    )


def simulate(
    seed: int | None, seeds: int, place: Where, out: Path = Path("out/simulate.json")
) -> int:
    """1 if an invariant broke or a mutant survived; `seeds` 0: until SIGINT or SIGTERM."""
    console = live.console()
    first = secrets.randbelow(1_000_000) if seed is None else seed
    sweep = Sweep(first, seeds, place)
    how_many = f"{seeds} seeds" if seeds else "until stopped"
    mutants = len(place.mutants())
    console.print(
        f"effectonce: a simulated cluster, {mutants} mutants, then {how_many}, seed {first}"
    )
    began = time.monotonic()
    try:
        with _stopped_by_signals(sweep), _Bars(console, sweep) as bars:
            swept = sweep.run(bars.watch)
    except KeyboardInterrupt:
        console.print("broken off: no figures were written")
        raise
    answer = figures(sweep, time.monotonic() - began)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    _tell(console, swept, answer)
    console.print(f"Figures: {out}")
    return 1 if swept.tally.broken or swept.survivors else 0


def figures(sweep: Sweep, seconds: float) -> dict[str, object]:
    """What out/simulate.json says."""
    swept, tally = sweep.so_far, sweep.so_far.tally
    survivors = swept.survivors
    never_fired = coverage.never_fired(tally.pairs)
    never_reached = coverage.never_reached(tally.pairs)
    short = {(s.report.seed, s.report.mode, s.report.reach): command(s) for s in swept.shrunk}
    found = [
        {
            "seed": report.seed,
            "mode": report.mode.value,
            "store": report.reach.value,
            "invariant": violation.invariant,
            "why": violation.why,
            "shortest": short.get((report.seed, report.mode, report.reach)),
        }
        for report in tally.broken
        for violation in report.violations
    ]
    return {
        "seed": sweep.first,
        "seeds": tally.seeds,
        "runs": tally.runs,
        "steps": tally.steps,
        "deliveries": tally.deliveries,
        "deliveries_least": tally.deliveries_least,
        "faults_fired_least": tally.fired_least,
        "violations": len(found),
        "mutants": len(swept.mutants),
        "mutants_killed": len(swept.mutants) - len(survivors),
        "mutants_survived": len(survivors),
        "faults_never_fired": len(never_fired),
        "pairs_never_reached": len(never_reached),
        "seeds_per_second": round(tally.seeds / (swept.seeds_seconds or 1), 2),
        "runs_per_second": round(tally.runs / (swept.seeds_seconds or 1), 2),
        "seconds": round(seconds, 1),
        "violations_found": found,
        "mutants_by_seed": dict(sorted(swept.mutants.items())),
        "mutants_not_tried": [m.name for m in sweep.where.mutants() if m.name not in swept.mutants],
        "never_fired": never_fired,
        "never_reached": [_pair(*pair) for pair in never_reached],
        "undeclared": [_pair(*pair) for pair in coverage.undeclared(tally.pairs)],
        "pairs": {_pair(*pair): n for pair, n in sorted(tally.pairs.items())},
    }


def _pair(kind: str, step: str) -> str:
    return f"{kind} × {step}"


@contextmanager
def _stopped_by_signals(sweep: Sweep) -> Iterator[None]:
    """The first lets it come to its end; a second SIGINT breaks it off."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        if sweep.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        sweep.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bars:
    """Seeds and mutants so far: bars on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console, sweep: Sweep) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        mutants = len(sweep.where.mutants())
        self._mutants = self._progress.add_task("mutants", total=mutants, note="")
        self._seeds = self._progress.add_task("seeds", total=sweep.seeds or None, note="")
        self._next = time.monotonic() + live.LINE_SECONDS
        self._told = 0
        self._sweep = sweep
        self._said_stopping = False

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def watch(self, swept: Swept) -> None:
        survived, broken = len(swept.survivors), len(swept.tally.broken)
        # at once: a sweep of hours should not keep to itself what somebody could look into by now
        for report in swept.tally.broken[self._told :]:
            _tell_broken(self._console, report)
        self._told = broken
        if self._sweep.stopping and not self._said_stopping:
            self._said_stopping = True
            self._console.print("stopping: what has begun comes to its end; Ctrl-C breaks it off")
        self._progress.update(
            self._mutants, completed=len(swept.mutants), note=f"{survived} survived"
        )
        self._progress.update(
            self._seeds, completed=swept.tally.seeds, note=f"{broken} broke an invariant"
        )
        if not self._console.is_terminal and time.monotonic() >= self._next:
            self._next = time.monotonic() + live.LINE_SECONDS
            self._console.print(
                f"{len(swept.mutants)} mutants, {survived} survived; "
                f"{swept.tally.seeds} seeds, {broken} broke an invariant"
            )


def _tell(console: Console, swept: Swept, answer: dict[str, object]) -> None:
    if not swept.tally.seeds:
        console.print("stopped before the first seed: the mutants come first", style="yellow")
    console.print(matrix(swept.tally.pairs))
    for title, names in (
        ("never reached", answer["never_reached"]),
        ("never fired", answer["never_fired"]),
        ("not in the table of coverage.py", answer["undeclared"]),
        ("mutants that survived", swept.survivors),
        ("mutants not tried", answer["mutants_not_tried"]),
    ):
        if isinstance(names, list) and names:
            console.print(f"{title}: {'; '.join(names)}", style="yellow", soft_wrap=True)
    console.print("  ".join(f"{name} {answer[name]}" for name in SHOWN), soft_wrap=True)
    for report in swept.tally.broken:
        _tell_broken(console, report)
    for shrunk in swept.shrunk:
        tell_shortest(console, shrunk)


def _tell_broken(console: Console, report: Report) -> None:
    violation = report.violations[0]
    console.print(
        f"BROKEN seed {report.seed}, {report.mode.value}, {report.reach.value}: "
        f"{violation.invariant}: {violation.why}",
        style="bold red", soft_wrap=True,
    )  # fmt: skip


def matrix(counts: coverage.Counts) -> Table:
    """Every pair that can happen: a row a step; kinds that fall upon one step only stand last."""
    wide = [kind for kind, steps in coverage.WHERE.items() if len(steps) > 1]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("step", no_wrap=True)
    for kind in wide:
        table.add_column(kind, justify="right", no_wrap=True)
    table.add_column("other faults")
    for step in dict.fromkeys(step for _, step in coverage.pairs()):
        others = [k for k, steps in coverage.WHERE.items() if k not in wide and step in steps]
        table.add_row(
            step,
            *(_cell(counts, kind, step) for kind in wide),
            Text(", ").join(
                Text.assemble(f"{kind} ", _cell(counts, kind, step)) for kind in others
            ),
        )
    return table


def _cell(counts: coverage.Counts, kind: str, step: str) -> Text:
    if step not in coverage.WHERE[kind]:
        return Text("")
    count = counts.get((kind, step), 0)
    return Text(f"{count:,}") if count else Text("never", style="bold red")
