"""The command line, `effectonce`: thin, for all that it tells is known to the library."""

import sys

EXTRAS = {"typer": "cli", "rich": "cli", "greenlet": "simulator"}
"""Packages that a command needs, and the extra that brings each."""


def main() -> None:
    """Run a command; exits 2 where the packages for it are not installed."""
    try:
        from effectonce.cli.app import run

        run()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        what = "The simulator" if package == "greenlet" else "The command line"
        print(
            f"{what} needs the package {package}, which is not installed:\n"
            f"  pip install 'effectonce[{EXTRAS[package]}]'",
            file=sys.stderr,
        )
        sys.exit(2)
