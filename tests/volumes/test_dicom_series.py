"""Facts about the series reader beyond the trap corpus: places, choosing, resampling, bounds, what is found."""

from __future__ import annotations

import os
import pickle
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from accunet_monai.errors import SeriesError
from accunet_monai.volumes import DicomSource, find_series, read_planes, read_series
from tests.corpus.classic import classic
from tests.corpus.encoding import named, to_bytes
from tests.corpus.phantom import Stack, phantom
from tests.volumes import made_series

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(folder: Path, *stacks: Stack, modality: str = "MR", series: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n, stack in enumerate(stacks):
        name = series[n] if series else "series"
        for file, content in named([to_bytes(ds) for ds in classic(stack, modality, series=name)]).items():
            (folder / f"{n}-{file}").write_bytes(content)
    return folder


def smooth(stack: Stack) -> Stack:
    """Values that are a linear function of the place, which linear interpolation gives back exactly."""
    rows, columns = stack.values.shape[1:]
    j, i = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    places = (
        stack.positions[:, None, None]
        + i[..., None] * stack.spacing[1] * np.array(stack.row)
        + j[..., None] * stack.spacing[0] * np.array(stack.column)
    )
    return replace(stack, values=np.rint(800 + places @ [1.0, -2.0, 3.0]))


@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    depths=st.lists(st.integers(1, 7), min_size=1, max_size=5).map(lambda gaps: len(gaps) + 1),
    step=st.floats(0.3, 9.0),
    spacing=st.tuples(st.floats(0.2, 4.0), st.floats(0.2, 4.0)),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    enhanced=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_pixel_lies_where_the_standard_says(
    angles: tuple[float, float, float],
    depths: int,
    step: float,
    spacing: tuple[float, float],
    origin: tuple[float, float, float],
    enhanced: bool,
) -> None:
    """PS3.3 C.7.6.2.1.1: position + i · spacing along a row + j · spacing along a column, for every corner."""
    rotation = made_series.rotation(*angles)
    geometry = made_series.stack(rotation, np.arange(depths) * step, origin=origin, spacing=spacing)
    with TemporaryDirectory() as folder:
        made_series.write(Path(folder), geometry, "MR", enhanced=enhanced)
        volume = read_series(folder)
    columns, rows = geometry.shape
    for k, place in enumerate(geometry.origins):
        for i, j in ((0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)):
            lps = place + i * spacing[0] * rotation[:, 0] + j * spacing[1] * rotation[:, 1]
            found = LPS_RAS @ volume.affine_ras @ [i, j, k, 1]
            np.testing.assert_allclose(found[:3], lps, atol=1e-3)
            assert volume.array[i, j, k] == k * rows * columns + j * columns + i


def test_provenance_names_each_slice_in_order(tmp_path: Path) -> None:
    geometry = made_series.axial()
    made = made_series.write(tmp_path / "in", geometry)
    volume = read_series(tmp_path / "in")
    source: DicomSource = volume.provenance["dicom"]
    assert source == made
    assert volume.provenance["path"] == str(tmp_path / "in")
    assert pickle.loads(pickle.dumps(volume)).provenance["dicom"] == made
    assert read_planes(tmp_path / "in").provenance["dicom"] == made


def test_enhanced_slices_know_their_frame_numbers(tmp_path: Path) -> None:
    made_series.write(tmp_path, made_series.axial(), "MR", enhanced=True)
    volume = read_series(tmp_path / "enhanced")
    assert [frame.frame_number for frame in volume.provenance["dicom"].frames] == [6, 5, 4, 3, 2, 1]
    assert volume.provenance["path"] == str(tmp_path / "enhanced")


def test_series_is_chosen_by_its_uid(tmp_path: Path) -> None:
    first, second = phantom(lowest=0), phantom(lowest=0, seed=1)
    folder = save(tmp_path, first, second, series=("one", "two"))
    found = find_series(folder)
    with pytest.raises(SeriesError, match="2 series or parts") as refusal:
        read_series(folder)
    assert refusal.value.hint == "Name one by series_uid, or take one from find_series."
    read = [read_series(folder, series_uid=series.series_uid).array for series in found]
    for array, stack in zip(read, (first, second), strict=True):
        np.testing.assert_array_equal(array, stack.values.T)
    with pytest.raises(SeriesError, match=r"SERIES_NONE.*there is no series 1\.2\.3"):
        read_series(folder, series_uid="1.2.3")


def test_localizer_of_a_named_series_is_left_aside(tmp_path: Path) -> None:
    volume, scout = phantom(lowest=0), phantom("coronal-LI", slices=1, lowest=0)
    save(tmp_path, volume, scout)
    path = next(tmp_path.glob("1-*"))
    ds = pydicom.dcmread(path)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ds.save_as(path)
    parts = find_series(tmp_path)
    assert [dict(part.split) for part in parts] == [{"Localizer": "no"}, {"Localizer": "yes"}]
    with pytest.raises(SeriesError, match="SERIES_AMBIGUOUS"):
        read_series(tmp_path)
    assert read_series(tmp_path, series_uid=parts[0].series_uid).shape == (20, 16, 8)


def test_damaged_file_stops_the_folder_but_not_a_chosen_series(tmp_path: Path) -> None:
    folder = save(tmp_path, phantom(lowest=0))
    whole = (folder / "0-slice008.dcm").read_bytes()
    (folder / "0-slice008.dcm").write_bytes(whole[:300])
    with pytest.raises(SeriesError, match=r"DICOM_UNREADABLE.*1 damaged files may belong to the series") as refusal:
        read_series(folder)
    assert refusal.value.instances == ("0-slice008.dcm",)
    found = find_series(folder)
    assert [file.code for file in found.skipped] == ["DICOM_UNREADABLE"]
    assert read_series(found[0]).shape[2] == 7


def test_description_of_a_series_for_people(tmp_path: Path) -> None:
    (series,) = find_series(save(tmp_path, phantom(lowest=0)))
    assert series.describe() == f"MR · series 1 · 'SERIES' · 20×16×8 · {series.series_uid}"
    save(tmp_path, phantom(lowest=0).without(3))
    (tmp_path / "0-slice004.dcm").unlink()
    (gapped, *_) = find_series(tmp_path)
    assert gapped.describe().endswith("refused: GEOM_MISSING_SLICE")
    assert pickle.loads(pickle.dumps(gapped)).problem.instances == gapped.problem.instances  # type: ignore[union-attr]


def test_dicomdir_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    inside = save(tmp_path / "disc/images", phantom(lowest=0))
    outside = save(tmp_path / "other", phantom(lowest=0, seed=1), series=("other",))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MediaStorageDirectoryStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    records = [["images", file.name] for file in inside.iterdir()]
    records += [["..", "other", file.name] for file in outside.iterdir()] + [["images", "gone"]]
    ds.DirectoryRecordSequence = [pydicom.Dataset() for _ in records]
    with pydicom.config.disable_value_validation():
        for item, reference in zip(ds.DirectoryRecordSequence, records, strict=True):
            item.ReferencedFileID = reference
        ds.save_as(tmp_path / "disc/DICOMDIR", enforce_file_format=True)
    found = find_series(tmp_path / "disc/DICOMDIR")
    assert [len(series.frames) for series in found] == [8]
    assert Counter(file.code for file in found.skipped) == {"FILE_OUTSIDE": 8, "FILE_MISSING": 1}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.timeout(30)
def test_a_pipe_among_the_files_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(save(tmp_path, phantom(lowest=0)) / "pipe")
    assert read_series(tmp_path).shape == (20, 16, 8)


def test_what_is_no_series(tmp_path: Path) -> None:
    with pytest.raises(SeriesError, match="FILE_MISSING"):
        find_series(tmp_path / "nowhere")
    with pytest.raises(SeriesError, match=r"SERIES_NONE.*there are none"):
        read_series(tmp_path)
    (tmp_path / "note.txt").write_text("no DICOM")
    with pytest.raises(SeriesError, match=r"NOT_DICOM"):
        read_series(tmp_path / "note.txt")
    assert [(file.path.name, file.code) for file in find_series(tmp_path).skipped] == [("note.txt", "NOT_DICOM")]


def test_limit_is_checked_before_anything_is_allocated(tmp_path: Path) -> None:
    folder = save(tmp_path, phantom(lowest=0))
    size = 20 * 16 * 8 * 4
    assert read_series(folder, max_bytes=size).array.nbytes == size
    for read in (read_series, read_planes):
        with pytest.raises(SeriesError, match=f"PIXEL_TOO_LARGE.*take {size} bytes, allowed are {size - 1}"):
            read(folder, max_bytes=size - 1)


def test_memory_stays_near_the_array(tmp_path: Path) -> None:
    """At most 2.2 times the array, whose own memory is mapped and not traced."""
    stack = phantom(lowest=0)
    folder = save(tmp_path, stack)
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.Rows = ds.Columns = 512
        ds.PixelData = bytes(512 * 512 * 2)
        ds.save_as(path)
    read_series(folder)
    tracemalloc.start()
    volume = read_series(folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert volume.array.nbytes == 8 << 20
    assert peak + volume.array.nbytes <= 2.2 * volume.array.nbytes


@pytest.mark.parametrize("orientation", ["axial-LP", "coronal-LI", "double-oblique"])
@pytest.mark.parametrize(
    "irregularity", [{"tilt": 0.25}, {"lost": (2, 5)}, {"uneven": 0.4}, {"tilt": -0.1, "lost": (3,)}], ids=str
)
def test_resampling_gives_back_a_linear_function(
    orientation: str, irregularity: dict[str, object], tmp_path: Path
) -> None:
    """A linear function of the place survives linear interpolation, wherever all neighbours are inside."""
    stack = phantom(orientation, lowest=0, slices=9, rows=24, columns=20)
    places = np.arange(9.0)
    positions = stack.positions + np.outer(places, np.array(stack.column) * irregularity.get("tilt", 0.0) * 2)
    positions[4] += irregularity.get("uneven", 0.0) * np.array(stack.normal)
    stack = smooth(replace(stack, positions=positions))
    for k in sorted(irregularity.get("lost", ()), reverse=True):  # type: ignore[arg-type,call-overload]
        stack = stack.without(k)
    folder = save(tmp_path, stack)
    with pytest.raises(SeriesError, match="GEOM_"):
        read_series(folder)
    volume = read_series(folder, irregular="resample")
    axes = volume.affine_ras[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.square(volume.spacing)), atol=1e-4)
    i, j, k = np.meshgrid(*[np.arange(size) for size in volume.shape], indexing="ij")
    lps = np.einsum("ab,bxyz->axyz", LPS_RAS @ volume.affine_ras, np.stack([i, j, k, 1.0 + 0 * i]))[:3]
    expected = 800 + np.einsum("a,axyz->xyz", [1.0, -2.0, 3.0], lps)
    inner = (slice(5, -5), slice(9, -9))
    assert np.abs(volume.array[inner] - expected[inner]).max() <= 0.51  # stored values are rounded to whole numbers
    assert volume.provenance["dicom"].notes == ("resampled by linear interpolation to an even grid at right angles",)


def test_regular_series_is_not_resampled(tmp_path: Path) -> None:
    folder = save(tmp_path, phantom("double-oblique", lowest=0))
    asked, plain = read_series(folder, irregular="resample"), read_series(folder)
    np.testing.assert_array_equal(asked.array, plain.array)
    np.testing.assert_array_equal(asked.affine_ras, plain.affine_ras)
    assert not asked.provenance["dicom"].resampled


def test_same_files_twice_are_read_once(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", phantom(lowest=0))
    plain = read_series(folder)
    shutil.copytree(folder, tmp_path / "b")
    volume = read_series(tmp_path)
    np.testing.assert_array_equal(volume.array, plain.array)
    notes = volume.provenance["dicom"].notes
    assert len(notes) == 8
    assert all(note.endswith("dropped") for note in notes)
