"""Evaluations and comparisons on the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accunet_monai.evaluation.comparison import FEWEST_SUBJECTS, Comparison
from accunet_monai.evaluation.measures import MEASURES, Row, Status, mean_of
from accunet_monai.evaluation.resampling import Estimate
from accunet_monai.evaluation.summary import MOST_LABELS, Summary, known_measure, worst_first

SHOWN = ("dice", "surface_dice", "hd95_mm", "volume_error_percent")
"""Measures of the printed table; all are in the file."""

_COLOURS = {"better": "green", "worse": "red"}


def print_summary(summary: Summary, title: str = "", console: Console | None = None) -> None:
    """Print means with 95 % intervals by label, and how often a label was missed, made up or nowhere.

    Args:
        summary: of :func:`~accunet_monai.evaluation.summarise`.
        title: of the table.
        console: by default a new one.
    """
    tolerances = ", ".join(f"{tolerance:g}" for tolerance in summary.tolerances_mm)
    table = Table(title=escape(title) or None)
    table.add_column("label")
    for name in SHOWN:
        extra = f" ({tolerances} mm)" if name == "surface_dice" else ""
        table.add_column((MEASURES[name].title + extra).replace(" (", "\n("), justify="right", no_wrap=True)
    table.add_column("cases")
    for label, estimates in summary.labels.items():
        figures = [_estimate(estimates[name], MEASURES[name].digits) for name in SHOWN]
        table.add_row(escape(label), *figures, _counts(summary.statuses[label]), end_section=True)
    figures = [  # errors of different signs would cancel out
        "" if MEASURES[name].signed else _estimate(summary.overall[name], MEASURES[name].digits) for name in SHOWN
    ]
    table.add_row("mean of labels", *figures, str(summary.cases), style="bold")
    console = console or Console()
    console.print(table)
    console.print(_footnote(summary), style="dim", highlight=False, soft_wrap=True)


def print_cases(rows: Sequence[Row], title: str = "", console: Console | None = None) -> None:
    """Print the Dice of each case and label, the worst case first, and the mean HD95 of its labels.

    Of more than :data:`~accunet_monai.evaluation.summary.MOST_LABELS` labels only the mean is shown.

    Args:
        rows: one for each case and label.
        title: of the table.
        console: by default a new one.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    shown = labels if len(labels) <= MOST_LABELS else []
    of_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        of_case.setdefault(row["case"], {})[row["label"]] = row
    table = Table(title=escape(title) or None)
    for column in ("case", *shown, "mean Dice", "HD95 (mm)"):
        table.add_column(escape(column), justify="left" if column == "case" else "right")
    for case in worst_first(rows):
        found = [of_case[case].get(label, {}) for label in labels]
        dice = [row.get("dice", float("nan")) for row in found]
        distance = mean_of(row.get("hd95_mm", float("nan")) for row in found)
        figures = (_figure(value) for value in [*dice[: len(shown)], mean_of(dice)])
        table.add_row(escape(case), *figures, _figure(distance, 2))
    (console or Console()).print(table)


def print_comparison(comparison: Comparison, console: Console | None = None, worst: int = 5) -> None:
    """Print the mean change with its 95 % interval by label, the cases that changed most for the worse, the verdict.

    Args:
        comparison: of :func:`~accunet_monai.evaluation.compare`.
        console: by default a new one.
        worst: how many cases are shown.
    """
    measure = known_measure(comparison.measure)
    what = f"size of {measure.title}" if measure.signed else measure.title
    digits = measure.digits + 1
    console = console or Console()
    table = Table("label", "change, B − A", "cases", title=f"{what}, B against A")
    for label, estimate in comparison.labels.items():
        table.add_row(escape(label), estimate.text(digits), str(estimate.cases))
    table.add_section()
    table.add_row("mean of labels", comparison.overall.text(digits), str(comparison.overall.cases), style="bold")
    console.print(table)
    cases = Table("case", "A", "B", "change", title="largest changes for the worse")
    sign = 1 if measure.higher_is_better else -1
    shown = [item for item in comparison.changes if sign * item.change < 0][:worst]
    for item in shown:
        figures = (f"{value:.{digits}f}" for value in (item.a, item.b))
        cases.add_row(escape(item.case), *figures, f"{item.change:+.{digits}f}")
    if shown:
        console.print(cases)
    counts = f"{comparison.better} better, {comparison.worse} worse, {comparison.same} the same"
    left_out = f"; {comparison.one_sided} pairs left out: one run has no value" if comparison.one_sided else ""
    means = f"mean of A {_figure(comparison.mean_a, digits)}, of B {_figure(comparison.mean_b, digits)}"
    console.print(f"{means}; cases: {counts}{left_out}", highlight=False, soft_wrap=True)
    few = f" (fewer than {FEWEST_SUBJECTS} subjects)" if comparison.subjects < FEWEST_SUBJECTS else ""
    colour = _COLOURS.get(comparison.verdict, "yellow")
    console.print(f"B is: [bold {colour}]{comparison.verdict}[/]{few}", highlight=False, soft_wrap=True)


def _estimate(estimate: Estimate, digits: int) -> str:
    """The mean, and below it the interval."""
    interval = "" if math.isnan(estimate.low) else f"\n{estimate.low:.{digits}f}…{estimate.high:.{digits}f}"
    return _figure(estimate.mean, digits) + interval


def _counts(statuses: Mapping[Status, int]) -> str:
    """Number of cases, and of those that are not simply found."""
    words = {"only_reference": "missed", "only_prediction": "made up", "neither": "nowhere"}
    parts = [f"{count} {words[status]}" for status, count in statuses.items() if count and status in words]
    return "\n".join([str(sum(statuses.values())), *parts])


def _footnote(summary: Summary) -> str:
    counts = f"{_many(summary.cases, 'case')} of {_many(summary.subjects, 'subject')}"
    return (
        f"{counts}; below each mean its 95 % interval, by bootstrap over subjects. "
        "Labels missed or made up score 0 and have no HD95; where a label is nowhere, the case is left out."
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _figure(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if value == value else "–"
