"""Computing a job's result again, to see whether the same comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, Row

from accunet_monai.errors import PacsError
from accunet_monai.pacs.replacing import replaced_files
from accunet_monai.pacs.results import scratch, stored_file
from accunet_monai.pacs.segmenting import Models, profile_of, segment
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.storage import Storage
from accunet_monai.volumes import PlaneStack, Volume, read_seg


@dataclass(frozen=True)
class Comparison:
    """Two results of the same series.

    Args:
        identical: byte for byte.
        differing: voxels with another label.
        voxels: of the image.
    """

    identical: bool
    differing: int
    voxels: int


def replay(site: Site, engine: Engine, job: Row[Any]) -> Comparison:
    """Compute a job's SEG again and compare it with the stored one; neither the job nor the stored file changes.

    Raises:
        AccunetError: all that segmenting raises, ``JOB_STATE`` for a job without a result, and what
            :func:`stored_file` raises.
    """
    if job.seg_sha256 is None:
        raise PacsError("JOB_STATE", f"the job is {job.state} and has no result to compare with.")
    stored = stored_file(site, job.seg_file, job.seg_sha256)
    models = Models(site)
    rule = models.rule(job.bundle)
    model = models.get(job.bundle, job.bundle_digest)
    with scratch(site) as folder:
        Storage(site.storage, site.limits).checkout(engine, job.revision_id, folder / "series")
        replaced = next(iter(replaced_files(site, engine, job.id)), None)
        image = segment(folder / "series", folder / "seg.dcm", model, profile_of(site, rule), rule.planes, replaced)
        return compare(stored, folder / "seg.dcm", image)


def compare(one: Path, other: Path, image: Volume | PlaneStack) -> Comparison:
    """Two SEG files of the same image, by bytes and voxel by voxel."""
    if one.read_bytes() == other.read_bytes():
        return Comparison(True, 0, image.array.size)
    first, second = (read_seg(file, like=image).label_map for file in (one, other))
    return Comparison(False, int(np.count_nonzero(first != second)), image.array.size)
