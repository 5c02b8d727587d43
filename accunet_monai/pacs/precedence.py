"""Which revision of a series goes first: one after the other, and none that a newer one has taken the place of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, exists, select

from accunet_monai.pacs.tables import deliveries, jobs, revisions

_OWN, _OTHER, _BEFORE = revisions.alias(), revisions.alias(), jobs.alias()  # making them takes longer than a query


def revisions_of_series(revision_id: Any, compare: Callable[[Any, Any], Any]) -> Any:
    """The ids of the other revisions of a revision's series, by comparison of their numbers."""
    joined = select(_OTHER.c.id).join(_OWN, _OWN.c.series_uid == _OTHER.c.series_uid)
    return joined.where(_OWN.c.id == revision_id, compare(_OTHER.c.number, _OWN.c.number)).correlate(jobs)


def superseded(connection: Connection, row: Row[Any], there: ColumnElement[bool]) -> bool:
    """Whether there is a job for a newer revision, and this one has no delivery of which so much is true."""
    newer = revisions_of_series(row.revision_id, lambda number, own: number > own)
    replaced = exists().where(jobs.c.revision_id.in_(newer), jobs.c.bundle == row.bundle)
    delivered = exists().where(deliveries.c.job_id == row.id, there)
    return bool(connection.execute(select(replaced & ~delivered)).scalar())


def earlier_runs(columns: Any) -> ColumnElement[bool]:
    """One revision after the other, so that the newest is the last to arrive.

    Args:
        columns: a job's row, or the columns of the query that this is part of.
    """
    earlier = revisions_of_series(columns.revision_id, lambda number, own: number < own)
    same = (_BEFORE.c.bundle == columns.bundle) & _BEFORE.c.state.in_(("running", "delivering"))
    return exists().where(_BEFORE.c.revision_id.in_(earlier), same).correlate(jobs)
