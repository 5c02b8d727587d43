"""Judges a finished DICOM SEG: every frame is decoded again and compared, in world coordinates, with what was meant.

A mask that is mirrored, shifted, incomplete or points at the wrong source image never leaves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_seg_frames import SegFrames, parse_seg
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY, DicomSource
from accunet_monai.volumes.dicom_source_planes import corners_mm, plane_tolerance_mm, planes_lps
from accunet_monai.volumes.geometry import FloatArray
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.volume import Volume


def verify_seg(
    content: bytes | str | os.PathLike[str], label_map: npt.NDArray[Any], like: Volume | PlaneStack
) -> SegFrames:
    """Compares a SEG object with the label map that it should hold.

    Args:
        content: the object's bytes or file.
        label_map: (X, Y, Z) integers, or (X, Y, Z, S) fractions of 0 to 1, on the grid of ``like``.
        like: the image, read from the object's source series.

    Returns:
        The parsed object.

    Raises:
        SeriesError: ``SEG_MISPLACED`` (a frame lies where no plane of the image lies), ``SEG_WRONG_PIXELS`` (mirrored,
            shifted or exchanged masks), ``SEG_INCOMPLETE`` (a mask is missing or there twice), ``SEG_WRONG_SOURCE``
            (frame of reference or source image are others), and all of reading.
    """
    frames = parse_seg(content)
    planes = match_planes(frames, planes_lps(like), like.array.shape)
    stored = label_map.swapaxes(0, 2)
    _check_pixels(frames, planes, stored)
    _check_complete(frames, planes, stored)
    source = like.provenance.get(PROVENANCE_KEY)
    if isinstance(source, DicomSource):
        _check_sources(frames, planes, source)
    return frames


def match_planes(frames: SegFrames, affines: FloatArray, shape: Sequence[int]) -> npt.NDArray[np.int64]:
    """(F,) index k of the plane that each frame lies on.

    Args:
        frames: F frames.
        affines: (N, 4, 4) planes in LPS mm, see :func:`planes_lps`.
        shape: columns X and rows Y of the planes (more axes are ignored).

    Raises:
        SeriesError: ``SEG_MISPLACED``.
    """
    if frames.shape != tuple(shape[:2]):
        raise _error(frames, "SEG_MISPLACED", f"the frames have {frames.shape} pixels, the planes {tuple(shape[:2])}.")
    meant, found = corners_mm(affines, shape), corners_mm(frames.affines_lps, shape)
    nearest = np.array([int(((meant[:, 0] - origin) ** 2).sum(axis=1).argmin()) for origin in found[:, 0]])
    shifts = np.linalg.norm(found - meant[nearest], axis=-1).max(axis=1)
    worst = int(shifts.argmax())
    if not shifts[worst] <= plane_tolerance_mm(affines):
        raise _error(
            frames,
            "SEG_MISPLACED",
            f"frame {worst + 1} lies {shifts[worst]:.4g} mm away from every plane of the image.",
        )
    return nearest


def _check_pixels(frames: SegFrames, planes: npt.NDArray[np.int64], stored: npt.NDArray[Any]) -> None:
    for index, (plane, number) in enumerate(zip(planes, frames.segment_numbers, strict=True)):
        if not np.array_equal(frames.pixels(index), _meant(frames, stored[plane], int(number))):
            what = f"segment {number}" if number else "all segments"
            raise _error(
                frames,
                "SEG_WRONG_PIXELS",
                f"frame {index + 1} ({what}) is not what plane {plane} of the label map holds.",
            )


def _meant(frames: SegFrames, plane: npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
    """(Y, X) stored values of one segment on one plane."""
    if plane.ndim == 3:
        return np.around(plane[..., number - 1] * float(frames.maximum)).astype(np.uint8)
    if frames.encoding == "LABELMAP":
        return plane
    mask: npt.NDArray[np.bool_] = plane == number
    return mask.view(np.uint8) if frames.encoding == "BINARY" else mask * np.uint8(frames.maximum)


def _check_complete(frames: SegFrames, planes: npt.NDArray[np.int64], stored: npt.NDArray[Any]) -> None:
    pairs = set(zip(planes.tolist(), frames.segment_numbers.tolist(), strict=True))
    if len(pairs) != len(frames):
        raise _error(frames, "SEG_INCOMPLETE", "two frames show the same segment on the same plane.")
    numbers = [0] if frames.encoding == "LABELMAP" else [int(item.SegmentNumber) for item in frames.ds.SegmentSequence]
    for k, plane in enumerate(stored):
        missing = [number for number in numbers if (k, number) not in pairs]
        if missing and plane.any() and any(number == 0 or _meant(frames, plane, number).any() for number in missing):
            raise _error(frames, "SEG_INCOMPLETE", f"plane {k} of the label map is not in the object (of {missing}).")


def _check_sources(frames: SegFrames, planes: npt.NDArray[np.int64], source: DicomSource) -> None:
    if str(frames.ds.get("FrameOfReferenceUID")) != source.frame_of_reference_uid:
        raise _error(frames, "SEG_WRONG_SOURCE", f"the frame of reference is not {source.frame_of_reference_uid}.")
    if not any(frames.sources):  # on another grid than its source's a frame has no image of its own
        return
    for index, plane in enumerate(planes):
        image = source.frames[int(plane)]
        if frames.sources[index] != ((image.sop_instance_uid, image.frame_number),):
            raise _error(
                frames, "SEG_WRONG_SOURCE", f"frame {index + 1} names {frames.sources[index]}, not {image.path.name}."
            )


def _error(frames: SegFrames, code: str, message: str) -> SeriesError:
    return SeriesError(
        code,
        message,
        path=frames.name,
        hint="The object must not be used." if code != "SEG_MISPLACED" else None,
        series_uid=str(frames.ds.get("SeriesInstanceUID")),
        instances=[str(frames.ds.get("SOPInstanceUID"))],
    )
