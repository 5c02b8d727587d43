"""A site in virtual time: its own tables and functions, fed by a hospital's day."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sqlalchemy import Engine, delete

from accunet_monai.errors import PacsError
from accunet_monai.pacs import completeness, database, queue, steps
from accunet_monai.pacs.completeness import close_complete
from accunet_monai.pacs.heads import Head
from accunet_monai.pacs.jobs import OPEN, counts
from accunet_monai.pacs.leases import Lease
from accunet_monai.pacs.pseudonyms import Pseudonyms, make_key
from accunet_monai.pacs.registrar import GROUP, Arrival, record
from accunet_monai.pacs.rules import Decision
from accunet_monai.pacs.segmenting import Result
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.steps import Steps
from accunet_monai.pacs.storage import StoredFile
from accunet_monai.pacs.tables import association_series, associations
from accunet_monai.pacs.worker import Worker
from benchmarks.hospital.parts import Archive, Dbos, Duration, Networks, Queue, WorkerQueue, stored_file
from benchmarks.hospital.virtual import Life, Time

DAY = 86400.0
MIDNIGHT = 1_750_000_000.0 // DAY * DAY
HOURS = (6, 5, 5, 5, 6, 10, 25, 60, 95, 100, 100, 95, 75, 85, 95, 90, 75, 50, 30, 22, 18, 14, 11, 8)
"""Studies begun in each hour of a working day, against the busiest."""

DISPATCH_SECONDS = 1.0
RECEIVE_SECONDS = 1.0
SAMPLE_SECONDS = 60.0
TAKE_OVER_SECONDS = 10.0
"""Workers look for jobs, and for workers that died, in turn: one of them every so many seconds."""

HARM_SECONDS = 600.0
"""For so long after a death or the beginning of a freeze leases are looked at as often as the product does."""


@dataclass(frozen=True)
class Plan:
    """A day.

    Args:
        studies: that arrive, with one series each that the rules judge.
        chosen: the part of them that a bundle takes.
        late: the part that gets one more slice, minutes later.
        workers: processes.
        seconds: of the network for one series.
        away: when the PACS is away: hour of the day and minutes.
        deaths: of each worker a day; every third is a freeze.
        seed: of everything that is drawn.
    """

    studies: int
    chosen: float = 0.25
    late: float = 0.02
    workers: int = 8
    seconds: Duration = field(default_factory=lambda: Duration(8.0))
    away: tuple[tuple[float, float], ...] = ((10.5, 20.0), (15.0, 2.0), (15.2, 2.0))
    deaths: float = 6.0
    seed: int = 0

    @property
    def outages(self) -> list[tuple[float, float]]:
        """From when until when the PACS is away."""
        return [(MIDNIGHT + 3600 * hour, MIDNIGHT + 3600 * hour + 60 * minutes) for hour, minutes in self.away]


@dataclass(frozen=True)
class Study:
    """When the slices of a study's series come, the last perhaps late."""

    uid: str
    chosen: bool
    slices: tuple[float, ...]


@dataclass
class Sample:
    """The site at a moment: hour of the day, jobs that wait, run and are sent."""

    hour: float
    queued: int
    running: int
    delivering: int


def make_studies(plan: Plan) -> Iterator[Study]:
    """The studies of a day, in the order of their first slice: bursts within each hour, minutes for each study."""
    rng = random.Random(plan.seed)
    begins = sorted(_begin(rng) for _ in range(plan.studies))
    for number, begin in enumerate(begins):
        last = begin + rng.uniform(20, 240)
        slices = (begin, last)
        if rng.random() < plan.late:
            slices += (last + rng.uniform(120, 1800),)
        yield Study(f"2.25.{plan.seed}{number:07d}", rng.random() < plan.chosen, slices)


def _begin(rng: random.Random) -> float:
    (hour,) = rng.choices(range(24), HOURS)
    quarter = rng.choices((0.0, 0.25, 0.5, 0.75), (4, 2, 3, 1))[0]  # appointments begin at the full and half hour
    return MIDNIGHT + 3600 * (hour + quarter + rng.uniform(0, 0.25))


