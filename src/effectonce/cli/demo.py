"""The demonstration: consumers are killed all the time, and every event takes effect once."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from effectonce.cli import live
from effectonce.testing.chaos.plan import Assignor, Spec
from effectonce.testing.chaos.run import Broker, Report, run
from effectonce.testing.servers import KafkaServer, MockKafka, ServerError

FIGURES: Final = (
    *("delivered", "distinct", "effects", "suppressed", "kills"),
    *("kills_between_effect_and_commit", "freezes"),
    *("lost", "repeated", "events_per_second", "seed"),
)
BROKERS: Final = {"mock": "librdkafka's mock broker", "kafka": "Apache Kafka"}
INTERRUPTED: Final = 130

DEMO: Final = Spec(
    seed=0,
    assignor=Assignor.KIP848,  # the mock's classic groups stand still for seconds at a rebalance
    delivered=30_000,  # well below the 5 MB a partition that the mock keeps
    distinct=27_000,
    rate=1_000.0,
    kills=22,
    freezes=1,
    leaves=0,
    stuck_seconds=30.0,
)


def demo(broker: str, seed: int | None, out: Path = Path("out/demo.json")) -> int:
    """Play it on "mock" or "kafka"; 0 if nothing was lost or repeated, else 1."""
    console = live.console()
    spec = replace(DEMO, seed=secrets.randbelow(1_000_000) if seed is None else seed)
    title = f"effectonce: effects in RocksDB, {BROKERS[broker]}, seed {spec.seed}"
    console.print(title)
    server: type[KafkaServer | MockKafka] = KafkaServer if broker == "kafka" else MockKafka
    try:
        with server.start() as started:
            report = _play(spec, started, console, title)
    except ServerError as error:
        console.print(str(error), style="red")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted: all consumers have ended.")
        return INTERRUPTED
    figures = report.figures()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({name: figures[name] for name in FIGURES}, indent=2) + "\n")
    _tell(console, report, out)
    return 0 if report.ok else 1


def _play(spec: Spec, broker: Broker, console: Console, title: str) -> Report:
    with live.LiveView(console, title) as view:
        return run(spec, broker, view.watch)


def _tell(console: Console, report: Report, out: Path) -> None:
    spec, verdict = report.spec, report.verdict
    good = "bold green"
    rows = (
        (spec.delivered, f"deliveries: {spec.distinct:,} events, and copies that came later", ""),
        (
            verdict.kills,
            f"consumers killed, {verdict.kills_between_effect_and_commit} of them between an "
            "effect and its commit",
            "red",
        ),
        (verdict.freezes, "consumer frozen past its session, then thawed", "cyan"),
        (verdict.suppressed, "deliveries recognised as repeats, and not run again", "blue"),
        (verdict.effects, "effects, counted in the store when all consumers had gone", good),
        (verdict.lost, "events lost", "bold red" if verdict.lost else good),
        (verdict.repeated, "effects repeated", "bold red" if verdict.repeated else good),
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    for number, what, style in rows:
        table.add_row(Text(f"{number:,}", style=style), what)
    console.print(Padding(table, (1, 2)))
    if report.ok:
        console.print(
            f"Every event took effect once, in {report.seconds:.0f} s.  Figures: {out}", style=good
        )
        return
    for problem in report.problems:
        console.print(f"Not shown: {problem}", style="bold red")
    console.print(f"Kept for a look (journal, logs, store): {report.kept}   Figures: {out}")
