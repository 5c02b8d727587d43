"""What a site no longer needs: received instances whose jobs all ended, and results that were delivered, after a time.

Rows of jobs, decisions, deliveries and the audit log stay: what was done can be told after the images are gone.
"""

from __future__ import annotations

from sqlalchemy import Engine, delete, exists, select, update

from accunet_monai.pacs import audit
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.jobs import ENDED, OPEN
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import asides, instances, jobs, reports, revision_instances, revisions, series
from accunet_monai.pacs.thumbnails import thumbnail_of

DAY = 86400.0
AT_A_TIME = 100


def clean_up(site: Site, engine: Engine) -> tuple[int, int]:
    """Remove what the site's retention allows; returns how many series and results went.

    A row goes before its file: after a crash in between a file is left that nothing refers to, never a row without its
    file.
    """
    gone = 0
    if site.retention.received_days is not None:
        for uid in _old_series(engine, now() - site.retention.received_days * DAY):
            gone += _remove_series(site, engine, uid)
    results = 0
    if site.retention.results_days is not None:
        results = _remove_results(site, engine, now() - site.retention.results_days * DAY)
    return gone, results


def _old_series(engine: Engine, before: float) -> list[str]:
    of_series = select(revisions.c.id).where(revisions.c.series_uid == series.c.series_uid)
    recent = exists().where(jobs.c.revision_id.in_(of_series), jobs.c.state.in_(OPEN) | (jobs.c.changed_at >= before))
    stored = exists().where(instances.c.series_uid == series.c.series_uid)
    old = (series.c.last_received_at < before) & series.c.complete_at.is_not(None)
    with reading(engine) as connection:
        query = select(series.c.series_uid).where(old, stored, ~recent).limit(AT_A_TIME)
        return list(connection.execute(query).scalars())


def _remove_series(site: Site, engine: Engine, uid: str) -> int:
    with engine.begin() as connection:
        own = select(instances.c.sop_instance_uid).where(instances.c.series_uid == uid)
        files = list(connection.execute(select(instances.c.file).where(instances.c.series_uid == uid)).scalars())
        files += connection.execute(select(asides.c.file).where(asides.c.series_uid == uid)).scalars()
        connection.execute(delete(revision_instances).where(revision_instances.c.sop_instance_uid.in_(own)))
        connection.execute(delete(instances).where(instances.c.series_uid == uid))
        connection.execute(delete(asides).where(asides.c.series_uid == uid))
        audit.append(connection, "series_removed", files=len(files))
    for file in files:
        (site.storage / file).unlink(missing_ok=True)
    return 1


def _remove_results(site: Site, engine: Engine, before: float) -> int:
    with engine.begin() as connection:
        old = jobs.c.seg_file.is_not(None) & jobs.c.state.in_(ENDED) & (jobs.c.changed_at < before)
        with_report = select(jobs.c.id, jobs.c.seg_file, reports.c.file.label("report"))
        with_report = with_report.outerjoin(reports, reports.c.seg_sha256 == jobs.c.seg_sha256)
        rows = list(connection.execute(with_report.where(old).limit(AT_A_TIME)))
        for row in rows:
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(seg_file=None))
            audit.append(connection, "result_removed", job=row.id)
    for row in rows:
        seg = site.storage / row.seg_file
        for file in (seg, thumbnail_of(seg), *([site.storage / row.report] if row.report else [])):
            file.unlink(missing_ok=True)
    return len(rows)
