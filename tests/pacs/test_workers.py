"""Worker processes that are killed, frozen and replaced, on a database that they share."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from sqlalchemy import Engine, select

from accunet_monai.bundle import Predictor, load_bundle, manifest_digest, write_manifest
from accunet_monai.pacs import audit, segmenting
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.decoding import Decoder
from accunet_monai.pacs.jobs import ENDED, counts, find_job
from accunet_monai.pacs.leases import Lease
from accunet_monai.pacs.queue import CONCURRENCY
from accunet_monai.pacs.replay import replay
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.steps import Steps
from accunet_monai.pacs.tables import audit as audit_table
from accunet_monai.pacs.tables import jobs
from tests import made_bundle
from tests.pacs.processes import wait_until, worker
from tests.pacs.servers import Orthanc, Postgres
from tests.pacs.small import made_series, made_site, opened, received, to, verified_bundle

JOBS = 6


@pytest.fixture
def shared(
    tmp_path: Path, postgres: Postgres, orthanc: Orthanc, tiny_verified_bundle: Path
) -> Iterator[tuple[Site, Engine]]:
    """A site on an empty PostgreSQL database that delivers to Orthanc."""
    postgres.recreate()
    parts = to({"dimse": orthanc.dimse}, "dimse", tiny_verified_bundle)
    site = made_site(tmp_path, bundle=tiny_verified_bundle, database=postgres.url, **parts)
    engine = opened(site)
    yield site, engine
    engine.dispose()


def all_ended(engine: Engine, count: int) -> bool:
    found = counts(engine)
    return sum(found.get(state, 0) for state in ENDED) == count


def came_out_once(engine: Engine, orthanc: Orthanc) -> None:
    """Every job is done, and Orthanc has its one object with the stored bytes' content."""
    with reading(engine) as connection:
        rows = list(connection.execute(select(jobs)))
    assert {row.state for row in rows} == {"done"}
    for row in rows:
        assert len(orthanc.instances(SOPInstanceUID=row.seg_sop_uid)) == 1
        series = orthanc.header(orthanc.instances(SOPInstanceUID=row.seg_sop_uid)[0])
        assert len(orthanc.instances(SeriesInstanceUID=series.SeriesInstanceUID)) == 1
    with reading(engine) as connection:
        entries = list(connection.execute(select(audit_table.c.entry)).scalars())
    for row in rows:
        assert sum(f'"job": "{row.id}"' in entry and '"seg_stored"' in entry for entry in entries) == 1
    audit.verify(engine)


def test_jobs_of_a_killed_worker_are_taken_over(shared: tuple[Site, Engine], orthanc: Orthanc, tmp_path: Path) -> None:
    site, engine = shared
    for seed in range(JOBS):
        received(engine, site, made_series(tmp_path / str(seed), 100 + seed))
    first = worker(site, tmp_path / "first.log", slow=5)
    wait_until(lambda: counts(engine).get("running", 0) > 1)
    first.kill()
    second = worker(site, tmp_path / "second.log")
    started = time.monotonic()
    try:
        wait_until(lambda: all_ended(engine, JOBS))
        assert time.monotonic() - started < 60
        came_out_once(engine, orthanc)
        assert '"jobs_adopted"' in (tmp_path / "second.log").read_text(encoding="utf-8")
    finally:
        second.send(signal.SIGTERM)
        assert second.wait() == 0


def test_a_worker_that_was_frozen_past_its_lease_changes_nothing(
    shared: tuple[Site, Engine], orthanc: Orthanc, tmp_path: Path
) -> None:
    site, engine = shared
    job = received(engine, site, made_series(tmp_path / "series", 200))
    frozen = worker(site, tmp_path / "frozen.log", slow=1)
    wait_until(lambda: counts(engine).get("running", 0) == 1)
    frozen.send(signal.SIGSTOP)
    other = worker(site, tmp_path / "other.log")
    try:
        wait_until(lambda: all_ended(engine, 1))
        frozen.send(signal.SIGCONT)
        assert frozen.wait() == 1  # LEASE_LOST
        came_out_once(engine, orthanc)
        with reading(engine) as connection:
            entry = connection.execute(select(audit_table.c.entry).where(audit_table.c.entry.contains("seg_stored")))
            stored_by = entry.scalars().one()
        assert job in stored_by
        assert f"-{other.pid}-" in stored_by
        assert '"lease_lost"' in (tmp_path / "frozen.log").read_text(encoding="utf-8")
    finally:
        other.send(signal.SIGTERM)
        assert other.wait() == 0


