"""Fetching from a real Orthanc by C-GET, C-MOVE and DICOMweb, by hand and by the command line."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]
from sqlalchemy import select
from typer.testing import CliRunner

from accunet_monai.cli import app
from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.inbox import Inbox, OpenSite
from accunet_monai.pacs.pull import Pace, Puller
from accunet_monai.pacs.query import count_remote, echo, find_remote
from accunet_monai.pacs.settings import Pull, Site
from accunet_monai.pacs.tables import instances, series
from tests.pacs.receiving import ROOT, eventually, instance, plain_site, same_dataset, save
from tests.pacs.servers import Orthanc, free_port

STUDY = "70"

leaves_a_socket = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
"""pynetdicom does not close the socket of a connection that was refused."""


@pytest.fixture(scope="module")
def filled(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Orthanc:
    """Two series of 6 and 3 MR instances of one study, and another study of another day."""
    sent = [instance(n, "1", STUDY, StudyDate="20260301", StudyID="1", SeriesNumber=1) for n in range(1, 7)]
    sent += [instance(n, "2", STUDY, StudyDate="20260301", StudyID="1", SeriesNumber=2) for n in range(1, 4)]
    sent += [instance(1, "1", "71", StudyDate="20250101", StudyID="2", SeriesNumber=1)]
    for file in save(sent, tmp_path_factory.mktemp("sent")):
        orthanc.post("/instances", file.read_bytes())
    return orthanc


def site_with(folder: Path, orthanc: Orthanc, **changes: Any) -> Site:
    dimse = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom_port}
    archive = {"name": "archive", "dimse": dimse, "dicomweb": {"url": orthanc.web}}
    return plain_site(folder, pacs=[archive], **changes)


def stored(opened: OpenSite) -> dict[str, Any]:
    with reading(opened.engine) as connection:
        return {row.sop_instance_uid: row for row in connection.execute(select(instances))}


@pytest.fixture
def opened(filled: Orthanc, tmp_path: Path) -> Iterator[OpenSite]:
    with OpenSite(site_with(tmp_path, filled)) as one:
        yield one


@pytest.mark.parametrize("by", ["get", "dicomweb"])
def test_what_is_missing_is_fetched_once(by: str, opened: OpenSite, filled: Orthanc) -> None:
    registrar = opened.registrar("test")
    pull = Pull.model_validate(
        {"name": "a", "pacs": "archive", "by": by, "query": {"StudyDate": "20260301"}, "priority": 5}
    )
    puller = Puller(opened.site, opened.engine, opened.storage, registrar, pull)
    missing = puller.missing()
    assert sorted((one.series_uid, one.instances) for one in missing) == [(f"{ROOT}.70.1", 6), (f"{ROOT}.70.2", 3)]
    assert puller.run(missing[:1]) == {"new": missing[0].instances}
    assert puller.run() == {"new": 9 - missing[0].instances}
    assert puller.missing() == []
    found = stored(opened)
    assert len(found) == 9
    for uid, row in found.items():
        assert same_as_theirs(opened.site.storage / row.file, filled, uid)
        assert (row.study_uid, row.source) == (f"{ROOT}.{STUDY}", "pull:a")
    with reading(opened.engine) as connection:
        assert {row.priority for row in connection.execute(select(series))} == {5}


def same_as_theirs(file: Path, orthanc: Orthanc, uid: str) -> bool:
    (own,) = orthanc.instances(SOPInstanceUID=uid)
    theirs = orthanc.file(own)
    path = file.parent / "theirs"
    path.write_bytes(theirs)
    ds = pydicom.dcmread(path)
    good = same_dataset(file, ds)
    path.unlink()
    return good


def test_move_sends_to_our_receiver(filled: Orthanc, tmp_path: Path) -> None:
    site = site_with(tmp_path, filled)
    own = json.dumps(["ACCUNET", "127.0.0.1", site.port]).encode()
    address = f"http://127.0.0.1:{filled.web_port}/modalities/ACCUNET"
    urllib.request.urlopen(urllib.request.Request(address, data=own, method="PUT"), timeout=10).close()
    with OpenSite(site) as opened:
        inbox = Inbox(opened)
        inbox.start()
        registrar = opened.registrar("test")
        values = {
            "name": "a",
            "pacs": "archive",
            "by": "move",
            "query": {"SeriesInstanceUID": f"{ROOT}.70.2"},
            "days": 9999,
        }
        puller = Puller(opened.site, opened.engine, opened.storage, registrar, Pull.model_validate(values))
        assert puller.run() == {"moved": 3}
        assert {row.source for row in stored(opened).values()} == {"push:ORTHANC"}
        assert eventually(lambda: inbox.receiver.open_associations == 0)
        inbox.stop()


@leaves_a_socket
def test_queries(filled: Orthanc, tmp_path: Path) -> None:
    site = site_with(tmp_path, filled)
    archive = site.pacs_named("archive")
    for by_web in (False, True):
        found = find_remote(site, archive, {"StudyDate": "20250101-20260301", "Modality": "MR"}, by_web=by_web)
        assert {one.series_uid for one in found} == {f"{ROOT}.70.1", f"{ROOT}.70.2", f"{ROOT}.71.1"}
        assert find_remote(site, archive, {"StudyDate": "19000101"}, by_web=by_web) == []
        with pytest.raises(PacsError, match=r"QUERY_KEY.*Did you mean 'StudyDate'"):
            find_remote(site, archive, {"StudyDat": "1"}, by_web=by_web)
    assert count_remote(site, archive, f"{ROOT}.70", f"{ROOT}.70.1") == 6
    assert count_remote(site, archive, f"{ROOT}.70", f"{ROOT}.70.9") is None
    assert archive.dimse is not None
    assert 0 < echo(site, archive.dimse) < 5
    nobody = archive.dimse.model_copy(update={"port": 1})
    with pytest.raises(PacsError, match="PACS_UNREACHABLE"):
        echo(site, nobody)


def test_an_unreadable_answer_is_an_error_with_a_code(tmp_path: Path) -> None:
    def answer(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        nameless = Dataset()  # no StudyInstanceUID
        nameless.QueryRetrieveLevel = "STUDY"
        yield 0xFF00, nameless
        yield 0x0000, None

    ae = AE(ae_title="ODD")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, answer)])
    assert server is not None
    try:
        dimse = {"ae_title": "ODD", "host": "127.0.0.1", "port": port}
        site = plain_site(tmp_path, pacs=[{"name": "archive", "dimse": dimse}])
        with pytest.raises(PacsError, match=r"QUERY_FAILED.*unreadable"):
            find_remote(site, site.pacs_named("archive"), {}, by_web=False)
        assert count_remote(site, site.pacs_named("archive"), "1.2", "1.2.3") is None
    finally:
        server.shutdown()


def test_the_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    pace, at = Pace(120), []
    for number in range(4):
        clock[0] += 2 if number == 2 else 0
        pace.wait()
        at.append(clock[0] - 100)
    assert at == pytest.approx([0, 0.5, 2.5, 3.0])


@leaves_a_socket
def test_the_command_line(filled: Orthanc, tmp_path: Path) -> None:
    rule = {"bundle": "hippocampus_mri", "shadow": True, "when": {"tag": "Modality", "equals": "CT"}}
    site = site_with(tmp_path, filled, bundles=[rule], completeness={"quiet_seconds": 0})
    file = tmp_path / "site.yaml"
    file.write_text(
        yaml.safe_dump(json.loads(site.model_dump_json(exclude_unset=True, by_alias=True))), encoding="utf-8"
    )

    def run(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, ["pacs", *arguments])
        assert result.exit_code == status, result.output
        return result.output

    checked = run("check", str(file))
    assert checked.count("✓") == 9  # storage, four peers, the bundle, and three ways to the PACS
    assert "PACS archive, C-ECHO" in checked
    query = ("--pacs", "archive", "--query", "StudyDate=20260301")
    assert run("batch", str(file), *query, "--dry-run") == "2 series of 9 instances are not here yet.\n"
    assert "9 new" in run("batch", str(file), *query)
    folder = tmp_path / "more"
    save([instance(7, "1", STUDY)], folder)
    (folder / "notes.txt").write_text("not DICOM")
    assert "1 NOT_DICOM, 1 new\n3 series closed" not in (told := run("import", str(file), str(folder)))
    assert told == "1 NOT_DICOM, 1 new\n2 series closed.\n"
    reasons = run("why", str(file), f"{ROOT}.70")
    assert f"series {ROOT}.70.1: 7 instances, complete" in reasons
    assert "hippocampus_mri: not_chosen RULE_NOT_MET" in reasons
    assert "Modality equals 'CT': met by 0 of 7" in reasons
    assert json.loads(run("why", str(file), f"{ROOT}.70.2", "--json"))[0]["instances"] == 3
    run("why", str(file), "1.2.3", status=1)
    filled_port = site.pacs[0].dimse.port if site.pacs[0].dimse else 0
    file.write_text(file.read_text(encoding="utf-8").replace(f"port: {filled_port}", "port: 1"), encoding="utf-8")
    assert "✗ PACS archive, C-ECHO: [PACS_UNREACHABLE]" in run("check", str(file), status=1)
