"""One measured run, in a process of its own.

python -m effectonce.cli.bench_run      a Job as JSON on standard input, which keeps passwords
                                        off the command line; the answer as JSON on its output,
                                        and before it a line for each turn (bench_turns.py)
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

import effectonce as eo
from effectonce.cli.bench_places import at_rest
from effectonce.cli.bench_reading import (
    AT_ONCE,
    CannotMeasure,
    Measured,
    Sample,
    TimedSampleClient,
    Turns,
    bare,
    by_hand,
    nothing,
)
from effectonce.cli.bench_turns import TURN, Runs
from effectonce.errors import ConfigError, EffectOnceError, PartitionStopped
from effectonce.handlers import Handler, check_handler
from effectonce.identity import Source
from effectonce.policy import MAX_WINDOW

WINDOW: Final[timedelta] = MAX_WINDOW
"""Every repeat in the sample counts, however far from the first: so each run can be checked."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is to do."""

    runs: Runs
    config: dict[str, Any]
    sample: Sample
    records: int
    store: str
    scope: str
    identify: str
    handler: str | None
    batches: bool
    """Whether the handler takes batches, not single events."""
    batch: int
    live: bool
    turn: int = 0
    """Messages before it waits until it is its turn again; 0: it runs alone."""

    @classmethod
    def read(cls, text: str) -> Job:
        given = json.loads(text)
        sample = given.pop("sample")
        spans = tuple((at, end) for at, end in sample["spans"])
        return cls(sample=Sample(sample["topic"], spans), **given)


# -- what the user names ---------------------------------------------------------------------------


def source_of(text: str) -> Source:
    """`header:NAME`, `cloudevent`, `key` or `json:PATH`. Raises CannotMeasure."""
    kind, _, name = text.partition(":")
    match kind:
        case "header" if name:
            return eo.header(name)
        case "json" if name:
            return eo.field(name)
        case "cloudevent" if not name:
            return eo.cloudevent()
        case "key" if not name:
            return eo.record_key()
        case _:
            raise CannotMeasure(
                f"--identify {text!r}: header:NAME, cloudevent, key or json:PATH, as in "
                "header:event-id"
            )


@dataclass(frozen=True, slots=True)
class Called:
    """The user's handler, and whether it asks for a `tx`."""

    handler: Handler
    in_store: bool


def handler_of(text: str, *, batches: bool) -> Called:
    """Import `module:function`, from the working directory too. Raises CannotMeasure."""
    name, _, function = text.partition(":")
    if not name or not function:
        raise CannotMeasure(f"handler {text!r}: module:function, as in payments.app:charge")
    if os.getcwd() not in sys.path:  # noqa: PTH109 - as sys.path has it
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Any = importlib.import_module(name)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise CannotMeasure(
            f"handler {text!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    first = "batch" if batches else "event"
    problems: list[str] = []
    for in_store in (False, True):
        try:
            check_handler(found, first, in_store=in_store)
        except ConfigError as error:
            problems += error.problems
        else:
            return Called(found, in_store)
    raise CannotMeasure(f"handler {text!r}: {problems[0]}")


# -- the runs --------------------------------------------------------------------------------------


def run(job: Job, turns: Turns) -> Measured:
    """Raises EffectOnceError."""
    if job.runs == "bare":
        return by_hand(
            *(job.config, job.sample, job.records, bare),
            batch=job.batch,
            live=job.live,
            turns=turns,
        )
    called = Called(nothing, in_store=False)
    if job.runs == "handler":
        assert job.handler is not None
        called = handler_of(job.handler, batches=job.batches)
    return _ours(job, called, turns)


class _Counted:
    """A handler, and what it was given."""

    def __init__(self, handler: Handler, *, batches: bool) -> None:
        self._handler = handler
        self._batches = batches
        self.handled = 0
        self.seconds = 0.0

    def plainly(self, *given: Any) -> object:
        self.handled += len(given[0]) if self._batches else 1
        return self._handler(given[0])

    def timed(self, *given: Any) -> object:
        began = time.perf_counter()
        try:
            return self._handler(*given)
        finally:
            self.seconds += time.perf_counter() - began
            self.handled += len(given[0]) if self._batches else 1


def _ours(job: Job, called: Called, turns: Turns) -> Measured:
    once = eo.Once(
        job.store,
        identify=source_of(job.identify),
        effects=eo.InStore() if called.in_store else eo.Outside(on_doubt="repeat"),
        scope=job.scope,
        window=WINDOW,
        retry=eo.Retry(attempts=1),
        on_unidentified="process",
    )
    counted = _Counted(called.handler, batches=job.batches)
    call: Callable[..., object] = counted.timed if job.runs == "handler" else counted.plainly
    client = TimedSampleClient(job.config, job.sample, live=job.live, turns=turns)
    config = {name: job.config[name] for name in ("bootstrap.servers", "group.id")}
    try:
        with eo.OnceConsumer(config, [job.sample.topic], once, client=client) as consumer:
            if job.batches:
                consumer.run_batches(call, size=job.batch, until=eo.END)
            else:
                consumer.run(call, until=eo.END)
            client.settled()
    finally:
        once.store.close()
    watch = client.watch
    return Measured(
        client.timed, watch.seconds, watch.cpu_seconds, counted.handled, counted.seconds
    )


def main() -> int:
    """Run what standard input asks for."""
    # what a handler prints is not the answer, and what it reads is no turn
    said, answer_to = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def wait() -> None:
        answer_to.write(f"{TURN}\n")
        answer_to.flush()
        if not said.readline():
            raise SystemExit  # whoever asked is gone

    answer: dict[str, Any]
    try:
        job = Job.read(said.readline())
        with at_rest("memory:" if job.runs == "bare" else job.store) as settle:
            turns = Turns(job.turn, wait, settle) if job.turn else AT_ONCE
            answer = {"measured": asdict(run(job, turns))}
    except EffectOnceError as error:
        answer = {"error": one_line(error)}
    with answer_to:
        answer_to.write(json.dumps(answer))
    return 0


def one_line(error: EffectOnceError) -> str:
    """What it says, the problems of a configuration one behind the other."""
    text = "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
    if isinstance(error, PartitionStopped):  # what is committed, and what to do, is of a real run
        text = text.partition(". Everything before it")[0]
    return " ".join(text.split())
