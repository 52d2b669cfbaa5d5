"""`effectonce inspect`: what a store holds, and what became of one event.

| answer    | when                                                        | exit code |
| --------- | ----------------------------------------------------------- | --------- |
| FOUND     | a marker is there                                           | 0         |
| NOT_FOUND | none is, in partitions that were all read whole             | 1         |
| UNKNOWN   | none is, but something could not be read                    | 2         |
| NOT_ASKED | no event was asked for; 2 if something could not be read    | 0, 2      |

An event ID is never printed, nor its key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from effectonce.core.outcome import decode_outcome
from effectonce.errors import StoreError
from effectonce.model import NO_ID, UNSET, Marker, OutcomeKind, Partition, Position, Status
from effectonce.stores.rocksdb_beside import holder
from effectonce.stores.rocksdb_files import Folder
from effectonce.stores.rocksdb_options import Shared
from effectonce.stores.rocksdb_view import Unreadable, View, look


class Answer(Enum):
    """What can be said of the event that was asked for."""

    NOT_ASKED = "not asked"
    FOUND = "found"
    NOT_FOUND = "not found"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Seen:
    """One partition, as it was found."""

    at: Partition
    holder: str | None
    view: View

    def problems(self) -> Iterator[str]:
        """What could not be read, in words."""
        yield from (each.why for each in self.view.unreadable)
        for gap in self.view.missing:
            rows = f"row {gap.start} is" if len(gap) == 1 else f"rows {gap.start} to {gap[-1]} are"
            yield f"the packed {rows} missing"


def inspect(root: Path, at: Partition, shared: Shared, key: bytes | None) -> Seen:
    """One partition, beside whoever owns it."""
    folder = Folder(root, at)
    held = holder(folder)
    try:
        view = look(folder, shared, key)
    except StoreError as error:
        view = View(unreadable=[Unreadable(b"", str(error))])
    return Seen(at, held, view)


def answer_of(seen: Sequence[Seen], asked: bool) -> Answer:
    """What the partitions together say."""
    found = any(each.view.found for each in seen)
    return answered(asked, found=found, whole=all(each.view.whole for each in seen))


def answered(asked: bool, *, found: bool, whole: bool) -> Answer:
    """As in the table above."""
    if not asked:
        return Answer.NOT_ASKED
    if found:
        return Answer.FOUND
    return Answer.NOT_FOUND if whole else Answer.UNKNOWN


def exit_code(seen: Sequence[Seen], answer: Answer) -> int:
    """As in the table above."""
    if answer is Answer.NOT_ASKED:
        return 0 if all(each.view.whole for each in seen) else 2
    return {Answer.FOUND: 0, Answer.NOT_FOUND: 1}.get(answer, 2)


# -- as JSON ---------------------------------------------------------------------------------------


def as_json(seen: Sequence[Seen], answer: Answer) -> dict[str, Any]:
    """All of it: times in milliseconds since 1970, ids of topics as Kafka writes them."""
    told: dict[str, Any] = {"partitions": [_partition_json(each) for each in seen]}
    if answer is not Answer.NOT_ASKED:
        told["event"] = {
            "answer": answer.value,
            "effects": [
                {"partition": at_json(each.at), **marker_json(marker)}
                for each in seen
                for marker in each.view.found
            ],
        }
    return told


def _partition_json(seen: Seen) -> dict[str, Any]:
    view, row = seen.view, seen.view.row
    return {
        **at_json(seen.at),
        "holder": seen.holder,
        "position": position_json(row.position) if row is not None else None,
        "generations": [
            {
                "generation": generation,
                "offset": start.offset,
                "log_time_ms": start.log_time_ms,
                "markers": view.markers[generation],
            }
            for generation, (start, _) in sorted(view.starts.items())
        ],
        "markers": view.markers.total(),
        "set_aside": view.set_aside,
        "whole": view.whole,
        "problems": list(seen.problems()),
    }


def at_json(at: Partition) -> dict[str, Any]:
    """Which partition."""
    return {"scope": at.scope, "group": at.group, "topic": at.topic, "number": at.number}


def position_json(position: Position) -> dict[str, Any]:
    """A row, without its generations."""
    told = {f.name: getattr(position, f.name) for f in fields(position) if f.name != "generations"}
    told["topic_id"] = kafka_id(position.topic_id)
    return {k: v.hex() if isinstance(v, bytes) else v for k, v in told.items()}


def marker_json(marker: Marker) -> dict[str, Any]:
    """A marker, without its key."""
    return {
        "offset": marker.offset,
        "run": marker.run,
        "epoch": marker.epoch,
        "generation": marker.generation,
        "log_time_ms": marker.log_time_ms,
        "wall_ms": marker.wall_ms,
        "fingerprint": f"{marker.fingerprint:08x}",
        "status": marker.status.name.lower(),
        "outcome": _jsonable(outcome_of(marker)),
    }


def _jsonable(value: object) -> object:
    """The value, or what Python shows of it: msgpack has bytes, dates and other keys than text."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


