"""`PlaneStack`: ordered planes, each with its own place in the patient. For tilted, irregular and gapped stacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.geometry import FloatArray, checked_affine

UNIT_TOLERANCE = 1e-4
"""How far a normal's length may be from 1 and its products with the unit in-plane axes from 0. Direction cosines come
with at least four decimals; over a plane of 512 pixels of 1 mm this is a twentieth of a millimetre."""


@dataclass(frozen=True, eq=False)
class PlaneStack:
    """Planes in order of their depth, which need not be evenly spaced, parallel above one another, or complete.

    Args:
        array: (X, Y, N) float32, finite: columns, rows, planes; kept as a read-only view.
        affines_ras: (N, 4, 4), pixel (i, j, 0) of a plane → RAS mm; the third column is the plane's unit normal
            (first × second axis, in the DICOM sense of the file's rows and columns). Kept as a read-only copy.
        provenance: as of :class:`~accunet_monai.volumes.Volume`.

    Raises:
        VolumeError: ``PLANES_SHAPE``, ``VOLUME_NONFINITE`` or ``VOLUME_AFFINE``.
    """

    array: npt.NDArray[np.float32]
    affines_ras: FloatArray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.provenance.get("path")
        array, affines = np.asarray(self.array), np.array(self.affines_ras, dtype=np.float64)
        if array.ndim != 3 or array.size == 0 or array.dtype != np.float32 or affines.shape != (array.shape[-1], 4, 4):
            raise VolumeError(
                "PLANES_SHAPE",
                f"expected float32 planes (X, Y, N) and affines (N, 4, 4), found {array.dtype} {array.shape} "
                f"and {affines.shape}.",
                path=path,
            )
        if not all(np.isfinite(array[..., k]).all() for k in range(array.shape[-1])):
            raise VolumeError("VOLUME_NONFINITE", "there are pixels that are NaN or infinite.", path=path)
        for affine in affines:
            _check_plane(checked_affine(affine, path), path)
        view = array.view()
        view.flags.writeable = False
        affines.flags.writeable = False
        object.__setattr__(self, "array", view)
        object.__setattr__(self, "affines_ras", affines)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "provenance": dict(self.provenance)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "provenance": MappingProxyType(state["provenance"])})
        self.array.flags.writeable = False  # pickle does not keep the flag
        self.affines_ras.flags.writeable = False

    def __len__(self) -> int:
        return int(self.array.shape[-1])

    def __repr__(self) -> str:
        x, y, n = self.array.shape
        depth = self.depths
        return f"PlaneStack({n} planes of {x}×{y}, {depth[-1] - depth[0]:.4g} mm deep)"

    @property
    def depths(self) -> FloatArray:
        """(N,) mm of each plane's first pixel along the first plane's normal."""
        result: FloatArray = self.affines_ras[:, :3, 3] @ self.affines_ras[0, :3, 2]
        return result


def _check_plane(affine: FloatArray, path: Any) -> None:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    normal = affine[:3, 2]
    off = max(abs(float(np.linalg.norm(normal)) - 1), float(abs(normal @ axes[:, 0])), float(abs(normal @ axes[:, 1])))
    if off > UNIT_TOLERANCE:
        raise VolumeError(
            "VOLUME_AFFINE", f"a plane's third axis is not its unit normal (off by {off:.2g}).", path=path
        )
