"""The database: schema and roll-back, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, MetaData, inspect, select, text

from accunet_monai.errors import PacsError
from accunet_monai.pacs.database import insert_new, insert_or_update, make_engine, open_database, reading
from accunet_monai.pacs.migrations import MIGRATIONS, Migration, migrate, schema_version
from accunet_monai.pacs.tables import METADATA, leases
from tests.pacs.servers import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database."""
    url = f"sqlite:///{tmp_path / 'state.sqlite3'}"
    engine = make_engine(url if request.param == "sqlite" else request.getfixturevalue("postgres").url)
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS schema_version"))
        METADATA.drop_all(connection)
    engine.dispose()


def test_the_migrations_make_the_tables_and_their_indexes(engine: Engine) -> None:
    with engine.begin() as connection:
        assert migrate(connection) == 0
        assert schema_version(connection) == len(MIGRATIONS)
    made = inspect(engine)
    assert set(made.get_table_names()) == {*METADATA.tables, "schema_version"}
    for name, table in METADATA.tables.items():
        columns = {column["name"]: column for column in made.get_columns(name)}
        assert list(columns) == [column.name for column in table.columns], name
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable, (name, column.name)
            found, meant = columns[column.name]["type"], column.type
            assert found._type_affinity is meant._type_affinity, (name, column.name)
        assert made.get_pk_constraint(name)["constrained_columns"] == [key.name for key in table.primary_key]
        keys = {(*key["constrained_columns"], key["referred_table"]) for key in made.get_foreign_keys(name)}
        assert keys == {(key.parent.name, key.column.table.name) for key in table.foreign_keys}, name
        indexes = {
            (index["name"], tuple(index["column_names"]), bool(index["unique"])) for index in made.get_indexes(name)
        }
        assert indexes == {(i.name, tuple(c.name for c in i.columns), i.unique) for i in table.indexes}, name


def test_rolling_back_and_forward_keeps_what_the_older_schema_knows(engine: Engine) -> None:
    second = Migration("ALTER TABLE leases ADD COLUMN note TEXT", "ALTER TABLE leases DROP COLUMN note")
    both = (*MIGRATIONS, second)
    row = {"executor_id": "a", "host": "h", "pid": 1, "renewed_at": 1.5, "released_at": None}
    with engine.begin() as connection:
        migrate(connection, migrations=both)
        insert_new(connection, leases, row)
        connection.execute(text("UPDATE leases SET note = 'later'"))
    with engine.begin() as connection:
        assert migrate(connection, target=len(MIGRATIONS), migrations=both) == len(both)
    with reading(engine) as connection:
        assert connection.execute(select(leases)).one()._asdict() == row
    with engine.begin() as connection:
        migrate(connection, migrations=both)
        assert connection.execute(text("SELECT executor_id, note FROM leases")).one() == ("a", None)
        migrate(connection, target=0, migrations=both)
        left = MetaData()
        left.reflect(connection)
        assert set(left.tables) == {"schema_version"}


def test_a_migration_that_fails_leaves_the_schema_as_it_was(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection)
    broken = Migration("ALTER TABLE leases ADD COLUMN note TEXT; ALTER TABLE nothing ADD COLUMN note TEXT", "")
    with pytest.raises(Exception, match="nothing"), engine.begin() as connection:
        migrate(connection, migrations=(*MIGRATIONS, broken))
    assert "note" not in {column["name"] for column in inspect(engine).get_columns("leases")}
    with reading(engine) as connection:
        assert connection.execute(text("SELECT version FROM schema_version")).scalar() == len(MIGRATIONS)


def test_a_database_of_a_newer_release_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection)
        connection.execute(text("UPDATE schema_version SET version = 99"))
    with pytest.raises(PacsError) as caught, engine.begin() as connection:
        migrate(connection)
    assert caught.value.code == "PACS_SCHEMA"


def test_a_version_that_nobody_knows_is_refused_before_anything_changes(engine: Engine) -> None:
    with engine.begin() as connection:
        migrate(connection)
    with pytest.raises(PacsError, match=r"PACS_SCHEMA.*version 99 is not known"), engine.begin() as connection:
        migrate(connection, target=99)
    with engine.begin() as connection:
        assert migrate(connection) == len(MIGRATIONS)


def test_insert_new_tells_what_was_new_and_changes_nothing_else(engine: Engine) -> None:
    def row(name: str, pid: int) -> dict[str, object]:
        return {"executor_id": name, "host": "h", "pid": pid, "renewed_at": 0.0, "released_at": None}

    with engine.begin() as connection:
        migrate(connection)
        assert insert_new(connection, leases, [row("a", 1), row("b", 1)]) == {"a", "b"}
        assert insert_new(connection, leases, [row("b", 2), row("c", 2)]) == {"c"}
        assert insert_new(connection, leases, []) == set()
        insert_or_update(connection, leases, row("a", 3), ("pid",), ("released_at",))
        insert_or_update(connection, leases, row("d", 3), ("pid",))
        found = {row.executor_id: row.pid for row in connection.execute(select(leases))}
    assert found == {"a": 3, "b": 1, "c": 2, "d": 3}


def test_two_writers_wait_for_each_other_and_readers_for_nobody(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'state.sqlite3'}")
    row = {"host": "h", "pid": 1, "renewed_at": 0.0, "released_at": None}
    held, order = threading.Event(), []

    def first() -> None:
        with engine.begin() as connection:
            insert_new(connection, leases, {"executor_id": "first", **row})
            held.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with reading(engine) as connection:
        assert connection.execute(select(leases)).all() == []
        order.append("reader")
    with engine.begin() as connection:
        order.append("second")
        assert insert_new(connection, leases, {"executor_id": "first", **row}) == set()
    thread.join()
    assert order == ["reader", "first", "second"]


def test_sqlite_commits_are_durable(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'state.sqlite3'}")
    with reading(engine) as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
        keys = connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
    assert [*settings, keys] == ["wal", 2, 1]  # synchronous 2 is FULL


def test_a_silent_server_is_given_up(postgres: Postgres) -> None:
    engine = make_engine(postgres.url)
    with engine.connect() as connection:
        set_to = connection.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
    engine.dispose()
    names = ("connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
    assert [set_to[name] for name in names] == ["10", "10", "5", "3", "20000"]


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite:////nowhere/at/all.sqlite3", "nonsense"])
def test_what_cannot_be_opened_is_refused_with_a_code(url: str) -> None:
    with pytest.raises(PacsError) as caught:
        open_database(url)
    assert caught.value.code == "PACS_DATABASE"
