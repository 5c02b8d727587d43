"""Rows of received instances, committed in groups: whoever waits shares one commit with all others who wait."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Engine, delete, select, update
from sqlalchemy.exc import InterfaceError, OperationalError

from accunet_monai.pacs.database import insert_new, insert_or_update, now
from accunet_monai.pacs.heads import Head
from accunet_monai.pacs.pseudonyms import Pseudonyms
from accunet_monai.pacs.storage import StoredFile
from accunet_monai.pacs.tables import asides, association_series, associations, instances, series

GROUP = 64
"""So many rows share a commit at most; a commit of so many takes hardly longer than one of one."""

MODALITIES = frozenset({"CR", "CT", "DX", "KO", "MG", "MR", "NM", "OT", "PT", "RTSTRUCT", "SEG", "SR", "US", "XA"})
"""Any other is not written down: the value came from outside, and the database holds no free text."""

Kept = Literal["new", "same", "aside"]
"""``same``: it was there already. ``aside``: its UID was there with other content, which stays the valid one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An instance whose file is on disk; its row is not.

    Args:
        file: what it is, and its file.
        source: ``push:AE``, ``pull:NAME`` or ``folder``.
        association: the open one that brought it, if any.
        priority: of the jobs that it leads to.
    """

    file: StoredFile
    source: str
    association: str | None = None
    priority: int = 0
    at: float = field(default_factory=now)

    @property
    def head(self) -> Head:
        """What it is."""
        return self.file.head


Known = dict[tuple[str, str], int]
"""Pairs of association and series that are written down, and (association, "") → the second when it was last."""

_Waiting = tuple[Arrival | str, Future[Kept]]
"""An arrival, or the id of an association that ended."""


class Registrar:
    """Commits arrivals: the first of those who wait does it for all of them, in its own thread.

    Args:
        engine: the database.
        pseudonyms: for the patient's key.
        receiver: who asks; open associations of an earlier process of that name are forgotten.
    """

    def __init__(self, engine: Engine, pseudonyms: Pseudonyms, receiver: str) -> None:
        self._engine, self._pseudonyms, self.receiver = engine, pseudonyms, receiver
        self._waiting: list[_Waiting] = []
        self._committing = False
        self._turn = threading.Condition()
        self._known: Known = {}
        with engine.begin() as connection:
            own = select(associations.c.id).where(associations.c.receiver == receiver)
            connection.execute(delete(association_series).where(association_series.c.association_id.in_(own)))
            connection.execute(delete(associations).where(associations.c.receiver == receiver))

    def register(self, arrival: Arrival) -> Kept:
        """Commit an arrival; returns when it is on disk.

        Raises:
            SQLAlchemyError: it is not committed.
        """
        return self._put(arrival)

    def closed(self, association: str) -> None:
        """An association ended; what it brought waits for it no longer.

        Raises:
            SQLAlchemyError: as for :meth:`register`; the association then counts as one that brings nothing any more.
        """
        self._put(association)

    def _put(self, item: Arrival | str) -> Kept:
        future: Future[Kept] = Future()
        with self._turn:
            self._waiting.append((item, future))
        while not future.done():
            with self._turn:
                self._turn.wait_for(lambda: future.done() or not self._committing)
                if future.done():
                    break
                self._committing, group = True, self._waiting[:GROUP]
                del self._waiting[:GROUP]
            try:
                self._commit(group)
            finally:
                with self._turn:
                    self._committing = False
                    self._turn.notify_all()
        return future.result()

    def _commit(self, group: Sequence[_Waiting]) -> None:
        arrivals = [item for item, _ in group if isinstance(item, Arrival)]
        ended = [item for item, _ in group if isinstance(item, str)]
        known = dict(self._known)
        try:
            with self._engine.begin() as connection:
                outcomes = iter(record(connection, arrivals, self._pseudonyms, self.receiver, known))
                if ended:
                    connection.execute(delete(association_series).where(association_series.c.association_id.in_(ended)))
                    connection.execute(delete(associations).where(associations.c.id.in_(ended)))
        except Exception as error:  # whoever waits is told; the next group may succeed
            self._fail(group, error)
            return
        self._known = {entry: at for entry, at in known.items() if entry[0] not in ended}
        for item, future in group:
            future.set_result(next(outcomes) if isinstance(item, Arrival) else "same")

    def _fail(self, group: Sequence[_Waiting], error: Exception) -> None:
        """Of several, each tries by itself, so that one bad row fails alone; without a database all fail at once."""
        if len(group) == 1 or isinstance(error, OperationalError | InterfaceError):
            for _, future in group:
                future.set_exception(error)
            return
        for item in group:
            self._commit([item])


def record(
    connection: Connection, arrivals: Sequence[Arrival], pseudonyms: Pseudonyms, receiver: str, known: Known
) -> list[Kept]:
    """Insert rows of arrivals inside a transaction; returns what became of each.

    Args:
        connection: inside a transaction.
        arrivals: in the order of their coming.
        pseudonyms: for the patients' keys.
        receiver: who brings them.
        known: what is written down already; what is now is added.
    """
    rows = {arrival.head.sop_instance_uid: _row(arrival) for arrival in reversed(arrivals)}
    added = insert_new(connection, instances, [rows[uid] for uid in sorted(rows)])  # one order: no deadlocks
    others = [uid for uid in rows if uid not in added]
    valid = {uid: row["sha256"] for uid, row in rows.items()}
    if others:
        query = select(instances.c.sop_instance_uid, instances.c.sha256)
        query = query.where(instances.c.sop_instance_uid.in_(others))
        valid |= {row.sop_instance_uid: row.sha256 for row in connection.execute(query)}
    outcomes: list[Kept] = []
    for arrival in arrivals:
        uid = arrival.head.sop_instance_uid
        outcomes.append("aside" if valid[uid] != arrival.file.sha256 else "new" if uid in added else "same")
        added.discard(uid)  # the same once more is not new
    set_aside = [_aside(a) for a, kept in zip(arrivals, outcomes, strict=True) if kept == "aside"]
    insert_new(connection, asides, sorted(set_aside, key=lambda row: str(row["sha256"])))
    _touch(connection, [a for a, kept in zip(arrivals, outcomes, strict=True) if kept == "new"], pseudonyms)
    _associate(connection, arrivals, receiver, known)
    return outcomes


def _touch(connection: Connection, arrivals: Sequence[Arrival], pseudonyms: Pseudonyms) -> None:
    """Series that got something new are open again."""
    last = {arrival.head.series_uid: arrival for arrival in arrivals}
    for uid, arrival in sorted(last.items()):
        head = arrival.head
        row = {
            "series_uid": uid,
            "study_uid": head.study_uid,
            "patient_key": pseudonyms("patient", f"{head.issuer}\0{head.patient_id}"),
            "modality": head.modality if head.modality in MODALITIES else "",
            "first_received_at": arrival.at,
            "last_received_at": arrival.at,
            "priority": arrival.priority,
        }
        insert_or_update(connection, series, row, ("last_received_at",), ("complete_at", "counted_at"))
        if arrival.priority:
            raise_priority(connection, uid, arrival.priority)


def raise_priority(connection: Connection, series_uid: str, priority: int) -> None:
    """Give a series at least this priority, for jobs that it leads to from now on."""
    lower = (series.c.series_uid == series_uid) & (series.c.priority < priority)
    connection.execute(update(series).where(lower).values(priority=priority))


def _associate(connection: Connection, arrivals: Sequence[Arrival], receiver: str, known: Known) -> None:
    """Which open associations brought which series, and when last (to a second or so)."""
    last = {arrival.association: arrival.at for arrival in arrivals if arrival.association}
    for association, at in sorted(last.items()):
        if known.get((association, "")) != int(at):
            row = {"id": association, "receiver": receiver, "touched_at": at}
            insert_or_update(connection, associations, row, ("touched_at",))
            known[association, ""] = int(at)
    pairs = {(arrival.association, arrival.head.series_uid) for arrival in arrivals if arrival.association}
    pairs -= known.keys()
    insert_new(connection, association_series, [{"association_id": a, "series_uid": uid} for a, uid in sorted(pairs)])
    known |= dict.fromkeys(pairs, 0)


def _row(arrival: Arrival) -> dict[str, Any]:
    head = arrival.head
    return {
        "sop_instance_uid": head.sop_instance_uid,
        "series_uid": head.series_uid,
        "study_uid": head.study_uid,
        "sop_class_uid": head.sop_class_uid,
        "transfer_syntax": arrival.file.transfer_syntax,
        **_of_file(arrival),
    }


def _aside(arrival: Arrival) -> dict[str, Any]:
    uids = {"sop_instance_uid": arrival.head.sop_instance_uid, "series_uid": arrival.head.series_uid}
    return {**uids, **_of_file(arrival)}


def _of_file(arrival: Arrival) -> dict[str, Any]:
    file = arrival.file
    of_file = {"sha256": file.sha256, "size": file.size, "file": file.file}
    return {**of_file, "source": arrival.source, "received_at": arrival.at}
