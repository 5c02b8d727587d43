"""Made brain volumes: what a seed fixes, how labels and intensities hang together, and what the files hold."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from accunet_monai.errors import DatasetError
from accunet_monai.training import synthesis
from accunet_monai.training.smooth_fields import blurred, smooth_fields
from accunet_monai.training.synthesis import (
    SynthesisSettings,
    make_tissue_dataset,
    mni152_t1,
    shuffled,
    synthesise,
    tissue_maps,
)
from accunet_monai.volumes import read_label_map, read_volume
from tests.conftest import Require

STILL = SynthesisSettings(
    rotation=0, scale=(1, 1), shear=0, shift_mm=0, elastic_mm=0, sharpness=(1, 1), texture=0, bias=0, blur_mm=(0, 0),
    noise=(0, 0), stripped=0,
)  # fmt: skip

Maps = tuple[NDArray[np.float32], NDArray[np.float64]]


@pytest.fixture(scope="module")
def maps(require: Require) -> Maps:
    require("nilearn", importlib.util.find_spec("nilearn"), "it carries the MNI152 maps")
    return tissue_maps(4)


def _spheres(size: int = 40, spacing: float = 4.0) -> Maps:
    """White matter inside grey matter inside CSF, with soft edges: maps whose truth is known by construction."""
    axes = np.meshgrid(*[(np.arange(size) - (size - 1) / 2) * spacing] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    inside = [1 / (1 + np.exp((radius - edge) / 2)) for edge in (60.0, 50.0, 35.0)]
    probabilities = [1 - inside[0], inside[0] - inside[1], inside[1] - inside[2], inside[2]]
    return np.stack(probabilities).astype(np.float32), np.diag([spacing, spacing, spacing, 1.0])


def _means(image: NDArray[np.float32], label_map: NDArray[np.uint8]) -> list[float]:
    return [float(image[label_map == label].mean()) for label in (0, 1, 2, 3)]


def test_maps_are_probabilities_of_the_brain_that_the_average_image_shows(maps: Maps) -> None:
    probabilities, affine = maps
    image, reference, image_affine = mni152_t1(4)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-6)
    assert probabilities.min() >= 0
    np.testing.assert_array_equal(affine, image_affine)
    np.testing.assert_array_equal(reference, probabilities.argmax(0))
    background, csf, grey, white = _means(image, reference)
    assert background < csf < grey < white  # else maps and image do not lie on each other
    # The brain's middle lies near the origin of RAS, its volumes are those of the 1 mm maps (1.09 and 0.64 l) ± 5 %
    centre = affine @ [*np.argwhere(reference > 0).mean(0), 1]
    assert np.all(np.abs(centre[:3] - [0, -20, 8]) < 10)
    assert np.bincount(reference.ravel())[2:] * 0.064e-3 == pytest.approx([1.091, 0.636], rel=0.05)


def test_a_seed_fixes_the_volume_and_another_changes_it(maps: Maps) -> None:
    first, again, other = (synthesise(*maps, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.02
    assert abs(np.corrcoef(first[0].ravel(), other[0].ravel())[0, 1]) < 0.98


@pytest.mark.parametrize("seed", range(5))
def test_intensities_rise_from_csf_to_white_matter(maps: Maps, seed: int) -> None:
    background, csf, grey, white = _means(*synthesise(*maps, seed))
    assert background < csf < grey < white


def test_without_disturbance_labels_are_the_maps_argmax_and_intensities_mix_by_probability() -> None:
    maps, affine = _spheres()
    settings = replace(STILL, csf=(0.3, 0.3), grey=(0.5, 0.5), gain=(100, 100))
    image, label_map = synthesise(maps, affine, 0, settings)
    np.testing.assert_array_equal(label_map, maps.argmax(0))
    np.testing.assert_allclose(image, maps[1] * 30 + maps[2] * 65 + maps[3] * 100, atol=1e-3)


def test_shift_and_scale_move_the_labels_by_millimetres() -> None:
    maps, affine = _spheres()
    _, bigger = synthesise(maps, affine, 0, replace(STILL, scale=(1.2, 1.2)))
    ratio = (bigger == 3).sum() / (maps.argmax(0) == 3).sum()
    assert ratio == pytest.approx(1.2**3, rel=0.03)
    _, moved = synthesise(maps, affine, 0, replace(STILL, shift_mm=12.0))
    offset = (np.argwhere(moved == 3).mean(0) - 19.5) * 4
    assert 0.5 < np.abs(offset).max() <= 12.5


@pytest.mark.parametrize("seed", range(8))
def test_default_deformations_are_free_of_folds(seed: int) -> None:
    shape, spacing = (50, 60, 48), np.array([4.0, 4.0, 4.0])
    coordinates = synthesis._coordinates(shape, spacing, np.random.default_rng(seed), SynthesisSettings())
    jacobian = np.stack([np.stack(np.gradient(axis)) for axis in coordinates])
    determinant = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    assert determinant.min() > 0.1
    assert 0.6 < determinant.mean() < 1.5


@pytest.mark.parametrize("seed", range(5))
def test_tissue_volumes_stay_plausible(maps: Maps, seed: int) -> None:
    """Three scales of 0.9 to 1.1 change a volume by 0.73 to 1.33; the elastic part averages out over the brain."""
    before = np.bincount(maps[0].argmax(0).ravel(), minlength=4)
    after = np.bincount(synthesise(*maps, seed)[1].ravel(), minlength=4)
    ratio = after[2:] / before[2:]
    assert np.all((ratio > 0.65) & (ratio < 1.45))


def test_smooth_fields_have_the_standard_deviation_that_the_settings_name() -> None:
    rng = np.random.default_rng(0)
    fields = smooth_fields(200, (16, 9, 12), np.array([5.0, 3.0, 4.0]), rng)
    assert fields.std() == pytest.approx(1, rel=0.05)
    assert fields.mean() == pytest.approx(0, abs=0.05)
    assert np.abs(fields.std(0) - 1).max() < 0.25  # at every voxel, borders included; 200 draws leave 5 % spread
    assert np.abs(np.diff(fields, axis=1)).max() < 2  # smooth: white noise would jump by 6 or more


def test_blur_is_gaussian_in_millimetres_and_keeps_a_constant() -> None:
    point = np.zeros((31, 31, 31), np.float32)
    point[15, 15, 15] = 1
    result = blurred(point, np.array([2.0, 1.0, 0.0]))
    assert result.sum() == pytest.approx(1, abs=1e-5)
    index = np.arange(31) - 15
    spread = [np.sqrt((result.sum(others) * index**2).sum()) for others in ((1, 2), (0, 2), (0, 1))]
    assert spread == pytest.approx([2.0, 1.0, 0.0], abs=0.01)
    np.testing.assert_allclose(blurred(point + 1, np.array([2.0, 1.0, 1.0]))[0, 0], 1, atol=1e-5)


def test_skull_stripping_leaves_exact_zeros_outside_the_brain(maps: Maps) -> None:
    noisy = SynthesisSettings(noise=(0.05, 0.05), stripped=1.0)
    image, _ = synthesise(*maps, 1, noisy)
    assert (image[0] == 0).all()
    unstripped, _ = synthesise(*maps, 1, replace(noisy, stripped=0.0))
    assert (unstripped[0] > 0).mean() > 0.99


def test_dataset_holds_what_synthesise_makes(maps: Maps, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    description = make_tissue_dataset(
        tmp_path / "a" / "set", 2, seed=5, resolution_mm=4, progress=lambda done, count: seen.append((done, count))
    )
    assert seen == [(1, 2), (2, 2)]
    content = json.loads(description.read_text())
    assert content["labels"] == {"0": "background", "1": "CSF", "2": "grey matter", "3": "white matter"}
    for index, case in enumerate(content["training"]):
        image = read_volume(description.parent / case["image"])
        label_map = read_label_map(description.parent / case["label"])
        expected = synthesise(*maps, [5, index])
        np.testing.assert_allclose(image.array, expected[0], atol=0.5)  # rounded to whole numbers
        np.testing.assert_array_equal(label_map.array, expected[1])
        for file in (image, label_map):
            np.testing.assert_allclose(file.affine_ras, maps[1])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["set"]  # no temporary folder is left


def _stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_dataset_is_made_once_and_again_when_asked_for_another_or_incomplete(maps: Maps, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    make_tissue_dataset(folder, 2, resolution_mm=4)
    before, labels = _stamps(folder), (folder / "labelsTr/tissue_000.nii.gz").read_bytes()
    make_tissue_dataset(folder, 2, resolution_mm=4)
    assert _stamps(folder) == before
    make_tissue_dataset(folder, 3, resolution_mm=4)
    assert len(json.loads((folder / "dataset.json").read_text())["training"]) == 3
    (folder / "imagesTr/tissue_001.nii.gz").unlink()
    make_tissue_dataset(folder, 3, resolution_mm=4)
    assert (folder / "imagesTr/tissue_001.nii.gz").is_file()
    make_tissue_dataset(folder, 1, resolution_mm=4)
    assert sorted(path.name for path in folder.rglob("*.nii.gz")) == ["tissue_000.nii.gz"] * 2
    assert (folder / "labelsTr/tissue_000.nii.gz").read_bytes() == labels


def test_interrupted_making_leaves_nothing_new_and_keeps_the_old(maps: Maps, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    make_tissue_dataset(folder, 1, resolution_mm=4)
    before = _stamps(folder)

    def interrupt(done: int, count: int) -> None:
        raise KeyboardInterrupt

    for target in (folder, tmp_path / "fresh"):
        with pytest.raises(KeyboardInterrupt):
            make_tissue_dataset(target, 2, resolution_mm=4, progress=interrupt)
    assert _stamps(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_shuffled_labels_keep_each_labels_count_but_not_its_place(maps: Maps, tmp_path: Path) -> None:
    for name, shuffle in (("true", False), ("control", True)):
        make_tissue_dataset(tmp_path / name, 1, resolution_mm=4, shuffle_labels=shuffle)
    true, control = (
        read_label_map(tmp_path / name / "labelsTr/tissue_000.nii.gz").array for name in ("true", "control")
    )
    np.testing.assert_array_equal(np.bincount(true.ravel()), np.bincount(control.ravel()))
    for label in (1, 2, 3):  # overlap is what chance gives: the label's share
        assert (control[true == label] == label).mean() == pytest.approx((true == label).mean(), abs=0.02)
    first, second = (read_volume(tmp_path / name / "imagesTr/tissue_000.nii.gz").array for name in ("true", "control"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(shuffled(true, 1), shuffled(true, 1))


@pytest.mark.parametrize("content", ["notes", "dataset"])
def test_a_folder_of_someone_elses_is_never_replaced(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    if content == "notes":
        (folder / "notes.txt").write_text("mine")
    else:
        (folder / "dataset.json").write_text('{"training": []}')
    before = _stamps(folder)
    with pytest.raises(DatasetError, match=r"\[DATASET_FOLDER_OCCUPIED\]"):
        make_tissue_dataset(folder, 1, resolution_mm=4)
    assert _stamps(folder) == before


def test_missing_nilearn_is_a_typed_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    synthesis._templates.cache_clear()
    with pytest.raises(DatasetError, match=r"\[NILEARN_MISSING\].*Install") as caught:
        tissue_maps(7)
    assert caught.value.code == "NILEARN_MISSING"


@pytest.mark.parametrize(
    "wrong",
    [{"scale": (1.1, 0.9)}, {"csf": (0.2, 1.0)}, {"grey": (0.0, 0.5)}, {"bias_spacing_mm": 0.0}, {"noise": (-1, 0)}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DatasetError, match=r"\[SYNTHESIS_SETTINGS\]"):
        SynthesisSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "seed", "resolution"), [(0, 0, 4), (1, -1, 4), (1, 0, 0), (1, 0, 2.5)])
def test_impossible_datasets_are_refused(tmp_path: Path, count: int, seed: int, resolution: int) -> None:
    with pytest.raises(DatasetError, match=r"\[SYNTHESIS_SETTINGS\]"):
        make_tissue_dataset(tmp_path / "set", count, seed, resolution)
    assert not list(tmp_path.iterdir())
