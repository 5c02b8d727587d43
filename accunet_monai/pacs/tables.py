"""The tables of a site's database. Times are seconds since 1970 in UTC; identifiers made here are hexadecimal SHA-256.

UIDs stand in these tables and nowhere else outside the instances; a patient is a keyed pseudonym (see
:mod:`accunet_monai.pacs.pseudonyms`). No name, id or date of a patient, and no text of an instance, is stored.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, MetaData, Table, Text

METADATA = MetaData()


def _text(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, Text, nullable=False, primary_key=primary_key)


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


storage_mark = Table(  # one row: what stands in the file at the root of the storage that belongs to this database
    "storage_mark",
    METADATA,
    Column("id", Integer, primary_key=True),
    _text("mark"),
)

instances = Table(
    "instances",
    METADATA,
    _text("sop_instance_uid", primary_key=True),
    _text("series_uid"),
    _text("study_uid"),
    _text("sop_class_uid"),
    _text("transfer_syntax"),
    _text("sha256"),
    Column("size", BigInteger, nullable=False),
    _text("file"),  # relative to the storage folder, made of digests
    _time("received_at"),
    _text("source"),  # "push:AE", "pull:NAME" or "folder"
    Index("instances_series", "series_uid"),
)

asides = Table(  # the same SOP Instance UID with other content: kept, reported, never used
    "asides",
    METADATA,
    _text("sha256", primary_key=True),
    _text("sop_instance_uid"),
    _text("series_uid"),
    Column("size", BigInteger, nullable=False),
    _text("file"),
    _time("received_at"),
    _text("source"),
)

series = Table(
    "series",
    METADATA,
    _text("series_uid", primary_key=True),
    _text("study_uid"),
    _text("patient_key"),
    _text("modality"),
    _time("first_received_at"),
    _time("last_received_at"),
    _time("complete_at", nullable=True),  # NULL: instances came that no revision holds yet
    Column("priority", Integer, nullable=False),
    Column("expected", Integer),  # the PACS's count of instances, when it was asked
    _time("counted_at", nullable=True),
    Index("series_study", "study_uid"),
    Index("series_open", "complete_at"),
)

revisions = Table(
    "revisions",
    METADATA,
    _text("id", primary_key=True),
    _text("series_uid"),
    Column("number", Integer, nullable=False),  # 1, 2, …
    _time("made_at"),
    _text("instances_digest"),
    Column("replaces", Text, ForeignKey("revisions.id")),
    Index("revisions_series", "series_uid", "number", unique=True),
)

revision_instances = Table(
    "revision_instances",
    METADATA,
    Column("revision_id", Text, ForeignKey("revisions.id"), primary_key=True),
    Column("sop_instance_uid", Text, ForeignKey("instances.sop_instance_uid"), primary_key=True),
)

decisions = Table(
    "decisions",
    METADATA,
    Column("revision_id", Text, ForeignKey("revisions.id"), primary_key=True),
    _text("bundle", primary_key=True),
    _text("outcome"),  # chosen, not_chosen, refused or ambiguous
    Column("code", Text),
    _text("detail"),  # JSON: how each condition came out
    _time("made_at"),
)

jobs = Table(
    "jobs",
    METADATA,
    _text("id", primary_key=True),
    Column("revision_id", Text, ForeignKey("revisions.id"), nullable=False),
    _text("bundle"),
    _text("bundle_digest"),
    Column("shadow", Integer, nullable=False),
    _text("state"),  # queued, running, delivering, done, dead, cancelled or superseded
    Column("code", Text),
    Column("detail", Text),
    Column("attempts", Integer, nullable=False),
    Column("priority", Integer, nullable=False),  # higher goes first
    _time("made_at"),
    _time("changed_at"),
    Column("executor", Text),
    Column("seg_file", Text),
    Column("seg_sha256", Text),
    Column("seg_sop_uid", Text),
    Index("jobs_state", "state", "priority", "made_at"),
    Index("jobs_revision", "revision_id"),
)

deliveries = Table(
    "deliveries",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    _text("destination", primary_key=True),
    _text("state"),  # waiting, sent, confirmed or failed
    Column("attempts", Integer, nullable=False),
    Column("code", Text),
    _time("changed_at"),
)

reports = Table(  # measurement reports, each of the SEG with these bytes
    "reports",
    METADATA,
    _text("seg_sha256", primary_key=True),
    _text("file"),
    _text("sha256"),
    _text("sop_instance_uid"),
)

bundles = Table(  # what made results; a bundle's folder may be another's by the time one asks
    "bundles",
    METADATA,
    _text("manifest_sha256", primary_key=True),
    _text("name"),
    Column("version", Text),
    Column("weights_sha256", Text),
    Column("mlflow_run", Text),
    Column("dataset_digest", Text),
    _time("first_used_at"),
)

commitments = Table(  # what destinations were asked to take responsibility for, and what they said
    "commitments",
    METADATA,
    _text("transaction_uid", primary_key=True),
    _text("ae_title"),
    _text("sop_instance_uid"),
    _time("asked_at"),
    Column("outcome", Text),  # kept or failed; NULL: no answer yet
    Index("commitments_instance", "sop_instance_uid"),
)

leases = Table(
    "leases",
    METADATA,
    _text("executor_id", primary_key=True),
    _text("host"),
    Column("pid", Integer, nullable=False),
    _time("renewed_at"),
    _time("released_at", nullable=True),
)

associations = Table(  # open ones block completion; rows of a receiver whose process ended are removed at its start
    "associations",
    METADATA,
    _text("id", primary_key=True),
    _text("receiver"),
    _time("touched_at"),
)

association_series = Table(
    "association_series",
    METADATA,
    _text("association_id", primary_key=True),
    _text("series_uid", primary_key=True),
)

audit = Table(
    "audit",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    _time("at"),
    _text("entry"),
    _text("previous"),
    _text("digest"),
)
