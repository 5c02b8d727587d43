"""From a SEG in the PACS back to what made it: job, bundle, weights, run and data; from weights to what they made."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from sqlalchemy import Connection, Engine, func, select

from accunet_monai.bundle import WEIGHTS, find_bundle, manifest_digest, read_manifest
from accunet_monai.errors import BundleError, PacsError
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.jobs import deliveries_of
from accunet_monai.pacs.settings import BundleRule, Site
from accunet_monai.pacs.tables import bundles, deliveries, jobs, reports

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_FACTS = ("version", "weights_sha256", "mlflow_run", "dataset_digest")


def trace(site: Site, engine: Engine, file_or_uid: str) -> dict[str, Any]:
    """What is known of a SEG object or of the report of one.

    Args:
        site: its settings.
        engine: of its database.
        file_or_uid: a DICOM file, or a SOPInstanceUID.

    Returns:
        ``job``, ``state``, ``revision``, ``deliveries``, ``stored_sha256``, ``bundle``, ``version``,
        ``manifest_sha256``, ``weights_sha256``, ``mlflow_run`` and ``dataset_digest`` (``None`` where unknown), and of
        a file ``says``: what the object itself states.

    Raises:
        PacsError: ``TRACE_UNREADABLE``, ``TRACE_UNKNOWN`` for an object that the site did not make.
    """
    uid, says = (file_or_uid, None) if _UID.fullmatch(file_or_uid) else _read(Path(file_or_uid))
    of_report = select(reports.c.seg_sha256).where(reports.c.sop_instance_uid == uid)
    with reading(engine) as connection:
        meant = (jobs.c.seg_sop_uid == uid) | jobs.c.seg_sha256.in_(of_report)
        job = connection.execute(select(jobs).where(meant)).first()
        known = {} if job is None else _known_bundles(site, connection)
    if job is None:
        hint = f"It says of itself: {says}." if says else None
        raise PacsError("TRACE_UNKNOWN", "no job of this site made this object.", hint=hint)
    return {
        "job": job.id,
        "state": job.state,
        "revision": job.revision_id,
        "deliveries": deliveries_of(engine, job.id),
        "stored_sha256": job.seg_sha256,
        "bundle": job.bundle,
        **(known.get(job.bundle_digest) or {"manifest_sha256": job.bundle_digest, **dict.fromkeys(_FACTS)}),
        "says": says,
    }


def trace_weights(
    site: Site, engine: Engine, *, weights: str | None = None, run: str | None = None
) -> list[dict[str, Any]]:
    """What ran with some weights: each bundle of this site, now or before, that has them.

    Args:
        site: its settings.
        engine: of its database.
        weights: the beginning of the weights' sha256.
        run: an MLflow run, as the manifests of bundles name it.

    Returns:
        ``bundle``, ``manifest_sha256``, ``version``, ``weights_sha256``, ``mlflow_run``, ``dataset_digest``,
        ``in_use`` (``yes``, ``shadow`` or ``no``: whether the site's settings lead to it now), ``jobs`` (state →
        count), ``deliveries`` (destination → confirmed objects), ``last_result`` (UTC, ISO 8601).

    Raises:
        PacsError: ``TRACE_UNKNOWN`` when there is none.
    """
    with reading(engine) as connection:
        found = [
            {**facts, **_used(site, connection, facts["bundle"], digest)}
            for digest, facts in _known_bundles(site, connection).items()
            if (run and facts["mlflow_run"] == run) or (weights and str(facts["weights_sha256"]).startswith(weights))
        ]
    if not found:
        hint = "`accunet registry list` tells the runs of models; manifests without a run have weights alone."
        raise PacsError("TRACE_UNKNOWN", "no bundle of this site, now or before, has them.", hint=hint)
    return found


@lru_cache(maxsize=64)
def bundle_facts(folder: Path, digest: str) -> dict[str, str | None]:
    """What the manifest with this digest in a bundle's folder says, each ``None`` where it is another by now."""
    facts: dict[str, str | None] = {"manifest_sha256": digest, **dict.fromkeys(_FACTS)}
    try:
        manifest = read_manifest(folder) if manifest_digest(folder) == digest else None
    except BundleError:
        manifest = None
    if manifest is None:
        return facts
    weights = manifest.files.get(WEIGHTS.as_posix())
    return facts | {
        "version": manifest.version,
        "weights_sha256": None if weights is None else weights.sha256,
        "mlflow_run": manifest.mlflow_run,
        "dataset_digest": manifest.dataset_digest,
    }


def _known_bundles(site: Site, connection: Connection) -> dict[str, dict[str, Any]]:
    """Manifest's digest → facts, of what made results and of what the settings lead to now."""
    found: dict[str, dict[str, Any]] = {}
    for rule in site.bundles:
        if digest := _digest_now(rule):
            found[digest] = {"bundle": rule.name, **bundle_facts(find_bundle(rule.bundle), digest)}
    for row in connection.execute(select(bundles)):
        facts = {name: getattr(row, name) for name in ("manifest_sha256", *_FACTS)}
        found[row.manifest_sha256] = {"bundle": row.name, **facts}
    return found


def _digest_now(rule: BundleRule) -> str | None:
    try:
        return manifest_digest(find_bundle(rule.bundle))
    except BundleError:
        return None


def _used(site: Site, connection: Connection, bundle: str, digest: str) -> dict[str, Any]:
    own = (jobs.c.bundle == bundle) & (jobs.c.bundle_digest == digest)
    states = connection.execute(select(jobs.c.state, func.count()).where(own).group_by(jobs.c.state))
    sent = select(deliveries.c.destination, func.count()).join(jobs, jobs.c.id == deliveries.c.job_id)
    sent = sent.where(own, deliveries.c.state == "confirmed").group_by(deliveries.c.destination)
    last = connection.execute(select(func.max(jobs.c.changed_at)).where(own, jobs.c.state == "done")).scalar()
    rule = next((one for one in site.bundles if one.name == bundle and _digest_now(one) == digest), None)
    return {
        "in_use": "no" if rule is None else "shadow" if rule.shadow else "yes",
        "jobs": {state: int(count) for state, count in states},
        "deliveries": {destination: int(count) for destination, count in connection.execute(sent)},
        "last_result": None if last is None else datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"),
    }


def _read(file: Path) -> tuple[str, dict[str, str]]:
    try:
        ds = pydicom.dcmread(file, stop_before_pixels=True)
    except (OSError, InvalidDicomError) as error:
        raise PacsError("TRACE_UNREADABLE", "this is neither a DICOM file nor a UID.", path=file) from error
    says = {}
    for item in ds.get("ContributingEquipmentSequence") or ():
        if not str(item.get("ContributionDescription", "")).startswith("Segmentation"):
            continue  # the libraries that wrote it
        says = {
            "algorithm": str(item.get("ManufacturerModelName", "")),
            "version": str(item.get("SoftwareVersions", "")),
            "digests": str(item.get("ContributionDescription", "")),
        }
    return str(ds.get("SOPInstanceUID", "")), says
