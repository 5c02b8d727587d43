"""The queue of jobs in DBOS: one durable workflow for each attempt at a job, whose id says which.

DBOS keeps which step of which attempt is done, starts what is queued on whichever worker is free, and refuses results
of a worker that no longer owns a workflow. It does not notice on its own that a worker died: :meth:`JobQueue.adopt` is
told by the leases. What it keeps are ids, codes and names of destinations, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from dbos import DBOS, DBOSConfig, Serializer
from sqlalchemy import make_url

from accunet_monai.pacs.database import IDLE_SECONDS, now
from accunet_monai.pacs.jobs import Due
from accunet_monai.pacs.steps import Steps

APPLICATION_VERSION = "1"
"""Raised when the sequence of steps changes, and never else: DBOS starts a workflow on workers of its version only."""

QUEUE, WORKFLOW = "jobs", "job"
CONCURRENCY = 4
"""Jobs of a worker at a time: while one is in the network others are read, sent and confirmed."""

BACKLOG = 64
"""So many wait in DBOS, the others in the jobs table."""

MAX_RECOVERIES = 5
"""An attempt that so many workers died of is over; the job gets another, up to its last."""
FORGET_AT_ONCE = 1000
_LOWEST, _HIGHEST = 2**30, 1
_FINISHED = frozenset({"SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})


class PlainJson(Serializer):
    """JSON and nothing else; of an exception its code, or its type's name, and no text."""

    def serialize(self, data: Any) -> str:
        """The text of plain data or of an exception."""
        if isinstance(data, BaseException):
            data = {"__error__": str(getattr(data, "code", type(data).__name__))}
        return json.dumps(data)

    def deserialize(self, serialized_data: str) -> Any:
        """The data of a text."""
        data = json.loads(serialized_data)
        if isinstance(data, dict) and set(data) == {"__error__"}:
            return RuntimeError(data["__error__"])
        if isinstance(data, dict) and set(data) == {"args", "kwargs"}:
            data["args"] = tuple(data["args"])
        return data

    def name(self) -> str:
        """How DBOS names it in its tables."""
        return "accunet_json"


class JobQueue:
    """The queue, once launched, runs what is in it.

    Args:
        database_url: of the site; on SQLite the queue is a file of its own beside it.
        executor_id: of this process, not used before or after.
        steps: of a job.
    """

    def __init__(self, database_url: str, executor_id: str, steps: Steps) -> None:
        config = DBOSConfig(
            name="accunet-pacs",
            system_database_url=queue_url(database_url),
            serializer=PlainJson(),
            executor_id=executor_id,
            application_version=APPLICATION_VERSION,
            enable_otlp=False,
            sys_db_idle_transaction_timeout_sec=IDLE_SECONDS,
            log_level="WARNING",
        )
        self._dbos = DBOS(config=config)
        DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_RECOVERIES)(_job_of(steps))

    def launch(self) -> None:
        """Begin to run jobs."""
        DBOS.launch()
        DBOS.register_queue(
            QUEUE, worker_concurrency=CONCURRENCY, polling_interval_sec=0.2, on_conflict="always_update"
        )

    def stop(self, seconds: int) -> None:
        """Start nothing more and wait for what runs; what is not finished then is left to other workers."""
        DBOS.destroy(workflow_completion_timeout_sec=seconds)

    def enqueue(self, job: Due) -> None:
        """Queue an attempt at a job; nothing happens when it is queued, running or over already."""
        options: Any = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": workflow_id(job.job_id, job.attempt),
            "app_version": APPLICATION_VERSION,
            "priority": max(_HIGHEST, min(_LOWEST // 2 - job.priority, _LOWEST)),
        }
        DBOS.enqueue_workflow_with_options(options, job.job_id, job.attempt)

    def is_over(self, job_id: str, attempt: int) -> bool | None:
        """Whether an attempt came to an end, ``None`` when DBOS does not know it."""
        status = DBOS.get_workflow_status(workflow_id(job_id, attempt))
        return None if status is None else status.status in _FINISHED

    def abandon(self, job_id: str, attempt: int) -> None:
        """Begin no further step of an attempt."""
        DBOS.cancel_workflow(workflow_id(job_id, attempt))

    def executors(self) -> set[str]:
        """The workers that attempts in progress belong to, dead or alive."""
        found = DBOS.list_workflows(
            status="PENDING", app_version=APPLICATION_VERSION, load_input=False, load_output=False
        )
        return {status.executor_id for status in found if status.executor_id}

    def forget(self, days: float) -> int:
        """Remove what DBOS keeps of attempts that were over so long ago; returns of how many."""
        before = datetime.fromtimestamp(now() - days * 86400, UTC).isoformat()
        found = DBOS.list_workflows(
            status=sorted(_FINISHED), completed_before=before, limit=FORGET_AT_ONCE, load_input=False, load_output=False
        )
        if found:
            DBOS.delete_workflows([status.workflow_id for status in found])
        return len(found)

    def adopt(self, dead: Iterable[str]) -> int:
        """Queue again what dead workers were at; returns how much that was.

        The one place where DBOS's own recovery is called, which is not part of its public interface.
        """
        return len(DBOS._recover_pending_workflows(sorted(dead)))


def workflow_id(job_id: str, attempt: int) -> str:
    """What DBOS calls an attempt at a job."""
    return f"{job_id}-{attempt}-v{APPLICATION_VERSION}"


def queue_url(database_url: str) -> str:
    """Where DBOS keeps its tables: the same PostgreSQL database, or a SQLite file beside the site's own."""
    address = make_url(database_url)
    if address.get_backend_name() != "sqlite":
        return address.render_as_string(hide_password=False)
    return address.set(database=f"{address.database}-queue").render_as_string()


def _job_of(steps: Steps) -> Callable[[str, int], str | None]:
    """The sequence of a job's steps; what they are given and return is kept by DBOS."""

    def job(job_id: str, attempt: int) -> str | None:
        code = DBOS.run_step({"name": "segment"}, steps.segment, job_id, attempt)
        if code is not None:
            return code
        failed = None
        for name in DBOS.run_step({"name": "destinations"}, steps.destinations, job_id):
            code = DBOS.run_step({"name": "send"}, steps.send, job_id, attempt, name)
            code = code or DBOS.run_step({"name": "confirm"}, steps.confirm, job_id, attempt, name)
            code = code or DBOS.run_step({"name": "reject"}, steps.reject, job_id, attempt, name)
            failed = failed or code
        return DBOS.run_step({"name": "finish"}, steps.finish, job_id, attempt, failed)

    return job
