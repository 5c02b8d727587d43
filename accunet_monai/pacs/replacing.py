"""A newer revision's SEG names the one it replaces; where a destination wants it, an IHE IOCM note rejects that one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Engine, select

from accunet_monai.pacs.database import reading
from accunet_monai.pacs.jobs import replaced_job
from accunet_monai.pacs.reports import report_of
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import jobs
from accunet_monai.volumes.dicom_derived import MANUFACTURER, content_uid, encoded, moment_of, pin_times

NOTE_SERIES_NUMBER = 1001
NOTE_DESCRIPTION = "Replaced: more images of the series arrived"

_HEADER = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def replaced_files(site: Site, engine: Engine, job_id: str, destination: str | None = None) -> list[Path]:
    """The stored SEG of the latest earlier revision that was sent (to a destination), and its report, if there are."""
    with reading(engine) as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
        earlier = replaced_job(connection, row, destination)
    if earlier is None or earlier.seg_file is None or not (site.storage / earlier.seg_file).is_file():
        return []
    report = report_of(site, engine, earlier.seg_sha256)
    return [site.storage / earlier.seg_file, *([] if report is None else [report])]


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


def _identity(file: Path) -> Dataset:
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))


def _reference(ds: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = ds.SOPClassUID
    item.ReferencedSOPInstanceUID = ds.SOPInstanceUID
    return item
