"""Mutual TLS with real parts: DCMTK sends to us, and we deliver to Orthanc by DICOM and by DICOMweb."""

from __future__ import annotations

import gc
import logging
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from accunet_monai.errors import PacsError
from accunet_monai.pacs.delivering import open_channel
from accunet_monai.pacs.query import echo, find_remote
from accunet_monai.pacs.receive import server_tls
from accunet_monai.pacs.settings import Pacs, Site, Tls
from accunet_monai.pacs.wire import Pdu, Wire
from tests.conftest import Require
from tests.pacs import servers
from tests.pacs.receiving import ANYBODY, dcmtk, instance, plain_site, receiving, save, stored_files

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestWarning")
"""pynetdicom does not close the socket of a failed handshake; it goes when nothing refers to it any more."""


@pytest.fixture(autouse=True)
def _no_record_refers_to_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of exceptions, which pytest keeps, would let them live into the next test."""
    monkeypatch.setattr(logging.getLogger("pynetdicom.transport"), "disabled", True)


@dataclass(frozen=True)
class Certificates:
    """Made by openssl: those of ``hospital.pem`` (us, pacs, modality, old) and a stranger's of ``other.pem``."""

    folder: Path

    def tls(self, name: str, ca: str = "hospital") -> dict[str, Path]:
        """The section ``tls`` of a site's settings."""
        return {"certificate": self.pem(name), "key": self.key(name), "ca": self.pem(ca)}

    def pem(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def sign(self, name: str, ca: str, days: int = 2) -> None:
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(self.key(name))]
        self._openssl("req", *new, "-subj", f"/CN={name}", "-out", str(self.folder / "request"))
        names = self.folder / "names"
        names.write_text("basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="ascii")
        signer = ["-CA", str(self.pem(ca)), "-CAkey", str(self.key(ca)), "-CAcreateserial", "-days", str(days)]
        files = ["-in", str(self.folder / "request"), "-extfile", str(names), "-out", str(self.pem(name))]
        self._openssl("x509", "-req", *signer, *files)

    def authority(self, name: str) -> None:
        new = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        files = ["-keyout", str(self.key(name)), "-out", str(self.pem(name))]
        self._openssl("req", *new, "-subj", f"/CN=authority {name}", *files)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, require: Require) -> Certificates:
    require("openssl", shutil.which("openssl"), "no openssl")
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.authority("hospital")
    made.authority("other")
    for name in ("us", "pacs", "modality"):
        made.sign(name, "hospital")
    made.sign("old", "hospital", days=-1)
    made.sign("stranger", "other")
    return made


@dataclass(frozen=True)
class SecurePacs:
    """An Orthanc that wants a certificate of who calls, and shows its own."""

    orthanc: servers.Orthanc
    web_port: int

    def site(self, folder: Path, made: Certificates, name: str = "us", ca: str = "hospital") -> Site:
        """A site that delivers to it both ways."""
        dimse = {**self.orthanc.dimse, "host": "localhost", "tls": True}
        web = {"url": f"https://localhost:{self.web_port}/dicom-web", "tls": True}
        return plain_site(
            folder,
            tls=made.tls(name, ca),
            pacs=[{"name": "archive", "dimse": dimse, "dicomweb": web}],
            destinations=[{"name": kind, "pacs": "archive", "kind": kind} for kind in ("dimse", "dicomweb")],
        )


