"""A newer revision's SEG names the one it replaces; where a destination wants it, an IHE IOCM note rejects that one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import ColumnElement, Engine, Row, select

from accunet_monai.pacs.database import reading
from accunet_monai.pacs.jobs import earlier_jobs
from accunet_monai.pacs.reports import report_of
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import deliveries, jobs
from accunet_monai.volumes.dicom_derived import MANUFACTURER, content_uid, encoded, moment_of, pin_times

NOTE_SERIES_NUMBER = 1001
NOTE_DESCRIPTION = "Replaced: more images of the series arrived"

_HEADER = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def replaced_files(site: Site, engine: Engine, job_id: str) -> list[Path]:
    """The stored SEG of the latest earlier revision that some destination has, and its report, if there are."""
    earlier = _earlier(engine, job_id, deliveries.c.state == "confirmed")
    return _files(site, engine, earlier[0]) if earlier else []


def sent_files(site: Site, engine: Engine, job_id: str, destination: str) -> Iterator[list[Path]]:
    """The same of every earlier revision that may be at a destination, the latest first."""
    sent = (deliveries.c.destination == destination) & (deliveries.c.attempts > 0)
    for row in _earlier(engine, job_id, sent):
        yield _files(site, engine, row)


def name_replaced(seg: Path, replaced: Path) -> None:
    """Add to a SEG file that is not yet stored which SEG it replaces: as Temporal Predecessor, and its series."""
    ds, earlier = pydicom.dcmread(seg), _identity(replaced)
    reference = _reference(earlier)
    purpose = hd.sr.CodedConcept.from_code(codes.DCM.TemporalPredecessor)
    reference.PurposeOfReferenceCodeSequence = [purpose]
    ds.ReferencedInstanceSequence = [reference]
    series = Dataset()
    series.SeriesInstanceUID = earlier.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(earlier)]
    ds.ReferencedSeriesSequence = [*ds.ReferencedSeriesSequence, series]
    seg.write_bytes(encoded(ds))


def rejection_note(replaced: Sequence[Path], target: Path) -> None:
    """Write the note that rejects objects for quality reasons; the same note each time, byte for byte."""
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in replaced]
    reason = codes.DCM.RejectedForQualityReasons
    content = hd.ko.KeyObjectSelection(reason, headers, description=NOTE_DESCRIPTION)
    series = content_uid("rejection series", *(str(header.SOPInstanceUID) for header in headers))
    note = hd.ko.KeyObjectSelectionDocument(
        evidence=headers,
        content=content,
        series_instance_uid=series,
        series_number=NOTE_SERIES_NUMBER,
        sop_instance_uid=content_uid("rejection", series),
        instance_number=1,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    note.SeriesDescription = "Rejection note"
    pin_times(note, moment_of(headers[0], None))
    for item in note.get("ContributingEquipmentSequence") or ():
        item.pop("ContributionDateTime", None)
    target.write_bytes(encoded(note))


def _earlier(engine: Engine, job_id: str, delivered: ColumnElement[bool]) -> Sequence[Row[Any]]:
    with reading(engine) as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
        return earlier_jobs(connection, row, delivered)


def _files(site: Site, engine: Engine, job: Row[Any]) -> list[Path]:
    if job.seg_file is None or not (site.storage / job.seg_file).is_file():
        return []
    report = report_of(site, engine, job.seg_sha256)
    return [site.storage / job.seg_file, *([] if report is None else [report])]


def _identity(file: Path) -> Dataset:
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))


def _reference(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = ds.SOPClassUID
    item.ReferencedSOPInstanceUID = ds.SOPInstanceUID
    return item
