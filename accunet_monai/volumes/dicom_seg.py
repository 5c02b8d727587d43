"""Label maps as DICOM SEG: written through highdicom on the source's own planes, decoded again before they leave.

The object says which images it was made from (ReferencedSeriesSequence, and DerivationImage/SourceImage with
SpatialLocationsPreserved for each frame), by which algorithm, with which weights, and what it may be used for. The same
label map from the same sources gives the same bytes.

Codes of errors: those of the modules ``dicom_source_planes``, ``dicom_seg_frames`` and ``dicom_seg_verify``, and
``LABEL_GRID``, ``LABEL_NOT_INTEGER``, ``SEG_LABEL``, ``SEG_FRACTION``, ``SEG_EMPTY``, ``SEG_CONTENT``, ``SEG_REFUSED``,
``FILE_EXISTS``.
"""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

import accunet_monai
from accunet_monai.errors import SeriesError, VolumeError
from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.dicom_derived import (
    MANUFACTURER,
    MODEL_NAME,
    DerivedContent,
    content_uid,
    encoded,
    equipment,
    moment_of,
    pin_times,
)
from accunet_monai.volumes.dicom_seg_verify import verify_seg
from accunet_monai.volumes.dicom_source_planes import SourceSeries, read_sources
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.segments import AlgorithmInfo, CodedTerm, SegmentDescription, SegmentTable, read_segments
from accunet_monai.volumes.volume import Volume

Encoding = Literal["BINARY", "LABELMAP", "FRACTIONAL"]

NONE_FOUND = "checked, none found"
"""Ends ContentDescription when the label map is empty."""

MAX_FRACTION = 255
"""MaximumFractionalValue: the stored value of fraction 1."""

_DERIVATION, _IMAGES, _INSTANCE, _PRESERVED = map(
    Tag, ("DerivationImageSequence", "SourceImageSequence", "ReferencedSOPInstanceUID", "SpatialLocationsPreserved")
)
_STAND_IN_CLASS = "1.2.840.10008.5.1.4.1.1.4"  # MR Image Storage: single frame, the usual patient and study modules


def write_seg(
    path: str | os.PathLike[str],
    label_map: npt.NDArray[Any],
    like: Volume | PlaneStack,
    segments: SegmentTable | str | os.PathLike[str],
    *,
    algorithm: AlgorithmInfo | None = None,
    encoding: Encoding = "BINARY",
    omit_empty_frames: bool = True,
    empty: Literal["write", "refuse"] = "write",
    content: DerivedContent | None = None,
    overwrite: bool = True,
) -> Path:
    """Writes a label map as DICOM SEG, decodes it again and compares it in world coordinates. All or nothing.

    Args:
        path: the file; its folder is made when missing.
        label_map: (X, Y, Z) integers of 0 to S on exactly the grid of ``like``; with ``FRACTIONAL`` also (X, Y, Z, S)
            floating-point probabilities of 0 to 1.
        like: the image, as ``read_series`` or ``read_planes`` gave it.
        segments: what the labels mean, or the path of a ``segments.yaml``.
        algorithm: what made the label map, with the digests of its weights and configuration; by default what
            ``segments`` says.
        encoding: ``BINARY`` is what every viewer knows, ``LABELMAP`` is small and for those who know it.
        omit_empty_frames: leave out frames without any pixel. Some viewers misplace the rest: keep them for these.
        empty: of a label map without any label ``write`` all frames, none set, and say so, or ``refuse`` it.
        content: what the object says of itself; by default that it is not for diagnostic use.
        overwrite: whether an existing file may be replaced.

    Raises:
        SeriesError, VolumeError: see the module.
    """
    target = Path(path)
    if not overwrite and target.exists():
        raise VolumeError("FILE_EXISTS", "the file exists and may not be replaced.", path=target)
    table = segments if isinstance(segments, SegmentTable) else read_segments(segments)
    labels = stored_labels(label_map, like, table, encoding)
    found = bool(labels.any())
    if empty == "refuse" and not found:
        raise SeriesError("SEG_EMPTY", "the label map is empty: no label was found.", path=target)
    content, algorithm, sources = content or DerivedContent(), algorithm or table.algorithm, read_sources(like)
    ds = _segmentation(labels, sources, table, algorithm, encoding, omit_empty_frames)
    _describe(ds, content, algorithm, moment_of(sources.header, content.created), found)
    _refer(ds, sources)
    _identify(ds, sources, table, algorithm, content)
    file = encoded(ds)
    verify_seg(file, labels.swapaxes(0, 2), like)
    with atomic_output(target) as stream:
        stream.write(file)
    return target


