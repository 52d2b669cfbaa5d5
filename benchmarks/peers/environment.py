"""The venv of the peers written in Python, made on demand and kept in the user's cache.

Its folder is named after its requirements, and counts only once it carries a stamp, so that an
interrupted installation is begun anew. A requirement that cannot be had costs its own peer alone.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import platform
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from effectonce.testing.servers.jars import cache_dir

REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")


@functools.cache
def python() -> str:
    """The interpreter that has the peers, as far as they could be installed."""
    made_of = f"{platform.python_version()}\n{REQUIREMENTS.read_text()}"
    home = cache_dir().with_name(f"peers-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}")
    home.mkdir(parents=True, exist_ok=True)
    interpreter, stamp = home / "bin" / "python", home / ".installed"
    with (home / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            venv.create(home, with_pip=True)
            stamp.write_text(_install(interpreter))
    return str(interpreter)


def lacks(module: str) -> str | None:
    """Why the peer's module cannot be imported there, or None."""
    done = subprocess.run(
        [python(), "-W", "ignore", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return _last_line(done.stderr) if done.returncode else None


def _install(interpreter: Path) -> str:
    """All at once, so that they agree; else whatever can be had. Returns what went wrong."""
    if not (refused := _pip(interpreter, "--requirement", str(REQUIREMENTS))):
        return ""
    wanted = [line for line in REQUIREMENTS.read_text().splitlines() if line[:1] != "#"]
    refusals = [refused, *(_pip(interpreter, each) for each in wanted)]
    print("peers that could not be installed:", *filter(None, refusals), sep="\n", file=sys.stderr)
    return "\n".join(filter(None, refusals))


def _pip(interpreter: Path, *what: str) -> str:
    quiet: Sequence[str] = ("--quiet", "--disable-pip-version-check")
    done = subprocess.run(
        [str(interpreter), "-m", "pip", "install", *quiet, *what],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{' '.join(what)}: {_last_line(done.stderr)}" if done.returncode else ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
