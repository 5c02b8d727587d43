"""The states of a job and every way from one to another. The tables are the truth; the queue of DBOS follows them.

``queued`` → ``running`` → ``delivering`` → ``done``. A failure that may pass leads back to ``queued`` with one attempt
more, and after ``jobs.attempts`` of the settings to ``dead``; one that cannot pass leads there at once. A job whose
series has a newer revision becomes ``superseded`` as long as nothing of it arrived; so does one whose bundle was
replaced before it was segmented, and the same is queued for the new bundle.

Every change after the claim is made in a transaction that renews the worker's lease and finds the job still its own,
in the same attempt: a worker that was frozen and replaced changes nothing, and the first SEG stored is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, case, delete, exists, func, select, update

from accunet_monai.errors import PacsError
from accunet_monai.pacs import audit
from accunet_monai.pacs.database import insert_new, now, reading
from accunet_monai.pacs.leases import RELEASED, Lease, live
from accunet_monai.pacs.precedence import earlier_runs, revisions_of_series, superseded
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import deliveries, jobs, revisions

OPEN = ("queued", "running", "delivering")
ENDED = ("done", "dead", "cancelled", "superseded")
MAX_WAIT_SECONDS = 3600.0
DRAINING = "draining"
"""A file of this name in the storage: workers begin no further job."""


@dataclass(frozen=True)
class Due:
    """A job that can run now, and which attempt at it this is."""

    job_id: str
    attempt: int
    priority: int


class Hold:
    """A worker's claim on one attempt at a job.

    Args:
        engine: of the database.
        lease: of the worker.
        job_id: which job.
        attempt: ``attempts`` of the job when it was taken from the queue.
    """

    def __init__(self, engine: Engine, lease: Lease, job_id: str, attempt: int) -> None:
        self.engine, self.lease, self.job_id, self.attempt = engine, lease, job_id, attempt

    def claim(self) -> Row[Any] | None:
        """Take the job; its row, or ``None`` when it is another's, ended, or waits for an earlier revision."""
        with self.engine.begin() as connection:
            self.lease.hold(connection)
            row = connection.execute(select(jobs).where(jobs.c.id == self.job_id).with_for_update()).first()
            if row is None or row.attempts != self.attempt or row.state not in OPEN:
                return None
            if row.executor not in (None, self.lease.executor_id) and row.executor in live(connection):
                return None
            if superseded(connection, row, deliveries.c.attempts > 0):
                _set(connection, row.id, state="superseded", executor=None)
                audit.append(connection, "job_superseded", job=row.id)
                return None
            if connection.execute(select(earlier_runs(row))).scalar():
                return None
            state = "running" if row.seg_sha256 is None else "delivering"
            _set(connection, row.id, state=state, executor=self.lease.executor_id)
        return row

    @contextmanager
    def changing(self) -> Iterator[Connection]:
        """A transaction that stands only if the lease and the claim are still held.

        What a worker that is no more had claimed goes over to this one, which continues at the step after the last.

        Raises:
            PacsError: ``LEASE_LOST``, ``JOB_TAKEN``.
        """
        with self.engine.begin() as connection:
            self.lease.hold(connection)
            own = self.lease.executor_id
            mine = (jobs.c.executor == own) | jobs.c.executor.in_(RELEASED)
            mine &= (jobs.c.id == self.job_id) & (jobs.c.attempts == self.attempt)
            mine &= jobs.c.state.in_(("running", "delivering"))
            if connection.execute(update(jobs).where(mine).values(executor=own, changed_at=now())).rowcount != 1:
                raise PacsError("JOB_TAKEN", "the job was cancelled, timed out or is another worker's.")
            yield connection

    def wait_for_network(self) -> None:
        """Other jobs of this worker have it: what they take does not count as this one's ``step_seconds``.

        Raises:
            PacsError: ``LEASE_LOST``, ``JOB_TAKEN``.
        """
        with self.changing():
            pass

    def put_off(self, attempts: int) -> bool:
        """Leave a job that was not begun in the queue of jobs; whether it was so.

        It counts as the attempt of the same place in the next series of attempts, which the queue does not know yet.

        Args:
            attempts: so many make a series.
        """
        with self.engine.begin() as connection:
            self.lease.hold(connection)
            same = (jobs.c.id == self.job_id) & (jobs.c.attempts == self.attempt) & (jobs.c.state == "queued")
            later = update(jobs).where(same).values(attempts=self.attempt + attempts)
            return connection.execute(later).rowcount == 1

    def moved_to(self, successor: str, bundle_digest: str, attempts: int) -> bool:
        """Queue the same for the bundle as it is now; ``False``, and nothing happens, where that cannot be.

        Where the bundle is one that was there before, the job that it had is queued again, with one attempt more: so
        workers with different bundles hand a job to and fro no longer than its attempts last.

        Args:
            successor: the id of that job.
            bundle_digest: of the bundle's manifest.
            attempts: so many make a series.
        """
        with self.changing() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == self.job_id)).one()
            fresh = {"state": "queued", "attempts": 0, "executor": None, "code": None, "changed_at": now()}
            same = {**row._mapping, "id": successor, "bundle_digest": bundle_digest}
            if not insert_new(connection, jobs, same | fresh):
                moved_on = (jobs.c.state == "superseded") & (jobs.c.code == "BUNDLE_REPLACED")
                again = (jobs.c.id == successor) & moved_on & ((jobs.c.attempts + 1) % attempts != 0)
                values = {**fresh, "attempts": jobs.c.attempts + 1, "detail": None}
                if connection.execute(update(jobs).where(again).values(values)).rowcount != 1:
                    return False
            _set(connection, self.job_id, state="superseded", code="BUNDLE_REPLACED", executor=None)
            audit.append(connection, "bundle_replaced", job=self.job_id, by=successor)
        return True

    def stored(self, file: str, sha256: str, sop_uid: str, destinations: Sequence[str]) -> None:
        """The verified SEG lies in the storage: from now on these bytes are sent and no others."""
        with self.changing() as connection:
            _set(connection, self.job_id, state="delivering", seg_file=file, seg_sha256=sha256, seg_sop_uid=sop_uid)
            rows = [_waiting(self.job_id, name) for name in destinations]
            insert_new(connection, deliveries, rows)
            audit.append(connection, "seg_stored", job=self.job_id, sha256=sha256, executor=self.lease.executor_id)

    def forget_result(self) -> bool:
        """What was stored is lost: make it again, unless something of it was sent; whether it was not."""
        with self.changing() as connection:
            if _sent(connection, self.job_id):
                return False
            connection.execute(delete(deliveries).where(deliveries.c.job_id == self.job_id))
            _set(connection, self.job_id, state="running", seg_file=None, seg_sha256=None, seg_sop_uid=None)
            audit.append(connection, "seg_lost", job=self.job_id)
        return True

    def sending(self, destination: str, absent: bool = False) -> bool:
        """About to send: whether to, which is not so where nothing arrived yet and a newer revision is there.

        Args:
            destination: where to.
            absent: it was asked and has nothing of this job, whatever was tried.
        """
        with self.changing() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == self.job_id)).one()
            arrived = deliveries.c.state == "confirmed" if absent else deliveries.c.attempts > 0
            if superseded(connection, row, arrived & (deliveries.c.destination == destination)):
                _set_delivery(connection, self.job_id, destination, state="failed", code="SUPERSEDED")
                return False
            _set_delivery(connection, self.job_id, destination, state="sent", attempts=deliveries.c.attempts + 1)
            audit.append(connection, "sending", job=self.job_id, destination=destination, attempt=self.attempt)
        return True

    def confirmed(self, destination: str) -> None:
        """The destination says that it has the object."""
        with self.changing() as connection:
            _set_delivery(connection, self.job_id, destination, state="confirmed", code=None)
            audit.append(connection, "confirmed", job=self.job_id, destination=destination)

    def not_delivered(self, destination: str, code: str) -> None:
        """The destination did not take the object or does not have it."""
        with self.changing() as connection:
            _set_delivery(connection, self.job_id, destination, state="failed", code=code)

    def rejecting(self, destination: str) -> None:
        """About to tell a destination that an earlier revision's object is not to be used."""
        with self.changing() as connection:
            audit.append(connection, "rejecting", job=self.job_id, destination=destination)

    def finished(self, *, in_shadow: bool = False) -> str:
        """Everything is confirmed, or a newer revision has taken its place; returns the state.

        Args:
            in_shadow: the bundle delivers nothing any more, though it did when the job was made.
        """
        with self.changing() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == self.job_id)).one()
            values = _kept_back(connection, row) if in_shadow and not row.shadow else {"shadow": row.shadow}
            replaced = not values["shadow"] and superseded(connection, row, deliveries.c.state == "confirmed")
            state = "superseded" if replaced else "done"
            _set(connection, self.job_id, **{"code": None, **values, "state": state, "executor": None})
            audit.append(connection, f"job_{state}", job=self.job_id)
        return state

    def failed(self, code: str, *, passes: bool, attempts: int, detail: str | None = None) -> str:
        """An attempt failed; returns the new state.

        Args:
            code: why.
            passes: whether it might go better later.
            attempts: so many are made before the job is dead.
            detail: where, in words without anything of the instances.
        """
        with self.changing() as connection:
            return _again(connection, self.job_id, self.attempt, code, passes, attempts, detail)


