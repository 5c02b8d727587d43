"""benchmarks/inference.py runs, names what its ratios are against, and its page's commands are understood."""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measuring.parts import some_of
from tests.pages import blocks
from tests.test_benchmarks import table

SCRIPT = "benchmarks/inference.py"


@pytest.fixture(scope="module")
def report(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Markdown that a quick run writes."""
    file = tmp_path_factory.mktemp("report") / "inference.md"
    command = [sys.executable, SCRIPT, "--quick", "--threads", "1", "--output", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file.read_text(encoding="utf-8")


def test_memory_is_compared_with_monais(report: str) -> None:
    rows = table(report, "Memory of 256×256×32, 5 classes, a trivial network")
    assert next(iter(rows)) == "MONAI, logits"
    assert rows["MONAI, logits"]["share of MONAI's"] == "1.00"
    assert rows["MONAI, logits"]["estimated"] == "?"
    assert all(row["estimated"].endswith("MiB") for name, row in rows.items() if name.startswith("ours"))
    assert "Ratios against “MONAI, logits”" in report


def test_times_are_compared_with_a_named_baseline(report: str) -> None:
    throughput = table(report, "Throughput: ACC-UNet, width 8, 32×32×4 in batches of 2")
    assert throughput["bare network"]["throughput"] == "100.0%"
    speed = table(report, "Speed: ACC-UNet, width 8, 32×32×4 in batches of 2")
    assert list(speed) == [
        "MONAI, literal form",
        "our inferer, folded",
        "our inferer, folded, bfloat16",
        "our predictor, file to file, float32",
        "our predictor, file to file, bfloat16",
    ]
    assert speed["MONAI, literal form"]["times as fast"] == "1.00"
    growth = table(report, "Growth: ACC-UNet, width 8, slices of 32×32")
    assert list(growth) == ["2", "4", "8", "16"]
    assert growth["2"]["a slice, first row = 1"] == "1.000"
    stages = table(report, "Stages of the predictor: ACC-UNet, width 8, 32×32×4 in batches of 2")
    shares = [float(row["share"].rstrip("%")) for row in stages.values()]
    assert sum(shares[:-1]) == pytest.approx(shares[-1], abs=0.3)


def test_commands_of_the_page_are_understood(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = [block.text for block in blocks(root / "docs" / "inference.md") if block.language == "sh"]
    lines = [line.split() for line in "".join(page).replace("\\\n", " ").splitlines()]
    assert lines
    for line in lines:
        assert line[:2] == ["python", SCRIPT]
        monkeypatch.setattr(sys, "argv", line[1:])
        options = runpy.run_path(str(root / SCRIPT), run_name="benchmark")["_read_options"]()
        assert options.output.suffix == ".md"


def test_parts_that_do_not_exist_are_refused() -> None:
    parts = some_of(["memory", "growth", "stages"])
    assert parts("memory,growth") == ("memory", "growth")
    with pytest.raises(argparse.ArgumentTypeError, match="unknown parts sped; known are memory, growth, stages"):
        parts("sped")
