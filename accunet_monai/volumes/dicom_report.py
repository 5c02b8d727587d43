"""How much of each segment there is, as a DICOM measurement report (TID 1500) that refers to its SEG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import accunet_monai
from accunet_monai.errors import SeriesError
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
from accunet_monai.volumes.dicom_seg_read import DicomSeg, SegSegment, read_seg
from accunet_monai.volumes.dicom_source_planes import SourceSeries, planes_lps, read_sources
from accunet_monai.volumes.geometry import FloatArray
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.segments import AlgorithmInfo
from accunet_monai.volumes.volume import Volume

_PROCEDURES = {
    "CT": codes.LN.CTUnspecifiedBodyRegion,
    "MR": codes.LN.MRIUnspecifiedBodyRegion,
    "PT": codes.LN.PETUnspecifiedBodyRegion,
}
_DECIMALS = 3  # of a volume in mm³


def write_report(
    path: str | os.PathLike[str],
    seg_path: str | os.PathLike[str],
    like: Volume | PlaneStack,
    algorithm: AlgorithmInfo,
    *,
    content: DerivedContent | None = None,
) -> Path:
    """Writes the volume of each segment in mm³, and for a segment without a pixel that it is absent.

    The same SEG gives the same bytes. A volume is the pixels' area times the distance that their plane stands for:
    half-way to its neighbours, which in an even stack is the slice spacing.

    Args:
        path: the file of the report; its folder is made when missing.
        seg_path: the SEG object, made from the series of ``like``.
        like: the image, as ``read_series`` or ``read_planes`` gave it.
        algorithm: what made the label map.
        content: what the report says of itself; by default that it is not for diagnostic use.

    Raises:
        SeriesError: ``SEG_WRONG_SOURCE`` when the SEG is not of the series of ``like``, ``GEOM_SINGLE_SLICE`` when
            there is one plane without thickness, ``REPORT_REFUSED``, and all of reading the SEG and the sources.
    """
    target, content = Path(path), content or DerivedContent(series_number=1001)
    seg, sources = read_seg(seg_path, like=like), read_sources(like)
    if (seg.study_uid, seg.source_series_uid) != (sources.source.study_uid, sources.source.series_uid):
        raise SeriesError("SEG_WRONG_SOURCE", f"the SEG belongs to series {seg.source_series_uid}.", path=seg_path)
    volumes = volumes_mm3(seg, like, sources.thickness)
    ds = _report(seg, sources, algorithm, volumes)
    ds.SeriesDescription = content.text(algorithm)
    ds.SeriesNumber = content.series_number
    pin_times(ds, moment_of(sources.header, content.created))
    with atomic_output(target) as stream:
        stream.write(encoded(ds))
    return target


def volumes_mm3(seg: DicomSeg, like: Volume | PlaneStack, thickness: float | None) -> dict[int, float]:
    """Segment number → mm³ on the planes of ``like``; ``thickness`` in mm is used of a single plane only.

    Raises:
        SeriesError: ``GEOM_SINGLE_SLICE``.
    """
    affines = planes_lps(like)
    area = float(np.linalg.norm(np.cross(affines[0, :3, 0], affines[0, :3, 1])))
    depths = _depths_mm(affines, thickness)
    pixels = seg.label_map.reshape(-1, len(affines))
    counts = {
        segment.number: np.count_nonzero(pixels == segment.number, axis=0).astype(np.float64)
        for segment in seg.segments
    }
    return {number: float(count @ depths) * area for number, count in counts.items()}


def _depths_mm(affines: FloatArray, thickness: float | None) -> FloatArray:
    """(N,) how much depth each plane stands for."""
    if len(affines) == 1:
        if thickness is None:
            raise SeriesError("GEOM_SINGLE_SLICE", "there is one plane and nothing says how thick it is.")
        return np.array([thickness])
    places = affines[:, :3, 3] @ affines[0, :3, 2]
    gaps = np.abs(np.diff(places))
    result: FloatArray = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
    return result


def _report(seg: DicomSeg, sources: SourceSeries, algorithm: AlgorithmInfo, volumes: dict[int, float]) -> Dataset:
    identity = [seg.sop_instance_uid, algorithm.name, algorithm.version, algorithm.digests, accunet_monai.__version__]
    series = content_uid("report series", identity)
    instance = content_uid("report", series, hd.__version__, [f"{volume:.{_DECIMALS}f}" for volume in volumes.values()])
    first = sources.header
    name, first.PatientName = first.PatientName, None  # put back below: highdicom warns of names that it finds unusual
    try:
        ds = hd.sr.ComprehensiveSR(
            evidence=_evidence(seg, sources),
            content=_content(seg, sources, algorithm, volumes),
            series_instance_uid=series,
            series_number=1,
            sop_instance_uid=instance,
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MODEL_NAME,
            software_versions=accunet_monai.__version__,
            is_complete=True,
            contributing_equipment=[equipment(algorithm)],
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # highdicom names what it refuses in words only
        raise SeriesError(
            "REPORT_REFUSED", f"highdicom cannot make a report ({error}).", series_uid=seg.series_uid
        ) from error
    ds.PatientName = name
    return ds


def _evidence(seg: DicomSeg, sources: SourceSeries) -> list[Dataset]:
    """The source images, the first with patient and study, and the SEG."""
    series = sources.source.series_uid
    first = sources.header
    others = [_reference(sources, series, *instance) for instance in sources.instances[1:]]
    return [first, *others, _reference(sources, seg.series_uid, seg.sop_class_uid, seg.sop_instance_uid)]


def _reference(sources: SourceSeries, series_uid: str, sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = sources.source.study_uid
    item.SeriesInstanceUID = series_uid
    item.SOPClassUID = sop_class_uid
    item.SOPInstanceUID = sop_instance_uid
    return item


def _content(
    seg: DicomSeg, sources: SourceSeries, algorithm: AlgorithmInfo, volumes: dict[int, float]
) -> hd.sr.MeasurementReport:
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=content_uid("device", algorithm.name, algorithm.version, algorithm.digests),
            name=algorithm.name,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=algorithm.weights_sha256,
        ),
    )
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURES.get(sources.source.modality, codes.LN.MRIUnspecifiedBodyRegion),
        imaging_measurements=[_group(segment, seg, algorithm, volumes[segment.number]) for segment in seg.segments],
    )


def _group(
    segment: SegSegment, seg: DicomSeg, algorithm: AlgorithmInfo, volume: float
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    absent = [hd.sr.QualitativeEvaluation(Code("705057003", "SCT", "Presence"), codes.SCT.Absent)]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=content_uid("tracking", seg.sop_instance_uid, segment.number), identifier=segment.name
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.sop_class_uid,
            sop_instance_uid=seg.sop_instance_uid,
            segment_number=segment.number,
            source_series=hd.sr.SourceSeriesForSegmentation(seg.source_series_uid),
        ),
        finding_type=_code(segment.type),
        finding_category=_code(segment.category),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[f"{name}={digest}" for name, digest in algorithm.digests.items()] or None,
        ),
        finding_sites=_sites(segment),
        measurements=[
            hd.sr.Measurement(name=codes.SCT.Volume, value=round(volume, _DECIMALS), unit=codes.UCUM.CubicMillimeter)
        ],
        qualitative_evaluations=None if volume else absent,
    )


def _sites(segment: SegSegment) -> list[hd.sr.FindingSite] | None:
    """The structure with its modifier, which a finding alone cannot carry."""
    kind, modifier = _code(segment.type), _code(segment.modifier)
    return [hd.sr.FindingSite(kind, topographical_modifier=modifier)] if kind and modifier else None


def _code(term: Sequence[Any]) -> Code | None:
    return Code(*term) if all(term) else None