def wait_seconds(attempts: int, site: Site) -> float:
    """The wait before the next attempt: doubled with each of the last series of attempts."""
    failed = attempts % site.jobs.attempts if attempts else 0
    if not failed:
        return 0.0
    return min(site.jobs.backoff_seconds * 2.0 ** (failed - 1), MAX_WAIT_SECONDS)


def due(engine: Engine, site: Site, limit: int = 100) -> list[Due]:
    """Queued jobs whose wait is over and that wait for no earlier revision, the most urgent first."""
    waits = {failed: wait_seconds(failed, site) for failed in range(site.jobs.attempts)}
    wait = case(waits, value=jobs.c.attempts % site.jobs.attempts)
    query = select(jobs.c.id, jobs.c.attempts, jobs.c.priority).where(jobs.c.state == "queued")
    query = query.where(jobs.c.changed_at + wait <= now()).order_by(jobs.c.priority.desc(), jobs.c.made_at, jobs.c.id)
    found: list[Due] = []
    with reading(engine) as connection:
        for offset in count(step=limit):
            some = connection.execute(query.limit(limit).offset(offset)).all()
            if not some:
                return found
            behind = select(jobs.c.id).where(jobs.c.id.in_([row.id for row in some]), earlier_runs(jobs.c))
            waiting = set(connection.execute(behind).scalars())
            found += [Due(row.id, row.attempts, row.priority) for row in some if row.id not in waiting]
            if len(some) < limit or len(found) >= limit:
                return found[:limit]
    return found


