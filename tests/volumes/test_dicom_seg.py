"""DICOM SEG: written on the source's planes, judged by other tools, read back, and never wrong in silence."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from accunet_monai.errors import SeriesError, VolumeError
from accunet_monai.volumes import PlaneStack, Volume, find_series, read_planes, read_series
from accunet_monai.volumes import dicom_seg as dicom_seg_module
from accunet_monai.volumes.dicom_derived import DerivedContent
from accunet_monai.volumes.dicom_seg import write_seg
from accunet_monai.volumes.dicom_seg_read import read_seg
from accunet_monai.volumes.dicom_seg_verify import verify_seg
from accunet_monai.volumes.segments import AlgorithmInfo, SegmentTable, read_segments
from tests.volumes import made_series
from tests.volumes.made_series import axial, landmarks, rotation, stack

ROOT = Path(__file__).resolve().parents[2]
TISSUE = ROOT / "bundles/brain_tissue_t1/configs/segments.yaml"
HIPPOCAMPUS = ROOT / "bundles/hippocampus_mri/configs/segments.yaml"
DIGESTS = {"weights_sha256": "0123456789abcdef" * 4, "config_sha256": "f" * 64}

EXAMPLES = int(os.environ.get("ACCUNET_EXAMPLES", "60"))
"""Made series in the round trip; 2000 and more in a long run."""

LANDMARK_MM = 0.01
"""How far a voxel may move on its way DICOM → Volume → SEG → Volume."""

LABELMAP_UNKNOWN = [
    "Error - SegmentNumber not monotonically increasing from one by one - "
    "have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
    "Error - Information Object Not found",
]
"""What Debian's dciodvfy, older than the Label Map Segmentation IOD, says of every object of that kind."""

Source = Callable[[Path], Volume | PlaneStack]
SOURCES: dict[str, Source] = {
    "ct": lambda folder: made_series.volume(folder, axial()),
    "mr oblique": lambda folder: made_series.volume(folder, stack(rotation(0.3, 0.2, -0.4), np.arange(6) * 2.5), "MR"),
    "tilted": lambda folder: made_series.planes(folder, axial(shift=(0.0, 0.3))),
    "gapped": lambda folder: made_series.planes(folder, axial(np.array([0, 2.5, 7.5, 10]))),
    "uneven": lambda folder: made_series.planes(folder, axial(np.array([0, 2.5, 7.1, 10.05]))),
    "enhanced ct": lambda folder: made_series.volume(folder, axial(), enhanced=True),
    "enhanced mr": lambda folder: made_series.planes(
        folder, stack(rotation(-1.2, 0.1, 2.0), np.arange(5) * 3.0, shift=(0.1, 0)), "MR", enhanced=True
    ),
}


@pytest.fixture(params=SOURCES)
def like(request: pytest.FixtureRequest, tmp_path: Path) -> Volume | PlaneStack:
    return SOURCES[request.param](tmp_path / "series")


@pytest.fixture
def ct(tmp_path: Path) -> Volume | PlaneStack:
    return SOURCES["ct"](tmp_path / "series")


@pytest.fixture
def table() -> SegmentTable:
    return read_segments(TISSUE)


@pytest.fixture
def dciodvfy(require: Callable[..., None]) -> Callable[[Path], list[str]]:
    """The errors that David Clunie's validator finds."""
    command = shutil.which("dciodvfy")
    require("dciodvfy", command, "no dciodvfy (dicom3tools)")

    def errors(path: Path) -> list[str]:
        done = subprocess.run([str(command), str(path)], capture_output=True, text=True, timeout=60, check=False)
        return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]

    return errors


# ----------------------------------------------------------------------------------------------------------------------
# What is written


