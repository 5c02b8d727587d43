"""The measurement report of a SEG (TID 1500): the volume of each label, written, read again and kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from sqlalchemy import Engine, select

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.results import stored_file
from accunet_monai.pacs.settings import BundleRule, Site
from accunet_monai.pacs.tables import reports
from accunet_monai.volumes import PlaneStack, Volume, read_seg
from accunet_monai.volumes.dicom_derived import encoded
from accunet_monai.volumes.dicom_report import volumes_mm3, write_report
from accunet_monai.volumes.dicom_source_planes import read_sources
from accunet_monai.volumes.segments import AlgorithmInfo

ROUNDING_MM3 = 1e-3
"""Volumes stand in a report with three decimals."""


def is_wanted(site: Site, rule: BundleRule) -> bool:
    """Whether a destination of a bundle takes reports."""
    return any(site.destination(name).report for name in rule.destinations)


def make_report(
    target: Path, seg: Path, like: Volume | PlaneStack, algorithm: AlgorithmInfo, predecessor: Path | None
) -> None:
    """Write the report of a SEG and compare what other software reads in it with the SEG's voxels.

    Args:
        target: the file.
        seg: as it will be sent.
        like: its image.
        algorithm: what made it.
        predecessor: the report of the SEG that this one replaces.

    Raises:
        AccunetError: what writing raises, and ``REPORT_WRONG``.
    """
    write_report(target, seg, like, algorithm)
    if predecessor is not None:
        _name_predecessor(target, predecessor)
    expected = volumes_mm3(read_seg(seg, like=like), like, read_sources(like).thickness)
    found = _measured(target)
    if len(found) != len(expected) or any(
        abs(one - other) > ROUNDING_MM3 for one, other in zip(found, expected.values(), strict=True)
    ):
        raise PacsError("REPORT_WRONG", f"the report says {found} mm³, the SEG has {list(expected.values())}.")


def report_of(site: Site, engine: Engine, seg_sha256: str | None) -> Path | None:
    """The stored report of a SEG, ``None`` where there is none.

    Raises:
        PacsError: ``SEG_CHANGED`` when its bytes are not those that were stored.
    """
    with reading(engine) as connection:
        row = connection.execute(select(reports).where(reports.c.seg_sha256 == seg_sha256)).first()
    return None if row is None else stored_file(site, row.file, row.sha256)


def _measured(report: Path) -> list[float]:
    content: Any = hd.sr.srread(report).content
    groups = content.get_volumetric_roi_measurement_groups()
    return [float(group.get_measurements(name=codes.SCT.Volume)[0].value) for group in groups]


def _name_predecessor(report: Path, predecessor: Path) -> None:
    """Add which report this one replaces; both are of one study."""
    ds, earlier = pydicom.dcmread(report), pydicom.dcmread(predecessor, stop_before_pixels=True)
    reference, series, study = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPClassUID = earlier.SOPClassUID
    reference.ReferencedSOPInstanceUID = earlier.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = earlier.SeriesInstanceUID, [reference]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = earlier.StudyInstanceUID, [series]
    ds.PredecessorDocumentsSequence = [study]
    report.write_bytes(encoded(ds))
