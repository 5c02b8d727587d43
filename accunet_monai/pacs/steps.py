"""The steps of a job. Each can be repeated at any point: what is done is found in the tables and not done again.

A step returns ``None`` when the job goes on, else the code of why this attempt ends. It never raises for what a job or
a peer does, since what is raised would be kept and logged with its text.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, Row, select
from sqlalchemy.exc import InterfaceError, OperationalError

from accunet_monai.bundle import find_bundle
from accunet_monai.errors import AccunetError, BundleError, PacsError
from accunet_monai.pacs.completeness import bundle_digest, job_id
from accunet_monai.pacs.database import insert_new, now, reading
from accunet_monai.pacs.decoding import Decoder
from accunet_monai.pacs.delivering import Channel, open_channel
from accunet_monai.pacs.jobs import Hold, deliveries_of, draining
from accunet_monai.pacs.leases import Lease
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.replacing import rejection_note, replaced_files, sent_files
from accunet_monai.pacs.reports import report_of
from accunet_monai.pacs.results import scratch, stored_file
from accunet_monai.pacs.segmenting import Models, store_result
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import bundles, jobs, reports
from accunet_monai.pacs.tracing import bundle_facts

DATABASE_AWAY = (OperationalError, InterfaceError)
MAY_PASS = frozenset(
    {
        *("PACS_UNREACHABLE", "PACS_REFUSED", "PACS_SECRET", "SEND_REFUSED", "QUERY_FAILED", "NOT_CONFIRMED"),
        *("PACS_TLS", "NOT_COMMITTED", "INSTANCE_MISSING", "OUT_OF_MEMORY", "UNEXPECTED", "RESULT_UNREADABLE"),
        *("LEASE_LOST", "JOB_TAKEN"),  # what a step of a worker that is no more had returned
    }
)
"""Codes of failures after which another attempt is made."""

ASK_AFTER = (0.0, 0.2, 1.0, 3.0)
"""Seconds to wait before each question whether the destination has the object."""

Step = Callable[[Hold], str | None]
T = TypeVar("T")


@dataclass
class Steps:
    """What the steps of all jobs of a worker share.

    Args:
        site: its settings.
        engine: of the database.
        lease: of the worker.
        models: in memory.
        decoder: for their pixels.
        stop: set when the worker stops, and when it lost its lease.
        lost: set when it lost its lease.
    """

    site: Site
    engine: Engine
    lease: Lease
    models: Models
    decoder: Decoder
    stop: threading.Event = field(default_factory=threading.Event)
    lost: threading.Event = field(default_factory=threading.Event)

    def segment(self, job_id: str, attempt: int) -> str | None:
        """Read, infer, write the SEG, decode and compare it, store it."""
        return self._guarded("segment", job_id, attempt, self._segment)

    def send(self, job_id: str, attempt: int, destination: str) -> str | None:
        """Send the stored bytes to a destination, unless it has them; a failure is the destination's alone."""
        return self._guarded("send", job_id, attempt, lambda hold: self._send(hold, destination), destination)

    def confirm(self, job_id: str, attempt: int, destination: str) -> str | None:
        """Ask a destination whether it has the object; likewise."""
        return self._guarded("confirm", job_id, attempt, lambda hold: self._confirm(hold, destination), destination)

    def reject(self, job_id: str, attempt: int, destination: str) -> str | None:
        """Where a destination wants it, a note that the SEG of an earlier revision is replaced; likewise."""
        return self._guarded("reject", job_id, attempt, lambda hold: self._reject(hold, destination), destination)

    def finish(self, job_id: str, attempt: int, code: str | None) -> str | None:
        """End the job, or this attempt when a destination failed."""
        return self._guarded("finish", job_id, attempt, lambda hold: self._finish(hold, code))

    def destinations(self, job_id: str) -> list[str]:
        """Where a job's result goes."""
        return self._patiently("destinations", lambda: list(deliveries_of(self.engine, job_id)))

    def _segment(self, hold: Hold) -> str | None:
        if draining(self.site) and hold.put_off(self.site.jobs.attempts):
            return "DRAINING"
        row = hold.claim()
        if row is None:
            return "NOT_CLAIMED"
        if row.seg_sha256 is not None and self._is_kept(hold, row):
            return None
        rule = self.models.rule(row.bundle)
        try:
            model = self.models.get(row.bundle, row.bundle_digest)
        except BundleError as error:
            if error.code != "BUNDLE_UNVERIFIED" or not self._moved(hold, row, rule.bundle):
                raise
            return "BUNDLE_REPLACED"
        replaced = replaced_files(self.site, self.engine, row.id)
        result = store_result(
            self.engine, self.site, model, row.revision_id, rule, replaced, self.decoder, hold.wait_for_network
        )
        seg, report = result.seg, result.report
        with hold.changing() as connection:  # both are of digests, so that they are right whichever worker comes first
            facts = bundle_facts(find_bundle(rule.bundle), row.bundle_digest)
            insert_new(connection, bundles, {"name": row.bundle, **facts, "first_used_at": now()})
            if report is not None:
                insert_new(connection, reports, {"seg_sha256": seg.sha256, **asdict(report)})
        names = () if row.shadow or rule.shadow else rule.destinations
        hold.stored(seg.file, seg.sha256, seg.sop_instance_uid, names)
        return None

    def _is_kept(self, hold: Hold, row: Row[Any]) -> bool:
        """Whether what is stored is as it was stored; if not, and nothing of it was sent, it is made again.

        Raises:
            PacsError: ``SEG_LOST``: a destination may have it, and what is made again may differ.
        """
        try:
            stored_file(self.site, row.seg_file, row.seg_sha256)
            report_of(self.site, self.engine, row.seg_sha256)
        except PacsError as error:
            if error.code != "SEG_CHANGED":
                raise
            if hold.forget_result():
                event("result_lost", logging.WARNING, job=hold.job_id)
                return False
            if set(deliveries_of(self.engine, hold.job_id).values()) != {"confirmed"}:
                hint = "Put it back from a back-up and queue the job again: accunet pacs retry"
                raise PacsError("SEG_LOST", "a result that was sent is not stored any more.", hint=hint) from error
        return True

    def _in_shadow(self, row: Row[Any]) -> bool:
        """Whether the settings deliver nothing of the job's bundle by now."""
        return any(rule.shadow for rule in self.site.bundles if rule.name == row.bundle)

    def _moved(self, hold: Hold, row: Row[Any], bundle: str) -> bool:
        """Whether the bundle was replaced since the job was made, and the same is queued for the new one."""
        digest = bundle_digest(bundle)
        successor = job_id(row.revision_id, row.bundle, digest)
        moved = hold.moved_to(successor, digest, self.site.jobs.attempts)
        if moved:
            event("bundle_replaced", job=hold.job_id)
        return moved

    def _send(self, hold: Hold, destination: str) -> str | None:
        row = self._job(hold)
        before = deliveries_of(self.engine, hold.job_id)[destination]
        if before == "confirmed" or self._in_shadow(row):
            return None
        channel = self._channel(destination)
        files = self._objects(row, destination)
        there = [False if before == "waiting" else _has(channel, file) for file in files]
        if all(there):
            hold.confirmed(destination)
        elif hold.sending(destination, absent=not any(one is not False for one in there)):
            for file in (file for file, one in zip(files, there, strict=True) if not one):
                channel.send(file)
        return None

    def _confirm(self, hold: Hold, destination: str) -> str | None:
        row, state = self._job(hold), deliveries_of(self.engine, hold.job_id)[destination]
        if state in ("confirmed", "failed") or self._in_shadow(row):
            return None
        channel = self._channel(destination)
        for file in self._objects(row, destination):
            self._ask(channel, file, destination)
        hold.confirmed(destination)
        return None

    def _objects(self, row: Row[Any], destination: str) -> list[Path]:
        """The stored files that a destination gets: the SEG, and where it wants one the report."""
        wants = self.site.destination(destination).report
        report = report_of(self.site, self.engine, row.seg_sha256) if wants else None
        return [stored_file(self.site, row.seg_file, row.seg_sha256), *([] if report is None else [report])]

    def _ask(self, channel: Channel, file: Path, destination: str) -> None:
        for seconds in ASK_AFTER:
            time.sleep(seconds)
            if channel.has(file):
                return
        raise PacsError("NOT_CONFIRMED", f"{destination} answered that it stored the object, and does not have it.")

    def _reject(self, hold: Hold, destination: str) -> str | None:
        if deliveries_of(self.engine, hold.job_id)[destination] != "confirmed" or self._in_shadow(self._job(hold)):
            return None
        if not self.site.destination(destination).rejection_note:
            return None
        channel = self._channel(destination)
        earlier = sent_files(self.site, self.engine, hold.job_id, destination)
        some = ([file for file in files if channel.has(file)] for files in earlier)
        if not (there := next(filter(None, some), None)):
            return None
        with scratch(self.site) as folder:
            rejection_note(there, folder / "note.dcm")
            hold.rejecting(destination)
            if not _has(channel, folder / "note.dcm"):
                channel.send(folder / "note.dcm")
                self._ask(channel, folder / "note.dcm", destination)
        return None

    def _finish(self, hold: Hold, code: str | None) -> str | None:
        if code is None:
            state = hold.finished(in_shadow=self._in_shadow(self._job(hold)))
            event("job_ended", job=hold.job_id, state=state, attempt=hold.attempt)
        else:
            self._failed(hold, "deliver", code)
        return code

    def _channel(self, destination: str) -> Channel:
        return open_channel(self.site, self.site.destination(destination))

    def _job(self, hold: Hold) -> Row[tuple[str, ...]]:
        with reading(self.engine) as connection:
            return connection.execute(select(jobs).where(jobs.c.id == hold.job_id)).one()

    def _guarded(self, name: str, job_id: str, attempt: int, step: Step, destination: str | None = None) -> str | None:
        hold = Hold(self.engine, self.lease, job_id, attempt)
        return self._patiently(name, lambda: self._judged(name, hold, step, destination))

    def _patiently(self, name: str, work: Callable[[], T]) -> T:
        """Do it again for as long as the database is away."""
        pause = 0.1
        while True:
            try:
                return work()
            except DATABASE_AWAY:
                event("database_away", logging.WARNING, step=name)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _judged(self, name: str, hold: Hold, step: Step, destination: str | None) -> str | None:
        """The step's code; what it raises is written down with the job, not passed on."""
        try:
            try:
                return step(hold)
            except DATABASE_AWAY:
                raise
            except AccunetError as error:
                if error.code in ("LEASE_LOST", "JOB_TAKEN"):
                    raise
                code, detail = error.code, name
            except MemoryError:
                code, detail = "OUT_OF_MEMORY", name
            except Exception as error:  # whatever it is, the other jobs go on
                code, detail = "UNEXPECTED", f"{name}: {type(error).__name__}"
            if destination is None:
                return self._failed(hold, detail, code)
            hold.not_delivered(destination, code)
            event("delivery_failed", logging.WARNING, job=hold.job_id, destination=destination, code=code, step=detail)
            return code
        except PacsError as error:
            if error.code == "LEASE_LOST":
                self.lost.set()
                self.stop.set()
            elif error.code != "JOB_TAKEN":
                raise
            event("job_let_go", logging.WARNING, job=hold.job_id, code=error.code)
            return error.code

    def _failed(self, hold: Hold, detail: str, code: str) -> str:
        state = hold.failed(code, passes=code in MAY_PASS, attempts=self.site.jobs.attempts, detail=detail)
        level = logging.ERROR if state == "dead" else logging.WARNING
        event("job_failed", level, job=hold.job_id, attempt=hold.attempt, code=code, state=state, step=detail)
        return code


def _has(channel: Channel, file: Path) -> bool | None:
    """Whether a destination has an object; ``None`` when it does not say: the same bytes do no harm twice."""
    try:
        return channel.has(file)
    except PacsError as error:
        if error.code != "NOT_COMMITTED":
            raise
        return None