@pytest.mark.parametrize("omit", [True, False])
@pytest.mark.parametrize("encoding", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_every_kind_of_source_gives_a_valid_object_that_reads_back(
    tmp_path: Path, like: Volume, encoding: Any, omit: bool, dciodvfy: Callable[[Path], list[str]]
) -> None:
    labels = landmarks(like.array.shape, 3)
    path = write_seg(tmp_path / "seg.dcm", labels, like, TISSUE, encoding=encoding, omit_empty_frames=omit)
    assert dciodvfy(path) == (LABELMAP_UNKNOWN if encoding == "LABELMAP" else [])
    seg = read_seg(path, like=like)
    assert seg.encoding == encoding
    np.testing.assert_array_equal(seg.label_map, labels)
    verify_seg(path, labels, like)


def test_the_same_input_twice_gives_the_same_bytes(tmp_path: Path, like: Volume) -> None:
    labels = landmarks(like.array.shape)
    first, second = (
        write_seg(tmp_path / name, labels, like, HIPPOCAMPUS).read_bytes() for name in ("a.dcm", "deeper/b.dcm")
    )
    assert first == second


def test_each_ingredient_changes_the_instance_and_no_other_uid_repeats(
    tmp_path: Path, ct: Volume, table: SegmentTable
) -> None:
    labels = landmarks(ct.array.shape)
    other = labels.copy()
    other[0, 0, 0] = 2 if labels[0, 0, 0] != 2 else 1
    renamed = SegmentTable(table.algorithm, (replace(table.segments[0], name="Liquor"), *table.segments[1:]))
    moved = made_series.volume(tmp_path / "moved", axial(origin=(-30.5, 12.25, 102.0)))
    algorithm = AlgorithmInfo("a", "1", "0" * 64, "0" * 64)
    variants: list[tuple[Any, Any, Any, dict[str, Any]]] = [
        (labels, ct, table, {}),
        (other, ct, table, {}),
        (labels, moved, table, {}),
        (labels, ct, renamed, {}),
        (labels, ct, table, {"encoding": "LABELMAP"}),
        (labels, ct, table, {"encoding": "FRACTIONAL"}),
        (labels, ct, table, {"algorithm": algorithm}),
        (labels, ct, table, {"algorithm": replace(algorithm, weights_sha256="1" * 64)}),
        (labels, ct, table, {"algorithm": replace(algorithm, config_sha256="1" * 64)}),
        (labels, ct, table, {"algorithm": replace(algorithm, version="2")}),
        (labels, ct, table, {"content": DerivedContent(description="For research")}),
        (labels, ct, table, {"content": DerivedContent(created=datetime(2025, 1, 2, 3, 4, 5))}),
    ]
    uids = []
    for label_map, image, segments, options in variants:
        ds = pydicom.dcmread(write_seg(tmp_path / "seg.dcm", label_map, image, segments, **options))
        uids.append(ds.SOPInstanceUID)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.SOPInstanceUID.startswith("2.25.")
        organisations = {item.DimensionOrganizationUID for item in ds.DimensionIndexSequence}
        assert organisations == {ds.DimensionOrganizationSequence[0].DimensionOrganizationUID}
        assert len({ds.SOPInstanceUID, ds.SeriesInstanceUID, *organisations}) == 3
    assert len(set(uids)) == len(variants)


def test_the_object_says_what_made_it_and_what_it_is_not_for(tmp_path: Path, ct: Volume, table: SegmentTable) -> None:
    algorithm = replace(table.algorithm, **DIGESTS)
    ds = pydicom.dcmread(write_seg(tmp_path / "s.dcm", landmarks(ct.array.shape), ct, table, algorithm=algorithm))
    assert ds.ContentLabel == "NOT_FOR_DIAG_USE"
    assert ds.ContentDescription == ds.SeriesDescription
    assert ds.ContentDescription.startswith("Not for diagnostic use: Brain tissue segmentation with ACC-UNet")
    assert (ds.ContentDate, ds.ContentTime, ds.InstanceCreationTime) == ("20240229", "101800.500000", "101800.500000")
    assert (ds.PatientName, ds.PatientID, ds.AccessionNumber) == ("Made^Series", "made-1", "A7")
    acquisition, bundle, library = ds.ContributingEquipmentSequence
    assert acquisition.ManufacturerModelName == "Scanner"
    assert (bundle.ManufacturerModelName, bundle.SoftwareVersions) == (algorithm.name, algorithm.version)
    assert bundle.DeviceSerialNumber == ds.DeviceSerialNumber == DIGESTS["weights_sha256"]
    assert bundle.ContributionDateTime == library.ContributionDateTime == "20240229101800.500000"
    for digest in DIGESTS.values():
        assert digest in bundle.ContributionDescription
    identification = ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == (algorithm.name, algorithm.version)
    assert identification.AlgorithmParameters == ",".join(f"{name}={digest}" for name, digest in DIGESTS.items())
    assert identification.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"  # artificial intelligence


def test_a_site_may_say_something_else(tmp_path: Path, ct: Volume) -> None:
    content = DerivedContent("TRIAL_7", "Trial 7", 55, datetime(2026, 11, 23, 6, 0, 1))
    ds = pydicom.dcmread(write_seg(tmp_path / "s.dcm", landmarks(ct.array.shape), ct, TISSUE, content=content))
    assert (ds.ContentLabel, ds.SeriesNumber, ds.ContentDate) == ("TRIAL_7", 55, "20261123")
    assert ds.SeriesDescription.startswith("Trial 7: Brain")
    for wrong in ({"label": "lower"}, {"label": "X" * 17}, {"description": "ä"}, {"series_number": 0}):
        with pytest.raises(VolumeError) as caught:
            DerivedContent(**wrong)  # type: ignore[arg-type]
        assert caught.value.code == "SEG_CONTENT"


def test_segments_carry_their_codes_and_colour(tmp_path: Path, ct: Volume) -> None:
    path = write_seg(tmp_path / "seg.dcm", landmarks(ct.array.shape), ct, HIPPOCAMPUS)
    anterior, posterior = read_seg(path).segments
    assert (anterior.name, anterior.type) == ("Anterior hippocampus", ("5366008", "SCT", "Hippocampus"))
    assert (anterior.modifier, posterior.modifier) == (
        ("255549009", "SCT", "Anterior"),
        ("255551008", "SCT", "Posterior"),
    )
    colour = hd.color.CIELabColor.from_dicom_value(
        pydicom.dcmread(path).SegmentSequence[0].RecommendedDisplayCIELabValue
    )
    np.testing.assert_allclose(colour.to_rgb(), (230, 97, 0), atol=1)


@pytest.mark.parametrize("kind", ["ct", "enhanced ct"])
def test_each_frame_refers_to_its_own_source_image(tmp_path: Path, kind: str) -> None:
    like = SOURCES[kind](tmp_path / "series")
    labels = landmarks(like.array.shape)
    ds = pydicom.dcmread(write_seg(tmp_path / "seg.dcm", labels, like, HIPPOCAMPUS))
    frames = like.provenance["dicom"].frames
    instances = {frame.sop_instance_uid for frame in frames}
    [series] = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == like.provenance["dicom"].series_uid
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == instances
    assert len(series.ReferencedInstanceSequence) == len(ds.SourceImageSequence) == len(instances)
    source_pixels = {frame.path: pydicom.dcmread(frame.path).pixel_array for frame in frames}
    for index, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        [image] = group.DerivationImageSequence[0].SourceImageSequence
        assert image.SpatialLocationsPreserved == "YES"
        number = image.get("ReferencedFrameNumber")
        path = next(f.path for f in frames if f.sop_instance_uid == image.ReferencedSOPInstanceUID)
        pixels = source_pixels[path] if number is None else source_pixels[path][number - 1]
        k = int(pixels[0, 0]) // (like.array.shape[0] * like.array.shape[1])  # the made pixels number themselves
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(ds.pixel_array[index], segment == labels[:, :, k].T)


@pytest.mark.parametrize("axcodes", ["RAS", "LPI", "SAL"])
def test_a_turned_volume_is_written_where_it_lies_and_names_no_image_for_a_frame(
    tmp_path: Path, ct: Volume, axcodes: str
) -> None:
    labels = landmarks(ct.array.shape)
    turned = Volume(labels, ct.affine_ras).reoriented(axcodes).array
    path = write_seg(tmp_path / "seg.dcm", turned, ct.reoriented(axcodes), HIPPOCAMPUS)
    ds = pydicom.dcmread(path)
    assert not any(group.DerivationImageSequence for group in ds.PerFrameFunctionalGroupsSequence)
    assert len(ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6
    assert placed(read_seg(path).volume()) == placed(Volume(labels, ct.affine_ras))


def test_a_resampled_volume_is_written_on_its_own_grid(tmp_path: Path, dciodvfy: Callable[[Path], list[str]]) -> None:
    made_series.write(tmp_path / "series", axial(shift=(0.0, 0.3)))
    image = read_series(tmp_path / "series", irregular="resample")
    labels = landmarks(image.shape)
    path = write_seg(tmp_path / "seg.dcm", labels, image, HIPPOCAMPUS)
    assert dciodvfy(path) == []
    assert placed(read_seg(path).volume()) == placed(Volume(labels, image.affine_ras))


def test_empty_frames_are_left_out_or_kept(tmp_path: Path, ct: Volume) -> None:
    labels = np.zeros(ct.array.shape, np.uint8)
    labels[3:5, 2:4, 2], labels[3:5, 2:4, 4] = 1, 2
    few = read_seg(write_seg(tmp_path / "few.dcm", labels, ct, TISSUE), like=ct)
    many = read_seg(write_seg(tmp_path / "many.dcm", labels, ct, TISSUE, omit_empty_frames=False), like=ct)
    assert pydicom.dcmread(tmp_path / "few.dcm").NumberOfFrames == 2
    assert pydicom.dcmread(tmp_path / "many.dcm").NumberOfFrames == 3 * 6
    np.testing.assert_array_equal(few.label_map, many.label_map)
    alone = read_seg(tmp_path / "few.dcm").volume()  # the plane between the two is filled in
    assert alone.shape == (12, 10, 3)
    assert placed(alone) == placed(Volume(labels, ct.affine_ras))


def test_an_empty_label_map_is_written_and_says_so_or_is_refused(
    tmp_path: Path, ct: Volume, dciodvfy: Callable[[Path], list[str]]
) -> None:
    labels = np.zeros(ct.array.shape, np.uint8)
    path = write_seg(tmp_path / "seg.dcm", labels, ct, TISSUE)
    assert pydicom.dcmread(path).ContentDescription.endswith("(checked, none found)")
    assert dciodvfy(path) == []
    assert not read_seg(path, like=ct).label_map.any()
    with pytest.raises(SeriesError) as caught:
        write_seg(tmp_path / "refused.dcm", labels, ct, TISSUE, empty="refuse")
    assert caught.value.code == "SEG_EMPTY"
    assert not (tmp_path / "refused.dcm").exists()


def test_probabilities_are_kept_to_a_255th(tmp_path: Path, ct: Volume) -> None:
    rng = np.random.default_rng(3)
    fractions = rng.random((*ct.array.shape, 3)).astype(np.float32)
    seg = read_seg(write_seg(tmp_path / "seg.dcm", fractions, ct, TISSUE, encoding="FRACTIONAL"), like=ct)
    assert seg.fractions is not None
    np.testing.assert_allclose(seg.fractions, fractions, atol=0.5 / 255 + 1e-6)
    expected = np.where(seg.fractions.max(-1) >= 0.5, seg.fractions.argmax(-1) + 1, 0)
    np.testing.assert_array_equal(seg.label_map, expected)


# ----------------------------------------------------------------------------------------------------------------------
# Round trips in world coordinates


def placed(volume: Volume) -> dict[tuple[float, float, float], int]:
    """RAS mm, rounded to a tenth, of each labelled voxel → its label."""
    indices = np.argwhere(volume.array)
    points = indices @ volume.affine_ras[:3, :3].T + volume.affine_ras[:3, 3]
    values = volume.array[tuple(indices.T)]
    return {tuple(np.round(p, 1) + 0.0): int(v) for p, v in zip(points, values, strict=True)}


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    flips=st.tuples(st.booleans(), st.booleans()),
    edges=st.tuples(st.floats(0.3, 4.0), st.floats(0.3, 4.0), st.floats(0.5, 8.0)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)).filter(lambda s: s[0] * s[1] >= 8),
    origin=st.tuples(*[st.floats(-800, 800)] * 3),
    seed=st.integers(0, 10**6),
    enhanced=st.booleans(),
    encoding=st.sampled_from(["BINARY", "LABELMAP", "FRACTIONAL"]),
)
def test_landmarks_survive_dicom_volume_seg_volume(
    angles: Any, flips: Any, edges: Any, shape: Any, origin: Any, seed: int, enhanced: bool, encoding: Any
) -> None:
    axes = rotation(*angles)[:, :2] * np.where(flips, -1.0, 1.0)
    geometry = stack(axes, np.arange(shape[2]) * edges[2], origin=origin, spacing=edges[:2], shape=shape[:2])
    labels = landmarks(shape, 3, seed)
    with tempfile.TemporaryDirectory() as name:
        made_series.write(Path(name) / "series", geometry, "MR", enhanced=enhanced, thickness=edges[2])
        image = read_series(Path(name) / "series")
        path = write_seg(Path(name) / "seg.dcm", labels, image, TISSUE, encoding=encoding)
        result = read_seg(path)
    for label in (1, 2, 3):
        i, j, k = np.argwhere(labels == label).T
        meant = (  # the DICOM formula (PS3.3, C.7.6.2.1.1), not this package's
            geometry.origins[k]
            + np.outer(i * edges[0], geometry.axes[:, 0])
            + np.outer(j * edges[1], geometry.axes[:, 1])
        ) * (-1, -1, 1)
        volume = result.volume()
        found = np.argwhere(volume.array == label) @ volume.affine_ras[:3, :3].T + volume.affine_ras[:3, 3]
        assert len(found) == len(meant)
        if len(meant):
            apart = np.linalg.norm(found[:, None] - meant[None], axis=-1)
            assert apart.min(axis=0).max() <= LANDMARK_MM
            assert apart.min(axis=1).max() <= LANDMARK_MM


