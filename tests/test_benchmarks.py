"""The benchmarks of the network run, name what their ratios are against, and say what does not fit into memory."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measuring.forms import EVALUATION, Case, multiply_accumulates
from tests.pages import blocks

FORMS = "eager,checkpointed,folded,folded-bf16,basicunet"
LITTLE_MEMORY = "0.2"
"""GiB in which the literal form cannot be trained on the quick image, and ours can."""
RUNS = {
    "network": ["benchmarks/network.py", "--forms", FORMS],
    "network in little memory": ["benchmarks/network.py", "--forms", "checkpointed", "--memory", LITTLE_MEMORY],
    "mlfc": ["benchmarks/mlfc.py"],
    "scaling": ["benchmarks/scaling.py"],
}
RUN_ALL = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""All in one process: importing PyTorch and MONAI takes longer than the rest."""

Table = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def reports(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The Markdown that each of ``RUNS`` writes, and under "printed" what all of them print."""
    folder = tmp_path_factory.mktemp("reports")
    files = {name: folder / f"{name}.md" for name in RUNS}
    commands = [[*RUNS[name], "--quick", "--threads", "1", "--output", str(file)] for name, file in files.items()]
    run = [sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"printed": done.stdout} | {name: file.read_text(encoding="utf-8") for name, file in files.items()}


def test_forms_are_compared_with_the_literal_one(reports: dict[str, str]) -> None:
    evaluation = table(reports["network"], "Evaluation")
    training = table(reports["network"], "Training step (forward, backward, SGD)")
    assert list(evaluation) == ["literal form, contiguous", "ours, contiguous", "folded", "folded, bfloat16"]
    assert list(training) == ["literal form, contiguous", "ours, contiguous", "ours, checkpointing"]
    for rows in (evaluation, training):
        literal, ours = rows["literal form, contiguous"], rows["ours, contiguous"]
        assert literal["times as fast"] == literal["share of memory"] == "1.00"
        assert float(ours["share of memory"]) < 0.8
        assert float(literal["GMAC an image"]) > 1.5 * float(ours["GMAC an image"]) > 0
        assert all(row["of the limit"].endswith("%") for row in rows.values())
    checkpointed, kept = (training[f"ours, {name}"]["share of memory"] for name in ("checkpointing", "contiguous"))
    assert float(checkpointed) < 0.8 * float(kept)
    assert reports["network"].count("ratios against “literal form, contiguous”") == 2
    assert "PyTorch" in reports["network"].splitlines()[0]


def test_networks_of_monai_are_there_for_scale(reports: dict[str, str]) -> None:
    row = table(reports["network"], "Evaluation: MONAI's networks, for scale")["MONAI BasicUNet"]
    assert row["parameters"] == "2.0 M"
    assert "times as fast" not in row


def test_a_form_that_does_not_fit_is_said_to_and_is_no_baseline(reports: dict[str, str]) -> None:
    text = reports["network in little memory"]
    rows = table(text, "Training step (forward, backward, SGD)")
    assert rows["literal form, contiguous"]["median ms"] == "does not fit"
    estimate = rows["literal form, contiguous"]["added memory"].removeprefix("about ")
    measured = rows["ours, checkpointing"]["added memory"]
    assert float(estimate.removesuffix(" MiB")) > 2 * float(measured.removesuffix(" MiB"))
    assert rows["ours, checkpointing"]["times as fast"] == "1.00"
    assert "ratios against “ours, checkpointing”" in text


def test_passes_are_compared_with_the_published_number(reports: dict[str, str]) -> None:
    for title in ("Evaluation, folded", "Training step, channels-last"):
        rows = table(reports["mlfc"], title)
        assert list(rows) == ["0", "1", "3", "4"]
        assert rows["3"]["time"] == rows["3"]["memory"] == "1.00"
        sizes = [float(row["parameters"].removesuffix(" M")) for row in rows.values()]
        assert sizes == sorted(set(sizes))
    assert "ratios against 3 passes" in reports["mlfc"]


def test_operations_grow_with_the_pixels(reports: dict[str, str]) -> None:
    rows = table(reports["scaling"], "64² against 32² pixels")
    assert {row["GMAC"] for row in rows.values()} == {"4.00"}
    assert len(rows) == 3
    assert "lies within 4.0–4.6" in reports["scaling"]


def test_what_is_printed_is_what_is_written(reports: dict[str, str]) -> None:
    for name in RUNS:
        cells = [cell for line in reports[name].splitlines() if line.startswith("| ") for cell in line.split("|")]
        short = {cell.strip() for cell in cells if " " not in cell.strip()}  # others may be wrapped
        assert all(cell in reports["printed"] for cell in short), name


def test_operations_of_the_published_network() -> None:
    shape = (1, 3, 224, 224)
    assert 42.9e9 <= multiply_accumulates(Case("literal", EVALUATION, shape)) <= 43.1e9
    assert multiply_accumulates(Case("channels-last", EVALUATION, shape)) <= 24e9


def test_commands_of_the_page_are_understood(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = [block.text for block in blocks(root / "docs" / "performance.md") if block.language == "sh"]
    commands = [line.split() for line in "".join(page).replace("\\\n", " ").splitlines()]
    words = [line[line.index("python") + 1 :] for line in commands if "python" in line]
    assert {line[0] for line in words} == {f"benchmarks/{name}.py" for name in ("network", "mlfc", "scaling")}
    for line in words:
        monkeypatch.setattr(sys, "argv", line)
        options = runpy.run_path(str(root / line[0]), run_name="benchmark")["_read_options"]()
        assert options.output.suffix == ".md"


def table(text: str, title: str) -> Table:
    """The Markdown table under ``title``: rows by first cell, cells by column."""
    lines = text.partition(f"**{title}**\n\n")[2].split("\n\n")[0].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
