"""A newer revision's SEG names the one it replaces; where a destination wants it, an IHE IOCM note rejects that one."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Engine, select

from accunet_monai.pacs.database import reading
from accunet_monai.pacs.jobs import replaced_job
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import jobs
from accunet_monai.volumes.dicom_derived import MANUFACTURER, content_uid, encoded, moment_of, pin_times

NOTE_SERIES_NUMBER = 1001
NOTE_DESCRIPTION = "Replaced: more images of the series arrived"

_HEADER = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")


def replaced_file(site: Site, engine: Engine, job_id: str, destination: str | None = None) -> Path | None:
    """The stored SEG of the latest earlier revision that was sent (to a destination), if there is one."""
    with reading(engine) as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
        earlier = replaced_job(connection, row, destination)
    if earlier is None or earlier.seg_file is None:
        return None
    file = site.storage / earlier.seg_file
    return file if file.is_file() else None


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


def rejection_note(replaced: Path, target: Path) -> None:
    """Write the note that rejects a SEG for quality reasons; the same note each time, byte for byte."""
    header = pydicom.dcmread(replaced, stop_before_pixels=True)
    reason = codes.DCM.RejectedForQualityReasons
    content = hd.ko.KeyObjectSelection(reason, [header], description=NOTE_DESCRIPTION)
    series = content_uid("rejection series", str(header.SOPInstanceUID))
    note = hd.ko.KeyObjectSelectionDocument(
        evidence=[header],
        content=content,
        series_instance_uid=series,
        series_number=NOTE_SERIES_NUMBER,
        sop_instance_uid=content_uid("rejection", series),
        instance_number=1,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    note.SeriesDescription = "Rejection note"
    pin_times(note, moment_of(header, None))
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
