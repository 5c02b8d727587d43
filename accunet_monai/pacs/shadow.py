"""How a bundle in shadow mode compares with those that deliver: on the same revisions, voxel by voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Engine, select

from accunet_monai.errors import AccunetError
from accunet_monai.pacs.database import reading
from accunet_monai.pacs.decoding import read_image
from accunet_monai.pacs.results import scratch, stored_file
from accunet_monai.pacs.settings import Site
from accunet_monai.pacs.storage import Storage
from accunet_monai.pacs.tables import jobs
from accunet_monai.volumes import read_seg


def compare_shadow(site: Site, engine: Engine, bundle: str, limit: int = 100) -> list[dict[str, Any]]:
    """The results of a bundle in shadow mode beside those of the bundles that delivered for the same revision.

    Returns:
        The newest first: ``shadow_job``, ``live_job``, ``live_bundle``, ``voxels`` of the image, ``differing`` (another
        label) and ``dice``: label number → Dice of the two, ``None`` where neither has the label. Of a pair that
        cannot be compared, as when retention removed its images, the jobs and the ``code`` that says why.
    """
    shadow, live = jobs.alias(), jobs.alias()
    pairs = select(
        shadow.c.id, shadow.c.revision_id, shadow.c.seg_file, shadow.c.seg_sha256,
        live.c.id.label("live_id"), live.c.bundle.label("live_bundle"),
        live.c.seg_file.label("live_file"), live.c.seg_sha256.label("live_sha256"),
    ).join(live, live.c.revision_id == shadow.c.revision_id)  # fmt: skip
    both = (shadow.c.shadow == 1) & (live.c.shadow == 0) & shadow.c.seg_file.is_not(None) & live.c.seg_file.is_not(None)
    query = pairs.where(both, shadow.c.bundle == bundle).order_by(shadow.c.changed_at.desc()).limit(limit)
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return [_compared(site, engine, row) for row in rows]


def _compared(site: Site, engine: Engine, row: Any) -> dict[str, Any]:
    which = {"shadow_job": row.id, "live_job": row.live_id, "live_bundle": row.live_bundle}
    try:
        return which | _comparison(site, engine, row)
    except AccunetError as error:
        return which | {"code": error.code}
    except OSError:
        return which | {"code": "RESULT_UNREADABLE"}


def _comparison(site: Site, engine: Engine, row: Any) -> dict[str, Any]:
    files = stored_file(site, row.seg_file, row.seg_sha256), stored_file(site, row.live_file, row.live_sha256)
    with scratch(site) as folder:
        Storage(site.storage, site.limits).checkout(engine, row.revision_id, folder / "series")
        image = read_image(folder / "series")
        one, other = (read_seg(file, like=image) for file in files)
    labels = sorted({segment.number for seg in (one, other) for segment in seg.segments})
    return {
        "voxels": image.array.size,
        "differing": int(np.count_nonzero(one.label_map != other.label_map)),
        "dice": {label: _dice(one.label_map == label, other.label_map == label) for label in labels},
    }


def _dice(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float | None:
    size = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / size if size else None
