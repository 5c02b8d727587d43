"""`Volume`: an array, where it lies in the patient, and where it came from. Valid once constructed."""

# mypy: untyped-calls-exclude=nibabel
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.geometry import FloatArray, axcodes_of, checked_affine, spacing_of

HEADER_GEOMETRY = "nifti"
"""Key of ``provenance`` that holds a NIfTI header's own geometry fields, so that both of its forms can be written
back unchanged. It describes the file's grid, so it is dropped when the grid changes."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie: ``shape`` (X, Y, Z), ``affine_ras`` (4, 4) voxel → RAS mm, and its source."""

    shape: tuple[int, int, int]
    affine_ras: FloatArray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine_ras", checked_affine(self.affine_ras, self.provenance.get("path")))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "provenance": dict(self.provenance)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "provenance": MappingProxyType(state["provenance"])})


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image or label map with its placement.

    Args:
        array: (X, Y, Z), any real number type, finite; kept as a read-only view (the caller's array is not copied).
        affine_ras: (4, 4), voxel indices → RAS mm; kept as a read-only float64 copy.
        provenance: what is known of the source, e.g. ``path``, ``sha256``, ``format``; ``path`` is named in errors.

    Raises:
        VolumeError: ``VOLUME_NOT_3D``, ``VOLUME_EMPTY``, ``VOLUME_RGB``, ``VOLUME_COMPLEX``, ``VOLUME_DTYPE``,
            ``VOLUME_NONFINITE`` or ``VOLUME_AFFINE``.
    """

    array: npt.NDArray[Any]
    affine_ras: FloatArray
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.provenance.get("path")
        object.__setattr__(self, "array", _checked_array(self.array, path))
        object.__setattr__(self, "affine_ras", checked_affine(self.affine_ras, path))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "provenance": dict(self.provenance)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "provenance": MappingProxyType(state["provenance"])})
        self.array.flags.writeable = False  # pickle does not keep the flag
        self.affine_ras.flags.writeable = False

    def __repr__(self) -> str:
        spacing = "×".join(f"{edge:.4g}" for edge in self.spacing)
        return f"Volume({self.shape} {self.array.dtype}, {spacing} mm, {''.join(self.axcodes)})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along the three array axes."""
        first, second, third = self.array.shape
        return first, second, third

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm, in array-axis order."""
        return spacing_of(self.affine_ras)

    @property
    def axcodes(self) -> tuple[str, str, str]:
        """Where the array axes point to, e.g. ``("R", "A", "S")``."""
        return axcodes_of(self.affine_ras)

    @property
    def centre_ras(self) -> tuple[float, float, float]:
        """RAS mm of the middle of the voxel grid."""
        middle = [(size - 1) / 2 for size in self.shape]
        x, y, z = self.affine_ras[:3, :3] @ middle + self.affine_ras[:3, 3]
        return float(x), float(y), float(z)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres (sheared grids included)."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3]))) / 1000.0

    @property
    def grid(self) -> Grid:
        """Shape and placement without the values."""
        return Grid(self.shape, self.affine_ras, self.provenance)

    def reoriented(self, axcodes: str | Sequence[str] = "RAS") -> Volume:
        """The same voxels with array axes that point to ``axcodes``, by flips and permutations only (exact).

        Oblique grids stay oblique: each axis goes to its nearest direction.

        Raises:
            ValueError: ``axcodes`` does not name one direction of each of L/R, P/A and I/S.
        """
        wanted = tuple(axcodes)
        if sorted("LR" if c in "LR" else "PA" if c in "PA" else "IS" if c in "IS" else c for c in wanted) != [
            "IS",
            "LR",
            "PA",
        ]:
            raise ValueError(f"axcodes must name one of L/R, one of P/A and one of I/S, found {axcodes!r}")
        if wanted == self.axcodes:
            return self
        change = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(self.affine_ras), nib.orientations.axcodes2ornt(wanted)
        )
        return Volume(
            array=nib.orientations.apply_orientation(self.array, change),
            affine_ras=self.affine_ras @ nib.orientations.inv_ornt_aff(change, self.shape),
            provenance={key: value for key, value in self.provenance.items() if key != HEADER_GEOMETRY},
        )


def _checked_array(array: npt.ArrayLike, path: str | os.PathLike[str] | None) -> npt.NDArray[Any]:
    values = np.asarray(array)
    _check_number_type(values.dtype, path)
    if values.ndim != 3:
        raise VolumeError("VOLUME_NOT_3D", f"expected three axes, found shape {values.shape}.", path=path)
    if values.size == 0:
        raise VolumeError("VOLUME_EMPTY", f"there are no voxels in shape {values.shape}.", path=path)
    _check_finite(values, path)
    view = values.view()
    view.flags.writeable = False
    return view


def _check_number_type(dtype: np.dtype[Any], path: str | os.PathLike[str] | None) -> None:
    if dtype.names is not None:
        raise VolumeError("VOLUME_RGB", f"the voxels are colours {dtype.names}, expected one number each.", path=path)
    if dtype.kind == "c":
        raise VolumeError("VOLUME_COMPLEX", f"the voxels are complex ({dtype}), expected real numbers.", path=path)
    if dtype.kind not in "biuf":
        raise VolumeError("VOLUME_DTYPE", f"the voxels are of type {dtype}, expected real numbers.", path=path)


def _check_finite(values: npt.NDArray[Any], path: str | os.PathLike[str] | None) -> None:
    if values.dtype.kind != "f":
        return
    slices = np.moveaxis(values, int(np.argmax(np.abs(values.strides))), 0)  # contiguous ones: little memory, quick
    if all(np.isfinite(one).all() for one in slices):
        return
    finite = np.isfinite(values)
    first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), values.shape))
    raise VolumeError(
        "VOLUME_NONFINITE",
        f"{values.size - int(finite.sum())} of {values.size} voxels are NaN or infinite, the first at {first}.",
        path=path,
        hint="Replace them before use; what they should be cannot be guessed.",
    )
