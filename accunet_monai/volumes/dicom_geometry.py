"""Whether planes make up a regular grid: every way in which they may not has a code of its own.

All lengths are mm in DICOM's LPS patient coordinates. A grid's third axis is the mean step between planes, in order of
their depth along the normal rows × columns; positions decide, never slice locations, instance numbers or the stated
spacing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from accunet_monai.volumes.dicom_frames import Frame
from accunet_monai.volumes.dicom_refusals import refusal
from accunet_monai.volumes.dicom_split import SAME_DEPTH_MM, by_orientation, by_spacing, depths_of
from accunet_monai.volumes.geometry import MAX_SPACING_MM, MIN_SPACING_MM, FloatArray

UNIT_TOLERANCE = 1e-3
"""Cosines are unit and perpendicular within this: scanners that write three decimals are off by up to 7e-4, and over
512 pixels of 1 mm the far edge moves by half a pixel at most."""

PLANE_TOLERANCE = 0.01
"""A plane may lie this fraction of the slice spacing off its place in the regular grid: a hundredth of a voxel."""

MAX_POSITION_MM = MAX_SPACING_MM / 2
"""A plane farther from the origin than half a kilometre is a damaged header: no two may be a kilometre apart."""

PLANE_TOLERANCE_MM = 0.01
"""Positions are rounded, to two decimals at worst, so that an offset up to this is no irregularity of the scan."""

TILT_TOLERANCE = 0.002
"""Steps may lean this far (radians; 0.1 degrees) from the normal: three-decimal cosines make half of it, while the
smallest tilt that scanners offer is 0.5 degrees. The affine keeps the true step, so nothing is misplaced by it."""

MULTIPLE_TOLERANCE = 0.05
"""A gap is a multiple of the slice spacing when it is off by less than this fraction of it; then planes are missing."""


@dataclass(frozen=True)
class Stack:
    """Planes in order of depth, usable one by one.

    Args:
        positions: (N, 3) of each plane's first pixel.
        along_row, along_column: unit vectors in which columns and rows count up.
        spacing: mm between rows and between columns.
        thickness: of the slices, None if not stated.
    """

    frames: tuple[Frame, ...]
    positions: FloatArray
    along_row: FloatArray
    along_column: FloatArray
    spacing: tuple[float, float]

    @property
    def normal(self) -> FloatArray:
        """Unit vector rows × columns."""
        return _unit(np.cross(self.along_row, self.along_column))

    @property
    def depths(self) -> FloatArray:
        """(N,) mm along the normal, ascending."""
        result: FloatArray = self.positions @ self.normal
        return result

    def affine_lps(self, origin: FloatArray, step: FloatArray) -> FloatArray:
        """Pixel (i, j) of the plane at ``origin`` and k steps from there → LPS mm."""
        affine = np.eye(4)
        affine[:3, 0] = self.along_row * self.spacing[1]
        affine[:3, 1] = self.along_column * self.spacing[0]
        affine[:3, 2] = step
        affine[:3, 3] = origin
        return affine


def stack_of(frames: Sequence[Frame]) -> Stack:
    """Planes in order of depth, each with a place, an orientation and a pixel spacing that can be used.

    Raises:
        SeriesError: ``GEOM_NO_POSITION``, ``GEOM_NO_ORIENTATION``, ``GEOM_NO_SPACING``, ``GEOM_SHAPE``,
            ``GEOM_SPACING``, ``GEOM_ORIENTATION`` or ``GEOM_FRAME_OF_REFERENCE``.
    """
    _check_present(frames)
    _check_alike(frames)
    order = np.argsort(depths_of(frames), kind="stable")
    ordered = tuple(frames[index] for index in order)
    cosines = np.array(ordered[0].orientation)
    return Stack(
        frames=ordered,
        positions=np.array([frame.position for frame in ordered], dtype=np.float64),
        along_row=_unit(cosines[:3]),
        along_column=_unit(cosines[3:]),
        spacing=ordered[0].spacing or (0.0, 0.0),
    )


def grid_of(stack: Stack) -> FloatArray:
    """The regular grid's affine, (4, 4), voxel (column, row, slice) → LPS mm.

    Raises:
        SeriesError: ``GEOM_DUPLICATE``, ``GEOM_MISSING_SLICE``, ``GEOM_NONUNIFORM``, ``GEOM_TILT`` or
            ``GEOM_SINGLE_SLICE``.
    """
    step = slice_step(stack)
    check_tilt(stack, step)
    check_even(stack, step)
    return stack.affine_lps(stack.positions[0], step)


def slice_step(stack: Stack) -> FloatArray:
    """Mean vector from one plane to the next; of a single plane its thickness along the normal.

    Raises:
        SeriesError: ``GEOM_DUPLICATE`` or ``GEOM_SINGLE_SLICE``.
    """
    check_distinct(stack)
    if len(stack.frames) > 1:
        step: FloatArray = (stack.positions[-1] - stack.positions[0]) / (len(stack.frames) - 1)
        return step
    thickness = stack.frames[0].thickness or stack.frames[0].slice_spacing or 0.0
    if not MIN_SPACING_MM <= thickness <= MAX_SPACING_MM:
        raise refusal("GEOM_SINGLE_SLICE", "a single slice without a slice thickness is no volume", stack.frames)
    return stack.normal * thickness


def check_distinct(stack: Stack) -> None:
    """No two planes at one depth."""
    pairs = zip(pairwise(stack.frames), np.diff(stack.depths), strict=True)
    twice = [frame for pair, gap in pairs if gap <= SAME_DEPTH_MM for frame in pair]
    if twice:
        message = f"{len(set(map(id, twice)))} planes lie at the same depth as another and nothing tells them apart"
        raise refusal("GEOM_DUPLICATE", message, _once(twice))


def check_tilt(stack: Stack, step: FloatArray) -> None:
    """Steps go along the normal."""
    along = float(step @ stack.normal)
    aside = float(np.linalg.norm(step - along * stack.normal))
    if aside > TILT_TOLERANCE * along and aside * (len(stack.frames) - 1) > PLANE_TOLERANCE_MM:
        degrees = np.degrees(np.arctan2(aside, along))
        message = f"the planes are sheared: steps lean {degrees:.2f}° from the normal (gantry tilt)"
        raise refusal("GEOM_TILT", message, stack.frames)


def check_even(stack: Stack, step: FloatArray) -> None:
    """Every plane lies at its place in the grid."""
    places = stack.positions[0] + np.arange(len(stack.frames))[:, None] * step
    offset = np.linalg.norm(stack.positions - places, axis=1)
    if float(offset.max()) <= max(PLANE_TOLERANCE * float(np.linalg.norm(step)), PLANE_TOLERANCE_MM):
        return
    gaps = np.diff(stack.depths)
    wide = missing_after(gaps)
    if wide.any():
        around = [frame for pair, w in zip(pairwise(stack.frames), wide, strict=True) if w for frame in pair]
        message = (
            f"slices are missing: the gaps are {gaps.min():.4g} mm but for {int(wide.sum())} of up to {gaps.max():.4g}"
        )
        raise refusal("GEOM_MISSING_SLICE", message, _once(around))
    message = f"the planes are not evenly spaced: gaps from {gaps.min():.4g} to {gaps.max():.4g} mm"
    raise refusal("GEOM_NONUNIFORM", message, stack.frames)


def missing_after(gaps: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which gaps are two or more times the smallest, if all are whole multiples of it; else none."""
    ratios = gaps / gaps.min()
    multiples = np.rint(ratios)
    if float(np.abs(ratios - multiples).max()) > MULTIPLE_TOLERANCE:
        return np.zeros(len(gaps), dtype=bool)
    wide: npt.NDArray[np.bool_] = multiples > 1
    return wide


