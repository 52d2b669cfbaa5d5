"""`effectonce inspect redis://...`: the report of `inspect.py`, where markers are a scope's.

Answers and exit codes are those of its table. An event ID is never printed, nor its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from effectonce.cli.inspect import (
    Answer,
    answered,
    at_json,
    effect,
    kafka_id,
    marker_json,
    moment,
    position_json,
    say,
)
from effectonce.cli.stored import Wanted
from effectonce.errors import ConfigError
from effectonce.model import UNSET, Partition, Position
from effectonce.stores import open_store
from effectonce.stores.redis import RedisStore
from effectonce.stores.redis_view import View


@dataclass(frozen=True, slots=True)
class Report:
    """What is told: views of what is wanted, and the rows among theirs that are."""

    views: list[View]
    rows: list[tuple[Partition, Position]]
    answer: Answer

    @property
    def exit_code(self) -> int:
        whole = all(view.whole for view in self.views)
        return {Answer.NOT_ASKED: 0 if whole else 2, Answer.FOUND: 0, Answer.NOT_FOUND: 1}.get(
            self.answer, 2
        )


def inspect(url: str, wanted: Wanted, key: bytes | None) -> Report:
    """All that is wanted of a store. Raises ConfigError, StoreError."""
    store = open_store(url)
    assert isinstance(store, RedisStore)
    try:
        views = store.look(key)
    finally:
        store.close()
    kept = [view for view in views if _is_wanted(view, wanted)]
    rows = sorted(
        ((at, row) for view in kept for at, row in view.positions.items() if at in wanted),
        key=lambda each: (each[0].scope, each[0].group, each[0].topic, each[0].number),
    )
    if not rows and all(view.whole for view in kept):
        there = sum(len(view.positions) for view in views)
        raise ConfigError([f"Redis holds {there} partitions, and none of them is meant"])
    whole = all(view.whole for view in kept)
    found = any(view.found for view in kept)
    return Report(kept, rows, answered(key is not None, found=found, whole=whole))


def _is_wanted(view: View, wanted: Wanted) -> bool:
    """A TAG of many partitions is, for any of them; what cannot be told may be."""
    if view.at is not None:
        return view.at in wanted
    if wanted.scope not in (None, view.scope):
        return False
    return not view.whole or any(at in wanted for at in view.positions)


# -- as JSON ---------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """All of it, with the names and units of a RocksDB store's."""
    told: dict[str, Any] = {
        "partitions": [
            {
                **at_json(at),
                "position": position_json(position),
                "generations": [
                    {
                        "generation": start.generation,
                        "offset": start.offset,
                        "log_time_ms": start.log_time_ms,
                    }
                    for start in position.generations
                ],
            }
            for at, position in report.rows
        ],
        "scopes": [
            {
                **_of(view),
                "generations": [
                    {"run": run, "generation": generation, "markers": count}
                    for (run, generation), count in sorted(view.markers.items())
                ],
                "markers": sum(view.markers.values()),
                "whole": view.whole,
                "problems": view.problems,
            }
            for view in report.views
        ],
    }
    if report.answer is not Answer.NOT_ASKED:
        told["event"] = {
            "answer": report.answer.value,
            "effects": [
                {**_of(view), **marker_json(marker)}
                for view in report.views
                for marker in view.found
            ],
        }
    return told


def _of(view: View) -> dict[str, Any]:
    return {"scope": view.scope, "partition": None if view.at is None else at_json(view.at)}


# -- as text ---------------------------------------------------------------------------------------


def show(console: Console, report: Report) -> None:
    """A table a topic, one of markers, what could not be read, and the event."""
    for of, group in groupby(report.rows, key=lambda each: replace(each[0], number=0)):
        console.print(_positions(of, list(group)))
    console.print(_markers(report.views))
    for view in report.views:
        for problem in view.problems:
            console.print(f"{_name(view)}: {problem}", style="red")
    for view in report.views:
        for marker in view.found:
            runs = {position.run for position in view.positions.values()}
            current = marker.run if marker.run in runs else max(runs, default=marker.run)
            console.print(effect(f"{_name(view)} at offset {marker.offset:,}", marker, current))
    say(console, report.answer, f"the {len(report.views)} scopes or partitions above")


def _positions(of: Partition, rows: Sequence[tuple[Partition, Position]]) -> Table:
    ids = ", ".join(sorted({kafka_id(position.topic_id) for _, position in rows}))
    table = _titled(f"{of.topic}   group {of.group}   scope {of.scope}   topic id {ids}")
    numbers = ("partition", "next", "epoch", "run", "horizon")
    for name in (*numbers, "generations", "log time", "stalled opens"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for at, position in rows:
        table.add_row(str(at.number), *_cells(position))
    return table


def _cells(position: Position) -> Iterator[str]:
    yield "–" if position.next == UNSET else f"{position.next:,}"
    yield from (str(position.epoch), str(position.run), f"{position.horizon:,}")
    yield " ".join(str(start.generation) for start in position.generations) or "–"
    yield moment(position.log_time_ms)
    yield str(position.stalled_opens) + (" IN FLIGHT" if position.in_flight else "")


def _markers(views: Sequence[View]) -> Table:
    table = _titled("markers")
    for name in ("of", "run", "generation", "markers"):
        table.add_column(name, justify="left" if name == "of" else "right")
    for view in views:
        for (run, generation), count in sorted(view.markers.items()):
            table.add_row(_name(view), str(run), str(generation), f"{count:,}")
        total = f"{sum(view.markers.values()):,}" + ("" if view.whole else "?")
        table.add_row(_name(view), "", "all", total)
    return table


def _titled(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _name(view: View) -> str:
    return f"scope {view.scope}" if view.at is None else f"{view.at}"
