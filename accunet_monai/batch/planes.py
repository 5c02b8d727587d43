"""Series that are stacks of planes but no grid (tilted, uneven, gapped), for networks that see one plane at a time."""

from __future__ import annotations

import numpy as np

from accunet_monai.bundle import Predictor
from accunet_monai.errors import BundleError
from accunet_monai.inferers import SliceInferer
from accunet_monai.volumes import PlaneStack, Volume

_KEEPS_THE_GRID = frozenset(
    {
        *("LoadVolumed", "LoadLabelMapd", "Orientationd", "OrientVolumed", "ClipPercentilesd", "WindowCTd"),
        *("ScaleIntensityRangePercentilesd", "ScaleIntensityRanged", "NormalizeIntensityd", "ZScoreForegroundd"),
    }
)
"""Transforms that change neither the size nor the spacing of slices: flips and permutations, and intensities."""


_PLANES = ("sagittal", "coronal", "axial")


def as_volume(planes: PlaneStack, predictor: Predictor, problem: str) -> Volume:
    """The planes as if they lay evenly and straight above one another, for a bundle to which that makes no difference.

    The label map of such a volume belongs to the planes, one slice to each.

    Args:
        planes: as ``read_planes`` gave them.
        predictor: whose network sees single planes, cut along the axis that the planes are stacked along, and whose
            preprocessing leaves the grid as it is.
        problem: why the planes are no grid.

    Raises:
        BundleError: ``PLANES_UNFIT`` for any other bundle.
    """
    affine = np.array(planes.affines_ras[0])
    gaps = np.abs(np.diff(planes.depths))
    affine[:3, 2] *= float(np.median(gaps)) if len(gaps) else 1.0
    volume = Volume(planes.array, affine, planes.provenance)
    reason = _unfit(predictor, int(np.argmax(np.abs(affine[:3, 2]))))
    if reason:
        raise BundleError(
            "PLANES_UNFIT",
            f"the series is no regular grid ({problem}), and the bundle cannot take it plane by plane: {reason}.",
            path=planes.provenance.get("path"),
            hint="Resample it first: read_series(…, irregular='resample').",
        )
    return volume


def _unfit(predictor: Predictor, axis: int) -> str | None:
    """Why a bundle depends on more than single planes stacked along an axis of RAS."""
    inferer = predictor.inferer
    if not isinstance(inferer, SliceInferer) or inferer.context_slices:
        return "its network sees more than one plane at a time"
    if inferer.axes != (axis,):
        cut = " and ".join(_PLANES[one] for one in inferer.axes)
        return f"it cuts {cut} slices, the planes are {_PLANES[axis]}"
    names = [type(transform).__name__ for transform in getattr(predictor.preprocessing, "transforms", ())]
    moving = [name for name in names if name not in _KEEPS_THE_GRID]
    return f"it uses {', '.join(moving)}" if moving else None
