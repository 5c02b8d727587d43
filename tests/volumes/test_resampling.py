"""Resampling: values stay at their place in the world, label maps come back to their image's exact grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import (
    Grid,
    Volume,
    grid_of_spacing,
    read_label_map,
    read_volume,
    resample,
    resample_label_map,
    write_label_map,
)
from accunet_monai.volumes.geometry import lps_from_ras
from tests.volumes.made import AFFINES, LAS, oblique, ramp, save

SHEARED = LAS.copy()
SHEARED[1, 2] = 0.7


def world(affine: np.ndarray, index: tuple[float, ...]) -> np.ndarray:
    return np.asarray((affine @ (*index, 1))[:3])


def linear_field(grid: Grid | Volume) -> np.ndarray:
    """0.5 x − 2 y + 3 z + 7 of each voxel's RAS mm: linear interpolation gives it exactly."""
    indices = np.stack(np.meshgrid(*[np.arange(size) for size in grid.shape], indexing="ij"), -1)
    points = indices @ grid.affine_ras[:3, :3].T + grid.affine_ras[:3, 3]
    return np.asarray(points @ (0.5, -2, 3) + 7)


# The grid


@pytest.mark.parametrize("affine", [*AFFINES.values(), SHEARED])
@pytest.mark.parametrize("spacing", [1.0, 0.7, 4.0, (0.5, 2.0, 10.0)])
def test_a_grid_of_a_spacing_covers_the_source_and_nothing_is_extrapolated(
    affine: np.ndarray, spacing: float | tuple[float, ...]
) -> None:
    source = Grid((7, 8, 9), affine)
    grid = grid_of_spacing(source, spacing)
    np.testing.assert_allclose(np.linalg.norm(grid.affine_ras[:3, :3], axis=0), np.broadcast_to(spacing, 3))
    middle = [world(g.affine_ras, tuple((size - 1) / 2 for size in g.shape)) for g in (source, grid)]
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-9)
    there = np.linalg.inv(source.affine_ras) @ grid.affine_ras
    back = np.linalg.inv(there)
    for step, own, other in ((there, grid.shape, source.shape), (back, source.shape, grid.shape)):
        for end in ((0, 0, 0), tuple(size - 1 for size in own)):
            index = world(step, end)
            assert (index > -0.5).all()
            assert (index < np.array(other) - 0.5).all()
    assert (np.array(grid.shape) * np.broadcast_to(spacing, 3) - np.multiply(source.shape, np.linalg.norm(
        affine[:3, :3], axis=0)) < np.broadcast_to(spacing, 3)).all()  # fmt: skip


def test_the_same_spacing_is_the_same_grid_and_zero_keeps_an_axis() -> None:
    source = Grid((7, 8, 9), oblique())
    same = grid_of_spacing(source, (0.9, 0, 2.5))
    assert same.shape == source.shape
    np.testing.assert_allclose(same.affine_ras, source.affine_ras, atol=1e-9)


def test_impossible_spacings() -> None:
    with pytest.raises(VolumeError) as caught:
        grid_of_spacing(Grid((100, 100, 100), LAS), 0.01)
    assert caught.value.code == "VOLUME_TOO_LARGE"
    for wrong in (float("nan"), (1.0, 2.0)):
        with pytest.raises(ValueError, match=r"spacing|broadcast"):
            grid_of_spacing(Grid((4, 5, 6), LAS), wrong)


