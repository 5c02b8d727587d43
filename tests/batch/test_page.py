"""The page for review: whole in itself, every case with its slices, labels at their place, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from accunet_monai.batch import predict_files
from accunet_monai.batch.page import ALPHA, LONG_SIDE, MOST_SLICES, write_case, write_page
from accunet_monai.bundle import Prediction
from accunet_monai.volumes import Volume, label_colour
from tests.batch.tiny import images, tiny_bundle

NAMES = {1: "one <b>", 2: "two"}


def data_of(page: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def picture(uri: str) -> np.ndarray:
    kind, content = uri.split(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    with Image.open(io.BytesIO(base64.b64decode(content))) as opened:
        return np.asarray(opened.convert("RGBA"))


def made(shape: tuple[int, int, int] = (40, 60, 9), spacing: tuple[float, float, float] = (1, 1, 3)) -> Prediction:
    """Bright and labelled at the patient's left, anterior, superior end."""
    image, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    image[:8, -12:, -1] = 100
    labels[:8, -12:, -1] = 2
    return Prediction(Volume(image, np.diag([*spacing, 1.0])), labels)


def test_image_and_labels_lie_where_a_radiologist_looks_for_them(tmp_path: Path) -> None:
    path = write_case(made(), tmp_path / "case.html", "a case", NAMES)
    (data,) = data_of(path.read_text(encoding="utf-8"))
    assert data["slices"] == list(range(9))
    assert data["first"] == 8  # most labels
    assert list(data["layers"]) == ["prediction"]
    assert data["layers"]["prediction"][:8] == [""] * 8
    grey, colours = picture(data["images"][8]), picture(data["layers"]["prediction"][8])
    assert grey.shape[:2] == colours.shape[:2] == (LONG_SIDE, round(LONG_SIDE * 40 / 60))
    at = (20, grey.shape[1] - 20)  # anterior is up, the patient's left on the right
    assert grey[at][0] > 200
    assert grey[at[0], 20][0] < 50
    assert tuple(colours[at])[:3] == pytest.approx(label_colour(2), abs=2)
    assert colours[at][3] == ALPHA
    assert colours[20, 20][3] == 0
    assert colours[-20, -20][3] == 0


def test_with_a_reference_it_and_the_difference_can_be_shown(tmp_path: Path) -> None:
    prediction = made()
    reference = np.zeros_like(prediction.label_map)
    reference[:4, -12:, -1] = 2  # right
    reference[4:8, -12:, -1] = 1  # another label
    reference[30:, :12, 3] = 1  # missed
    table = [("", "Dice"), ("one <b>", "0.5")]
    path = write_case(prediction, tmp_path / "case.html", "a case", {**NAMES, 3: "three"}, reference, table)
    text = path.read_text(encoding="utf-8")
    (data,) = data_of(text)
    layers = data["layers"]
    assert list(layers) == ["prediction", "reference", "difference"]
    assert data["first"] == 3  # most voxels that differ
    assert [index for index, shown in enumerate(layers["difference"]) if shown] == [3, 8]
    seen, missed = picture(layers["difference"][8]), picture(layers["difference"][3])
    at, beside = (
        (20, seen.shape[1] - 10),
        (20, seen.shape[1] - 30),
    )  # voxels 1 and 5, the patient's left is on the right
    assert seen[at][3] == 0
    assert seen[beside][3] == ALPHA
    assert tuple(seen[beside]) != tuple(missed[-20, 20])
    expert = picture(layers["reference"][8])
    assert tuple(expert[at])[:3] == pytest.approx(label_colour(2), abs=2)
    assert tuple(expert[beside])[:3] == pytest.approx(label_colour(1), abs=2)
    assert "<tr><td>one &lt;b&gt;</td><td>0.5</td></tr>" in text
    assert re.findall(r'<li class="(\w*)"', text) == ["", "", "absent", "", "", ""]
    same = write_case(prediction, tmp_path / "same.html", "same", NAMES, prediction.label_map)
    assert data_of(same.read_text(encoding="utf-8"))[0]["first"] == 8  # most labels
    plain, choice = (
        write_page(tmp_path / "page.html", [path], "t", reference=reference).read_text(encoding="utf-8")
        for reference in (False, True)
    )
    assert 'name="layer"' not in plain.split("<main>")[0]
    assert choice.split("<main>")[0].count('name="layer"') == 3


def test_slices_are_cut_where_voxels_are_longest_and_not_more_than_so_many(tmp_path: Path) -> None:
    thick = write_case(made((5, 60, 40), (4, 1, 1)), tmp_path / "a.html", "a", NAMES).read_text(encoding="utf-8")
    assert "sagittal slice" in thick
    assert len(data_of(thick)[0]["images"]) == 5
    many = write_case(made((20, 20, 300), (1, 1, 1)), tmp_path / "b.html", "b", NAMES).read_text(encoding="utf-8")
    chosen = data_of(many)[0]["slices"]
    assert "axial slice" in many
    assert len(chosen) == MOST_SLICES
    assert (chosen[0], chosen[-1]) == (0, 299)
    flat = write_case(made((20, 60, 10), (1, 0.5, 1)), tmp_path / "c.html", "c", NAMES).read_text(encoding="utf-8")
    height, width = picture(data_of(flat)[0]["images"][0]).shape[:2]
    assert height / width == pytest.approx(30 / 20, rel=0.02)  # the patient's proportions


def test_a_page_takes_nothing_from_elsewhere_and_no_name_becomes_markup(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (3, 20, 30)).astype(np.float32)
    cases = [
        write_case(made(), tmp_path / "1.html", "</script><script>alert(1)</script>", NAMES),
        write_case(Prediction(colours, np.ones((20, 30), np.uint8)), tmp_path / "2.html", "colour", NAMES),
        write_case(Prediction(colours[:1], np.zeros((20, 30), np.uint8)), tmp_path / "3.html", "grey", NAMES),
    ]
    page = write_page(tmp_path / "review.html", cases, "a & b").read_text(encoding="utf-8")
    assert page.count("<article>") == page.count('type="range"') == len(data_of(page)) == 3
    assert "alert(1)</script>" not in page
    assert "one &lt;b&gt;" in page
    assert "<title>a &amp; b</title>" in page
    assert not re.findall(r"(?:https?:|//[a-z]|url\(|@import|<link)", re.sub(r"base64,[^\"]*", "", page))
    assert "default-src 'none'" in page  # and a browser would not fetch it
    assert picture(data_of(page)[1]["images"][0]).shape[2] == 4
    assert len(set(re.findall(r'<li class="(\w*)">', page))) == 2  # absent labels are marked


def test_a_run_has_one_page_with_all_cases_also_those_done_before(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    images(tmp_path / "in", 1)
    options = {"device": "cpu", "console": Console(quiet=True), "review": True}
    predict_files(tmp_path / "in", bundle, tmp_path / "out", **options)  # type: ignore[arg-type]
    images(tmp_path / "in", 2)
    report = predict_files(tmp_path / "in", bundle, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert (len(report.skipped), len(report.written)) == (1, 1)
    page = (tmp_path / "out" / "review.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["case_00", "case_01"]
    assert all(len(data["images"]) == 4 for data in data_of(page))
