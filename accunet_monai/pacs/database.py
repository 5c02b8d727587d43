"""The site's database: SQLite in a file, or PostgreSQL that many machines share.

On SQLite every writing transaction takes the write lock at its start, so none fails half-way for want of it, and a
commit returns only when it is on disk (WAL with ``synchronous=FULL``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, OperationalError

from accunet_monai.errors import PacsError
from accunet_monai.pacs.migrations import migrate

BUSY_SECONDS = 30
"""So long a writer of SQLite waits for another; a transaction here takes milliseconds."""

IDLE_SECONDS = 10
"""PostgreSQL ends a session that is silent inside a transaction for so long."""

_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
"""A PostgreSQL server that fell silent is given up after half a minute, not after the kernel's quarter of an hour."""


def now() -> float:
    """Seconds since 1970 in UTC: the one clock of all tables."""
    return time.time()


def open_database(url: str) -> Engine:
    """The engine of a database whose schema is the newest.

    Raises:
        PacsError: ``PACS_DATABASE`` when it cannot be opened, ``PACS_SCHEMA`` when a newer release wrote it.
    """
    try:
        engine = make_engine(url)
        with engine.begin() as connection:
            migrate(connection)
    except (ArgumentError, ModuleNotFoundError, OperationalError) as error:
        reason = str(error).splitlines()[0]
        hint = "Check `database` in the site's settings, and that the server runs."
        raise PacsError("PACS_DATABASE", f"the database cannot be opened ({reason}).", hint=hint) from error
    return engine


def make_engine(url: str) -> Engine:
    """The engine of a database as it is, with the settings that make commits durable."""
    address = make_url(url)
    if address.get_backend_name() not in ("sqlite", "postgresql"):
        message = f"{address.get_backend_name()} is not supported."
        raise PacsError("PACS_DATABASE", message, hint="Use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.")
    if address.get_backend_name() == "postgresql":
        # A process that is frozen inside a transaction must not keep its locks from those that take over.
        options = {"options": f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s", **_PATIENCE}
        return create_engine(address, pool_pre_ping=True, pool_recycle=600, connect_args=options)
    engine = create_engine(address, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reading: on SQLite it waits for no writer and none waits for it."""
    with engine.connect().execution_options(reads_only=True) as connection:
        yield connection


def insert_new(connection: Connection, table: Table, values: Any) -> set[str]:
    """Insert rows whose keys are not there yet; returns the first key of those that were new.

    Args:
        connection: inside a transaction.
        table: where to.
        values: one row, or a list of rows with the same columns.
    """
    rows = values if isinstance(values, list) else [values]
    if not rows:
        return set()
    return set(connection.execute(_inserting(connection.dialect.name, table), rows).scalars())


def insert_or_update(
    connection: Connection, table: Table, row: dict[str, Any], changed: tuple[str, ...], cleared: tuple[str, ...] = ()
) -> None:
    """Insert a row; where its key is there already, take these columns from the new row and set those to NULL."""
    connection.execute(_upserting(connection.dialect.name, table, changed, cleared), row)


@lru_cache  # building a statement takes longer than running it
def _inserting(dialect: str, table: Table) -> Any:
    return _insert(dialect, table).on_conflict_do_nothing().returning(next(iter(table.primary_key.columns)))


@lru_cache
def _upserting(dialect: str, table: Table, changed: tuple[str, ...], cleared: tuple[str, ...]) -> Any:
    statement = _insert(dialect, table)
    again = {name: statement.excluded[name] for name in changed} | dict.fromkeys(cleared)
    return statement.on_conflict_do_update(index_elements=list(table.primary_key.columns), set_=again)


def _insert(dialect: str, table: Table) -> Any:
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
