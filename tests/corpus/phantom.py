"""The truth of the corpus: stacks of planes whose every voxel differs, and the judgement of what a reader made of them.

A value at a place is all that counts. So a reader may order axes and slices as it likes, but a flip, a swap, a shift by
one voxel, an interpolation or a rounded value shows, because the values are a random permutation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

VALUE_TOLERANCE = 1e-3
"""In modality units. float32 holds a CT or MR value to 1e-4; a value rounded to an integer differs by more."""

PLACE_TOLERANCE_MM = 1e-4
"""Decimal strings of 16 characters and float64 affines are a million times better, float32 affines still ten times."""

LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _turned(degrees_about_x: float, degrees_about_z: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    a, b = np.radians(degrees_about_x), np.radians(degrees_about_z)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turned = about_z @ about_x
    return tuple(turned[:, 0]), tuple(turned[:, 1])


L, R, P, A, S, I = (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)  # noqa: E741

AXIS_ALIGNED = {
    "axial-LP": (L, P),
    "axial-RA": (R, A),
    "axial-RP": (R, P),
    "axial-LA": (L, A),
    "sagittal-PI": (P, I),
    "sagittal-AI": (A, I),
    "coronal-LI": (L, I),
    "coronal-RI": (R, I),
}
"""Where the columns of a row, and the rows of a column, run to. The normal is their cross product, so half of these
stacks are to be sorted from head to feet, left to right or back to front."""

OBLIQUE = {"oblique": _turned(20, 0), "double-oblique": _turned(-33, 71)}

ORIENTATIONS = AXIS_ALIGNED | OBLIQUE


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel planes with the truth about them.

    Args:
        values: (K, rows, columns) in modality units. NaN is padding: any value of ``padding`` is right there.
        positions: (K, 3) LPS mm of the centre of each plane's first pixel, in rising order along the normal.
        row: unit vector along which the columns of one row follow each other, LPS.
        column: unit vector along which the rows of one column follow each other, LPS.
        spacing: mm between rows, mm between columns, as in PixelSpacing.
        padding: lowest and highest value that padding may have.
    """

    values: Array
    positions: Array
    row: Array
    column: Array
    spacing: tuple[float, float]
    padding: tuple[float, float] = (0.0, 0.0)

    @property
    def normal(self) -> Array:
        """Unit vector row × column."""
        return np.cross(self.row, self.column)

    @property
    def step(self) -> Array:
        """From the first plane's position to the second one's, mm."""
        return self.positions[1] - self.positions[0]

    def world(self) -> Array:
        """(K, rows, columns, 3) LPS mm of every voxel's centre."""
        _, rows, columns = self.values.shape
        down = np.arange(rows)[:, None, None] * self.spacing[0] * self.column
        along = np.arange(columns)[None, :, None] * self.spacing[1] * self.row
        return self.positions[:, None, None, :] + (down + along)[None]

    def take(self, planes: Iterable[int]) -> Stack:
        """Only these planes, in this order."""
        chosen = list(planes)
        return replace(self, values=self.values[chosen], positions=self.positions[chosen])

    def without(self, *planes: int) -> Stack:
        """All but these planes."""
        return self.take(k for k in range(len(self.values)) if k not in planes)

    def moved(self, offsets: npt.ArrayLike) -> Stack:
        """The planes moved by (3,) or (K, 3) LPS mm."""
        return replace(self, positions=self.positions + np.asarray(offsets, float))

    def with_values(self, values: npt.ArrayLike) -> Stack:
        """The same places with other values (K, rows, columns)."""
        return replace(self, values=np.broadcast_to(np.asarray(values, float), self.values.shape))

    def affine_ras(self) -> Array:
        """(4, 4) (column i, row j, plane k) → RAS mm; of a regular stack only."""
        step = self.step if len(self.values) > 1 else self.normal
        affine = np.eye(4)
        affine[:3] = np.column_stack(
            [self.row * self.spacing[1], self.column * self.spacing[0], step, self.positions[0]]
        )
        return LPS_RAS @ affine


