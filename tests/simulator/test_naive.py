"""Known bugs of code written by hand, each found anew; on the same seeds effectonce has none."""

from collections.abc import Callable

import pytest

from effectonce.testing.simulator.world import Mode
from tests.simulator.scenes import SCENES, Scene, find, fired, judged, run

BOUND = 200
"""Seeds in which a bug must show; 20 sufficed for the rarest."""
SEEDS = 40

each_scene = pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)


@each_scene
def test_a_known_bug_is_found_in_naive_code(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    found = find(scene, BOUND)
    assert found is not None
    record_property("seed", found.seed)
    record_property("seeds", found.seeds)
    record_property("seconds", found.seconds)
    assert found.seconds < 60
    assert fired([found.report], scene.matters), "found, but not by the fault that matters"


@each_scene
def test_naive_code_is_right_until_the_fault_fires_so_the_harness_makes_no_bugs(
    scene: Scene,
) -> None:
    for variant in (scene.without(), scene.calm()):
        reports = [run(variant, seed, naive=True) for seed in range(SEEDS)]
        assert not fired(reports, scene.matters)
        assert fired(reports, "producer retry"), "nothing was delivered twice"
        for report in reports:
            assert not judged(scene, report) or not report.violations, f"seed {report.seed}"


@pytest.mark.parametrize(
    ("scene", "mode"),
    [(scene, mode) for scene in SCENES for mode in scene.modes],
    ids=lambda value: value.value if isinstance(value, Mode) else value.name,
)
def test_effectonce_keeps_its_promise_where_naive_code_does_not(scene: Scene, mode: Mode) -> None:
    reports = [run(scene, seed, mode, naive=False) for seed in range(SEEDS)]
    assert fired(reports, scene.matters)
    for report in reports:
        assert not report.violations, f"seed {report.seed}"
