"""Where each plane of a label map lies, and which image of its source series it belongs to.

What a reader said of a series is not taken on trust: every file is looked at again, and a plane counts as that of its
source image only where both lie alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM, format_number_as_ds

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY, DicomSource, SourceFrame
from accunet_monai.volumes.geometry import FloatArray, lps_from_ras
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.volume import Volume

SAME_PLANE_MM = 0.01
"""A plane of the label map is that of its source image when no corner is farther away than this: positions are written
with at least two decimals, and readers place a slice by its own position or by a fit through all."""

SAME_PLANE_SPACING = 0.02
"""The same as a share of the slice spacing, for series whose positions are rounded more coarsely than their spacing:
a grid was fitted to them with the tolerance of the reader, and the image's own position is the true one."""

_START_OF_FILE = 2048
"""Bytes of a file within which its meta header names the instance (PS3.10 section 7.1)."""

_STUDY_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True, eq=False)
class PlaneGeometry:
    """Values of the Image Plane module: position, orientation, spacing, in DICOM's order."""

    position: Sequence[Any]
    orientation: Sequence[Any]
    spacing: Sequence[Any]


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The series that a label map belongs to, plane by plane.

    Args:
        header: dataset of the first instance without pixels: patient, study, equipment.
        source: its provenance.
        planes: geometry of each plane k of the label map.
        size: columns X and rows Y of each plane.
        thickness: SliceThickness in mm, None if nothing says it.
        frames: the image of each plane k (of a mosaic's tiles the same); empty if the label map lies on another grid.
        same_pixels: whether pixel (i, j) of plane k is pixel (i, j) of ``frames[k]``.
    """

    header: Dataset
    source: DicomSource
    planes: tuple[PlaneGeometry, ...]
    size: tuple[int, int]
    thickness: float | None
    frames: tuple[SourceFrame, ...]
    same_pixels: bool
    instances: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        unique = dict.fromkeys((frame.sop_class_uid, frame.sop_instance_uid) for frame in self.source.frames)
        object.__setattr__(self, "instances", tuple(unique))

    @property
    def identity(self) -> list[Any]:
        """What tells this series, and this part of it, from others: goes into derived UIDs."""
        return [
            self.source.study_uid,
            self.source.series_uid,
            [[frame.sop_instance_uid, frame.frame_number] for frame in self.source.frames],
            self.source.resampled,
        ]


def read_sources(like: Volume | PlaneStack) -> SourceSeries:
    """Reads the headers of the images that ``like`` was made of.

    Raises:
        SeriesError: ``SEG_NO_SOURCE`` when ``like`` was not read from DICOM, ``SEG_SOURCE`` when its files are gone,
            damaged, others than at reading or without UIDs, ``SEG_GRID`` when its axes are none of DICOM's planes,
            ``GEOM_FRAME_OF_REFERENCE`` when the series has none.
    """
    source = like.provenance.get(PROVENANCE_KEY)
    if not isinstance(source, DicomSource) or not source.frames:
        raise SeriesError(
            "SEG_NO_SOURCE",
            "the image was not read from a DICOM series.",
            path=like.provenance.get("path"),
            hint="Read it with read_series or read_planes.",
        )
    affines = planes_lps(like)
    header = _header_of_first(source)
    if not (source.study_uid and source.series_uid):
        raise SeriesError(
            "SEG_SOURCE",
            "the source has no StudyInstanceUID or SeriesInstanceUID, so nothing can be added to its study.",
        )
    if not source.frame_of_reference_uid:
        raise SeriesError(
            "GEOM_FRAME_OF_REFERENCE",
            "the series has no FrameOfReferenceUID, so nothing can be placed in its space.",
            series_uid=source.series_uid,
        )
    own = [_own_geometry(frame) for frame in source.frames if frame.plane]
    on_source = not source.resampled and len(source.frames) == len(affines)
    same_size = (header.get("Columns"), header.get("Rows")) == like.array.shape[:2]
    same = on_source and same_size and _lie_alike(own, affines, like.array.shape)
    mosaic = len(source.frames) > 1 and len({(frame.path, frame.frame_number) for frame in source.frames}) == 1
    planes = own if same else [_geometry_of(affine, source) for affine in affines]
    return SourceSeries(
        header=_completed(header),
        source=source,
        planes=tuple(planes),
        size=(like.array.shape[0], like.array.shape[1]),
        thickness=_thickness(source.frames[0].thickness, affines),
        frames=source.frames if same or (on_source and mosaic) else (),
        same_pixels=same,
    )


def planes_lps(like: Volume | PlaneStack) -> FloatArray:
    """(N, 4, 4): for each plane of ``like`` pixel (i, j, 0) → LPS mm, the third column being the unit normal."""
    if isinstance(like, PlaneStack):
        affines = np.array([lps_from_ras(affine) for affine in like.affines_ras])
    else:
        affines = np.repeat(lps_from_ras(like.affine_ras)[None], like.shape[2], axis=0)
        affines[:, :3, 3] += np.arange(like.shape[2])[:, None] * affines[0, :3, 2]
    normals = np.cross(affines[:, :3, 0], affines[:, :3, 1])
    affines[:, :3, 2] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    return affines


def affines_lps(planes: Sequence[PlaneGeometry]) -> FloatArray:
    """(N, 4, 4): for each plane pixel (column i, row j, 0) → LPS mm, the third column being the unit normal."""
    affines = np.zeros((len(planes), 4, 4))
    affines[:, 3, 3] = 1.0
    axes = np.array([plane.orientation for plane in planes], dtype=np.float64)
    spacing = np.array([plane.spacing for plane in planes], dtype=np.float64)
    affines[:, :3, 0] = axes[:, :3] * spacing[:, 1:]
    affines[:, :3, 1] = axes[:, 3:] * spacing[:, :1]
    affines[:, :3, 2] = np.cross(axes[:, :3], axes[:, 3:])
    affines[:, :3, 3] = [plane.position for plane in planes]
    return affines


def corners_mm(affines: FloatArray, shape: Sequence[int]) -> FloatArray:
    """(N, 3, 3): where pixels (0, 0), (X-1, 0) and (0, Y-1) of each plane lie; they fix the plane and its pixels."""
    pixels = np.array([[0, 0, 0, 1], [shape[0] - 1, 0, 0, 1], [0, shape[1] - 1, 0, 1]], dtype=np.float64)
    result: FloatArray = np.einsum("nab,cb->nca", affines, pixels)[..., :3]
    return result


def plane_tolerance_mm(affines: FloatArray) -> float:
    """How far a plane of a series may lie from where it is meant, see ``SAME_PLANE_MM``."""
    if len(affines) < 2:
        return SAME_PLANE_MM
    depths = np.sort(affines[:, :3, 3] @ affines[0, :3, 2])
    return max(SAME_PLANE_MM, SAME_PLANE_SPACING * float(np.diff(depths).min()))


def _header_of_first(source: DicomSource) -> Dataset:
    """The first file's header without pixels; all files are looked at."""
    paths = {frame.path: frame for frame in source.frames}
    for path, frame in list(paths.items())[1:]:
        if not _names_itself(path, frame.sop_instance_uid):
            _header(frame, source.series_uid)
    return _header(source.frames[0], source.series_uid)


def _names_itself(path: Path, sop_instance_uid: str) -> bool:
    """Whether the file's meta header names the instance: a hundredth of the time that reading the header takes."""
    try:
        with path.open("rb") as file:
            start = file.read(_START_OF_FILE)
    except OSError:
        return False
    value = sop_instance_uid.encode("ascii", "replace")
    value += b"\0" * (len(value) % 2)
    return b"\2\0\3\0UI" + len(value).to_bytes(2, "little") + value in start


def _header(frame: SourceFrame, series_uid: str) -> Dataset:
    try:
        header = pydicom.dcmread(frame.path, stop_before_pixels=True, force=True)
    except (OSError, InvalidDicomError, ValueError, AttributeError, NotImplementedError, EOFError) as error:
        raise SeriesError(
            "SEG_SOURCE", f"a source image cannot be read again ({error}).", path=frame.path, series_uid=series_uid
        ) from error
    found = str(header.get("SOPInstanceUID") or header.file_meta.get("MediaStorageSOPInstanceUID"))
    if found != frame.sop_instance_uid:
        raise SeriesError(
            "SEG_SOURCE",
            f"the file now holds instance {found}.",
            path=frame.path,
            hint="Read the series again.",
            series_uid=series_uid,
            instances=[frame.sop_instance_uid],
        )
    return header


def _own_geometry(frame: SourceFrame) -> PlaneGeometry:
    """What the image says of its place."""
    values = [_ds(value) for value in frame.plane or ()]
    return PlaneGeometry(values[:3], values[3:9], values[9:])


def _lie_alike(own: Sequence[PlaneGeometry], affines: FloatArray, shape: Sequence[int]) -> bool:
    if len(own) != len(affines):
        return False
    shifts = np.linalg.norm(corners_mm(affines_lps(own), shape) - corners_mm(affines, shape), axis=-1)
    return bool(shifts.max() <= plane_tolerance_mm(affines))


def _geometry_of(affine: FloatArray, source: DicomSource) -> PlaneGeometry:
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    axes = affine[:3, :2] / spacing
    if abs(float(axes[:, 0] @ axes[:, 1])) > 1e-4:  # highdicom's own tolerance of perpendicular row and column
        raise SeriesError(
            "SEG_GRID", "rows and columns are not perpendicular, DICOM cannot say that.", series_uid=source.series_uid
        )
    return PlaneGeometry(
        [_ds(value) for value in affine[:3, 3]],
        [_ds(value) for value in axes.T.ravel()],
        [_ds(spacing[1]), _ds(spacing[0])],
    )


def _thickness(own: float | None, affines: FloatArray) -> float | None:
    if own is not None and own > 0:
        return own
    depths = np.sort(affines[:, :3, 3] @ affines[0, :3, 2])
    return float(np.diff(depths).min()) if len(depths) > 1 else None


def _ds(value: float) -> str:
    return format_number_as_ds(float(value) + 0.0)


def _completed(header: Dataset) -> Dataset:
    """The header with what every derived object must have, empty where the source lacks it or holds nonsense."""
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if keyword in header:
            delattr(header, keyword)
    for keyword in _STUDY_TYPE_2:
        if keyword not in header:
            setattr(header, keyword, None)
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(str(header[keyword].value or ""))
        except ValueError:
            setattr(header, keyword, None)
    character_sets = header.get("SpecificCharacterSet")
    if isinstance(character_sets, MultiValue):  # an empty first value is the default repertoire, by its other name
        header.SpecificCharacterSet = [name or "ISO 2022 IR 6" for name in character_sets]
    elif not character_sets:
        header.pop("SpecificCharacterSet", None)
    if header.PatientSex not in (None, "", "M", "F", "O"):
        header.PatientSex = None
    return header
