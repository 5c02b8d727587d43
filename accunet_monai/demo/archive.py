"""The PACS of the demo: Orthanc where it is installed, else a few lines of pynetdicom in this process."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import EventHandlerType
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from accunet_monai.errors import PacsError

TITLE = "DEMOPACS"
ORTHANC = "Orthanc"
_START_SECONDS = 30


class Archive(ABC):
    """A PACS that stores what it is sent, tells what it has, and hands it out as files.

    Args:
        name: what it is, for people.
        port: of its storage and query provider on this machine, AE title ``DEMOPACS``.
    """

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port

    @abstractmethod
    def objects(self, modality: str) -> list[Path]:
        """Files of all objects of a modality."""


@contextmanager
def running_archive(folder: Path) -> Iterator[Archive]:
    """A PACS that keeps its files in a folder and ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with _orthanc(folder) if shutil.which(ORTHANC) else _in_process(folder) as archive:
        yield archive


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class _InProcess(Archive):
    def __init__(self, folder: Path, port: int) -> None:
        super().__init__("a PACS in this process", port)
        self.folder = folder
        self._identities: dict[str, Dataset] = {}

    def store(self, event: evt.Event) -> int:
        """C-STORE."""
        ds = event.dataset
        ds.file_meta = event.file_meta
        ds.save_as(self.folder / f"{ds.SOPInstanceUID}.dcm", enforce_file_format=True)
        self._identities[str(ds.SOPInstanceUID)] = ds
        return 0x0000

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        """C-FIND of one object by its UID, which is what a site asks."""
        found = self._identities.get(str(event.identifier.get("SOPInstanceUID", "")))
        if found is not None:
            answer = Dataset()
            answer.QueryRetrieveLevel = "IMAGE"
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(answer, name, found[name].value)
            yield 0xFF00, answer
        yield 0x0000, None

    def objects(self, modality: str) -> list[Path]:
        """See :class:`Archive`."""
        found = (uid for uid, ds in self._identities.items() if ds.Modality == modality)
        return [self.folder / f"{uid}.dcm" for uid in found]


@contextmanager
def _in_process(folder: Path) -> Iterator[Archive]:
    archive = _InProcess(folder, free_port())
    ae = AE(ae_title=TITLE)
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(Verification)
    handlers: list[EventHandlerType] = [(evt.EVT_C_STORE, archive.store), (evt.EVT_C_FIND, archive.find)]
    server = ae.start_server(("127.0.0.1", archive.port), block=False, evt_handlers=handlers)
    try:
        yield archive
    finally:
        if server is not None:
            server.shutdown()


class _Orthanc(Archive):
    def __init__(self, folder: Path, port: int, web_port: int) -> None:
        super().__init__("Orthanc", port)
        self.folder, self._web = folder, f"http://127.0.0.1:{web_port}"

    def objects(self, modality: str) -> list[Path]:
        """See :class:`Archive`."""
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        files = []
        for name in json.loads(self.ask("/tools/find", json.dumps(query).encode())):
            files.append(self.folder / f"{name}.dcm")
            files[-1].write_bytes(self.ask(f"/instances/{name}/file"))
        return files

    def ask(self, path: str, content: bytes | None = None) -> bytes:
        """A GET, or a POST of some content."""
        with urllib.request.urlopen(self._web + path, content, timeout=10) as answer:  # noqa: S310
            return bytes(answer.read())


@contextmanager
def _orthanc(folder: Path) -> Iterator[Archive]:
    archive = _Orthanc(folder, port := free_port(), web_port := free_port())
    settings: dict[str, Any] = {
        "StorageDirectory": "storage",
        "IndexDirectory": "storage",
        "DicomAet": TITLE,
        "DicomPort": port,
        "HttpPort": web_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowFind": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        command = [ORTHANC, str(folder / "orthanc.json")]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
    try:
        _wait_for(archive, process)
        yield archive
    finally:
        process.terminate()
        process.wait(_START_SECONDS)


def _wait_for(archive: _Orthanc, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            archive.ask("/system")
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > until:
                log = archive.folder / "orthanc.log"
                raise PacsError("DEMO_ORTHANC", "Orthanc does not start.", path=log) from error
        time.sleep(0.1)


def send(files: list[Path], calling: str, called: str, port: int) -> None:
    """C-STORE files, MR images or SEG, to a provider on this machine.

    Raises:
        PacsError: ``SEND_REFUSED``.
    """
    ae = AE(ae_title=calling)
    heads = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    for sop_class, syntax in {(head.SOPClassUID, head.file_meta.TransferSyntaxUID) for head in heads}:
        ae.add_requested_context(sop_class, syntax)
    association = ae.associate("127.0.0.1", port, ae_title=called)
    try:
        for file in files:
            status = association.send_c_store(file) if association.is_established else Dataset()
            if status.get("Status") != 0x0000:
                raise PacsError("SEND_REFUSED", f"{called} did not take the object.", path=file)
    finally:
        if association.is_established:
            association.release()