def test_frames_too_small_for_highdicom_are_found_out(tmp_path: Path) -> None:
    """highdicom 0.28.2 pads each BINARY frame of fewer than 8 pixels to a byte, where DICOM packs bits seamlessly."""
    image = made_series.volume(tmp_path / "series", axial(shape=(1, 2)))
    labels = landmarks(image.shape)
    labels[0, 0, 1:3] = 1
    with pytest.raises(SeriesError) as caught:
        write_seg(tmp_path / "seg.dcm", labels, image, TISSUE)
    assert caught.value.code in {"PIXEL_SIZE", "SEG_WRONG_PIXELS"}
    assert not (tmp_path / "seg.dcm").exists()


def test_planes_come_back_as_planes(tmp_path: Path) -> None:
    like = SOURCES["tilted"](tmp_path / "series")
    labels = np.ones(like.array.shape, np.uint8)
    seg = read_seg(write_seg(tmp_path / "seg.dcm", labels, like, TISSUE))
    np.testing.assert_allclose(seg.affines_ras, like.affines_ras, atol=1e-6)  # type: ignore[union-attr]
    with pytest.raises(SeriesError) as caught:
        seg.volume()
    assert caught.value.code == "GEOM_TILT"


# ----------------------------------------------------------------------------------------------------------------------
# Tampering


