"""Measures against numbers counted by hand, against SimpleITK, and against distances between all pairs of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from accunet_monai.errors import DatasetError, VolumeError
from accunet_monai.evaluation import COLUMNS, Row, means_by_label, measure_case

LABELS = {1: "one", 2: "two"}


def measured(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] = (1, 1, 1), **more: object
) -> Row:
    return measure_case(prediction, reference, spacing, LABELS, case="c", **more)[0]  # type: ignore[arg-type]


def blobs(seed: int, shape: tuple[int, int, int] = (14, 12, 9), density: float = 0.5) -> np.ndarray:
    """Connected, ragged shapes of labels 1 and 2."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(shape)
    inside = ((x - 6 - rng.integers(2)) / 5) ** 2 + ((y - 5) / 4) ** 2 + ((z - 4) / 3) ** 2 < rng.uniform(0.6, 1.2)
    labels = np.where(inside, np.where(y > 5, 2, 1), 0)
    return np.where(rng.random(shape) < 0.1 * density, 0, labels).astype(np.uint8)


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels (n, axes) of a mask with a neighbour, along an axis, that is not of it."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(mask.ndim):
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return np.argwhere(padded & ~inner) - 1


def distances(one: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """From each surface voxel of one mask to the nearest of the other: all pairs."""
    a, b = (surface(mask) * np.asarray(spacing) for mask in (one, other))
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2)).min(axis=1)


def test_overlap_and_volumes_counted_by_hand() -> None:
    prediction, reference = np.zeros((2, 4, 4, 4), np.uint8)
    prediction[:2, 0, 0] = 1
    prediction[3, 3, 3] = 1
    reference[1:4, 0, 0] = 1
    row = measured(prediction, reference, (2.0, 1.0, 0.5), subject="s")
    assert (row["case"], row["subject"], row["label"], row["status"]) == ("c", "s", "one", "both")
    assert row["dice"] == pytest.approx(2 * 1 / (3 + 3))
    assert row["iou"] == pytest.approx(1 / 5)
    assert row["volume_prediction_ml"] == row["volume_reference_ml"] == pytest.approx(0.003)
    assert row["volume_error_ml"] == row["volume_error_percent"] == 0
    reference[0, 0, 0] = 1
    assert measured(prediction, reference)["volume_error_percent"] == pytest.approx(-25)
    assert tuple(row) == COLUMNS


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.5, 0.5, 1.2)])
@pytest.mark.parametrize("seed", range(3))
def test_hd95_is_that_of_all_pairs_of_surface_voxels(seed: int, spacing: tuple[float, ...]) -> None:
    prediction, reference = blobs(seed), blobs(seed + 100)
    for value, row in zip(LABELS, measure_case(prediction, reference, spacing, LABELS, case="c"), strict=True):
        masks = prediction == value, reference == value
        there, back = distances(*masks, spacing), distances(*masks[::-1], spacing)
        expected = max(np.percentile(there, 95), np.percentile(back, 95))
        assert row["hd95_mm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0)])
def test_overlap_and_distance_are_simpleitks(spacing: tuple[float, ...]) -> None:
    prediction, reference = blobs(1), blobs(2)
    images = [SimpleITK.GetImageFromArray((array == 1).astype(np.uint8).T) for array in (reference, prediction)]
    for image in images:
        image.SetSpacing(spacing)
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    row = measured(prediction, reference, spacing)
    assert row["dice"] == pytest.approx(overlap.GetDiceCoefficient(1))
    assert row["iou"] == pytest.approx(overlap.GetJaccardCoefficient(1))
    statistics = SimpleITK.LabelShapeStatisticsImageFilter()
    statistics.Execute(images[1])
    assert row["volume_prediction_ml"] == pytest.approx(statistics.GetPhysicalSize(1) / 1000)
    # SimpleITK's distance is the largest; of two spheres of which one is bare, the 95th percentile lies below it
    hausdorff = SimpleITK.HausdorffDistanceImageFilter()
    hausdorff.Execute(*images)
    assert 0 < row["hd95_mm"] <= hausdorff.GetHausdorffDistance() + 1e-6
    moved = np.roll(reference, 1, axis=2)  # all of the surface moves alike: they agree
    expected = distances(moved == 1, reference == 1, spacing).max()
    assert measured(moved, reference, spacing)["hd95_mm"] <= expected + 1e-6


def test_surface_dice_is_a_share_of_area_in_square_millimetres() -> None:
    """A box grows by one voxel along z: of its six sides, one has moved by more than the tolerance."""
    spacing = (1.0, 0.5, 2.0)
    reference, prediction = np.zeros((2, 44, 84, 24), np.uint8)
    reference[2:42, 2:82, 2:20] = 1
    prediction[2:42, 2:82, 2:21] = 1
    x, y = 40 * 1.0, 80 * 0.5
    depths = 18 * 2.0, 19 * 2.0
    total = sum(2 * (x * y + x * z + y * z) for z in depths)
    moved = 2 * x * y  # this side of both boxes
    strip = 2 * (x + y) * 2.0  # of the larger box' other sides what reaches beyond the smaller box
    share = measured(prediction, reference, spacing, tolerance_mm=1.5)["surface_dice"]
    assert share == pytest.approx(1 - (moved + strip / 2) / total, abs=0.02)
    assert measured(prediction, reference, spacing, tolerance_mm=2.0)["surface_dice"] == 1
    voxels = [len(surface(box == 1)) for box in (prediction, reference)]
    assert 2 * 40 * 80 / sum(voxels) > 1.25 * (moved / total)  # counted in voxels it would be another number


def test_a_label_that_is_missing_somewhere_follows_the_stated_rule() -> None:
    full, empty = np.ones((5, 5, 5), np.uint8), np.zeros((5, 5, 5), np.uint8)
    missed, made_up, nowhere = (measured(*pair) for pair in ((empty, full), (full, empty), (empty, empty)))
    assert [row["status"] for row in (missed, made_up, nowhere)] == ["only_reference", "only_prediction", "neither"]
    for row in (missed, made_up):
        assert row["dice"] == row["iou"] == row["surface_dice"] == 0
        assert math.isnan(row["hd95_mm"])
    assert missed["volume_error_percent"] == -100
    assert made_up["volume_error_ml"] == pytest.approx(0.125)
    assert math.isnan(made_up["volume_error_percent"])
    assert all(math.isnan(nowhere[name]) for name in ("dice", "iou", "surface_dice", "hd95_mm", "volume_error_percent"))
    assert nowhere["volume_reference_ml"] == nowhere["volume_error_ml"] == 0
    assert means_by_label([missed, nowhere, measured(full, full)]) == {"one": 0.5}


def test_ignored_voxels_count_for_nothing() -> None:
    prediction, reference = blobs(3), blobs(4)
    ignored = np.random.default_rng(0).random(reference.shape) < 0.2
    expected = measured(np.where(ignored, 0, prediction), np.where(ignored, 0, reference))
    assert measured(prediction, np.where(ignored, 255, reference), ignore_label=255) == expected
    assert measured(prediction, np.where(ignored, 255, reference)) != expected


def test_pictures_have_distances_in_pixels_and_no_volume() -> None:
    prediction, reference = np.zeros((2, 30, 30), np.int32)
    reference[5:15, 5:15] = 1
    prediction[8:18, 5:15] = 1
    row = measured(prediction, reference, (1.0, 1.0))
    assert row["hd95_mm"] == 3
    assert row["dice"] == pytest.approx(0.7)
    assert math.isnan(row["volume_prediction_ml"])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 5))
