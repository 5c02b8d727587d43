"""The storage SCP with real clients, and with clients that nobody should have to meet."""

from __future__ import annotations

import errno
import hashlib
import resource
import shutil
import socket
import ssl
import struct
import threading
import time
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless
from sqlalchemy import Table, select
from sqlalchemy.exc import OperationalError

from accunet_monai.errors import PacsError
from accunet_monai.pacs.acceptor import Peers
from accunet_monai.pacs.database import make_engine, open_database, reading
from accunet_monai.pacs.inbox import OpenSite
from accunet_monai.pacs.receive import Receiver
from accunet_monai.pacs.settings import Peer, Site
from accunet_monai.pacs.storage import MARK
from accunet_monai.pacs.tables import asides, association_series, instances, series, storage_mark
from tests.conftest import Require
from tests.pacs.receiving import (
    ROOT,
    RawPeer,
    dcmtk,
    eventually,
    instance,
    plain_site,
    receiving,
    same_dataset,
    save,
    stored_files,
    unfinished,
)

ACCEPTED, REJECTED, ABORT = 2, 3, 7


@pytest.fixture
def tools(require: Require) -> None:
    require("dcmtk", shutil.which("storescu") and shutil.which("echoscu"), "no DCMTK")


def rows(site: Site) -> dict[str, tuple[str, str]]:
    """SOP UID → (sha256, file)."""
    return {row.sop_instance_uid: (row.sha256, row.file) for row in everything(site, instances)}


def everything(site: Site, table: Table) -> list[Any]:
    engine = open_database(site.database_url)
    with reading(engine) as connection:
        found = list(connection.execute(select(table)).all())
    engine.dispose()
    return found


def test_storescu_sends_a_series_and_everything_is_there(tools: None, tmp_path: Path) -> None:
    datasets = [instance(number, size=64) for number in range(1, 21)]
    save(datasets, tmp_path / "sent")
    site = plain_site(tmp_path)
    with receiving(site) as receiver:
        assert dcmtk("echoscu", receiver.port).returncode == 0
        assert dcmtk("storescu", receiver.port, "+sd", str(tmp_path / "sent")).returncode == 0
        again = dcmtk("storescu", receiver.port, "+sd", str(tmp_path / "sent"))
        assert again.returncode == 0
        assert receiver.counts["instance new"] == receiver.counts["instance same"] == 20
    found = rows(site)
    assert set(found) == {ds.SOPInstanceUID for ds in datasets}
    for ds in datasets:
        sha256, file = found[ds.SOPInstanceUID]
        assert hashlib.sha256((site.storage / file).read_bytes()).hexdigest() == sha256
        assert same_dataset(site.storage / file, ds)
    assert len(stored_files(site)) == 20
    assert unfinished(site) == []
    (one,) = everything(site, series)
    assert (one.series_uid, one.modality, one.complete_at) == (f"{ROOT}.1.1", "MR", None)
    assert one.patient_key not in ("P1", "")
    assert everything(site, association_series) == []


@pytest.mark.parametrize(
    ("name", "called", "said"), [("NOBODY", "ACCUNET", "Calling"), ("STORESCU", "OTHER", "Called")]
)
def test_unknown_titles_are_rejected(name: str, called: str, said: str, tools: None, tmp_path: Path) -> None:
    with receiving(plain_site(tmp_path)) as receiver:
        answer = dcmtk("echoscu", receiver.port, "-aet", name, called=called)
    assert answer.returncode != 0
    assert f"{said} AE Title Not Recognized" in answer.stderr + answer.stdout


def test_a_known_title_from_another_address_is_rejected(tmp_path: Path) -> None:
    peers = [{"ae_title": "PYNETDICOM", "addresses": ["192.0.2.1"]}, {"ae_title": "OTHER", "addresses": ["127.0.0.1"]}]
    with receiving(plain_site(tmp_path, peers=peers)) as receiver, RawPeer(receiver.port) as peer:
        assert peer.answer == REJECTED
    with receiving(plain_site(tmp_path / "b", peers=peers[:1])) as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=5) as connection:
            assert connection.recv(1) == b""  # closed before anything is said
        assert receiver.counts["ADDRESS_UNKNOWN"] == 1


