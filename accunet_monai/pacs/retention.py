"""What a site no longer needs: received instances whose jobs all ended, and results that were delivered, after a time.

Rows of jobs, decisions, deliveries and the audit log stay: what was done can be told after the images are gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, delete, exists, select, update

from accunet_monai.pacs import audit
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.jobs import ENDED, OPEN
from accunet_monai.pacs.results import WORK
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import (
    asides,
    association_series,
    associations,
    instances,
    jobs,
    reports,
    revision_instances,
    revisions,
    series,
)
from accunet_monai.pacs.thumbnails import thumbnail_of

DAY = 86400.0
AT_A_TIME = 100
FRESH_SECONDS = 60
"""An instance whose file is younger may be one that was sent again and whose row is about to come."""


def clean_up(site: Site, engine: Engine) -> tuple[int, int]:
    """Remove what the site's retention allows, and what killed processes left; returns how many series and results.

    A row goes before its file: after a crash in between a file is left that nothing refers to, never a row without its
    file.
    """
    _remove_leftovers(site, engine)
    gone = 0
    if site.retention.received_days is not None:
        before = now() - site.retention.received_days * DAY
        _remove_asides(site, engine, before)
        old = _old_series(before)
        with reading(engine) as connection:
            found = list(connection.execute(old.limit(AT_A_TIME)).scalars())
        for uid in found:
            gone += _remove_series(site, engine, uid, old)
    results = 0
    if site.retention.results_days is not None:
        results = _remove_results(site, engine, now() - site.retention.results_days * DAY)
    return gone, results


def _remove_leftovers(site: Site, engine: Engine) -> None:
    """Unfinished instances, folders of steps and open associations, so old that whoever made them is gone."""
    before = now() - max(DAY, 2 * site.jobs.step_seconds)
    for path in (*site.storage.glob(f"{WORK}/*"), *site.storage.glob("incoming/*/*")):
        with suppress(OSError):  # somebody else removes it, too
            if path.lstat().st_mtime < before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    gone = select(associations.c.id).where(
        associations.c.touched_at < min(before, now() - site.completeness.association_wait_seconds)
    )
    with engine.begin() as connection:
        connection.execute(delete(association_series).where(association_series.c.association_id.in_(gone)))
        connection.execute(delete(associations).where(associations.c.id.in_(gone)))


def _old_series(before: float) -> Select[Any]:
    of_series = select(revisions.c.id).where(revisions.c.series_uid == series.c.series_uid)
    recent = exists().where(jobs.c.revision_id.in_(of_series), jobs.c.state.in_(OPEN) | (jobs.c.changed_at >= before))
    stored = exists().where(instances.c.series_uid == series.c.series_uid)
    old = (series.c.last_received_at < before) & series.c.complete_at.is_not(None)
    return select(series.c.series_uid).where(old, stored, ~recent)


def _remove_series(site: Site, engine: Engine, uid: str, old: Select[Any]) -> int:
    """Remove a series that is still old, and of which nothing was sent again a moment ago; returns 1, or 0."""
    since = now() - FRESH_SECONDS
    own = select(instances.c.sop_instance_uid).where(instances.c.series_uid == uid)
    with engine.begin() as connection:
        _lock(connection, uid)
        files = _files(connection, uid)
        if connection.execute(old.where(series.c.series_uid == uid)).first() is None or _any_fresh(site, files, since):
            return 0
        connection.execute(delete(revision_instances).where(revision_instances.c.sop_instance_uid.in_(own)))
        connection.execute(delete(instances).where(instances.c.series_uid == uid))
        connection.execute(delete(asides).where(asides.c.series_uid == uid))
        audit.append(connection, "series_removed", files=len(files))
    with engine.begin() as connection:
        _lock(connection, uid)
        for file in files - _files(connection, uid):
            if not _any_fresh(site, [file], since):
                (site.storage / file).unlink(missing_ok=True)
    return 1


def _remove_asides(site: Site, engine: Engine, before: float) -> None:
    """Remove what was set aside of series that have nothing else here; the rest goes with its series."""
    own = exists().where(instances.c.series_uid == asides.c.series_uid)
    old = select(asides.c.sha256, asides.c.file).where(asides.c.received_at < before, ~own).limit(AT_A_TIME)
    since = now() - FRESH_SECONDS
    with engine.begin() as connection:
        found = {row.sha256: row.file for row in connection.execute(old) if not _any_fresh(site, [row.file], since)}
        if not found:
            return
        connection.execute(delete(asides).where(asides.c.sha256.in_(list(found))))
        audit.append(connection, "asides_removed", files=len(found))
    with reading(engine) as connection:  # the same bytes may have become an instance
        query = select(instances.c.file).where(instances.c.file.in_(list(found.values())))
        named = set(connection.execute(query).scalars())
    for file in set(found.values()) - named:
        if not _any_fresh(site, [file], since):
            (site.storage / file).unlink(missing_ok=True)


def _lock(connection: Connection, uid: str) -> None:
    """Whoever registers instances of the series waits for this transaction, or it for them."""
    connection.execute(select(series.c.series_uid).where(series.c.series_uid == uid).with_for_update())


def _files(connection: Connection, uid: str) -> set[str]:
    found = (connection.execute(select(table.c.file).where(table.c.series_uid == uid)) for table in (instances, asides))
    return {file for rows in found for file in rows.scalars()}


def _any_fresh(site: Site, files: Iterable[str], since: float) -> bool:
    return any(_written_at(site.storage / file) >= since for file in files)


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0


def _remove_results(site: Site, engine: Engine, before: float) -> int:
    with engine.begin() as connection:
        old = jobs.c.seg_file.is_not(None) & jobs.c.state.in_(ENDED) & (jobs.c.changed_at < before)
        with_report = select(jobs.c.id, jobs.c.seg_file, reports.c.file.label("report"))
        with_report = with_report.outerjoin(reports, reports.c.seg_sha256 == jobs.c.seg_sha256)
        rows = list(connection.execute(with_report.where(old).limit(AT_A_TIME).with_for_update(of=jobs)))
        for row in rows:
            connection.execute(update(jobs).where(jobs.c.id == row.id).values(seg_file=None))
            audit.append(connection, "result_removed", job=row.id)
    with reading(engine) as connection:  # the same bytes may be another job's result
        query = select(jobs.c.seg_file).where(jobs.c.seg_file.in_([row.seg_file for row in rows]))
        named = set(connection.execute(query).scalars())
    for row in (row for row in rows if row.seg_file not in named):
        _unlink_result(site, row)
    return len(rows)


def _unlink_result(site: Site, row: Any) -> None:
    seg = site.storage / row.seg_file
    for file in (seg, thumbnail_of(seg), *([site.storage / row.report] if row.report else [])):
        file.unlink(missing_ok=True)