def stuck_jobs(engine: Engine, quiet_seconds: float, sent: Iterable[str]) -> list[Row[Any]]:
    """Jobs of workers that are no more, and those in which nothing happened for a while.

    Args:
        engine: of the database.
        quiet_seconds: for so long.
        sent: ids of those that wait in the queue; the others of a long backlog are nobody's business yet.
    """
    quiet = jobs.c.changed_at < now() - quiet_seconds
    begun = jobs.c.state.in_(("running", "delivering")) & (quiet | jobs.c.executor.in_(RELEASED))
    queued = (jobs.c.state == "queued") & jobs.c.id.in_(list(sent))
    with reading(engine) as connection:
        return list(connection.execute(select(jobs).where(begun | (quiet & queued))))


def interrupted(engine: Engine, row: Row[Any], code: str, attempts: int) -> bool:
    """Give a job that nobody works on any more another attempt; whether it was still as ``row`` says."""
    with engine.begin() as connection:
        same = (jobs.c.id == row.id) & (jobs.c.attempts == row.attempts) & (jobs.c.changed_at == row.changed_at)
        if connection.execute(select(jobs.c.id).where(same).with_for_update()).first() is None:
            return False
        _again(connection, row.id, row.attempts, code, True, attempts, None)
    return True


def retry(engine: Engine, job_id: str) -> None:
    """Queue a dead or cancelled job again.

    Raises:
        PacsError: ``JOB_UNKNOWN``, ``JOB_STATE``.
    """
    _by_hand(engine, job_id, ("dead", "cancelled"), "queued", "job_retried")


def cancel(engine: Engine, job_id: str) -> None:
    """End a job that has not ended; what was sent stays sent.

    Raises:
        PacsError: ``JOB_UNKNOWN``, ``JOB_STATE``.
    """
    _by_hand(engine, job_id, OPEN, "cancelled", "job_cancelled")


