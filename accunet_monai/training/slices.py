"""Slices of labelled volumes for training: preprocessed once, known by their labels, cut the same way in every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import Transform
from rich.progress import track
from torch.utils.data import Dataset

from accunet_monai.inferers.slice_inferer import plane_size
from accunet_monai.training.cache import VolumeCache
from accunet_monai.training.planes import HeldVolume, StoredVolume, prepare_volume

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pick:
    """A slice as it is drawn: equal picks give equal items, in whatever process and order.

    Args:
        index: of the slice.
        draw: a number of its own for each draw of a training; decides where the slice is cropped and, in the batch,
            how it is augmented.
        label: a value that the crop shall hold; 0 for any crop.
    """

    index: int
    draw: int
    label: int = 0


class SliceDataset(Dataset[dict[str, Any]]):
    """All slices of labelled volumes, preprocessed once and kept in memory or on disk.

    Args:
        cases: mappings with ``image`` and ``label`` paths.
        preprocessing: the bundle's preprocessing, giving ``image`` (C, X, Y, Z) and ``label`` (1, X, Y, Z), or one
            channel of 0 and 1 for each of several overlapping regions.
        roi_size: size (rows, columns) of the slices given out, or (x, y, z), of which the axis along which a slice is
            taken is left out: smaller slices are padded by their edge values, of larger ones a random part is taken.
        spatial_dim: the spatial axis along which slices are taken, or several: then each volume is sliced along all
            of them, and ``SliceSampler`` keeps slices of one axis together.
        context_slices: neighbours on either side given as channels, as in ``SliceInferer``.
        skip_empty: leave out slices without any label.
        progress: show a progress bar while reading.
        ignore_label: value that stands for "not annotated": it is given out as it is, but is no label to look for.
        mirror: spatial axes of the volume (0: x) along which half of the draws are mirrored, be it within the slice or
            by the order of its neighbours: left and right organs of one label, say.
        seed: of the random parts.
        cache_dir: keep the preprocessed volumes in this folder and read slices from there, for as many cases as the
            disk holds; see :class:`~accunet_monai.training.cache.VolumeCache`. ``None`` keeps them in memory.

    Returns (per item, of an index or a :class:`Pick`):
        ``image`` (C * (2 * context_slices + 1), rows, columns) float32, ``label`` (1 or regions, rows, columns) int64,
        ``draw`` the number of the draw. The part that is cropped and whether it is mirrored follow from the seed and
        the draw; for a mere index the draw is taken from PyTorch's generator.

    Raises:
        DatasetError: ``LABEL_GRID`` when preprocessing gives image and label different sizes.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        preprocessing: Callable[[Any], Any] | Transform,
        roi_size: Sequence[int],
        spatial_dim: int | Sequence[int] = 2,
        context_slices: int = 0,
        skip_empty: bool = False,
        progress: bool = True,
        ignore_label: int | None = None,
        mirror: Sequence[int] = (),
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        dims = (spatial_dim,) if isinstance(spatial_dim, int) else tuple(spatial_dim)
        self.roi_size = {dim: plane_size(roi_size, dim) for dim in dims}
        self.context_slices = context_slices
        self.mirror = tuple(mirror)
        self.seed = seed
        self._ignored = {0, ignore_label}
        self._volumes: Sequence[StoredVolume]
        if cache_dir is None:
            watched = track(cases, "reading volumes", disable=not progress, transient=True)
            self._volumes = [HeldVolume(*prepare_volume(case, preprocessing), dims) for case in watched]
        else:
            self._volumes = VolumeCache(cache_dir, preprocessing, dims).volumes(cases, progress)
        self._index: list[tuple[int, int, int]] = []
        self._labels: list[frozenset[int]] = []
        for number, volume in enumerate(self._volumes):
            for dim in dims:
                self._add_slices(number, dim, volume, skip_empty)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, pick: int | Pick) -> dict[str, Any]:
        if not isinstance(pick, Pick):
            pick = Pick(pick, int(torch.randint(2**62, ())))
        number, dim, position = self._index[pick.index]
        images, labels = self._volumes[number].planes(dim)
        mirrored = self._mirrored(pick)
        around = range(position - self.context_slices, position + self.context_slices + 1)
        label = labels[position]
        window = self._window(label, self.roi_size[dim], pick)
        near = [
            images[min(max(place, 0), len(images) - 1)] for place in (reversed(around) if dim in mirrored else around)
        ]
        within = tuple(axis for axis, spatial in enumerate(_plane_axes(dim), 1) if spatial in mirrored)
        image = np.flip(np.concatenate([_cut(plane, window) for plane in near]), within)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image, np.float32)),
            "label": torch.from_numpy(np.flip(_cut(label, window), within).astype(np.int64)),
            "draw": pick.draw,
        }

    def spatial_dim(self, index: int) -> int:
        """The axis along which the slice of this index is taken."""
        return self._index[index][1]

    def labels(self, index: int) -> frozenset[int]:
        """The label values in the slice of this index (of regions: 1 for the first), without 0 and the ignored one."""
        return self._labels[index]

    def _add_slices(self, number: int, dim: int, volume: StoredVolume, skip_empty: bool) -> None:
        values, counts = volume.counts(dim)
        for position, present in enumerate(counts > 0):
            labels = frozenset(values[present].tolist()) - self._ignored
            if labels or not skip_empty:
                self._index.append((number, dim, position))
                self._labels.append(labels)

    def _mirrored(self, pick: Pick) -> set[int]:
        """The volume's axes along which a draw is mirrored."""
        if not self.mirror:
            return set()
        chances = np.random.default_rng([self.seed, pick.draw, 1]).random(3)  # the 1 sets them apart from the window's
        return {axis for axis in self.mirror if chances[axis] < 0.5}

    def _window(self, label: Array, roi_size: tuple[int, int], pick: Pick) -> list[tuple[int, int]]:
        """First row or column and number of these, for each axis of a slice (L, rows, columns); outside is padding."""
        sizes = label.shape[1:]
        if all(found <= wanted for found, wanted in zip(sizes, roi_size, strict=True)):
            return [((found - wanted + 1) // 2, wanted) for found, wanted in zip(sizes, roi_size, strict=True)]
        random = np.random.default_rng([self.seed, pick.draw])
        inside = _some_pixel(label, pick.label, random) if pick.label else None
        window = []
        for axis, (found, wanted) in enumerate(zip(sizes, roi_size, strict=True)):
            lowest, highest = 0, found - wanted
            if inside is not None:
                lowest, highest = max(lowest, inside[axis] - wanted + 1), min(highest, inside[axis])
            start = int(random.integers(lowest, highest + 1)) if found > wanted else (found - wanted + 1) // 2
            window.append((start, wanted))
        return window


def _plane_axes(spatial_dim: int) -> tuple[int, int]:
    """The volume's axes that are the rows and the columns of its slices along another one."""
    rows, columns = (axis for axis in range(3) if axis != spatial_dim)
    return rows, columns


def _some_pixel(label: Array, value: int, random: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of a random pixel of a label; of regions (several channels) of that region."""
    found = np.flatnonzero(label[0] == value if len(label) == 1 else label[value - 1])
    if not len(found):
        return None
    row, column = divmod(int(found[random.integers(len(found))]), label.shape[-1])
    return row, column


def _cut(plane: Array, window: Sequence[tuple[int, int]]) -> Array:
    """A window of (C, rows, columns), beyond its border the values at the border."""
    parts: list[Any] = []
    for found, (start, size) in zip(plane.shape[1:], window, strict=True):
        inside = start >= 0 and start + size <= found
        parts.append(slice(start, start + size) if inside else np.clip(np.arange(start, start + size), 0, found - 1))
    cut: Array = plane[:, parts[0]][:, :, parts[1]]
    return cut
