"""The commands and their options."""

from __future__ import annotations

import json as jsons
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import effectonce
from effectonce.errors import ConfigError, EffectOnceError
from effectonce.ports import Reach

if TYPE_CHECKING:
    from effectonce.cli.stored import Wanted

PIPED_WIDTH = 160
"""Columns where there is no terminal to ask: for a log or a pager, nothing is cut off."""

app = typer.Typer(
    help="Kafka events that take effect once: a demonstration, and a look into stores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def run() -> None:
    """Parse the command line and carry it out; what a user can mend is told without a traceback."""
    try:
        app()
    except EffectOnceError as error:
        print(f"effectonce: {error}", file=sys.stderr)
        sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"effectonce {effectonce.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    del version


class Broker(Enum):
    """What the demonstration runs on."""

    MOCK = "mock"
    KAFKA = "kafka"


@app.command()
def demo(
    broker: Annotated[Broker, typer.Option(help="An embedded mock, or Apache Kafka.")] = (
        Broker.MOCK
    ),
    seed: Annotated[int | None, typer.Option(help="To see the same run again.")] = None,
) -> None:
    """Kill consumers all the time, and see that every event takes effect once."""
    from effectonce.cli.demo import demo as play

    raise typer.Exit(play(broker=broker.value, seed=seed))


@app.command()
def bench(
    topic: Annotated[str, typer.Option(help="Yours; it is only read.")],
    bootstrap: Annotated[str | None, typer.Option(help="host:port of a broker.")] = None,
    store: Annotated[
        str, typer.Option(help="The kind and the server; yours is not touched, see above.")
    ] = "rocksdb:",
    identify: Annotated[
        str, typer.Option(help="Where the event ID stands: header:NAME, cloudevent, key, json:PATH")
    ] = "header:event-id",
    handler: Annotated[
        str | None, typer.Option(help="module:function, REALLY CALLED, an event at a time.")
    ] = None,
    batch_handler: Annotated[
        str | None, typer.Option(help="module:function, REALLY CALLED, a batch at a time.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=65_535, help="Messages a batch.")] = 1000,
    messages: Annotated[
        int, typer.Option(min=1, help="At most so many, the last of the topic.")
    ] = 500_000,
    rounds: Annotated[int, typer.Option(min=5, help="Each measures everything once.")] = 5,
    live: Annotated[
        bool, typer.Option("--live", help="Fetch while consuming; else all is fetched ahead.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="A client.properties, under librdkafka's names.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures there, too.")] = None,
) -> None:
    """What would effectonce cost on your topic? Measured beside a bare consumer.

    It produces nothing, joins and makes no consumer group, commits no offset, and creates no
    topic. Your store is not opened: rocksdb: is measured in a temporary folder (TMPDIR says on
    which disk), redis: on that server under a scope with a random name, removed after each run. It
    costs the broker, and that server, the reading.

    A handler is called for every event of the sample, in every round: give one whose effects you
    can bear so many times, or none. A tx that it takes is a temporary store's.

    Exits 0; 2 if it could not be measured; 130 if interrupted.
    """
    from effectonce.cli.bench import Asked
    from effectonce.cli.bench import bench as measure

    if handler and batch_handler:
        raise ConfigError(["--handler and --batch-handler: give one"])
    asked = Asked(
        *(bootstrap, topic, store, identify, handler or batch_handler),
        batches=handler is None,
        batch=batch,
        messages=messages,
        rounds=rounds,
        live=live,
        config=config,
        json=json,
    )
    news = Console(stderr=True, markup=False, highlight=False)
    raise typer.Exit(measure(asked, _console(), news))


class Effects(Enum):
    """Where a simulation's effects live; the simulator itself is imported by its command alone."""

    IN_STORE = "in-store"
    OUTSIDE = "outside-repeat"
    LANES = "outside-lanes"


@app.command()
def simulate(
    seeds: Annotated[
        int | None, typer.Option(min=0, help="How many; 0: until stopped. Default: 1000.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The first; drawn if not given. Without --seeds: replay that one."),
    ] = None,
    mode: Annotated[Effects | None, typer.Option(help="Only this mode.")] = None,
    store: Annotated[Reach | None, typer.Option(help="Only this kind of store.")] = None,
    only_faults: Annotated[
        str | None,
        typer.Option(help="Replay: only the faults with these numbers (12,40), or none."),
    ] = None,
    records: Annotated[int | None, typer.Option(min=1, help="Replay: produce so many.")] = None,
    members: Annotated[int | None, typer.Option(min=1, help="Replay: at most so many.")] = None,
    mutant: Annotated[
        str | None, typer.Option(help="Replay: with this breakage of the protocol.")
    ] = None,
) -> None:
    """Simulate a whole cluster under faults; writes out/simulate.json.

    Exits 1 on a violation or where a mutant survived. Mutants, breakages of the protocol that must
    be caught, have a bound of their own: each is tried from the first seed on, whatever --seeds
    says, until one catches it.

    With --seed and without --seeds, replays that seed step by step instead, and where an invariant
    breaks, the shortest schedule found that still breaks it.
    """
    from effectonce.cli.replay import Wanted, replay
    from effectonce.cli.simulate import simulate as play
    from effectonce.cli.simulate import where

    place = where(mode.value if mode else None, store)
    wanted = Wanted(only_faults, records, members, mutant)
    if seed is not None and seeds is None:
        raise typer.Exit(replay(_console(), seed, place, wanted))
    if wanted != Wanted():
        raise ConfigError(
            ["--only-faults, --records, --members and --mutant replay one seed: give --seed alone"]
        )
    raise typer.Exit(play(seed, 1000 if seeds is None else seeds, place))


Store = Annotated[str, typer.Argument(metavar="STORE_URL", help="rocksdb:///path, redis://host")]
Scope = Annotated[str | None, typer.Option(help="Only this scope.")]
Group = Annotated[str | None, typer.Option(help="Only this consumer group.")]
Topic = Annotated[str | None, typer.Option(help="Only this topic.")]
Number = Annotated[int | None, typer.Option(help="Only this partition.")]


@app.command()
def inspect(
    store: Store,
    scope: Scope = None,
    group: Group = None,
    topic: Topic = None,
    partition: Number = None,
    event_id: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            help="What became of this event? - reads it from standard input, which keeps it out "
            "of the shell's history. Several make one joined ID.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="As --id, by the 32 digits of an event.id without text.")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(help="Its bytes, all of them, are what Once has as secret=.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show positions and markers, and what became of one event. Works beside a running consumer.

    Exits 0; 1 if the event was not found; 2 if not all could be read, or nothing.
    """
    from effectonce.cli import inspect as inspecting
    from effectonce.cli.stored import Wanted, key_from_hex, key_of, named, partitions_of, root_of
    from effectonce.stores.rocksdb_options import Shared

    if event_id and key:
        raise ConfigError(["--id and --key are two ways to name one event: give one"])
    asked = key_of(event_id, secret_file) if event_id else key_from_hex(key) if key else None
    wanted = Wanted(scope, group, topic, partition)
    if named(store) == "redis":
        raise typer.Exit(_inspect_redis(store, wanted, asked, json))
    root = root_of(store)
    shared = Shared()
    seen = [inspecting.inspect(root, at, shared, asked) for at in partitions_of(root, wanted)]
    answer = inspecting.answer_of(seen, asked is not None)
    if json:
        print(jsons.dumps(inspecting.as_json(seen, answer), indent=2))
    else:
        inspecting.show(_console(), seen, answer)
    raise typer.Exit(inspecting.exit_code(seen, answer))


def _inspect_redis(url: str, wanted: Wanted, asked: bytes | None, json: bool) -> int:
    from effectonce.cli import inspect_redis

    report = inspect_redis.inspect(url, wanted, asked)
    if json:
        print(jsons.dumps(inspect_redis.as_json(report), indent=2))
    else:
        inspect_redis.show(_console(), report)
    return report.exit_code


@app.command()
def schema(
    store: Annotated[str, typer.Argument(metavar="STORE_URL", help="redis://user:password@host")],
) -> None:
    """Print what a server must be told before the first use: for Redis, a line of its ACL file.

    The user may then do what the store does, and nothing else. Without a password in the URL it is
    a user without one. What a `tx` writes needs rights of its own, on keys of its own.
    """
    from effectonce.cli.schema import schema as said

    print(said(store))


@app.command()
def quarantine(
    store: Store,
    topic: Annotated[str, typer.Option(help="The topic of the partition that stopped.")],
    partition: Annotated[int, typer.Option(help="Its number.")],
    scope: Scope = None,
    group: Group = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only look.")] = False,
) -> None:
    """Set aside what cannot be read of a partition, so that it can go on. Stop its owner first.

    Says how many events may run again. Without --yes nothing is changed, and it exits 1 if there
    is something to set aside.
    """
    from effectonce.cli.quarantine import run as carry_out
    from effectonce.cli.stored import Wanted, partitions_of, root_of
    from effectonce.stores.rocksdb_options import Shared

    root = root_of(store)
    at, *more = partitions_of(root, Wanted(scope, group, topic, partition))
    if more:
        groups = ", ".join(f"--scope {each.scope} --group {each.group}" for each in (at, *more))
        raise ConfigError([f"{at} is there several times; add one of: {groups}"])
    raise typer.Exit(carry_out(_console(), root, at, Shared(), yes=yes))


def _console() -> Console:
    """Prints what it is given: no markup, for names of topics may look like it."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)
