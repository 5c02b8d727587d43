"""Affines: checks with named tolerances, spacing, axis codes, LPS ↔ RAS.

An affine is (4, 4) and maps voxel indices (i, j, k, 1), integers at voxel centres, to millimetres.
"""

# mypy: untyped-calls-exclude=nibabel
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError

FloatArray = npt.NDArray[np.float64]

MIN_SPACING_MM = 1e-6
"""A voxel edge shorter than a nanometre is a damaged header, not microscopy."""

MAX_SPACING_MM = 1e6
"""A voxel edge longer than a kilometre is a damaged header."""

MIN_AXES_DETERMINANT = 1e-3
"""Smallest absolute determinant of the three unit axis directions. 1 is perpendicular; a gantry tilt of 30 degrees has
0.87; below a thousandth two axes point the same way and the inverse amplifies rounding a thousandfold."""

GRID_TOLERANCE_VOXELS = 1e-3
"""Two grids are the same when no corner of the volume moves by more than a thousandth of a voxel's smallest edge:
float32 headers round by less than that, and an interpolation over that distance is not visible."""

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def checked_affine(affine: npt.ArrayLike, path: str | os.PathLike[str] | None = None) -> FloatArray:
    """A read-only float64 copy of a usable affine.

    Raises:
        VolumeError: ``VOLUME_AFFINE`` when it is not (4, 4), not finite, its last row is not 0 0 0 1, a spacing is
            absurd or the axes (nearly) lie in one plane.
    """
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise VolumeError("VOLUME_AFFINE", f"the affine is not a matrix of numbers ({error}).", path=path) from error
    problem = _problem_of(matrix)
    if problem:
        raise VolumeError("VOLUME_AFFINE", f"the affine cannot place the volume: {problem}.", path=path)
    matrix.flags.writeable = False
    return matrix


def spacing_of(affine: FloatArray) -> tuple[float, float, float]:
    """Voxel edge lengths in mm, in array-axis order."""
    with np.errstate(over="ignore"):
        lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def axcodes_of(affine_ras: FloatArray) -> tuple[str, str, str]:
    """Where each array axis points to, e.g. ``("R", "A", "S")``; for oblique grids the nearest direction."""
    first, second, third = nib.orientations.aff2axcodes(affine_ras)
    return str(first), str(second), str(third)


def lps_from_ras(affine: FloatArray) -> FloatArray:
    """The same placement in DICOM's and ITK's LPS millimetres. It is its own inverse: LPS goes to RAS alike."""
    result: FloatArray = _LPS_FROM_RAS @ affine
    return result


def largest_shift_mm(first: FloatArray, second: FloatArray, shape: Sequence[int]) -> float:
    """How far, in mm, the two affines place the farthest apart of the eight corner voxels of ``shape``."""
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    homogeneous = np.concatenate([corners, np.ones((len(corners), 1))], axis=1)
    shifts = homogeneous @ (first - second).T
    return float(np.linalg.norm(shifts[:, :3], axis=1).max())


def same_placement(first: FloatArray, second: FloatArray, shape: Sequence[int]) -> bool:
    """Whether two affines place a volume of ``shape`` alike, within ``GRID_TOLERANCE_VOXELS``."""
    return largest_shift_mm(first, second, shape) <= GRID_TOLERANCE_VOXELS * min(spacing_of(first))


def _problem_of(matrix: npt.NDArray[Any]) -> str | None:
    if matrix.shape != (4, 4):
        return f"its shape is {matrix.shape}, expected (4, 4)"
    if not np.isfinite(matrix).all():
        return "it contains values that are not finite"
    if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):
        return f"its last row is {matrix[3].tolist()}, expected 0 0 0 1"
    spacing = np.array(spacing_of(matrix))
    if not ((spacing >= MIN_SPACING_MM) & (spacing <= MAX_SPACING_MM)).all():
        return f"the voxel edges are {spacing.tolist()} mm, expected {MIN_SPACING_MM} to {MAX_SPACING_MM}"
    determinant = abs(float(np.linalg.det(matrix[:3, :3] / spacing)))
    if determinant < MIN_AXES_DETERMINANT:
        return f"it is singular, its axes lie in one plane (determinant of the directions {determinant:.2g})"
    return None
