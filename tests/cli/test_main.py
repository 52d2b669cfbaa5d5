"""`effectonce` starts, or says what is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys({missing!r}))    # as if these were not installed
sys.argv[0] = "effectonce"
from effectonce.cli import main
main()
"""


def effectonce(*options: str, missing: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(missing=missing), *options],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_that_of_the_package() -> None:
    ran = effectonce("--version")
    assert (ran.returncode, ran.stdout) == (0, f"effectonce {version('effectonce')}\n")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(package: str) -> None:
    ran = effectonce("--version", missing=(package,))
    assert ran.returncode == 2
    assert "pip install 'effectonce[cli]'" in ran.stderr
    assert package in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_greenlet_the_simulator_says_what_to_install() -> None:
    ran = effectonce("simulate", missing=("greenlet",))
    assert ran.returncode == 2
    assert "pip install 'effectonce[simulator]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_without_a_command_it_shows_them_all() -> None:
    ran = effectonce()
    assert all(command in ran.stdout + ran.stderr for command in ("demo", "inspect", "quarantine"))


def test_a_command_needs_nothing_of_the_others() -> None:
    ran = effectonce("inspect", "memory:", missing=("effectonce.testing", "effectonce.cli.demo"))
    assert ran.returncode == 2
    assert ran.stderr.startswith("effectonce: ")
