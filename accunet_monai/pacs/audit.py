"""What was done, in a chain: each entry holds the digest of the one before, so that none can be changed or left out.

A chain cannot say whether its end was cut off. Whoever keeps a digest that :func:`verify` gave can ask whether the
chain still holds it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, text

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.tables import audit

START = "0" * 64
"""What the first entry follows."""

_LOCK = 4158328  # of PostgreSQL's advisory locks: one process appends at a time


def append(connection: Connection, event: str, **facts: str | int | float | bool | None) -> str:
    """Add an entry within the caller's transaction; returns its digest.

    Args:
        connection: inside a writing transaction, so that the entry stands if and only if what it tells stands.
        event: what happened, e.g. ``seg_stored``.
        facts: ids made here, codes, digests, counts and pseudonyms; no UID and nothing of a patient.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    last = connection.execute(select(audit.c.number, audit.c.digest).order_by(audit.c.number.desc()).limit(1)).first()
    number, previous = (last.number + 1, last.digest) if last else (1, START)
    at, entry = now(), json.dumps({"event": event, **facts}, sort_keys=True)
    digest = _digest(number, at, entry, previous)
    connection.execute(insert(audit).values(number=number, at=at, entry=entry, previous=previous, digest=digest))
    return digest


def verify(engine: Engine, head: str | None = None) -> tuple[int, str]:
    """Follow the whole chain; returns the number of entries and the digest of the last.

    Args:
        engine: of the database.
        head: a digest that an earlier call gave and that was kept elsewhere; it must be in the chain.

    Raises:
        PacsError: ``AUDIT_BROKEN`` with the number of the first entry that does not follow from the one before, and
            ``AUDIT_CUT`` when ``head`` is not in the chain.
    """
    count, previous, seen = 0, START, head in (None, START)
    with reading(engine) as connection:
        for row in connection.execute(select(audit).order_by(audit.c.number)):
            expected = _digest(row.number, row.at, row.entry, row.previous)
            if row.number != count + 1 or row.previous != previous or row.digest != expected:
                message = f"entry {row.number} does not follow from entry {count}."
                raise PacsError(
                    "AUDIT_BROKEN", message, hint="Entries were changed or removed. Compare with a back-up."
                )
            count, previous = row.number, row.digest
            seen = seen or previous == head
    if not seen:
        raise PacsError("AUDIT_CUT", f"none of the {count} entries has the digest {head}.", hint="The end was cut off.")
    return count, previous


def _digest(number: int, at: float, entry: str, previous: str) -> str:
    content: list[Any] = [number, repr(at), entry, previous]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
