"""The published figures follow from the case tables that lie beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from accunet_monai.evaluation import compare, read_rows, summarise
from accunet_monai.evaluation.summary import Summary
from tests.pages import blocks

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs/results.md"
TABLES = {"ACC-UNet": "hippocampus_acc_unet.csv", "BasicUNet": "hippocampus_basic_unet.csv"}


@pytest.mark.parametrize("network", TABLES)
def test_the_page_of_results_says_what_the_case_table_says(network: str) -> None:
    summary = _summary(network)
    line = next(line for line in RESULTS.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {network} "))
    measures = [*summary.labels.values(), summary.overall]
    expected = [f"{found['dice'].mean:.3f} [{found['dice'].low:.3f}, {found['dice'].high:.3f}]" for found in measures]
    assert [cell.strip() for cell in line.split("|")[2:5]] == expected
    assert (summary.cases, summary.subjects) == (100, 68)


@pytest.mark.parametrize("network", TABLES)
def test_the_readme_repeats_the_page(network: str) -> None:
    def row(page: Path) -> list[str]:
        text = page.read_text(encoding="utf-8")
        (line,) = re.findall(rf"^\| {network} .*$", text, re.M)
        return [cell.strip() for cell in line.split("|")[2:5]]

    assert row(ROOT / "README.md") == row(RESULTS)


@pytest.mark.parametrize("network", TABLES)
def test_every_case_was_left_out_with_its_subject(network: str) -> None:
    """The table has each case of the bundle's folds once, with the subject of its split."""
    split = json.loads((ROOT / "bundles/hippocampus_mri/configs/split.json").read_text(encoding="utf-8"))
    rows = read_rows(ROOT / "docs/results" / TABLES[network])
    assert sorted({str(row["case"]) for row in rows}) == sorted(case for fold in split["folds"] for case in fold)
    assert {str(row["case"]): str(row["subject"]) for row in rows} == split["subjects"]


def test_the_code_of_the_page_prints_its_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = (block.text for block in blocks(RESULTS) if block.language == "python")
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    overall = _summary("ACC-UNet").overall["dice"]
    assert printed[2] == f"mean {overall.mean:.3f} [{overall.low:.3f}, {overall.high:.3f}]"


def test_the_stated_difference_is_the_paired_one() -> None:
    a, b = (read_rows(ROOT / "docs/results" / TABLES[network]) for network in ("ACC-UNet", "BasicUNet"))
    found = compare(a, b)
    change = found.overall
    stated = f"{change.mean:.3f} [{change.low:.3f}, {change.high:.3f}]"
    for page in (RESULTS, ROOT / "README.md"):
        assert stated in " ".join(page.read_text(encoding="utf-8").split())
    assert f"better on {found.better} of the {change.cases}" in RESULTS.read_text(encoding="utf-8")


def _summary(network: str) -> Summary:
    return summarise(read_rows(ROOT / "docs/results" / TABLES[network]))
