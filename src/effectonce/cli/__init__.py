"""The command line, `effectonce`: thin, for all that it tells is known to the library."""

import sys


def main() -> None:
    """Run a command; exits 2 where the packages for it are not installed."""
    try:
        from effectonce.cli.app import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        print(
            f"The command line needs the package {package}, which is not installed:\n"
            "  pip install 'effectonce[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    run()
