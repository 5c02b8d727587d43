"""NIfTI beyond the plain case: contradicting forms, time points, maps of files, replaced values, landmarks."""

from __future__ import annotations

import gzip
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import limits, read_grid, read_label_map, read_volume, write_label_map
from accunet_monai.volumes.geometry import lps_from_ras
from tests.volumes.made import AFFINES, LAS, oblique, patch, ramp, save

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Thousands of small files need not wait for a disk."""


def refused(path: Path, **options: Any) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume(path, **options)
    assert caught.value.path == str(path)
    return caught.value


def two_forms(path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int] = (1, 1)) -> Path:
    """``codes`` are those of the sform and the qform."""
    image = nib.Nifti1Image(ramp(), None)
    image.header.set_sform(sform, code=codes[0])
    image.header.set_qform(qform, code=codes[1])
    nib.save(image, path)
    return path


def turned(affine: np.ndarray, degrees: float) -> np.ndarray:
    """About the patient's long axis."""
    a = np.radians(degrees)
    rotation = np.array([[np.cos(a), -np.sin(a), 0, 0], [np.sin(a), np.cos(a), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return np.asarray(rotation @ affine)


MIRRORED = np.diag([-1.0, 1, 1, 1]) @ LAS


# Two forms


def test_a_mirrored_pair_of_forms_is_refused_whatever_their_codes(tmp_path: Path) -> None:
    for codes in ((1, 1), (2, 1), (4, 1)):
        error = refused(two_forms(tmp_path / "a.nii", MIRRORED, LAS, codes))
        assert error.code == "NIFTI_FORMS"
        assert "mirror image" in error.message
        assert 'form="sform"' in str(error)
        with pytest.raises(VolumeError, match="NIFTI_FORMS"):
            read_grid(tmp_path / "a.nii")


def test_the_caller_can_say_which_form_is_right_and_both_are_written_back(tmp_path: Path) -> None:
    path = two_forms(tmp_path / "a.nii", MIRRORED, LAS)
    for form, affine in (("sform", MIRRORED), ("qform", LAS)):
        volume = read_volume(path, form=form)  # type: ignore[arg-type]
        np.testing.assert_allclose(volume.affine_ras, affine, atol=1e-5)
        assert volume.provenance["form"] == form
        assert volume.provenance["forms_apart_mm"] == pytest.approx(60.0)  # 30 mm either side of the middle plane
        written = write_label_map(tmp_path / "seg.nii", ramp(dtype=np.uint8), like=volume)
        header = nib.load(written).header
        np.testing.assert_allclose(header.get_sform(), MIRRORED)
        np.testing.assert_allclose(header.get_qform(), LAS, atol=1e-5)


def test_forms_of_one_space_must_agree_to_a_tenth_of_a_voxel(tmp_path: Path) -> None:
    for shift, accepted in ((0.0, True), (0.14, True), (0.16, False), (0.75, False)):  # the smallest edge is 1.5 mm
        moved = LAS.copy()
        moved[2, 3] += shift
        path = two_forms(tmp_path / "a.nii", moved, LAS)
        if accepted:
            assert "forms_apart_mm" not in read_volume(path).provenance
        else:
            assert f"{shift:.3g} mm apart" in refused(path).message


def test_forms_of_two_spaces_may_differ_by_an_alignment_and_that_is_said(tmp_path: Path) -> None:
    for degrees in (3.0, 44.0):
        volume = read_volume(two_forms(tmp_path / "a.nii", turned(LAS, degrees), LAS, codes=(4, 1)))
        np.testing.assert_allclose(volume.affine_ras, turned(LAS, degrees), atol=1e-5)
        assert volume.provenance["forms_apart_mm"] > 1
    assert "46 degrees" in refused(two_forms(tmp_path / "b.nii", turned(LAS, 46), LAS, codes=(4, 1))).message


def test_every_reflection_turns_an_axis_beyond_what_is_allowed(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        reflection = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        reflection *= -np.sign(np.linalg.det(reflection))
        other = LAS.copy()
        other[:3, :3] = reflection @ LAS[:3, :3]
        assert refused(two_forms(tmp_path / "a.nii", other, LAS, codes=(4, 1))).code == "NIFTI_FORMS"


def test_a_form_that_is_not_there_cannot_be_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(), qform_code=0)
    assert read_volume(path).provenance["form"] == "sform"
    assert "no qform" in refused(path, form="qform").message
    assert read_volume(save(tmp_path / "b.nii", ramp(), qform_code=0, sform_code=0)).provenance["form"] == "pixdim"


def test_a_damaged_second_form_is_not_passed_over(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(), quatern_b=0.9, quatern_c=0.9, quatern_d=0.9)
    assert refused(path).code == "NIFTI_FORMS"
    np.testing.assert_array_equal(read_volume(path, form="sform").affine_ras, LAS)


def test_the_sheared_stack_of_a_tilted_gantry_has_two_forms_that_differ(test_data: Path) -> None:
    folder = test_data / "dicom" / "ct_philips_gantry_tilt_neg" / "ref"
    error = refused(folder / "dcm2niix_s201.nii.gz")
    assert error.code == "NIFTI_FORMS"
    assert read_volume(folder / "dcm2niix_s201_Tilt_1.nii.gz").provenance["form"] == "sform"


# Time points


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("memory_map", [False, True])
def test_one_of_many_time_points(tmp_path: Path, name: str, memory_map: bool) -> None:
    array = ramp((4, 5, 6, 7), np.float32)
    path = save(tmp_path / name, array)
    for time_point in (0, 3, 6):
        volume = read_volume(path, time_point=time_point, memory_map=memory_map)
        np.testing.assert_array_equal(volume.array, array[..., time_point])
        assert volume.provenance["time_point"] == time_point
    assert read_grid(path, time_point=6).shape == (4, 5, 6)
    for wrong in (7, -1):
        assert refused(path, time_point=wrong).code == "VOLUME_TIME_POINT"
    assert "time_point=0 to 6" in str(refused(path))
    labels = save(tmp_path / f"l{name}", (array % 3).astype(np.uint8))
    np.testing.assert_array_equal(read_label_map(labels, time_point=2).array, array[..., 2] % 3)


def test_a_file_cut_in_a_later_time_point_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.nii", ramp((4, 5, 6, 7))).read_bytes()
    for pack in (bytes, gzip.compress):
        (tmp_path / "cut.nii").write_bytes(pack(whole[:-1]))
        assert refused(tmp_path / "cut.nii", time_point=0).code == "NIFTI_TRUNCATED"


def test_vectors_and_a_fifth_axis_are_refused_with_a_time_point_too(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp((4, 5, 6, 1, 3)))
    assert refused(path, time_point=0).code == "VOLUME_NOT_3D"


# Mapped files


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(100, 100, 100)).astype(np.float32)
    path = save(tmp_path / "a.nii", array)
    tracemalloc.start()
    volume = read_volume(path, memory_map=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 3  # a copy has 4 MB, the check for finite numbers needs 1 MB
    np.testing.assert_array_equal(volume.array, array)
    with path.open("r+b") as file:
        file.seek(352)
        file.write(np.float32(7).tobytes())
    assert volume.array[0, 0, 0] == 7  # it is the file


@pytest.mark.parametrize(
    ("array", "fields"),
    [
        (ramp(), {}),
        (ramp(dtype=np.float32), {"scl_slope": 2.0, "scl_inter": 1.0}),
        (ramp(dtype=np.dtype(">f4")), {}),
    ],
)
def test_what_cannot_be_mapped_as_wanted_is_converted(
    tmp_path: Path, array: np.ndarray, fields: dict[str, float]
) -> None:
    path = save(tmp_path / "a.nii", array, **fields)
    mapped, read = read_volume(path, memory_map=True), read_volume(path)
    np.testing.assert_array_equal(mapped.array, read.array)
    assert mapped.array.dtype == np.dtype(np.float32)


def test_a_lying_header_is_found_before_mapping(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", ramp(), dim=[3, 400, 500, 600, 1, 1, 1, 1])
    assert refused(path, memory_map=True).code == "NIFTI_TRUNCATED"


# Values


def test_nonfinite_voxels_are_replaced_only_on_request_and_counted(tmp_path: Path) -> None:
    array = ramp(dtype=np.float32)
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "a.nii", array)
    assert refused(path).code == "VOLUME_NONFINITE"
    volume = read_volume(path, fill_nonfinite=-5.0)
    np.testing.assert_array_equal(volume.array[0, 0], [-5, -5, -5, 3, 4, 5])
    np.testing.assert_array_equal(volume.array[1:], array[1:])
    assert volume.provenance["replaced_nonfinite"] == 3
    with pytest.raises(ValueError, match="finite"):
        read_volume(path, fill_nonfinite=np.nan)


def test_values_too_large_for_the_type_are_not_taken_for_damaged_ones(tmp_path: Path) -> None:
    array = ramp(dtype=np.float64)
    array[3, 0, 0] = 1e300
    assert refused(save(tmp_path / "a.nii", array), fill_nonfinite=0.0).code == "VOLUME_NONFINITE"


def test_more_voxels_than_memory_is_meant_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", ramp())
    monkeypatch.setattr(limits, "MAX_VOXELS", 119)
    error = refused(path)
    assert error.code == "VOLUME_TOO_LARGE"
    assert "4 × 5 × 6" in error.message


# Landmarks in the world: against nibabel and SimpleITK


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], np.ndarray]:
    """A shape and an affine: any rotation, flips, spacings of 0.3 to 5 mm, up to half a metre away."""
    shape = tuple(draw(st.tuples(*[st.integers(1, 5)] * 3)))
    angles = draw(st.tuples(*[st.floats(-np.pi, np.pi)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 5.0)] * 3))
    flips = draw(st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3))
    affine = np.eye(4)
    for (first, second), angle in zip(((1, 2), (0, 2), (0, 1)), angles, strict=True):
        rotation = np.eye(3)
        rotation[[first, second], [first, second]] = np.cos(angle)
        rotation[first, second], rotation[second, first] = -np.sin(angle), np.sin(angle)
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:3, :3] *= np.multiply(spacing, flips)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500.0, 500.0)] * 3))
    return shape, affine


