from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest

from accunet_monai.errors import VolumeError
from accunet_monai.volumes import Volume
from accunet_monai.volumes.geometry import largest_shift_mm, lps_from_ras, same_placement
from tests.volumes.made import AFFINES, LAS, PIR, oblique, ramp


def test_what_a_volume_says_of_itself() -> None:
    volume = Volume(ramp(), LAS)
    assert volume.shape == (4, 5, 6)
    assert volume.spacing == (2.0, 1.5, 3.0)
    assert volume.axcodes == ("L", "A", "S")
    assert volume.centre_ras == (30 - 2 * 1.5, -20 + 1.5 * 2, 7 + 3 * 2.5)
    assert volume.voxel_volume_ml == pytest.approx(0.009)
    assert Volume(ramp(), PIR).axcodes == ("P", "I", "R")
    assert Volume(ramp(), oblique()).spacing == pytest.approx((0.9, 1.1, 2.5))


def test_nothing_of_a_volume_can_be_changed_and_the_callers_array_stays_writable() -> None:
    array = ramp()
    volume = Volume(array, LAS, {"path": "a"})
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        volume.affine_ras[0, 0] = 1
    with pytest.raises(TypeError):
        volume.provenance["path"] = "b"  # type: ignore[index]
    array[0, 0, 0] = 7
    assert np.shares_memory(array, volume.array)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SRA", "AIL"])
def test_reoriented_keeps_every_value_at_its_place(affine: np.ndarray, axcodes: str) -> None:
    volume = Volume(ramp(), affine, {"path": "x", "nifti": {}})
    turned = volume.reoriented(axcodes)
    assert turned.axcodes == tuple(axcodes)
    back = np.linalg.inv(volume.affine_ras)
    for index in np.ndindex(turned.shape):
        source = back @ turned.affine_ras @ (*index, 1)
        assert turned.array[index] == volume.array[tuple(np.rint(source[:3]).astype(int))]
        assert np.abs(source - np.rint(source)).max() < 1e-9
    # the header's own geometry describes the file's grid only
    assert dict(turned.provenance) == (
        {"path": "x"} if turned.axcodes != volume.axcodes else {"path": "x", "nifti": {}}
    )
    again = turned.reoriented(volume.axcodes)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine_ras, volume.affine_ras, atol=1e-12)


def test_reoriented_agrees_with_nibabel() -> None:
    theirs = nib.as_closest_canonical(nib.Nifti1Image(ramp(), oblique(35)))
    ours = Volume(ramp(), oblique(35)).reoriented("RAS")
    np.testing.assert_array_equal(ours.array, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine_ras, theirs.affine, atol=1e-12)


@pytest.mark.parametrize("axcodes", ["RAA", "RA", "XYZ", "RASS", "RLS"])
def test_reoriented_refuses_axcodes_that_are_none(axcodes: str) -> None:
    with pytest.raises(ValueError, match="axcodes must name"):
        Volume(ramp(), LAS).reoriented(axcodes)


def _with(value: float) -> np.ndarray:
    array = np.zeros((3, 3, 3))
    array[2, 0, 1] = array[2, 1, 1] = value
    return array


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((3, 3)), "VOLUME_NOT_3D"),
        (np.zeros((3, 3, 3, 1)), "VOLUME_NOT_3D"),
        (np.zeros((3, 0, 3)), "VOLUME_EMPTY"),
        (np.zeros((3, 3, 3), dtype=complex), "VOLUME_COMPLEX"),
        (np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]), "VOLUME_RGB"),
        (np.full((3, 3, 3), "a"), "VOLUME_DTYPE"),
        (_with(np.nan), "VOLUME_NONFINITE"),
        (_with(-np.inf), "VOLUME_NONFINITE"),
    ],
)
def test_arrays_that_are_no_volume(array: np.ndarray, code: str) -> None:
    with pytest.raises(VolumeError) as caught:
        Volume(array, LAS, {"path": "where.nii"})
    assert caught.value.code == code
    assert caught.value.path == "where.nii"


def test_non_finite_voxels_are_counted_and_the_first_is_named() -> None:
    with pytest.raises(VolumeError, match=r"2 of 27 voxels .* first at \(2, 0, 1\)"):
        Volume(_with(np.nan), LAS)


def _changed(row: int, column: int, value: float) -> np.ndarray:
    affine = LAS.copy()
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        _changed(0, 0, 0.0),
        _changed(0, 3, np.nan),
        _changed(1, 1, 1e300),
        _changed(1, 1, 1e-9),
        _changed(3, 0, 1.0),
        np.array([[1, 1, 0, 0], [0, 1e-5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        "no numbers",
    ],
    ids=["3x3", "zero axis", "nan", "huge", "tiny", "last row", "coplanar", "text"],
)
def test_affines_that_place_nothing(affine: np.ndarray) -> None:
    with pytest.raises(VolumeError) as caught:
        Volume(ramp(), affine)
    assert caught.value.code == "VOLUME_AFFINE"


def test_a_strong_gantry_tilt_is_still_an_affine() -> None:
    tilted = np.eye(4)
    tilted[1, 2] = np.tan(np.radians(30))
    assert Volume(ramp(), tilted).voxel_volume_ml == pytest.approx(0.001)


def test_pickled_volumes_are_still_read_only() -> None:
    copy = pickle.loads(pickle.dumps(Volume(ramp(), LAS, {"path": "a"})))
    np.testing.assert_array_equal(copy.array, ramp())
    assert not copy.array.flags.writeable
    assert copy.provenance["path"] == "a"


def test_lps_turns_two_axes_and_is_its_own_inverse() -> None:
    np.testing.assert_array_equal(lps_from_ras(LAS)[:, 3], (-30, 20, 7, 1))
    np.testing.assert_array_equal(lps_from_ras(lps_from_ras(PIR)), PIR)


def test_placements_are_compared_at_the_corners() -> None:
    turned = np.eye(4)
    turned[0, 1] = 1e-4  # 0.1 µm per voxel: nothing over 5 voxels, 0.05 mm over 500
    assert same_placement(np.eye(4), turned, (5, 5, 5))
    assert not same_placement(np.eye(4), turned, (5, 500, 5))
    assert largest_shift_mm(np.eye(4), turned, (5, 501, 5)) == pytest.approx(0.05)
