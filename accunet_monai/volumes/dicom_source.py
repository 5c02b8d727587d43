"""Where a volume read from DICOM came from, slice by slice: what a DICOM SEG needs in order to point back at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

PROVENANCE_KEY = "dicom"
"""Key of ``provenance`` under which a volume or plane stack keeps its :class:`DicomSource`."""


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """The image that one slice was made of.

    Args:
        path: the file.
        sop_class_uid: SOPClassUID; of the file meta header where the dataset's own is empty.
        sop_instance_uid: SOPInstanceUID, likewise.
        frame_number: from 1 in a multi-frame object, None in a single-frame one and for the tiles of a mosaic.
        plane: ImagePositionPatient, ImageOrientationPatient and PixelSpacing in this order, 11 numbers; None where the
            file does not say all of them, and for the tiles of a mosaic.
        thickness: SliceThickness in mm, None where the file does not say it.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None = None
    plane: tuple[float, ...] | None = None
    thickness: float | None = None


@dataclass(frozen=True)
class DicomSource:
    """The series that a volume was made of. It holds nothing about the patient.

    Args:
        study_uid, series_uid: StudyInstanceUID and SeriesInstanceUID; empty where the files leave them empty.
        frame_of_reference_uid: FrameOfReferenceUID, None if there is none.
        modality: ``CT``, ``MR`` or ``PT``.
        units: of the array's values, e.g. ``HU``, ``BQML``; empty if the files do not say.
        transfer_syntaxes: UIDs of the transfer syntaxes found, sorted.
        frames: one for each slice index k; the tiles of a mosaic all name the same instance. Of a resampled volume:
            the slices it was made of, which are not its own.
        split: what tells this part from the others of the same series, e.g. ``{"EchoTime": "4.92"}``.
        notes: what was dropped, mapped or is odd, in words.
        resampled: whether the array lies on another grid than the frames.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str | None
    modality: str
    units: str
    transfer_syntaxes: tuple[str, ...]
    frames: tuple[SourceFrame, ...]
    split: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    resampled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "split", MappingProxyType(dict(self.split)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "split": dict(self.split)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "split": MappingProxyType(state["split"])})
