"""What is to be segmented: files of a folder and DICOM series below it, with names and digests of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from accunet_monai.batch.report import BatchReport
from accunet_monai.bundle import Predictor, find_images
from accunet_monai.errors import BundleError, SeriesError
from accunet_monai.volumes import VOLUME_ENDINGS, Series, channel_files, find_series, first_channels, is_dicom
from accunet_monai.volumes.metaimage import ITK_ENDINGS, itk_files

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")

DAMAGED = ("DICOM_UNREADABLE", "PIXEL_TOO_LARGE", "FILE_MISSING")
"""Codes of skipped DICOM files that are reported as failures: each might have been a slice of one of the series."""

NO_GRID = ("GEOM_MISSING_SLICE", "GEOM_NONUNIFORM", "GEOM_TILT")
"""Codes of series whose planes are whole but make no regular grid."""

Source = Path | Series


def find_sources(path: Path, predictor: Predictor, report: BatchReport, *, planes: bool = False) -> Sequence[Source]:
    """What is to be segmented; series that cannot be and damaged files go into the report.

    Args:
        path: a file, folder or DICOMDIR.
        predictor: says whether pictures or volumes are looked for.
        report: takes what failed.
        planes: also take series that are stacks of planes but no grid (:data:`NO_GRID`).

    Raises:
        BundleError: ``INPUT_MISSING`` or ``INPUT_EMPTY``.
    """
    if predictor.takes_pictures:
        return find_images(path, PICTURE_ENDINGS)
    if not is_dicom(path) or (path / "imagesTr").is_dir():
        return _images(path, predictor)
    found = find_series(path)
    for skipped in found.skipped:
        if skipped.code in DAMAGED and not skipped.path.name.lower().endswith(VOLUME_ENDINGS):
            report.failed[skipped.path] = SeriesError(skipped.code, skipped.reason, path=skipped.path)
    readable: list[Series] = []
    for series in found:
        if series.problem is None or (planes and series.problem.code in NO_GRID):
            readable.append(series)
        else:
            report.failed[series] = series.problem
    try:
        files = _images(path, predictor) if path.is_dir() else []
    except BundleError:  # a folder of DICOM alone
        files = []
    if not files and not readable and not report.failed:
        reason = f"; the first of {len(found.skipped)} files: {found.skipped[0].reason}" if found.skipped else ""
        raise BundleError("INPUT_EMPTY", f"there is no image or series to segment{reason}.", path=path)
    return [*files, *readable]


def _images(path: Path, predictor: Predictor) -> list[Path]:
    found = find_images(path, VOLUME_ENDINGS)
    return found if predictor.channels == 1 else first_channels(found)


def source_key(source: Source) -> str:
    """By what a source is told from others of equal content: a file's name; series are told apart by their content."""
    return source.name if isinstance(source, Path) else ""


def content_digest(source: Source, channels: int = 1) -> str:
    """SHA-256 of the bytes of a source's files, wherever they lie; of a series also which part of it is meant.

    Args:
        source: an image of so many channels.
        channels: that an image has.

    Raises:
        VolumeError: for a header that names no readable file of voxels.
        OSError: a file cannot be read.
    """
    if isinstance(source, Path):
        is_itk = source.name.lower().endswith(ITK_ENDINGS)
        return _digest(itk_files(source) if is_itk else channel_files(source, channels), "")
    files = sorted({frame.instance.path for frame in source.frames})
    frames = sorted([frame.instance.sop_instance_uid, str(frame.frame_number)] for frame in source.frames)
    return _digest(files, json.dumps([dict(source.split), frames], sort_keys=True))


def _digest(files: Iterable[Path], further: str) -> str:
    """Independent of the files' names and order."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join([*sorted(digests), further]).encode()).hexdigest()
