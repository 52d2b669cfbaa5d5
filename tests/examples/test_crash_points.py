"""examples/crash_points.py finds the mistake, and docs/testing.md shows what it really prints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_finds_the_mistake_and_the_page_shows_what_it_prints() -> None:
    script = ROOT / "examples" / "crash_points.py"
    printed = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True
    ).stdout
    assert "REPEATED in 13 cases" in printed
    assert "Killed after Bank.charge for p1, before the marker was committed" in printed
    assert "Bank.charge for p1 raised" not in printed, "the handler's own attempts have one key"
    assert printed.rstrip().endswith("in all of them the effects are\nthose of an undisturbed run.")
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    assert printed.strip() in page
    source = script.read_text(encoding="utf-8")
    handlers = source[source.index("def careful") : source.index("once = eo.Once")].strip()
    assert handlers in page
