"""Worker processes that are killed, frozen and replaced, on a database that they share."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from sqlalchemy import Connection, Engine, select, update

from accunet_monai.bundle import Predictor, load_bundle, manifest_digest, write_manifest
from accunet_monai.errors import PacsError
from accunet_monai.pacs import audit, segmenting
from accunet_monai.pacs import steps as steps_module
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.decoding import Decoder
from accunet_monai.pacs.jobs import ENDED, counts, find_job, retry
from accunet_monai.pacs.leases import Lease
from accunet_monai.pacs.queue import CONCURRENCY
from accunet_monai.pacs.replay import replay
from accunet_monai.pacs.results import stored_file
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.status import drain, resume
from accunet_monai.pacs.steps import Steps
from accunet_monai.pacs.storage import MARK
from accunet_monai.pacs.tables import audit as audit_table
from accunet_monai.pacs.tables import deliveries, jobs, revisions
from accunet_monai.pacs.worker import Worker
from tests import made_bundle
from tests.pacs.processes import wait_until, worker
from tests.pacs.servers import Orthanc, Postgres
from tests.pacs.small import made_series, made_site, opened, received, to, verified_bundle

JOBS = 6


class Archive:
    """A PACS that may be away: a way to it, and the SOP Instance UIDs of what it was sent, in order."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.kept: list[pydicom.Dataset] = []
        self.away: Callable[[], object] | None = None
        self.breaks = False
        self.late = False
        """Asked for something, it says nothing in time."""

    def send(self, file: Path) -> None:
        self._answer()
        if self.breaks:
            raise PacsError("PACS_UNREACHABLE", "the association was lost while sending.")
        self.kept.append(pydicom.dcmread(file))
        self.sent.append(str(self.kept[-1].SOPInstanceUID))

    def has(self, file: Path) -> bool:
        self._answer()
        if self.late:
            raise PacsError("NOT_COMMITTED", "it has not said whether it keeps the object.")
        return pydicom.dcmread(file).SOPInstanceUID in self.sent

    def _answer(self) -> None:
        if self.away is not None:
            self.away()
            raise PacsError("PACS_UNREACHABLE", "it is away.")


@pytest.fixture
def alone(
    tmp_path: Path, tiny_verified_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Steps, Archive]]:
    """The steps of a worker, to be taken by hand, at a site that delivers to an archive."""
    parts = to({"dimse": {"ae_title": "A", "host": "h", "port": 1}}, "dimse", tiny_verified_bundle, rejection_note=True)
    site = made_site(tmp_path, bundle=tiny_verified_bundle, **parts)
    engine, archive, decoder = opened(site), Archive(), Decoder(2**32)
    monkeypatch.setattr(steps_module, "open_channel", lambda *_: archive)
    yield Steps(site, engine, Lease(engine), segmenting.Models(site), decoder), archive
    decoder.close()
    engine.dispose()


def run(steps: Steps, job: str, attempt: int = 0) -> str:
    """An attempt at a job, as the queue makes it; the state it led to."""
    code = steps.segment(job, attempt)
    if code is None:
        for step in (steps.send, steps.confirm, steps.reject):
            code = code or step(job, attempt, "archive")
        steps.finish(job, attempt, code)
    return str(find_job(steps.engine, job).state)


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


@pytest.mark.parametrize("stale_first", [True, False])
def test_a_revision_that_did_not_arrive_stays_away_and_the_one_before_it_is_rejected(
    alone: tuple[Steps, Archive], tmp_path: Path, stale_first: bool
) -> None:
    steps, archive = alone
    series, ids = made_series(tmp_path / "series", 730), []

    def next_revision(leave: int) -> str:
        with steps.engine.begin() as connection:  # `received` numbers the second and no third
            connection.execute(update(revisions).values(number=revisions.c.number - 1))
            latest = connection.execute(select(revisions.c.id).order_by(revisions.c.number.desc())).scalars().first()
        ids.append(received(steps.engine, steps.site, series, leave=leave, replaces=latest))
        return ids[-1]

    assert run(steps, next_revision(2)) == "done"
    archive.away = lambda: None
    assert run(steps, next_revision(1)) == "queued"  # tried in vain, and waits for its next attempt
    archive.away = None
    next_revision(0)
    if stale_first:
        assert run(steps, ids[1], 1) == "superseded"
        assert len(archive.sent) == 1  # nothing is rejected before its successor is there
    assert run(steps, ids[2]) == "done"
    if not stale_first:
        assert run(steps, ids[1], 1) == "superseded"
    first, _, last = (find_job(steps.engine, job).seg_sop_uid for job in ids)
    assert archive.sent[:2] == [first, last]
    _, newest, note = archive.kept
    assert [item.ReferencedSOPInstanceUID for item in newest.ReferencedInstanceSequence] == [first]
    evidence = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert [item.ReferencedSOPInstanceUID for item in evidence] == [first]


