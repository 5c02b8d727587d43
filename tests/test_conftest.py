"""Missing data skips with a counted reason, and fails where ACCUNET_REQUIRE names it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

INNER_TESTS = """
def test_first(test_data): pass
def test_second(test_data): pass
def test_third(require): require("orthanc", False, "no orthanc command")
def test_fourth(require): require("python", True, "never said")
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, root: Path) -> pytest.Pytester:
    """A folder of tests with this project's conftest and an ACCUNET_TEST_DATA that does not exist."""
    monkeypatch.setenv("ACCUNET_TEST_DATA", str(pytester.path / "nowhere"))
    monkeypatch.delenv("ACCUNET_REQUIRE", raising=False)
    pytester.makeconftest((root / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(INNER_TESTS)
    return pytester


def test_missing_things_skip_and_the_summary_counts_them(inner: pytest.Pytester) -> None:
    result = inner.runpytest_subprocess()
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(
        ["*skipped for want of something*", "*2 × missing data: ACCUNET_TEST_DATA: no folder *nowhere"]
    )
    result.stdout.fnmatch_lines(["*1 × missing orthanc: no orthanc command"])


def test_a_required_thing_that_is_missing_fails(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCUNET_REQUIRE", "other, data")
    result = inner.runpytest_subprocess()
    result.assert_outcomes(passed=1, skipped=1, errors=2)
    result.stdout.fnmatch_lines(["*required by ACCUNET_REQUIRE but missing: data*"])


def test_data_that_exists_is_handed_over(inner: pytest.Pytester) -> None:
    (inner.path / "nowhere").mkdir()
    inner.runpytest_subprocess().assert_outcomes(passed=3, skipped=1)