def stored_labels(
    label_map: npt.NDArray[Any], like: Volume | PlaneStack, table: SegmentTable, encoding: Encoding = "BINARY"
) -> npt.NDArray[Any]:
    """The label map as DICOM stores it, in highdicom's number types: planes of rows of columns.

    Returns:
        (Z, Y, X) unsigned integers, or (Z, Y, X, S) float32 where ``FRACTIONAL`` gets fractions.

    Raises:
        VolumeError: ``LABEL_GRID``, ``LABEL_NOT_INTEGER``, ``SEG_LABEL`` or ``SEG_FRACTION``.
    """
    count = len(table.segments)
    fractions = label_map.dtype.kind == "f" and encoding == "FRACTIONAL"
    expected = (*like.array.shape, count) if fractions else like.array.shape
    if label_map.shape != expected:
        raise VolumeError(
            "LABEL_GRID",
            f"the label map has shape {label_map.shape}, its image needs {expected}.",
            hint="Bring the label map back to the image's own grid first.",
        )
    if fractions:
        if not (label_map.min() >= 0 and label_map.max() <= 1):
            raise VolumeError("SEG_FRACTION", "fractions must be numbers from 0 to 1.")
        return _rows_last(label_map, np.float32)
    if label_map.dtype.kind not in "biu":
        raise VolumeError("LABEL_NOT_INTEGER", f"the label map is of type {label_map.dtype}, expected integers.")
    if label_map.max() > count or (label_map.dtype.kind == "i" and label_map.min() < 0):
        raise VolumeError(
            "SEG_LABEL", f"labels go from {label_map.min()} to {label_map.max()}, described are 1 to {count}."
        )
    return _rows_last(label_map, np.uint8 if count <= 255 else np.uint16)


def _rows_last(label_map: npt.NDArray[Any], dtype: type) -> npt.NDArray[Any]:
    """(X, Y, Z, …) → (Z, Y, X, …) in memory.

    Row by row, through copies that stay in the cache: numpy transposes a whole volume nine times slower.
    """
    swapped = label_map.swapaxes(0, 2)
    if swapped.flags.c_contiguous:
        return swapped.astype(dtype, copy=False)
    result: npt.NDArray[Any] = np.zeros(swapped.shape, dtype)
    for j in range(swapped.shape[1]):
        row = np.ascontiguousarray(label_map[:, j])
        if row.any():
            result[:, j] = np.ascontiguousarray(row.swapaxes(0, 1))
    return result


class _Segmentation(hd.seg.Segmentation):
    """Without highdicom's tables for looking frames up, which nobody asks of an object that is only written."""

    def _build_luts(self) -> None:
        pass


