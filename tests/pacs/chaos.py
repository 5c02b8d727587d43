"""A site whose processes are killed at random: python -m tests.pacs.chaos --kills 200 --series 300

A sender (which, as a PACS does, repeats what was not acknowledged), a receiver, two workers, PostgreSQL and Orthanc.
One of the last four kinds is killed with SIGKILL every now and then and started again. At the end every series that was
acknowledged must have come out: the last line says ``lost 0 duplicate 0 partial 0``, and the exit status agrees. The
line before tells the longest time that it took to go on after a kill; ``--within 60`` lets a longer one fail the run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from accunet_monai.pacs import audit
from accunet_monai.pacs.database import make_engine, reading
from accunet_monai.pacs.inbox import Inbox, OpenSite
from accunet_monai.pacs.jobs import ENDED
from accunet_monai.pacs.logs import configure_logs
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import instances, jobs, revision_instances, revisions
from tests.pacs.processes import Process, worker
from tests.pacs.recovery import Recovery
from tests.pacs.servers import Orthanc, Postgres, free_port
from tests.pacs.small import made_series, made_site, opened, to, verified_bundle

SETTLE_SECONDS = 240
QUICK = {"lease_seconds": 3, "renew_seconds": 1, "backoff_seconds": 1, "attempts": 40}
"""The ``jobs`` of a site whose workers are killed every other second."""

VICTIMS = {"worker 1": 4, "worker 2": 4, "receiver": 4, "database": 2, "orthanc": 2}
"""Who is killed, and how often compared with the others."""


@dataclass
class Verdict:
    """What became of the series that were sent."""

    lost: int = 0
    duplicate: int = 0
    partial: int = 0
    states: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    @property
    def line(self) -> str:
        return f"lost {self.lost} duplicate {self.duplicate} partial {self.partial}"


class Theatre:
    """The site and everything around it, in a folder.

    Args:
        folder: empty.
        series: so many are made, to be sent.
        jobs: of the site's settings.
    """

    def __init__(self, folder: Path, series: int, jobs: dict[str, float]) -> None:
        self.folder, self.jobs = folder, jobs
        self.orthanc = Orthanc(folder / "orthanc", {})
        self.postgres = Postgres(folder / "postgres")
        self.orthanc.start()
        self.postgres.start()
        self.postgres.create()
        self.bundle = verified_bundle(folder)
        self.port = free_port()
        self.site = self._site()
        opened(self.site).dispose()
        self.sources = [made_series(folder / "sources" / f"{seed:04d}", seed) for seed in range(series)]
        self.processes: dict[str, Process] = {}

    def start(self, name: str, slow: float = 0, version: str | None = None) -> None:
        """Start a part, a worker as :func:`worker` says."""
        log = self.folder / f"{name.replace(' ', '-')}.log"
        if name == "database":
            self.postgres.start()
        elif name == "orthanc":
            self.orthanc.start()
        elif name == "receiver":
            self.processes[name] = Process(lambda: run_receiver(self.site), log)
        elif name == "sender":
            self.processes[name] = Process(lambda: send_all(self.sources, self.port), log)
        else:
            self.processes[name] = worker(self.site, log, slow, version)

    def kill(self, name: str) -> None:
        if name == "database":
            self.postgres.kill()
        elif name == "orthanc":
            self.orthanc.kill()
        else:
            self.processes[name].kill()

    def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                process.kill()
        self.orthanc.kill(signal.SIGTERM)
        self.postgres.kill(signal.SIGINT)

    def _site(self) -> Site:
        parts = to({"dimse": self.orthanc.dimse}, "dimse", self.bundle)
        return made_site(
            self.folder,
            bundle=self.bundle,
            database=self.postgres.url,
            port=self.port,
            peers=[{"ae_title": "SENDER", "addresses": ["127.0.0.1"]}],
            completeness={"quiet_seconds": 3},
            **(parts | {"jobs": self.jobs}),
        )


def run_receiver(site: Site) -> None:
    configure_logs()
    while True:
        try:
            inbox = Inbox(OpenSite(site))
            break
        except Exception as error:  # the database may be away, as for any service at its start
            print(f"receiver: {type(error).__name__}", file=sys.stderr)
            time.sleep(0.5)
    inbox.start()
    while True:
        time.sleep(60)


def send_all(sources: list[Path], port: int) -> None:
    """Send every instance until it is acknowledged, series after series, several to an association."""
    for source in sources:
        left = sorted(source.iterdir())
        while left:
            ae = AE("SENDER")
            ae.add_requested_context(MRImageStorage)
            ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5
            association = ae.associate("127.0.0.1", port, ae_title="ACCUNET")
            for file in list(left) if association.is_established else ():
                try:
                    status = association.send_c_store(pydicom.dcmread(file))
                except (RuntimeError, ValueError):
                    break
                if status.get("Status") != 0x0000:
                    break
                left.remove(file)
            if association.is_established:
                association.release()
            if left:
                time.sleep(0.3)


def judge(theatre: Theatre, engine: Engine) -> Verdict:
    """Compare what was sent with what the tables and Orthanc say."""
    verdict = Verdict()
    with reading(engine) as connection:
        rows = list(connection.execute(select(jobs, revisions.c.series_uid).join(revisions)))
        members: dict[str, set[str]] = {}
        for revision, uid in connection.execute(select(revision_instances)):
            members.setdefault(revision, set()).add(uid)
        files = {row.sop_instance_uid: row for row in connection.execute(select(instances))}
    verdict.states = Counter(row.state for row in rows)
    verdict.codes = Counter(str(row.code) for row in rows if row.state == "dead")
    whole = {row.series_uid for row in rows if row.state in ("done", "dead")}
    for source in theatre.sources:
        heads = [pydicom.dcmread(file, stop_before_pixels=True) for file in source.iterdir()]
        uid, sent = heads[0].SeriesInstanceUID, {head.SOPInstanceUID for head in heads}
        complete = [row for row in rows if row.series_uid == uid and members[row.revision_id] == sent]
        verdict.lost += uid not in whole or not any(row.state in ("done", "dead") for row in complete)
        for name in sent & set(files):
            content = (theatre.site.storage / files[name].file).read_bytes()
            verdict.partial += hashlib.sha256(content).hexdigest() != files[name].sha256
    there = theatre.orthanc.instances(Modality="SEG")
    arrived = Counter(str(theatre.orthanc.header(one).SOPInstanceUID) for one in there)
    meant = {row.seg_sop_uid: row for row in rows if row.state == "done"}
    verdict.lost += sum(uid not in arrived for uid in meant)
    sent_uids = {row.seg_sop_uid for row in rows if row.seg_sop_uid}
    verdict.duplicate = sum(arrived.values()) - len(set(arrived) & sent_uids)
    for one in there:
        ds = theatre.orthanc.dataset(one)
        row = next((row for row in rows if row.seg_sop_uid == ds.SOPInstanceUID), None)
        verdict.partial += row is None or ds != pydicom.dcmread(theatre.site.storage / row.seg_file)
    audit.verify(engine)
    return verdict


def patiently(engine: Engine, question: Callable[[Engine], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(DBAPIError):
            if question(engine):
                return True
        time.sleep(0.5)
    return False


def all_ended(theatre: Theatre) -> Callable[[Engine], bool]:
    """Every series was sent, has a revision with all its instances, and no job is open."""
    counts = {source.name: len(list(source.iterdir())) for source in theatre.sources}

    def question(engine: Engine) -> bool:
        with reading(engine) as connection:
            stored = len(list(connection.execute(select(instances.c.sop_instance_uid))))
            rows = list(connection.execute(select(jobs.c.state, revisions.c.series_uid).join(revisions)))
        series = {row.series_uid for row in rows}
        ended = all(row.state in ENDED for row in rows)
        return stored == sum(counts.values()) and len(series) == len(counts) and ended

    return question


@contextlib.contextmanager
def theatre(series: int, **jobs: float) -> Iterator[Theatre]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        Path(folder).chmod(0o755)
        it = Theatre(Path(folder), series, jobs)
        try:
            yield it
        finally:
            it.stop()


def run(kills: int, series: int, seed: int, pause: float) -> tuple[Verdict, float]:
    """The verdict, and the longest time that it took to go on after a kill."""
    rng = random.Random(seed)
    killed: Counter[str] = Counter()
    with theatre(series, **QUICK) as it:
        for name in ("receiver", "worker 1", "worker 2", "sender"):
            it.start(name)
        started = time.monotonic()
        engine = make_engine(it.postgres.url)
        recovery = Recovery(it.postgres.url, sum(len(list(source.iterdir())) for source in it.sources))
        time.sleep(3)
        while sum(killed.values()) < kills:
            time.sleep(rng.uniform(0.2, 1) * pause)
            name = rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            it.kill(name)
            recovery.killed(name, it.processes[name].pid if name.startswith("worker") else None)
            killed[name] += 1
            time.sleep(rng.uniform(0, 1))
            it.start(name)
            for part in ("receiver", "worker 1", "worker 2"):
                if not it.processes[part].alive():  # what a supervisor does
                    it.start(part)
            print(f"\r{sum(killed.values())} kills after {time.monotonic() - started:.0f} s", end="", flush=True)
        calm = time.monotonic()
        question = all_ended(it)
        settled = False
        while not settled and time.monotonic() - calm < SETTLE_SECONDS:
            settled = patiently(engine, question, 2)
            for part in ("receiver", "worker 1", "worker 2"):
                if not it.processes[part].alive():
                    it.start(part)
        print(f"\n{dict(killed)}; settled {time.monotonic() - calm:.0f} s after the last kill: {settled}")
        time.sleep(1)
        longest = recovery.close()
        verdict = judge(it, engine)
        engine.dispose()
    print(f"{dict(verdict.states)} {dict(verdict.codes) or ''}")
    by_part = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in sorted(recovery.longest.items()))
    print(f"longest time from a kill until it went on: {longest:.1f} s ({by_part})")
    return verdict, longest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--series", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between kills, at most")
    parser.add_argument("--within", type=float, default=float("inf"), help="fail where going on took more seconds")
    options = parser.parse_args()
    outcome, recovered_after = run(options.kills, options.series, options.seed, options.pause)
    print(outcome.line)
    sys.exit(outcome.lost + outcome.duplicate + outcome.partial > 0 or recovered_after > options.within)
