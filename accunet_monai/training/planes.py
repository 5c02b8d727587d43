"""Preprocessed volumes as stacks of planes, and how many pixels of each label every plane holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from accunet_monai.datasets import count_labels
from accunet_monai.errors import DatasetError

Array = npt.NDArray[Any]


class StoredVolume(Protocol):
    """A preprocessed image and its label, wherever they are kept."""

    def planes(self, dim: int) -> tuple[Array, Array]:
        """Image (S, C, rows, columns) and label (S, L, rows, columns), S slices along a spatial axis."""
        ...

    def counts(self, dim: int) -> tuple[Array, Array]:
        """Label values (V,) and their number of pixels in each slice (S, V)."""
        ...


class HeldVolume:
    """In memory: views of one array along each axis.

    Args:
        image: (C, X, Y, Z).
        label: (L, X, Y, Z).
        dims: spatial axes along which slices are wanted.
    """

    def __init__(self, image: Array, label: Array, dims: Sequence[int]) -> None:
        self._planes = {dim: (as_planes(image, dim), as_planes(label, dim)) for dim in dims}
        self._counts = {dim: count_planes(planes[1]) for dim, planes in self._planes.items()}

    def planes(self, dim: int) -> tuple[Array, Array]:
        """See :class:`StoredVolume`."""
        return self._planes[dim]

    def counts(self, dim: int) -> tuple[Array, Array]:
        """See :class:`StoredVolume`."""
        return self._counts[dim]


def prepare_volume(case: Mapping[str, Any], preprocessing: Callable[[Any], Any]) -> tuple[Array, Array]:
    """Image (C, X, Y, Z) float32 and label (L, X, Y, Z) in the smallest integer type that the values need.

    Raises:
        DatasetError: ``LABEL_GRID`` when they differ in size.
    """
    data: Any = preprocessing(dict(case))
    image, label = (np.asarray(data[key]) for key in ("image", "label"))
    if image.shape[1:] != label.shape[1:]:
        raise DatasetError(
            "LABEL_GRID",
            f"image and label have sizes {image.shape[1:]} and {label.shape[1:]}.",
            path=str(case["label"]),
        )
    smallest = np.result_type(np.min_scalar_type(label.min()), np.min_scalar_type(label.max()))
    if label.dtype.kind == "f":
        smallest = np.result_type(np.min_scalar_type(int(label.min())), np.min_scalar_type(int(label.max())))
    return image.astype(np.float32, copy=False), label.astype(smallest, copy=False)


def as_planes(array: Array, dim: int) -> Array:
    """(C, X, Y, Z) → (S, C, rows, columns): a view."""
    return np.moveaxis(array, dim + 1, 0)


def count_planes(planes: Array) -> tuple[Array, Array]:
    """Values of labels (S, L, rows, columns) and their pixels in each slice (S, V); of regions (L > 1) 1, 2, …."""
    if planes.shape[1] > 1:
        return np.arange(1, planes.shape[1] + 1), (planes != 0).sum((2, 3))
    return count_labels(planes, axis=0)
