"""The storage folder: received instances under names made of digests, whole or absent, and told when damaged.

An instance is written below ``incoming``, then renamed to ``instances/AA/SERIES/CONTENT.dcm``, where ``SERIES`` and
``CONTENT`` are digests. The same content has the same name, other content another one: nothing is ever overwritten by
something else. It counts as received when its file and its folder are on disk and its row is committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import DeflatedExplicitVRLittleEndian
from sqlalchemy import Connection, Engine, func, select

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import insert_new, reading
from accunet_monai.pacs.heads import HEAD_BYTES, Head, InflatedSize, read_head
from accunet_monai.pacs.settings import Limits
from accunet_monai.pacs.tables import asides, instances, revision_instances, storage_mark

MARK = ".accunet-storage"
"""A file at the storage's root: a folder without it is not the storage, but perhaps the place where it is mounted."""

_IMPLEMENTATION = "1.2.826.0.1.3680043.10.1587.1"
_SPACE_EVERY = 64 * 2**20  # bytes between two looks at the free space
_TO_DISK_EVERY = 1 << 17  # bytes; what is still in memory at the end is waited for


class Storage:
    """The storage folder of a site.

    Args:
        folder: where it is.
        limits: what may be stored.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self._lock = threading.Lock()
        self._used = 0
        self._since_look = _SPACE_EVERY
        self._made: set[Path] = set()

    def prepare(self, engine: Engine) -> None:
        """Make the folder when the database is new, and learn how much is stored.

        Raises:
            PacsError: ``STORAGE_MISSING`` when this is not the folder that belongs to the database.
        """
        try:
            with engine.begin() as connection:
                known = self._known_mark(connection)
        except OSError as error:
            raise PacsError("STORAGE_WRITE", f"cannot be written ({error.strerror}).", path=self.folder) from error
        if known is None or self._mark() != known:
            hint = f"Mount it, for nothing starts without it. Of one that was restored, {MARK} may be missing"
            hint += f": it says {known}." if known else "."
            raise PacsError("STORAGE_MISSING", "this is not the database's storage.", path=self.folder, hint=hint)
        self.refresh(engine)

    def _known_mark(self, connection: Connection) -> str | None:
        """The mark that the database names; a new database takes the folder's, or marks the folder."""
        query = select(storage_mark.c.mark)
        found = self._mark()
        if known := connection.execute(query).scalar():
            return str(known)
        if found is None and connection.execute(select(instances.c.file).limit(1)).first():
            return None  # a database of a release that did not name it
        own = found or uuid.uuid4().hex
        insert_new(connection, storage_mark, {"id": 1, "mark": own})
        known = str(connection.execute(query).scalar_one())  # another machine's, if that was quicker
        if found is None and known == own:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / MARK).write_text(own + "\n", encoding="ascii")
            sync_folder(self.folder)
        return known

    def _mark(self) -> str | None:
        try:
            return (self.folder / MARK).read_text(encoding="ascii", errors="replace").strip() or None
        except FileNotFoundError:
            return None

    def refresh(self, engine: Engine) -> None:
        """Learn from the database how many bytes are stored."""
        with reading(engine) as connection:
            sizes = [connection.execute(select(func.sum(table.c.size))).scalar() for table in (instances, asides)]
        with self._lock:
            self._used = sum(int(size or 0) for size in sizes)

    @property
    def used(self) -> int:
        """Bytes that are stored or on their way."""
        return self._used

    def clear_incoming(self, name: str) -> None:
        """Remove what an earlier process of that name left unfinished; none of it was acknowledged."""
        shutil.rmtree(self._incoming(name), ignore_errors=True)

    def open_incoming(self, name: str, sop_class_uid: str, sop_instance_uid: str, syntax: str) -> Incoming:
        """A new unfinished instance, with its meta header.

        Raises:
            PacsError: ``STORAGE_MISSING`` when the storage is not mounted any more.
        """
        if not (self.folder / MARK).is_file():
            raise PacsError("STORAGE_MISSING", "the storage is away.", path=self.folder, hint="Mount it again.")
        folder = self._incoming(name)
        folder.mkdir(parents=True, exist_ok=True)
        return Incoming(self, folder / f"{uuid.uuid4().hex}.partial", (sop_class_uid, sop_instance_uid, syntax))

    def reserve(self, count: int) -> None:
        """Count bytes that are about to be written.

        Raises:
            PacsError: ``STORAGE_FULL``.
        """
        with self._lock:
            self._since_look += count
            if self._used + count > self.limits.quota_bytes:
                raise PacsError("STORAGE_FULL", "the quota is used up.", path=self.folder, hint="Raise quota_bytes.")
            if self._since_look > _SPACE_EVERY:
                self._since_look = 0
                if shutil.disk_usage(self.folder).free < self.limits.keep_free_bytes:
                    self._since_look = _SPACE_EVERY  # look again the next time
                    raise PacsError("STORAGE_FULL", "the disk is full.", path=self.folder, hint="Make room.")
            self._used += count

    def release(self, count: int) -> None:
        """Give back bytes that were not kept."""
        with self._lock:
            self._used -= count

    def keep(self, incoming: Path, handle: int, series_uid: str, sha256: str) -> str:
        """Rename a written file to its place; returns its name in the storage when it and its folder are on disk."""
        series = digest_of(series_uid)[:32]
        folder = self.folder / "instances" / series[:2] / series
        self._make(folder)
        target = folder / f"{sha256}.dcm"
        if target.exists():  # what was acknowledged once is not replaced by what is not on disk yet
            os.fsync(handle)
        incoming.rename(target)
        os.fsync(handle)
        sync_folder(folder)
        return target.relative_to(self.folder).as_posix()

    def path(self, file: str, sha256: str) -> Path:
        """A stored file whose content is as it was received.

        Raises:
            PacsError: ``INSTANCE_MISSING`` or ``INSTANCE_DAMAGED``.
        """
        path = self.folder / file
        hint = "Send the instance again: what is damaged is then replaced."
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise PacsError("INSTANCE_MISSING", f"cannot be read ({error.strerror}).", path=path, hint=hint) from error
        if found != sha256:
            raise PacsError("INSTANCE_DAMAGED", "the content is not what was received.", path=path, hint=hint)
        return path

    def checkout(self, engine: Engine, revision_id: str, folder: Path) -> list[Path]:
        """Links to a revision's files, each checked, in an empty folder; in order of their digests.

        Raises:
            PacsError: ``INSTANCE_MISSING`` or ``INSTANCE_DAMAGED``.
        """
        query = (
            select(instances.c.file, instances.c.sha256)
            .join(revision_instances, revision_instances.c.sop_instance_uid == instances.c.sop_instance_uid)
            .where(revision_instances.c.revision_id == revision_id)
            .order_by(instances.c.sha256)
        )
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        if not rows:
            raise PacsError("INSTANCE_MISSING", "the revision's images were removed.", hint="Send the series again.")
        folder.mkdir(parents=True, exist_ok=True)
        links = []
        for number, (file, sha256) in enumerate(rows):
            link = folder / f"{number:06d}.dcm"
            link.symlink_to(self.path(file, sha256).resolve())
            links.append(link)
        return links

    def _incoming(self, name: str) -> Path:
        return self.folder / "incoming" / digest_of(name)[:16]

    def _make(self, folder: Path) -> None:
        if folder in self._made and folder.is_dir():
            return
        for part in (self.folder / "instances", folder.parent, folder):
            if not part.is_dir():
                part.mkdir(exist_ok=True)
                sync_folder(part.parent)
        self._made.add(folder)
        if len(self._made) > 10_000:
            self._made.clear()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An instance on disk: what it is, its file's name in the storage, digest and size."""

    head: Head
    file: str
    sha256: str
    size: int
    transfer_syntax: str


