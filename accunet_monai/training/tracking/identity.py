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
_CODE = ("$", "@")  # how values of a config begin that are expressions and references

_IDENTIFYING_VRS = frozenset({"PN", "DA", "DT"})
_IDENTIFYING = frozenset(
    {
        "AccessionNumber", "FrameOfReferenceUID", "InstitutionAddress", "InstitutionName", "IssuerOfPatientID",
        "MedicalRecordLocator", "OtherPatientIDs", "PatientAddress", "PatientComments", "PatientID",
        "PatientTelephoneNumbers", "SOPInstanceUID", "SeriesInstanceUID", "StationName", "StudyID", "StudyInstanceUID",
    }
)  # fmt: skip
_SHORTEST = 3  # characters of a name in a header: "Li" is in too many words
_DISTINCT = 6  # characters of a name that is taken for one wherever it stands; a shorter one may be a setting, too


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
        self._as_they_are: set[str] = set()
        found: set[str] = set()
        for case in cases:
            image = case.get("image", "")
            name = str(case.get("case", Path(str(image)).name))
            header = None if name in self.cases else _header(image)
            if header is None:
                self._as_they_are |= set() if name in self.cases else {name, str(case.get("subject", name))}
                continue
            self.cases[name] = f"dicom-{content_digest(image)[:8]}"
            self.subjects.setdefault(str(case.get("subject", name)), f"subject of {self.cases[name]}")
            found.update(_identifiers(header))
            found.add(str(case.get("subject", name)))
        names = {text for text in found if len(text) >= _SHORTEST} | self.cases.keys()
        either = "|".join(_pattern(text) for text in sorted(names, key=len, reverse=True))
        self._names = re.compile(f"(?=({either or '(?!)'}))", re.IGNORECASE)  # finds also names that overlap

    def case(self, name: str) -> str:
        """The name under which a case is logged."""
        return self.cases.get(name, name)

    def subject(self, name: str) -> str:
        """The name under which a subject is logged."""
        return self.subjects.get(name, name)

    def clean(self, text: str, code: bool = False) -> str:
        """A text without the names of these cases and without what their headers say of patients and dates.

        Args:
            text: in which names are looked for as they were logged: nothing is found in a pseudonym just put in.
            code: it is an expression or the name of a setting: of short names only those in quotes are looked for.
        """
        pieces, end = [], 0
        for found in self._names.finditer(text):
            start, stop = found.span(1)
            if code and stop - start < _DISTINCT and not _quoted(text, start):
                continue
            if start >= end:
                pieces += [text[end:start], self.cases.get(found[1], REMOVED)]
            end = max(end, stop)
        return "".join([*pieces, text[end:]])

    def cleaned(self, value: Any, names: Mapping[str, str] | None = None) -> Any:
        """A parsed config, its texts and keys cleaned; numbers stay, but for a whole one that is an identifier.

        Args:
            value: mappings, sequences and scalars.
            names: name → pseudonym, of texts and keys that are a name as a whole, however short it is.
        """
        names = names or {}
        if isinstance(value, Mapping):
            return {self._key(key, names): self._item(key, item, names) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.cleaned(item, names) for item in value]
        if isinstance(value, str):
            return names.get(value) or self.clean(value, code=value.startswith(_CODE))
        if value is None or isinstance(value, bool | float):
            return value
        text = str(value)  # of a path, of a date, of a number that may be a patient's
        found = self.clean(text, code=isinstance(value, int))
        return value if found == text else found

    def cleaned_split(self, split: Mapping[str, Any]) -> dict[str, Any]:
        """A split, see ``read_split``, under the names that are logged.

        Beside cases of DICOM it may name some that the training does not read, of the part ``test`` for example. What
        is told of their patients nobody knows here, so these are ``withheld-1``, ``withheld-2``, ….
        """
        stated = split.get("subjects")
        stated = stated if isinstance(stated, Mapping) else {}
        cases, subjects = dict(self.cases), dict(self.subjects)
        listed = [*dict(split.get("parts", {})).values(), *split.get("folds", []), stated] if cases else []
        unread = dict.fromkeys(name for names in listed for name in names)
        for number, name in enumerate((name for name in unread if name not in cases.keys() | self._as_they_are), 1):
            cases[name] = f"withheld-{number}"
            subject = stated.get(name, name)
            if subject not in self._as_they_are:
                subjects.setdefault(subject, f"subject of {cases[name]}")
        found: dict[str, Any] = self.cleaned({key: item for key, item in split.items() if key != "subjects"}, cases)
        if stated:
            found["subjects"] = {self.cleaned(c, cases): self.cleaned(s, subjects) for c, s in stated.items()}
        return found

    def _key(self, key: Any, names: Mapping[str, str]) -> Any:
        if not isinstance(key, str):
            return key
        return names.get(key) or self.clean(key, code=key.isidentifier() or key.isdigit())

    def _item(self, key: Any, item: Any, names: Mapping[str, str]) -> Any:
        return self.clean(item, code=True) if key == "_target_" and isinstance(item, str) else self.cleaned(item, names)


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


def _pattern(text: str) -> str:
    """Where a name is taken for one: the shorter and the plainer it is, the less may stand beside it.

    - Anywhere: from six characters with letters, digits, marks; scripts that may have no spaces.
    - Words, and numbers from six digits: not within a longer word or number. ``_`` and ``/`` end them.
    - Shorter numbers: in names of files and folders; of one or two digits (``1``) only at the start of such a name.
    """
    name = re.escape(text)
    if text.isdigit() and len(text) < _DISTINCT:
        begins = rf"(?<![^\s'\"]){name}(?=[_.][A-Za-z])"  # 1_image.nii.gz
        if len(text) < _SHORTEST:
            return rf"(?<=[/\\]){name}(?![^\W_])|{begins}"
        return rf"(?<=[/\\_-]){name}(?![0-9])|{begins}|\A{name}\Z"
    if not text.isascii() or (len(text) >= _DISTINCT and not text.isalpha() and not text.isdigit()):
        return name
    bounded = rf"(?<!{_alike(text[0])}){name}(?!{_alike(text[-1])})"
    return rf"(?-i:{bounded})" if len(text) < _SHORTEST else bounded


def _alike(character: str) -> str:
    """What continues a word or number that this character is the end of; never anything for other characters."""
    return r"[^\W\d_]" if character.isalpha() else "[0-9]" if character.isdigit() else "(?!)"


def _quoted(text: str, position: int) -> bool:
    return any(text.count(mark, 0, position) % 2 for mark in "'\"")
