"""What a site's page shows beside :func:`accunet_monai.pacs.status.status`: throughput, troubles, results of late.

Patients are pseudonyms here, and no UID and no text of an instance is among the facts.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, Integer, cast, func, select

from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.tables import decisions, deliveries, jobs, revisions, series

HOURS = 24
_HOUR = 3600


def hourly(engine: Engine) -> list[int]:
    """Jobs done in each of the last 24 hours, the oldest first."""
    age = (cast(now() - jobs.c.changed_at, Integer) // _HOUR).label("age")
    recent = (jobs.c.state == "done") & (jobs.c.changed_at > now() - HOURS * _HOUR)
    with reading(engine) as connection:
        counted = select(age, func.count()).where(recent).group_by("age")
        found = {int(hour): count for hour, count in connection.execute(counted)}
    return [int(found.get(hour, 0)) for hour in reversed(range(HOURS))]


def troubles(engine: Engine) -> list[dict[str, Any]]:
    """What went wrong, each kind once, the latest first.

    Returns:
        ``what`` (``given up``, ``not delivered``, ``refused`` or ``ambiguous``), ``where`` (bundle and step, or
        destination), ``code``, ``count`` and ``seconds_ago`` of the last time. Series that were refused or ambiguous
        count for a day.
    """
    dead = select(jobs.c.bundle, jobs.c.detail, jobs.c.code, func.count(), func.max(jobs.c.changed_at))
    dead = dead.where(jobs.c.state == "dead").group_by(jobs.c.bundle, jobs.c.detail, jobs.c.code)
    lost = select(deliveries.c.destination, deliveries.c.code, func.count(), func.max(deliveries.c.changed_at))
    lost = lost.where(deliveries.c.state == "failed", deliveries.c.code.not_in(("SUPERSEDED", "SHADOW")))
    lost = lost.group_by(deliveries.c.destination, deliveries.c.code)
    judged = (decisions.c.outcome, decisions.c.bundle, decisions.c.code)
    refused = select(*judged, func.count(), func.max(decisions.c.made_at)).group_by(*judged)
    refused = refused.where(decisions.c.outcome.in_(("refused", "ambiguous")))
    refused = refused.where(decisions.c.made_at > now() - HOURS * _HOUR)
    with reading(engine) as connection:
        found = [
            ("given up", f"{bundle}, {step}" if step else bundle, *rest)
            for bundle, step, *rest in connection.execute(dead)
        ]
        found += [("not delivered", *row) for row in connection.execute(lost)]
        found += [tuple(row) for row in connection.execute(refused)]
    return [
        {"what": what, "where": where, "code": code, "count": count, "seconds_ago": round(now() - at, 1)}
        for what, where, code, count, at in sorted(found, key=lambda row: -row[4])
    ]


def results(engine: Engine, limit: int = 12) -> list[dict[str, Any]]:
    """The jobs that were done last: ``job``, ``bundle``, ``patient`` (pseudonym), ``shadow``, ``seconds_ago``."""
    done = select(jobs.c.id, jobs.c.bundle, jobs.c.shadow, jobs.c.changed_at, series.c.patient_key)
    done = done.join(revisions, revisions.c.id == jobs.c.revision_id)
    done = done.join(series, series.c.series_uid == revisions.c.series_uid)
    done = done.where(jobs.c.state == "done").order_by(jobs.c.changed_at.desc()).limit(limit)
    with reading(engine) as connection:
        return [
            {
                "job": row.id,
                "bundle": row.bundle,
                "patient": row.patient_key,
                "shadow": bool(row.shadow),
                "seconds_ago": round(now() - row.changed_at, 1),
            }
            for row in connection.execute(done)
        ]


def result_file(engine: Engine, job: str) -> str | None:
    """Where a job's SEG lies in the storage, while it is kept."""
    with reading(engine) as connection:
        return connection.execute(select(jobs.c.seg_file).where(jobs.c.id == job)).scalar()
