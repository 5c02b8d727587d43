"""Every command and code block of the README runs.

``make demo`` and ``make test`` are not run from within a test: that make knows them and what they would start is
checked, ``accunet demo`` has its own tests, and ``.ci/run`` calls ``make test``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.pages import blocks, run_page

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
@pytest.mark.filterwarnings("ignore:monai.transforms.spatial.dictionary Orientationd:FutureWarning")
def test_readme_runs(tmp_path: Path) -> None:
    namespace = run_page(ROOT / "README.md", tmp_path)
    assert namespace["prediction"].label_map.shape == namespace["prediction"].image.shape
    runs = tmp_path / "runs" / "hippocampus_mri"
    assert (runs / "best.safetensors").is_file()
    assert (runs / "evaluation" / "cases.csv").read_text().startswith("case,subject,label,status,dice")
    assert len(list((runs / "predictions").glob("*.nii.gz"))) == 1
    written = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert written == ["crop_overlay.png", "crop_seg.json", "crop_seg.nii.gz", "predictions.json"]


def test_nothing_in_the_readme_is_skipped() -> None:
    shown = blocks(ROOT / "README.md")
    assert {block.language for block in shown} == {"bash", "python", "bibtex"}
    assert not [block for block in shown if block.note.startswith("skip")]
    elsewhere = [block.note.removeprefix("by ") for block in shown if block.note.startswith("by ")]
    assert elsewhere == ["tests/pacs/test_first_steps.py"]


def test_the_citation_is_that_of_the_citation_file() -> None:
    (entry,) = (block.text for block in blocks(ROOT / "README.md") if block.language == "bibtex")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    for value in (cited["doi"], cited["volume"], f"{cited['start']}--{cited['end']}", cited["year"]):
        assert f"{{{value}}}" in entry
    assert re.sub(r"[{}]", "", entry).count(cited["title"]) == 1
    for author in cited["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in entry
