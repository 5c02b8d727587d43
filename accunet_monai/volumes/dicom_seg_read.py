"""DICOM SEG back to label maps: ours and those of others (dcmqi, highdicom, viewers)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_seg_frames import SegFrames, parse_seg
from accunet_monai.volumes.dicom_seg_verify import match_planes
from accunet_monai.volumes.dicom_source_planes import SAME_PLANE_MM, plane_tolerance_mm, planes_lps
from accunet_monai.volumes.geometry import FloatArray, lps_from_ras
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.volume import Volume

MAX_LABEL_MAP_BYTES = 1 << 34
"""Largest label map that is put together, 16 GiB: a lying position must not fill the memory."""

ON_GRID_SHARE = 0.01
"""How far a plane may lie from its place on a regular grid, as a share of the spacing."""

UNKNOWN_CODE = ("", "", "")


@dataclass(frozen=True)
class SegSegment:
    """A segment as the object describes it.

    Args:
        number: SegmentNumber, the value in the label map.
        name: SegmentLabel.
        category, type, modifier: code value, coding scheme and meaning; three empty texts if missing.
        algorithm: SegmentAlgorithmName, may be empty.
    """

    number: int
    name: str
    category: tuple[str, str, str]
    type: tuple[str, str, str]
    modifier: tuple[str, str, str]
    algorithm: str


@dataclass(frozen=True, eq=False)
class DicomSeg:
    """What a SEG object holds.

    Args:
        label_map: (X, Y, N) unsigned integers: segment numbers, 0 where there is none. Of a ``FRACTIONAL`` object the
            segment of the largest fraction where that is at least one half.
        affines_ras: (N, 4, 4): for each plane pixel (i, j, 0) → RAS mm, the third column being the unit normal.
        fractions: (X, Y, N, S) float32 of 0 to 1 of a ``FRACTIONAL`` object, else None.
        segments: S segments, without the background.
        encoding: ``BINARY``, ``FRACTIONAL`` or ``LABELMAP``.
        study_uid, series_uid, sop_class_uid, sop_instance_uid, frame_of_reference_uid: of the object.
        source_series_uid, source_instances: UIDs of the series and images it refers to.
    """

    label_map: npt.NDArray[Any]
    affines_ras: FloatArray
    fractions: npt.NDArray[np.float32] | None
    segments: tuple[SegSegment, ...]
    encoding: str
    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    frame_of_reference_uid: str
    source_series_uid: str
    source_instances: tuple[str, ...]

    def volume(self) -> Volume:
        """The label map as a volume.

        Raises:
            SeriesError: ``GEOM_NONUNIFORM`` or ``GEOM_TILT`` when its planes are no regular grid.
        """
        affine, count = self.affines_ras[0].copy(), len(self.affines_ras)
        if count > 1:
            affine[:3, 2] = (self.affines_ras[-1, :3, 3] - affine[:3, 3]) / (count - 1)
            places = affine[:3, 3] + np.arange(count)[:, None] * affine[:3, 2]
            off = float(np.linalg.norm(places - self.affines_ras[:, :3, 3], axis=1).max())
            if off > plane_tolerance_mm(self.affines_ras):
                raise self._irregular("GEOM_NONUNIFORM", f"a plane lies {off:.4g} mm off an even spacing.")
            sideways = np.abs(affine[:3, :2].T @ affine[:3, 2]) / np.linalg.norm(affine[:3, :2], axis=0) * (count - 1)
            if sideways.max() > plane_tolerance_mm(self.affines_ras):
                raise self._irregular("GEOM_TILT", f"the planes lie {sideways.max():.4g} mm sideways of one another.")
        return Volume(self.label_map, affine, {"format": "DICOM SEG"})

    def _irregular(self, code: str, message: str) -> SeriesError:
        return SeriesError(
            code,
            message,
            hint="Use label_map and affines_ras.",
            series_uid=self.series_uid,
            instances=[self.sop_instance_uid],
        )


def read_seg(
    path: str | os.PathLike[str],
    *,
    like: Volume | PlaneStack | None = None,
    segment_numbers: Sequence[int] | None = None,
) -> DicomSeg:
    """Reads a SEG object.

    Args:
        path: the file.
        like: the image whose planes the label map shall have, also where the object has no frame. Without it the
            label map has the object's own planes, in order along the slice normal (row × column direction); where
            they lie on an even grid, empty planes between them are filled in.
        segment_numbers: which segments to read; all by default.

    Raises:
        SeriesError: ``SEG_OVERLAP`` when two segments share a pixel, ``SEG_MISPLACED`` when a frame lies on no plane
            of ``like``, ``SEG_ORIENTATION`` when frames are not parallel, ``SEG_SEGMENT`` when a segment is asked for
            that is not there, and all of :func:`parse_seg`.
    """
    frames = parse_seg(path)
    segments = _segments(frames)
    if segment_numbers is not None:
        _check_asked(frames, segments, segment_numbers)
        segments = tuple(segment for segment in segments if segment.number in segment_numbers)
    affines = planes_lps(like) if like is not None else _own_planes(frames)
    planes = match_planes(frames, affines, frames.shape if like is None else like.array.shape)
    label_map, fractions = _assembled(frames, segments, planes, len(affines))
    series = frames.ds.get("ReferencedSeriesSequence") or [Dataset()]
    return DicomSeg(
        label_map=label_map,
        affines_ras=np.array([lps_from_ras(affine) for affine in affines]),
        fractions=fractions,
        segments=segments,
        encoding=frames.encoding,
        study_uid=str(frames.ds.get("StudyInstanceUID") or ""),
        series_uid=str(frames.ds.get("SeriesInstanceUID") or ""),
        sop_class_uid=str(frames.ds.SOPClassUID),
        sop_instance_uid=str(frames.ds.get("SOPInstanceUID") or ""),
        frame_of_reference_uid=str(frames.ds.get("FrameOfReferenceUID") or ""),
        source_series_uid=str(series[0].get("SeriesInstanceUID") or ""),
        source_instances=tuple(
            str(item.get("ReferencedSOPInstanceUID")) for item in series[0].get("ReferencedInstanceSequence") or ()
        ),
    )


def _segments(frames: SegFrames) -> tuple[SegSegment, ...]:
    try:
        items = [
            item for item in frames.ds.SegmentSequence if int(item.SegmentNumber) > 0
        ]  # 0: a label map's background
        return tuple(_segment(item) for item in items)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise SeriesError("SEG_INVALID", f"a segment is not described ({error}).", path=frames.name) from error


def _segment(item: Dataset) -> SegSegment:
    types = item.get("SegmentedPropertyTypeCodeSequence")
    return SegSegment(
        number=int(item.SegmentNumber),
        name=str(item.get("SegmentLabel") or ""),
        category=_code(item.get("SegmentedPropertyCategoryCodeSequence")),
        type=_code(types),
        modifier=_code(types[0].get("SegmentedPropertyTypeModifierCodeSequence") if types else None),
        algorithm=str(item.get("SegmentAlgorithmName") or ""),
    )


def _code(sequence: Sequence[Dataset] | None) -> tuple[str, str, str]:
    if not sequence:
        return UNKNOWN_CODE
    item = sequence[0]
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    return str(value), str(item.get("CodingSchemeDesignator") or ""), str(item.get("CodeMeaning") or "")


def _check_asked(frames: SegFrames, segments: Sequence[SegSegment], asked: Sequence[int]) -> None:
    known = [segment.number for segment in segments]
    if missing := sorted(set(asked) - set(known)):
        raise SeriesError("SEG_SEGMENT", f"there are segments {known}, not {missing}.", path=frames.name)


def _own_planes(frames: SegFrames) -> FloatArray:
    """(N, 4, 4) LPS: one plane for each place that has a frame, and those missing on an even grid."""
    first = frames.affines_lps[0]
    if not np.allclose(frames.affines_lps[:, :3, :3], first[:3, :3], rtol=0, atol=1e-4):
        raise SeriesError(
            "SEG_ORIENTATION", "the frames are not parallel or not of one pixel spacing.", path=frames.name
        )
    depths = frames.affines_lps[:, :3, 3] @ first[:3, 2]
    order = np.argsort(depths, kind="stable")
    new = np.concatenate([[True], np.diff(depths[order]) > SAME_PLANE_MM])
    planes: FloatArray = frames.affines_lps[order[new]]
    steps = _steps(frames, depths[order[new]])
    if steps is None:
        return planes
    count = int(steps[-1]) + 1
    if count * frames.shape[0] * frames.shape[1] > MAX_LABEL_MAP_BYTES:
        raise SeriesError("PIXEL_TOO_LARGE", f"the planes span {count} slices.", path=frames.name)
    filled: FloatArray = np.repeat(first[None], count, axis=0)
    for axis in range(3):
        filled[:, axis, 3] = np.interp(np.arange(count), steps, planes[:, axis, 3])
    return filled


def _steps(frames: SegFrames, depths: FloatArray) -> npt.NDArray[np.int64] | None:
    """Each plane's index on an even grid, None where there is no such grid."""
    if len(depths) < 2:
        return np.zeros(1, dtype=np.int64)
    measures = frames.ds.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence") or [Dataset()]
    said = measures[0].get("SpacingBetweenSlices")
    for spacing in (float(said) if said else 0.0, float(np.diff(depths).min())):
        if spacing <= 0:
            continue
        indices = (depths - depths[0]) / spacing
        if np.abs(indices - np.rint(indices)).max() <= ON_GRID_SHARE:
            steps: npt.NDArray[np.int64] = np.rint(indices).astype(np.int64)
            return steps
    return None


