"""The reader on real DICOM of many vendors: voxels and placement as another tool's NIfTI, or refused as expected.

``ref/`` holds what dcm2niix or dicom2nifti made of the same files. What is known to differ:

- ``ct_philips_gantry_tilt_neg``: dcm2niix writes a wrong affine for the raw tilted stack, so voxels are compared with
  it and the places with the DICOM positions.
- Philips' ``upstream_*``: private "precise" scaling, another linear factor; the ``dcm2niix_plain_*`` use DICOM's slope.
- ``d2n_*``: noise with real headers: right for voxel by voxel comparison.
- Pixel padding becomes -1024 HU, so no CT with padding is compared with a tool that leaves it as it is.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from accunet_monai.errors import SeriesError
from accunet_monai.volumes import Volume, find_series, read_planes, read_series
from accunet_monai.volumes.geometry import lps_from_ras

AFFINE_MM = 1e-4
"""The references are float32 headers: off by up to 3e-5 in positions of 500 mm."""

VALUE = 1e-4
VALUE_RELATIVE = 2e-7
"""Scaled values are float32 here, float64 in the reference: a relative rounding of 2**-23."""

Data = Callable[[str], Path]


@pytest.fixture
def data(test_data: Path, require: Callable[[str, object, str], None]) -> Data:
    def folder(name: str) -> Path:
        path = test_data / "dicom" / name
        require("data", path.exists(), f"no {path}")
        return path

    return folder


def assert_like(volume: Volume, reference: Path, time: int | None = None) -> None:
    image = nib.load(reference)
    expected = np.asarray(image.dataobj, dtype=np.float64)
    expected = expected[..., time or 0] if expected.ndim == 4 else expected
    turned = volume.reoriented(nib.aff2axcodes(image.affine))
    assert np.abs(turned.affine_ras - image.affine).max() <= AFFINE_MM
    np.testing.assert_allclose(turned.array, expected, rtol=VALUE_RELATIVE, atol=VALUE)


ONE_SERIES = {
    "ct_siemens_j2k_liver": "dcm2niix_s0",
    "d2n_compressed_j2k": "upstream_001_ground_truth",
    "d2n_compressed_jpeg": "upstream_001_ground_truth",
    "d2n_ge_implicit": "upstream_001_implicit_ground_truth",
    "d2n_philips_enhanced": "dcm2niix_s301",
    "d2n_siemens_uncompressed": "dcm2niix_s4",
    "d2n_two_slices": "dcm2niix_s4",
    "mr_siemens_fieldmap_sag": "upstream_2_gre_field_mapping_PMUlog",
    "mr_siemens_t1_sag_HFS": "dcm2niix_s3",
}


@pytest.mark.parametrize("name", ONE_SERIES)
def test_one_series_is_as_another_tool_reads_it(name: str, data: Data) -> None:
    folder = data(name)
    assert_like(read_series(folder / "dicom"), folder / "ref" / f"{ONE_SERIES[name]}.nii.gz")


def test_filled_in_uids_change_nothing_but_the_names(data: Data) -> None:
    volume = read_series(data("ct_siemens_liver_uids") / "dicom")
    assert_like(volume, data("ct_siemens_j2k_liver") / "ref/dcm2niix_s0.nii.gz")
    source = volume.provenance["dicom"]
    assert source.units == "HU"
    assert source.transfer_syntaxes == ("1.2.840.10008.1.2.4.90",)
    heights = [float(pydicom.dcmread(f.path, specific_tags=["SliceLocation"]).SliceLocation) for f in source.frames]
    assert heights == sorted(heights)
    assert len({frame.sop_instance_uid for frame in source.frames}) == 20


def test_emptied_uids_are_taken_from_the_file_meta_header(data: Data) -> None:
    volume = read_series(data("ct_siemens_j2k_liver") / "dicom")
    for frame in volume.provenance["dicom"].frames:
        meta = pydicom.dcmread(frame.path, stop_before_pixels=True).file_meta
        assert frame.sop_instance_uid == meta.MediaStorageSOPInstanceUID
        assert frame.sop_class_uid == "1.2.840.10008.5.1.4.1.1.2"


def test_tilted_stack_is_refused_as_a_grid_and_right_as_planes(data: Data) -> None:
    folder = data("ct_philips_gantry_tilt_neg")
    with pytest.raises(SeriesError) as refusal:
        read_series(folder / "dicom")
    assert refusal.value.code == "GEOM_TILT"
    assert "18.50°" in str(refusal.value)
    planes = read_planes(folder / "dicom")
    frames = planes.provenance["dicom"].frames
    positions = [pydicom.dcmread(frame.path, stop_before_pixels=True).ImagePositionPatient for frame in frames]
    np.testing.assert_allclose(planes.affines_ras[:, :3, 3], np.array(positions, float) * [-1, -1, 1], atol=1e-9)
    np.testing.assert_allclose(np.diff(planes.affines_ras[:, :3, 3], axis=0), [[0, 0, 2.5]] * 7, atol=1e-6)
    np.testing.assert_allclose(np.diff(planes.depths), 2.5 * np.cos(np.radians(18.5)), atol=1e-4)
    raw = np.asarray(nib.load(folder / "ref/dcm2niix_s201.nii.gz").dataobj)
    np.testing.assert_array_equal(planes.array, raw[:, ::-1, :])  # dcm2niix turns the rows


def test_resampled_tilt_agrees_with_the_planes_where_they_lie(data: Data) -> None:
    """Each plane is one of the grid's slices, moved within itself: values at the pixels' own places come back."""
    folder = data("ct_philips_gantry_tilt_neg") / "dicom"
    volume, planes = read_series(folder, irregular="resample"), read_planes(folder)
    assert volume.provenance["dicom"].resampled
    assert volume.shape[2] == 8
    to_grid = np.linalg.inv(volume.affine_ras)
    for k in range(8):
        i, j = np.meshgrid(np.arange(100, 400, 37), np.arange(100, 400, 41), indexing="ij")
        pixels = np.stack([i, j, 0 * i, 0 * i + 1]).reshape(4, -1)
        x, y, z, _ = to_grid @ planes.affines_ras[k] @ pixels
        np.testing.assert_allclose(z, k, atol=1e-3)
        np.testing.assert_allclose(x, np.rint(x), atol=1e-3)  # the tilt is about the rows
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.array[..., k].T))
        found = [image.EvaluateAtContinuousIndex([float(np.rint(a)), float(b)]) for a, b in zip(x, y, strict=True)]
        true = planes.array[i.ravel(), j.ravel(), k]
        assert np.corrcoef(found, true)[0, 1] > 0.99  # smoothed twice along the columns by up to half a pixel
        assert abs(np.mean(found) - np.mean(true)) < 5


def test_study_as_a_scanner_exports_it(data: Data) -> None:
    folder = data("ct_philips_study_mixed")
    found = find_series(folder / "dicom")
    assert Counter(file.code for file in found.skipped) == {"SERIES_NOT_IMAGE": 9}
    assert {file.path.name for file in found.skipped} >= {"DIRFILE"}
    assert [len(series.frames) for series in found] == [1, 10]
    with pytest.raises(SeriesError, match="SERIES_AMBIGUOUS"):
        read_series(folder / "dicom")
    volume = read_series(folder / "dicom", series_uid=found[1].series_uid)
    assert_like(volume, folder / "ref/dcm2niix_s201.nii.gz")


def test_missing_slice(data: Data) -> None:
    folder = data("d2n_ct_missing_slice") / "dicom"
    with pytest.raises(SeriesError) as refusal:
        read_series(folder)
    assert refusal.value.code == "GEOM_MISSING_SLICE"
    planes = read_planes(folder)
    np.testing.assert_allclose(sorted(np.diff(planes.depths)), [5, 5, 10], atol=1e-3)
    filled = read_series(folder, irregular="resample")
    np.testing.assert_allclose(filled.spacing[2], 5, atol=1e-3)
    k = int(np.argmax(np.diff(planes.depths)))
    np.testing.assert_array_equal(filled.array[..., : k + 1], planes.array[..., : k + 1])
    between = (planes.array[..., k].astype(float) + planes.array[..., k + 1]) / 2
    np.testing.assert_allclose(filled.array[..., k + 1], between, atol=1e-3)


def test_two_orientations_are_two_volumes(data: Data) -> None:
    folder = data("d2n_mr_two_orientations")
    with pytest.raises(SeriesError, match="SERIES_AMBIGUOUS"):
        read_series(folder / "dicom")
    volumes = {series.number: read_series(series) for series in find_series(folder / "dicom")}
    for number in (202, 501):
        header = json.loads((folder / f"ref/dcm2niix_s{number}.header.json").read_text())
        expected = np.array(header["affine"])
        turned = volumes[number].reoriented(nib.aff2axcodes(expected))
        assert list(turned.shape) == header["shape"]
        assert np.abs(turned.affine_ras - expected).max() <= AFFINE_MM


@pytest.mark.parametrize(
    ("name", "reference", "split"),
    [
        ("mr_ge_4d_fmri", "upstream_DCM2NIIX_regression_test_4", {"InstanceNumber": range(1, 151, 15)}),
        ("mr_philips_scaled_4d", "dcm2niix_plain_s201", {"TemporalPositionIdentifier": range(1, 4)}),
        ("mr_siemens_mosaic", "upstream_EPI_PE=AP_3", {"AcquisitionNumber": range(1, 3)}),
    ],
)
def test_time_points_are_volumes(name: str, reference: str, split: dict[str, range], data: Data) -> None:
    folder = data(name)
    found = find_series(folder / "dicom")
    ((key, values),) = split.items()
    assert [dict(series.split) for series in found] == [{key: str(value)} for value in values]
    for time, series in enumerate(found):
        assert series.problem is None
        assert_like(read_series(series), folder / f"ref/{reference}.nii.gz", time)


def test_mosaic_slices_are_tiles_of_one_instance(data: Data) -> None:
    volume = read_series(find_series(data("mr_siemens_mosaic") / "dicom")[0])
    assert volume.shape == (72, 72, 5)
    assert len({frame.sop_instance_uid for frame in volume.provenance["dicom"].frames}) == 1


def test_precise_philips_scaling_is_another_linear_factor(data: Data) -> None:
    folder = data("mr_philips_scaled_4d")
    ours = read_series(find_series(folder / "dicom")[0])
    precise = np.asarray(nib.load(folder / "ref/upstream_EPI_asc_CLEAR_201.nii.gz").dataobj)[..., 0]
    turned = ours.reoriented(nib.aff2axcodes(nib.load(folder / "ref/upstream_EPI_asc_CLEAR_201.nii.gz").affine))
    slope, intercept = np.polyfit(turned.array.ravel().astype(float), precise.ravel(), 1)
    np.testing.assert_allclose(turned.array * slope + intercept, precise, rtol=1e-5, atol=1e-5 * precise.max())


def test_enhanced_field_map_has_two_kinds_of_frames(data: Data) -> None:
    folder = data("mr_philips_enhanced_fieldmap")
    field, magnitude = find_series(folder / "dicom")
    assert dict(magnitude.split) == {"Component": "M"}
    assert_like(read_series(magnitude), folder / "ref/dcm2niix_plain_s801_e1.nii.gz")
    assert_like(read_series(field), folder / "ref/dcm2niix_plain_s801_e2_fieldmaphz.nii.gz")
    numbers = [frame.frame_number for frame in read_series(field).provenance["dicom"].frames]
    assert len(set(numbers)) == 32


def test_hippocampus_crops(data: Data) -> None:
    folder = data("mr_hippocrop")
    for study, reference in ((1, "s2913632465"), (3, "s2488760777")):
        volume = read_series(folder / f"dicom/Study{study}")
        assert volume.axcodes == ("L", "P", "S")
        assert_like(volume, folder / f"ref/dcm2niix_Study{study}_{reference}.nii.gz")


def test_flat_folder_of_many_things(data: Data) -> None:
    folder = data("mixed_flat")
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = find_series(folder / "dicom")
    images = Counter(row["series_uid"] for row in rows if row["modality"] in ("CT", "MR"))
    assert {series.series_uid: len(series.frames) for series in found} == images
    codes = {
        "not DICOM": "NOT_DICOM",
        "SR": "SERIES_NOT_IMAGE",
        "SEG": "SERIES_NOT_IMAGE",
        "RTPLAN": "SERIES_NOT_IMAGE",
    }
    expected = {row["file"]: codes[row["modality"]] for row in rows if row["modality"] in codes}
    assert {file.path.name: file.code for file in found.skipped} == expected
    with pytest.raises(SeriesError, match="SERIES_AMBIGUOUS"):
        read_series(folder / "dicom")
    uid = next(row["series_uid"] for row in rows if row["file"] == "06D6F772")
    reference = data("mr_siemens_fieldmap_sag") / "ref/upstream_2_gre_field_mapping_PMUlog.nii.gz"
    assert_like(read_series(folder / "dicom", series_uid=uid), reference)


def test_dicomdir_lists_what_the_tree_holds(data: Data) -> None:
    folder = data("dicomdir_tree") / "dicom"
    tree, listed = find_series(folder), find_series(folder / "DICOMDIR")
    assert sorted(s.series_uid for s in listed) == sorted(s.series_uid for s in tree)
    assert Counter(file.code for file in listed.skipped) == {"SERIES_NOT_IMAGE": 3, "FILE_MISSING": 7}
    problems = Counter(series.problem.code if series.problem else "" for series in tree)
    assert problems == {"": 4, "GEOM_MISSING_SLICE": 1, "GEOM_ORIENTATION": 3}
    brain = next(series for series in tree if series.modality == "CT")
    np.testing.assert_allclose(np.diff(read_planes(brain).depths), [202.5, 1.25, 1.25], atol=1e-6)


def test_same_ct_as_single_and_as_enhanced_frames(data: Data) -> None:
    folder = data("seg_dcmqi") / "24x38x3"
    single, enhanced = read_series(folder / "image"), read_series(folder / "mf.dcm")
    np.testing.assert_array_equal(single.array, enhanced.array)
    np.testing.assert_allclose(single.affine_ras, enhanced.affine_ras, atol=1e-9)
    label = SimpleITK.ReadImage(folder / "label.nrrd")
    assert label.GetSize() == single.shape
    np.testing.assert_allclose(label.GetOrigin(), lps_from_ras(single.affine_ras)[:3, 3], atol=AFFINE_MM)
    np.testing.assert_allclose(label.GetSpacing(), single.spacing, atol=AFFINE_MM)


def test_padding_becomes_air_and_nothing_else_changes(data: Data) -> None:
    folder = data("seg_dcmqi") / "ct-3slice"
    volume = read_series(folder)
    raw = [pydicom.dcmread(frame.path) for frame in volume.provenance["dicom"].frames]
    stored = np.stack([ds.pixel_array.T for ds in raw], axis=-1).astype(np.float32)
    padding = stored == raw[0].PixelPaddingValue
    assert padding.sum() == 167316
    np.testing.assert_array_equal(volume.array, np.where(padding, -1024, stored - 1024))
    assert volume.provenance["dicom"].notes == ("167316 padding pixels set to -1024",)


SINGLES = {
    "693_J2KR": "read",
    "693_UNCR": "read",
    "CT_small": "read",
    "MR2_UNCR": "read",
    "MR_small": "read",
    "MR_small_RLE": "read",
    "MR_small_implicit": "read",
    "MR_small_jp2klossless": "read",
    "MR_truncated": "PIXEL_TRUNCATED",
    "SC_rgb_rle": "SERIES_NOT_IMAGE",
    "SC_rgb_small_odd": "SERIES_NOT_IMAGE",
    "emri_small": "GEOM_NO_POSITION",
    "emri_small_jpeg_2k_lossless": "GEOM_NO_POSITION",
    "liver": "SERIES_NOT_IMAGE",
    "no_meta": "NOT_DICOM",  # the bare dataset starts with a stray blank
    "reportsi": "SERIES_NOT_IMAGE",
    "rtdose": "SERIES_NOT_IMAGE",
    "rtplan": "SERIES_NOT_IMAGE",
    "rtstruct": "SERIES_NOT_IMAGE",
    "waveform_ecg": "SERIES_NOT_IMAGE",
}


@pytest.mark.parametrize("name", SINGLES)
def test_single_objects(name: str, data: Data) -> None:
    path = data("singles_pydicom") / f"dicom/{name}.dcm"
    if SINGLES[name] != "read":
        with pytest.raises(SeriesError) as refusal:
            read_series(path)
        assert refusal.value.code == SINGLES[name]
        return
    volume = read_series(path)
    ds = pydicom.dcmread(path)
    stored = ds.pixel_array.T.astype(np.float64)
    expected = stored * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    if (padding := ds.get("PixelPaddingValue")) is not None:
        expected = np.where(stored == padding, -1024, expected)
    np.testing.assert_allclose(volume.array[..., 0], expected, rtol=VALUE_RELATIVE)


def test_transfer_syntaxes_of_one_image_give_the_same_values(data: Data) -> None:
    folder = data("singles_pydicom") / "dicom"
    plain = read_series(folder / "MR_small.dcm")
    for name in ("RLE", "implicit", "jp2klossless"):
        other = read_series(folder / f"MR_small_{name}.dcm")
        np.testing.assert_array_equal(other.array, plain.array)
    assert len({read_series(folder / f"693_{n}.dcm").array.tobytes() for n in ("UNCR", "J2KR")}) == 1


def test_two_decoding_processes_read_the_same(data: Data) -> None:
    folder = data("ct_siemens_liver_uids") / "dicom"
    np.testing.assert_array_equal(read_series(folder, workers=2).array, read_series(folder).array)


def test_copies_in_other_transfer_syntaxes_are_dropped_with_a_note(data: Data, tmp_path: Path) -> None:
    folder = data("singles_pydicom") / "dicom"
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (series,) = find_series(tmp_path)
    assert len(series.frames) == 1
    assert [note.split(" in ")[1] for note in series.notes] == [
        "MR_small_RLE.dcm repeats MR_small.dcm: dropped",
        "MR_small_jp2klossless.dcm repeats MR_small.dcm: dropped",
    ]
