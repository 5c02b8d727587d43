"""Nothing that identifies a patient is logged: cases from DICOM get pseudonyms, and texts lose what headers say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from accunet_monai.datasets import content_digest
from accunet_monai.errors import DatasetError
from accunet_monai.volumes.dicom_files import read_headers

REMOVED = "removed"

_IDENTIFYING_VRS = frozenset({"PN", "DA", "DT"})
_IDENTIFYING = frozenset(
    {
        "AccessionNumber", "FrameOfReferenceUID", "InstitutionAddress", "InstitutionName", "IssuerOfPatientID",
        "MedicalRecordLocator", "OtherPatientIDs", "PatientAddress", "PatientComments", "PatientID",
        "PatientTelephoneNumbers", "SOPInstanceUID", "SeriesInstanceUID", "StationName", "StudyID", "StudyInstanceUID",
    }
)  # fmt: skip
_SHORTEST = 3  # characters of a name: "Li" is in too many words
_SHORTEST_NUMBER = 6  # digits that are removed wherever they stand; shorter numbers only in names of files and folders


class Identities:
    """Under which names the cases of a training are logged.

    A case that is read from DICOM is called ``dicom-`` and eight hexadecimal digits of the sha256 of its files: the
    same in every training, and nobody can compute it without the images. Its subject is called after the first of
    the subject's cases. Cases of other formats keep the names that their files have.

    Args:
        cases: with ``image``, ``case`` and, if known, ``subject``.

    Raises:
        SeriesError: ``FILE_MISSING``.
        DatasetError: ``IDENTITY_UNREADABLE``: an image may be of DICOM and its header cannot be read.
    """

    def __init__(self, cases: Iterable[Mapping[str, Any]] = ()) -> None:
        self.cases: dict[str, str] = {}
        self.subjects: dict[str, str] = {}
        found: set[str] = set()
        for case in cases:
            image = case.get("image", "")
            name = str(case.get("case", Path(str(image)).name))
            header = None if name in self.cases else _header(image)
            if header is None:
                continue
            self.cases[name] = f"dicom-{content_digest(image)[:8]}"
            self.subjects.setdefault(str(case.get("subject", name)), f"subject of {self.cases[name]}")
            found.update(_identifiers(header))
            found.update({name, str(case.get("subject", name))})
        self._patterns = [_pattern(text) for text in sorted(found, key=len, reverse=True) if len(text) >= _SHORTEST]

    def case(self, name: str) -> str:
        """The name under which a case is logged."""
        return self.cases.get(name, name)

    def subject(self, name: str) -> str:
        """The name under which a subject is logged."""
        return self.subjects.get(name, name)

    def clean(self, text: str) -> str:
        """A text without the names of these cases and without what their headers say of patients and dates."""
        for name, pseudonym in self.cases.items():
            text = text.replace(name, pseudonym)
        for pattern in self._patterns:
            text = pattern.sub(REMOVED, text)
        return text


def _header(image: Any) -> Dataset | None:
    """The header of a DICOM file, or of the first one in a folder; ``None`` for what is no DICOM.

    Raises:
        SeriesError: ``FILE_MISSING``.
        DatasetError: ``IDENTITY_UNREADABLE``.
    """
    if not isinstance(image, str | os.PathLike) or not os.fspath(image):
        return None
    path = Path(image)
    headers, skipped = read_headers(path)  # the same files that are trained on, those without a preamble too
    if headers:
        return dcmread(headers[0].path, stop_before_pixels=True, force=True)
    damaged = next((file for file in skipped if file.code != "NOT_DICOM"), None)
    if damaged is not None:
        raise DatasetError(
            "IDENTITY_UNREADABLE",
            f"whom this image is of cannot be read, so nothing of it may be logged: {damaged.reason}.",
            path=damaged.path,
            hint="Mend or remove the file, or leave the case out of the split.",
        )
    return None


def _identifiers(header: Dataset) -> Iterator[str]:
    for element in header.iterall():
        if element.VR not in _IDENTIFYING_VRS and element.keyword not in _IDENTIFYING:
            continue
        for value in element.value if element.VM > 1 else [element.value]:
            text = str(value or "").strip()
            yield text
            if element.VR == "PN":
                yield from re.split(r"[\^=\s]+", text)
            elif element.VR == "DA" and len(text) == 8:
                yield f"{text[:4]}-{text[4:6]}-{text[6:]}"


def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text)
    if text.isdigit():
        if len(text) < _SHORTEST_NUMBER:
            return re.compile(rf"(?<=[/\\_-]){escaped}(?![0-9])")
        return re.compile(rf"(?<![0-9]){escaped}(?![0-9])")
    if text.isalpha():
        return re.compile(rf"(?<![^\W\d_]){escaped}(?![^\W\d_])", re.IGNORECASE)
    return re.compile(escaped, re.IGNORECASE)
