"""Calibration counted by hand, and plots that show what they should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accunet_monai.evaluation import Reliability, bland_altman, count_reliability, label_boxes, reliability_diagram
from accunet_monai.volumes import label_colour
from tests.evaluation.made_rows import row, rows_of


def made_probabilities(power: float, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (3, size, size, 4) of which those of label 2 are said with p ** power, and labels drawn from p."""
    draw = np.random.default_rng(0)
    two = draw.beta(0.6, 1.5, (size, size, 4))
    reference = np.where(draw.random(two.shape) < two, 2, 0)
    said = two**power
    return np.stack([1 - said, np.zeros_like(said), said]), reference


def test_voxels_counted_by_hand() -> None:
    probabilities = np.array([[[0.95, 0.95, 0.55, 0.05, 1.0]], [[0.05, 0.05, 0.45, 0.95, 0.0]]])
    reference = np.array([[0, 1, 1, 1, 0]])
    counts = count_reliability(probabilities, reference, {1: "one"}, bins=10)
    given, share, voxels = counts.curve("one")
    assert voxels.tolist() == [3, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert given[0] == pytest.approx(0.1 / 3)
    assert share[0] == pytest.approx(1 / 3)
    assert math.isnan(share[1])
    assert counts.expected_error("one") == pytest.approx(((1 - 0.45) + (1 - 0.95)) / 2)  # not of the lowest bin
    sigmoid = count_reliability(probabilities[1:], reference, {1: "one"}, bins=10)
    np.testing.assert_array_equal(sigmoid.found, counts.found)


def test_ignored_voxels_are_not_counted() -> None:
    probabilities = np.array([[[0.05, 0.05, 0.05]], [[0.95, 0.95, 0.95]]])
    counts = count_reliability(probabilities, np.array([[1, 9, 9]]), {1: "one"}, bins=10, ignore_label=9)
    given, share, voxels = counts.curve("one")
    assert voxels.tolist() == [0] * 9 + [1]
    assert (given[9], share[9]) == (pytest.approx(0.95), 1.0)


def test_counts_of_cases_add_up_to_those_of_all() -> None:
    probabilities, reference = made_probabilities(1)
    labels = {1: "one", 2: "two"}
    halves = [count_reliability(probabilities[:, part], reference[part], labels) for part in np.split(np.arange(60), 2)]
    whole, joined = count_reliability(probabilities, reference, labels), halves[0] + halves[1]
    for name in ("voxels", "probability", "found"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name))
    with pytest.raises(ValueError, match="other labels"):
        whole + count_reliability(probabilities, reference, {2: "two"})
    with pytest.raises(ValueError, match="differ in shape"):
        count_reliability(probabilities, reference[:5], labels)


def test_probabilities_that_are_true_have_no_error_and_exaggerated_ones_have() -> None:
    true, shy = (count_reliability(*made_probabilities(power), {2: "two"}) for power in (1.0, 2.0))
    assert true.expected_error("two") < 0.02
    given, share, _ = shy.curve("two")
    assert np.nanmean(share - given) > 0.05  # found more often than said
    assert shy.expected_error("two") > 0.08
    assert math.isnan(count_reliability(*made_probabilities(1), {1: "one"}).expected_error("one"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


def coloured(picture: np.ndarray, label: int) -> np.ndarray:
    """(n, 2): rows and columns of the pixels in the colour of a label."""
    return np.argwhere(np.abs(picture - np.array(label_colour(label))).max(axis=2) < 12)


def test_bland_altman_has_a_panel_for_each_label_and_errors_above_and_below_0(tmp_path: Path) -> None:
    rows = []
    for case in range(8):
        for label, error in (("one", 1.0), ("two", -1.0)):
            reference = 3.0 + case
            volumes = {"volume_reference_ml": reference, "volume_prediction_ml": reference + error + 0.1 * case}
            rows.append(row(f"c{case}", label, **volumes))
    picture = pixels(bland_altman(rows, tmp_path / "sub" / "a.png"))
    middle = picture.shape[1] // 2
    one, two = coloured(picture, 1), coloured(picture, 2)
    assert len(one) > 100
    assert len(two) > 100
    assert one[:, 1].max() < middle < two[:, 1].min()
    nothing = [
        {**item, "status": "neither"} if item["case"] == "c7" and item["label"] == "one" else item for item in rows
    ]
    fewer = coloured(pixels(bland_altman(nothing, tmp_path / "b.png")), 1)
    assert 0.8 < len(fewer) / len(one) < 0.95  # a point less
    single = bland_altman(rows[:1], tmp_path / "c.png")  # no limits of agreement
    assert 10 < len(coloured(pixels(single), 1)) < len(one) / 4


def test_boxes_have_a_point_for_each_case_with_a_value(tmp_path: Path) -> None:
    dice = np.random.default_rng(0).uniform(0.6, 0.95, (10, 2))
    rows = rows_of({f"c{i}": tuple(map(float, line)) for i, line in enumerate(dice)})
    rows[1] |= {"dice": math.nan, "hd95_mm": math.nan}
    picture = pixels(label_boxes(rows, tmp_path / "boxes.png"))
    one, two = coloured(picture, 1), coloured(picture, 2)
    assert len(one) > 50
    assert len(two) > 50
    only_dice = pixels(label_boxes(rows, tmp_path / "dice.png", ["dice"]))
    assert only_dice.shape[1] < 0.6 * picture.shape[1]
    empty = [{**item, "dice": math.nan, "hd95_mm": math.nan} for item in rows]
    assert len(coloured(pixels(label_boxes(empty, tmp_path / "empty.png")), 1)) == 0


def test_the_curve_of_a_shy_network_lies_above_the_diagonal(tmp_path: Path) -> None:
    def height(counts: Reliability, name: str) -> float:
        """Mean height of the points, as a share of the panel."""
        picture = pixels(reliability_diagram(counts, tmp_path / name))
        return 1 - float(coloured(picture, 1)[:, 0].mean()) / len(picture)

    true, shy = (count_reliability(*made_probabilities(power), {2: "two"}) for power in (1.0, 2.0))
    assert height(shy, "shy.png") > height(true, "true.png") + 0.03
