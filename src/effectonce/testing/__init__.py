"""What tests against effectonce need: `exercise`, real servers and pytest fixtures.

The plugin is loaded in every pytest run, so a name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effectonce.testing.exercises.case import Case
    from effectonce.testing.exercises.exercise import exercise
    from effectonce.testing.exercises.report import Report
    from effectonce.testing.exercises.samples import Sample
    from effectonce.testing.exercises.world import PerProcess, Target

__all__ = ["Case", "PerProcess", "Report", "Sample", "Target", "exercise"]

_HOME = {
    "Case": "case",
    "PerProcess": "world",
    "Report": "report",
    "Sample": "samples",
    "Target": "world",
    "exercise": "exercise",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.exercises.{_HOME[name]}"), name)
