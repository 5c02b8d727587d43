"""How slices are stacked, padded, cut into windows and mirrored: all of it known before the network runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, TypeVar

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.utils import fall_back_tuple
from torch import Tensor

Number = TypeVar("Number", int, float)

_SMALLEST_STEP = 1  # pixels between windows, whatever the overlap


class SliceSettings(Protocol):
    """What a plan is made from; the attributes are the arguments of ``SliceInferer``."""

    roi_size: Sequence[int] | None
    overlap: float | Sequence[float]
    mode: str
    sigma_scale: float | Sequence[float]
    padding_mode: str
    cval: float
    context_slices: int
    mirror_axes: tuple[int, ...]
    skip_below: float | None


@dataclass(frozen=True, eq=False)
class SlicePlan:
    """How the slices along one axis are cut; sizes in pixels, (rows, columns).

    Attributes:
        axis: spatial axis of the volume along which slices are taken.
        plane: size of a slice.
        pad: of a slice, as ``torch.nn.functional.pad`` takes it: left, right, top, bottom.
        windows: of the padded slice, row by row.
        weight: of each pixel of a window where windows overlap, (rows, columns).
        flips: how each window is mirrored: axes of a stack (neighbours, channels, rows, columns). The first is none.
        context_slices, padding_mode, cval, skip_below: as of ``SliceInferer``.
    """

    axis: int
    plane: tuple[int, int]
    pad: tuple[int, int, int, int]
    windows: tuple[tuple[slice, slice], ...]
    weight: Tensor
    flips: tuple[tuple[int, ...], ...]
    context_slices: int
    padding_mode: str
    cval: float
    skip_below: float | None

    @property
    def padded(self) -> tuple[int, int]:
        """Size of a slice after padding."""
        left, right, top, bottom = self.pad
        return top + self.plane[0] + bottom, left + self.plane[1] + right

    def unpad(self, values: Tensor) -> Tensor:
        """(…, padded rows, padded columns) → (…, rows, columns), a view."""
        left, _, top, _ = self.pad
        rows, columns = self.plane
        return values[..., top : top + rows, left : left + columns]


def make_plan(
    settings: SliceSettings, axis: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> SlicePlan:
    """Lay windows over the slices along ``axis`` of volumes (X, Y, Z), as MONAI does.

    Args:
        settings: a ``SliceInferer``.
        axis: spatial axis along which slices are taken.
        shape: (X, Y, Z).
        device: where the weights lie.
        dtype: of the weights.
    """
    rows, columns = (size for dim, size in enumerate(shape) if dim != axis)
    roi = fall_back_tuple(None if settings.roi_size is None else in_plane(settings.roi_size, axis), (rows, columns))
    height, width = max(rows, roi[0]), max(columns, roi[1])
    top, left = (height - rows) // 2, (width - columns) // 2
    steps = [
        size if size == full else max(int(size * (1 - share)), _SMALLEST_STEP)
        for size, full, share in zip(roi, (height, width), in_plane(settings.overlap, axis), strict=True)
    ]
    return SlicePlan(
        axis=axis,
        plane=(rows, columns),
        pad=(left, width - columns - left, top, height - rows - top),
        windows=tuple((place[0], place[1]) for place in dense_patch_slices((height, width), roi, steps)),
        weight=compute_importance_map(
            get_valid_patch_size((height, width), roi),
            settings.mode,
            in_plane(settings.sigma_scale, axis),
            device=device,
            dtype=dtype,
        ),
        flips=flips_of(settings.mirror_axes, axis, settings.context_slices),
        context_slices=settings.context_slices,
        padding_mode=settings.padding_mode,
        cval=settings.cval,
        skip_below=settings.skip_below,
    )


def flips_of(mirror_axes: Sequence[int], axis: int, context_slices: int) -> tuple[tuple[int, ...], ...]:
    """Every combination of mirrorings that makes a difference for slices along ``axis``.

    Args:
        mirror_axes: spatial axes of the volume.
        axis: the slicing axis; mirroring along it reverses the neighbours, if there are any.
        context_slices: neighbours on either side.

    Returns:
        Axes of a stack (neighbours, channels, rows, columns), the empty combination first.
    """
    rows, columns = (dim for dim in range(3) if dim != axis)
    places = {axis: 0, rows: 2, columns: 3}
    dims = sorted(places[dim] for dim in set(mirror_axes) if dim != axis or context_slices > 0)
    return tuple(chosen for count in range(len(dims) + 1) for chosen in combinations(dims, count))


def plane_size(roi_size: Sequence[int], axis: int) -> tuple[int, int]:
    """Size (rows, columns) of a slice's window: ``roi_size`` itself, or (x, y, z) without the slicing axis."""
    return in_plane(roi_size, axis)


def in_plane(values: Number | Sequence[Number], axis: int) -> tuple[Number, Number]:
    """One value for rows and columns, two as they are, or (x, y, z) without the slicing axis."""
    if not isinstance(values, Sequence):
        return values, values
    rows, columns = values if len(values) == 2 else [value for dim, value in enumerate(values) if dim != axis]
    return rows, columns
