"""What all tests share: where the test data lies, and what happens when something is not on this machine.

A test that needs real data or a tool of the system asks for it by name. Where it is missing the test is skipped, and
the summary counts such skips by name; with ``ACCUNET_REQUIRE=data,git`` (a comma list, set by ``.ci/run``) a missing
one of these is a failure.

Property tests draw the same examples in every run, so that a suite that passed passes again;
``ACCUNET_EXAMPLES=1000`` draws that many new ones where a test reads it, and other new ones everywhere else.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "agg")  # before anything imports matplotlib; subprocesses inherit it
os.environ |= {"COLUMNS": "200", "TERM": "dumb"}  # rich's tables are whole whatever the terminal; read at its import

settings.register_profile("repeatable", derandomize=True, database=None, print_blob=True)
settings.register_profile("exploring", derandomize=False, print_blob=True)
settings.load_profile("exploring" if "ACCUNET_EXAMPLES" in os.environ else "repeatable")

ROOT = Path(__file__).resolve().parents[1]
TEST_DATA = Path(os.environ.get("ACCUNET_TEST_DATA") or ROOT / "../shared/data").resolve()

Require = Callable[[str, object, str], None]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def require() -> Require:
    """``require(name, present, reason)``: go on if present, else skip, or fail where ACCUNET_REQUIRE lists the name."""
    return _require


@pytest.fixture(scope="session")
def git(require: Require) -> str:
    """Path of the git command."""
    command = shutil.which("git")
    require("git", command, "no git command")
    return str(command)


@pytest.fixture(scope="session")
def test_data(require: Require) -> Path:
    """The folder ACCUNET_TEST_DATA: ``hippocampus/``, ``dicom/`` and more."""
    require("data", TEST_DATA.is_dir(), f"ACCUNET_TEST_DATA: no folder {TEST_DATA}")
    return TEST_DATA


def _require(name: str, present: object, reason: str) -> None:
    if present:
        return
    if name in {item.strip() for item in os.environ.get("ACCUNET_REQUIRE", "").split(",")}:
        pytest.fail(f"required by ACCUNET_REQUIRE but missing: {name} ({reason})", pytrace=False)
    pytest.skip(f"missing {name}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each thing that was missing, with the number of tests it cost."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("skipped"):
        if isinstance(report.longrepr, tuple) and (found := re.match(r"Skipped: (missing .*)", report.longrepr[2])):
            counts[found.group(1)] += 1
    if counts:
        terminalreporter.section("skipped for want of something")
        for reason, count in counts.most_common():
            terminalreporter.line(f"{count:4d} × {reason}")
