"""Refusals of DICOM series: each code with the way out, so that no message is without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accunet_monai.errors import SeriesError

if TYPE_CHECKING:
    from accunet_monai.volumes.dicom_frames import Frame

_AGAIN = "Fetch the series again from its source."
_PLANES = "read_planes takes it plane by plane; irregular='resample' interpolates a regular grid."
_GEOMETRY = "The place of the images is unknown; export them again with their geometry."
_HINTS = {
    "DICOM_UNREADABLE": "Copy the file again; a series taken from find_series leaves it out.",
    "FILE_MISSING": "Check the path.",
    "GEOM_DUPLICATE": "Remove the images that do not belong, or send the repetitions as series of their own.",
    "GEOM_FRAME_OF_REFERENCE": "Read the images of each frame of reference by themselves.",
    "GEOM_MISSING_SLICE": f"{_AGAIN} {_PLANES}",
    "GEOM_MOSAIC": "Export it as single slices or as Enhanced MR.",
    "GEOM_NONUNIFORM": _PLANES,
    "GEOM_NO_ORIENTATION": _GEOMETRY,
    "GEOM_NO_POSITION": _GEOMETRY,
    "GEOM_NO_SPACING": _GEOMETRY,
    "GEOM_ORIENTATION": "Remove the images that do not belong, or correct their orientation.",
    "GEOM_SHAPE": "Remove the images that do not belong.",
    "GEOM_SINGLE_SLICE": "read_planes takes it as a plane.",
    "GEOM_SPACING": "Remove the images that do not belong.",
    "GEOM_TILT": _PLANES,
    "NOT_DICOM": "Name a DICOM file or a folder that holds some.",
    "PIXEL_DECODE": _AGAIN,
    "PIXEL_MISSING": _AGAIN,
    "PIXEL_RESCALE": "Values in modality units cannot be had; export the series again with slope and intercept.",
    "PIXEL_SIZE": _AGAIN,
    "PIXEL_SYNTAX": "Convert it to an uncompressed transfer syntax.",
    "PIXEL_TOO_LARGE": "Raise max_bytes if it is meant.",
    "PIXEL_TRUNCATED": _AGAIN,
    "PIXEL_TYPE": "Choose the series of original grey-scale images.",
    "SERIES_AMBIGUOUS": "Name one by series_uid, or take one from find_series.",
    "SERIES_MIXED_TYPES": "Separate the images by what they measure.",
    "SERIES_NONE": "Name a file or folder with CT, MR or PET images.",
    "SERIES_NOT_IMAGE": "Name a file or folder with CT, MR or PET images.",
}


def refusal(code: str, message: str, frames: Sequence[Frame]) -> SeriesError:
    """The error that names the series and these frames of it."""
    first = frames[0].instance
    files = {frame.instance.path for frame in frames}
    return SeriesError(
        code,
        f"{message}.",
        path=first.path if len(files) == 1 else first.path.parent,
        hint=_HINTS[code],
        series_uid=first.series_uid or None,
        instances=list(dict.fromkeys(frame.instance.sop_instance_uid or frame.instance.path.name for frame in frames)),
    )


def refusal_of(code: str, message: str, path: Path, instances: Sequence[str] = ()) -> SeriesError:
    """The error that names a file or folder."""
    return SeriesError(code, f"{message}.", path=path, hint=_HINTS[code], instances=instances)
