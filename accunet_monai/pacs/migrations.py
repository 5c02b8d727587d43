"""The database's schema, version by version, each with the way back. Statements that SQLite and PostgreSQL both know.

A released version is never edited; a change of :mod:`accunet_monai.pacs.tables` needs a new entry here, which a test
holds against the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from accunet_monai.errors import PacsError

_FIRST = """
CREATE TABLE instances (sop_instance_uid TEXT NOT NULL PRIMARY KEY, series_uid TEXT NOT NULL, study_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL, transfer_syntax TEXT NOT NULL, sha256 TEXT NOT NULL, size BIGINT NOT NULL,
    file TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, source TEXT NOT NULL);
CREATE INDEX instances_series ON instances (series_uid);
CREATE TABLE asides (sha256 TEXT NOT NULL PRIMARY KEY, sop_instance_uid TEXT NOT NULL, series_uid TEXT NOT NULL,
    size BIGINT NOT NULL, file TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, source TEXT NOT NULL);
CREATE TABLE series (series_uid TEXT NOT NULL PRIMARY KEY, study_uid TEXT NOT NULL, patient_key TEXT NOT NULL,
    modality TEXT NOT NULL, first_received_at DOUBLE PRECISION NOT NULL, last_received_at DOUBLE PRECISION NOT NULL,
    complete_at DOUBLE PRECISION, priority INTEGER NOT NULL, expected INTEGER, counted_at DOUBLE PRECISION);
CREATE INDEX series_study ON series (study_uid);
CREATE INDEX series_open ON series (complete_at);
CREATE TABLE revisions (id TEXT NOT NULL PRIMARY KEY, series_uid TEXT NOT NULL, number INTEGER NOT NULL,
    made_at DOUBLE PRECISION NOT NULL, instances_digest TEXT NOT NULL, replaces TEXT REFERENCES revisions (id));
CREATE UNIQUE INDEX revisions_series ON revisions (series_uid, number);
CREATE TABLE revision_instances (revision_id TEXT NOT NULL REFERENCES revisions (id),
    sop_instance_uid TEXT NOT NULL REFERENCES instances (sop_instance_uid),
    PRIMARY KEY (revision_id, sop_instance_uid));
CREATE TABLE decisions (revision_id TEXT NOT NULL REFERENCES revisions (id), bundle TEXT NOT NULL,
    outcome TEXT NOT NULL, code TEXT, detail TEXT NOT NULL, made_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (revision_id, bundle));
CREATE TABLE jobs (id TEXT NOT NULL PRIMARY KEY, revision_id TEXT NOT NULL REFERENCES revisions (id),
    bundle TEXT NOT NULL, bundle_digest TEXT NOT NULL, shadow INTEGER NOT NULL, state TEXT NOT NULL, code TEXT,
    detail TEXT, attempts INTEGER NOT NULL, priority INTEGER NOT NULL, made_at DOUBLE PRECISION NOT NULL,
    changed_at DOUBLE PRECISION NOT NULL, executor TEXT, seg_file TEXT, seg_sha256 TEXT, seg_sop_uid TEXT);
CREATE INDEX jobs_state ON jobs (state, priority, made_at);
CREATE INDEX jobs_revision ON jobs (revision_id);
CREATE TABLE deliveries (job_id TEXT NOT NULL REFERENCES jobs (id), destination TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL, code TEXT, changed_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (job_id, destination));
CREATE TABLE leases (executor_id TEXT NOT NULL PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,
    renewed_at DOUBLE PRECISION NOT NULL, released_at DOUBLE PRECISION);
CREATE TABLE associations (id TEXT NOT NULL PRIMARY KEY, receiver TEXT NOT NULL, touched_at DOUBLE PRECISION NOT NULL);
CREATE TABLE association_series (association_id TEXT NOT NULL, series_uid TEXT NOT NULL,
    PRIMARY KEY (association_id, series_uid));
CREATE TABLE audit (number INTEGER NOT NULL PRIMARY KEY, at DOUBLE PRECISION NOT NULL, entry TEXT NOT NULL,
    previous TEXT NOT NULL, digest TEXT NOT NULL)
"""
_FIRST_BACK = ";".join(
    f"DROP TABLE {name}"
    for name in (
        *("audit", "association_series", "associations", "leases", "deliveries", "jobs", "decisions"),
        *("revision_instances", "revisions", "series", "asides", "instances"),
    )
)

_SECOND = """
CREATE TABLE reports (seg_sha256 TEXT NOT NULL PRIMARY KEY, file TEXT NOT NULL, sha256 TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL);
CREATE TABLE bundles (manifest_sha256 TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, version TEXT, weights_sha256 TEXT,
    mlflow_run TEXT, dataset_digest TEXT, first_used_at DOUBLE PRECISION NOT NULL)
"""
_SECOND_BACK = "DROP TABLE bundles; DROP TABLE reports"

_THIRD = """
CREATE TABLE commitments (transaction_uid TEXT NOT NULL PRIMARY KEY, ae_title TEXT NOT NULL,
    sop_instance_uid TEXT NOT NULL, asked_at DOUBLE PRECISION NOT NULL, outcome TEXT);
CREATE INDEX commitments_instance ON commitments (sop_instance_uid)
"""
_THIRD_BACK = "DROP TABLE commitments"

_FOURTH = "CREATE TABLE storage_mark (id INTEGER NOT NULL PRIMARY KEY, mark TEXT NOT NULL)"
_FOURTH_BACK = "DROP TABLE storage_mark"


@dataclass(frozen=True)
class Migration:
    """Statements that lead to a version from the one before, and back; separated by semicolons."""

    forward: str
    back: str


MIGRATIONS: tuple[Migration, ...] = (
    Migration(_FIRST, _FIRST_BACK),
    Migration(_SECOND, _SECOND_BACK),
    Migration(_THIRD, _THIRD_BACK),
    Migration(_FOURTH, _FOURTH_BACK),
)
"""The first leads to version 1."""


def schema_version(connection: Connection) -> int:
    """The version that the database is at; 0 for an empty one."""
    connection.execute(text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"))
    return int(connection.execute(text("SELECT version FROM schema_version")).scalar() or 0)


def migrate(connection: Connection, target: int | None = None, migrations: tuple[Migration, ...] = MIGRATIONS) -> int:
    """Bring the database to a version, by default the newest; returns the version it was at. All or nothing.

    Args:
        connection: inside a transaction that no other writer shares.
        target: the version to go to, forward or back.
        migrations: those that are known.

    Raises:
        PacsError: ``PACS_SCHEMA`` for a database that a newer release wrote, and for a version that is not known.
    """
    if connection.dialect.name == "postgresql":  # two processes that start at once do not both migrate
        connection.execute(text("SELECT pg_advisory_xact_lock(4158327)"))
    target = len(migrations) if target is None else target
    found = schema_version(connection)
    if found > len(migrations):
        hint = "Install that release again, or roll the database back with it: accunet pacs migrate SITE --to VERSION."
        message = f"the database is at schema version {found}, this release knows {len(migrations)}."
        raise PacsError("PACS_SCHEMA", message, hint=hint)
    if not 0 <= target <= len(migrations):
        raise PacsError("PACS_SCHEMA", f"schema version {target} is not known; the newest is {len(migrations)}.")
    steps = [migration.forward for migration in migrations[found:target]]
    steps += [migration.back for migration in reversed(migrations[target:found])]
    for step in steps:
        for statement in step.split(";"):
            connection.execute(text(statement))
    connection.execute(text("DELETE FROM schema_version"))
    connection.execute(text("INSERT INTO schema_version (version) VALUES (:version)"), {"version": target})
    return found
