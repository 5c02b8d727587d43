"""When a series is complete, and what follows: a revision of it, the rules' decisions and the jobs, in one transaction.

A series is complete when nothing came for a while, no open association that brought some of it is left, and the PACS,
where it is asked, has no more of it. A slice that comes later makes a new revision that replaces the one before; what
that one has not delivered is superseded when its turn comes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Row, exists, func, insert, select, update
from sqlalchemy.exc import InterfaceError, OperationalError

from accunet_monai.errors import AccunetError, PacsError
from accunet_monai.pacs import audit
from accunet_monai.pacs.database import insert_new, now, reading
from accunet_monai.pacs.judging import Judge
from accunet_monai.pacs.logs import event
from accunet_monai.pacs.pseudonyms import Pseudonyms
from accunet_monai.pacs.rules import Decision
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.storage import Storage
from accunet_monai.pacs.tables import (
    association_series,
    associations,
    decisions,
    instances,
    jobs,
    revision_instances,
    revisions,
    series,
)

COUNT_EVERY_SECONDS = 30
"""So often the PACS is asked again for a series that is smaller here than there."""

Count = Callable[[str, str], int | None]
"""(study UID, series UID) → how many instances the PACS has, ``None`` when it cannot say."""


@dataclass(frozen=True)
class Revision:
    """A series' instances at one time.

    Args:
        id: sha256 over the series' UID and the sorted (SOP UID, sha256).
        series_uid, number, replaces: see :mod:`accunet_monai.pacs.tables`.
        members: (SOP UID, sha256) of its instances, sorted.
    """

    id: str
    series_uid: str
    number: int
    replaces: str | None
    members: tuple[tuple[str, str], ...]


def close_complete(site: Site, engine: Engine, storage: Storage, judge: Judge, count: Count | None = None) -> list[str]:
    """Make revisions of all series that are complete now; returns the revisions' ids.

    Args:
        site: its settings.
        engine: its database.
        storage: its storage.
        judge: reads the files.
        count: asks the PACS of ``completeness.count_from``.
    """
    made = []
    for uid in quiet_series(site, engine):
        try:
            if not _all_here(site, engine, uid, count):
                continue
            if (revision := close_series(site, engine, storage, judge, uid)) is not None:
                made.append(revision)
        except (OperationalError, InterfaceError):  # the database is away
            raise
        except Exception as error:  # e.g. a damaged file: the series stays open, the others go on
            name, code = (
                Pseudonyms(site.key_file)("series", uid),
                error.code if isinstance(error, AccunetError) else "INTERNAL",
            )
            event("series_not_closed", logging.ERROR, code=code, exception=type(error).__name__, series=name)
    return made


def quiet_series(site: Site, engine: Engine) -> list[str]:
    """Series with something new that are quiet and that no open association brings; the longest quiet first."""
    at, settings = now(), site.completeness
    blocking = (
        select(association_series.c.series_uid)
        .join(associations, associations.c.id == association_series.c.association_id)
        .where(association_series.c.series_uid == series.c.series_uid)
        .where(associations.c.touched_at > at - settings.association_wait_seconds)
        .where(series.c.last_received_at > at - settings.association_wait_seconds)
    )
    query = (
        select(series.c.series_uid)
        .where(series.c.complete_at.is_(None))
        .where(series.c.last_received_at <= at - settings.quiet_seconds)
        .where(~exists(blocking))
        .order_by(series.c.last_received_at)
    )
    with reading(engine) as connection:
        return list(connection.execute(query).scalars())


def close_series(site: Site, engine: Engine, storage: Storage, judge: Judge, series_uid: str) -> str | None:
    """Make a revision of a series, judge it and queue its jobs; returns its id, or ``None`` when there is nothing new.

    Files are read before the transaction; when something came meanwhile, the series stays open for the next time.

    Raises:
        PacsError: ``INSTANCE_MISSING`` or ``INSTANCE_DAMAGED``.
    """
    with reading(engine) as connection:
        seen = _members(connection, series_uid)
        found = connection.execute(select(series).where(series.c.series_uid == series_uid)).one()
    made = judged(site, storage, judge, seen)
    with engine.begin() as connection:
        # Whoever registers more of the series waits here, or was before us: then its instances are seen.
        connection.execute(select(series.c.series_uid).where(series.c.series_uid == series_uid).with_for_update())
        if [row.sha256 for row in _members(connection, series_uid)] != [row.sha256 for row in seen]:
            return None
        latest = _latest(connection, series_uid)
        revision = _revision(series_uid, seen, latest)
        closed = update(series).where(series.c.series_uid == series_uid).values(complete_at=now())
        connection.execute(closed)
        if connection.execute(select(revisions.c.id).where(revisions.c.id == revision.id)).first():
            _link(connection, revision)  # retention may have removed what is here again
            return None
        if latest is not None and _is_part_of_removed(connection, latest, len(seen)):
            name = Pseudonyms(site.key_file)("series", series_uid)
            event("series_not_closed", logging.WARNING, code="REVISION_PARTIAL", series=name, instances=len(seen))
            return None
        _insert_revision(connection, revision)
        made = [_with_study(connection, site, found.study_uid, revision, decision) for decision in made]
        _insert_decisions(connection, revision.id, made)
        chosen = [decision.bundle for decision in made if decision.outcome == "chosen"]
        _queue(connection, site, revision.id, chosen, found.priority)
        facts: dict[str, str | int] = {
            "revision": revision.id,
            "number": revision.number,
            "instances": len(seen),
            "jobs": len(chosen),
        }
        audit.append(connection, "series_complete", **facts)
    facts["series"] = Pseudonyms(site.key_file)("series", series_uid)
    event("series_complete", logging.INFO, **facts)
    return revision.id


def judged(site: Site, storage: Storage, judge: Judge, members: Sequence[Row[Any]]) -> list[Decision]:
    """Every rule of the site over these instances.

    Raises:
        PacsError: ``INSTANCE_MISSING`` or ``INSTANCE_DAMAGED``.
    """
    with tempfile.TemporaryDirectory(prefix="judged-") as name:
        for number, row in enumerate(members):
            Path(name, f"{number:06d}.dcm").symlink_to(storage.path(row.file, row.sha256).resolve())
        return judge(site.bundles, Path(name))


def revision_id(series_uid: str, members: Sequence[tuple[str, str]]) -> str:
    """The id of a revision with these (SOP UID, sha256)."""
    return hashlib.sha256(json.dumps([series_uid, sorted(map(list, members))]).encode()).hexdigest()


def job_id(revision: str, bundle: str, bundle_digest: str) -> str:
    """The id of a job: the same input and the same bundle are the same job."""
    return hashlib.sha256(json.dumps([revision, bundle, bundle_digest]).encode()).hexdigest()


def _all_here(site: Site, engine: Engine, uid: str, count: Count | None) -> bool:
    """Whether the PACS has no more instances of the series than have come, or has been waited for long enough."""
    if site.completeness.count_from is None or count is None:
        return True
    with reading(engine) as connection:
        row = connection.execute(select(series).where(series.c.series_uid == uid)).one()
        here = connection.execute(select(func.count()).where(instances.c.series_uid == uid)).scalar_one()
    at = now()
    if row.counted_at is not None and at - row.counted_at < COUNT_EVERY_SECONDS:
        return bool(row.expected is not None and here >= row.expected)
    expected = count(row.study_uid, uid)
    with engine.begin() as connection:
        values = {"expected": expected, "counted_at": at}
        connection.execute(update(series).where(series.c.series_uid == uid).values(values))
    if expected is not None and here >= expected:
        return True
    return bool(at - row.last_received_at >= site.completeness.count_wait_seconds)


def _members(connection: Connection, series_uid: str) -> list[Any]:
    query = select(instances.c.sop_instance_uid, instances.c.sha256, instances.c.file)
    return list(
        connection.execute(query.where(instances.c.series_uid == series_uid).order_by(instances.c.sha256)).all()
    )


def _latest(connection: Connection, series_uid: str) -> Row[Any] | None:
    query = select(revisions).where(revisions.c.series_uid == series_uid).order_by(revisions.c.number.desc()).limit(1)
    return connection.execute(query).one_or_none()


def _revision(series_uid: str, rows: Sequence[Row[Any]], latest: Row[Any] | None) -> Revision:
    members = tuple(sorted((row.sop_instance_uid, row.sha256) for row in rows))
    number, replaces = (1, None) if latest is None else (latest.number + 1, latest.id)
    return Revision(revision_id(series_uid, members), series_uid, number, replaces, members)


def _insert_revision(connection: Connection, revision: Revision) -> None:
    digest = hashlib.sha256("\n".join(sha256 for _, sha256 in revision.members).encode()).hexdigest()
    row = {name: getattr(revision, name) for name in ("id", "series_uid", "number", "replaces")}
    connection.execute(insert(revisions).values(**row, made_at=now(), instances_digest=digest))
    _link(connection, revision)


def _link(connection: Connection, revision: Revision) -> None:
    rows = [{"revision_id": revision.id, "sop_instance_uid": uid} for uid, _ in revision.members]
    insert_new(connection, revision_instances, rows)


def images_are_removed(connection: Connection, revision: str) -> bool:
    """Whether retention has removed the images of a revision."""
    query = select(revision_instances.c.sop_instance_uid).where(revision_instances.c.revision_id == revision)
    return connection.execute(query.limit(1)).first() is None


def _is_part_of_removed(connection: Connection, latest: Row[Any], here: int) -> bool:
    """Whether these are fewer images than the latest revision had, whose images retention has removed."""
    details = connection.execute(select(decisions.c.detail).where(decisions.c.revision_id == latest.id)).scalars()
    had = max((int(json.loads(detail).get("instances", 0)) for detail in details), default=0)
    return here < had and images_are_removed(connection, latest.id)


def _insert_decisions(connection: Connection, revision: str, made: Sequence[Decision]) -> None:
    at = now()
    for decision in made:
        row = {"bundle": decision.bundle, "outcome": decision.outcome, "code": decision.code}
        detail = json.dumps(decision.detail, sort_keys=True)
        connection.execute(insert(decisions).values(revision_id=revision, **row, detail=detail, made_at=at))


def _with_study(connection: Connection, site: Site, study_uid: str, revision: Revision, decision: Decision) -> Decision:
    """Ambiguous where another series of the study was chosen and the rule takes one of a study; that one's job, too."""
    rule = next(rule for rule in site.bundles if rule.name == decision.bundle)
    if decision.outcome != "chosen" or not rule.one_per_study:
        return decision
    others = (
        select(decisions.c.revision_id)
        .join(revisions, revisions.c.id == decisions.c.revision_id)
        .join(series, series.c.series_uid == revisions.c.series_uid)
        .where(series.c.study_uid == study_uid, series.c.series_uid != revision.series_uid)
        .where(decisions.c.bundle == decision.bundle)
        .where((decisions.c.outcome == "chosen") | (decisions.c.code == "RULE_SEVERAL_SERIES"))
    )
    rivals = list(connection.execute(others).scalars())
    if not rivals:
        return decision
    verdict = {"outcome": "ambiguous", "code": "RULE_SEVERAL_SERIES"}
    of_rivals = decisions.c.revision_id.in_(rivals) & (decisions.c.bundle == decision.bundle)
    connection.execute(update(decisions).where(of_rivals).values(**verdict))
    waiting = jobs.c.revision_id.in_(rivals) & (jobs.c.bundle == decision.bundle) & (jobs.c.state == "queued")
    cancelled = {"state": "cancelled", "code": "RULE_SEVERAL_SERIES", "changed_at": now()}
    for job in connection.execute(update(jobs).where(waiting).values(**cancelled).returning(jobs.c.id)).scalars().all():
        audit.append(connection, "job_cancelled", job=job, code="RULE_SEVERAL_SERIES")
    detail = {**decision.detail, "series": 1 + len(rivals)}
    return replace(decision, outcome="ambiguous", code="RULE_SEVERAL_SERIES", detail=detail)


def _queue(connection: Connection, site: Site, revision: str, chosen: Sequence[str], priority: int) -> None:
    at = now()
    for rule in (rule for rule in site.bundles if rule.name in chosen):
        digest = bundle_digest(rule.bundle)
        row = {
            "id": job_id(revision, rule.name, digest),
            "revision_id": revision,
            "bundle": rule.name,
            "bundle_digest": digest,
            "shadow": int(rule.shadow),
            "state": "queued",
            "attempts": 0,
            "priority": rule.priority + priority,
            "made_at": at,
            "changed_at": at,
        }
        insert_new(connection, jobs, row)


def bundle_digest(bundle: str) -> str:
    """The digest of a bundle's manifest.

    Raises:
        BundleError: ``BUNDLE_UNKNOWN``.
        PacsError: ``BUNDLE_UNSEALED`` for a bundle without a manifest.
    """
    from accunet_monai.bundle import find_bundle, manifest_digest  # brings torch, which a receiver can do without

    folder = find_bundle(bundle)
    digest = manifest_digest(folder)
    if digest is None:
        hint = f"accunet bundle manifest {folder}"
        raise PacsError("BUNDLE_UNSEALED", "the bundle has no manifest that would identify it.", path=folder, hint=hint)
    return digest
