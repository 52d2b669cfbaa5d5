"""`effectonce bench`: what effectonce costs on a user's own topic, beside a bare consumer.

A round measures every contender once, each in a process of its own on the same records, by turns
(bench_turns.py; with --live one after another, shuffled). A share is bare's time a message over the
contender's in the same round, and what is told is the median of the rounds with the least and the
greatest. A run that hands over one event too many or too few fails.

Nothing is produced, no group is joined or made, no offset is committed, the user's store is not
touched (bench_places.py).
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from effectonce.cli.bench_places import at_once, catches_all, is_redis, place, undisturbed
from effectonce.cli.bench_reading import (
    AHEAD_BYTES,
    CannotMeasure,
    Measured,
    Sample,
    reading,
    take_sample,
)
from effectonce.cli.bench_run import Job, handler_of, one_line, source_of
from effectonce.cli.bench_survey import Survey, survey
from effectonce.cli.bench_turns import TURNS, Runs, in_turns
from effectonce.errors import EffectOnceError
from effectonce.identity import Identity

FEWEST: Final = 2_000
"""Fewer records are over before the clock has seen them: a batch of 1000 takes about a ms."""
FEW: Final = 100_000
"""Fewer are over in a tenth of a second or less, which a busy machine easily takes away, and a new
store's first batches weigh in: with 6,000 a share was 0.07 (0.02 to 0.15)."""
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    bootstrap: str | None
    topic: str
    store: str
    identify: str
    handler: str | None
    batches: bool
    """Whether the handler takes batches; without a handler the empty one does."""
    batch: int
    messages: int
    rounds: int
    live: bool
    config: Path | None
    json: Path | None


Figures = dict[Runs, list[Measured]]


def bench(asked: Asked, console: Console, news: Console) -> int:
    """Measure, and tell. 0, or 130 if interrupted. Raises EffectOnceError."""
    try:
        with _tidily() as stack:
            told = _bench(asked, stack, news)
    except KeyboardInterrupt:
        news.print("Interrupted: nothing is left behind.")
        return INTERRUPTED
    except EffectOnceError as error:
        raise CannotMeasure(one_line(error)) from error
    show(console, told)
    if asked.json is not None:
        try:
            asked.json.parent.mkdir(parents=True, exist_ok=True)
            asked.json.write_text(json.dumps(told, indent=2) + "\n")
        except OSError as error:
            raise CannotMeasure(f"--json cannot be written: {error}") from error
    return 0


def _bench(asked: Asked, stack: ExitStack, news: Console) -> dict[str, Any]:
    identity = Identity(source_of(asked.identify))
    if problems := list(identity.problems()):
        raise CannotMeasure(f"--identify {asked.identify!r}: {'; '.join(problems)}")
    if asked.handler is not None:
        called = handler_of(asked.handler, batches=asked.batches)
        if called.in_store and is_redis(asked.store):
            raise CannotMeasure(
                f"handler {asked.handler!r} takes a tx, which on Redis could write to keys of "
                "yours: measure it on --store rocksdb:"
            )
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="effectonce-bench-")))
    everywhere = catches_all(at_once(asked.store, home))
    config = reading(settings(asked))
    sample = take_sample(config, asked.topic, asked.messages)
    if not sample.span:
        raise CannotMeasure(f"{asked.topic} is empty: there is nothing to measure on")
    _say(news, f"reading {sample.span:,} records of {asked.topic}, to see what they hold")
    seen = survey(config, sample, identity, everywhere=everywhere)
    if problem := _problem(asked, seen):
        raise CannotMeasure(problem)
    job = Job(
        *("bare", config, sample, seen.records, asked.store, "", asked.identify),
        handler=asked.handler,
        batches=asked.batches,
        batch=asked.batch,
        live=asked.live,
    )
    expected = seen.records - seen.caught(everywhere=everywhere)
    field: list[Runs] = ["bare", "ours"]
    if asked.handler is not None:
        field.append("handler")
    try:
        figures = measure(job, field, expected, asked.rounds, home, news)
    except CannotMeasure as error:
        if seen.without_id and "LookupError" in str(error):
            hint = f"{seen.without_id:,} records have no usable ID, for which event.id raises it"
            raise CannotMeasure(f"{error}. {hint}") from error
        raise
    return report(asked, sample, seen, figures, everywhere=everywhere)


