"""`effectonce simulate`: seeds through the simulator, on all cores."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

from effectonce.ports import Reach
from effectonce.testing.simulator.faults import KINDS
from effectonce.testing.simulator.mutants import MUTANTS, kill
from effectonce.testing.simulator.world import Mode, Report
from effectonce.testing.simulator.world import simulate as run

MUTANT_SEEDS = 60


def every(seed: int) -> list[Report]:
    """One seed in every mode, on every kind of store."""
    return [run(seed, mode, reach) for mode in Mode for reach in Reach]


def replay(seed: int) -> int:
    """Print that seed's timelines."""
    broken = 0
    for mode in Mode:
        for reach in Reach:
            report = run(seed, mode, reach, timeline=True)
            print(f"== seed {seed}, {mode.value}, {reach.value}")
            print("\n".join(report.timeline))
            for violation in report.violations:
                print(f"VIOLATION {violation.invariant}: {violation.why}")
            broken += len(report.violations)
    return 1 if broken else 0


def simulate(first: int, seeds: int) -> int:
    """Run them, then the mutants; 1 if an invariant broke or a mutant survived."""
    began = time.monotonic()
    steps = done = 0
    faults: Counter[tuple[str, str]] = Counter()
    violations: list[dict[str, object]] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        try:
            for chunk in _chunks(first, seeds):
                for reports in pool.map(every, chunk, chunksize=25):
                    done += 1
                    for report in reports:
                        steps += report.steps
                        faults.update(report.faults)
                        violations += _violations(report)
                print(f"{done} seeds, {len(violations)} violations", flush=True)
        except KeyboardInterrupt:
            print("stopped")
    seconds = time.monotonic() - began
    killed = {mutant.name: kill(mutant, first, MUTANT_SEEDS) for mutant in MUTANTS}
    fired = {kind for kind, _ in faults}
    answer = {
        "seed": first,
        "seeds": done,
        "steps": steps,
        "violations": violations,
        "mutants": len(MUTANTS),
        "mutants_killed": sum(report is not None for report in killed.values()),
        "mutants_by_seed": {name: r.seed if r else None for name, r in killed.items()},
        "faults_never_fired": [kind for kind in KINDS if kind not in fired],
        "faults_by_step": {f"{kind} x {step}": n for (kind, step), n in sorted(faults.items())},
        "seeds_per_second": round(done * len(Mode) * len(Reach) / seconds, 1),
    }
    out = Path("out")
    out.mkdir(exist_ok=True)
    (out / "simulate.json").write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    shown = ("seeds", "mutants", "mutants_killed", "faults_never_fired", "seeds_per_second")
    print(*(f"{name}: {answer[name]}" for name in shown), sep="\n")
    for violation in violations:
        print(violation)
    return 1 if violations or None in killed.values() else 0


def _violations(report: Report) -> Iterator[dict[str, object]]:
    for violation in report.violations:
        yield {
            "seed": report.seed,
            "mode": report.mode.value,
            "store": report.reach.value,
            "invariant": violation.invariant,
            "why": violation.why,
        }


def _chunks(first: int, seeds: int) -> Iterator[range]:
    for start in count(first, 200):
        if seeds and start >= first + seeds:
            return
        yield range(start, min(start + 200, first + seeds) if seeds else start + 200)
