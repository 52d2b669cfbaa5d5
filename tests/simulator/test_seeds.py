"""The real driver in a simulated cluster: promises under every fault, and mutants that must die."""

import subprocess
import sys
from collections import Counter
from unittest.mock import AsyncMock, patch

import pytest

from effectonce.begin import Beginner
from effectonce.ports import Reach
from effectonce.testing.simulator import world
from effectonce.testing.simulator.faults import IMPOSSIBLE, KINDS, LEAST
from effectonce.testing.simulator.mutants import MUTANTS, Mutant, kill
from effectonce.testing.simulator.world import Mode, simulate

SEEDS = 200
OF_LANES = 40
"""Each has three times the steps; what befalls them is drawn from the same source."""
BOUND = 300


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("reach", Reach)
def test_whatever_befalls_a_cluster_each_event_takes_effect_as_promised(
    mode: Mode, reach: Reach
) -> None:
    fired: Counter[str] = Counter()
    for seed in range(OF_LANES if mode is Mode.LANES else SEEDS):
        report = simulate(seed, mode, reach)
        assert not report.violations, f"seed {seed}"
        fired.update(kind for kind, _ in report.faults)
    possible = set(KINDS) - IMPOSSIBLE[reach]
    if mode is not Mode.LANES:
        assert not [kind for kind in possible if not fired[kind]], "faults that never fired"


def test_a_run_in_which_too_few_faults_have_fallen_is_not_called_done() -> None:
    with patch.object(world, "FAULTS_SECONDS", 0.5):
        reports = [simulate(seed) for seed in range(30)]
    for report in reports:
        assert sum(n for (_, step), n in report.faults.items() if step != "log") >= LEAST
        assert not report.violations


def test_a_topic_recreated_between_its_id_and_its_ends_is_not_taken_for_a_cut_off_log() -> None:
    assert not simulate(3028, Mode.OUTSIDE, Reach.EMBEDDED).violations
    with patch.object(Beginner, "_recreated", AsyncMock(return_value=False)):
        (violation,) = simulate(3028, Mode.OUTSIDE, Reach.EMBEDDED).violations[:1]
    assert "cut off" in violation.why, "the seed no longer meets it: find another"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_breakage_of_the_protocol_is_caught(mutant: Mutant) -> None:
    assert kill(mutant, 0, BOUND) is not None


def test_a_seed_gives_the_same_timeline_in_two_processes() -> None:
    code = (
        "from effectonce.testing.simulator.world import simulate\n"
        "print(*(simulate(seed, timeline=True).timeline for seed in range(5)))"
    )
    one, other = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert one == other
    assert len(one) > 1000