# Images


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_a_linear_field_keeps_its_value_at_every_point_of_the_world(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = np.eye(4), np.eye(4)
    source[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 2, 3)
    source[:3, 3] = rng.uniform(-100, 100, 3)
    volume = Volume(linear_field(Grid((12, 11, 10), source)), source)
    target[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.3, 0.8, 3)
    target[:3, 3] = np.array(volume.centre_ras) - target[:3, :3] @ (1, 1, 1)  # 3³ voxels about the middle
    found = resample(volume, Grid((3, 3, 3), target), anti_alias=False)
    np.testing.assert_allclose(found.array, linear_field(found), atol=1e-3)
    np.testing.assert_array_equal(found.affine_ras, target)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_agrees_with_itks_own_resampling_in_the_world(affine: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(size=(9, 10, 11)).astype(np.float32), affine)
    target = grid_of_spacing(volume, (0.8, 1.3, 1.9))
    expected = SimpleITK.Resample(
        itk_image(volume), itk_image(Volume(np.zeros(target.shape, np.float32), target.affine_ras)),
        SimpleITK.Transform(), SimpleITK.sitkLinear, float(volume.array.min()),
    )  # fmt: skip
    found = resample(volume, target, anti_alias=False)
    np.testing.assert_allclose(found.array, SimpleITK.GetArrayFromImage(expected).T, atol=1e-5)


def itk_image(volume: Volume) -> SimpleITK.Image:
    lps = lps_from_ras(volume.affine_ras)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(volume.array.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def test_beyond_the_image_lies_its_smallest_value_or_what_is_asked_for() -> None:
    volume = Volume(ramp() + 10, LAS)
    far = LAS.copy()
    far[0, 3] += 1000
    assert (resample(volume, Grid((2, 2, 2), far)).array == 10).all()
    assert (resample(volume, Grid((2, 2, 2), far), fill=-1024).array == -1024).all()


def test_a_fine_pattern_does_not_become_a_coarse_one() -> None:
    stripes = np.zeros((64, 4, 4), np.float32)
    stripes[::2] = 1.0  # 1 mm stripes, seen every 2.2 mm: alternating without a blur
    volume = Volume(stripes, np.eye(4))
    grid = grid_of_spacing(volume, (2.2, 1, 1))
    plain, blurred = (resample(volume, grid, anti_alias=flag).array[3:-3] for flag in (False, True))
    assert np.ptp(plain) > 0.8
    assert np.ptp(blurred) < 0.25
    assert float(blurred.mean()) == pytest.approx(0.5, abs=0.02)


def test_interpolations() -> None:
    volume = Volume(ramp((8, 8, 8)).astype(np.float32), np.eye(4))
    moved = np.eye(4)
    moved[2, 3] = 3.4
    target = Grid((1, 1, 1), moved)
    assert resample(volume, target, "nearest").array.item() == 3
    assert resample(volume, target, "linear").array.item() == pytest.approx(3.4, abs=1e-5)
    assert resample(volume, target, "bspline").array.item() == pytest.approx(3.4, abs=0.2)


# Label maps


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_the_largest_share_is_what_itks_slow_interpolator_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(1, 9, 3))
    labels = (rng.integers(0, 4, shape) * (7 if seed % 3 else 300)).astype(np.uint16)
    source = np.eye(4)
    source[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 2, 3)
    target = source.copy()
    target[:3, :3] = source[:3, :3] @ (np.diag(rng.uniform(0.4, 2, 3)) + 0.1 * rng.normal(size=(3, 3)))
    target[:3, 3] = rng.normal(size=3)
    grid = Grid((int(rng.integers(1, 12)), 7, 5), target)
    steps = np.linalg.inv(source) @ target
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(steps[:3, :3].ravel().tolist())
    transform.SetTranslation(steps[:3, 3].tolist())
    expected = SimpleITK.Resample(
        SimpleITK.GetImageFromArray(labels.T), list(grid.shape), transform, SimpleITK.sitkLabelLinear,
        defaultPixelValue=0,
    )  # fmt: skip
    found = resample_label_map(Volume(labels, source), grid)
    assert set(np.unique(found.array)) <= {0, *np.unique(labels)}
    np.testing.assert_array_equal(found.array, SimpleITK.GetArrayFromImage(expected).T)


@pytest.mark.parametrize("interpolation", ["label_linear", "nearest"])
@pytest.mark.parametrize("affine", [*AFFINES.values(), SHEARED])
def test_on_its_own_grid_a_label_map_stays_as_it_is(affine: np.ndarray, interpolation: str) -> None:
    labels = np.random.default_rng(1).integers(0, 5, (7, 6, 5)).astype(np.uint8)
    volume = Volume(labels, affine)
    np.testing.assert_array_equal(resample_label_map(volume, volume, interpolation).array, labels)  # type: ignore[arg-type]
    turned = volume.reoriented("SPR")
    back = resample_label_map(turned, volume, interpolation)  # type: ignore[arg-type]
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_array_equal(back.affine_ras, volume.affine_ras)


@pytest.mark.parametrize("interpolation", ["label_linear", "nearest"])
def test_labels_that_touch_the_border_come_back_to_the_border(interpolation: str) -> None:
    full = Volume(np.full((11, 13, 7), 3, np.uint8), oblique())
    for spacing in (0.6, 1.7, 4.0):
        there = resample_label_map(full, grid_of_spacing(full, spacing), interpolation)  # type: ignore[arg-type]
        assert (there.array == 3).all()
        assert (resample_label_map(there, full, interpolation).array == 3).all()  # type: ignore[arg-type]


def test_a_tie_goes_to_the_background() -> None:
    labels = np.zeros((4, 1, 1), np.uint8)
    labels[2:] = 1
    half = np.eye(4)
    half[0, 3] = 0.5
    found = resample_label_map(Volume(labels, np.eye(4)), Grid((3, 1, 1), half))
    assert found.array.ravel().tolist() == [0, 0, 1]


def test_what_is_no_label_map_is_refused() -> None:
    with pytest.raises(VolumeError) as caught:
        resample_label_map(Volume(ramp(dtype=np.float32), LAS), Grid((4, 5, 6), LAS))
    assert caught.value.code == "LABEL_NOT_INTEGER"


def test_the_result_is_written_as_the_images_own_header_says(tmp_path: Path) -> None:
    block = np.zeros((9, 8, 7), np.int16)
    block[2:6, 3:7, 2:5] = 100
    image = read_volume(save(tmp_path / "a.nii", block, oblique()))
    work = resample(image.reoriented("RAS"), grid_of_spacing(image.reoriented("RAS"), 0.5))
    labels = Volume((work.array > 50).astype(np.uint8), work.affine_ras)
    back = resample_label_map(labels, image)
    written = read_label_map(write_label_map(tmp_path / "seg.nii", back.array, like=back))
    np.testing.assert_array_equal(written.affine_ras, image.affine_ras)
    assert written.provenance["nifti"] == image.provenance["nifti"]
    assert np.count_nonzero(written.array != (block > 50)) <= 8  # the corners of the block


def test_real_label_maps_survive_better_by_shares_than_by_nearest_neighbours(test_data: Path) -> None:
    gain = []
    for path in sorted((test_data / "hippocampus" / "labelsTr").glob("*.nii.gz"))[:10]:
        labels = read_label_map(path)
        coarse = resample_label_map(labels, grid_of_spacing(labels, 1.6))
        dice = []
        for interpolation in ("label_linear", "nearest"):
            back = resample_label_map(coarse, labels, interpolation).array  # type: ignore[arg-type]
            dice.append(np.mean([overlap(back == label, labels.array == label) for label in (1, 2)]))
        gain.append(dice[0] - dice[1])
    assert min(gain) > 0
    assert np.mean(gain) > 0.01


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * np.sum(first & second) / (np.sum(first) + np.sum(second)))
