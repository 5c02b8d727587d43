"""Instances from files: taken in as if they had been sent, by the same checks, durable before they count."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from accunet_monai.errors import AccunetError, PacsError
from accunet_monai.pacs.registrar import Arrival, Registrar
from accunet_monai.pacs.storage import Storage
from accunet_monai.volumes.dicom_header import read_header

CHUNK = 1 << 20


def import_folder(folder: Path, storage: Storage, registrar: Registrar, *, priority: int = 0) -> Counter[str]:
    """Take in all DICOM files below a folder; links are not followed.

    Args:
        folder: or a single file.
        storage: where they go.
        registrar: commits their rows.
        priority: of the jobs that they lead to.

    Returns:
        How many were ``new``, ``same`` or ``aside``, and how many were left out, by code.

    Raises:
        PacsError: ``FILE_MISSING``, ``STORAGE_FULL``.
    """
    if not folder.exists():
        raise PacsError("FILE_MISSING", "there is no such file or folder.", path=folder)
    counts: Counter[str] = Counter()
    for file in _files(folder):
        try:
            counts[import_file(file, storage, registrar, priority=priority)] += 1
        except AccunetError as error:
            if error.code == "STORAGE_FULL":
                raise
            counts[error.code] += 1
        except (OSError, SQLAlchemyError):
            counts["NOT_DURABLE"] += 1
    return counts


def import_file(
    file: Path, storage: Storage, registrar: Registrar, *, priority: int = 0, source: str = "folder"
) -> str:
    """Take in one DICOM file; returns ``new``, ``same`` or ``aside``.

    Raises:
        AccunetError: ``NOT_DICOM``, ``DICOM_UNREADABLE`` and what storing raises.
    """
    header = read_header(file)
    start = _dataset_start(file)
    uids = header.sop_class_uid, header.sop_instance_uid
    incoming = storage.open_incoming(registrar.receiver, *uids, header.transfer_syntax)
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            while data := stream.read(CHUNK):
                incoming.write(data)
        return registrar.register(Arrival(incoming.keep(), source, priority=priority))
    finally:
        incoming.discard()


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.is_file() and not file.is_symlink() and name != "DICOMDIR":
                yield file


def _dataset_start(file: Path) -> int:
    """Where the dataset begins: behind the meta header, whose length is its first element."""
    with file.open("rb") as stream:
        first = stream.read(144)
    if first[128:132] != b"DICM":
        return 0
    if first[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise PacsError("INSTANCE_UNREADABLE", "the meta header does not begin with its length.", path=file)
    return 144 + int.from_bytes(first[140:144], "little")
