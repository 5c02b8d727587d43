"""Label maps cleaned label by label: small pieces and all but the largest dropped, holes filled. Through SimpleITK."""

# mypy: untyped-calls-exclude=SimpleITK
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK


def clean_labels(
    label_map: npt.NDArray[Any],
    voxel_mm3: float,
    *,
    minimum_volume_mm3: Mapping[int, float] | None = None,
    largest_component: Collection[int] = (),
    fill_holes: Collection[int] = (),
) -> npt.NDArray[Any]:
    """A cleaned copy of a label map; dropped voxels become background.

    For each label in turn: pieces below its minimum volume go, then all but the largest piece (the first in array order
    of several equally large ones), then background that it encloses becomes part of it. Voxels belong to one piece when
    they touch at a face, edge or corner; a hole touches the rest of the background at no face. Other labels stay, those
    within a hole included.

    Args:
        label_map: (X, Y, Z) integers, 0 is background.
        voxel_mm3: volume of a voxel.
        minimum_volume_mm3: label → smallest volume that stays.
        largest_component: labels of which only the largest piece stays.
        fill_holes: labels that are filled.

    Example:
        >>> label_map = np.array([[[1, 0, 0, 2, 2, 0, 2]]])
        >>> clean_labels(label_map, 8.0, largest_component=[2], minimum_volume_mm3={1: 10})
        array([[[0, 0, 0, 2, 2, 0, 0]]])
    """
    minimum = dict(minimum_volume_mm3 or {})
    result = np.array(label_map)
    for label in sorted({*minimum, *largest_component, *fill_holes}):
        box = _box(result == label)
        if box is None:
            continue
        inside = result[box]
        mask = inside == label
        kept = _kept_pieces(mask, minimum.get(label, 0.0) / voxel_mm3, label in largest_component)
        inside[mask & ~kept] = 0
        if label in fill_holes:
            inside[_filled(kept) & (inside == 0)] = label
    return result


def _box(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box around a mask: what is done inside of it costs little for small structures."""
    sides = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not occupied.size:
            return None
        sides.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(sides)


def _kept_pieces(mask: npt.NDArray[np.bool_], smallest_voxels: float, only_largest: bool) -> npt.NDArray[np.bool_]:
    if smallest_voxels <= 0 and not only_largest:
        return mask
    pieces = SimpleITK.GetArrayFromImage(SimpleITK.ConnectedComponent(_image(mask), True))
    sizes = np.bincount(pieces.ravel())
    kept = sizes >= smallest_voxels
    kept[0] = False
    if only_largest and kept.any():
        kept &= np.arange(len(sizes)) == int(np.argmax(np.where(kept, sizes, 0)))
    result: npt.NDArray[np.bool_] = kept[pieces]
    return result


def _filled(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    filled = SimpleITK.BinaryFillhole(_image(mask), fullyConnected=False, foregroundValue=1)
    result: npt.NDArray[np.bool_] = SimpleITK.GetArrayFromImage(filled) != 0
    return result


def _image(mask: npt.NDArray[np.bool_]) -> SimpleITK.Image:
    return SimpleITK.GetImageFromArray(mask.astype(np.uint8))
