"""A failing seed is printed with the shortest schedule found, which anybody can replay."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from effectonce.cli.replay import command
from effectonce.ports import Reach
from effectonce.testing.simulator.mutants import MUTANTS, Mutant, kill
from effectonce.testing.simulator.shrink import Shrunk, shrink
from effectonce.testing.simulator.world import Cut, Mode, Report, simulate

PROGRAM = "from effectonce.cli import main; main()"


def mutant(name: str) -> Mutant:
    (found,) = (each for each in MUTANTS if each.name == name)
    return found


def shrunk(name: str, runs: int = 200) -> tuple[Report, Shrunk]:
    broken = mutant(name)
    whole = kill(broken, 0, 60)
    assert whole is not None
    with broken.broken():
        return whole, shrink(whole, runs)


def effectonce(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *options], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("reach", Reach)
def test_a_run_that_lists_all_its_faults_is_the_same_run(mode: Mode, reach: Reach) -> None:
    for seed in range(10):
        whole = simulate(seed, mode, reach, timeline=True)
        assert simulate(seed, mode, reach, cut=Cut(whole.fell), timeline=True) == whole


def test_what_is_not_listed_does_not_fall() -> None:
    whole = simulate(3)
    one = tuple(fault for fault in whole.fell if fault.who == "producer")[-1:]
    assert simulate(3, cut=Cut(one)).fell == one
    assert simulate(3, cut=Cut(())).fell == ()


@pytest.mark.parametrize("name", ["drop the twin rule", "commit past a gap", "no marker, outside"])
def test_few_faults_and_records_are_left_of_a_failing_seed(name: str) -> None:
    whole, found = shrunk(name)
    assert len(whole.fell) > 40
    assert len(found.cut.only or ()) <= 3
    assert found.cut.records <= 40
    assert whole.violations[0].invariant in {v.invariant for v in found.report.violations}
    assert found.runs < 100


def test_a_search_ends_when_its_runs_are_used_up_and_what_it_has_still_breaks() -> None:
    _, found = shrunk("commit past a gap", runs=5)
    assert found.runs == 5
    assert found.report.violations


def test_the_same_seed_gives_the_same_shortest_schedule() -> None:
    (_, one), (_, other) = shrunk("commit past a gap"), shrunk("commit past a gap")
    assert one == other


def test_the_printed_command_replays_what_was_printed() -> None:
    name = "drop the twin rule"
    whole, found = shrunk(name)
    ran = effectonce(
        *("simulate", "--seed", str(whole.seed), "--mutant", name),
        *("--mode", whole.mode.value, "--store", whole.reach.value),
    )
    printed = command(found, name)
    assert ran.returncode == 1
    assert printed in ran.stdout, ran.stderr
    again = effectonce(*shlex.split(printed)[1:])
    assert again.returncode == 1
    assert ran.stdout.rstrip().endswith(again.stdout.rstrip())
    assert "BROKEN repeated" in again.stdout


def test_a_seed_that_holds_is_replayed_without_a_shortest_schedule() -> None:
    ran = effectonce("simulate", "--seed", "0", "--mode", "in-store", "--store", "shared")
    assert ran.returncode == 0
    assert "faults stop" in ran.stdout
    assert "shortest" not in ran.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--only-faults", "1"), "add --mode and --store"),
        (("--only-faults", "x", "--mode", "in-store", "--store", "shared"), "not like 12,40"),
        (("--only-faults", "9999", "--mode", "in-store", "--store", "shared"), "has no faults"),
        (("--mutant", "none such"), "there is no 'none such'"),
        (("--seeds", "1", "--records", "5"), "give --seed alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_options_that_replay_nothing_are_refused_in_words(
    options: tuple[str, ...], said: str
) -> None:
    ran = effectonce("simulate", "--seed", "0", *options)
    assert ran.returncode == 2
    assert said in ran.stderr


def test_the_page_shows_what_its_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")
    (command,) = (line[1:-1] for line in page.splitlines() if line.startswith("`effectonce sim")
                  and "--mutant" in line)  # fmt: skip
    printed = effectonce(*shlex.split(command)[1:]).stdout
    shortest = printed[printed.index("The shortest schedule") :].strip()
    assert shortest in page, f"docs/simulation.md is to show:\n{shortest}"