def tampered(path: Path, change: Callable[[Dataset, np.ndarray], None]) -> bytes:
    """The file after ``change(dataset, frames)``; frames (F, rows, columns) are written back."""
    ds = pydicom.dcmread(path)
    frames = np.array(ds.pixel_array)
    change(ds, frames)
    ds.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
    stream = io.BytesIO()
    ds.save_as(stream)
    return stream.getvalue()


def position(group: Dataset) -> Dataset:
    item: Dataset = group.PlanePositionSequence[0]
    return item


def mirror_columns(ds: Dataset, frames: np.ndarray) -> None:
    frames[:] = frames[:, :, ::-1].copy()


def mirror_front_to_back(ds: Dataset, frames: np.ndarray) -> None:
    groups = ds.PerFrameFunctionalGroupsSequence
    places = [position(group).ImagePositionPatient for group in groups]
    for group, place in zip(groups, places[::-1], strict=True):
        position(group).ImagePositionPatient = place


def shift_one_pixel(ds: Dataset, frames: np.ndarray) -> None:
    frames[:] = np.roll(frames, 1, axis=1)


def shift_half_a_millimetre(ds: Dataset, frames: np.ndarray) -> None:
    for group in ds.PerFrameFunctionalGroupsSequence:
        x, y, z = position(group).ImagePositionPatient
        position(group).ImagePositionPatient = [float(x) + 0.5, y, z]


