"""benchmarks/data.py runs, and names what its ratios are against."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest


def test_the_quick_run_prints_both_ratios(
    root: Path, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "data.md"
    arguments = ["--dataset_dir", str(test_data / "hippocampus"), "--quick", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["data.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(root / "benchmarks" / "data.py"), run_name="__main__")
    text = output.read_text()
    rows = {cells[1].strip(): cells[3].strip() for line in text.splitlines() if len(cells := line.split("|")) == 5}
    assert rows["first start"] == rows["bare step"] == "1.00"
    assert float(rows["second start"]) > 1
    assert "With the loader" in text
