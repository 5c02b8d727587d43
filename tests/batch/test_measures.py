"""Volumes, intensities and touched sides, against numbers found by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from accunet_monai.batch import predict_files
from accunet_monai.batch.measures import measure, write_measures
from accunet_monai.bundle import Prediction, load_bundle
from accunet_monai.volumes import Volume
from tests import made_bundle
from tests.batch.tiny import images, tiny_bundle

NAMES = {1: "core", 2: "rim", 7: "none"}


def made(axes: tuple[int, int, int] = (1, 1, 1)) -> Prediction:
    """Label 1 of 2 voxels in the middle, 2 of 4 voxels at the first end of the second axis; voxels of 1 × 2 × 3 mm."""
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[2, 3, 3:5] = 1
    labels[1:3, 0, 1:3] = 2
    image = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    return Prediction(Volume(image, np.diag([1.0 * axes[0], 2 * axes[1], 3 * axes[2], 1])), labels)


def test_by_hand() -> None:
    prediction = made()
    core, rim, none = measure(prediction, NAMES)
    at = np.asarray(prediction.image.array)  # type: ignore[union-attr]
    assert core == {
        "label": 1, "name": "core", "voxels": 2, "volume_ml": 0.012, "sides": [], "touches_border": False,
        "mean_intensity": pytest.approx((at[2, 3, 3] + at[2, 3, 4]) / 2),
    }  # fmt: skip
    assert (rim["voxels"], rim["volume_ml"], rim["sides"], rim["touches_border"]) == (4, 0.024, ["P"], True)
    assert rim["mean_intensity"] == pytest.approx(at[1:3, 0, 1:3].mean())
    assert none == {
        "label": 7, "name": "none", "voxels": 0, "volume_ml": 0.0, "mean_intensity": None, "touches_border": False,
        "sides": [],
    }  # fmt: skip


def test_sides_are_the_patients_whatever_the_order_of_axes() -> None:
    assert measure(made((1, -1, 1)), NAMES)[1]["sides"] == ["A"]
    prediction = made()
    assert isinstance(prediction.image, Volume)
    image = prediction.image.reoriented("SLA")
    labels = Volume(prediction.label_map, prediction.image.affine_ras).reoriented("SLA").array
    turned = measure(Prediction(image, labels), NAMES)
    for row, expected in zip(turned, measure(prediction, NAMES), strict=True):
        assert row == expected


def test_labels_nobody_named_and_pictures() -> None:
    labels = np.zeros((4, 5), np.uint8)
    labels[0, 1] = 9
    colours = np.stack([np.full((4, 5), value, np.float32) for value in (10, 20, 60)])
    (row,) = measure(Prediction(colours, labels), {})
    assert row == {
        "label": 9, "name": "label 9", "voxels": 1, "volume_ml": None, "mean_intensity": 30.0, "touches_border": True,
        "sides": ["top"],
    }  # fmt: skip


def test_tables_of_a_run_have_all_cases_also_those_done_before(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    images(tmp_path / "in", 1)
    options = {"device": "cpu", "console": Console(quiet=True), "measures": True}
    predict_files(tmp_path / "in", bundle, tmp_path / "out", **options)  # type: ignore[arg-type]
    made_bundle.save_volume(tmp_path / "in" / "new, one.nii", made_bundle.made_volume(5, (16, 16, 4))[0])
    report = predict_files(tmp_path / "in", bundle, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert (len(report.skipped), len(report.written)) == (1, 1)
    with (tmp_path / "out" / "measures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    stated = json.loads((tmp_path / "out" / "measures.json").read_text(encoding="utf-8"))
    assert [row["result"] for row in rows] == ["case_00_seg.nii.gz"] * 3 + ["new, one_seg.nii.gz"] * 3
    predictor = load_bundle(bundle)
    for row, item in zip(rows, stated, strict=True):
        assert (int(row["label"]), row["name"], float(row["volume_ml"])) == (
            item["label"], item["name"], item["volume_ml"],
        )  # fmt: skip
        expected = np.count_nonzero(predictor.predict(item["source"]).label_map == item["label"])
        assert int(row["voxels"]) == item["voxels"] == expected
        assert row["touches_border"] == ("yes" if item["touches_border"] else "no")


def test_empty_tables(tmp_path: Path) -> None:
    table, _ = write_measures(tmp_path, [])
    assert table.read_text(encoding="utf-8").startswith("source,result,label,")