def phantom(
    orientation: str = "axial-LP",
    *,
    slices: int = 8,
    rows: int = 16,
    columns: int = 20,
    spacing: tuple[float, float] = (0.8, 0.7),
    step: float = 2.5,
    tilt_degrees: float = 0.0,
    lowest: float = -1024.0,
    levels: int | None = None,
    seed: int = 0,
) -> Stack:
    """A stack of random, mutually different whole numbers from ``lowest`` upwards.

    ``tilt_degrees`` shears the stack along the column direction, as a tilted gantry does. ``levels`` caps the number of
    different values (they then repeat). Another ``seed`` gives other values at the same places.
    """
    row, column = (np.array(vector, float) for vector in ORIENTATIONS[orientation])
    normal = np.cross(row, column)
    random = np.random.default_rng(seed)
    count = slices * rows * columns
    numbers = random.permutation(count) if levels is None else random.integers(0, levels, count)
    shear = step * np.tan(np.radians(tilt_degrees)) * column
    origin = np.array([-52.5, 31.25, 8.75])
    return Stack(
        values=numbers.reshape(slices, rows, columns) + lowest,
        positions=origin + np.arange(slices)[:, None] * (step * normal + shear),
        row=row,
        column=column,
        spacing=spacing,
    )


@dataclass(frozen=True, eq=False)
class Found:
    """One volume as a reader gave it: ``array`` (X, Y, Z) and ``affine_ras`` (4, 4) voxel → RAS mm."""

    array: npt.NDArray[np.generic]
    affine_ras: npt.NDArray[np.generic]


def difference(stack: Stack, found: Found, tolerance_mm: float = PLACE_TOLERANCE_MM) -> str | None:
    """What is wrong with ``found``, or None where it holds each of the stack's voxels once, in place, and no others."""
    if found.array.ndim != 3 or found.array.size != stack.values.size:
        return f"shape {found.array.shape} for {stack.values.size} voxels"
    affine = LPS_RAS @ np.asarray(found.affine_ras, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        return "the affine is singular"
    world = stack.world().reshape(-1, 3)
    exact = (world - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    voxels = np.rint(exact).astype(int)
    if (voxels < 0).any() or (voxels >= found.array.shape).any() or len(np.unique(voxels, axis=0)) != len(voxels):
        return "voxels lie elsewhere"
    shift = np.linalg.norm(voxels @ affine[:3, :3].T + affine[:3, 3] - world, axis=1).max()
    if shift > tolerance_mm:
        return f"voxels are {shift:.3g} mm out of place"
    return _value_difference(stack, np.asarray(found.array, float)[tuple(voxels.T)])


def differences(
    stacks: Sequence[Stack], found: Sequence[Found], tolerance_mm: float = PLACE_TOLERANCE_MM
) -> str | None:
    """What is wrong with a set of volumes in any order, or None where it is one right volume for each stack."""
    if len(found) != len(stacks):
        return f"{len(found)} volumes for {len(stacks)}"
    left = list(found)
    for stack in stacks:
        reasons = [difference(stack, volume, tolerance_mm) for volume in left]
        if None not in reasons:
            return str(reasons[0])
        del left[reasons.index(None)]
    return None


def plane_difference(
    stack: Stack, array: npt.NDArray[np.generic], affines_ras: npt.NDArray[np.generic], tolerance_mm: float
) -> str | None:
    """What is wrong with native planes, ``array`` (X, Y, N) and ``affines_ras`` (N, 4, 4), which are in order."""
    if array.ndim != 3 or array.shape[2] != len(stack.values) or np.shape(affines_ras) != (len(stack.values), 4, 4):
        return f"planes {array.shape} with affines {np.shape(affines_ras)} for {len(stack.values)} planes"
    for k in range(len(stack.values)):
        reason = difference(stack.take([k]), Found(array[:, :, k : k + 1], affines_ras[k]), tolerance_mm)
        if reason:
            return f"plane {k}: {reason}"
    return None


def _value_difference(stack: Stack, values: Array) -> str | None:
    truth = stack.values.reshape(-1)
    padding = np.isnan(truth)
    low, high = stack.padding
    if not ((values[padding] >= low) & (values[padding] <= high)).all():
        return f"padding became {values[padding][0]:g}"
    wrong = ~padding & ~(np.abs(values - truth) <= VALUE_TOLERANCE)
    if wrong.any():
        first = int(np.argmax(wrong))
        return f"{wrong.sum()} values differ, such as {values[first]:g} for {truth[first]:g}"
    return None
