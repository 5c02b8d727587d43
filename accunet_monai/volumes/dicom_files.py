"""The files to look at: one file, a folder tree, or what a DICOMDIR lists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydicom import dcmread, uid

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_header import Header, read_header
from accunet_monai.volumes.dicom_refusals import refusal_of


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that is no part of any series, with a code and the reason in words."""

    path: Path
    code: str
    reason: str


def read_headers(path: Path) -> tuple[list[Header], list[SkippedFile]]:
    """Headers of all DICOM files at ``path``, in order of their names, and what was left out.

    Raises:
        SeriesError: ``FILE_MISSING``, or ``DICOM_UNREADABLE`` for a damaged DICOMDIR.
    """
    if not path.exists():
        raise refusal_of("FILE_MISSING", "there is no such file or folder", path)
    headers: list[Header] = []
    skipped: list[SkippedFile] = []
    is_index = path.is_file() and _is_dicomdir(path)
    for file in _listed(path, skipped) if is_index else _files_below(path):
        try:
            headers.append(read_header(file))
        except SeriesError as error:
            skipped.append(SkippedFile(file, error.code, error.message))
    return headers, skipped


def _files_below(path: Path) -> Iterator[Path]:
    """Regular files only: a pipe would wait for ever. Links to folders are not followed."""
    if path.is_file():
        yield path
        return
    for folder, subfolders, names in os.walk(path):
        subfolders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file():
                yield file


def _is_dicomdir(path: Path) -> bool:
    try:
        return read_header(path).sop_class_uid == uid.MediaStorageDirectoryStorage
    except SeriesError:
        return False


def _listed(path: Path, skipped: list[SkippedFile]) -> list[Path]:
    """Files that the DICOMDIR's records reference, below its own folder (PS3.10 section 8); absent ones are skipped."""
    try:
        records = dcmread(path, specific_tags=["DirectoryRecordSequence"]).get("DirectoryRecordSequence") or []
        references = [record.get("ReferencedFileID") for record in records]
    except Exception as error:  # pydicom raises many types on damaged bytes; all mean the same here
        raise refusal_of("DICOM_UNREADABLE", f"the DICOMDIR is damaged ({error})", path) from error
    root = path.parent.resolve()
    files: list[Path] = []
    for reference in filter(None, references):
        parts = [reference] if isinstance(reference, str) else [str(part) for part in reference]
        file = root.joinpath(*PurePosixPath(*parts).parts)
        try:
            file = file.resolve()
            exists = file.is_file()
        except (OSError, RuntimeError, ValueError):  # too long a name, a loop of links, a zero byte
            exists = False
        if not file.is_relative_to(root):
            skipped.append(SkippedFile(file, "FILE_OUTSIDE", "the DICOMDIR points outside its own folder"))
        elif exists:
            files.append(file)
        else:
            skipped.append(SkippedFile(file, "FILE_MISSING", "the DICOMDIR lists it, but there is no such file"))
    return sorted(set(files))
