"""How long a site takes to go on after a part of it was killed: measured from outside, from its tables."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError

from accunet_monai.pacs.database import make_engine, now, reading
from accunet_monai.pacs.tables import deliveries, instances, jobs

LOOK_SECONDS = 0.2
HELD = ("running", "delivering")


@dataclass(frozen=True)
class Look:
    """What the tables say at a moment.

    Args:
        holders: job → worker that holds it, ``None`` for nobody; of jobs that have not ended.
        received_at, confirmed_at, changed_at: when the last instance came, delivery was confirmed, job changed.
        expects: whether more instances are on their way.
    """

    holders: dict[str, str | None]
    received_at: float
    confirmed_at: float
    changed_at: float
    expects: bool


@dataclass
class Wait:
    """A part that was killed, and what would show that it is replaced."""

    part: str
    since: float
    jobs: dict[str, str] = field(default_factory=dict)
    claimed: bool = False

    def over(self, look: Look) -> bool:
        """Whether it goes on: an instance came, an object was confirmed, the worker's jobs are others' or ended."""
        if self.part == "worker":
            held = {holder for job, holder in self.jobs.items() if look.holders.get(job, "ended") == holder}
            return not held and not (self.claimed and any(look.holders.get(job, "ended") is None for job in self.jobs))
        if self.part == "receiver":
            return look.received_at > self.since or not look.expects
        if self.part == "orthanc":
            return look.confirmed_at > self.since or not look.holders
        at_rest = not look.holders and not look.expects
        return max(look.received_at, look.changed_at) > self.since or at_rest


class Recovery:
    """Looks at a site's tables until it is closed. What is killed again before it went on is timed anew, since nothing
    can go on in between; what a worker was at is timed until another is at it.

    Args:
        url: of the database.
        expected: so many instances are sent in all.
        claimed: a job counts as taken over when another worker is at it, not yet when it waits for its next attempt.
    """

    def __init__(self, url: str, expected: int, *, claimed: bool = False) -> None:
        self.engine: Engine = make_engine(url)
        self.longest: dict[str, float] = defaultdict(float)
        self._expected, self._claimed = expected, claimed
        self._waits: list[Wait] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)
        self._thread.start()

    def killed(self, name: str, pid: int | None = None) -> None:
        """A part was killed just now; of a worker's process the jobs that it held are waited for."""
        part, at = name.split()[0], now()
        held = {job: holder for job, holder in self._held().items() if f"-{pid}-" in holder} if pid else {}
        with self._lock:
            self._waits = [wait for wait in self._waits if wait.part != part or part == "worker"]
            self._waits.append(Wait(part, at, held, self._claimed))

    def settled(self) -> bool:
        """Whether nothing is waited for."""
        with self._lock:
            return not self._waits

    def close(self) -> float:
        """End; returns the longest time, those that are still waited for included."""
        self._stop.set()
        self._thread.join()
        self.engine.dispose()
        for wait in self._waits:
            self._note(wait)
        return max(self.longest.values(), default=0.0)

    def _held(self) -> dict[str, str]:
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.id, jobs.c.executor).where(jobs.c.state.in_(HELD)))
            return {row.id: row.executor for row in rows if row.executor}

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            with contextlib.suppress(DBAPIError):
                self._compare(self._look())

    def _compare(self, look: Look) -> None:
        with self._lock:
            for wait in [wait for wait in self._waits if wait.over(look)]:
                self._note(wait)
                self._waits.remove(wait)

    def _note(self, wait: Wait) -> None:
        self.longest[wait.part] = max(self.longest[wait.part], now() - wait.since)

    def _look(self) -> Look:
        last = func.coalesce
        with reading(self.engine) as connection:
            open_rows = connection.execute(
                select(jobs.c.id, jobs.c.executor).where(jobs.c.state.in_(("queued", *HELD)))
            )
            count, received = connection.execute(
                select(func.count(), last(func.max(instances.c.received_at), 0.0)).select_from(instances)
            ).one()
            confirmed = select(last(func.max(deliveries.c.changed_at), 0.0)).where(deliveries.c.state == "confirmed")
            return Look(
                {row.id: row.executor for row in open_rows},
                received,
                connection.execute(confirmed).scalar_one(),
                connection.execute(select(last(func.max(jobs.c.changed_at), 0.0))).scalar_one(),
                count < self._expected,
            )
