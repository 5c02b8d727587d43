"""RTSTRUCT: contours that enclose the pixels they were made of and no others, where the patient is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as npst

from accunet_monai.volumes.dicom_rtstruct import CONTOUR_DECIMALS, outlines, write_rtstruct
from accunet_monai.volumes.segments import read_segments
from tests.volumes import made_series
from tests.volumes.made_series import axial, landmarks, rotation, stack

ROOT = Path(__file__).resolve().parents[2]
TABLE = read_segments(ROOT / "bundles/brain_tissue_t1/configs/segments.yaml")

ROUNDING_MM = 10.0**-CONTOUR_DECIMALS
"""Contours are written with so many decimals."""


def inside(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether each point lies in a polygon, by the even-odd rule (crossings of a ray along the first axis)."""
    a, b = polygon, np.roll(polygon, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    spans = (a[:, 1] > y) != (b[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = a[:, 0] + (y - a[:, 1]) / (b[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0])
    result: np.ndarray = (spans & (x < at)).sum(axis=1) % 2 == 1
    return result


def filled(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """(Y, X) how many polygons hold each pixel centre, moved by a hair off the keyholes."""
    j, i = np.indices(shape)
    points = np.stack([i.ravel() + 1e-5, j.ravel() + 2e-5], axis=1)
    result = np.zeros(shape, int)
    for polygon in polygons:
        result += inside(polygon, points).reshape(shape)
    return result


@settings(max_examples=300, deadline=None)
@given(npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_outlines_enclose_exactly_the_mask(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(filled(list(outlines(mask)), mask.shape), mask.astype(int))


def test_a_ring_is_one_contour_with_a_keyhole_and_its_area() -> None:
    mask = np.ones((7, 7), bool)
    mask[2:5, 2:5] = False
    [ring] = outlines(mask)
    x, y = ring.T
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    # 49 pixels less the four corners' eighths, less the hole of 9 pixels less its corners' eighths
    assert area == pytest.approx((49 - 0.5) - (9 - 0.5))


def test_straight_edges_have_no_points_between() -> None:
    [square] = outlines(np.ones((50, 80), bool))
    assert len(square) == 8  # each corner is cut


@pytest.mark.parametrize(
    ("geometry", "enhanced"),
    [
        (axial(), False),
        (axial(np.array([0, 2.5, 7.5, 10])), False),
        (axial(shift=(0.0, 0.3)), False),
        (stack(rotation(0.3, 0.2, -0.4), np.arange(6) * 2.5), True),
    ],
    ids=["ct", "gapped", "tilted", "oblique enhanced"],
)
def test_it_is_valid_the_same_twice_and_in_the_patients_place(
    tmp_path: Path, geometry: Any, enhanced: bool, require: Callable[..., None]
) -> None:
    like = made_series.planes(tmp_path / "s", geometry, enhanced=enhanced)
    labels = landmarks(like.array.shape, 2)
    path = write_rtstruct(tmp_path / "rt.dcm", labels, like, TABLE)
    assert path.read_bytes() == write_rtstruct(tmp_path / "again.dcm", labels, like, TABLE).read_bytes()
    np.testing.assert_array_equal(rasterised(path, geometry), labels)
    command = shutil.which("dciodvfy")
    require("dciodvfy", command, "no dciodvfy (dicom3tools)")
    done = subprocess.run([str(command), str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")] == []


def rasterised(path: Path, geometry: Any) -> np.ndarray:
    """The label map again, from nothing but the contours' millimetres and the images' geometry."""
    ds = pydicom.dcmread(path)
    (x, y), count = geometry.shape, len(geometry.origins)
    labels = np.zeros((x, y, count), np.uint8)
    for item in ds.ROIContourSequence:
        for contour in item.get("ContourSequence") or ():
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            normal = np.cross(*geometry.axes.T)
            [k] = np.flatnonzero(np.abs((geometry.origins - points[0]) @ normal) <= ROUNDING_MM)
            offsets = points - geometry.origins[k]
            assert np.abs(offsets @ normal).max() <= ROUNDING_MM
            pixels = offsets @ geometry.axes / geometry.spacing
            labels[:, :, k][filled([pixels], (y, x)).T == 1] = item.ReferencedROINumber
    return labels


def test_it_names_segments_images_and_what_it_is_not_for(tmp_path: Path) -> None:
    image = made_series.volume(tmp_path / "s", axial())
    labels = np.zeros(image.shape, np.uint8)
    labels[2:5, 2:5, 3] = 2
    ds = pydicom.dcmread(write_rtstruct(tmp_path / "rt.dcm", labels, image, TABLE))
    assert [roi.ROIName for roi in ds.StructureSetROISequence] == ["CSF", "Grey matter", "White matter"]
    assert ["ContourSequence" in item for item in ds.ROIContourSequence] == [False, True, False]
    [contour] = ds.ROIContourSequence[1].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == f"{made_series.ROOT_UID}.4.4"
    assert ds.StructureSetLabel == "NOT_FOR_DIAG_USE"
    assert ds.ApprovalStatus == "UNAPPROVED"
    assert (ds.PatientName, ds.StructureSetDate) == ("Made^Series", "20240229")
    assert ds.ROIContourSequence[1].ROIDisplayColor == [153, 153, 153]
