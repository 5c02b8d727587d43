"""What can be asked once a job is done: the same bytes again, where a SEG came from, health, and what leaked."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import uvicorn
from sqlalchemy import Connection, Engine, insert, select, update

from accunet_monai.bundle import manifest_digest, read_manifest
from accunet_monai.errors import PacsError
from accunet_monai.pacs import audit, retention
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.folder import import_folder
from accunet_monai.pacs.inbox import OpenSite
from accunet_monai.pacs.jobs import ENDED, counts
from accunet_monai.pacs.registrar import Registrar
from accunet_monai.pacs.replay import replay
from accunet_monai.pacs.retention import DAY, clean_up
from accunet_monai.pacs.settings import Site, read_site
from accunet_monai.pacs.tables import associations, instances, jobs, series
from accunet_monai.pacs.tracing import trace
from accunet_monai.pacs.web import make_app
from tests.pacs.processes import wait_until, worker
from tests.pacs.receiving import plain_site, stored_files
from tests.pacs.servers import Orthanc, free_port
from tests.pacs.small import made_series, opened, received, site_file, to

CANARY = "KANARIENVOGEL"
CHARSETS = {"ISO_IR 100": "Zwölf", "ISO_IR 192": "Ångström", "ISO_IR 144": "Иванова"}
TOKEN = "a token of the tests"


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc, tiny_verified_bundle: Path
) -> Iterator[tuple[Site, Engine, Path]]:
    """A site that ran four jobs, one of which was refused, on series full of canaries; and its folder."""
    folder = tmp_path_factory.mktemp("site")
    parts = to({"dimse": orthanc.dimse}, "dimse", tiny_verified_bundle)
    site = read_site(site_file(folder, bundle=tiny_verified_bundle, **parts))
    engine = opened(site)
    for seed, (charset, word) in enumerate(CHARSETS.items()):
        received(engine, site, with_canaries(made_series(folder / f"series{seed}", 400 + seed), charset, word))
    damaged = with_canaries(made_series(folder / "damaged", 409), "ISO_IR 192", "Ångström")
    for file in damaged.iterdir():
        ds = pydicom.dcmread(file)
        del ds.PixelSpacing
        ds.save_as(file)
    received(engine, site, damaged)
    one = worker(site, folder / "worker.log")
    wait_until(lambda: sum(counts(engine).get(state, 0) for state in ENDED) == 4)
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    yield site, engine, folder
    engine.dispose()


def with_canaries(folder: Path, charset: str, word: str) -> Path:
    """A canary in a tag of every text VR, in a character set."""
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        ds.SpecificCharacterSet = charset
        ds.PatientName = f"{CANARY}^{word}"
        ds.PatientID, ds.AccessionNumber, ds.StudyID = f"{CANARY}-1", f"{CANARY}-2"[:16], f"{CANARY}-3"[:16]
        ds.StudyDescription, ds.SeriesDescription = f"{CANARY} {word}", f"{word} {CANARY}"
        ds.ImageComments, ds.PatientComments = f"{CANARY} {word}", f"{CANARY} {word}"
        ds.InstitutionAddress, ds.PatientAge = f"{CANARY} {word}", "042Y"
        ds.ReferringPhysicianName, ds.InstitutionName = f"{CANARY}^{word}", f"{CANARY} {word}"
        ds.BodyPartExamined = CANARY
        ds.PatientBirthDate = "19391231"
        ds.save_as(file)
    return folder


def test_every_job_ended_as_its_series_deserves(done: tuple[Site, Engine, Path]) -> None:
    _, engine, _ = done
    with reading(engine) as connection:
        found = sorted((row.state, str(row.code), row.detail) for row in connection.execute(select(jobs)))
    assert found == [("dead", "GEOM_NO_SPACING", "segment"), *[("done", "None", None)] * 3]


def test_no_canary_outside_the_stored_objects(done: tuple[Site, Engine, Path]) -> None:
    site, _, folder = done
    words = [CANARY, "19391231", *CHARSETS.values()]
    needles = [word.encode(code) for word in words for code in ("utf-8", "utf-16-le") if word]
    needles += [base64.b64encode(CANARY.encode() + bytes(pad))[:12] for pad in range(3)]
    needles += [word.encode("unicode_escape") for word in words]
    log = (folder / "worker.log").read_bytes()
    assert b'"job_ended"' in log
    texts = [log]
    for database in (site.storage / "state.sqlite3", site.storage / "state.sqlite3-queue"):
        with sqlite3.connect(database) as connection:
            dump = "\n".join(connection.iterdump()).encode()
        connection.close()
        texts += [
            dump,
            *(
                base64.b64decode(part)
                for part in re.findall(rb"'([A-Za-z0-9+/]{24,}={0,2})'", dump)
                if len(part) % 4 == 0
            ),
        ]
        assert len(dump) > 1000
    texts += [os.fsencode(path) for path in site.storage.rglob("*")]
    hits = [
        (needle, text[max(0, text.find(needle) - 80) :][:200]) for needle in needles for text in texts if needle in text
    ]
    assert hits == []
    assert not re.search(rb"\b[12]\.\d+\.\d+\.\d+\.\d+", log)  # no UID in the logs
    assert list((site.storage / "work").iterdir()) == []


def test_replay_finds_the_same_bytes_and_counts_what_differs(
    done: tuple[Site, Engine, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, engine, _ = done
    with reading(engine) as connection:
        job = connection.execute(select(jobs).where(jobs.c.state == "done").limit(1)).one()
        dead = connection.execute(select(jobs).where(jobs.c.state == "dead")).one()
    assert replay(site, engine, job).identical
    from accunet_monai.bundle import Predictor

    original = Predictor.predict

    def with_two_other_voxels(self: Predictor, source: object, **options: object) -> object:
        prediction = original(self, source, **options)  # type: ignore[arg-type]
        prediction.label_map[0, 0, :2] = (prediction.label_map[0, 0, :2] + 1) % 4
        return prediction

    monkeypatch.setattr(Predictor, "predict", with_two_other_voxels)
    found = replay(site, engine, job)
    assert (found.identical, found.differing, found.voxels) == (False, 2, 16 * 16 * 4)
    with pytest.raises(PacsError, match="JOB_STATE"):
        replay(site, engine, dead)


def test_a_seg_leads_to_its_bundle(done: tuple[Site, Engine, Path], orthanc: Orthanc, tmp_path: Path) -> None:
    site, engine, _ = done
    with reading(engine) as connection:
        job = connection.execute(select(jobs).where(jobs.c.state == "done").limit(1)).one()
    (tmp_path / "seg.dcm").write_bytes(orthanc.file(orthanc.instances(SOPInstanceUID=job.seg_sop_uid)[0]))
    facts = trace(site, engine, str(tmp_path / "seg.dcm"))
    bundle = Path(site.bundles[0].bundle)
    manifest = read_manifest(bundle)
    assert manifest is not None
    weights = manifest.files["models/model.safetensors"].sha256
    assert (facts["job"], facts["weights_sha256"], facts["manifest_sha256"]) == (
        job.id,
        weights,
        manifest_digest(bundle),
    )
    assert weights in facts["says"]["digests"]
    assert {**trace(site, engine, job.seg_sop_uid), "says": facts["says"]} == facts
    with pytest.raises(PacsError, match="TRACE_UNKNOWN"):
        trace(site, engine, "1.2.3")


def test_the_web_page_needs_its_token_and_healthz_tells_of_workers(done: tuple[Site, Engine, Path]) -> None:
    site, engine, _ = done
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(make_app(site, engine, TOKEN), port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 20)
        for path in ("/", "/metrics", "/status.json"):
            assert ask(port, path)[0] == ask(port, path, "Bearer wrong")[0] == 401
        status, page = ask(port, "/", "Basic " + base64.b64encode(f"any:{TOKEN}".encode()).decode())
        assert status == 200
        assert "GEOM_NO_SPACING" in page
        metrics = ask(port, "/metrics", f"Bearer {TOKEN}")[1]
        assert 'accunet_pacs_jobs{state="done"} 3.0' in metrics
        assert "accunet_pacs_stored_instances 16.0" in metrics
        assert not re.search(r"\d+\.\d+\.\d+\.\d+\.\d+", metrics + page)
        assert CANARY not in metrics + page
        assert ask(port, "/healthz") == (503, '{"healthy":false,"workers":0}')
        assert json.loads(ask(port, "/status.json", f"Bearer {TOKEN}")[1])["dead"] == {"GEOM_NO_SPACING": 1}
    finally:
        server.should_exit = True
        thread.join()


def test_retention_removes_old_instances_and_results_and_no_row_of_a_job(done: tuple[Site, Engine, Path]) -> None:
    site, engine, _ = done
    assert clean_up(site, engine) == (0, 0)
    with reading(engine) as connection:
        files = list(connection.execute(select(instances.c.file)).scalars())
        results = list(connection.execute(select(jobs.c.seg_file).where(jobs.c.seg_file.is_not(None))).scalars())
    with engine.begin() as connection:
        connection.execute(update(series).values(last_received_at=now() - 31 * DAY))
        connection.execute(update(jobs).values(changed_at=now() - 31 * DAY))
    assert clean_up(site, engine) == (0, 0)  # the files have just been written: sent again, perhaps
    for file in files:
        aged(site.storage / file, 31)
    assert clean_up(site, engine) == (4, 0)
    assert not any((site.storage / file).exists() for file in files)
    assert all((site.storage / file).exists() for file in results)
    with engine.begin() as connection:
        connection.execute(update(jobs).values(changed_at=now() - 91 * DAY))
    assert clean_up(site, engine) == (0, 3)
    assert not any((site.storage / file).exists() for file in results)
    with reading(engine) as connection:
        assert len(list(connection.execute(select(jobs.c.seg_sha256).where(jobs.c.state == "done")))) == 3


def aged(path: Path, days: float) -> Path:
    os.utime(path, (now() - days * DAY,) * 2)
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[OpenSite, Registrar, Path]]:
    """A site that keeps instances for 30 days, and a series of four that is older; its folder."""
    on_server = {}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        server.recreate()
        on_server = {"database": server.url}
    site = plain_site(tmp_path / "site", retention={"received_days": 30}, **on_server)
    folder = made_series(tmp_path / "series")
    with OpenSite(site) as opened:
        registrar = opened.registrar("test")
        assert import_folder(folder, opened.storage, registrar) == {"new": 4}
        long_ago = {"last_received_at": now() - 31 * DAY, "complete_at": now() - 31 * DAY}
        with opened.engine.begin() as connection:
            connection.execute(update(series).values(**long_ago))
        for file in stored_files(site):
            aged(file, 31)
        yield opened, registrar, folder


def test_an_instance_that_is_sent_again_while_its_series_is_removed_keeps_its_file(
    old: tuple[OpenSite, Registrar, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, registrar, folder = old
    append, sent = audit.append, []

    def send() -> None:
        sent.append(import_folder(folder, opened.storage, registrar))

    thread = threading.Thread(target=send)

    def meanwhile(*arguments: Any, **facts: Any) -> str:  # the rows are gone, the transaction is open
        thread.start()
        time.sleep(0.3)
        return append(*arguments, **facts)

    monkeypatch.setattr(audit, "append", meanwhile)
    assert clean_up(opened.site, opened.engine) == (1, 0)
    thread.join()
    assert sent == [{"new": 4}]
    with reading(opened.engine) as connection:
        rows = connection.execute(select(instances.c.file, instances.c.sha256)).all()
    assert len(rows) == 4
    for row in rows:
        opened.storage.path(row.file, row.sha256)  # raises unless it is whole


def test_a_series_that_gets_more_before_it_is_removed_stays(
    old: tuple[OpenSite, Registrar, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, _, _ = old
    lock = retention._lock

    def first(connection: Connection, uid: str) -> None:
        lock(connection, uid)
        connection.execute(update(series).values(last_received_at=now()))  # as a registrar that came before the lock

    monkeypatch.setattr(retention, "_lock", first)
    assert clean_up(opened.site, opened.engine) == (0, 0)
    monkeypatch.undo()
    assert len(stored_files(opened.site)) == 4


def test_what_killed_processes_left_goes_after_a_day_and_nothing_newer(tmp_path: Path) -> None:
    site = plain_site(tmp_path, jobs={"step_seconds": 15 * 3600})
    with OpenSite(site) as opened:
        for name, days in (("old", 1.3), ("recent", 1.2)):  # twice 15 h are 1.25 days
            (site.storage / "work" / name).mkdir(parents=True)
            (site.storage / "work" / name / "a.nii").write_bytes(b"1")
            aged(site.storage / "work" / name, days)
            partial = site.storage / "incoming" / "receiver" / f"{name}.partial"
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(b"1")
            aged(partial, days)
        with opened.engine.begin() as connection:
            for name, days in (("old", 1.3), ("recent", 1.2)):
                at = now() - days * DAY
                connection.execute(insert(associations).values(id=name, receiver="gone", touched_at=at))
        assert clean_up(site, opened.engine) == (0, 0)
        with reading(opened.engine) as connection:
            assert connection.execute(select(associations.c.id)).scalars().all() == ["recent"]
    assert [path.name for path in (site.storage / "work").iterdir()] == ["recent"]
    assert [path.name for path in (site.storage / "incoming" / "receiver").iterdir()] == ["recent.partial"]


def ask(port: int, path: str, authorization: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": authorization} if authorization else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    for _ in range(20):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(path)
