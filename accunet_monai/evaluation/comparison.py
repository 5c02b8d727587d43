"""Two evaluations of the same cases, case by case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation.measures import Measure, Row, mean_of
from accunet_monai.evaluation.resampling import Estimate, Floats, bootstrap
from accunet_monai.evaluation.summary import known_measure, names_of, plain, subjects_of
from accunet_monai.evaluation.tables import check_unique

Verdict = Literal["better", "worse", "no difference shown"]

FEWEST_SUBJECTS = 6
"""With fewer, no verdict: that five subjects all change in one direction happens by chance in one of 16 trials."""

SAME_REFERENCE = 1e-6
"""Share by which reference volumes of two tables may differ: they are products of the same whole numbers."""


@dataclass(frozen=True)
class CaseChange:
    """A case in both runs: means over the labels that both have a value for."""

    case: str
    subject: str
    a: float
    b: float
    change: float


@dataclass(frozen=True)
class Comparison:
    """Run B against run A on the same cases.

    Attributes:
        measure: what is compared; of volume errors the sizes are.
        labels: label → mean change (B − A) with its interval over subjects.
        overall: the mean of the labels' mean changes, with its interval.
        mean_a: mean of the labels' means in A, over the pairs that are compared.
        mean_b: of B.
        better: cases that are better in B, of those in ``changes``.
        worse: cases that are worse in B.
        same: cases that are neither.
        one_sided: pairs of a case and a label left out because only one of the runs has a value.
        changes: all cases that can be compared, the worst change first.
        subjects: number of subjects.
        verdict: on B: ``better`` or ``worse`` if the interval of the overall change lies on one side of 0 and there
            are at least :data:`FEWEST_SUBJECTS` subjects.
    """

    measure: str
    labels: Mapping[str, Estimate]
    overall: Estimate
    mean_a: float
    mean_b: float
    better: int
    worse: int
    same: int
    one_sided: int
    changes: tuple[CaseChange, ...]
    subjects: int
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers, for JSON; ``None`` for what is not known."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def compare(
    rows_a: Sequence[Row], rows_b: Sequence[Row], metric: str = "dice", samples: int = 2000, seed: int = 0
) -> Comparison:
    """Paired comparison of run B with run A: the mean change and its bootstrap 95 % interval over subjects.

    Both runs are resampled together: subjects are drawn, and the change of their cases is averaged. Where an empty
    reference is met by an empty prediction in one run and by a false one in the other, the empty one counts as 1 in
    Dice, IoU and surface Dice. Other pairs in which only one run has a value are left out and counted.

    Args:
        rows_a: of the run that was there before.
        rows_b: of the run that is to be judged.
        metric: one of :data:`~accunet_monai.evaluation.MEASURES`.
        samples: resamples.
        seed: of the resamples.

    Raises:
        DatasetError: ``COMPARE_CASES``, ``COMPARE_LABELS``, ``COMPARE_SUBJECTS`` or ``COMPARE_REFERENCE`` when the runs
            were not evaluated on the same cases, labels, subjects and references, ``COMPARE_TOLERANCE`` for surface
            Dice of two tolerances, ``CASE_TWICE``, ``MEASURE_UNKNOWN``.
    """
    measure = known_measure(metric)
    _check_alike(rows_a, rows_b, measure)
    cases, labels = names_of(rows_a)
    a, b = (_values(rows, cases, labels, measure) for rows in (rows_a, rows_b))
    if measure.overlap:
        nowhere_a, nowhere_b = np.isnan(a), np.isnan(b)
        a[nowhere_a & ~nowhere_b] = b[nowhere_b & ~nowhere_a] = 1.0
    paired = ~(np.isnan(a) | np.isnan(b))
    one_sided = int((np.isnan(a) ^ np.isnan(b)).sum())
    a[~paired] = b[~paired] = math.nan
    subjects = subjects_of(rows_a)
    of_case = [subjects[case] for case in cases]
    *by_label, overall = bootstrap(b - a, of_case, samples, seed)
    changes = _changes(cases, of_case, a, b)
    sign = 1 if measure.higher_is_better else -1
    gains = [sign * item.change for item in changes]
    return Comparison(
        measure=metric,
        labels=dict(zip(labels, by_label, strict=True)),
        overall=overall,
        mean_a=_mean_of_means(a),
        mean_b=_mean_of_means(b),
        better=sum(gain > 0 for gain in gains),
        worse=sum(gain < 0 for gain in gains),
        same=sum(gain == 0 for gain in gains),
        one_sided=one_sided,
        changes=tuple(sorted(changes, key=lambda item: sign * item.change)),
        subjects=len(set(of_case)),
        verdict=_verdict(overall, sign, len(set(of_case))),
    )


def _verdict(overall: Estimate, sign: int, subjects: int) -> Verdict:
    if subjects >= FEWEST_SUBJECTS and overall.low * overall.high > 0:  # false for NaN
        return "better" if sign * overall.low > 0 else "worse"
    return "no difference shown"


def _changes(cases: Sequence[str], subjects: Sequence[str], a: Floats, b: Floats) -> list[CaseChange]:
    found = []
    for index, (case, subject) in enumerate(zip(cases, subjects, strict=True)):
        before, after = mean_of(a[index].tolist()), mean_of(b[index].tolist())
        if not math.isnan(before):
            found.append(CaseChange(case, subject, before, after, after - before))
    return found


def _mean_of_means(values: Floats) -> float:
    return mean_of(mean_of(column) for column in values.T.tolist())


def _values(rows: Sequence[Row], cases: Sequence[str], labels: Sequence[str], measure: Measure) -> Floats:
    """(cases, labels) in the given order; of signed measures the size."""
    found = {(row["case"], row["label"]): row[measure.name] for row in rows}
    values = np.array([[found.get((case, label), math.nan) for label in labels] for case in cases])
    return np.abs(values) if measure.signed else values


def _check_alike(rows_a: Sequence[Row], rows_b: Sequence[Row], measure: Measure) -> None:
    for rows in (rows_a, rows_b):
        check_unique(rows)
    for code, word, column in (("COMPARE_CASES", "cases", "case"), ("COMPARE_LABELS", "labels", "label")):
        a, b = ({row[column] for row in rows} for rows in (rows_a, rows_b))
        if a != b:
            _refuse(code, f"the runs have different {word}: {_only('A', a - b)}{_only('B', b - a)}")
    one, other = ({(row["case"], row["label"]): row for row in rows} for rows in (rows_a, rows_b))
    if one.keys() != other.keys():
        _refuse(
            "COMPARE_CASES", f"labels of these cases differ: {_some({case for case, _ in one.keys() ^ other.keys()})}"
        )
    tests = [("COMPARE_SUBJECTS", "subjects of these cases differ", _other_subject)]
    tests += [("COMPARE_REFERENCE", "reference volumes of these cases differ", _other_reference)]
    if measure.name == "surface_dice":
        tests += [("COMPARE_TOLERANCE", "tolerances of these cases differ", _other_tolerance)]
    for code, message, differs in tests:
        cases = {key[0] for key in one if differs(one[key], other[key])}
        if cases:
            _refuse(code, f"{message}: {_some(cases)}")


def _other_subject(a: Row, b: Row) -> bool:
    return bool(a["subject"] != b["subject"])


def _other_reference(a: Row, b: Row) -> bool:
    volumes = a["volume_reference_ml"], b["volume_reference_ml"]
    return not any(map(math.isnan, volumes)) and not math.isclose(*volumes, rel_tol=SAME_REFERENCE)


def _other_tolerance(a: Row, b: Row) -> bool:
    return bool(a["tolerance_mm"] != b["tolerance_mm"])


def _refuse(code: str, message: str) -> None:
    raise DatasetError(code, f"{message.rstrip()}.", hint="Only evaluations of the same cases can be compared.")


def _only(run: str, names: set[str]) -> str:
    return f"only in {run} {_some(names)}; " if names else ""


def _some(names: set[str]) -> str:
    shown = sorted(names)[:5]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