def _assembled(
    frames: SegFrames, segments: Sequence[SegSegment], planes: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    """(X, Y, N) labels and, of a FRACTIONAL object, (X, Y, N, S) fractions."""
    (columns, rows), place = frames.shape, {segment.number: index for index, segment in enumerate(segments)}
    dtype = np.uint8 if max(place, default=0) <= 255 else np.uint16
    channels = len(place) if frames.encoding == "FRACTIONAL" else 0
    if count * rows * columns * max(1, 4 * channels) > MAX_LABEL_MAP_BYTES:
        raise SeriesError("PIXEL_TOO_LARGE", f"{count} planes of {columns}×{rows} pixels.", path=frames.name)
    labels = np.zeros((count, rows, columns), dtype)
    fractions = np.zeros((channels, count, rows, columns), np.float32)
    for index, (plane, number) in enumerate(zip(planes, frames.segment_numbers.tolist(), strict=True)):
        if number and number not in place:
            continue
        pixels = frames.pixels(index)
        if frames.encoding == "FRACTIONAL":
            fractions[place[number], plane] = pixels / np.float32(frames.maximum)
        elif frames.encoding == "LABELMAP":
            labels[plane] = np.where(np.isin(pixels, list(place)), pixels, 0)
        else:
            mask = pixels != 0
            if labels[plane][mask].any():
                raise SeriesError(
                    "SEG_OVERLAP",
                    f"frame {index + 1} of segment {number} overlaps another segment.",
                    path=frames.name,
                    hint="Read one segment at a time with segment_numbers.",
                )
            labels[plane][mask] = number
    if not channels:
        return labels.transpose(2, 1, 0), None
    numbers = np.array(list(place), dtype)
    labels = np.where(fractions.max(axis=0) >= 0.5, numbers[fractions.argmax(axis=0)], 0).astype(dtype)
    return labels.transpose(2, 1, 0), fractions.transpose(3, 2, 1, 0)
