"""How a site stands: what waits, what runs, what failed and why, which workers live; and draining it."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Engine, func, select

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.jobs import DRAINING, OPEN, counts, draining, failures
from accunet_monai.pacs.leases import lively
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import deliveries, jobs

BEGIN_SECONDS = 0.5
"""So long after workers are told to begin no further job none begins that one had just looked for."""


def status(site: Site, engine: Engine) -> dict[str, Any]:
    """Numbers and codes: nothing of a patient and no UID.

    Returns:
        ``jobs`` (state → count), ``dead`` (code → count), ``oldest_open_seconds``, ``last_hour`` (jobs done),
        ``deliveries`` (state → count), ``workers`` (ids of those whose lease has not run out), ``draining``.
    """
    with reading(engine) as connection:
        oldest = connection.execute(select(func.min(jobs.c.made_at)).where(jobs.c.state.in_(OPEN))).scalar()
        recent = (jobs.c.state == "done") & (jobs.c.changed_at > now() - 3600)
        done = connection.execute(select(func.count()).select_from(jobs).where(recent)).scalar()
        sent = connection.execute(select(deliveries.c.state, func.count()).group_by(deliveries.c.state))
        return {
            "jobs": counts(engine),
            "dead": failures(engine),
            "oldest_open_seconds": None if oldest is None else round(now() - oldest, 1),
            "last_hour": int(done or 0),
            "deliveries": {state: int(count) for state, count in sent},
            "workers": sorted(lively(connection, site.jobs.lease_seconds)),
            "draining": draining(site),
        }


def list_jobs(engine: Engine, state: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """The jobs that changed last, each by id, bundle, state, code, step that failed, attempts and age of the change."""
    query = select(jobs).order_by(jobs.c.changed_at.desc()).limit(limit)
    if state is not None:
        query = query.where(jobs.c.state == state)
    names = ("id", "bundle", "state", "code", "detail", "attempts", "priority", "shadow", "executor")
    with reading(engine) as connection:
        return [
            {**{name: getattr(row, name) for name in names}, "seconds_ago": round(now() - row.changed_at, 1)}
            for row in connection.execute(query)
        ]


def drain(site: Site, engine: Engine, seconds: float) -> None:
    """Let workers begin no further job, and wait until none runs. :func:`resume` ends it.

    Raises:
        PacsError: ``DRAIN_TIMEOUT`` when jobs still run; it goes on draining.
    """
    (site.storage / DRAINING).touch()
    time.sleep(BEGIN_SECONDS)
    until = time.monotonic() + seconds
    while running := sum(counts(engine).get(state, 0) for state in ("running", "delivering")):
        if time.monotonic() > until:
            hint = "Ask again: accunet pacs drain"
            raise PacsError("DRAIN_TIMEOUT", f"{running} jobs still run after {seconds:g} s.", hint=hint)
        time.sleep(0.2)


def resume(site: Site) -> None:
    """Let workers begin jobs again."""
    (site.storage / DRAINING).unlink(missing_ok=True)