def _segmentation(
    labels: npt.NDArray[Any],
    sources: SourceSeries,
    table: SegmentTable,
    algorithm: AlgorithmInfo,
    encoding: Encoding,
    omit_empty_frames: bool,
) -> Dataset:
    """The object as highdicom makes it, with UIDs that :func:`_identify` replaces."""
    identification = _algorithm_identification(algorithm)
    try:
        ds = _Segmentation(
            source_images=_stand_ins(sources),
            pixel_array=labels,
            segmentation_type=encoding,
            segment_descriptions=[_segment(segment, identification) for segment in table.segments],
            series_instance_uid=UID("2.25.1"),
            series_number=1,
            sop_instance_uid=UID("2.25.1"),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MODEL_NAME,
            software_versions=accunet_monai.__version__,
            device_serial_number=algorithm.weights_sha256 or "unknown",
            max_fractional_value=MAX_FRACTION,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=omit_empty_frames,
            contributing_equipment=[equipment(algorithm)],
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # highdicom names what it refuses in words only
        raise SeriesError(
            "SEG_REFUSED",
            f"highdicom cannot make a SEG of this series ({error}).",
            series_uid=sources.source.series_uid,
        ) from error
    ds["PatientName"] = sources.header["PatientName"]
    return ds


def _stand_ins(sources: SourceSeries) -> list[Dataset]:
    """One single-frame header for each plane, in which highdicom finds the plane's geometry and nothing to doubt.

    The first is the source's own header, from which patient, study and equipment are copied. :func:`_refer` puts the
    true references, which may be to frames of one object, in place of the stand-ins' UIDs.
    """
    first = copy.deepcopy(sources.header)
    first.PatientName = None  # put back later: highdicom warns of real names that it finds unusual
    first.pop("SpacingBetweenSlices", None)  # often wrong in classic images; highdicom finds it from the positions
    common = Dataset()
    common.SOPClassUID = _STAND_IN_CLASS
    common.StudyInstanceUID = first.StudyInstanceUID
    common.SeriesInstanceUID = first.SeriesInstanceUID
    common.FrameOfReferenceUID = sources.source.frame_of_reference_uid
    common.Columns, common.Rows = sources.size
    common.ImageOrientationPatient = list(sources.planes[0].orientation)
    common.PixelSpacing = list(sources.planes[0].spacing)
    common.SliceThickness = sources.thickness
    stand_ins = [first, *(Dataset() for _ in sources.planes[1:])]
    for uid, item, plane in zip(_stand_in_uids(sources), stand_ins, sources.planes, strict=True):
        item.update(common)
        item.SOPInstanceUID = uid
        item.ImagePositionPatient = list(plane.position)
    return stand_ins


def _stand_in_uids(sources: SourceSeries) -> list[str]:
    return [f"2.25.{number}" for number in range(1, len(sources.planes) + 1)]


def _segment(
    segment: SegmentDescription, identification: hd.AlgorithmIdentificationSequence
) -> hd.seg.SegmentDescription:
    item = hd.seg.SegmentDescription(
        segment_number=segment.label,
        segment_label=segment.name,
        segmented_property_category=_code(segment.category),
        segmented_property_type=_code(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=identification,
        display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
    )
    if segment.modifier:
        modifier = hd.sr.CodedConcept.from_code(_code(segment.modifier))
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return item


def _code(term: CodedTerm) -> Code:
    return Code(term.code, term.scheme, term.meaning)


def _algorithm_identification(algorithm: AlgorithmInfo) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=algorithm.name,
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version,
        source=MANUFACTURER,
        parameters=algorithm.digests or None,
    )


def _describe(ds: Dataset, content: DerivedContent, algorithm: AlgorithmInfo, moment: datetime, found: bool) -> None:
    """What the object says of itself, and when it was made."""
    ds.ContentLabel = content.label
    ds.ContentDescription = content.text(algorithm, "" if found else f" ({NONE_FOUND})")
    ds.SeriesDescription = content.text(algorithm)
    ds.SeriesNumber = content.series_number
    pin_times(ds, moment)


def _refer(ds: Dataset, sources: SourceSeries) -> None:
    """Puts the references to the true source images in the place of those to the stand-ins."""
    references = [_reference(*instance) for instance in sources.instances]
    reference_of = {item.ReferencedSOPInstanceUID: item for item in references}
    series = Dataset()
    series.SeriesInstanceUID = sources.source.series_uid
    series.ReferencedInstanceSequence = references
    ds.ReferencedSeriesSequence = [series]
    ds.SourceImageSequence = references
    frame_of = dict(zip(_stand_in_uids(sources), sources.frames, strict=False))
    for group in ds.PerFrameFunctionalGroupsSequence:
        if not sources.frames:
            group.DerivationImageSequence = []
            continue
        item = group[_DERIVATION].value[0][_IMAGES].value[0]
        frame = frame_of.get(item[_INSTANCE].value)
        if frame is None:  # frames of several segments on one plane share their item, and it has been done
            continue
        item.update(reference_of[frame.sop_instance_uid])
        item[_PRESERVED].value = "YES" if sources.same_pixels else "NO"
        if frame.frame_number is not None:
            item.ReferencedFrameNumber = frame.frame_number


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def _identify(
    ds: Dataset, sources: SourceSeries, table: SegmentTable, algorithm: AlgorithmInfo, content: DerivedContent
) -> None:
    """UIDs from all that makes the object what it is: sources, algorithm, description and the encoded pixels."""
    made_by = [asdict(algorithm), accunet_monai.__version__, hd.__version__, ds.SegmentationType]
    said = [[str(value) for value in asdict(content).values()], asdict(table)]
    series = content_uid("series", sources.identity, made_by, said)
    planes = [
        [str(value) for value in (*plane.position, *plane.orientation, *plane.spacing)] for plane in sources.planes
    ]
    pixels = hashlib.sha256(ds.PixelData).hexdigest()
    instance = content_uid("instance", series, planes, int(ds.NumberOfFrames), pixels)
    ds.SeriesInstanceUID = UID(series)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    organisation = content_uid("dimensions", instance)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
