"""Whether probabilities mean what they say: of voxels given 0.7, seven in ten should have the label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15


@dataclass(frozen=True, eq=False)
class Reliability:
    """Voxels by the probability they were given, label by label. Counts of several cases are added with ``+``.

    Attributes:
        labels: names of the labels.
        voxels: (labels, bins), number of voxels.
        probability: (labels, bins), sum of the probabilities.
        found: (labels, bins), number of voxels that have the label.
    """

    labels: tuple[str, ...]
    voxels: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]
    found: npt.NDArray[np.float64]

    def __add__(self, other: Reliability) -> Reliability:
        if self.labels != other.labels or self.voxels.shape != other.voxels.shape:
            raise ValueError(f"counts of other labels or bins: {self.labels} and {other.labels}")
        return Reliability(
            self.labels,
            self.voxels + other.voxels,
            self.probability + other.probability,
            self.found + other.found,
        )

    def curve(self, label: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """(mean probability, share of voxels that have the label, voxels) of each bin; NaN for empty bins."""
        index = self.labels.index(label)
        voxels = self.voxels[index]
        given, share = (
            np.divide(sums[index], voxels, out=np.full_like(voxels, math.nan), where=voxels > 0)
            for sums in (self.probability, self.found)
        )
        return given, share, voxels

    def expected_error(self, label: str) -> float:
        """Expected calibration error: mean distance of probability and share over the voxels, of 0 to 1.

        The lowest bin is left out: it holds nearly all voxels of a volume, taken for background and rightly so, and
        would hide all others. NaN where no voxel is left.
        """
        given, share, voxels = (values[1:] for values in self.curve(label))
        known = voxels > 0
        if not known.any():
            return math.nan
        return float(np.average(np.abs(given - share)[known], weights=voxels[known]))


def count_reliability(
    probabilities: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    labels: Mapping[int, str],
    bins: int = BINS,
    ignore_label: int | None = None,
) -> Reliability:
    """Count the voxels of a case by the probability that they were given of each label.

    Args:
        probabilities: (classes, *spatial) of 0 to 1, the channel of a label at its value; of one channel (sigmoid) that
            of the only label.
        reference: label map (*spatial).
        labels: label value → name.
        bins: of equal width.
        ignore_label: voxels with this value in the reference are not counted.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if probabilities.shape[1:] != reference.shape:
        raise ValueError(f"probabilities {probabilities.shape} and reference {reference.shape} differ in shape")
    counted = np.ones(reference.shape, bool) if ignore_label is None else reference != ignore_label
    counts = np.zeros((3, len(labels), bins))
    for index, value in enumerate(labels):
        given = probabilities[0 if len(probabilities) == 1 else value][counted]
        place = np.minimum((given * bins).astype(np.int64), bins - 1)
        for row, weights in enumerate((None, given, reference[counted] == value)):
            counts[row, index] = np.bincount(place, weights, bins)
    return Reliability(tuple(labels.values()), *counts)