@pytest.mark.parametrize("code", ["LEASE_LOST", "JOB_TAKEN"])
def test_what_a_worker_said_that_is_no_more_ends_the_attempt_and_not_the_job(
    alone: tuple[Steps, Archive], tmp_path: Path, code: str
) -> None:
    steps, archive = alone
    job = received(steps.engine, steps.site, made_series(tmp_path / "series", 740))
    other = Steps(steps.site, steps.engine, Lease(steps.engine), steps.models, steps.decoder)

    def taken() -> None:
        if code == "LEASE_LOST":
            steps.lease.release()
        else:
            with steps.engine.begin() as connection:
                connection.execute(update(jobs).values(executor=other.lease.executor_id))

    archive.away = taken
    assert steps.segment(job, 0) is None
    assert steps.send(job, 0, "archive") == code  # DBOS keeps it, and the next worker is told
    assert other.finish(job, 0, code) == code
    found = find_job(steps.engine, job)
    assert (found.state, found.code, found.attempts) == ("queued", code, 1)
    archive.away = None
    assert run(other, job, 1) == "done"


def test_a_lease_goes_on_after_the_database_ended_its_session(
    shared: tuple[Site, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, engine = shared
    one = Worker.__new__(Worker)
    one.site, one.lease, one._ended = site, Lease(engine), threading.Event()
    original, seen = Lease.hold, []

    def hold(self: Lease, connection: Connection) -> None:
        seen.append(1)
        if len(seen) == 1:  # frozen inside the transaction
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = 50")
            time.sleep(0.5)
        else:
            one._ended.set()
        original(self, connection)

    monkeypatch.setattr(Lease, "hold", hold)
    one._renew()
    assert len(seen) == 2


def test_draining_leaves_what_waits_and_resuming_runs_it(tmp_path: Path, tiny_verified_bundle: Path) -> None:
    site = made_site(tmp_path, bundle=tiny_verified_bundle)
    engine = opened(site)
    count = CONCURRENCY + 2
    for seed in range(count):
        received(engine, site, made_series(tmp_path / str(seed), 750 + seed))
    one = worker(site, tmp_path / "log", slow=0.5)
    try:
        wait_until(lambda: counts(engine).get("running", 0) == CONCURRENCY)  # the others wait in DBOS
        drain(site, engine, 30)
        drained = counts(engine)
        time.sleep(1)
        assert counts(engine) == drained == {"done": CONCURRENCY, "queued": count - CONCURRENCY}
        resume(site)
        wait_until(lambda: all_ended(engine, count), 20)
        assert counts(engine) == {"done": count}
    finally:
        one.send(signal.SIGTERM)
        assert one.wait() == 0
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


def delivered(steps: Steps, job: str) -> tuple[str, str | None]:
    """State and code of the delivery to the archive."""
    with reading(steps.engine) as connection:
        query = select(deliveries.c.state, deliveries.c.code).where(deliveries.c.job_id == job)
        state, code = connection.execute(query).one()
    return state, code


def stored_result(steps: Steps, tmp_path: Path, seed: int) -> tuple[str, Path]:
    """A job whose SEG is stored and of which nothing was sent, and where the SEG lies."""
    job = received(steps.engine, steps.site, made_series(tmp_path / "series", seed))
    assert steps.segment(job, 0) is None
    return job, steps.site.storage / find_job(steps.engine, job).seg_file


def test_a_worker_whose_network_hangs_ends_and_others_do_its_jobs(
    tmp_path: Path, tiny_verified_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"lease_seconds": 2, "renew_seconds": 0.5, "backoff_seconds": 0.2, "step_seconds": 6, "device": "cpu"}
    site = made_site(tmp_path, bundle=tiny_verified_bundle, jobs=times)
    engine = opened(site)
    for seed in range(2):
        received(engine, site, made_series(tmp_path / str(seed), 770 + seed))
    with monkeypatch.context() as patch:
        patch.setattr(segmenting, "TURN_SECONDS", 0.5)  # the second job renews its time and is never late
        patch.setattr(Predictor, "predict", lambda *_: time.sleep(600))
        hangs = worker(site, tmp_path / "hangs.log")
    assert hangs.wait(40) == 1  # LEASE_LOST, which the command makes 75
    assert '"network_hangs"' in (tmp_path / "hangs.log").read_text(encoding="utf-8")
    other = worker(site, tmp_path / "other.log")
    try:
        wait_until(lambda: counts(engine) == {"done": 2})
    finally:
        other.send(signal.SIGTERM)
        assert other.wait() == 0
        engine.dispose()


def test_a_result_that_cannot_be_read_for_a_while_is_sent_later(alone: tuple[Steps, Archive], tmp_path: Path) -> None:
    steps, archive = alone
    job, seg = stored_result(steps, tmp_path, 780)
    mark = steps.site.storage / MARK
    seg.rename(tmp_path / "seg.dcm")
    mark.rename(tmp_path / "mark")  # as where the share is not mounted
    assert run(steps, job) == "queued"
    assert find_job(steps.engine, job).code == "RESULT_UNREADABLE"
    (tmp_path / "mark").rename(mark)
    seg.mkdir()  # reading it is an error of the file system
    assert run(steps, job, 1) == "queued"
    assert find_job(steps.engine, job).code == "RESULT_UNREADABLE"
    seg.rmdir()
    (tmp_path / "seg.dcm").rename(seg)
    assert run(steps, job, 2) == "done"
    assert archive.sent == [find_job(steps.engine, job).seg_sop_uid]


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_result_that_is_lost_before_anything_was_sent_is_made_again(
    alone: tuple[Steps, Archive], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    steps, archive = alone
    job, seg = stored_result(steps, tmp_path, 781)
    before = seg.read_bytes()
    damage(seg)
    steps.finish(job, 0, steps.send(job, 0, "archive"))
    assert (find_job(steps.engine, job).state, find_job(steps.engine, job).code) == ("dead", "SEG_CHANGED")
    retry(steps.engine, job)
    assert run(steps, job, 1) == "done"
    row = find_job(steps.engine, job)
    assert stored_file(steps.site, row.seg_file, row.seg_sha256).read_bytes() == before
    assert archive.sent == [row.seg_sop_uid]


def test_a_result_that_is_lost_after_it_was_sent_has_to_be_put_back(
    alone: tuple[Steps, Archive], tmp_path: Path
) -> None:
    steps, archive = alone
    job, seg = stored_result(steps, tmp_path, 782)
    archive.breaks = True
    assert run(steps, job) == "queued"
    archive.breaks = False
    seg.rename(tmp_path / "seg.dcm")
    assert run(steps, job, 1) == "dead"
    assert find_job(steps.engine, job).code == "SEG_LOST"
    (tmp_path / "seg.dcm").rename(seg)
    retry(steps.engine, job)
    assert run(steps, job, 2) == "done"
    assert archive.sent == [find_job(steps.engine, job).seg_sop_uid]


def test_what_a_pacs_does_not_speak_of_is_sent_again_and_confirmed_by_its_word_alone(
    alone: tuple[Steps, Archive], tmp_path: Path
) -> None:
    steps, archive = alone
    job, _ = stored_result(steps, tmp_path, 783)
    archive.breaks = archive.late = True
    assert run(steps, job) == "queued"
    archive.breaks = False
    assert run(steps, job, 1) == "queued"
    assert archive.sent == [find_job(steps.engine, job).seg_sop_uid]
    assert delivered(steps, job) == ("failed", "NOT_COMMITTED")
    archive.late = False
    assert run(steps, job, 2) == "done"
    assert len(archive.sent) == 1
    assert delivered(steps, job) == ("confirmed", None)


def in_shadow(steps: Steps) -> Steps:
    """The same after the bundle was set to shadow mode, without destinations, and the worker started again."""
    shadow = steps.site.bundles[0].model_copy(update={"shadow": True, "destinations": ()})
    site = steps.site.model_copy(update={"bundles": (shadow,), "destinations": ()})
    return Steps(site, steps.engine, steps.lease, segmenting.Models(site), steps.decoder)


@pytest.mark.parametrize("begun", ["queued", "stored", "tried", "sent"])
def test_nothing_is_sent_for_a_bundle_that_is_in_shadow_mode_by_now(
    alone: tuple[Steps, Archive], tmp_path: Path, begun: str
) -> None:
    steps, archive = alone
    job, attempt = received(steps.engine, steps.site, made_series(tmp_path / "series", 784)), 0
    if begun == "stored":
        assert steps.segment(job, 0) is None
    elif begun in ("tried", "sent"):
        archive.breaks, archive.late, attempt = begun == "tried", begun == "sent", 1
        assert run(steps, job) == "queued"
        archive.breaks = archive.late = False
    before = list(archive.sent)
    archive.away = lambda: pytest.fail("it was called")
    later = in_shadow(steps)
    code = later.segment(job, attempt)
    for name in later.destinations(job):
        for step in (later.send, later.confirm, later.reject):
            code = code or step(job, attempt, name)
    assert later.finish(job, attempt, code) is None
    row = find_job(steps.engine, job)
    assert (row.state, row.code) == ("done", "SHADOW")
    assert row.shadow == (begun in ("queued", "stored"))
    assert archive.sent == before
    if begun != "queued":
        assert delivered(steps, job) == ("failed", "SHADOW")