@dataclass(eq=False)
class Hospital:
    """Everything of one simulated day."""

    plan: Plan
    site: Site
    engine: Engine
    time: Time
    archive: Archive
    rng: random.Random
    queue: Queue = field(default_factory=Queue)
    workers: dict[int, Worker] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    dirty: bool = True
    coming: int = 0
    deaths: int = 0
    harm_at: float = 0.0
    group: list[Arrival] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    quiet_at: list[float] = field(default_factory=list)
    known: dict[tuple[str, str], int] = field(default_factory=dict)
    turns: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.studies = make_studies(self.plan)
        self.pseudonyms = Pseudonyms(self.site.key_file)

    def run(self) -> None:
        """Until everything that came has come out."""
        self._next_study()
        for number in range(self.plan.workers):
            self._be_born(number)
        self.time.every(SAMPLE_SECONDS, self._sample)
        self.time.every(RECEIVE_SECONDS, self._receive)
        self.time.every(DISPATCH_SECONDS, self._dispatch)
        self.time.every(TAKE_OVER_SECONDS, self._take_over)
        self.time.run(lambda: self.coming > 0 or self.time.now < MIDNIGHT + DAY or not self._at_rest())

    def _next_study(self) -> None:
        if (study := next(self.studies, None)) is None:
            return
        self.coming += len(study.slices)
        self.time.at(study.slices[0], self._next_study)
        for number, when in enumerate(study.slices):
            self.time.at(when, lambda number=number: self._arrive(study, number))  # type: ignore[misc]

    def _arrive(self, study: Study, number: int) -> None:
        """A slice; the association that brings the series ends with its second, a late one has its own."""
        self.coming -= 1
        digest = hashlib.sha256(f"{study.uid}.{number}".encode()).hexdigest()
        head = Head("1.2.840.10008.5.1.4.1.1.4", f"{study.uid}.1.{number}", "MR", study.uid, "", study.uid, study.uid)
        file = f"{'chosen' if study.chosen else 'other'}/{digest}.dcm"
        association = f"{study.uid}-{max(number, 1)}"
        stored = StoredFile(head, file, digest, 1, "1.2.840.10008.1.2.1")
        self.group.append(Arrival(stored, "push:MODALITY", association))
        if number:
            self.ended.append(association)

    def _receive(self) -> None:
        """What the registrar commits, then what the inbox closes."""
        if self.group:
            with self.engine.begin() as connection:
                for start in range(0, len(self.group), GROUP):
                    some = self.group[start : start + GROUP]
                    record(connection, some, self.pseudonyms, "receiver", self.known)
                if self.ended:
                    held = association_series.c.association_id.in_(self.ended)
                    connection.execute(delete(association_series).where(held))
                    connection.execute(delete(associations).where(associations.c.id.in_(self.ended)))
            self.known = {one: second for one, second in self.known.items() if one[0] not in self.ended}
            self.quiet_at.append(self.time.now + self.site.completeness.quiet_seconds)
            self.group, self.ended = [], []
        if self.quiet_at and self.quiet_at[0] <= self.time.now:
            self.quiet_at = [when for when in self.quiet_at if when > self.time.now]
            judge: Any = _judge
            storage: Any = _Files()
            self.dirty |= bool(close_complete(self.site, self.engine, storage, judge))

    def _be_born(self, number: int) -> None:
        life = Life()
        worker = Worker.__new__(Worker)
        worker.site, worker.engine, worker._sent = self.site, self.engine, set()
        worker.lease = Lease(self.engine, self.site.jobs.lease_seconds)
        worker._ended = mock.Mock()
        rules = {rule.name: rule for rule in self.site.bundles}
        models: Any = Networks(self.time, rules, self.plan.seconds, Duration(1.0))
        worker.steps = Steps(self.site, self.engine, worker.lease, models, mock.Mock())
        mine = WorkerQueue(self.time, self.queue, life, worker.lease.executor_id, self._job_ended)
        mine.workflow = queue._job_of(worker.steps)
        worker.queue = mine  # type: ignore[assignment]
        self.workers[number] = worker
        if self.plan.deaths:
            self.time.at(self.time.now + self.rng.expovariate(self.plan.deaths / DAY), lambda: self._harm(number, life))

    def _harm(self, number: int, life: Life) -> None:
        """The process dies, or is frozen for longer than its lease."""
        self.deaths += 1
        self.harm_at = self.time.now
        if self.rng.random() < 1 / 3:
            life.frozen_until = self.time.now + self.rng.uniform(40, 400)
            self.time.at(life.frozen_until + 1, lambda: self._end(number, life))
        else:
            self._end(number, life)

    def _end(self, number: int, life: Life) -> None:
        """It is no more, and another is started in its place a while later."""
        life.alive = False
        del self.workers[number]
        self.time.at(self.time.now + self.rng.uniform(5, 120), lambda: self._be_born(number))

    def _awake(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.queue.life.frozen_until <= self.time.now]  # type: ignore[attr-defined]

    def _job_ended(self) -> None:
        self.dirty = True

    def _dispatch(self) -> None:
        if self.dirty and (awake := self._awake()):
            self.dirty = False
            self._act(awake[next(self.turns) % len(awake)]._dispatch)
            self.rng.shuffle(awake)  # whoever looks first takes what it may
            for worker in awake:
                worker.queue.start()  # type: ignore[attr-defined]

    def _take_over(self) -> None:
        """Leases are renewed, and one worker looks for those that ran out: every time, or each minute in calm."""
        self.dirty |= bool(self.samples[-1].queued)  # the wait of some may be over
        if self.time.now < self.harm_at + HARM_SECONDS or self.time.now % 60 < TAKE_OVER_SECONDS:
            awake = self._awake()
            for worker in awake:
                self._act(worker.lease.renew)
            if awake:
                self._act(awake[next(self.turns) % len(awake)]._take_over)

    def _act(self, act: Any) -> None:
        with contextlib.suppress(PacsError):  # LEASE_LOST: it ends
            act()

    def _sample(self) -> None:
        found = counts(self.engine)
        waits = [found.get(state, 0) for state in ("queued", "running", "delivering")]
        self.samples.append(Sample((self.time.now - MIDNIGHT) / 3600, *waits))

    def _at_rest(self) -> bool:
        return not (self.group or self.quiet_at or any(counts(self.engine).get(state) for state in OPEN))