def shift_by_one_slice(ds: Dataset, frames: np.ndarray) -> None:
    for group in ds.PerFrameFunctionalGroupsSequence:
        x, y, z = position(group).ImagePositionPatient
        position(group).ImagePositionPatient = [x, y, float(z) + 2.5]


def turn_rows_around(ds: Dataset, frames: np.ndarray) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    shared.ImageOrientationPatient = [-float(c) for c in shared.ImageOrientationPatient[:3]] + list(
        shared.ImageOrientationPatient[3:]
    )


def swap_spacing(ds: Dataset, frames: np.ndarray) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    shared.PixelSpacing = list(shared.PixelSpacing)[::-1]


def swap_segments(ds: Dataset, frames: np.ndarray) -> None:
    for group in ds.PerFrameFunctionalGroupsSequence:
        item = group.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = 3 - item.ReferencedSegmentNumber


def lose_a_frame(ds: Dataset, frames: np.ndarray) -> None:
    ds.PerFrameFunctionalGroupsSequence.pop()
    ds.NumberOfFrames = len(frames) - 1
    frames.resize((len(frames) - 1, *frames.shape[1:]), refcheck=False)


def one_pixel_more(ds: Dataset, frames: np.ndarray) -> None:
    frames[0, -1, -1] ^= 1


def other_source_image(ds: Dataset, frames: np.ndarray) -> None:
    image = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    image.ReferencedSOPInstanceUID = f"{made_series.ROOT_UID}.4.77"


def other_frame_of_reference(ds: Dataset, frames: np.ndarray) -> None:
    ds.FrameOfReferenceUID = f"{made_series.ROOT_UID}.9"


TAMPERING: list[tuple[Callable[[Dataset, np.ndarray], None], set[str]]] = [
    (mirror_columns, {"SEG_WRONG_PIXELS"}),
    (mirror_front_to_back, {"SEG_WRONG_PIXELS"}),
    (shift_one_pixel, {"SEG_WRONG_PIXELS"}),
    (shift_half_a_millimetre, {"SEG_MISPLACED"}),
    (shift_by_one_slice, {"SEG_MISPLACED", "SEG_WRONG_PIXELS"}),
    (turn_rows_around, {"SEG_MISPLACED"}),
    (swap_spacing, {"SEG_MISPLACED"}),
    (swap_segments, {"SEG_WRONG_PIXELS"}),
    (lose_a_frame, {"SEG_INCOMPLETE"}),
    (one_pixel_more, {"SEG_WRONG_PIXELS"}),
    (other_source_image, {"SEG_WRONG_SOURCE"}),
    (other_frame_of_reference, {"SEG_WRONG_SOURCE"}),
]


