"""Storage commitment against Orthanc, which answers by an association of its own to our receiver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from sqlalchemy import select

from accunet_monai.errors import PacsError
from accunet_monai.pacs import delivering
from accunet_monai.pacs.commitment import ask
from accunet_monai.pacs.database import make_engine, reading
from accunet_monai.pacs.delivering import Channel, open_channel
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import commitments
from tests.conftest import Require
from tests.pacs import servers
from tests.pacs.receiving import ROOT, instance, plain_site, receiving, save
from tests.pacs.servers import free_port

DESTINATION = {"name": "archive", "pacs": "archive", "confirm": "commitment"}


@pytest.fixture(scope="module")
def port() -> int:
    """Where Orthanc thinks that our receiver is."""
    return free_port()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, port: int, require: Require) -> Iterator[servers.Orthanc]:
    require("orthanc", shutil.which("Orthanc") and servers.DICOM_WEB.exists(), "no Orthanc with DICOMweb")
    with servers.orthanc(tmp_path_factory.mktemp("pacs"), {"ACCUNET": port}) as it:
        yield it


def made_site(folder: Path, port: int, pacs: servers.Orthanc, kind: str = "dimse") -> Site:
    archive = {"name": "archive", "dimse": pacs.dimse, "dicomweb": {"url": pacs.web}}
    return plain_site(folder, port=port, pacs=[archive], destinations=[{**DESTINATION, "kind": kind}])


def outcomes(site: Site) -> list[str | None]:
    engine = make_engine(site.database_url)
    with reading(engine) as connection:
        found = list(connection.execute(select(commitments.c.outcome).order_by(commitments.c.asked_at)).scalars())
    engine.dispose()
    return found


def channel_of(site: Site) -> Channel:
    return open_channel(site, site.destination("archive"))


@pytest.mark.parametrize("kind", ["dimse", "dicomweb"])
def test_a_pacs_commits_itself_to_what_it_has_and_to_nothing_else(
    kind: str, pacs: servers.Orthanc, port: int, tmp_path: Path
) -> None:
    site = made_site(tmp_path, port, pacs, kind)
    (file,) = save([instance(1, study="11" if kind == "dimse" else "12")], tmp_path / "sent")
    with receiving(site) as receiver:
        channel = channel_of(site)
        assert channel.has(file) is False
        channel.send(file)
        assert channel.has(file) is True
        assert channel.has(file) is True
        assert receiver.counts["report"] == 2
    assert outcomes(site) == ["failed", "kept"]  # what it keeps is not asked again


def test_an_answer_that_comes_too_late_counts_the_next_time(
    pacs: servers.Orthanc, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "SAME_ASSOCIATION_SECONDS", 0.1)
    monkeypatch.setattr(delivering, "COMMITMENT_SECONDS", 0.3)
    site = made_site(tmp_path, port, pacs)
    (file,) = save([instance(1, study="13")], tmp_path / "sent")
    with receiving(site):
        pass  # the database is made; nobody listens now
    channel = channel_of(site)
    channel.send(file)
    with pytest.raises(PacsError, match="NOT_COMMITTED"):
        channel.has(file)
    with receiving(site):
        assert reported(site, port, ["kept"])
        assert channel.has(file) is True
    assert outcomes(site) == ["kept"]


def reported(site: Site, port: int, answers: list[str], title: str = "ORTHANC", transaction: str | None = None) -> bool:
    """Calls the receiver as a PACS does, and tells it of the transactions that are open; whether it took that."""
    engine = make_engine(site.database_url)
    with reading(engine) as connection:
        rows = connection.execute(select(commitments)).all()
    engine.dispose()
    ae = AE(title)
    ae.add_requested_context(StorageCommitmentPushModel)
    from pynetdicom import build_role

    role = build_role(StorageCommitmentPushModel, scp_role=True)
    association = ae.associate("127.0.0.1", port, ae_title="ACCUNET", ext_neg=[role])
    assert association.is_established
    taken = True
    for row, outcome in zip(rows, answers, strict=True):
        report, one = Dataset(), Dataset()
        report.TransactionUID = transaction or row.transaction_uid
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = instance(1).SOPClassUID, row.sop_instance_uid
        report.ReferencedSOPSequence = [one] if outcome == "kept" else []
        if outcome == "failed":
            one.FailureReason = 0x0112
            report.FailedSOPSequence = [one]
        kind = 1 if outcome == "kept" else 2
        status, _ = association.send_n_event_report(
            report, kind, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        taken = taken and status.Status == 0
    association.release()
    return taken


def test_only_who_was_asked_can_answer(tmp_path: Path) -> None:
    site = plain_site(tmp_path)
    with receiving(site) as receiver:
        with receiver.engine.begin() as connection:
            ask(connection, "ORTHANC", instance(1).SOPClassUID, f"{ROOT}.1.1.1")
        assert not reported(site, receiver.port, ["kept"], title="STORESCU")
        assert not reported(site, receiver.port, ["kept"], transaction=generate_uid())
        assert receiver.counts["REPORT_UNKNOWN"] == 2
        assert outcomes(site) == [None]
        assert reported(site, receiver.port, ["failed"])
    assert outcomes(site) == ["failed"]


def test_the_answer_may_come_on_the_association_that_asked(tmp_path: Path) -> None:
    """By pynetdicom as the PACS, since Orthanc does not do so."""

    def asked(event: evt.Event) -> tuple[int, None]:
        question = event.action_information
        report = Dataset()
        report.TransactionUID, report.ReferencedSOPSequence = question.TransactionUID, question.ReferencedSOPSequence
        model, model_instance = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        waiting.append(lambda: event.assoc.send_n_event_report(report, 1, model, model_instance))
        return 0x0000, None

    def said(event: evt.Event) -> None:
        if waiting and type(event.message).__name__ == "N_ACTION_RSP":
            threading.Thread(target=waiting.pop()).start()

    import threading

    waiting: list[object] = []
    ae = AE("ORTHANC")
    ae.add_supported_context(StorageCommitmentPushModel)
    handlers = [(evt.EVT_N_ACTION, asked), (evt.EVT_DIMSE_SENT, said)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    dimse = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": server.socket.getsockname()[1]}
    archive = {"name": "archive", "dimse": dimse}
    site = plain_site(tmp_path, pacs=[archive], destinations=[{**DESTINATION, "kind": "dimse"}])
    (file,) = save([instance(1)], tmp_path / "sent")
    try:
        with receiving(site) as receiver:
            assert channel_of(site).has(file) is True
            assert receiver.counts["report"] == 0
    finally:
        server.shutdown()
    assert outcomes(site) == ["kept"]


def test_commitment_needs_an_application_entity(tmp_path: Path) -> None:
    web = [{"name": "archive", "dicomweb": {"url": "http://127.0.0.1:1/dicom-web"}}]
    with pytest.raises(ValidationError, match="commitment needs dimse"):
        plain_site(tmp_path, pacs=web, destinations=[{**DESTINATION, "kind": "dicomweb"}])
