"""Sheared, uneven and gapped stacks → an even grid at right angles, by linear interpolation.

The grid keeps the planes' pixel spacing and directions, starts at the first plane, ends at the last, and is as wide as
all planes together. Each plane is moved within itself to where it lies; between planes values are mixed by distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_geometry import Stack, grid_of, missing_after
from accunet_monai.volumes.dicom_refusals import refusal
from accunet_monai.volumes.geometry import FloatArray

IRREGULAR = frozenset({"GEOM_TILT", "GEOM_MISSING_SLICE", "GEOM_NONUNIFORM"})
"""What resampling mends. Duplicates, a lacking thickness and contradictory references it does not."""

MAX_SLICES = 1 << 16
"""An even grid of more slices is refused: two planes a hair apart in a deep stack ask for millions."""

WHOLE_PIXEL = 1e-3
"""A plane that lies on the grid to a thousandth of a pixel, or of a slice distance, is not interpolated."""


@dataclass(frozen=True)
class Resampling:
    """How to bring a stack's planes onto an even grid.

    Args:
        stack: the planes.
        shape: (X, Y, Z) of the grid.
        shifts: (N, 2) where each plane's first pixel lies in the grid, in columns and rows.
        depths: (Z,) mm of the grid's slices along the normal.
        affine_lps: the grid's.
    """

    stack: Stack
    shape: tuple[int, int, int]
    shifts: FloatArray
    depths: FloatArray
    affine_lps: FloatArray

    def apply(self, planes: npt.NDArray[np.float32], outside: float, max_bytes: int) -> npt.NDArray[np.float32]:
        """(X, Y, Z) of planes (columns, rows, N); ``outside`` where no plane reaches.

        Raises:
            SeriesError: ``PIXEL_TOO_LARGE``.
        """
        size = math.prod(self.shape) * np.dtype(np.float32).itemsize
        if size > max_bytes:
            message = f"the resampled grid {self.shape} takes {size} bytes, allowed are {max_bytes}"
            raise refusal("PIXEL_TOO_LARGE", message, self.stack.frames)
        x, y, z = self.shape
        grid = np.empty((z, y, x), np.float32).transpose(2, 1, 0)
        below = np.clip(np.searchsorted(self.stack.depths, self.depths, side="right") - 1, 0, len(self.shifts) - 2)
        for k, lower in enumerate(below):
            low, high = self.stack.depths[lower], self.stack.depths[lower + 1]
            weight = float(np.clip((self.depths[k] - low) / (high - low), 0.0, 1.0))
            if weight <= WHOLE_PIXEL or weight >= 1 - WHOLE_PIXEL:
                grid[..., k] = self._placed(planes, lower + round(weight), outside)
            else:
                near, far = (self._placed(planes, n, outside) for n in (lower, lower + 1))
                grid[..., k] = near * (1 - weight) + far * weight
        return grid

    def _placed(self, planes: npt.NDArray[np.float32], k: int, outside: float) -> npt.NDArray[np.float64]:
        """Plane ``k`` at its place in a plane of the grid."""
        x, y, _ = self.shape
        canvas = np.full((x, y), outside, np.float64)
        columns, rows = planes.shape[:2]
        plane = planes[..., k].astype(np.float64)
        i, j = np.floor(self.shifts[k]).astype(int)
        u, v = self.shifts[k] - (i, j)
        padded = np.pad(plane, 1, constant_values=outside)
        along = padded[1:, :] * (1 - u) + padded[:-1, :] * u
        both = along[:, 1:] * (1 - v) + along[:, :-1] * v
        canvas[i : i + columns + 1, j : j + rows + 1] = both[: x - i, : y - j]
        return canvas


def regular_grid(stack: Stack) -> tuple[FloatArray, Resampling | None]:
    """The affine (LPS) of an even grid, and how to get there; None where the stack is one already.

    Raises:
        SeriesError: as :func:`grid_of`, but for what resampling mends.
    """
    try:
        return grid_of(stack), None
    except SeriesError as error:
        if error.code not in IRREGULAR:
            raise
    plan = _plan(stack)
    return plan.affine_lps, plan


def _plan(stack: Stack) -> Resampling:
    gaps = np.diff(stack.depths)
    total = float(gaps.sum())
    spacing = float(gaps.min() if missing_after(gaps).any() else np.median(gaps))
    if total / spacing > MAX_SLICES:
        message = f"an even grid at the smallest distance of {spacing:.3g} mm has {total / spacing:.3g} slices"
        raise refusal("PIXEL_TOO_LARGE", message, stack.frames)
    steps = max(1, round(total / spacing))
    spacing = total / steps
    offsets = stack.positions - stack.positions[0]
    edges = np.array([stack.spacing[1], stack.spacing[0]])
    shifts = np.stack([offsets @ stack.along_row, offsets @ stack.along_column], axis=1) / edges
    shifts = np.where(np.abs(shifts - np.rint(shifts)) <= WHOLE_PIXEL, np.rint(shifts), shifts)
    first = np.floor(shifts.min(axis=0))
    extra = np.ceil(shifts.max(axis=0)) - first
    frame = stack.frames[0]
    origin = stack.positions[0] + first[0] * edges[0] * stack.along_row + first[1] * edges[1] * stack.along_column
    return Resampling(
        stack=stack,
        shape=(frame.columns + int(extra[0]), frame.rows + int(extra[1]), steps + 1),
        shifts=shifts - first,
        depths=stack.depths[0] + spacing * np.arange(steps + 1),
        affine_lps=stack.affine_lps(origin, stack.normal * spacing),
    )