class Incoming:
    """An instance that is being written: hashed and counted on its way, kept whole or not at all.

    Args:
        storage: where it goes.
        path: its unfinished file.
        meta: SOP class, SOP instance and transfer syntax, as its sender announced them.
    """

    def __init__(self, storage: Storage, path: Path, meta: tuple[str, str, str]) -> None:
        self._storage, self._path, self._meta = storage, path, meta
        self._digest = hashlib.sha256()
        self._head = bytearray()
        self._start = 0
        self._begun = 0
        self._inflated = InflatedSize(storage.limits.max_inflated_bytes) if _is_deflated(meta[2]) else None
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        self.size = 0
        try:
            self._put(meta_header(*meta))
        except BaseException:
            self.discard()
            raise
        self._start = self.size

    def write(self, data: bytes | memoryview) -> None:
        """Append a piece of the dataset.

        Raises:
            PacsError: ``INSTANCE_TOO_LARGE``, ``INSTANCE_INFLATED``, ``INSTANCE_UNREADABLE`` or ``STORAGE_FULL``.
        """
        if self.size + len(data) > self._storage.limits.max_instance_bytes:
            raise PacsError("INSTANCE_TOO_LARGE", "the instance is larger than max_instance_bytes.")
        if self._inflated is not None:
            self._inflated.add(data)
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self._put(data)

    def keep(self) -> StoredFile:
        """Bring it to its place and to disk.

        Raises:
            PacsError: ``INSTANCE_UNREADABLE``, ``INSTANCE_UID``, or ``INSTANCE_MISMATCH`` when the dataset is not what
                was announced.
            OSError: the disk failed.
        """
        head = self._read_head()
        if (head.sop_class_uid, head.sop_instance_uid) != self._meta[:2]:
            raise PacsError("INSTANCE_MISMATCH", "the dataset is another instance than was announced.")
        if self._file is None:
            raise PacsError("INSTANCE_UNREADABLE", "the instance was discarded.")
        sha256 = self._digest.hexdigest()
        file = self._storage.keep(self._path, self._file, head.series_uid, sha256)
        os.close(self._file)
        self._file = None
        return StoredFile(head, file, sha256, self.size, self._meta[2])

    def discard(self) -> None:
        """Remove what was written; harmless after :meth:`keep`."""
        if self._file is not None:
            file, self._file = self._file, None
            self._storage.release(self.size)
            with contextlib.suppress(OSError):  # the disk failed; what is left goes with the leftovers
                self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                os.close(file)

    def _put(self, data: bytes | memoryview) -> None:
        if self._file is None:
            raise PacsError("INSTANCE_UNREADABLE", "the instance was discarded.")
        self._storage.reserve(len(data))
        self.size += len(data)
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        if self.size - self._begun >= _TO_DISK_EVERY:
            # Linux then begins to write, so that little is left to wait for in the end; it frees the memory later.
            os.posix_fadvise(self._file, self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = self.size

    def _read_head(self) -> Head:
        syntax, held = self._meta[2], bytes(self._head)
        head = read_head(held, syntax, whole=self.size - self._start <= len(held))
        if head is None:
            with self._path.open("rb") as stream:
                stream.seek(self._start)
                head = read_head(stream.read(self._storage.limits.max_header_bytes), syntax, whole=True)
        if head is None:
            raise PacsError("INSTANCE_UNREADABLE", "the dataset has no readable head.")
        return head


def digest_of(text: str) -> str:
    """The sha256 of a text, which names what must not stand in a file's name."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def meta_header(sop_class_uid: str, sop_instance_uid: str, syntax: str) -> bytes:
    """Preamble and file meta information; the same for the same instance in every release."""
    values = (
        (0x0001, b"OB", b"\x00\x01"),
        (0x0002, b"UI", _even(sop_class_uid, b"\0")),
        (0x0003, b"UI", _even(sop_instance_uid, b"\0")),
        (0x0010, b"UI", _even(syntax, b"\0")),
        (0x0012, b"UI", _even(_IMPLEMENTATION, b"\0")),
        (0x0013, b"SH", _even("ACCUNET_MONAI", b" ")),
    )
    body = b"".join(
        struct.pack("<HH2s", 2, element, vr)
        + (struct.pack("<HL", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value)))
        + value
        for element, vr, value in values
    )
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(body)) + body


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)


def _is_deflated(syntax: str) -> bool:
    return syntax == DeflatedExplicitVRLittleEndian


def sync_folder(folder: Path) -> None:
    """What was renamed into a folder is on disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
