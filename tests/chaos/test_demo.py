"""`effectonce demo`: its figures, its exit code, and the command line of `make crash`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import crash
from effectonce.cli import demo as demonstration
from effectonce.testing.chaos.judge import judge
from effectonce.testing.chaos.plan import Assignor, Mode, Spec
from effectonce.testing.chaos.run import Report

pytestmark = pytest.mark.alone

KEYS = {
    *(
        "delivered",
        "distinct",
        "effects",
        "suppressed",
        "kills",
        "kills_between_effect_and_commit",
        "freezes",
    ),
    *("lost", "repeated", "events_per_second", "seed"),
}


GOOD = judge(Mode.IN_STORE, 1, [], [], {})


def small(seed: int) -> Spec:
    return replace(
        demonstration.DEMO, seed=seed, delivered=5_000, distinct=4_500, kills=3, freezes=1
    )


def test_the_demo_loses_and_repeats_nothing_and_leaves_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demonstration, "DEMO", small(0))
    out = tmp_path / "out" / "demo.json"
    code = demonstration.demo("mock", 5, out)
    printed = capsys.readouterr().out
    assert code == 0, printed
    figures = json.loads(out.read_text())
    assert figures.keys() == KEYS
    assert (figures["seed"], figures["delivered"], figures["effects"]) == (5, 5_000, 4_500)
    assert (figures["lost"], figures["repeated"], figures["freezes"]) == (0, 0, 1)
    assert "seed 5" in printed
    assert "Every event took effect once" in printed


@pytest.mark.parametrize("wrong", ["lost", "repeated"])
def test_a_demo_that_loses_or_repeats_exits_with_1_and_says_so(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small(5)
    verdict = replace(GOOD, **{wrong: 3})
    problems = tuple(verdict.broken(spec.mode))
    report = Report(spec, verdict, 1.0, problems, tmp_path / "kept")
    monkeypatch.setattr(demonstration, "run", lambda *_: report)
    assert demonstration.demo("mock", 5, tmp_path / "demo.json") == 1
    printed = capsys.readouterr().out
    assert problems[0] in printed
    assert "took effect once" not in printed
    assert json.loads((tmp_path / "demo.json").read_text())[wrong] == 3


def test_make_crash_hands_its_words_over_and_asks_for_the_whole_proof_by_itself() -> None:
    words = ("--mode=outside-repeat", "--store=rocksdb", "--driver=confluent", "--assignor=kip848")
    spec = crash.parse([*words, "--seed", "9"])
    assert spec == Spec(seed=9, mode=Mode.OUTSIDE_REPEAT, assignor=Assignor.KIP848)
    assert (spec.delivered, spec.distinct, spec.kills, spec.freezes) == (200_000, 180_000, 50, 5)
    assert (spec.kills_near_effect, spec.kills_between_effect_and_commit) == (40, 10)
