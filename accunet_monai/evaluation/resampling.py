"""Intervals by bootstrap over subjects: the cases of a subject are drawn together, since they are alike."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: over the cases with a value; NaN where there is none.
        low: lower end of the interval; NaN with fewer than two subjects.
        high: upper end.
        cases: that have a value.
    """

    mean: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        return self.text(3)

    def text(self, digits: int) -> str:
        """``mean [low, high]``, with a dash for what is not known."""
        if math.isnan(self.mean):
            return "–"
        interval = "" if math.isnan(self.low) else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.mean:.{digits}f}{interval}"


def bootstrap(values: Floats, subjects: Sequence[str], samples: int = 2000, seed: int = 0) -> list[Estimate]:
    """Mean of each column over its cases, and the mean of these means, with percentile intervals.

    Subjects are drawn with replacement as often as there are subjects; each draw brings all cases of the subject. The
    draws depend on the number of subjects and the seed alone, and subjects are taken in the order of their names, so
    that two tables of the same subjects are resampled alike.

    Args:
        values: (cases, columns), NaN where undefined.
        subjects: of each case.
        samples: number of resamples.
        seed: of the draws.

    Returns:
        One estimate for each column and, last, one for their mean; columns without any value are left out of that.
    """
    names, owner = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    known = ~np.isnan(values)
    sums, counts = np.zeros((len(names), values.shape[1])), np.zeros((len(names), values.shape[1]))
    np.add.at(sums, owner, np.where(known, values, 0.0))
    np.add.at(counts, owner, known)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    once = _means(np.ones((1, len(names))), sums, counts)[0]
    tail = 100 * (1 - LEVEL) / 2
    low, high = (
        _quiet(np.nanpercentile, _means(draws.astype(float), sums, counts), [tail, 100 - tail], axis=0)
        if len(names) > 1
        else np.full((2, len(once)), math.nan)
    )
    cases = [*known.sum(axis=0), int(known.any(axis=1).sum())]
    return [
        Estimate(float(mean), float(below), float(above), int(count))
        for mean, below, above, count in zip(once, low, high, cases, strict=True)
    ]


def _means(weights: Floats, sums: Floats, counts: Floats) -> Floats:
    """(resamples, columns + 1): of each resample the mean of each column, and the mean of these."""
    totals = weights @ counts
    columns = np.divide(weights @ sums, totals, out=np.full_like(totals, math.nan), where=totals > 0)
    return np.column_stack([columns, _quiet(np.nanmean, columns, axis=1)])


def _quiet(function: Any, *arguments: Any, **options: Any) -> Any:
    """Without numpy's warning that all values are NaN: then the result is NaN, as it should be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Mean of empty|All-NaN)", RuntimeWarning)
        return function(*arguments, **options)