@contextlib.contextmanager
def hospital(plan: Plan, site: Site) -> Iterator[Hospital]:
    """A hospital whose day can run: the site's functions find virtual time and stand-ins where they look."""
    time = Time(MIDNIGHT)
    archive = Archive(time, random.Random(plan.seed + 1), plan.outages, Duration(0.3))
    virtual = SimpleNamespace(time=time.time, sleep=time.sleep)

    def store_result(engine: Engine, site: Site, model: Networks, revision_id: str, *_: object) -> Result:
        return model.store_result(revision_id)

    changes = [
        mock.patch.object(database, "time", virtual),
        mock.patch.object(steps, "time", virtual),
        mock.patch.object(steps, "store_result", store_result),
        mock.patch.object(steps, "stored_file", stored_file),
        mock.patch.object(steps, "open_channel", return_value=archive),
        mock.patch.object(queue, "DBOS", Dbos),
        mock.patch.object(completeness, "bundle_digest", return_value="0" * 64),
    ]
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        engine = database.open_database(site.database_url)
        try:
            yield Hospital(plan, site, engine, time, archive, random.Random(plan.seed + 2))
        finally:
            engine.dispose()


def simulated_site(folder: Path, **jobs: float) -> Site:
    """A site with one bundle and one destination, in a folder; ``jobs`` as in its settings."""
    make_key(folder / "site.key")
    folder.joinpath("storage").mkdir()
    return Site.model_validate(
        {
            "ae_title": "ACCUNET",
            "storage": str(folder / "storage"),
            "key_file": str(folder / "site.key"),
            "pacs": [{"name": "archive", "dimse": {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": 104}}],
            "destinations": [{"name": "archive", "pacs": "archive", "kind": "dimse"}],
            "bundles": [
                {
                    "bundle": "hippocampus_mri",
                    "when": {"tag": "Modality", "equals": "MR"},
                    "destinations": ["archive"],
                }
            ],
            "jobs": jobs,
        }
    )


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, in memory where the machine has such a place."""
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="hospital-", dir=place) as name,
        mock.patch.object(tempfile, "tempdir", name),
    ):
        yield Path(name)


class _Files:
    """The storage: every file is there."""

    def path(self, file: str, sha256: str) -> Path:
        return Path(file)


def _judge(rules: Any, folder: Path) -> list[Decision]:
    chosen = next(folder.iterdir()).readlink().parent.name == "chosen"
    return [
        Decision(rule.name, *(("chosen", None) if chosen else ("not_chosen", "RULE_NOT_MET")), {}) for rule in rules
    ]
