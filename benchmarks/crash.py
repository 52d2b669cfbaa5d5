"""The proof: on Apache Kafka, consumers killed, frozen and replaced under a steady load.

    make crash MODE=in-store|outside-repeat [STORE= DRIVER= ASSIGNOR= SEED=]

Exits 1 if the promise of the mode was broken, or if the faults that were to test it did not happen.
The figures are left in out/crash.json.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from effectonce.cli import live
from effectonce.cli.demo import INTERRUPTED
from effectonce.testing.chaos.plan import Assignor, Mode, Spec
from effectonce.testing.chaos.run import Report, run
from effectonce.testing.chaos.stores import STORES
from effectonce.testing.chaos.worker import DRIVERS
from effectonce.testing.servers import KafkaServer, ServerError

OUT = Path("out/crash.json")
DISTINCT_SHARE = 0.9


def main() -> int:
    spec = parse(sys.argv[1:])
    console = live.console()
    title = (
        f"crash: {spec.mode.value}, {spec.store}, {spec.driver}, {spec.assignor.value}, "
        f"seed {spec.seed}"
    )
    console.print(title)
    try:
        with KafkaServer.start() as kafka, live.LiveView(console, title) as view:
            report = run(spec, kafka, view.watch)
    except ServerError as error:
        console.print(str(error), style="bold red")
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted: all consumers have ended.")
        return INTERRUPTED
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(report.figures(), indent=2) + "\n")
    tell(console, report)
    return 0 if report.ok else 1


def parse(arguments: list[str]) -> Spec:
    plain = Spec(seed=0)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash", description=__doc__)
    parser.add_argument("--mode", choices=[m.value for m in Mode], default=plain.mode.value)
    parser.add_argument("--store", choices=list(STORES), default=plain.store)
    parser.add_argument("--driver", choices=list(DRIVERS), default=plain.driver)
    parser.add_argument(
        "--assignor", choices=[a.value for a in Assignor], default=plain.assignor.value
    )
    parser.add_argument("--seed", type=int, help="what every choice is drawn from")
    parser.add_argument("--deliveries", type=int, default=plain.delivered, help="a tenth repeats")
    parser.add_argument("--rate", type=float, default=plain.rate, help="deliveries a second")
    parser.add_argument("--kills", type=int, default=plain.kills)
    parser.add_argument("--freezes", type=int, default=plain.freezes)
    parser.add_argument("--leaves", type=int, default=plain.leaves)
    chosen = parser.parse_args(arguments)
    return Spec(
        seed=secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed,
        mode=Mode(chosen.mode),
        store=chosen.store,
        driver=chosen.driver,
        assignor=Assignor(chosen.assignor),
        delivered=chosen.deliveries,
        distinct=round(chosen.deliveries * DISTINCT_SHARE),
        rate=chosen.rate,
        kills=chosen.kills,
        freezes=chosen.freezes,
        leaves=chosen.leaves,
    )


def tell(console: Console, report: Report) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, figure in report.figures().items():
        table.add_row(name, str(figure))
    console.print(table)
    for problem in report.problems:
        console.print(problem, style="bold red")
    if report.ok:
        console.print("The promise held, and the faults that test it happened.", style="bold green")
    else:
        console.print(f"Kept for a look (journal, logs, store): {report.kept}")


if __name__ == "__main__":
    sys.exit(main())
