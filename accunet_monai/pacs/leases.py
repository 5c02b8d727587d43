"""Which worker processes live. A worker whose lease was taken over must write nothing more.

Each worker process has an id of its own and renews its lease. Another that finds it expired releases it, once and for
all, and takes its jobs. Times are those of the database's clock, so that workers' clocks may differ.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, extract, func, insert, literal, select, update

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import now, reading
from accunet_monai.pacs.tables import leases

RENEW_SECONDS = 10.0

RELEASED = select(leases.c.executor_id).where(leases.c.released_at.is_not(None))
"""The ids of workers that are no more. Who is here never leaves: a lease is given up once and no id is used again."""


class Lease:
    """The lease of this process.

    Args:
        engine: of the site's database.
        seconds: after so long without renewal another worker may take over.
    """

    def __init__(self, engine: Engine, seconds: float = 3 * RENEW_SECONDS) -> None:
        self.engine = engine
        self.seconds = seconds
        self.executor_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with engine.begin() as connection:
            values = {"executor_id": self.executor_id, "host": socket.gethostname(), "pid": os.getpid()}
            connection.execute(insert(leases).values(**values, renewed_at=_clock(connection)))

    def hold(self, connection: Connection) -> None:
        """Renew it inside a transaction: what the transaction writes stands only if the lease was still held.

        Raises:
            PacsError: ``LEASE_LOST`` when another worker took over.
        """
        mine = (leases.c.executor_id == self.executor_id) & leases.c.released_at.is_(None)
        if connection.execute(update(leases).where(mine).values(renewed_at=_clock(connection))).rowcount != 1:
            message = "another worker has taken over the jobs of this one, which was silent for too long."
            raise PacsError("LEASE_LOST", message, hint="Nothing more is written. Start the worker again.")

    def renew(self) -> None:
        """Renew it in a transaction of its own; raises as :meth:`hold`."""
        with self.engine.begin() as connection:
            self.hold(connection)

    def release(self) -> None:
        """Give it back: other workers may take what is unfinished."""
        with self.engine.begin() as connection:
            mine = leases.c.executor_id == self.executor_id
            connection.execute(update(leases).where(mine).values(released_at=_clock(connection)))

    def expire_others(self) -> list[str]:
        """Release the leases that were not renewed in time; returns whose."""
        with self.engine.begin() as connection:
            self.hold(connection)
            late = leases.c.released_at.is_(None) & (leases.c.renewed_at < _clock(connection) - self.seconds)
            expired = list(connection.execute(select(leases.c.executor_id).where(late)).scalars())
            for executor_id in expired:  # renewed in between: its row no longer matches
                matches = late & (leases.c.executor_id == executor_id)
                connection.execute(update(leases).where(matches).values(released_at=_clock(connection)))
        return expired


def live(connection: Connection) -> set[str]:
    """The ids of workers whose lease nobody released."""
    return set(connection.execute(select(leases.c.executor_id).where(leases.c.released_at.is_(None))).scalars())


def lively(connection: Connection, seconds: float) -> set[str]:
    """The ids of workers that hold a lease and renewed it within so many seconds."""
    held = leases.c.released_at.is_(None) & (leases.c.renewed_at >= _clock(connection) - seconds)
    return set(connection.execute(select(leases.c.executor_id).where(held)).scalars())


def dead_among(engine: Engine, executor_ids: Iterable[str]) -> set[str]:
    """Those of some workers that hold no lease. The ids must have been read before: a lease precedes its jobs."""
    with reading(engine) as connection:
        return set(executor_ids) - live(connection)


def _clock(connection: Connection) -> ColumnElement[Any]:
    if connection.dialect.name == "postgresql":
        return extract("epoch", func.clock_timestamp())
    return literal(now())
