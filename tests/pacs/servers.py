"""Servers of others that the tests talk to: Orthanc as a PACS, PostgreSQL as the database."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom

POSTGRES = Path("/usr/lib/postgresql/15/bin")
DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Orthanc:
    """A running Orthanc; ``start`` again after ``kill`` finds what it stored.

    Args:
        folder: for its files.
        modalities: AE titles that it may call, with their ports here.
        more: further settings.
    """

    def __init__(self, folder: Path, modalities: Mapping[str, int], more: Mapping[str, Any] | None = None) -> None:
        self.dicom_port, self.web_port = free_port(), free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "ORTHANC",
            "DicomPort": self.dicom_port,
            "HttpPort": self.web_port,
            "HttpServerEnabled": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": False,
            "DicomModalities": {name: [name, "127.0.0.1", port] for name, port in modalities.items()},
            "DicomModalitiesInDatabase": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "StorageCompression": False,
            "OverwriteInstances": False,
            "ConcurrentJobs": 4,
            "Plugins": [str(DICOM_WEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings | dict(more or {})), encoding="utf-8")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.web_port}/dicom-web"

    @property
    def dimse(self) -> dict[str, Any]:
        return {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": self.dicom_port}

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            environment = {**os.environ, "TCP_NODELAY": "1"}
            command = ["Orthanc", str(self.folder / "orthanc.json")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        for _ in range(300):
            try:
                self.get("/system")
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError((self.folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:])

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait(30)
            self.process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web_port}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def file(self, instance: str) -> bytes:
        address = f"http://127.0.0.1:{self.web_port}/instances/{instance}/file"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return bytes(answer.read())

    def header(self, instance: str) -> pydicom.Dataset:
        return pydicom.dcmread(io.BytesIO(self.file(instance)), stop_before_pixels=True)

    def dataset(self, instance: str) -> pydicom.Dataset:
        return pydicom.dcmread(io.BytesIO(self.file(instance)))

    def post(self, path: str, content: Any) -> Any:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}{path}", data=body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def delete(self, instance: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}/instances/{instance}", method="DELETE")
        urllib.request.urlopen(request, timeout=10).close()

    def instances(self, **tags: str) -> list[str]:
        """Orthanc's ids of the instances with these tags, e.g. ``Modality="SEG"``."""
        found: list[str] = self.post("/tools/find", {"Level": "Instance", "Query": tags})
        return found


@contextmanager
def orthanc(
    folder: Path, modalities: Mapping[str, int] | None = None, more: Mapping[str, Any] | None = None
) -> Iterator[Orthanc]:
    it = Orthanc(folder, modalities or {}, more)
    it.start()
    try:
        yield it
    finally:
        it.kill(signal.SIGTERM)


class Postgres:
    """A PostgreSQL server with its files in a folder; as root it runs as the user postgres."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "accunet", "-A", "trust", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://accunet@127.0.0.1:{self.port}/accunet"

    def start(self) -> None:
        options = [
            "-D",
            str(self.data),
            "-p",
            str(self.port),
            "-k",
            str(self.folder),
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command("postgres", *options), stdout=log, stderr=log)
        for _ in range(300):
            if self._ready():
                break
            time.sleep(0.1)
        else:
            raise RuntimeError((self.folder / "log").read_text(encoding="utf-8")[-2000:])

    def create(self) -> None:
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "accunet", "accunet")

    def recreate(self) -> None:
        """An empty database."""
        self._run("dropdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "accunet", "--force", "accunet")
        self.create()

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """All its processes at once."""
        if self.process is None:
            return
        pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        for one in (pid, *map(int, children)) if signal_number == signal.SIGKILL else (pid,):
            try:
                os.kill(one, signal_number)
            except ProcessLookupError:
                continue
        self.process.wait(30)
        self.process = None

    def _ready(self) -> bool:
        command = [str(POSTGRES / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(self._command(name, *arguments), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())

    def _command(self, name: str, *arguments: str) -> list[str]:
        command = [str(POSTGRES / name), *arguments]
        return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@contextmanager
def postgres() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # not pytest's, which are closed to other users
        it = Postgres(Path(folder))
        it.start()
        it.create()
        try:
            yield it
        finally:
            it.kill(signal.SIGINT)
