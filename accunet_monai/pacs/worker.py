"""A worker process: takes jobs from the queue, keeps its lease, and takes over what dead workers left.

Any number of them, on any number of machines, share a site's PostgreSQL database and storage folder; on SQLite all run
on one machine.
"""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy.exc import DBAPIError

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import now
from accunet_monai.pacs.decoding import Decoder
from accunet_monai.pacs.inbox import OpenSite
from accunet_monai.pacs.jobs import Due, draining, due, interrupted, stuck_jobs
from accunet_monai.pacs.leases import Lease, dead_among
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.queue import BACKLOG, JobQueue
from accunet_monai.pacs.results import scratch
from accunet_monai.pacs.retention import clean_up
from accunet_monai.pacs.segmenting import Models, profile_of
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.steps import Steps

LOOK_SECONDS = 0.5
CLEAN_SECONDS = 600.0
FORGET_DAYS = 7.0
"""So long the queue keeps attempts that are over; what became of jobs stands in the site's own tables."""


class Worker:
    """One worker process's work.

    Args:
        site: its settings.

    Raises:
        PacsError: what :class:`OpenSite` and :func:`check_settings` raise.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.engine = OpenSite(site).engine
        check_settings(site)
        self.lease = Lease(self.engine, site.jobs.lease_seconds)
        decoder = Decoder(site.limits.decode_memory_bytes)
        self.steps = Steps(site, self.engine, self.lease, Models(site), decoder)
        self.queue = JobQueue(site.database_url, self.lease.executor_id, self.steps)
        self._sent: set[Due] = set()
        self._ended = threading.Event()

    def run(self, grace_seconds: int = 60) -> None:
        """Work until :meth:`stop`; then finish what runs, for so many seconds at most.

        Raises:
            PacsError: ``LEASE_LOST``; the process must end without further ado.
        """
        renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        renewing.start()
        self.queue.launch()
        event("worker_started", executor=self.lease.executor_id)
        adopt_at = 0.0
        clean_at = time.monotonic() + CLEAN_SECONDS
        while not self.steps.stop.wait(LOOK_SECONDS):
            try:
                self._dispatch()
                if time.monotonic() >= adopt_at:
                    self._take_over()
                    self._look_for_hangs()
                    adopt_at = time.monotonic() + self.site.jobs.renew_seconds
                if time.monotonic() >= clean_at:
                    clean_up(self.site, self.engine)
                    self.queue.forget(FORGET_DAYS)
                    clean_at = time.monotonic() + CLEAN_SECONDS
            except DBAPIError:
                event("database_away", logging.WARNING, step="dispatch")
            except PacsError as error:
                if error.code != "LEASE_LOST":
                    raise
                self._lost()
        if self.steps.lost.is_set():
            raise PacsError("LEASE_LOST", "other workers take over the jobs of this one.")
        self.queue.stop(grace_seconds)
        self.steps.decoder.close()
        self._ended.set()
        renewing.join()
        self.lease.release()
        event("worker_stopped", executor=self.lease.executor_id)

    def stop(self) -> None:
        """Take no further job."""
        self.steps.stop.set()

    def _dispatch(self) -> None:
        """Queue the most urgent jobs that can run now."""
        if draining(self.site):
            return
        ready = due(self.engine, self.site, BACKLOG)
        for job in ready:
            if job not in self._sent:
                self.queue.enqueue(job)
        self._sent = set(ready)

    def _take_over(self) -> None:
        """Adopt the jobs of workers that hold no lease, and give those that nobody works on another attempt."""
        for executor in self.lease.expire_others():
            event("lease_expired", logging.WARNING, executor=executor)
        if dead := dead_among(self.engine, self.queue.executors()):
            event("jobs_adopted", logging.WARNING, count=self.queue.adopt(dead))
        for row in stuck_jobs(self.engine, 2 * self.site.jobs.lease_seconds, [job.job_id for job in self._sent]):
            over = self.queue.is_over(row.id, row.attempts)
            late = row.state != "queued" and row.changed_at < now() - self.site.jobs.step_seconds
            if late and over is False:
                self.queue.abandon(row.id, row.attempts)
            if over or late or (over is None and row.state != "queued"):
                code = "JOB_TIMEOUT" if late else "JOB_INTERRUPTED"
                interrupted(self.engine, row, code, self.site.jobs.attempts)

    def _look_for_hangs(self) -> None:
        """End this worker when its network hangs, a moment after the job in it was given up: the others would wait.

        Raises:
            PacsError: ``LEASE_LOST``: no thread can be ended, so the process must.
        """
        held = self.steps.models.held_seconds()
        if held > self.site.jobs.step_seconds + self.site.jobs.renew_seconds:
            event("network_hangs", logging.ERROR, executor=self.lease.executor_id, seconds=round(held))
            self.lease.release()  # so that others take over what it was at now
            raise PacsError("LEASE_LOST", "the network of this worker hangs.")

    def _renew(self) -> None:
        while not self._ended.wait(self.site.jobs.renew_seconds):
            try:
                self.lease.renew()
            except DBAPIError:  # also what PostgreSQL says to a process that was frozen inside a transaction
                event("database_away", logging.WARNING, step="lease")
            except PacsError:
                self._lost()

    def _lost(self) -> None:
        event("lease_lost", logging.ERROR, executor=self.lease.executor_id)
        self._ended.set()
        self.steps.lost.set()
        self.steps.stop.set()


def check_settings(site: Site) -> None:
    """Whether every job of the site could be delivered as its settings say.

    Raises:
        PacsError: ``SITE_PROFILES``, ``STORAGE_WRITE``.
    """
    for rule in site.bundles:
        profile_of(site, rule)
    try:
        with scratch(site) as folder:
            (folder / "written").write_bytes(b"1")
    except OSError as error:
        hint = "The folder must be writable for the user that runs this."
        message = f"cannot be written ({error.strerror})."
        raise PacsError("STORAGE_WRITE", message, path=site.storage, hint=hint) from error
