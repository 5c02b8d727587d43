"""A site of tiny parts: a bundle that takes milliseconds, made series, settings, and series received by hand."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import yaml
from sqlalchemy import Engine, insert

from accunet_monai.bundle import find_bundle, manifest_digest, write_manifest
from accunet_monai.pacs.database import insert_new, now, open_database
from accunet_monai.pacs.pseudonyms import make_key
from accunet_monai.pacs.settings import Site, read_site
from accunet_monai.pacs.storage import Storage
from accunet_monai.pacs.tables import instances, jobs, revision_instances, revisions, series
from accunet_monai.volumes import Volume
from tests import made_bundle
from tests.batch.tiny import tiny_bundle
from tests.volumes.nifti_as_dicom import write_series

SHAPE = (16, 16, 4)


def site_file(folder: Path, bundle: Path | str | None = None, **changes: Any) -> Path:
    """A site's settings in a folder, with a bundle of random weights unless one is named."""
    folder.mkdir(parents=True, exist_ok=True)
    if bundle is None:
        bundle = verified_bundle(folder)
    if not (folder / "site.key").exists():
        make_key(folder / "site.key")
    settings: dict[str, Any] = {
        "ae_title": "ACCUNET",
        "port": 11112,
        "storage": str(folder / "storage"),
        "key_file": str(folder / "site.key"),
        "bundles": [{"bundle": str(bundle), "when": {"tag": "Modality", "equals": "MR"}, "shadow": True}],
        "jobs": {"lease_seconds": 2, "renew_seconds": 0.5, "backoff_seconds": 0.2, "device": "cpu"},
        "limits": {"keep_free_bytes": 0},
    }
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return file


def verified_bundle(folder: Path) -> Path:
    """The tiny bundle as one that a site takes: a manifest, and no config that says other than inference."""
    bundle = tiny_bundle(folder)
    for name in ("train", "evaluate"):
        (bundle / "configs" / f"{name}.yaml").unlink(missing_ok=True)
    write_manifest(bundle)
    return bundle


def to(
    pacs: dict[str, Any], kind: str = "dimse", bundle: Path | str = "copied_bundle", **profile: Any
) -> dict[str, Any]:
    """The settings' parts that deliver a bundle's results to a PACS."""
    return {
        "pacs": [{"name": "archive", **pacs}],
        "destinations": [{"name": "archive", "pacs": "archive", "kind": kind, **profile}],
        "bundles": [
            {"bundle": str(bundle), "when": {"tag": "Modality", "equals": "MR"}, "destinations": ["archive"]},
        ],
    }


def made_site(folder: Path, **changes: Any) -> Site:
    return read_site(site_file(folder, **changes))


def opened(site: Site) -> Engine:
    """The site's database, with its storage made ready while it is empty."""
    if site.database is None:
        site.storage.mkdir(parents=True, exist_ok=True)
    engine = open_database(site.database_url)
    Storage(site.storage, site.limits).prepare(engine)
    return engine


def made_series(folder: Path, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Path:
    """A classic MR series in a folder."""
    array = made_bundle.made_volume(seed, shape)[0].astype(np.float32)
    affine = np.array([[0.9, 0, 0, -7], [0, 1.1, 0, 3], [0, 0, 1.2, 11], [0, 0, 0, 1.0]])
    write_series(folder, Volume(np.clip(array, 0, None), affine), f"made {seed}")
    return folder


def received(engine: Engine, site: Site, folder: Path, *, replaces: str | None = None, leave: int = 0) -> str:
    """Puts a series' files and rows where receiving puts them, with a queued job; returns the job's id.

    Args:
        engine, site: of the site.
        folder: of the series.
        replaces: the revision that this is a newer one of.
        leave: so many of its instances are left out.
    """
    rule, at = site.bundles[0], now()
    files = sorted(folder.iterdir())[: -leave or None]
    heads = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    rows = []
    for file, head in zip(files, heads, strict=True):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        name = f"instances/{digest[:2]}/{digest}.dcm"
        (site.storage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, site.storage / name)
        rows.append(
            {
                "sop_instance_uid": head.SOPInstanceUID,
                "series_uid": head.SeriesInstanceUID,
                "study_uid": head.StudyInstanceUID,
                "sop_class_uid": head.SOPClassUID,
                "transfer_syntax": head.file_meta.TransferSyntaxUID,
                "sha256": digest,
                "size": file.stat().st_size,
                "file": name,
                "received_at": at,
                "source": "folder",
            }
        )
    uid, study = rows[0]["series_uid"], rows[0]["study_uid"]
    revision = hashlib.sha256(f"{uid}{sorted(row['sha256'] for row in rows)}".encode()).hexdigest()
    digest = str(manifest_digest(find_bundle(rule.bundle)))
    job = hashlib.sha256(f"{revision}{rule.name}{digest}".encode()).hexdigest()
    with engine.begin() as connection:
        insert_new(connection, instances, rows)
        whole = {"series_uid": uid, "study_uid": study, "patient_key": "0", "modality": "MR", "priority": 0}
        insert_new(connection, series, whole | {"first_received_at": at, "last_received_at": at, "complete_at": at})
        number = 1 if replaces is None else 2
        head = {"id": revision, "series_uid": uid, "number": number, "made_at": at, "instances_digest": "0"}
        connection.execute(insert(revisions).values(**head, replaces=replaces))
        links = [{"revision_id": revision, "sop_instance_uid": row["sop_instance_uid"]} for row in rows]
        connection.execute(insert(revision_instances), links)
        state = {"state": "queued", "attempts": 0, "priority": 0, "made_at": at, "changed_at": at}
        what = {"id": job, "revision_id": revision, "bundle": rule.name, "bundle_digest": digest}
        connection.execute(insert(jobs).values(**what, **state, shadow=int(rule.shadow)))
    return job
