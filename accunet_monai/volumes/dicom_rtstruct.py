"""Label maps as RT Structure Set, for systems that know contours only (PS3.3, A.19). A SEG is exact; prefer it.

There is no kept library that writes what is needed: rt-utils (MIT) had its last release in January 2023, reads whole
folders of CT images itself, and warns of its holes. So contourpy (BSD, matplotlib's own) follows the outlines and
pydicom writes the object. Contours run half-way between pixels inside and outside: every pixel centre stays on its
side. Holes are joined to their outline by a channel of no width ("keyhole", PS3.3, C.8.8.6.3).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import contourpy
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ImplicitVRLittleEndian

import accunet_monai
from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.dicom_derived import (
    MANUFACTURER,
    MODEL_NAME,
    DerivedContent,
    content_uid,
    encoded,
    moment_of,
    pin_times,
)
from accunet_monai.volumes.dicom_seg import stored_labels
from accunet_monai.volumes.dicom_source_planes import SourceSeries, planes_lps, read_sources
from accunet_monai.volumes.geometry import FloatArray
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.segments import AlgorithmInfo, SegmentDescription, SegmentTable, read_segments
from accunet_monai.volumes.volume import Volume

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
CONTOUR_DECIMALS = 4
"""Of a contour's millimetres: a ten-thousandth is below any scanner's precision and keeps DICOM's 16 characters."""

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, which RT objects name for a study
_COPIED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)


def write_rtstruct(
    path: str | os.PathLike[str],
    label_map: npt.NDArray[Any],
    like: Volume | PlaneStack,
    segments: SegmentTable | str | os.PathLike[str],
    *,
    algorithm: AlgorithmInfo | None = None,
    content: DerivedContent | None = None,
) -> Path:
    """Writes the outlines of each label on each plane, in the patient's millimetres. The same input, the same bytes.

    Args:
        path: the file; its folder is made when missing.
        label_map: (X, Y, Z) integers of 0 to S on exactly the grid of ``like``.
        like: the image, as ``read_series`` or ``read_planes`` gave it.
        segments: what the labels mean, or the path of a ``segments.yaml``.
        algorithm: what made the label map; by default what ``segments`` says.
        content: what the object says of itself; by default that it is not for diagnostic use.

    Raises:
        SeriesError, VolumeError: those of the sources and of the label map, see ``dicom_seg``.
    """
    target, content = Path(path), content or DerivedContent(series_number=1002)
    table = segments if isinstance(segments, SegmentTable) else read_segments(segments)
    labels, sources = stored_labels(label_map, like, table), read_sources(like)
    algorithm = algorithm or table.algorithm
    ds = _structure_set(sources, algorithm, content)
    affines = planes_lps(like)
    ds.StructureSetROISequence = [_roi(segment, sources) for segment in table.segments]
    ds.ROIContourSequence = [_contours(segment, labels, affines, sources) for segment in table.segments]
    ds.RTROIObservationsSequence = [_observation(segment) for segment in table.segments]
    _identify(ds, sources, table, algorithm, content)
    with atomic_output(target) as stream:
        stream.write(encoded(ds))
    return target


def outlines(mask: npt.NDArray[np.bool_]) -> Iterator[FloatArray]:
    """The connected regions of a mask as closed polygons, holes joined by keyholes.

    Args:
        mask: (Y, X) rows, columns.

    Yields:
        (P, 2) column i and row j of the corners, in pixels with integers at pixel centres; not repeated at the end.
    """
    padded = np.pad(mask, 1).astype(np.float64)  # so that regions at the border close
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    points, offsets = cast("tuple[list[FloatArray], list[npt.NDArray[np.uint32]]]", generator.filled(0.5, 2.0))
    for polygon, starts in zip(points, offsets, strict=True):
        rings = [_corners(polygon[a : b - 1]) for a, b in pairwise(starts)]
        outline = rings[0]
        for hole in rings[1:]:
            outline = _joined(outline, hole)
        yield outline - 1.0