def find_job(engine: Engine, start: str) -> Row[Any]:
    """The job whose id begins so.

    Raises:
        PacsError: ``JOB_UNKNOWN``, ``JOB_AMBIGUOUS``.
    """
    with reading(engine) as connection:
        rows = list(connection.execute(select(jobs).where(jobs.c.id.startswith(start, autoescape=True)).limit(2)))
    if not start or not rows:
        raise PacsError("JOB_UNKNOWN", f"there is no job {start!r}.", hint="List them: accunet pacs status SITE --jobs")
    if len(rows) > 1:
        raise PacsError("JOB_AMBIGUOUS", f"several jobs begin with {start!r}.", hint="Give more of the id.")
    return rows[0]


def deliveries_of(engine: Engine, job_id: str) -> dict[str, str]:
    """Destination → state of a job's deliveries."""
    with reading(engine) as connection:
        query = select(deliveries.c.destination, deliveries.c.state).where(deliveries.c.job_id == job_id)
        return {row.destination: row.state for row in connection.execute(query)}


def counts(engine: Engine) -> dict[str, int]:
    """State → number of jobs."""
    with reading(engine) as connection:
        query = select(jobs.c.state, func.count()).group_by(jobs.c.state)
        return {state: int(count) for state, count in connection.execute(query)}


def failures(engine: Engine) -> dict[str, int]:
    """Code → number of dead jobs."""
    with reading(engine) as connection:
        query = select(jobs.c.code, func.count()).where(jobs.c.state == "dead").group_by(jobs.c.code)
        return {str(code): int(count) for code, count in connection.execute(query)}


def earlier_jobs(connection: Connection, row: Row[Any], delivered: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """The jobs of the same bundle on earlier revisions of the series, the latest first.

    Args:
        connection: to the database.
        row: the job.
        delivered: which they have a delivery of, in columns of ``deliveries``.
    """
    earlier = revisions_of_series(row.revision_id, lambda number, own: number < own)
    query = select(jobs, revisions.c.number).join(revisions, revisions.c.id == jobs.c.revision_id)
    query = query.where(jobs.c.revision_id.in_(earlier), jobs.c.bundle == row.bundle)
    query = query.where(exists().where(deliveries.c.job_id == jobs.c.id, delivered))
    return connection.execute(query.order_by(revisions.c.number.desc())).all()


def draining(site: Site) -> bool:
    """Whether workers begin no further job."""
    return (site.storage / DRAINING).exists()


def _again(
    connection: Connection, job_id: str, attempt: int, code: str, passes: bool, attempts: int, detail: str | None
) -> str:
    state = "queued" if passes and (attempt + 1) % attempts else "dead"
    _set(connection, job_id, state=state, code=code, detail=detail, attempts=attempt + 1, executor=None)
    audit.append(connection, "job_dead" if state == "dead" else "attempt_failed", job=job_id, code=code)
    return state


def _by_hand(engine: Engine, job_id: str, allowed: Sequence[str], state: str, event: str) -> None:
    job_id = find_job(engine, job_id).id
    with engine.begin() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one()
        if row.state not in allowed:
            raise PacsError("JOB_STATE", f"the job is {row.state}; this goes with {', '.join(allowed)} alone.")
        more = {"attempts": row.attempts + 1} if state == "queued" and row.state == "cancelled" else {}
        _set(connection, job_id, state=state, executor=None, code=None, detail=None, **more)
        audit.append(connection, event, job=job_id)


def _sent(connection: Connection, job_id: str) -> bool:
    """Whether anything of a job may be at a destination."""
    sent = (deliveries.c.attempts > 0) | (deliveries.c.state == "confirmed")
    return bool(connection.execute(select(exists().where(deliveries.c.job_id == job_id, sent))).scalar())


def _kept_back(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    """Close the deliveries that were not made; the job is one in shadow mode unless something of it was sent."""
    unsent = (deliveries.c.job_id == row.id) & (deliveries.c.state != "confirmed")
    closed = update(deliveries).where(unsent).values(state="failed", code="SHADOW", changed_at=now())
    sent = _sent(connection, row.id)
    kept_back = connection.execute(closed).rowcount > 0 or not sent
    return {"shadow": int(not sent), "code": "SHADOW" if kept_back else None}


def _waiting(job_id: str, destination: str) -> dict[str, Any]:
    return {"job_id": job_id, "destination": destination, "state": "waiting", "attempts": 0, "changed_at": now()}


def _set(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values, changed_at=now()))


def _set_delivery(connection: Connection, job_id: str, destination: str, **values: Any) -> None:
    row = (deliveries.c.job_id == job_id) & (deliveries.c.destination == destination)
    connection.execute(update(deliveries).where(row).values(**values, changed_at=now()))