@pytest.mark.parametrize(("change", "codes"), TAMPERING, ids=lambda value: getattr(value, "__name__", ""))
def test_a_tampered_object_is_found_out(
    tmp_path: Path, ct: Volume, change: Callable[[Dataset, np.ndarray], None], codes: set[str]
) -> None:
    labels = landmarks(ct.array.shape, seed=5)
    path = write_seg(tmp_path / "seg.dcm", labels, ct, HIPPOCAMPUS)
    verify_seg(tampered(path, lambda ds, frames: None), labels, ct)  # the way of tampering itself does no harm
    with pytest.raises(SeriesError) as caught:
        verify_seg(tampered(path, change), labels, ct)
    assert caught.value.code in codes


def test_a_mirrored_mask_cannot_leave(tmp_path: Path, ct: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = landmarks(ct.array.shape)
    honest = dicom_seg_module.encoded

    def mirrored(ds: Dataset) -> bytes:
        (tmp_path / "honest").write_bytes(honest(ds))
        return tampered(tmp_path / "honest", mirror_columns)

    monkeypatch.setattr(dicom_seg_module, "encoded", mirrored)
    (tmp_path / "out").mkdir()
    with pytest.raises(SeriesError) as caught:
        write_seg(tmp_path / "out/seg.dcm", labels, ct, HIPPOCAMPUS)
    assert caught.value.code == "SEG_WRONG_PIXELS"
    assert list((tmp_path / "out").iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, ct: Volume) -> None:
    labels = landmarks(ct.array.shape)
    attempts: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("LABEL_GRID", labels[:-1], ct, {}),
        ("LABEL_NOT_INTEGER", labels.astype(np.float32), ct, {}),
        ("SEG_LABEL", labels + np.uint8(3), ct, {}),
        ("SEG_LABEL", labels.astype(np.int16) - 1, ct, {}),
        ("LABEL_GRID", labels.astype(np.float32), ct, {"encoding": "FRACTIONAL"}),
        ("SEG_FRACTION", np.full((*labels.shape, 3), 1.5, np.float32), ct, {"encoding": "FRACTIONAL"}),
        ("SEG_FRACTION", np.full((*labels.shape, 3), np.nan, np.float32), ct, {"encoding": "FRACTIONAL"}),
        ("SEG_NO_SOURCE", labels, Volume(ct.array, ct.affine_ras), {}),
    ]
    for code, label_map, image, options in attempts:
        with pytest.raises(VolumeError) as caught:
            write_seg(tmp_path / "out/seg.dcm", label_map, image, TISSUE, **options)
        assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_an_existing_file_is_kept_on_request(tmp_path: Path, ct: Volume) -> None:
    (tmp_path / "seg.dcm").write_bytes(b"precious")
    with pytest.raises(VolumeError) as caught:
        write_seg(tmp_path / "seg.dcm", landmarks(ct.array.shape), ct, TISSUE, overwrite=False)
    assert caught.value.code == "FILE_EXISTS"
    assert (tmp_path / "seg.dcm").read_bytes() == b"precious"


def test_sources_that_changed_since_reading_are_refused(tmp_path: Path, ct: Volume) -> None:
    labels = landmarks(ct.array.shape)
    first, second = (frame.path for frame in ct.provenance["dicom"].frames[:2])
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(SeriesError, match="now holds instance") as caught:
        write_seg(tmp_path / "seg.dcm", labels, ct, TISSUE)
    assert caught.value.code == "SEG_SOURCE"
    second.write_bytes(content[:100])
    with pytest.raises(SeriesError):
        write_seg(tmp_path / "seg.dcm", labels, ct, TISSUE)
    second.unlink()
    with pytest.raises(SeriesError, match="cannot be read again"):
        write_seg(tmp_path / "seg.dcm", labels, ct, TISSUE)


def test_a_series_without_frame_of_reference_is_refused(tmp_path: Path, ct: Volume) -> None:
    source = replace(ct.provenance["dicom"], frame_of_reference_uid=None)
    like = Volume(ct.array, ct.affine_ras, {"dicom": source})
    with pytest.raises(SeriesError) as caught:
        write_seg(tmp_path / "seg.dcm", landmarks(ct.array.shape), like, TISSUE)
    assert caught.value.code == "GEOM_FRAME_OF_REFERENCE"


