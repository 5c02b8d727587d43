"""The MNI152 average T1 with its tissues as a dataset of one case, to evaluate what was trained on made volumes."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from accunet_monai.training.synthesis import described, mni152_t1, write_image
from accunet_monai.volumes import Grid, write_label_map

CASE = "mni152_t1"
_ABOUT = "skull-stripped average of 152 people; reference: argmax of nilearn's tissue maps"


def make_average_dataset(folder: str | os.PathLike[str], resolution_mm: int = 2) -> Path:
    """Write the average T1 and argmax(background, CSF, grey, white matter) in the Decathlon's layout.

    A folder that already holds something is left as it is; a new one appears complete or not at all.

    Args:
        folder: to make; its parents are made too.
        resolution_mm: edge of the voxels, whole mm.

    Returns:
        The path of ``dataset.json``.

    Raises:
        DatasetError: ``NILEARN_MISSING``.
    """
    target = Path(folder)
    if not (target / "dataset.json").is_file() and not (target.is_dir() and any(target.iterdir())):
        image, reference, affine_ras = mni152_t1(resolution_mm)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            made = Path(temporary) / "made"
            write_image(made / "imagesTr" / f"{CASE}.nii.gz", image * 1000, affine_ras)
            write_label_map(made / "labelsTr" / f"{CASE}.nii.gz", reference, Grid(reference.shape, affine_ras))
            description = described("MNI152 average T1", _ABOUT, [f"{CASE}.nii.gz"])
            (made / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            if target.exists():
                target.rmdir()
            made.rename(target)
    return target / "dataset.json"