def test_an_upgrade_in_the_middle_strands_nothing(
    shared: tuple[Site, Engine], orthanc: Orthanc, tmp_path: Path
) -> None:
    site, engine = shared
    for seed in range(JOBS):
        received(engine, site, made_series(tmp_path / str(seed), 600 + seed))
    old = worker(site, tmp_path / "old.log", slow=5)
    wait_until(lambda: counts(engine).get("running", 0) > 1)
    old.kill()
    new = worker(site, tmp_path / "new.log", version="2")
    try:
        wait_until(lambda: all_ended(engine, JOBS))
        came_out_once(engine, orthanc)
    finally:
        new.send(signal.SIGTERM)
        assert new.wait() == 0


def test_an_upgrade_of_the_bundle_strands_nothing(tmp_path: Path, postgres: Postgres, orthanc: Orthanc) -> None:
    postgres.recreate()
    bundle = verified_bundle(tmp_path / "own")
    site = made_site(tmp_path, bundle=bundle, database=postgres.url, **to({"dimse": orthanc.dimse}, "dimse", bundle))
    engine = opened(site)
    old = [received(engine, site, made_series(tmp_path / str(seed), 800 + seed)) for seed in range(3)]
    made_bundle.write_metadata(bundle, {**made_bundle.read_metadata(bundle), "version": "9.9.9"})
    write_manifest(bundle)
    one = worker(site, tmp_path / "log")
    try:
        wait_until(lambda: all_ended(engine, 6))
    finally:
        one.send(signal.SIGTERM)
        assert one.wait() == 0
    with reading(engine) as connection:
        rows = list(connection.execute(select(jobs)))
    assert {row.code for row in rows if row.id in old} == {"BUNDLE_REPLACED"}
    done = [row for row in rows if row.state == "done"]
    assert {row.bundle_digest for row in done} == {manifest_digest(bundle)}
    assert len({row.revision_id for row in done}) == 3
    engine.dispose()


def test_the_database_may_be_killed(
    shared: tuple[Site, Engine], orthanc: Orthanc, postgres: Postgres, tmp_path: Path
) -> None:
    site, engine = shared
    for seed in range(3):
        received(engine, site, made_series(tmp_path / str(seed), 300 + seed))
    one = worker(site, tmp_path / "one.log", slow=1)
    try:
        wait_until(lambda: counts(engine).get("running", 0) > 0)
        engine.dispose()
        postgres.kill()
        time.sleep(1)
        postgres.start()
        wait_until(lambda: all_ended(engine, 3))
        came_out_once(engine, orthanc)
    finally:
        one.send(signal.SIGTERM)
        assert one.wait() == 0


