"""What tests against effectonce need: `exercise`, real servers and pytest fixtures."""

from effectonce.testing.exercises.case import Case
from effectonce.testing.exercises.exercise import exercise
from effectonce.testing.exercises.report import Report
from effectonce.testing.exercises.samples import Sample
from effectonce.testing.exercises.world import PerProcess, Target

__all__ = ["Case", "PerProcess", "Report", "Sample", "Target", "exercise"]