def corners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple((size - 1) * bit for size, bit in zip(shape, bits, strict=True)) for bits in np.ndindex(2, 2, 2)]


@settings(max_examples=2000, deadline=None)
@given(grids(), st.sampled_from(("nibabel", "simpleitk")), st.booleans())
def test_landmarks_survive_reading_and_writing(
    grid: tuple[tuple[int, ...], np.ndarray], writer: str, second: bool
) -> None:
    shape, affine = grid
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "a.nii"
        if writer == "nibabel":
            image = (nib.Nifti2Image if second else nib.Nifti1Image)(ramp(shape), affine)
            image.set_qform(affine, code=1)
            image.set_sform(affine, code=1)
            nib.save(image, path)
        else:
            lps = lps_from_ras(affine)
            spacing = np.linalg.norm(lps[:3, :3], axis=0)
            image = SimpleITK.GetImageFromArray(ramp(shape).T)
            image.SetSpacing(spacing.tolist())
            image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
            image.SetOrigin(lps[:3, 3].tolist())
            SimpleITK.WriteImage(image, str(path))
        volume = read_volume(path)
        written = write_label_map(Path(folder) / "seg.nii", ramp(shape, np.uint8), like=volume)
        theirs = nib.load(written)
        itk = None if volume.provenance["format"] == "NIfTI-2" else SimpleITK.ReadImage(str(written))  # ITK has no 2
        affines = volume.affine_ras, theirs.affine, read_label_map(written).affine_ras
        np.testing.assert_array_equal(volume.array, ramp(shape))
        for index in corners(shape):
            meant = (affine @ (*index, 1))[:3]
            for found in affines:
                assert np.abs((found @ (*index, 1))[:3] - meant).max() < 0.01
            if itk is not None:
                point = np.array(itk.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
                assert np.abs(point - meant).max() < 0.01
                assert itk[index] == volume.array[index]


@pytest.mark.parametrize("affine", [*AFFINES.values(), oblique(44)])
def test_metres_and_micrometres_with_both_forms(tmp_path: Path, affine: np.ndarray) -> None:
    path = save(tmp_path / "a.nii", ramp(), affine)
    patch(path, xyzt_units=3)
    np.testing.assert_allclose(read_volume(path).spacing, np.linalg.norm(affine[:3, :3], axis=0) / 1000, rtol=1e-6)
