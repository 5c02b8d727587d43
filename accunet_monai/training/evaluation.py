"""Dice per case and label, its means, and the tables that show them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data import MetaTensor
from rich.console import Console
from rich.table import Table
from torch import Tensor

from accunet_monai.errors import DatasetError
from accunet_monai.volumes import atomic_output

Row = dict[str, Any]


def dice_per_label(
    prediction: Tensor, reference: Tensor, labels: Sequence[int], ignore_label: int | None = None
) -> dict[int, float]:
    """Dice of each label between two label maps of one shape; NaN where neither has the label.

    Args:
        prediction: integer label map of any shape.
        reference: integer label map of the same shape.
        labels: the label values to compare.
        ignore_label: value of the reference whose voxels do not count.
    """
    scores: dict[int, float] = {}
    for label in labels:
        found, expected = prediction == label, reference == label
        if ignore_label is not None:
            found &= reference != ignore_label
        total = int(found.sum()) + int(expected.sum())
        scores[label] = 2 * int((found & expected).sum()) / total if total else float("nan")
    return scores


def cases_of(engine: Engine) -> list[dict[str, Any]]:
    """The decollated batch and output of a MONAI engine's last iteration, joined: one mapping per case."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return [{**before, **after} for before, after in zip(batch, output, strict=True)]


class CaseMetric(Metric):
    """Ignite metric with rows for each case, made from label maps. With several processes, all end with all rows.

    Args:
        labels: label value → name, of the foreground labels.
        prediction_key: key of the predicted label map (1, *spatial) in the engine's decollated output.
        reference_key: key of the reference label map of the same shape.
        ignore_label: value of the reference whose voxels do not count.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        prediction_key: str = "pred",
        reference_key: str = "label",
        ignore_label: int | None = None,
    ) -> None:
        self.labels = {int(value): str(name) for value, name in labels.items()}
        self.prediction_key = prediction_key
        self.reference_key = reference_key
        self.ignore_label = ignore_label
        self.rows: list[Row] = []
        self.rows_per_case = 1
        super().__init__()

    def reset(self) -> None:
        """Forget all cases."""
        self.rows = []

    def iteration_completed(self, engine: Engine) -> None:
        """Add the engine's decollated batch; keys of the batch are seen beside those of the output."""
        self.update(cases_of(engine))

    def completed(self, engine: Engine, name: str) -> None:
        """Gather the rows of all processes, then give the engine the metric's value."""
        self.rows = gathered_rows(self.rows, self.rows_per_case)
        super().completed(engine, name)

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add cases: one mapping each, with prediction, reference and, if known, ``case``."""
        for case in output:
            prediction, reference = case[self.prediction_key], case[self.reference_key]
            if prediction.shape != reference.shape:
                raise ValueError(f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} differ")
            self.rows += self.rows_of(case)

    def rows_of(self, case: Mapping[str, Any]) -> list[Row]:
        """The rows of a case, each with ``case``, its name."""
        raise NotImplementedError

    def label_means(self) -> dict[str, float]:
        """Mean Dice of each label over the cases where prediction or reference has it."""
        raise NotImplementedError

    def compute(self) -> float:
        """Mean over the labels of the mean Dice over the cases (0 when there is no case)."""
        means = [mean for mean in self.label_means().values() if mean == mean]
        return sum(means) / len(means) if means else 0.0


class CaseDice(CaseMetric):
    """Ignite metric: Dice of each case and label from label maps; quick, for validation during training.

    Its value is the mean over labels of the mean over cases. Where neither prediction nor reference has a label, the
    case is left out of that label's mean (a dash in the table); a label found where there is none scores 0.
    ``rows`` has one mapping for each case: ``case`` and the Dice by the label's name.
    """

    def rows_of(self, case: Mapping[str, Any]) -> list[Row]:
        """One row: ``case``, and the Dice of each label."""
        prediction, reference = case[self.prediction_key].cpu(), case[self.reference_key].cpu()
        scores = dice_per_label(prediction, reference, list(self.labels), self.ignore_label)
        return [{"case": case_name_of(case), **{self.labels[label]: score for label, score in scores.items()}}]

    def label_means(self) -> dict[str, float]:
        """Mean Dice of each label over the cases where prediction or reference has it."""
        return {name: _mean([row[name] for row in self.rows]) for name in self.labels.values()}


def gathered_rows(rows: Sequence[Row], per_case: int = 1) -> list[Row]:
    """The rows of all processes in the order of the dataset, each case once; every process must call this.

    A distributed sampler deals out the cases in turn, and gives some processes a case again so that all have equally
    many: such repeats are dropped.

    Args:
        rows: of this process, each with the name of its ``case``.
        per_case: number of rows that each case has, one after the other.

    Raises:
        DatasetError: ``CASE_TWICE`` when more cases have one name than a sampler repeats.
    """
    if idist.get_world_size() == 1:
        return list(rows)
    mine = [list(rows[start : start + per_case]) for start in range(0, len(rows), per_case)]
    gathered: list[list[list[Row]]] = idist.all_gather(mine)  # type: ignore[assignment]
    turns = [case for turn in zip_longest(*gathered) for case in turn if case is not None]
    found: dict[str, list[Row]] = {}
    for case in turns:
        found.setdefault(case[0]["case"], case)
    if len(turns) - len(found) >= idist.get_world_size():
        message = f"{len(turns)} cases have only {len(found)} names, e.g. {next(iter(found))!r}."
        raise DatasetError("CASE_TWICE", message, hint="Give each case a name of its own.")
    return [row for case in found.values() for row in case]


def print_case_table(metric: CaseDice, title: str, console: Console | None = None) -> None:
    """Print one row per case, worst first, and the means."""
    names = list(metric.labels.values())
    table = Table(title=title)
    for column in ("case", *names, "mean"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in sorted(metric.rows, key=lambda row: _mean([row[name] for name in names])):
        table.add_row(
            row["case"], *(_figure(row[name]) for name in names), _figure(_mean([row[name] for name in names]))
        )
    table.add_section()
    means = metric.label_means()
    table.add_row("mean", *(_figure(means[name]) for name in names), _figure(metric.compute()), style="bold")
    (console or Console()).print(table)


def write_case_table(metric: CaseDice, path: str | os.PathLike[str]) -> Path:
    """Write the rows as CSV (``case`` and one column per label), atomically."""
    with atomic_output(path) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        writer = csv.DictWriter(file, ["case", *metric.labels.values()])
        writer.writeheader()
        writer.writerows(metric.rows)
        file.flush()
        file.detach()
    return Path(path)


def case_name_of(case: Mapping[str, Any]) -> str:
    """The name of a case: ``case``, else that of its image's file."""
    if "case" in case:
        return str(case["case"])
    image = case.get("image")
    source = image.meta.get("filename_or_obj", "?") if isinstance(image, MetaTensor) else "?"
    return Path(str(source)).name.removesuffix(".gz").removesuffix(".nii")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _figure(value: float) -> str:
    return f"{value:.4f}" if value == value else "–"
