"""From a SEG in the PACS back to what made it: job, bundle, weights, training run and data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from sqlalchemy import Engine, select

from accunet_monai.bundle import WEIGHTS, find_bundle, manifest_digest, read_manifest
from accunet_monai.errors import BundleError, PacsError
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.jobs import deliveries_of
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.tables import jobs

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def trace(site: Site, engine: Engine, file_or_uid: str) -> dict[str, Any]:
    """What is known of a SEG object.

    Args:
        site: its settings.
        engine: of its database.
        file_or_uid: a SEG file, or a SOPInstanceUID.

    Returns:
        ``job``, ``state``, ``revision``, ``deliveries``, ``bundle``, ``version``, ``manifest_sha256``,
        ``weights_sha256``, ``mlflow_run`` and ``dataset_digest`` (``None`` where unknown), ``stored_sha256``, and of a
        file ``says``: what the object itself states; ``bundle_present`` is false when the site's bundle is another by
        now, and what only its manifest knows is then unknown.

    Raises:
        PacsError: ``TRACE_UNREADABLE``, ``TRACE_UNKNOWN`` for an object that the site did not make.
    """
    uid, says = (file_or_uid, None) if _UID.fullmatch(file_or_uid) else _read(Path(file_or_uid))
    with reading(engine) as connection:
        job = connection.execute(select(jobs).where(jobs.c.seg_sop_uid == uid)).first()
    if job is None:
        hint = f"It says of itself: {says}." if says else None
        raise PacsError("TRACE_UNKNOWN", "no job of this site made this object.", hint=hint)
    return {
        "job": job.id,
        "state": job.state,
        "revision": job.revision_id,
        "deliveries": deliveries_of(engine, job.id),
        "stored_sha256": job.seg_sha256,
        **_bundle(site, job.bundle, job.bundle_digest),
        "says": says,
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


def _bundle(site: Site, name: str, digest: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"bundle": name, "manifest_sha256": digest, "bundle_present": False}
    facts |= dict.fromkeys(("version", "weights_sha256", "mlflow_run", "dataset_digest"))
    rule = next((rule for rule in site.bundles if rule.name == name), None)
    if rule is None:
        return facts
    try:
        folder = find_bundle(rule.bundle)
        manifest = read_manifest(folder)
    except BundleError:
        return facts
    if manifest is None or manifest_digest(folder) != digest:
        return facts
    weights = manifest.files.get(WEIGHTS.as_posix())
    return facts | {
        "bundle_present": True,
        "version": manifest.version,
        "weights_sha256": None if weights is None else weights.sha256,
        "mlflow_run": manifest.mlflow_run,
        "dataset_digest": manifest.dataset_digest,
    }
