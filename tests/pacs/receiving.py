"""A receiver to send to, what is sent, and peers that behave badly."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from accunet_monai.pacs.inbox import OpenSite
from accunet_monai.pacs.pseudonyms import make_key
from accunet_monai.pacs.receive import Receiver
from accunet_monai.pacs.settings import Site
from tests.pacs.servers import free_port

ROOT = "1.2.826.0.1.3680043.8.498.99"
ANYBODY = [{"ae_title": name, "addresses": ["127.0.0.1"]} for name in ("STORESCU", "ECHOSCU", "PYNETDICOM", "ORTHANC")]


def plain_site(folder: Path, limits: dict[str, Any] | None = None, **settings: Any) -> Site:
    """A site that takes from anybody here and has no bundles."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "site.key").exists():
        make_key(folder / "site.key")
    values: dict[str, Any] = {
        "ae_title": "ACCUNET",
        "port": free_port(),
        "storage": folder / "storage",
        "key_file": folder / "site.key",
        "peers": ANYBODY,
        "limits": {"keep_free_bytes": 0, **(limits or {})},
    }
    return Site.model_validate(values | settings)


@contextmanager
def receiving(site: Site) -> Iterator[Receiver]:
    with OpenSite(site) as opened:
        receiver = Receiver(site, opened.engine, opened.storage)
        receiver.start()
        try:
            yield receiver
        finally:
            receiver.stop(5)


def instance(number: int = 1, series: str = "1", study: str = "1", size: int = 32, **tags: Any) -> Dataset:
    """An MR image; ``number`` makes its UID and pixels, ``tags`` are set on it."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = MRImageStorage
    ds.SOPInstanceUID = UID(f"{ROOT}.{study}.{series}.{number}")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = UID(f"{ROOT}.{study}"), UID(f"{ROOT}.{study}.{series}")
    ds.PatientID, ds.PatientName, ds.Modality, ds.InstanceNumber = "P1", "Some^One", "MR", number
    ds.Rows = ds.Columns = size
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelData = np.random.default_rng(number).integers(0, 4096, (size, size), dtype=np.uint16).tobytes()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    return ds


def save(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:05d}.dcm" for number in range(len(datasets))]
    for ds, file in zip(datasets, files, strict=True):
        ds.save_as(file, enforce_file_format=True)
    return files


def dcmtk(name: str, receiver_port: int, *arguments: str, called: str = "ACCUNET") -> subprocess.CompletedProcess[str]:
    """Runs a client of DCMTK."""
    command = [name, "-aec", called, "127.0.0.1", str(receiver_port), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={"TCP_NODELAY": "1"})


class RawPeer:
    """A socket on which anything can be sent, by default after an association; ``answer`` is what came to that."""

    def __init__(
        self,
        port: int,
        *,
        associate: bool = True,
        title: str = "PYNETDICOM",
        syntax: str = ExplicitVRLittleEndian,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.answer = 0
        try:
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
            if associate:
                self.socket.sendall(associate_request(title, syntax))
                self.answer, self.terms = self.read()
        except OSError:
            self.close()
            raise

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push(self, data: bytes, most: int, pause: float = 0) -> int:
        """Sends again and again until the other side has closed; returns how many bytes that were, at most ``most``."""
        sent = 0
        while sent < most:
            try:
                self.socket.sendall(data)
            except OSError:
                return sent
            sent += len(data)
            time.sleep(pause)
        return sent

    def send(self, kind: int, content: bytes, length: int | None = None) -> None:
        self.socket.sendall(struct.pack(">BxL", kind, len(content) if length is None else length) + content)

    def value(self, control: int, data: bytes, context: int = 3) -> None:
        """A P-DATA-TF with one fragment; control 1: of the command, 2: the last."""
        self.send(4, struct.pack(">LBB", len(data) + 2, context, control) + data)

    def command(self, numbers: dict[int, int], sop_class: str, sop_instance_uid: str = "", context: int = 3) -> None:
        def element(number: int, data: bytes) -> bytes:
            data += b"\0" * (len(data) % 2)
            return struct.pack("<HHL", 0, number, len(data)) + data

        body = element(0x0002, sop_class.encode())
        body += b"".join(element(number, struct.pack("<H", value)) for number, value in numbers.items())
        body += element(0x1000, sop_instance_uid.encode()) if sop_instance_uid else b""
        self.value(3, element(0, struct.pack("<L", len(body))) + body, context)

    def store_command(self, sop_instance_uid: str) -> None:
        self.command({0x0100: 1, 0x0110: 7, 0x0700: 0, 0x0800: 1}, MRImageStorage, sop_instance_uid)

    def store(self, ds: Dataset) -> int:
        """Sends a dataset as it is encoded; returns the status."""
        self.store_command(ds.SOPInstanceUID)
        data = encoded(ds)
        for at in range(0, len(data), 16000):
            self.value(0 if at + 16000 < len(data) else 2, data[at : at + 16000])
        return self.status()

    def echo(self) -> int:
        self.command({0x0100: 0x30, 0x0110: 8, 0x0800: 0x0101}, Verification, context=1)
        return self.status()

    def status(self) -> int:
        """Of the response that comes; -1 where something else comes."""
        kind, content = self.read()
        if kind != 4:
            return -1
        at = content.index(b"\x00\x00\x00\x09\x02\x00\x00\x00")
        return int.from_bytes(content[at + 8 : at + 10], "little")

    def release(self) -> None:
        self.send(5, bytes(4))
        assert self.read()[0] == 6

    def read(self) -> tuple[int, bytes]:
        """The type and content of the next PDU; (0, b"") when the connection was closed."""
        header = self._exactly(6)
        if len(header) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxL", header)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError:
                return b""
            if not more:
                return data
            data += more
        return data

    def close(self) -> None:
        self.socket.close()


def associate_request(title: str, syntax: str) -> bytes:
    """An A-ASSOCIATE-RQ: context 1 for verification, 3 for MR images."""

    def item(kind: int, data: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(data)) + data

    def context(number: int, abstract: str) -> bytes:
        names = item(0x30, abstract.encode()) + item(0x40, (syntax if number == 3 else ExplicitVRLittleEndian).encode())
        return item(0x20, bytes((number, 0, 0, 0)) + names)

    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3")
    body = (
        item(0x10, b"1.2.840.10008.3.1.1.1") + context(1, Verification) + context(3, MRImageStorage) + item(0x50, user)
    )
    head = struct.pack(">HH", 1, 0) + b"ACCUNET".ljust(16) + title.encode().ljust(16) + bytes(32)
    return struct.pack(">BxL", 1, len(head + body)) + head + body


def encoded(ds: Dataset) -> bytes:
    """The dataset as it goes over the wire."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    return data[144 + int.from_bytes(data[140:144], "little") :]


def eventually(true: Callable[[], object], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(true())


def stored_files(site: Site) -> list[Path]:
    return sorted((site.storage / "instances").rglob("*.dcm"))


def unfinished(site: Site) -> list[Path]:
    return sorted((site.storage / "incoming").rglob("*.partial"))


def same_dataset(file: Path, ds: Dataset) -> bool:
    found = pydicom.dcmread(file)
    return dict(found) == dict(ds) and found.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
