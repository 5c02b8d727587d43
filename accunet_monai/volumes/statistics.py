"""Numbers of a label map: how much of each label there is, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.volume import Grid, Volume


def label_statistics(
    label_map: npt.NDArray[Any], volume: Volume | Grid, label_names: Mapping[int, str] | None = None
) -> list[dict[str, Any]]:
    """One dictionary per label, in label order; 0 is background and left out.

    Args:
        label_map: (X, Y, Z) integers or booleans on the grid of ``volume``.
        volume: gives the placement.
        label_names: label → name. Named labels that do not occur are listed with 0 voxels and no centroid.

    Returns:
        Dictionaries with ``label``, ``name``, ``voxels``, ``volume_ml`` and ``centroid_ras`` (three mm, the mean of the
        voxel centres; ``None`` without voxels).

    Raises:
        VolumeError: ``LABEL_NOT_INTEGER`` or ``LABEL_GRID``.
    """
    if label_map.dtype.kind not in "biu":
        raise VolumeError("LABEL_NOT_INTEGER", f"the label map is of type {label_map.dtype}, expected integers.")
    if label_map.shape != volume.shape:
        raise VolumeError("LABEL_GRID", f"the label map is {label_map.shape}, the volume {volume.shape}.")
    names = dict(label_names or {})
    labels = {int(value) for value in np.unique(label_map)} | set(names)
    return [_of_one(label, names.get(label, f"label {label}"), label_map, volume) for label in sorted(labels - {0})]


def _of_one(label: int, name: str, label_map: npt.NDArray[Any], volume: Volume | Grid) -> dict[str, Any]:
    indices = np.argwhere(label_map == label)
    voxel_ml = abs(float(np.linalg.det(volume.affine_ras[:3, :3]))) / 1000.0
    centroid = None
    if len(indices):
        x, y, z = volume.affine_ras[:3, :3] @ indices.mean(axis=0) + volume.affine_ras[:3, 3]
        centroid = (float(x), float(y), float(z))
    return {
        "label": label,
        "name": name,
        "voxels": len(indices),
        "volume_ml": len(indices) * voxel_ml,
        "centroid_ras": centroid,
    }
