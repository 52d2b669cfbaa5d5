"""The rule that CI skips nothing, tried on a suite that skips in each of pytest's ways."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SUITE = """
    import pytest

    @pytest.mark.skip(reason="no broker")
    def test_marked(): ...

    def test_called():
        pytest.skip("no broker")

    @pytest.fixture
    def broker():
        pytest.skip("no broker")

    def test_fixture(broker): ...

    @pytest.mark.xfail(reason="known", strict=True)
    def test_expected_failure():
        raise AssertionError

    def test_runs(): ...
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(test_suite=SUITE, test_module='import pytest\npytest.importorskip("nope")')
    return pytester


def test_in_ci_whatever_is_skipped_fails(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    result = suite.runpytest("--continue-on-collection-errors")
    result.assert_outcomes(passed=1, xfailed=1, failed=1, errors=3)
    result.stdout.fnmatch_lines(["*skipped, and in CI that is a failure: *no broker*"])


def test_elsewhere_a_skip_stays_a_skip(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    suite.runpytest().assert_outcomes(passed=1, xfailed=1, skipped=4)
