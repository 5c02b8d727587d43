"""What the objects derived from a series (SEG, report, RTSTRUCT) share: what they say, identity, times, bytes.

Their UIDs and times come from their content and their sources, never from a clock or a random number, so that the same
label map from the same series gives the same bytes, and sending it twice is harmless.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DA, DT, TM

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.segments import MAX_LONG_STRING, AlgorithmInfo

MANUFACTURER = "The accunet-monai contributors"
MODEL_NAME = "accunet-monai"

NOT_DIAGNOSTIC_LABEL = "NOT_FOR_DIAG_USE"
"""ContentLabel: 16 characters is all that DICOM's CS holds."""

NOT_DIAGNOSTIC = "Not for diagnostic use"
"""Starts ContentDescription and SeriesDescription."""

_MOMENTS = ("Content", "Acquisition", "Series", "Study")


@dataclass(frozen=True)
class DerivedContent:
    """What a derived object says of itself.

    Args:
        label: ContentLabel of a SEG, at most 16 capitals, digits, spaces and underscores.
        description: starts its descriptions; the algorithm's name follows, cut at 64 characters.
        series_number: SeriesNumber of the new series.
        created: date and time of creation; None takes those of the source series, which keeps the bytes the same.
    """

    label: str = NOT_DIAGNOSTIC_LABEL
    description: str = NOT_DIAGNOSTIC
    series_number: int = 1000
    created: datetime.datetime | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z0-9_ ]{1,16}", self.label) or not self.label.strip():
            raise VolumeError("SEG_CONTENT", f"ContentLabel cannot be {self.label!r}.")
        if not self.description.isascii() or not self.description.isprintable() or "\\" in self.description:
            raise VolumeError("SEG_CONTENT", f"the description must be ASCII without backslash: {self.description!r}.")
        if not 1 <= self.series_number <= 2**31 - 1:
            raise VolumeError("SEG_CONTENT", f"SeriesNumber cannot be {self.series_number}.")

    def text(self, algorithm: AlgorithmInfo, ending: str = "") -> str:
        """``description: algorithm's name``, cut so that ``ending`` fits into a LO of 64 characters."""
        said = ": ".join(part for part in (self.description, algorithm.name) if part)
        return said[: MAX_LONG_STRING - len(ending)] + ending


def content_uid(kind: str, *parts: Any) -> str:
    """A UID under 2.25 (PS3.5, B.2) that says what it stands for: equal for equal ``parts``, else another.

    Args:
        kind: what the UID identifies, e.g. ``instance``.
        parts: anything JSON can hold.
    """
    text = json.dumps([MODEL_NAME, kind, parts], sort_keys=True, separators=(",", ":"))
    return f"2.25.{uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=5).int}"


def moment_of(header: Dataset, created: datetime.datetime | None) -> datetime.datetime:
    """``created``, else the date and time that the source series itself gives, else the start of 1900."""
    if created is not None:
        return created.replace(tzinfo=None)
    for name in _MOMENTS:
        try:
            date = DA(str(header.get(f"{name}Date") or ""))
            time = TM(str(header.get(f"{name}Time") or ""))
        except ValueError:
            continue
        if date:
            return datetime.datetime.combine(date, time or datetime.time())
    return datetime.datetime(1900, 1, 1)


def equipment(algorithm: AlgorithmInfo) -> hd.ContributingEquipment:
    """The item of ContributingEquipmentSequence that names the bundle, its version and its digests."""
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=algorithm.name,
        software_versions=algorithm.version,
        device_serial_number=algorithm.weights_sha256,
        contribution_description="; ".join(
            ["Segmentation", *(f"{name} {digest}" for name, digest in algorithm.digests.items())]
        ),
    )


def pin_times(ds: Dataset, moment: datetime.datetime) -> None:
    """Puts ``moment`` in the place of highdicom's current time."""
    date, time = DA(moment.date()), TM(moment.time())
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time
    for item in ds.get("ContributingEquipmentSequence") or ():
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == codes.DCM.ProcessingEquipment.value:
            item.ContributionDateTime = DT(moment)


def encoded(ds: Dataset) -> bytes:
    """The bytes of a DICOM file."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()