def test_reading_refuses_what_is_no_whole_seg(tmp_path: Path, ct: Volume) -> None:
    path = write_seg(tmp_path / "seg.dcm", landmarks(ct.array.shape), ct, TISSUE)

    def code_of(change: Callable[[Dataset], None]) -> str:
        ds = pydicom.dcmread(path)
        change(ds)
        ds.save_as(tmp_path / "bad.dcm")
        with pytest.raises(SeriesError) as caught:
            read_seg(tmp_path / "bad.dcm")
        return caught.value.code

    assert code_of(lambda ds: setattr(ds, "PixelData", ds.PixelData[:-2])) == "PIXEL_SIZE"
    assert code_of(lambda ds: delattr(ds, "PixelData")) == "PIXEL_MISSING"
    assert code_of(lambda ds: setattr(ds, "NumberOfFrames", 10**6)) == "SEG_INVALID"
    assert code_of(lambda ds: setattr(ds, "Rows", 65535) or setattr(ds, "Columns", 65535)) == "PIXEL_TOO_LARGE"
    assert code_of(lambda ds: delattr(ds, "SegmentSequence")) == "SEG_INVALID"
    assert code_of(lambda ds: delattr(ds, "SharedFunctionalGroupsSequence")) == "SEG_INVALID"
    assert code_of(lambda ds: setattr(ds, "SegmentationType", "OTHER")) == "SEG_INVALID"
    with pytest.raises(SeriesError) as caught:
        read_seg(next(iter(ct.provenance["dicom"].frames)).path)
    assert caught.value.code == "SEG_NOT_SEG"
    (tmp_path / "text").write_text("no DICOM")
    with pytest.raises(SeriesError) as caught:
        read_seg(tmp_path / "text")
    assert caught.value.code == "DICOM_UNREADABLE"
    with pytest.raises(SeriesError) as caught:
        read_seg(tmp_path / "missing")
    assert caught.value.code == "FILE_MISSING"


def test_overlapping_segments_are_refused_and_readable_one_by_one(tmp_path: Path, ct: Volume) -> None:
    labels = np.zeros(ct.array.shape, np.uint8)
    labels[2:5, 2:5, 1], labels[6:9, 2:5, 1] = 1, 2
    path = write_seg(tmp_path / "seg.dcm", labels, ct, HIPPOCAMPUS)

    def overlap(ds: Dataset, frames: np.ndarray) -> None:
        frames[1] = frames[0]

    (tmp_path / "bad.dcm").write_bytes(tampered(path, overlap))
    with pytest.raises(SeriesError) as caught:
        read_seg(tmp_path / "bad.dcm")
    assert caught.value.code == "SEG_OVERLAP"
    for number in (1, 2):
        seg = read_seg(tmp_path / "bad.dcm", like=ct, segment_numbers=[number])
        np.testing.assert_array_equal(seg.label_map, (labels == 1) * number)
    with pytest.raises(SeriesError) as caught:
        read_seg(tmp_path / "bad.dcm", segment_numbers=[3])
    assert caught.value.code == "SEG_SEGMENT"


# ----------------------------------------------------------------------------------------------------------------------
# Other tools


