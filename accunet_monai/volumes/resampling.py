"""Volumes on another grid, and label maps back on the exact grid of their image. SimpleITK does the interpolation.

It works on voxel indices: source and result are given to ITK as grids of unit spacing, with one affine transform
(inverse of the source's affine × the target's affine) between them. So oblique, sheared and mirrored grids need no
special case, and the result's grid is the one that was asked for, to the last bit.

**Label maps.** By default each label's share at a point is interpolated linearly and the largest wins
(``"label_linear"``), which is the smoothest boundary that invents no label. ``"nearest"`` puts stairs as high as the
coarser voxel into it. Where the points of the two grids coincide both give the label itself. Measured on real organs
in docs/volumes.md.
"""

# mypy: untyped-calls-exclude=SimpleITK
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK

from accunet_monai.volumes.geometry import GRID_TOLERANCE_VOXELS, FloatArray, spacing_of
from accunet_monai.volumes.labels import smallest_unsigned
from accunet_monai.volumes.limits import check_size
from accunet_monai.volumes.volume import HEADER_GEOMETRY, Grid, Volume

ImageInterpolation = Literal["linear", "nearest", "bspline"]
LabelInterpolation = Literal["label_linear", "nearest"]

SIGMA_PER_VOXEL = 1 / (2 * np.sqrt(2 * np.log(2)))
"""Standard deviation of a Gaussian whose width at half its height is one voxel: the blur that a voxel stands for
(Cardoso et al., Scale factor point spread function matching, MICCAI 2015)."""

ALIGNED_INDEX = 1e-6
"""Source indices this near to whole numbers are taken as whole: they differ by rounding in the product of affines, and
without it a label map on its own grid could change where two labels meet."""

SHARE_ROUNDING = 1e-5
"""Shares of two labels this near count as equal: they are sums of eight products in float32."""

_INTERPOLATORS = {
    "linear": SimpleITK.sitkLinear,
    "nearest": SimpleITK.sitkNearestNeighbor,
    "bspline": SimpleITK.sitkBSpline3,
}