def test_what_arrives_is_valid_and_refers_to_its_source(tmp_path: Path, orthanc: Orthanc, test_data: Path) -> None:
    """The shipped bundle on a real series, over SQLite and DICOMweb."""
    source = tmp_path / "source"
    source.mkdir()
    for number, file in enumerate(sorted((test_data / "dicom" / "mr_hippocrop" / "dicom" / "Study1").iterdir())):
        (source / f"{number:03d}").symlink_to(file)
        orthanc.post("/instances", file.read_bytes())
    parts = to({"dicomweb": {"url": orthanc.web}}, "dicomweb", "hippocampus_mri")
    site = made_site(tmp_path, bundle="hippocampus_mri", **parts)
    engine = opened(site)
    received(engine, site, source)
    one = worker(site, tmp_path / "log")
    try:
        wait_until(lambda: all_ended(engine, 1))
    finally:
        one.send(signal.SIGTERM)
        assert one.wait() == 0
    with reading(engine) as connection:
        row = connection.execute(select(jobs)).one()
    assert (row.state, row.code) == ("done", None)
    (tmp_path / "arrived.dcm").write_bytes(orthanc.file(orthanc.instances(SOPInstanceUID=row.seg_sop_uid)[0]))
    arrived, stored = (pydicom.dcmread(file) for file in (tmp_path / "arrived.dcm", site.storage / row.seg_file))
    assert arrived == stored
    for item in arrived.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
        assert len(orthanc.instances(SOPInstanceUID=item.ReferencedSOPInstanceUID)) == 1
    done = subprocess.run(["dciodvfy", str(tmp_path / "arrived.dcm")], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def test_a_newer_revision_names_and_rejects_the_one_it_replaces(
    tmp_path: Path, orthanc: Orthanc, tiny_verified_bundle: Path
) -> None:
    parts = to({"dimse": orthanc.dimse}, "dimse", tiny_verified_bundle, rejection_note=True)
    site = made_site(tmp_path, bundle=tiny_verified_bundle, **parts)
    engine = opened(site)
    series = made_series(tmp_path / "series", 500)
    one = worker(site, tmp_path / "log")
    ids = [received(engine, site, series, leave=1)]
    wait_until(lambda: all_ended(engine, 1))
    with reading(engine) as connection:
        revision = connection.execute(select(jobs.c.revision_id)).scalar()
    ids.append(received(engine, site, series, replaces=revision))
    wait_until(lambda: all_ended(engine, 2))
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    first, second = (find_job(engine, job) for job in ids)
    assert (first.state, second.state) == ("done", "done")
    arrived = orthanc.dataset(orthanc.instances(SOPInstanceUID=second.seg_sop_uid)[0])
    assert [item.ReferencedSOPInstanceUID for item in arrived.ReferencedInstanceSequence] == [first.seg_sop_uid]
    study = {"StudyInstanceUID": arrived.StudyInstanceUID}
    (note,) = [orthanc.dataset(one) for one in orthanc.instances(Modality="KO", **study)]
    assert note.ConceptNameCodeSequence[0].CodeValue == "113001"
    evidence = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in evidence] == [first.seg_sop_uid]
    for ds in (arrived, note):
        ds.save_as(tmp_path / "arrived.dcm")
        done = subprocess.run(["dciodvfy", str(tmp_path / "arrived.dcm")], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []
    assert replay(site, engine, second).identical
    engine.dispose()


def test_jobs_at_once_share_one_network_and_run_it_one_after_the_other(
    tmp_path: Path, tiny_verified_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(tmp_path, bundle=tiny_verified_bundle)
    engine = opened(site)
    ids = [received(engine, site, made_series(tmp_path / str(seed), 700 + seed)) for seed in range(CONCURRENCY)]
    loaded: list[Predictor] = []
    inside: list[int] = []

    def load(*arguments: object, **options: object) -> Predictor:
        loaded.append(load_bundle(*arguments, **options))  # type: ignore[arg-type]
        return loaded[-1]

    def predict(self: Predictor, *arguments: object, **options: object) -> object:
        assert self is loaded[0]
        inside.append(1)
        time.sleep(0.1)
        most = len(inside)
        inside.clear()
        assert most == 1
        return original(self, *arguments, **options)  # type: ignore[arg-type]

    original = Predictor.predict
    monkeypatch.setattr(segmenting, "load_bundle", load)
    monkeypatch.setattr(Predictor, "predict", predict)
    decoder = Decoder(site.limits.decode_memory_bytes)
    steps = Steps(site, engine, Lease(engine), segmenting.Models(site), decoder)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        assert list(pool.map(lambda job: steps.segment(job, 0), ids)) == [None] * CONCURRENCY
    decoder.close()
    assert len(loaded) == 1
    with reading(engine) as connection:
        assert len(set(connection.execute(select(jobs.c.seg_sha256)).scalars())) == CONCURRENCY
    engine.dispose()


def test_a_job_that_waits_for_the_network_is_not_late(
    tmp_path: Path, tiny_verified_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(tmp_path, bundle=tiny_verified_bundle)
    engine = opened(site)
    job = received(engine, site, made_series(tmp_path / "series", 720))
    monkeypatch.setattr(segmenting, "TURN_SECONDS", 0.2)
    decoder, models = Decoder(site.limits.decode_memory_bytes), segmenting.Models(site)
    steps = Steps(site, engine, Lease(engine), models, decoder)
    with reading(engine) as connection:
        row = connection.execute(select(jobs)).one()
    model = models.get(row.bundle, row.bundle_digest)
    seen: set[float] = set()
    with ThreadPoolExecutor(1) as pool:
        with model.lock:  # another job has it
            waiting = pool.submit(steps.segment, job, 0)
            until = time.monotonic() + 60
            while len(seen) < 5 and time.monotonic() < until:
                time.sleep(0.05)
                with reading(engine) as connection:
                    seen |= set(
                        connection.execute(select(jobs.c.changed_at).where(jobs.c.state == "running")).scalars()
                    )
        assert waiting.result() is None
    decoder.close()
    assert len(seen) == 5  # what `step_seconds` counts from begins anew
    engine.dispose()
