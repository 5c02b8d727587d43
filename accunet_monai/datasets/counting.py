"""How many pixels of each label every slice of a label map holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MOST_VALUES = 65_536
"""Label values that are counted in a table of their own; rarer maps with larger numbers are sorted, which is slower."""


def count_labels(labels: npt.NDArray[Any], axis: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Values in a label map, in rising order, and their number of pixels in each slice along an axis.

    Args:
        labels: integers of any shape.
        axis: along which the slices are taken.

    Returns:
        Values (V,) and counts (slices, V).

    Example:
        >>> values, counts = count_labels(np.array([[0, 2], [2, 2]]), axis=0)
        >>> values.tolist(), counts.tolist()
        ([0, 2], [[1, 1], [0, 2]])
    """
    low, high = int(labels.min()), int(labels.max())
    if high - low < MOST_VALUES:
        values, numbered = np.arange(low, high + 1), labels
    else:
        values, numbered = np.unique(labels, return_inverse=True)
        numbered, low = numbered.reshape(labels.shape), 0
    planes = np.moveaxis(numbered, axis, 0)
    rows = [np.bincount(plane.reshape(-1).astype(np.int64) - low, minlength=len(values)) for plane in planes]
    counts = np.stack(rows)
    present = counts.any(axis=0)
    return values[present].astype(np.int64), counts[:, present]