def _check_present(frames: Sequence[Frame]) -> None:
    for code, what, missing in (
        ("GEOM_NO_POSITION", "ImagePositionPatient", [f for f in frames if not _usable_position(f.position)]),
        ("GEOM_NO_ORIENTATION", "ImageOrientationPatient", [f for f in frames if f.orientation is None]),
        ("GEOM_NO_SPACING", "PixelSpacing", [f for f in frames if not _usable_spacing(f.spacing)]),
    ):
        if missing:
            message = f"{len(missing)} of {len(frames)} images have no usable {what}"
            raise refusal(code, message, missing)


def _usable_position(position: tuple[float, float, float] | None) -> bool:
    return position is not None and max(map(abs, position)) <= MAX_POSITION_MM


def _check_alike(frames: Sequence[Frame]) -> None:
    shapes = Counter((frame.rows, frame.columns) for frame in frames)
    if len(shapes) > 1:
        usual = shapes.most_common(1)[0][0]
        odd = [frame for frame in frames if (frame.rows, frame.columns) != usual]
        raise refusal("GEOM_SHAPE", f"{len(odd)} images of another size among {len(frames)}: {sorted(shapes)}", odd)
    crooked = [frame for frame in frames if not _is_rotation(frame.orientation or ())]
    if crooked:
        message = f"row and column directions {crooked[0].orientation} are not unit vectors at right angles"
        raise refusal("GEOM_ORIENTATION", message, crooked)
    for code, what, groups in (
        ("GEOM_ORIENTATION", "orientations", by_orientation(frames)),
        ("GEOM_SPACING", "pixel spacings", by_spacing(frames)),
    ):
        if len(groups) > 1:
            odd = [frame for group in sorted(groups, key=len)[:-1] for frame in group]
            raise refusal(code, f"{len(groups)} different {what}, {len(odd)} of {len(frames)} images are odd", odd)
    uids = {frame.instance.frame_of_reference_uid for frame in frames}
    if len(uids) > 1:
        message = f"positions refer to {len(uids)} frames of reference, which need not agree"
        raise refusal("GEOM_FRAME_OF_REFERENCE", message, frames)


def _usable_spacing(spacing: tuple[float, float] | None) -> bool:
    return spacing is not None and all(MIN_SPACING_MM <= edge <= MAX_SPACING_MM for edge in spacing)


def _is_rotation(cosines: Sequence[float]) -> bool:
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    off = (abs(float(np.linalg.norm(row)) - 1), abs(float(np.linalg.norm(column)) - 1), abs(float(row @ column)))
    return max(off) <= UNIT_TOLERANCE


def _unit(vector: npt.NDArray[np.float64]) -> FloatArray:
    result: FloatArray = vector / np.linalg.norm(vector)
    return result


def _once(frames: Sequence[Frame]) -> list[Frame]:
    return list({id(frame): frame for frame in frames}.values())
