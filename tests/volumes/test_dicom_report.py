"""The measurement report: right volumes, found by other tools, and nothing that was not measured."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_report import write_report
from accunet_monai.volumes.dicom_seg import write_seg
from accunet_monai.volumes.segments import read_segments
from tests.volumes import made_series
from tests.volumes.made_series import axial, landmarks, rotation, stack

ROOT = Path(__file__).resolve().parents[2]
TABLE = read_segments(ROOT / "bundles/hippocampus_mri/configs/segments.yaml")
ALGORITHM = replace(TABLE.algorithm, weights_sha256="0123456789abcdef" * 4)


def measured(path: Path) -> dict[str, tuple[float, str]]:
    """Segment's name → volume and unit, by highdicom's own reader."""
    report = hd.sr.srread(path)
    result = {}
    for group in report.content.get_volumetric_roi_measurement_groups():
        [volume] = group.get_measurements(name=codes.SCT.Volume)
        result[group.tracking_identifier] = (volume.value, volume.unit.value)
    return result


def test_volumes_are_those_of_the_voxels(tmp_path: Path) -> None:
    image = made_series.volume(tmp_path / "s", stack(rotation(0.4, 0.1, 1.0), np.arange(6) * 2.0), "MR")
    labels = np.zeros(image.shape, np.uint8)
    labels[1:4, 2:7, 1:5] = 1  # 60 voxels of 0.75 × 1.25 × 2 mm
    labels[5, 5, 5] = 2
    seg = write_seg(tmp_path / "seg.dcm", labels, image, TABLE)
    report = write_report(tmp_path / "report.dcm", seg, image, ALGORITHM)
    assert measured(report) == {"Anterior hippocampus": (112.5, "mm3"), "Posterior hippocampus": (1.875, "mm3")}


def test_in_a_gapped_stack_a_plane_stands_for_the_way_to_its_neighbours(tmp_path: Path) -> None:
    planes = made_series.planes(tmp_path / "s", axial(np.array([0.0, 2.0, 6.0, 8.0])))
    labels = np.zeros(planes.array.shape, np.uint8)
    labels[0, 0, :2] = 1  # depths 2 and (2 + 4) / 2
    labels[0, 0, 3] = 2  # depth 2
    seg = write_seg(tmp_path / "seg.dcm", labels, planes, TABLE)
    values = measured(write_report(tmp_path / "report.dcm", seg, planes, ALGORITHM))
    assert [value for value, _ in values.values()] == pytest.approx([0.75 * 1.25 * 5, 0.75 * 1.25 * 2], abs=5e-4)


def test_a_single_plane_has_its_slice_thickness(tmp_path: Path) -> None:
    planes = made_series.planes(tmp_path / "s", axial(np.array([0.0])))  # SliceThickness 2.5
    labels = np.ones(planes.array.shape, np.uint8)
    seg = write_seg(tmp_path / "seg.dcm", labels, planes, TABLE)
    values = measured(write_report(tmp_path / "report.dcm", seg, planes, ALGORITHM))
    assert values["Anterior hippocampus"][0] == pytest.approx(120 * 0.75 * 1.25 * 2.5)


def test_what_was_not_found_is_said_to_be_absent(tmp_path: Path) -> None:
    image = made_series.volume(tmp_path / "s", axial())
    labels = np.zeros(image.shape, np.uint8)
    labels[3, 3, 3] = 1
    seg = write_seg(tmp_path / "seg.dcm", labels, image, TABLE)
    report = hd.sr.srread(write_report(tmp_path / "report.dcm", seg, image, ALGORITHM))
    evaluations = [
        [item.value.meaning for item in group.get_qualitative_evaluations() if item.name.meaning == "Presence"]
        for group in report.content.get_volumetric_roi_measurement_groups()
    ]
    assert evaluations == [[], ["Absent"]]


def test_it_refers_to_the_segment_and_the_source_series(tmp_path: Path) -> None:
    image = made_series.volume(tmp_path / "s", axial())
    seg = write_seg(tmp_path / "seg.dcm", landmarks(image.shape), image, TABLE)
    report = hd.sr.srread(write_report(tmp_path / "report.dcm", seg, image, ALGORITHM))
    groups = report.content.get_volumetric_roi_measurement_groups()
    segments = [group.referenced_segment[0] for group in groups]
    assert [segment.referenced_segment_numbers for segment in segments] == [[1], [2]]
    assert {segment.referenced_sop_instance_uid for segment in segments} == {pydicom.dcmread(seg).SOPInstanceUID}
    assert {group.referenced_segment[1].value for group in groups} == {f"{made_series.ROOT_UID}.2"}
    assert report.PatientName == "Made^Series"
    assert report.SeriesDescription.startswith("Not for diagnostic use: Hippocampus")
    sites = [group.finding_sites[0] for group in groups]
    assert [(site.value.meaning, site.topographical_modifier.meaning) for site in sites] == [
        ("Hippocampus", "Anterior"),
        ("Hippocampus", "Posterior"),
    ]


@pytest.mark.parametrize("enhanced", [False, True])
def test_it_is_valid_and_the_same_twice(tmp_path: Path, enhanced: bool, require: Callable[..., None]) -> None:
    image = made_series.volume(tmp_path / "s", axial(), enhanced=enhanced)
    seg = write_seg(tmp_path / "seg.dcm", landmarks(image.shape), image, TABLE)
    first = write_report(tmp_path / "a.dcm", seg, image, ALGORITHM)
    assert first.read_bytes() == write_report(tmp_path / "b.dcm", seg, image, ALGORITHM).read_bytes()
    command = shutil.which("dciodvfy")
    require("dciodvfy", command, "no dciodvfy (dicom3tools)")
    done = subprocess.run([str(command), str(first)], capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")] == []


def test_a_seg_of_another_series_is_refused(tmp_path: Path) -> None:
    image = made_series.volume(tmp_path / "s", axial())
    seg = write_seg(tmp_path / "seg.dcm", landmarks(image.shape), image, TABLE)
    ds = pydicom.dcmread(seg)
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    ds.save_as(seg)
    with pytest.raises(SeriesError) as caught:
        write_report(tmp_path / "report.dcm", seg, image, ALGORITHM)
    assert caught.value.code == "SEG_WRONG_SOURCE"
    assert not (tmp_path / "report.dcm").exists()
