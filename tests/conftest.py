"""What holds for every test: in CI nothing is skipped, and hypothesis does not watch the clock."""

import os
import signal
from collections.abc import Generator
from typing import TypeVar

import pytest
from hypothesis import settings

# Examples share the cores with a broker, so a slow one is no finding.
settings.register_profile("effectonce", deadline=None, print_blob=True)
settings.load_profile("effectonce")

# A shell has what it runs behind it (`make test &`) ignore Ctrl-C, which tests press, and processes
# that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))


def _refuse_skip(report: Report) -> Report:
    """In CI a test that could not run is a failure: it proved nothing, and nobody would notice."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI that is a failure: {report.longrepr}"
    return report
