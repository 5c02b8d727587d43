"""What an evaluation leaves in its folder, and its page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accunet_monai.bundle import Prediction
from accunet_monai.evaluation import Row, draw_case, measure_case, read_rows, write_report
from accunet_monai.volumes import Volume
from tests.chromium import Page
from tests.conftest import Require

LABELS = {1: "one", 2: "two"}


NAMES = (("fair", 2), ("a/bad case", 4), ("good", 0))


def made_case(error: int) -> tuple[Prediction, np.ndarray]:
    """A box of two labels, predicted ``error`` voxels away; slices differ, so that the slider shows something."""
    reference = np.zeros((24, 28, 10), np.uint8)
    reference[6:16, 6:16, 2:9] = 1
    reference[6:16, 16:20, 2:9] = 2
    image = np.random.default_rng(error).normal(100, 5, reference.shape) + 60 * (reference > 0)
    image += 10 * np.arange(10)
    provenance = {"path": "/clinic/CANARY/1.dcm", "dicom": {"PatientName": "CANARY"}}
    volume = Volume(image.astype(np.float32), np.diag([1.0, 1.0, 2.5, 1.0]), provenance)
    return Prediction(volume, np.roll(reference, error, axis=0)), reference


def drawn(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for name, error in NAMES:
        prediction, reference = made_case(error)
        of_case = measure_case(prediction.label_map, reference, (1, 1, 2.5), LABELS, case=name)
        draw_case(folder, prediction, reference, of_case, LABELS)
        rows += of_case
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluation")
    write_report(made, drawn(made), "Made cases", about={"weights_sha256": "abc"})
    return made


def test_the_folder_has_tables_plots_and_the_worst_cases(folder: Path) -> None:
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert written == [
        "bland_altman.png", "boxes.png", "cases.csv", "cases.parquet", "review.html", "summary.json",
        "worst/1_a%2Fbad%20case.png", "worst/2_fair.png", "worst/3_good.png",
    ]  # fmt: skip
    assert read_rows(folder) == read_rows(folder / "cases.parquet")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["about"] == {"weights_sha256": "abc"}
    assert summary["labels"]["one"]["dice"]["mean"] == pytest.approx(
        np.mean([r["dice"] for r in read_rows(folder)[::2]])
    )
    with Image.open(folder / "worst" / "3_good.png") as good, Image.open(folder / "worst" / "2_fair.png") as fair:
        assert good.size == fair.size


def test_nothing_that_came_with_the_image_is_written(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert not [path for path in files if b"CANARY" in path.read_bytes() or "CANARY" in path.name]


def test_the_page_has_the_worst_case_first_its_measures_and_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "review.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["a/bad case", "fair", "good"]
    (first, *_) = re.findall(r"<table>(.*?)</table>", page, re.S)
    bad = next(row for row in read_rows(folder) if row["case"] == "a/bad case")
    assert f"<td>{bad['dice']:.3f}</td><td>{bad['hd95_mm']:.2f}</td>" in first
    assert not re.findall(r"(?:https?:|//[a-z]|url\(|@import|<link)", re.sub(r"base64,[^\"]*", "", page))


def test_the_page_of_many_cases_has_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accunet_monai.evaluation.report.MOST_CASES", 2)
    write_report(tmp_path, drawn(tmp_path), "Made cases")
    page = (tmp_path / "review.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["a/bad case", "fair"]
    assert "cases: 3, subjects: 3. The worst case comes first, 2 are shown." in page


def test_slider_layers_and_labels_work_in_a_browser(folder: Path, tmp_path: Path, require: Require) -> None:
    chromium = shutil.which("chromium")
    require("chromium", chromium, "no chromium command")
    with Page(str(chromium), (folder / "review.html").as_uri()) as page:
        slice_shown = "document.querySelector('article output').textContent"
        image = "document.querySelector('article .stage img').src"
        overlay = "document.querySelector('article .labels').src"
        first = page.value(image)
        page.click("article input[type=range]", 0.01)
        assert page.value(slice_shown) == "0"
        assert page.value(image) != first
        page.click("article input[type=range]", 0.5)
        assert page.value(slice_shown) in ("4", "5")
        seen = {}
        for layer in ("prediction", "reference", "difference"):
            page.click(f"[name=layer][value={layer}]")
            page.wait_for("document.querySelector('article .labels').complete")
            with Image.open(page.screenshot(tmp_path / f"{layer}.png")) as shot:
                seen[layer] = (page.value(overlay), np.asarray(shot.convert("RGB"), dtype=int))
            shown = "[...document.querySelectorAll('article ul')].slice(0, 2).map((e) => getComputedStyle(e).display)"
            wanted = ["none", "flex"] if layer == "difference" else ["flex", "none"]
            assert page.value(shown) == wanted
        assert len({source for source, _ in seen.values()}) == 3
        pictures = [picture for _, picture in seen.values()]
        assert all(np.abs(one - other).max() > 50 for one, other in pairwise(pictures))
        page.key("r")
        assert page.value(overlay) == seen["reference"][0]
        page.key("l")
        assert page.value("getComputedStyle(document.querySelector('article .labels')).display") == "none"
        assert page.value("document.getElementById('labels').checked") is False
        page.click("#labels")
        assert page.value("getComputedStyle(document.querySelector('article .labels')).display") != "none"