def test_what_lies_around_changes_nothing_and_a_case_agrees_with_itself(seed: int, before: int, after: int) -> None:
    prediction, reference = blobs(seed), blobs(seed + 1)
    row = measured(prediction, reference, (1, 2, 3))
    around = tuple((before + 1, after + 1) for _ in range(3))
    assert measured(np.pad(prediction, around), np.pad(reference, around), (1, 2, 3)) == row
    swapped = measured(reference, prediction, (1, 2, 3))
    assert [swapped[name] for name in ("dice", "iou", "hd95_mm")] == [row[name] for name in ("dice", "iou", "hd95_mm")]
    same = measured(prediction, prediction)
    assert (same["dice"], same["surface_dice"], same["hd95_mm"]) == (1, 1, 0)


def test_what_cannot_be_measured_is_refused() -> None:
    array = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(VolumeError) as shapes:
        measured(array, array[:2])
    assert shapes.value.code == "LABEL_GRID"
    with pytest.raises(VolumeError) as fractions:
        measured(array + 0.5, array)
    assert fractions.value.code == "LABEL_NOT_INTEGER"
    for spacing in ((1, 1), (1, 1, 0), (1, 1, math.inf)):
        with pytest.raises(DatasetError) as wrong:
            measured(array, array, spacing)
        assert wrong.value.code == "EVALUATION_SPACING"
    with pytest.raises(ValueError, match="labels start at 1"):
        measure_case(array, array, (1, 1, 1), {0: "background"}, case="c")