def settings(asked: Asked) -> dict[str, Any]:
    """The client's, of --config and --bootstrap. Raises CannotMeasure."""
    config: dict[str, Any] = {}
    if asked.config is not None:
        try:
            lines = asked.config.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CannotMeasure(f"--config cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith(("#", "!")):
                continue
            name, equals, value = line.partition("=")
            if not equals:
                raise CannotMeasure(f"{asked.config}, line {number}: name=value is wanted")
            config[name.strip()] = value.strip()
    if asked.bootstrap is not None:
        config["bootstrap.servers"] = asked.bootstrap
    if not config.get("bootstrap.servers"):
        raise CannotMeasure("--bootstrap, or bootstrap.servers in --config: missing")
    return config


def _problem(asked: Asked, seen: Survey) -> str | None:
    """Why this sample cannot be measured."""
    if seen.records < FEWEST:
        return (
            f"{asked.topic}: {seen.records:,} readable records are too few to time; "
            f"{FEWEST:,} at least"
        )
    if seen.without_id == seen.records:
        named = (
            f"the first has the headers {', '.join(seen.headers)}"
            if seen.headers
            else ("the first has no headers")
        )
        return (
            f"{asked.topic}: none of {seen.records:,} records has an ID: "
            f"{next(iter(seen.missing))}, {named}. --identify says where it stands"
        )
    if seen.conflicts:
        return (
            f"{asked.topic}: {seen.conflicts:,} times an event ID comes with another payload than "
            f"before, where effectonce would stop: is {asked.identify} what two deliveries of one "
            "event share, and nothing else? --identify names another"
        )
    if seen.value_bytes > AHEAD_BYTES and not asked.live:
        return (
            f"{asked.topic}: {seen.value_bytes / 2**30:.1f} GB are too much to fetch ahead: "
            "fewer --messages, or --live"
        )
    return None


# -- rounds ----------------------------------------------------------------------------------------


def measure(
    job: Job, field: Sequence[Runs], expected: int, rounds: int, home: Path, news: Console
) -> Figures:
    """All rounds; in each, `expected` events must reach the handler. Raises CannotMeasure."""
    figures: Figures = {runs: [] for runs in field}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(
        *columns, TimeElapsedColumn(), console=news, transient=True, disable=not news.is_terminal
    )
    with progress:
        bar = progress.add_task("", total=rounds * len(field))
        for number in range(1, rounds + 1):
            progress.update(bar, description=f"round {number} of {rounds}")
            _say(news, f"round {number} of {rounds}: {', '.join(field)}")
            with closing(_round(job, field, home)) as answers:
                for runs, measured in answers:
                    wanted = job.records if runs == "bare" else expected
                    figures[runs].append(_checked(measured, job, runs, wanted))
                    progress.advance(bar)
    return figures


def _say(news: Console, text: str) -> None:
    """For a log; on a terminal the bar says it."""
    if not news.is_terminal:
        news.print(text, soft_wrap=True)


def _round(job: Job, field: Sequence[Runs], home: Path) -> Generator[tuple[Runs, Measured]]:
    with ExitStack() as stack:
        jobs: dict[Runs, dict[str, Any]] = {}
        for runs in random.sample(field, len(field)):
            folder = home / runs
            folder.mkdir(exist_ok=True)
            here = stack.enter_context(place(job.store, folder))
            turn = 0 if job.live else -(-job.records // TURNS)
            jobs[runs] = {
                **asdict(job), "runs": runs, "store": here.url, "scope": here.scope, "turn": turn
            }  # fmt: skip
        if job.live:  # what is fetched meanwhile cannot be held
            for runs, given in jobs.items():
                yield from in_turns({runs: given}, home)
        else:
            yield from in_turns(jobs, home)


def _checked(measured: Measured, job: Job, runs: Runs, wanted: int) -> Measured:
    """Raises CannotMeasure where it was not exact, or the clock saw little of it."""
    if measured.handled != wanted:
        raise CannotMeasure(
            f"{job.sample.topic}, {runs}: {measured.handled:,} events handled, {wanted:,} expected"
        )
    if measured.seconds <= 0 or measured.messages < job.records / 2:
        raise CannotMeasure(
            f"{job.sample.topic}, {runs}: the clock saw {measured.messages:,} of {job.records:,} "
            "records: more --messages, or --live"
        )
    return measured


# -- what is told ----------------------------------------------------------------------------------


def report(
    asked: Asked, sample: Sample, seen: Survey, figures: Figures, *, everywhere: bool
) -> dict[str, Any]:
    """Flat keys, as `make bench` writes them."""
    ns = {runs: [each.seconds / each.messages * 1e9 for each in of] for runs, of in figures.items()}
    told: dict[str, Any] = {
        "topic": sample.topic,
        "partitions": len(sample.spans),
        "messages": seen.records,
        "rounds": asked.rounds,
        "batch": asked.batch,
        "store": "redis" if is_redis(asked.store) else asked.store.partition(":")[0],
        "handles": "batch" if asked.batches else "event",
        "fetched": "live" if asked.live else "ahead",
        "repeats": seen.caught(everywhere=everywhere),
        "repeats_not_caught": 0 if everywhere else seen.elsewhere,
        "without_id": seen.without_id,
        "without_id_because": dict(seen.missing),
    }
    for runs, times in ns.items():
        told |= _spread(f"{runs}_per_second", [1e9 / each for each in times], 0)
        if runs != "bare":
            pairs = list(zip(ns["bare"], times, strict=True))
            told |= _spread(f"share_{runs}", [b / t for b, t in pairs], 4)
            told |= _spread(f"added_ns_{runs}", [t - b for b, t in pairs], 1)
    if "handler" in figures:
        each = [run.handler_seconds / max(run.handled, 1) * 1e9 for run in figures["handler"]]
        told |= _spread("handler_ns_per_event", each, 1)
    return told


def _spread(name: str, values: list[float], digits: int) -> dict[str, float]:
    return {
        name: round(statistics.median(values), digits),
        f"{name}_least": round(min(values), digits),
        f"{name}_greatest": round(max(values), digits),
    }


_NAMES: Final = {
    "bare": "bare consumer",
    "ours": "effectonce, empty handler",
    "handler": "effectonce, your handler",
}


def show(console: Console, told: Mapping[str, Any]) -> None:
    """A table, and a line each for what else was found."""
    title = (
        f"{told['topic']}: {told['messages']:,} messages, {told['partitions']} partitions, fetched "
        f"{told['fetched']}; store {told['store']}; {told['rounds']} rounds, median (least to "
        "greatest)"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("", "messages a second", "share of bare", "ns a message added"):
        table.add_column(name, justify="right" if name else "left")
    for runs, name in _NAMES.items():
        if runs != "bare":
            name += ", a batch at a time" if told["handles"] == "batch" else ", an event at a time"
        if f"{runs}_per_second" in told:
            shares = [_cell(told, f"{key}_{runs}", form) for key, form in _SHARES.items()]
            table.add_row(name, _cell(told, f"{runs}_per_second", ",.0f"), *shares)
    console.print(table)
    for line in _findings(told):
        console.print(line)


_SHARES: Final = {"share": ".2f", "added_ns": ",.0f"}


def _cell(told: Mapping[str, Any], key: str, form: str) -> str:
    if key not in told:
        return ""
    least, greatest = told[f"{key}_least"], told[f"{key}_greatest"]
    return f"{told[key]:{form}} ({least:{form}} to {greatest:{form}})"


def _findings(told: Mapping[str, Any]) -> Iterator[str]:
    if told["messages"] < FEW:
        yield (
            f"fewer than {FEW:,} messages are over within moments: look at the spread, and rather "
            "measure more"
        )
    yield f"repeats found: {told['repeats']:,}"
    if told["repeats_not_caught"]:
        yield (
            f"{told['repeats_not_caught']:,} more lie in another partition than the first: this "
            "store does not catch them. Key the producer by event ID, or share the store (redis:)"
        )
    yield f"without a usable ID: {told['without_id']:,}"
    for why, count in told["without_id_because"].items():
        yield f"  {count:,}: {why}"
    if told["without_id"]:
        yield (
            '  At such a record its partition stops, unless Once has on_unidentified="process" '
            "(as here: it runs, unprotected) or another identify"
        )
    if "handler_ns_per_event" in told:
        cell = _cell(told, "handler_ns_per_event", ",.0f")
        yield f"in your handler: {cell} ns an event"


# -- an end without traces -------------------------------------------------------------------------


@contextmanager
def _tidily() -> Iterator[ExitStack]:
    """SIGTERM and SIGHUP are told like Ctrl-C; a second one does not disturb the clearing away."""
    ends = (signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, signal.default_int_handler) for each in ends}
    stack = ExitStack()
    try:
        yield stack
    finally:
        with undisturbed():
            stack.close()
        for each, handler in before.items():
            signal.signal(each, handler)
