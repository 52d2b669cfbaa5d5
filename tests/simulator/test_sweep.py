"""`effectonce simulate` and `make soak`: what they report is what happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from effectonce.cli import simulate as cli
from effectonce.cli.app import Effects
from effectonce.ports import Reach
from effectonce.testing.simulator import coverage
from effectonce.testing.simulator.faults import KINDS
from effectonce.testing.simulator.mutants import MUTANTS
from effectonce.testing.simulator.shrink import shrink
from effectonce.testing.simulator.sweep import Sweep, Tally, Where, run_seeds
from effectonce.testing.simulator.world import Mode, simulate

PROGRAM = "from effectonce.cli import main; main()"
FEW = ("--mode", "outside-repeat", "--store", "shared")
"""Few mutants are for these, so that a sweep is short."""
FLAT = (
    *("seed", "seeds", "runs", "steps", "deliveries", "deliveries_least", "faults_fired_least"),
    *("violations", "mutants", "mutants_killed", "mutants_survived", "faults_never_fired"),
    *("pairs_never_reached", "seeds_per_second", "runs_per_second", "seconds"),
)
LISTS = ("violations_found", "mutants_by_seed", "never_fired", "never_reached", "pairs")


def figures(folder: Path) -> dict[str, Any]:
    answer = json.loads((folder / "out" / "simulate.json").read_text(encoding="utf-8"))
    assert isinstance(answer, dict)
    return answer


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "simulate", *options],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip


def test_a_sweep_writes_its_figures_and_prints_the_seed_that_it_drew(tmp_path: Path) -> None:
    ran = run(tmp_path, "--seeds", "12", *FEW)
    answer = figures(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"seed {answer['seed']}" in ran.stdout.splitlines()[0]
    assert all(isinstance(answer[name], int | float) for name in FLAT)
    assert all(isinstance(answer[name], list | dict) for name in LISTS)
    assert (answer["seeds"], answer["runs"]) == (12, 12)
    assert answer["deliveries"] >= 12 * answer["deliveries_least"] > 0
    assert answer["pairs_never_reached"] == len(answer["never_reached"])
    assert answer["faults_never_fired"] == len(answer["never_fired"])
    assert set(answer["mutants_by_seed"]) == {
        m.name for m in MUTANTS if (m.mode, m.reach) == (Mode.OUTSIDE, Reach.SHARED)
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_soak_that_is_stopped_writes_its_figures(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "simulate", "--seeds", "0", "--seed", "7", *FEW],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        start_new_session=True,
    ) as soak:  # fmt: skip
        assert soak.stdout is not None
        assert soak.stderr is not None
        for line in soak.stdout:
            if " seeds, " in line and " 0 seeds" not in line:
                break
        # as a terminal's Ctrl-C, which its workers get too; or as a service manager's stop
        if number is signal.SIGINT:
            os.killpg(soak.pid, number)
        else:
            soak.send_signal(number)
        said, errors = soak.communicate(timeout=60)
    answer = figures(tmp_path)
    assert soak.returncode == 0, said + errors
    assert not errors
    assert "Figures: " in said
    assert answer["seed"] == 7
    assert answer["seeds"] > 0


def takes_long(mutant: str, first: int) -> object:
    """In place of a mutant, so that none ends between two signals."""
    threading.Event().wait(20)
    return mutant, first


SLOW = f"""
from effectonce.testing.simulator import sweep
from {__name__} import takes_long
sweep._try_mutant = takes_long
{PROGRAM}
"""


def test_ctrl_c_again_would_wait_as_long_as_the_first(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, "simulate", "--seeds", "0", "--seed", "7"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as soak:  # fmt: skip
        assert soak.stdout is not None
        for awaited in (" survived; ", "stopping: "):
            while awaited not in soak.stdout.readline():
                assert soak.poll() is None
            os.killpg(soak.pid, signal.SIGINT)
        began = time.monotonic()
        said, errors = soak.communicate(timeout=60)
        took = time.monotonic() - began
    assert soak.returncode == 130, said + errors
    assert "broken off: no figures were written" in said
    assert not (tmp_path / "out").exists()
    assert took < 3


def test_a_violation_fails_the_sweep_and_is_told_with_its_shortest_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (mutant,) = (m for m in MUTANTS if m.name == "commit past a gap")
    where = Where((mutant.mode,), (mutant.reach,))

    def broken_run(sweep: Sweep, watch: object) -> object:
        del watch
        with mutant.broken():
            sweep.so_far.tally = run_seeds(range(2), where)
            sweep.so_far.shrunk = [shrink(sweep.so_far.tally.broken[0])]
        return sweep.so_far

    monkeypatch.setattr(Sweep, "run", broken_run)
    out = tmp_path / "out" / "simulate.json"
    assert cli.simulate(0, 2, where, out) == 1
    answer = figures(tmp_path)
    assert answer["violations"] == len(answer["violations_found"]) > 0
    shortest = answer["violations_found"][0]["shortest"]
    assert shortest.startswith("effectonce simulate --seed ")
    assert shortest in capsys.readouterr().out


def test_a_mutant_that_survives_fails_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_survives(sweep: Sweep, watch: object) -> object:
        del watch
        sweep.so_far.mutants = {"no marker": 3, "trust Kafka over the store": None}
        return sweep.so_far

    monkeypatch.setattr(Sweep, "run", one_survives)
    assert cli.simulate(0, 1, Where(), tmp_path / "out" / "simulate.json") == 1
    answer = figures(tmp_path)
    assert (answer["mutants"], answer["mutants_killed"], answer["mutants_survived"]) == (2, 1, 1)
    assert len(answer["mutants_not_tried"]) == len(MUTANTS) - 2


def test_few_seeds_are_no_reason_for_a_mutant_to_survive(tmp_path: Path) -> None:
    # from this first seed it takes 82 to catch it
    ran = run(tmp_path, "--seeds", "1", "--seed", "181718", *FEW)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answer = figures(tmp_path)
    assert (answer["seeds"], answer["mutants_survived"]) == (1, 0)
    slow = answer["mutants_by_seed"]["forget pending keys"]
    assert slow > 181718 + 1, "one seed is enough to catch it by now: find another first seed"


def test_two_halves_of_a_sweep_sum_up_to_the_whole() -> None:
    whole, halves = run_seeds(range(4), Where()), Tally()
    for half in (range(2), range(2, 4)):
        halves.merge(run_seeds(half, Where()))
    assert halves == whole
    assert whole.runs == 4 * len(Mode) * len(Reach)


def test_pairs_that_were_never_reached_are_reported_and_no_others() -> None:
    counts = simulate(0).faults
    never = set(coverage.never_reached(counts))
    assert never | set(counts) == set(coverage.pairs())
    assert not never & set(counts)
    assert {kind for kind, _ in counts}.isdisjoint(coverage.never_fired(counts))
    assert not coverage.never_reached(dict.fromkeys(coverage.pairs(), 1))
    assert sorted(coverage.never_fired({})) == sorted(KINDS)


def test_the_matrix_shows_every_step_and_says_never_where_nothing_fell() -> None:
    console = Console(width=400, markup=False)
    with console.capture() as shown:
        console.print(cli.matrix({("crash", "seek"): 3}))
    rows = {line.split("  ")[0]: line for line in shown.get().splitlines()}
    assert {step for _, step in coverage.pairs()} <= set(rows)
    assert rows["seek"].split()[1:] == ["3", "never", "never", "never"]


def test_the_table_of_pairs_has_every_kind_and_nothing_falls_outside_it() -> None:
    assert sorted(coverage.WHERE) == sorted(KINDS)
    assert coverage.undeclared(run_seeds(range(40), Where()).pairs) == []


def test_the_command_offers_every_mode_of_the_simulator() -> None:
    assert {each.value for each in Effects} == {each.value for each in Mode}
