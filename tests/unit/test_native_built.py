"""The passes in C: built where they can be, missed nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from effectonce.native import native


def test_it_was_built_where_it_can_be() -> None:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    assert native is not None or shutil.which("cc") is None or not headers.exists()


def test_it_can_be_left_out_and_nothing_else_changes() -> None:
    code = (
        "import sys, numpy\n"
        "from effectonce.identity.keys import uuid_keys\n"
        "from effectonce.native import native\n"
        "assert native is None\n"
        "sys.stdout.buffer.write(uuid_keys([b'3f0a1c64-9a3c-4d7e-8f52-0c1f5d9e7a10']).tobytes())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=os.environ | {"EFFECTONCE_NATIVE": "0"},
        capture_output=True,
    )
    assert said.stdout.hex() == "3f0a1c649a3c4d7e8f520c1f5d9e7a10"