def test_highdicoms_own_reader_sees_the_same(tmp_path: Path, ct: Volume) -> None:
    labels = landmarks(ct.array.shape, 3)
    seg = hd.seg.segread(write_seg(tmp_path / "seg.dcm", labels, ct, TISSUE))
    uids = [frame.sop_instance_uid for frame in ct.provenance["dicom"].frames]
    planes = seg.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(planes.transpose(2, 1, 0), labels)
    volume = seg.get_volume(combine_segments=True)  # array (plane, row, column), affine to LPS mm
    there = np.argwhere(volume.array)
    points = (there @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * (-1, -1, 1)
    found = {tuple(np.round(p, 1) + 0.0): int(v) for p, v in zip(points, volume.array[tuple(there.T)], strict=True)}
    assert found == placed(Volume(labels, ct.affine_ras))


@pytest.mark.parametrize(
    ("seg", "reference"), [("seg/liver.dcm", "seg/liver_seg.nrrd"), ("24x38x3/label.seg", "24x38x3/label.nrrd")]
)
def test_dcmqi_objects_are_read_as_the_label_volumes_they_were_made_from(
    test_data: Path, seg: str, reference: str
) -> None:
    folder = test_data / "dicom/seg_dcmqi"
    image = SimpleITK.ReadImage(str(folder / reference))
    volume = read_seg(folder / seg).volume()
    np.testing.assert_array_equal(volume.array, SimpleITK.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.affine_ras[:3, 3] * (-1, -1, 1), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(volume.spacing, image.GetSpacing(), atol=1e-5)
    assert [segment.type for segment in read_seg(folder / seg).segments] == [("T-62000", "SRT", "Liver")]


def test_our_object_and_dcmqis_agree_frame_by_frame(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "dicom/seg_dcmqi"
    image = read_series(folder / "ct-3slice")
    theirs = pydicom.dcmread(folder / "seg/liver.dcm")
    labels = read_seg(folder / "seg/liver.dcm", like=image).label_map
    table = read_segments(TISSUE)
    ours = pydicom.dcmread(
        write_seg(tmp_path / "seg.dcm", labels, image, SegmentTable(table.algorithm, table.segments[:1]))
    )
    assert ours.FrameOfReferenceUID == theirs.FrameOfReferenceUID

    def frames(ds: Dataset) -> dict[str, tuple[list[float], bytes]]:
        result = {}
        for index, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
            [source] = group.DerivationImageSequence[0].SourceImageSequence
            size = ds.Rows * ds.Columns // 8
            result[str(source.ReferencedSOPInstanceUID)] = (
                [float(c) for c in group.PlanePositionSequence[0].ImagePositionPatient],
                ds.PixelData[index * size : (index + 1) * size],
            )
        return result

    mine, reference = frames(ours), frames(theirs)
    assert {uid: pixels for uid, (_, pixels) in mine.items()} == {uid: pixels for uid, (_, pixels) in reference.items()}
    for uid, (place, _) in mine.items():
        assert place == pytest.approx(reference[uid][0], abs=1e-5)  # dcmqi writes seven digits


@pytest.mark.parametrize(
    "name", ["ct_philips_gantry_tilt_neg", "mr_philips_enhanced_fieldmap", "mr_siemens_mosaic", "mr_hippocrop"]
)
def test_real_series_give_valid_objects(
    test_data: Path, tmp_path: Path, name: str, dciodvfy: Callable[[Path], list[str]]
) -> None:
    series = find_series(test_data / "dicom" / name)[0]
    like = read_planes(series) if series.problem else read_series(series)
    labels = landmarks(like.array.shape, 3)
    path = write_seg(tmp_path / "seg.dcm", labels, like, TISSUE)
    assert dciodvfy(path) == []
    np.testing.assert_array_equal(read_seg(path, like=like).label_map, labels)


# ----------------------------------------------------------------------------------------------------------------------
# A real archive


@pytest.fixture(scope="module")
def orthanc(
    require: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """A running Orthanc: its HTTP address, and what sends a file to it by C-STORE."""
    server = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    storescu = shutil.which("storescu")
    require("orthanc", server and storescu, "no Orthanc or no storescu (DCMTK)")
    folder, (http, dicom) = tmp_path_factory.mktemp("orthanc"), free_ports(2)
    configuration = {
        "Name": "accunet test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [],
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    log = (folder / "log").open("wb")
    address = f"http://127.0.0.1:{http}"
    process = subprocess.Popen([str(server), str(folder / "orthanc.json")], stdout=log, stderr=log)

    def send(path: Path) -> None:
        command = [str(storescu), "-R", "-aec", "ORTHANC", "127.0.0.1", str(dicom), str(path)]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)

    try:
        wait_for(f"{address}/system", process)
        yield address, send
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "Orthanc has ended"
        try:
            fetch(url)
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("Orthanc does not answer")


def fetch(url: str, body: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as answer:
        content: bytes = answer.read()
    return content


@pytest.mark.parametrize("encoding", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_orthanc_gives_back_the_same_pixels(
    tmp_path: Path, like: Volume, encoding: Any, orthanc: tuple[str, Callable[[Path], None]]
) -> None:
    address, send = orthanc
    labels = landmarks(like.array.shape, 3)
    path = write_seg(tmp_path / "seg.dcm", labels, like, TISSUE, encoding=encoding)
    if encoding == "LABELMAP":  # Debian's storescu does not know the class
        fetch(f"{address}/instances", path.read_bytes())
    else:
        send(path)
    sent = pydicom.dcmread(path)
    [identifier] = json.loads(fetch(f"{address}/tools/lookup", str(sent.SOPInstanceUID).encode()))
    stored = fetch(f"{address}{identifier['Path']}/file")
    (tmp_path / "fetched.dcm").write_bytes(stored)
    fetched = pydicom.dcmread(tmp_path / "fetched.dcm")
    assert fetched.PixelData == sent.PixelData
    assert fetched == sent
    np.testing.assert_array_equal(read_seg(tmp_path / "fetched.dcm", like=like).label_map, labels)
