"""What jobs make, in the storage: files under the digests of their bytes, and folders for what is not finished."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom

from accunet_monai.errors import PacsError
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.storage import MARK, sync_folder

RESULTS = "results"
WORK = "work"


@dataclass(frozen=True)
class Stored:
    """A DICOM file in the storage: path from its folder, digest of its bytes, and what names it in DICOM."""

    file: str
    sha256: str
    sop_instance_uid: str


def keep(site: Site, file: Path) -> Stored:
    """Move a finished DICOM file to the place that its digest names; then it is on disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    digest = _sha256(file)
    name = Path(RESULTS) / digest[:2] / f"{digest}.dcm"
    target = site.storage / name
    target.parent.mkdir(parents=True, exist_ok=True)
    file.replace(target)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)
    header = pydicom.dcmread(target, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    return Stored(name.as_posix(), digest, str(header.SOPInstanceUID))


def stored_file(site: Site, file: str | None, sha256: str) -> Path:
    """The path of a stored result whose bytes are those that were stored.

    Raises:
        PacsError: ``SEG_CHANGED``; ``RESULT_UNREADABLE``, which may pass, when the storage is away or does not answer.
    """
    try:
        unchanged = file is not None and _sha256(site.storage / file) == sha256
    except FileNotFoundError as error:
        if not (site.storage / MARK).is_file():
            raise _unreadable(error) from error
        unchanged = False
    except OSError as error:
        raise _unreadable(error) from error
    if file is None or not unchanged:
        hint = "Put it back from a back-up. A job of which nothing was sent makes it again: accunet pacs retry"
        raise PacsError("SEG_CHANGED", "the stored result is missing or not what was stored.", hint=hint)
    return site.storage / file


def _unreadable(error: OSError) -> PacsError:
    hint = "Look at the storage; it may have to be mounted again."
    return PacsError("RESULT_UNREADABLE", f"the stored result cannot be read ({error.strerror}).", hint=hint)


@contextmanager
def scratch(site: Site) -> Iterator[Path]:
    """A folder inside the storage that is removed afterwards; its name says nothing."""
    parent = site.storage / WORK
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