# -- words -----------------------------------------------------------------------------------------


def outcome_of(marker: Marker) -> object:
    """What the handler returned, or why that is not known."""
    if marker.status is Status.DONE:
        return None
    if marker.outcome is None:
        return "not readable, or set aside"
    try:
        value = decode_outcome(marker.outcome)
    except ValueError as error:
        return str(error)
    if marker.outcome.kind is OutcomeKind.VALUE:
        return value
    return f"not stored: {value[0]}" if isinstance(value, list) and value else "not stored"


def kafka_id(topic_id: bytes) -> str:
    """As Kafka's own tools write it."""
    if topic_id == NO_ID:
        return "none"
    return base64.urlsafe_b64encode(topic_id).decode().rstrip("=")


def moment(ms: int) -> str:
    """A time in UTC, to the millisecond."""
    return "–" if ms == UNSET else str(np.datetime64(ms, "ms")).replace("T", " ") + "Z"


# -- as text ---------------------------------------------------------------------------------------


def show(console: Console, seen: Sequence[Seen], answer: Answer) -> None:
    """A table a topic, what could not be read, and the event."""
    for of, group in groupby(seen, key=lambda each: replace(each.at, number=0)):
        console.print(_table(of, list(group)))
    for each in seen:
        for problem in each.problems():
            console.print(f"{each.at}: {problem}", style="red")
        if each.view.set_aside:
            console.print(f"{each.at}: {each.view.set_aside:,} rows were set aside")
    for each in seen:
        for marker in each.view.found:
            row = each.view.row
            current = row.position.run if row is not None else marker.run
            console.print(effect(f"{each.at} at offset {marker.offset:,}", marker, current))
    say(console, answer, f"the {len(seen)} partitions above")


def say(console: Console, answer: Answer, where: str) -> None:
    """What an answer without a marker means."""
    if answer is Answer.NOT_FOUND:
        console.print(
            f"NOT FOUND: no marker in {where}. The event has not taken effect there, or so long "
            "ago that its marker was dropped with its generation.\n"
            "The ID was taken as one text without a secret, unless you said otherwise: give "
            "--secret-file where Once has a secret=, --id once for each part of a joined ID, or "
            "--key with the 32 digits of event.id."
        )
    if answer is Answer.UNKNOWN:
        console.print(
            "UNKNOWN: no marker among what could be read, but not all could be. This is no "
            '"not found".',
            style="red",
        )


def _table(of: Partition, seen: Sequence[Seen]) -> Table:
    ids = {kafka_id(s.view.row.position.topic_id) for s in seen if s.view.row is not None}
    title = f"{of.topic}   group {of.group}   scope {of.scope}   topic id {', '.join(sorted(ids))}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    numbers = ("partition", "next", "epoch", "run", "horizon", "markers")
    for name in (*numbers, "generations", "log time", "stalled opens", "held by"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for each in seen:
        table.add_row(str(each.at.number), *_cells(each))
    return table


def _cells(seen: Seen) -> Iterator[str]:
    view, row = seen.view, seen.view.row
    if row is None:
        yield from ("?",) * 8
    else:
        position = row.position
        yield "–" if position.next == UNSET else f"{position.next:,}"
        yield from (str(position.epoch), str(position.run), f"{position.horizon:,}")
        yield f"{view.markers.total():,}" + ("" if view.whole else "?")
        yield " ".join(map(str, sorted(view.starts))) or "–"
        yield moment(position.log_time_ms)
        yield str(position.stalled_opens) + (" IN FLIGHT" if position.in_flight else "")
    yield seen.holder or "–"


def effect(where: str, marker: Marker, current: int) -> Table:
    """One event that took effect; `current`: the run that its partition is in."""
    run = f"{marker.run}" + ("" if marker.run == current else f", of which {current} knows nothing")
    title = f"FOUND: took effect in {where}"
    table = Table(
        title=title, title_justify="left", title_style="bold green", box=None, show_header=False
    )
    for name, value in (
        ("committed", f"{moment(marker.wall_ms)}, in epoch {marker.epoch}"),
        ("log time", f"{moment(marker.log_time_ms)}, generation {marker.generation}"),
        ("run", run),
        ("fingerprint", f"{marker.fingerprint:08x}"),
        ("outcome", "none" if marker.status is Status.DONE else repr(outcome_of(marker))),
    ):
        table.add_row(name, value)
    return table
