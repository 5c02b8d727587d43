"""Unpacking a bundle that comes as one zip file, without letting the archive decide where and how much is written."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from accunet_monai.bundle.manifest import MAX_FILE_BYTES, MAX_FILES
from accunet_monai.errors import BundleError

_METADATA = PurePosixPath("configs/metadata.json")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_RATIO = 100
"""Weights and text do not shrink a hundredfold; a file of less than ``_SMALL`` bytes may."""
_SMALL = 2**20


def unpack_bundle(archive: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Unpack a zip file with one bundle in it; nothing is written unless all entries are in order.

    Args:
        archive: zip file with ``configs/metadata.json``, at its top or in a single folder.
        folder: the bundle's new folder; it must not exist.

    Returns:
        The folder. Verify it next.

    Raises:
        BundleError: ``ARCHIVE_UNREADABLE`` (no zip file, or damaged), ``ARCHIVE_ENTRY`` (a name that leads out of the
            folder or stands twice, a link, encryption, an unknown compression), ``ARCHIVE_TOO_LARGE``,
            ``BUNDLE_INVALID`` (no bundle in it) or ``OUTPUT_TAKEN``.
    """
    target = Path(folder)
    if not Path(archive).is_file():
        raise BundleError("ARCHIVE_UNREADABLE", "no such file.", path=archive)
    if os.path.lexists(target):
        raise BundleError("OUTPUT_TAKEN", "there is something of that name already.", path=target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(archive) as source:
            entries = [entry for entry in source.infolist() if not entry.is_dir()]
            _check_entries(source.infolist(), archive)
            top = _top(entries, archive)
            for entry in entries:
                path = partial / PurePosixPath(entry.filename).relative_to(top)
                path.parent.mkdir(parents=True, exist_ok=True)
                with source.open(entry) as packed, path.open("xb") as file:
                    shutil.copyfileobj(packed, file)  # no more bytes than the entry's checked size, and its checksum
        partial.rename(target)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError("ARCHIVE_UNREADABLE", f"not unpacked ({error}).", path=archive) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_entries(entries: Sequence[zipfile.ZipInfo], archive: str | os.PathLike[str]) -> None:
    total = sum(entry.file_size for entry in entries)
    if len(entries) > 2 * MAX_FILES or total > MAX_FILE_BYTES:
        message = f"{len(entries)} entries of {total} bytes; at most {2 * MAX_FILES} of {MAX_FILE_BYTES} are unpacked."
        raise BundleError("ARCHIVE_TOO_LARGE", message, path=archive)
    seen: set[str] = set()
    for entry in entries:
        reason = _wrong(entry)
        if reason is None and entry.filename.rstrip("/").casefold() in seen:
            reason = "the same name twice"
        if reason is not None:
            raise BundleError("ARCHIVE_ENTRY", f"{entry.filename!r}: {reason}.", path=archive)
        if entry.file_size > max(_SMALL, _MAX_RATIO * entry.compress_size):
            message = f"{entry.filename!r} grows from {entry.compress_size} to {entry.file_size} bytes."
            raise BundleError("ARCHIVE_TOO_LARGE", message, path=archive)
        seen.add(entry.filename.rstrip("/").casefold())


def _wrong(entry: zipfile.ZipInfo) -> str | None:
    name = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    windows = PureWindowsPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or windows.drive or "\\" in entry.orig_filename or not name.parts:
        return "leads out of the folder"
    if not entry.filename.isprintable():
        return "a name that cannot be shown"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or device"
    if entry.flag_bits & 0x1:
        return "encrypted"
    return None if entry.compress_type in _METHODS else "an unknown compression"


def _top(entries: Sequence[zipfile.ZipInfo], archive: str | os.PathLike[str]) -> PurePosixPath:
    """The folder inside the archive that is the bundle; all entries lie in it."""
    names = [PurePosixPath(entry.filename) for entry in entries]
    found = [name.parents[1] for name in names if name.parts[-2:] == _METADATA.parts and len(name.parts) <= 3]
    if len(found) != 1 or not all(name.is_relative_to(found[0]) for name in names):
        message = f"expected one bundle, with {_METADATA} at the top or in a single folder."
        raise BundleError("BUNDLE_INVALID", message, path=archive)
    return found[0]
