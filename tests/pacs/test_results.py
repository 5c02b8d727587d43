"""What a job leaves beside its SEG: a measurement report, a picture on the site's page, a way from weights to it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import uvicorn
from PIL import Image
from pydicom.sr.codedict import codes
from sqlalchemy import Engine, Row, insert, select, update
from typer.testing import CliRunner

from accunet_monai.bundle import manifest_digest, write_manifest
from accunet_monai.cli import app
from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.jobs import ENDED, counts, find_job
from accunet_monai.pacs.overview import hourly, results, troubles
from accunet_monai.pacs.reports import report_of
from accunet_monai.pacs.retention import DAY, clean_up
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import decisions, jobs
from accunet_monai.pacs.thumbnails import LONG_SIDE, thumbnail_of
from accunet_monai.pacs.tracing import trace, trace_weights
from accunet_monai.pacs.web import make_app
from accunet_monai.volumes import read_seg
from tests.chromium import Page
from tests.conftest import Require
from tests.pacs.processes import wait_until, worker
from tests.pacs.servers import Orthanc, Postgres, free_port
from tests.pacs.small import made_series, made_site, opened, received, to

TOKEN = "a-token-of-the-tests"
RUN = "0123456789abcdef0123456789abcdef"
VOXEL_MM3 = 0.9 * 1.1 * 1.2


@dataclass
class Ran:
    """A site that ran a series and a newer revision of it, and a second bundle on a series that it could not read."""

    site: Site
    engine: Engine
    folder: Path
    first: Row[Any]
    second: Row[Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc, tiny_verified_bundle: Path) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("results")
    bundle = Path(shutil.copytree(tiny_verified_bundle, folder / "copied_bundle"))
    write_manifest(bundle, mlflow_run=RUN, dataset_digest="d" * 64)
    parts = to({"dimse": orthanc.dimse}, "dimse", bundle, report=True, rejection_note=True)
    site = made_site(folder, bundle=bundle, **parts)
    engine = opened(site)
    series = made_series(folder / "series", 800)
    damaged = made_series(folder / "damaged", 801)
    for file in damaged.iterdir():
        ds = pydicom.dcmread(file)
        del ds.PixelSpacing
        ds.save_as(file)
    ids = [received(engine, site, series, leave=1), received(engine, site, damaged)]
    one = worker(site, folder / "log")
    wait_until(lambda: sum(counts(engine).get(state, 0) for state in ENDED) == 2)
    with reading(engine) as connection:
        revision = connection.execute(select(jobs.c.revision_id).where(jobs.c.id == ids[0])).scalar()
    ids.append(received(engine, site, series, replaces=revision))
    wait_until(lambda: sum(counts(engine).get(state, 0) for state in ENDED) == 3)
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    yield Ran(site, engine, folder, find_job(engine, ids[0]), find_job(engine, ids[2]))
    engine.dispose()


def arrived(orthanc: Orthanc, ran: Ran) -> dict[str, pydicom.Dataset]:
    """SOPInstanceUID → report of the study, as the PACS has it."""
    study = orthanc.header(orthanc.instances(SOPInstanceUID=ran.first.seg_sop_uid)[0]).StudyInstanceUID
    found = [orthanc.dataset(one) for one in orthanc.instances(StudyInstanceUID=study, Modality="SR")]
    return {ds.SOPInstanceUID: ds for ds in found}


def test_the_report_says_how_much_there_is_of_each_label(ran: Ran, orthanc: Orthanc, tmp_path: Path) -> None:
    assert [ran.first.state, ran.second.state] == ["done", "done"]
    assert len(arrived(orthanc, ran)) == 2
    for job in (ran.first, ran.second):
        stored = report_of(ran.site, ran.engine, job.seg_sha256)
        assert stored is not None
        ds = pydicom.dcmread(stored)
        assert ds == arrived(orthanc, ran)[ds.SOPInstanceUID]
        labels = read_seg(ran.site.storage / job.seg_file).label_map
        content: Any = hd.sr.srread(stored).content
        groups = content.get_volumetric_roi_measurement_groups()
        assert len(groups) == 3
        for number, group in enumerate(groups, start=1):
            (volume,) = group.get_measurements(name=codes.SCT.Volume)
            assert volume.value == pytest.approx(np.count_nonzero(labels == number) * VOXEL_MM3, abs=2e-3)
        evidence = {
            item.ReferencedSOPInstanceUID
            for study in ds.CurrentRequestedProcedureEvidenceSequence
            for series in study.ReferencedSeriesSequence
            for item in series.ReferencedSOPSequence
        }
        assert job.seg_sop_uid in evidence
        assert len(evidence) == 1 + labels.shape[2]  # the SEG and every image


def test_the_report_is_valid_and_others_read_it(ran: Ran, require: Require) -> None:
    require("dciodvfy", shutil.which("dciodvfy"), "no dicom3tools")
    require("dcmtk", shutil.which("dsrdump"), "no DCMTK")
    for job in (ran.first, ran.second):
        report = str(report_of(ran.site, ran.engine, job.seg_sha256))
        done = subprocess.run(["dciodvfy", report], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []
        read = subprocess.run(["dsrdump", report], capture_output=True, text=True, check=True)
        assert "Imaging Measurement Report" in read.stdout
        assert len(re.findall(r"NUM:\(.*Volume.*\)=", read.stdout)) == 3


def test_a_newer_report_names_the_one_it_replaces_and_the_note_rejects_both(ran: Ran, orthanc: Orthanc) -> None:
    first, second = (str(report_of(ran.site, ran.engine, job.seg_sha256)) for job in (ran.first, ran.second))
    assert "PredecessorDocumentsSequence" not in pydicom.dcmread(first)
    (study,) = pydicom.dcmread(second).PredecessorDocumentsSequence
    named = study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    replaced = str(pydicom.dcmread(first).SOPInstanceUID)
    assert named == replaced
    (note,) = [
        orthanc.dataset(one) for one in orthanc.instances(StudyInstanceUID=study.StudyInstanceUID, Modality="KO")
    ]
    rejected = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in note.ContentSequence
        if "ReferencedSOPSequence" in item
    ]
    assert rejected == [ran.first.seg_sop_uid, replaced]


def test_weights_lead_to_what_they_made_when_the_bundle_is_long_another(ran: Ran) -> None:
    bundle = Path(ran.site.bundles[0].bundle)
    (before,) = trace_weights(ran.site, ran.engine, run=RUN)
    assert (before["in_use"], before["jobs"], before["deliveries"]) == ("yes", {"dead": 1, "done": 2}, {"archive": 2})
    report = pydicom.dcmread(str(report_of(ran.site, ran.engine, ran.second.seg_sha256)), stop_before_pixels=True)
    facts = trace(ran.site, ran.engine, str(report.SOPInstanceUID))
    assert (facts["job"], facts["mlflow_run"], facts["dataset_digest"]) == (ran.second.id, RUN, "d" * 64)
    old = manifest_digest(bundle)
    manifest = (bundle / "manifest.json").read_bytes()
    try:
        write_manifest(bundle, mlflow_run="another")
        (after,) = trace_weights(ran.site, ran.engine, run=RUN)
        assert after == before | {"in_use": "no"}
        assert trace(ran.site, ran.engine, str(report.SOPInstanceUID)) == facts
        both = trace_weights(ran.site, ran.engine, weights=str(before["weights_sha256"])[:12])
        assert {one["manifest_sha256"]: one["in_use"] for one in both} == {old: "no", manifest_digest(bundle): "yes"}
    finally:
        (bundle / "manifest.json").write_bytes(manifest)
    with pytest.raises(PacsError, match="TRACE_UNKNOWN"):
        trace_weights(ran.site, ran.engine, run="none")
    said = CliRunner().invoke(app, ["pacs", "trace", str(ran.folder / "site.yaml"), "--run", RUN]).stdout
    assert re.search(r"^in_use +yes$", said, re.M)
    assert re.search(r"^deliveries +archive 2$", said, re.M)


def test_a_picture_has_the_outline_and_nothing_to_read(ran: Ran) -> None:
    for job in (ran.first, ran.second):
        file = thumbnail_of(ran.site.storage / job.seg_file)
        with Image.open(file) as picture:
            assert max(picture.size) == LONG_SIDE
            assert picture.info == {}
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.ptp(pixels, axis=2) > 40).any()  # the labels' colours
        assert b"made" not in file.read_bytes()


def test_the_page_shows_results_and_why_others_failed(ran: Ran, require: Require, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    require("chromium", chromium, "no Chromium")
    with ran.engine.begin() as connection:
        refused = {"revision_id": ran.first.revision_id, "bundle": "other", "outcome": "refused", "code": "BURNED_IN"}
        connection.execute(insert(decisions).values(**refused, detail="{}", made_at=now()))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(make_app(ran.site, ran.engine, TOKEN), port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 20)
        with Page(str(chromium), f"http://any:{TOKEN}@127.0.0.1:{port}/", (1100, 1300)) as page:
            page.wait_for("[...document.images].length == 2 && [...document.images].every(one => one.complete)")
            assert page.value("[...document.images].map(one => Math.max(one.naturalWidth, one.naturalHeight))") == [
                LONG_SIDE,
                LONG_SIDE,
            ]
            text = page.value("document.body.innerText")
            source = page.value("document.documentElement.outerHTML")
            shown = Image.open(io.BytesIO(page.screenshot(tmp_path / "page.png").read_bytes())).convert("RGB")
        for path in (f"/thumbnails/{ran.first.id}.png", "/thumbnails/none.png"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
    finally:
        server.should_exit = True
        thread.join()
    assert "GEOM_NO_SPACING" in text
    assert "the slices make no volume" in text
    assert "text is burned into them" in text
    assert "2 jobs, 2 in the busiest hour" in text
    assert not re.search(r"\d+\.\d+\.\d+\.\d+\.\d+", source)
    for word in ("made-1", "Made", base64.b64encode(b"made-1").decode()):
        assert word not in source
    assert np.ptp(np.asarray(shown).astype(int), axis=2).max() > 40  # not a blank page


def test_throughput_counts_by_the_hour(ran: Ran) -> None:
    assert hourly(ran.engine) == [0] * 23 + [2]
    with ran.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == ran.first.id).values(changed_at=now() - 3 * 3600 - 60))
    assert hourly(ran.engine) == [0] * 20 + [1, 0, 0, 1]


def test_the_same_is_told_from_postgresql(ran: Ran, postgres: Postgres, tmp_path: Path) -> None:
    bundle = ran.site.bundles[0].bundle
    site = made_site(tmp_path, bundle=bundle, database=postgres.url)
    engine = opened(site)
    for seed, state in ((810, "done"), (811, "dead")):
        job = received(engine, site, made_series(tmp_path / str(seed), seed))
        with engine.begin() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == job).values(state=state, code="X" if seed > 810 else None)
            )
    assert hourly(engine) == [0] * 23 + [1]
    assert [(one["what"], one["code"], one["count"]) for one in troubles(engine)] == [("given up", "X", 1)]
    assert [one["patient"] for one in results(engine)] == ["0"]
    (found,) = trace_weights(site, engine, run=RUN)
    assert (found["in_use"], found["jobs"]) == ("shadow", {"dead": 1, "done": 1})
    engine.dispose()


def test_with_a_result_its_report_and_picture_go(ran: Ran) -> None:
    folder = ran.site.storage / "results"
    assert len([file for file in folder.rglob("*") if file.is_file()]) == 6
    with ran.engine.begin() as connection:
        connection.execute(update(jobs).values(changed_at=now() - 91 * DAY))
    clean_up(ran.site, ran.engine)
    assert [file for file in folder.rglob("*") if file.is_file()] == []