def grid_of_spacing(source: Grid | Volume, spacing: float | Sequence[float]) -> Grid:
    """The grid with the source's axes and centre and exactly this spacing.

    It covers the source, with less than one of its own voxels too much along each axis. So its voxel centres lie within
    the source's voxels and the source's within its own: nothing is extrapolated on the way there or back.

    Args:
        source: a grid or volume.
        spacing: mm along the source's array axes; one number for all three. 0 or less keeps that axis as it is.

    Raises:
        VolumeError: ``VOLUME_TOO_LARGE`` or ``VOLUME_AFFINE``.
        ValueError: ``spacing`` is not one or three finite numbers.
    """
    wanted = np.array(np.broadcast_to(np.asarray(spacing, dtype=np.float64), (3,)))
    if not np.isfinite(wanted).all():
        raise ValueError(f"spacing must be one or three finite numbers of mm, found {spacing}")
    current = np.array(spacing_of(source.affine_ras))
    wanted = np.where(wanted > 0, wanted, current)
    voxels = np.array(source.shape) * current / wanted
    shape = np.maximum(np.ceil(voxels - GRID_TOLERANCE_VOXELS), 1).astype(np.int64)
    x, y, z = (int(size) for size in shape)
    check_size((x, y, z), source.provenance.get("path"))
    affine = source.affine_ras.copy()
    affine[:3, :3] *= wanted / current
    centre = source.affine_ras[:3, :3] @ ((np.array(source.shape) - 1) / 2) + source.affine_ras[:3, 3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((x, y, z), affine, _without_header(source.provenance))


def resample(
    volume: Volume,
    target: Grid | Volume,
    interpolation: ImageInterpolation = "linear",
    *,
    anti_alias: bool = True,
    fill: float | None = None,
) -> Volume:
    """An image on the grid ``target``.

    Args:
        volume: the image.
        target: the grid to bring it to; its provenance is not used.
        interpolation: ``"linear"``, ``"nearest"`` or ``"bspline"`` (cubic, may overshoot).
        anti_alias: blur along the axes on which the target's voxels are larger, so that noise and edges finer than
            these do not turn into patterns. Nothing is blurred for ``"nearest"``.
        fill: value beyond the image; by default its smallest one, which is air in CT and no signal in MR.

    Returns:
        float32 on exactly the target's grid, with the image's provenance.

    Raises:
        VolumeError: ``VOLUME_TOO_LARGE``.
    """
    check_size(target.shape, volume.provenance.get("path"))
    steps = _source_steps(volume.affine_ras, target.affine_ras)
    array = volume.array.astype(np.float32, copy=False)
    lowest = float(array.min()) if fill is None else fill
    image = SimpleITK.GetImageFromArray(array.T)
    if anti_alias and interpolation != "nearest":
        image = _blurred(image, steps)
    values = _resampled(image, steps, target.shape, interpolation, lowest)
    return Volume(values, target.affine_ras, _without_header(volume.provenance))


def resample_label_map(
    label_map: Volume, target: Grid | Volume, interpolation: LabelInterpolation = "label_linear"
) -> Volume:
    """A label map on the grid ``target``, say that of the image it belongs to; beyond ``label_map`` lies label 0.

    Args:
        label_map: integers from 0.
        target: the grid to bring it to; its provenance goes to the result, for it is what the labels are written on.
        interpolation: ``"label_linear"`` or ``"nearest"``.

    Raises:
        VolumeError: ``LABEL_NOT_INTEGER`` or ``VOLUME_TOO_LARGE``.
    """
    check_size(target.shape, target.provenance.get("path"))
    labels = smallest_unsigned(label_map.array, label_map.provenance.get("path"))
    steps = _source_steps(label_map.affine_ras, target.affine_ras)
    if interpolation == "nearest":
        result = _resampled(SimpleITK.GetImageFromArray(labels.T), steps, target.shape, "nearest", 0)
    else:
        result = _largest_share(labels, steps, target.shape)
    return Volume(result, target.affine_ras, target.provenance)


def _without_header(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in provenance.items() if key != HEADER_GEOMETRY}


def _source_steps(source: FloatArray, target: FloatArray) -> FloatArray:
    """(4, 4): indices of the target → indices of the source, with rounding errors taken out."""
    steps = np.linalg.inv(source) @ target
    whole = np.rint(steps)
    near = np.abs(steps - whole) < ALIGNED_INDEX
    near[:3, :3] &= bool(near[:3, :3].all())  # a step that is nearly whole adds up over many voxels: all or none
    return np.where(near, whole, steps)


def _resampled(
    image: SimpleITK.Image, steps: FloatArray, shape: Sequence[int], interpolation: str, fill: float
) -> npt.NDArray[Any]:
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(steps[:3, :3].ravel().tolist())
    transform.SetTranslation(steps[:3, 3].tolist())
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize([int(size) for size in shape])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(_INTERPOLATORS[interpolation])
    resampler.SetDefaultPixelValue(fill)
    values: npt.NDArray[Any] = SimpleITK.GetArrayFromImage(resampler.Execute(image)).T
    return values


def _blurred(image: SimpleITK.Image, steps: FloatArray) -> SimpleITK.Image:
    """The image as voxels of the target's size would show it, where they are larger than its own."""
    coarser = np.maximum(np.linalg.norm(steps[:3, :3], axis=1), 1.0)  # target voxels in source voxels, by source axis
    variance = (coarser**2 - 1.0) * SIGMA_PER_VOXEL**2
    if not (variance > ALIGNED_INDEX).any():
        return image
    return SimpleITK.DiscreteGaussian(image, variance=variance.tolist(), maximumKernelWidth=64, maximumError=0.001)


def _largest_share(labels: npt.NDArray[Any], steps: FloatArray, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """The label with the largest interpolated share at each target voxel; background where shares are equal.

    ITK's own interpolator for this gives the same and needs minutes for a body with many organs: it builds a table of
    labels at every voxel. Here each label is interpolated within its own box.
    """
    winner = np.zeros(shape, dtype=labels.dtype, order="F")
    best, total = (np.zeros(shape, dtype=np.float32, order="F") for _ in range(2))
    for label, box in _boxes(labels):
        window = _reached(box, steps, shape)
        if window is None:
            continue
        indicator = SimpleITK.GetImageFromArray((labels[box] == label).astype(np.float32).T)
        local = steps.copy()
        local[:3, 3] += steps[:3, :3] @ [axis.start for axis in window] - [axis.start for axis in box]
        share = _resampled(indicator, local, [axis.stop - axis.start for axis in window], "linear", 0)
        higher = share > best[window] + SHARE_ROUNDING
        winner[window][higher] = label
        np.maximum(best[window], share, out=best[window])
        total[window] += share
    winner[best <= 1.0 - total + SHARE_ROUNDING] = 0
    return winner


def _boxes(labels: npt.NDArray[Any]) -> Iterator[tuple[int, tuple[slice, slice, slice]]]:
    """Each label above 0 with its bounding box, one voxel wider where the volume goes on."""
    statistics = SimpleITK.LabelShapeStatisticsImageFilter()
    statistics.Execute(SimpleITK.GetImageFromArray(labels.T))
    for label in statistics.GetLabels():
        found = statistics.GetBoundingBox(label)  # three first indices, three sizes
        low = [max(first - 1, 0) for first in found[:3]]
        high = [min(first + size + 1, end) for first, size, end in zip(found[:3], found[3:], labels.shape, strict=True)]
        yield label, (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))


def _reached(
    box: tuple[slice, slice, slice], steps: FloatArray, shape: tuple[int, int, int]
) -> tuple[slice, slice, slice] | None:
    """The part of the target whose points lie in a box of the source (half a voxel around it included), if any."""
    ends = [(axis.start - 0.5, axis.stop - 0.5) for axis in box]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    back = np.linalg.inv(steps)
    points = corners @ back[:3, :3].T + back[:3, 3]
    low = np.clip(np.floor(points.min(axis=0)), 0, shape).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, shape).astype(int)
    if (high <= low).any():
        return None
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])