def _corners(ring: FloatArray) -> FloatArray:
    """Without the points on straight edges."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turning = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    corners: FloatArray = ring[turning]
    return corners


def _joined(outline: FloatArray, hole: FloatArray) -> FloatArray:
    """One ring that runs along the outline, to the hole at their closest corners, around it, and back."""
    distances = ((outline[:, None] - hole[None]) ** 2).sum(axis=-1)
    at, to = divmod(int(distances.argmin()), len(hole))
    around = np.roll(hole, -to, axis=0)
    return np.concatenate([outline[: at + 1], around, around[:1], outline[at:]])


def _structure_set(sources: SourceSeries, algorithm: AlgorithmInfo, content: DerivedContent) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit lengths of 16 bits are too short for contours
    for keyword in _COPIED:
        if keyword in sources.header:
            ds[keyword] = sources.header[keyword]
    moment = moment_of(sources.header, content.created)
    pin_times(ds, moment)
    del ds.ContentDate, ds.ContentTime
    ds.StructureSetDate, ds.StructureSetTime = ds.SeriesDate, ds.SeriesTime
    ds.SOPClassUID, ds.Modality = RTSTRUCT_CLASS, "RTSTRUCT"
    ds.SeriesNumber, ds.InstanceNumber, ds.OperatorsName = content.series_number, 1, ""
    ds.SeriesDescription = ds.StructureSetName = content.text(algorithm)
    ds.StructureSetLabel, ds.ApprovalStatus = content.label, "UNAPPROVED"
    ds.StructureSetDescription = "; ".join(
        [f"{algorithm.name} {algorithm.version}", *(f"{name} {digest}" for name, digest in algorithm.digests.items())]
    )
    ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    ds.SoftwareVersions, ds.DeviceSerialNumber = accunet_monai.__version__, algorithm.weights_sha256 or "unknown"
    ds.FrameOfReferenceUID = sources.source.frame_of_reference_uid
    ds.ReferencedFrameOfReferenceSequence = [_referenced_frame(sources)]
    return ds


def _referenced_frame(sources: SourceSeries) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = sources.source.series_uid
    series.ContourImageSequence = [_image(*instance) for instance in sources.instances]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, sources.source.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = sources.source.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _image(sop_class_uid: str, sop_instance_uid: str, frame_number: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if frame_number is not None:
        item.ReferencedFrameNumber = frame_number
    return item


def _roi(segment: SegmentDescription, sources: SourceSeries) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = segment.label, segment.name
    item.ReferencedFrameOfReferenceUID = sources.source.frame_of_reference_uid
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    return item


def _observation(segment: SegmentDescription) -> Dataset:
    item, code = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = asdict(segment.type).values()
    item.ObservationNumber = item.ReferencedROINumber = segment.label
    item.RTROIIdentificationCodeSequence = [code]
    item.RTROIInterpretedType = item.ROIInterpreter = ""
    return item


def _contours(
    segment: SegmentDescription, labels: npt.NDArray[Any], affines: FloatArray, sources: SourceSeries
) -> Dataset:
    contours = [
        _contour(outline, affines[k], sources, k)
        for k, plane in enumerate(labels)
        if plane.any()
        for outline in outlines(plane == segment.label)
    ]
    item = Dataset()
    item.ROIDisplayColor, item.ReferencedROINumber = list(segment.colour), segment.label
    if contours:
        item.ContourSequence = contours
    return item


def _contour(outline: FloatArray, affine: FloatArray, sources: SourceSeries, k: int) -> Dataset:
    points = outline @ affine[:3, :2].T + affine[:3, 3]
    item = Dataset()
    if sources.frames and sources.same_pixels:
        frame = sources.frames[k]
        item.ContourImageSequence = [_image(frame.sop_class_uid, frame.sop_instance_uid, frame.frame_number)]
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    item.ContourData = _decimals(points.ravel())
    return item


def _decimals(values: Sequence[float] | FloatArray) -> list[str]:
    return [f"{round(float(value), CONTOUR_DECIMALS) + 0.0:.{CONTOUR_DECIMALS}f}" for value in values]


def _identify(
    ds: Dataset, sources: SourceSeries, table: SegmentTable, algorithm: AlgorithmInfo, content: DerivedContent
) -> None:
    digest = hashlib.sha256()
    for item in ds.ROIContourSequence:
        for contour in item.get("ContourSequence") or ():
            digest.update(repr([item.ReferencedROINumber, list(map(str, contour.ContourData))]).encode())
    said = [[str(value) for value in asdict(content).values()], asdict(table), asdict(algorithm)]
    series = content_uid("structure set series", sources.identity, said, accunet_monai.__version__)
    instance = UID(content_uid("structure set", series, digest.hexdigest()))
    ds.SeriesInstanceUID = UID(series)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = instance
    ds.file_meta.MediaStorageSOPClassUID = UID(RTSTRUCT_CLASS)
