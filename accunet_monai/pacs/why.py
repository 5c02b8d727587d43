"""What is known of a study or series, and why it was or was not taken: every rule's decision, every code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from sqlalchemy import Connection, Engine, Row, Table, func, select

from accunet_monai.errors import PacsError
from accunet_monai.pacs.completeness import images_are_removed
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.tables import (
    asides,
    association_series,
    decisions,
    deliveries,
    instances,
    jobs,
    revisions,
    series,
)

UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def why(engine: Engine, uid: str) -> list[dict[str, Any]]:
    """Everything about the series of a study, or about one series.

    Args:
        engine: of the site.
        uid: a StudyInstanceUID or SeriesInstanceUID, or a DICOM file of the series.

    Returns:
        For each series: ``series_uid``, ``instances``, ``state`` (``arriving`` or ``complete``), ``open_associations``,
        ``set_aside`` (the same UID with other content), ``expected`` (the PACS's count), ``code``
        (``INSTANCE_CONFLICT`` when all of it was set aside, ``REVISION_PARTIAL`` when it is a part of what retention
        has removed), and ``revisions``, each with ``decisions`` and ``jobs``.

    Raises:
        PacsError: ``SERIES_UNKNOWN``, ``WHY_UNREADABLE``.
    """
    uid = uid if UID.fullmatch(uid) else _series_of(Path(uid))
    with reading(engine) as connection:
        query = select(series).where((series.c.study_uid == uid) | (series.c.series_uid == uid))
        found = connection.execute(query.order_by(series.c.first_received_at)).all()
        if not found and _count(connection, asides, uid):
            return [_set_aside(connection, uid)]
        if not found:
            hint = "Nothing of it was received; look at the sender's log and at ours for refused associations."
            raise PacsError("SERIES_UNKNOWN", "no study or series with this UID is known.", hint=hint)
        return [_series(connection, row) for row in found]


def _series_of(file: Path) -> str:
    try:
        ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    except (OSError, InvalidDicomError) as error:
        raise PacsError("WHY_UNREADABLE", "this is neither a DICOM file nor a UID.", path=file) from error
    return str(ds.get("SeriesInstanceUID", ""))


def _set_aside(connection: Connection, uid: str) -> dict[str, Any]:
    """A series whose instances all have the SOP UIDs of others: there is no more than that of it."""
    last = select(func.max(asides.c.received_at)).where(asides.c.series_uid == uid)
    return {
        "series_uid": uid,
        "instances": 0,
        "state": "set aside",
        "code": "INSTANCE_CONFLICT",
        "last_received_at": connection.execute(last).scalar(),
        "open_associations": _count(connection, association_series, uid),
        "set_aside": _count(connection, asides, uid),
        "expected": None,
        "revisions": [],
    }


def _series(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    made = select(revisions).where(revisions.c.series_uid == row.series_uid).order_by(revisions.c.number)
    found = connection.execute(made).all()
    here = _count(connection, instances, row.series_uid)
    partial = bool(here and row.complete_at and found and images_are_removed(connection, found[-1].id))
    return {
        "series_uid": row.series_uid,
        "instances": here,
        "code": "REVISION_PARTIAL" if partial else None,
        "state": "arriving" if row.complete_at is None else "complete",
        "last_received_at": row.last_received_at,
        "open_associations": _count(connection, association_series, row.series_uid),
        "set_aside": _count(connection, asides, row.series_uid),
        "expected": row.expected,
        "revisions": [_revision(connection, revision) for revision in found],
    }


def _revision(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    judged = select(decisions).where(decisions.c.revision_id == row.id).order_by(decisions.c.bundle)
    queued = select(jobs).where(jobs.c.revision_id == row.id).order_by(jobs.c.made_at)
    return {
        "id": row.id,
        "number": row.number,
        "made_at": row.made_at,
        "replaces": row.replaces,
        "decisions": [
            {"bundle": one.bundle, "outcome": one.outcome, "code": one.code, **json.loads(one.detail)}
            for one in connection.execute(judged)
        ],
        "jobs": [
            {
                "id": one.id,
                "bundle": one.bundle,
                "state": one.state,
                "code": one.code,
                "attempts": one.attempts,
                "deliveries": _deliveries(connection, one.id),
            }
            for one in connection.execute(queued)
        ],
    }


def _deliveries(connection: Connection, job: str) -> list[dict[str, Any]]:
    query = select(deliveries).where(deliveries.c.job_id == job).order_by(deliveries.c.destination)
    return [{"destination": one.destination, "state": one.state, "code": one.code} for one in connection.execute(query)]


def _count(connection: Connection, table: Table, series_uid: str) -> int:
    return int(connection.execute(select(func.count()).where(table.c.series_uid == series_uid)).scalar_one())
