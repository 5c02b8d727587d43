"""Means of a case table, label by label and over all labels, with intervals and with what was left out counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation.measures import MEASURES, STATUSES, Measure, Row, Status
from accunet_monai.evaluation.resampling import Estimate, Floats, bootstrap

MOST_LABELS = 6
"""So many labels get a column of their own in a table of cases."""


@dataclass(frozen=True)
class Summary:
    """What a case table comes to.

    Attributes:
        labels: label → measure → estimate.
        overall: measure → the mean of the labels' means, and its interval.
        statuses: label → status → number of cases.
        cases: number of cases.
        subjects: number of subjects, which the intervals are over.
        tolerances_mm: of the surface Dice; one, unless tables were joined.
    """

    labels: Mapping[str, Mapping[str, Estimate]]
    overall: Mapping[str, Estimate]
    statuses: Mapping[str, Mapping[Status, int]]
    cases: int
    subjects: int
    tolerances_mm: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON; ``None`` for what is not known."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def summarise(rows: Sequence[Row], samples: int = 2000, seed: int = 0) -> Summary:
    """Means of all measures with bootstrap 95 % intervals over subjects.

    Args:
        rows: one for each case and label.
        samples: resamples, see :func:`~accunet_monai.evaluation.bootstrap`.
        seed: of the resamples.

    Raises:
        DatasetError: ``TABLE_INVALID`` for no rows.
    """
    if not rows:
        raise DatasetError("TABLE_INVALID", "there are no cases to average.")
    cases, labels = names_of(rows)
    subjects = subjects_of(rows)
    of_case = [subjects[case] for case in cases]
    found = {name: bootstrap(table_of(rows, name), of_case, samples, seed) for name in MEASURES}
    counts = {label: Counter(row["status"] for row in rows if row["label"] == label) for label in labels}
    return Summary(
        labels={label: {name: found[name][index] for name in MEASURES} for index, label in enumerate(labels)},
        overall={name: found[name][-1] for name in MEASURES},
        statuses={label: {status: counts[label][status] for status in STATUSES} for label in labels},
        cases=len(cases),
        subjects=len(set(of_case)),
        tolerances_mm=tuple(sorted({row["tolerance_mm"] for row in rows})),
    )


def names_of(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """(cases, labels), each once, in the order of the rows."""
    return list(dict.fromkeys(row["case"] for row in rows)), list(dict.fromkeys(row["label"] for row in rows))


def subjects_of(rows: Sequence[Row]) -> dict[str, str]:
    """Case → subject."""
    return {row["case"]: row["subject"] for row in rows}


def table_of(rows: Sequence[Row], measure: str) -> Floats:
    """Values of a measure, (cases, labels); NaN where undefined."""
    cases, labels = names_of(rows)
    place = {case: index for index, case in enumerate(cases)}, {label: index for index, label in enumerate(labels)}
    table = np.full((len(cases), len(labels)), math.nan)
    for row in rows:
        table[place[0][row["case"]], place[1][row["label"]]] = row[measure]
    return table


def worst_first(rows: Sequence[Row], measure: str = "dice") -> list[str]:
    """Cases by the mean of a measure over their labels, the worst first, those without a value last.

    Raises:
        DatasetError: ``MEASURE_UNKNOWN``.
    """
    kind = known_measure(measure)
    cases, _ = names_of(rows)
    table = table_of(rows, measure)
    table = np.abs(table) if kind.signed else table
    known = ~np.isnan(table)
    scores = np.where(known, table, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    scores = np.where(known.any(axis=1), scores if kind.higher_is_better else -scores, math.inf)
    return [cases[index] for index in np.argsort(scores, kind="stable")]


def known_measure(name: str) -> Measure:
    """The measure of this name.

    Raises:
        DatasetError: ``MEASURE_UNKNOWN``.
    """
    if name not in MEASURES:
        raise DatasetError("MEASURE_UNKNOWN", f"no measure {name!r}.", hint=f"There are {', '.join(MEASURES)}.")
    return MEASURES[name]


def plain(value: Any) -> Any:
    """Nested dataclass content for JSON: NaN as ``None``."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