@contextmanager
def secure_pacs(made: Certificates, name: str, folder: Path) -> Iterator[SecurePacs]:
    """Orthanc with a certificate: its own DICOM TLS, and a proxy before its web port (see :class:`Proxy`)."""
    tls = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(made.pem(name)),
        "DicomTlsPrivateKey": str(made.key(name)),
        "DicomTlsTrustedCertificates": str(made.pem("hospital")),
    }
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(made.pem("hospital")))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(made.pem(name), made.key(name))
    with servers.orthanc(folder, more=tls) as it, Proxy(context, it.web_port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield SecurePacs(it, proxy.server_address[1])
        gc.collect()  # clients in cycles, with their connections
        proxy.shutdown()
        thread.join()


class Proxy(socketserver.ThreadingTCPServer):
    """Ends TLS before a web server, as proxies do; Debian's Orthanc 1.10.1 crashes when it does so itself."""

    def __init__(self, tls: ssl.SSLContext, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.tls, self.port = tls, port

    def handle_error(self, request: object, client_address: object) -> None:
        """Failed handshakes are what the tests are about."""


class _Forward(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with (
            self.server.tls.wrap_socket(self.request, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", self.server.port)) as inside,
        ):
            outside.settimeout(10)  # of a client that nobody closed
            answers = threading.Thread(target=self._copy, args=(inside, outside))
            answers.start()
            self._copy(outside, inside)
            inside.shutdown(socket.SHUT_WR)
            answers.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)


@pytest.fixture(scope="module")
def pacs(made: Certificates, tmp_path_factory: pytest.TempPathFactory, require: Require) -> Iterator[SecurePacs]:
    require("orthanc", shutil.which("Orthanc") and servers.DICOM_WEB.exists(), "no Orthanc with DICOMweb")
    with secure_pacs(made, "pacs", tmp_path_factory.mktemp("pacs")) as it:
        yield it


def test_storescu_sends_with_a_certificate_of_the_hospital_and_nobody_else_does(
    made: Certificates, tmp_path: Path, require: Require
) -> None:
    require("dcmtk", shutil.which("storescu"), "no DCMTK")
    (file,) = save([instance(1)], tmp_path / "sent")
    site = plain_site(tmp_path, tls=made.tls("us"), peers=ANYBODY)
    trusting = ["+cf", str(made.pem("hospital"))]

    def sends(*options: str) -> bool:
        return dcmtk("storescu", receiver.port, *options, str(file)).returncode == 0

    with receiving(site) as receiver:
        assert not sends()
        assert not sends("+tla", *trusting)
        assert not sends("+tls", str(made.key("stranger")), str(made.pem("stranger")), *trusting)
        assert not sends("+tls", str(made.key("old")), str(made.pem("old")), *trusting)
        assert stored_files(site) == []
        assert sends("+tls", str(made.key("modality")), str(made.pem("modality")), *trusting)
        assert receiver.counts["TLS_FAILED"] == 4
        assert receiver.counts["instance new"] == 1
    assert len(stored_files(site)) == 1


@pytest.mark.parametrize("end", ["stop_reading", "close"])
def test_what_is_read_while_the_receiver_stops_is_never_ciphertext(end: str, made: Certificates) -> None:
    class Stopped(Wire):
        """Another thread stops it between two pieces of a PDU."""

        pieces = 0

        def _wait_at_most(self, seconds: float) -> None:
            super()._wait_at_most(seconds)
            self.pieces += 1
            if self.pieces == 3:
                getattr(self, end)()

    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(made.pem("hospital")))
    context.load_cert_chain(made.pem("modality"), made.key("modality"))
    ours, theirs = socket.socketpair()
    content = bytes(range(256)) * 400

    def send() -> None:
        with context.wrap_socket(theirs, server_hostname="localhost") as peer, suppress(OSError):
            peer.sendall(struct.pack(">BxL", Pdu.DATA, len(content)) + content)
            sent.set()
            peer.recv(1)

    sent = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    secured = server_tls(Tls.model_validate(made.tls("us"))).wrap_socket(ours, server_side=True)
    assert sent.wait(10)
    wire = Stopped(secured, 5)
    if end == "close":
        with pytest.raises(PacsError, match="PEER_GONE"):
            wire.read(1 << 20)
    else:  # what was here already still arrives
        assert wire.read(1 << 20) == (Pdu.DATA, content)
    assert wire.pieces >= 3
    wire.close()
    thread.join()


@pytest.mark.parametrize("kind", ["dimse", "dicomweb"])
def test_an_object_is_delivered_and_found(kind: str, made: Certificates, pacs: SecurePacs, tmp_path: Path) -> None:
    ds = instance(1, study="7" if kind == "dimse" else "8")
    (file,) = save([ds], tmp_path / "sent")
    site = pacs.site(tmp_path, made)
    channel = open_channel(site, site.destination(kind))
    assert not channel.has(file)
    channel.send(file)
    assert channel.has(file)
    (there,) = pacs.orthanc.instances(SOPInstanceUID=ds.SOPInstanceUID)
    assert pacs.orthanc.dataset(there).PixelData == ds.PixelData


@pytest.mark.parametrize("kind", ["dimse", "dicomweb"])
@pytest.mark.parametrize(("name", "ca"), [("stranger", "hospital"), ("us", "other")])
def test_strangers_on_either_side_are_told_apart_from_silence(
    kind: str, name: str, ca: str, made: Certificates, pacs: SecurePacs, tmp_path: Path
) -> None:
    site = pacs.site(tmp_path, made, name, ca)
    (file,) = save([instance(2)], tmp_path / "sent")
    with pytest.raises(PacsError) as raised:
        open_channel(site, site.destination(kind)).send(file)
    assert raised.value.code == "PACS_TLS"
    assert pacs.orthanc.instances(SOPInstanceUID=str(instance(2).SOPInstanceUID)) == []


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)  # of pynetdicom
def test_an_expired_certificate_of_the_pacs_is_named(made: Certificates, tmp_path: Path, require: Require) -> None:
    require("orthanc", shutil.which("Orthanc") and servers.DICOM_WEB.exists(), "no Orthanc with DICOMweb")
    with secure_pacs(made, "old", tmp_path / "pacs") as expired:
        site = expired.site(tmp_path, made)
        archive: Pacs = site.pacs_named("archive")
        assert archive.dimse is not None
        (file,) = save([instance(3)], tmp_path / "sent")
        for what in (
            lambda: echo(site, archive.dimse),
            lambda: find_remote(site, archive, {}, by_web=True),
            lambda: open_channel(site, site.destination("dimse")).has(file),
            lambda: open_channel(site, site.destination("dicomweb")).send(file),
        ):
            with pytest.raises(PacsError, match="certificate has expired") as raised:
                what()
            assert raised.value.code == "PACS_TLS"