def test_other_content_under_the_same_uid_is_set_aside(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        first, second = instance(1, PatientID="P1"), instance(1, PatientID="P2")
        assert [peer.store(ds) for ds in (first, second, first, second)] == [0, 0, 0, 0]
        counts = dict(receiver.counts)
    assert (counts["instance new"], counts["instance same"], counts["instance aside"]) == (1, 1, 2)
    ((sha256, file),) = rows(site).values()
    assert same_dataset(site.storage / file, first)
    (aside,) = everything(site, asides)
    assert aside.sha256 != sha256
    assert same_dataset(site.storage / aside.file, second)


def test_a_damaged_file_is_told_and_healed_by_sending_it_again(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        peer.store(instance(1))
        ((sha256, file),) = rows(site).values()
        path = site.storage / file
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        with pytest.raises(PacsError, match="INSTANCE_DAMAGED"):
            receiver.storage.path(file, sha256)
        path.unlink()
        with pytest.raises(PacsError, match="INSTANCE_MISSING"):
            receiver.storage.path(file, sha256)
        assert peer.store(instance(1)) == 0
        assert receiver.storage.path(file, sha256) == path


@pytest.mark.parametrize("uid", ["../../../../etc/passwd", "1.2/../../x", "", "1.2.3\n"])
def test_no_uid_becomes_a_path(uid: str, tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    with receiving(site) as receiver:
        peer = RawPeer(receiver.port)
        peer.store_command(uid)
        ds = instance(1)
        body = b"\x08\x00\x16\x00UI" + len(ds.SOPClassUID).to_bytes(2, "little") + ds.SOPClassUID.encode()
        padded = uid.encode() + b"\0" * (len(uid) % 2)
        body += b"\x08\x00\x18\x00UI" + len(padded).to_bytes(2, "little") + padded
        peer.value(2, body)
        kind, answer = peer.read()
        peer.close()
    assert kind == 4
    assert b"\x00\x09\x02\x00\x00\x00\x00\xc0" in answer  # status C000, cannot understand
    assert stored_files(site) == unfinished(site) == []
    assert [path for path in tmp_path.rglob("*") if "passwd" in path.name or path.name == "x"] == []


def test_a_dataset_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    with receiving(site) as receiver:
        peer = RawPeer(receiver.port)
        peer.store_command(f"{ROOT}.1.1.2")
        file = save([instance(1)], tmp_path / "sent")[0]
        meta = pydicom.dcmread(file).file_meta.FileMetaInformationGroupLength
        peer.value(2, file.read_bytes()[144 + meta :])
        assert b"\x00\x09\x02\x00\x00\x00\x00\xa9" in peer.read()[1]
        peer.close()
    assert rows(site) == {}
    assert stored_files(site) == []


def test_a_claim_of_four_gigabytes_ends_the_association_at_once(tmp_path: Path) -> None:
    with receiving(plain_site(tmp_path)) as receiver:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for associate, kind in ((True, 4), (False, 1), (False, 4)):
            peer = RawPeer(receiver.port, associate=associate)
            peer.send(kind, b"", length=0xFFFFFFFF)
            assert peer.read()[0] == ABORT
            assert peer.read() == (0, b"")
            peer.close()
        assert eventually(lambda: receiver.counts["PDU_TOO_LARGE"] == 3)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_message_without_an_end_is_ended(tmp_path: Path) -> None:
    site = plain_site(tmp_path, limits={"max_instance_bytes": 3_000_000})
    with receiving(site) as receiver:
        peer = RawPeer(receiver.port)
        peer.store_command(f"{ROOT}.1.1.1")
        fragment = struct.pack(">BxLLBB", 4, 200_006, 200_002, 3, 0) + bytes(200_000)
        sent = peer.push(fragment, 100_000_000)
        assert sent < 20_000_000  # what the sockets hold, and what was allowed
        command = RawPeer(receiver.port)
        for _ in range(3):
            command.value(1, bytes(10_000))
        assert command.read()[0] == ABORT
        command.close()
        peer.close()
        assert eventually(lambda: receiver.open_associations == 0)
        assert receiver.counts["INSTANCE_TOO_LARGE"] == 1
        assert receiver.storage.used == 0
    assert unfinished(site) == stored_files(site) == []


def test_a_deflated_bomb_is_refused_and_an_honest_deflated_object_taken(tmp_path: Path) -> None:
    site = plain_site(tmp_path, limits={"max_inflated_bytes": 10_000_000})
    with receiving(site) as receiver:
        honest = instance(1)
        honest.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        with RawPeer(receiver.port, syntax=DeflatedExplicitVRLittleEndian) as peer:
            assert peer.store(honest) == 0
        bomb = instance(2)
        bomb.PixelData = bytes(60_000_000)
        bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        file = save([bomb], tmp_path / "sent")[0]
        assert file.stat().st_size < 100_000
        with RawPeer(receiver.port, syntax=DeflatedExplicitVRLittleEndian) as peer:
            assert ended_by(peer, bomb)
        assert eventually(lambda: receiver.counts["INSTANCE_INFLATED"] == 1)
    assert list(rows(site)) == [honest.SOPInstanceUID]
    (stored,) = stored_files(site)
    assert pydicom.dcmread(stored).PixelData == honest.PixelData
    assert zlib.crc32(stored.read_bytes()) != 0


def ended_by(peer: RawPeer, ds: Dataset) -> bool:
    """Whether sending this ends the association."""
    try:
        return peer.store(ds) == -1
    except OSError:
        return True


def test_an_association_aborted_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    with receiving(site) as receiver:
        for ending in ("abort", "close", "nonsense"):
            peer = RawPeer(receiver.port)
            peer.store_command(f"{ROOT}.1.1.1")
            peer.value(0, bytes(100_000))
            if ending == "abort":
                peer.send(ABORT, bytes(4))
            elif ending == "nonsense":
                peer.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
            peer.close()
        assert eventually(lambda: receiver.open_associations == 0)
        assert receiver.storage.used == 0
    assert rows(site) == {}
    assert unfinished(site) == []


def test_a_full_quota_is_said_and_ends_when_there_is_room(tmp_path: Path) -> None:
    site = plain_site(tmp_path, limits={"quota_bytes": 30_000})
    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        assert peer.store(instance(1, size=64)) == 0
        assert [peer.store(instance(n, size=128)) for n in (2, 3)] == [0xA700, 0xA700]
        assert peer.store(instance(4, size=64)) == 0
        assert receiver.counts["STORAGE_FULL"] == 2
        assert receiver.storage.used == sum(file.stat().st_size for file in stored_files(site))
    assert len(rows(site)) == 2


@pytest.mark.parametrize("fails", ["Storage.open_incoming", "Incoming.write"])
def test_a_failing_disk_is_said_and_ends_no_association(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = plain_site(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        with monkeypatch.context() as patched:
            patched.setattr(f"accunet_monai.pacs.storage.{fails}", full)
            assert peer.store(instance(1)) == 0xA700
        assert (receiver.counts["NOT_DURABLE"], receiver.storage.used, unfinished(site)) == (1, 0, [])
        assert peer.store(instance(1)) == 0
        peer.release()


def test_an_association_ends_without_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(association: str) -> None:
        asked.append(association)
        raise OperationalError("DELETE", None, Exception("the server closed the connection"))

    with receiving(plain_site(tmp_path)) as receiver:
        monkeypatch.setattr(receiver.registrar, "closed", away)
        with RawPeer(receiver.port) as peer:
            peer.echo()
            peer.release()
        assert eventually(lambda: receiver.counts["RELEASED"] == 1)
        assert asked == []  # it brought nothing
        with RawPeer(receiver.port) as peer:
            assert peer.store(instance(1)) == 0
            peer.release()
        assert eventually(lambda: receiver.counts["RELEASED"] == 2)
        assert (len(asked), receiver.open_associations) == (1, 0)


def test_a_connection_that_cannot_be_served_ends_no_listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[threading.Thread] = []

    def once(thread: threading.Thread) -> None:
        if thread.name.startswith("association") and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    with receiving(plain_site(tmp_path)) as receiver:
        monkeypatch.setattr(threading.Thread, "start", once)
        with RawPeer(receiver.port, associate=False) as peer:
            assert peer.read() == (0, b"")
        assert receiver.open_associations == 0
        with RawPeer(receiver.port) as peer:
            assert peer.echo() == 0


def test_a_name_that_is_not_found_for_now_keeps_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["10.0.0.5", None, "10.0.0.6"])

    def lookup(host: str, port: None) -> list[Any]:
        if (answer := next(answers)) is None:
            raise OSError("Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 0))]

    monkeypatch.setattr("accunet_monai.pacs.acceptor._RESOLVE_SECONDS", -1)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    peers = Peers([Peer.model_validate({"ae_title": "CT1", "addresses": ["ct1.hospital"]})])
    assert peers.allows("CT1", "10.0.0.5")
    assert peers.allows("CT1", "10.0.0.5")  # the look-up failed
    assert not peers.allows("CT1", "10.0.0.5")  # it moved


def test_echo_answers_beside_a_hundred_idle_connections(tmp_path: Path) -> None:
    threads = threading.active_count()
    with receiving(plain_site(tmp_path, limits={"idle_seconds": 60})) as receiver:
        idle = [RawPeer(receiver.port, associate=bool(number % 2)) for number in range(100)]
        with RawPeer(receiver.port) as peer:
            times = []
            for _ in range(100):
                started = time.perf_counter()
                assert peer.echo() == 0
                times.append(time.perf_counter() - started)
        assert sorted(times)[98] < 0.1
        for one in idle:
            one.close()
        assert eventually(lambda: receiver.open_associations == 0)
    assert threading.active_count() <= threads


def test_idle_and_slow_peers_are_ended(tmp_path: Path) -> None:
    with receiving(plain_site(tmp_path, limits={"idle_seconds": 0.3, "association_seconds": 0.3})) as receiver:
        silent, idle, slow = RawPeer(receiver.port, associate=False), RawPeer(receiver.port), RawPeer(receiver.port)
        slow.send(4, b"", length=1000)
        assert slow.push(b"\0", 60, pause=0.05) < 60  # a byte now and then does not keep it open
        assert silent.read()[0] == idle.read()[0] == ABORT
        assert eventually(lambda: (receiver.counts["PEER_IDLE"], receiver.counts["PEER_SLOW"]) == (2, 1))
        for one in (silent, idle, slow):
            one.close()


def test_too_many_associations_are_rejected(tmp_path: Path) -> None:
    limits = {"max_associations": 3, "max_associations_per_peer": 2}
    with receiving(plain_site(tmp_path, limits=limits)) as receiver:
        port = receiver.port
        with RawPeer(port) as a, RawPeer(port) as b, RawPeer(port) as c:
            assert [one.answer for one in (a, b, c)] == [ACCEPTED, ACCEPTED, REJECTED]
            with RawPeer(port, title="ORTHANC") as d, RawPeer(port, title="STORESCU") as e:
                assert [one.answer for one in (d, e)] == [ACCEPTED, REJECTED]
                assert e.terms == bytes((0, 2, 3, 2))  # transient, presentation service, local limit exceeded
            a.release()
        assert eventually(lambda: receiver.open_associations == 0)
        with RawPeer(port) as f:
            assert f.answer == ACCEPTED


def test_compressed_instances_are_kept_as_they_came(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    ds = instance(1)
    ds.PixelData = encapsulate([b"\xff\x4f\xff\x51 not looked at here"])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    with receiving(site) as receiver, RawPeer(receiver.port, syntax=JPEG2000Lossless) as peer:
        assert peer.store(ds) == 0
    (file,) = stored_files(site)
    assert pydicom.dcmread(file).PixelData == ds.PixelData


def test_stopping_lets_an_instance_arrive_and_takes_no_more(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    file = save([instance(1)], tmp_path / "sent")[0]
    data = file.read_bytes()[144 + pydicom.dcmread(file).file_meta.FileMetaInformationGroupLength :]
    with OpenSite(site) as opened:
        receiver = Receiver(site, opened.engine, opened.storage)
        receiver.start()
        busy, idle = RawPeer(receiver.port), RawPeer(receiver.port)
        busy.store_command(f"{ROOT}.1.1.1")
        busy.value(0, data[:1000])
        time.sleep(0.2)
        stopping = threading.Thread(target=receiver.stop, args=(10,))
        stopping.start()
        assert idle.read()[0] == ABORT
        busy.value(2, data[1000:])
        assert b"\x00\x09\x02\x00\x00\x00\x00\x00" in busy.read()[1]
        assert busy.read()[0] == ABORT
        stopping.join(10)
        assert not stopping.is_alive()
        with pytest.raises(OSError, match="refused"):
            RawPeer(receiver.port)
        for one in (busy, idle):
            one.close()
    assert list(rows(site)) == [f"{ROOT}.1.1.1"]


def test_tls_wants_a_certificate_of_the_sites_authority(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    tls = {"certificate": files["us.pem"], "key": files["us.key"], "ca": files["ca.pem"]}
    site = plain_site(tmp_path, limits={"association_seconds": 2}, tls=tls)
    with receiving(site) as receiver, RawPeer(receiver.port, associate=False) as silent:  # whose handshake never comes
        for name, good in (("peer", True), ("stranger", False)):
            context = ssl.create_default_context(cafile=str(files["ca.pem"]))
            context.load_cert_chain(files[f"{name}.pem"], files[f"{name}.key"])
            assert tls_echo(receiver.port, context) is good, name
        assert tls_echo(receiver.port, ssl.create_default_context(cafile=str(files["ca.pem"]))) is False
        assert tls_echo(receiver.port, None) is False
        assert silent.read()[0] in (0, ABORT)


def tls_echo(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether an echo is answered on a secured connection."""
    try:
        with RawPeer(port, tls=context) as peer:
            return peer.answer == ACCEPTED and peer.echo() == 0
    except OSError:  # SSLError is one
        return False


def make_certificates(folder: Path) -> dict[str, Path]:
    """An authority, us and a peer signed by it, and a stranger who signed himself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    files, now = {}, datetime.datetime.now(datetime.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    for who in ("ca", "us", "peer", "stranger"):
        key = authority if who == "ca" else ec.generate_private_key(ec.SECP256R1())
        alone = who == "stranger"
        builder = x509.CertificateBuilder().subject_name(name(who)).issuer_name(name(who if alone else "ca"))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca=who == "ca", path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        signed = builder.sign(key if alone else authority, hashes.SHA256())
        files[f"{who}.pem"], files[f"{who}.key"] = folder / f"{who}.pem", folder / f"{who}.key"
        files[f"{who}.pem"].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        files[f"{who}.key"].write_bytes(key.private_bytes(*form))
    return files


def test_a_database_without_its_storage_is_refused(tmp_path: Path) -> None:
    site = plain_site(tmp_path, database=f"sqlite:///{tmp_path / 'state.sqlite3'}")
    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        peer.store(instance(1))
    (site.storage / MARK).unlink()
    with pytest.raises(PacsError, match="STORAGE_MISSING"):
        OpenSite(site)


def test_another_storage_is_refused_and_the_own_one_taken_again(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'state.sqlite3'}"
    here, elsewhere = (plain_site(tmp_path / name, database=database) for name in ("here", "elsewhere"))
    OpenSite(here).close()  # nothing was received yet
    with pytest.raises(PacsError, match="STORAGE_MISSING"):
        OpenSite(elsewhere)
    assert not elsewhere.storage.exists()
    other = plain_site(tmp_path / "other")
    OpenSite(other).close()
    (elsewhere.storage).mkdir(parents=True)
    shutil.copy(other.storage / MARK, elsewhere.storage / MARK)
    with pytest.raises(PacsError, match="STORAGE_MISSING"):
        OpenSite(elsewhere)
    shutil.copy(here.storage / MARK, elsewhere.storage / MARK)  # the same share, mounted elsewhere
    OpenSite(elsewhere).close()


def test_a_database_of_a_release_that_named_no_storage_takes_the_one_that_is_there(tmp_path: Path) -> None:
    site = plain_site(tmp_path, database=f"sqlite:///{tmp_path / 'state.sqlite3'}")
    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        peer.store(instance(1))
    engine = make_engine(site.database_url)
    for mark, refused in (((site.storage / MARK).read_bytes(), False), (None, True)):
        with engine.begin() as connection:
            connection.execute(storage_mark.delete())
        if mark is None:
            (site.storage / MARK).unlink()
        with pytest.raises(PacsError, match="STORAGE_MISSING") if refused else nullcontext():
            OpenSite(site).close()
    engine.dispose()


def test_nothing_is_received_while_the_storage_is_away(tmp_path: Path) -> None:
    site = plain_site(tmp_path, database=f"sqlite:///{tmp_path / 'state.sqlite3'}")
    with receiving(site) as receiver, RawPeer(receiver.port) as peer:
        assert peer.store(instance(1)) == 0x0000
        site.storage.rename(tmp_path / "away")
        site.storage.mkdir()  # where it was mounted
        assert peer.store(instance(2)) == 0xA700
        assert list(site.storage.iterdir()) == []
        site.storage.rmdir()
        (tmp_path / "away").rename(site.storage)
        assert peer.store(instance(2)) == 0x0000
