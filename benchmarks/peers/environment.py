"""The venv of the peers written in Python, made on demand and kept in the user's cache.

Its folder is named after what it is made of, and carries a stamp once all of that is in it; until
then each process tries again. A requirement that cannot be had costs its own peer alone.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import platform
import subprocess
import venv
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
            if install(interpreter):
                stamp.touch()
    return str(interpreter)


def lacks(modules: str) -> str | None:
    """Why a peer's modules cannot be imported there, or None."""
    done = subprocess.run(
        [python(), "-W", "ignore", "-c", f"import {modules}"],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[-1] if done.returncode else None


def install(interpreter: Path) -> bool:
    """All at once, so that they agree; else whatever can be had. Whether it was all."""
    if _pip(interpreter, "--requirement", str(REQUIREMENTS)):
        return True
    for line in REQUIREMENTS.read_text().splitlines():
        if not line.startswith("#"):
            _pip(interpreter, line)
    return False


def _pip(interpreter: Path, *what: str) -> bool:
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*pip, *what], check=False).returncode == 0  # it says itself what failed
