"""Dice per case and label, its means, and the tables that show them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from ignite.metrics import Metric
from monai.data import MetaTensor
from rich.console import Console
from rich.table import Table
from torch import Tensor

from accunet_monai.volumes import atomic_output

Row = dict[str, Any]


def dice_per_label(prediction: Tensor, reference: Tensor, labels: Sequence[int]) -> dict[int, float]:
    """Dice of each label between two label maps of one shape; NaN where neither has the label.

    Args:
        prediction: integer label map of any shape.
        reference: integer label map of the same shape.
        labels: the label values to compare.
    """
    scores: dict[int, float] = {}
    for label in labels:
        found, expected = prediction == label, reference == label
        total = int(found.sum()) + int(expected.sum())
        scores[label] = 2 * int((found & expected).sum()) / total if total else float("nan")
    return scores


def cases_of(engine: Engine) -> list[dict[str, Any]]:
    """The decollated batch and output of a MONAI engine's last iteration, joined: one mapping per case."""
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    return [{**before, **after} for before, after in zip(batch, output, strict=True)]


class CaseDice(Metric):
    """Ignite metric: Dice of each case and label from label maps.

    Its value is the mean over labels of the mean over cases. Where neither prediction nor reference has a label, the
    case is left out of that label's mean (a dash in the table); a label found where there is none scores 0.

    Args:
        labels: label value → name, of the foreground labels.
        prediction_key: key of the predicted label map (1, *spatial) in the engine's decollated output.
        reference_key: key of the reference label map of the same shape.
    """

    def __init__(self, labels: Mapping[int, str], prediction_key: str = "pred", reference_key: str = "label") -> None:
        self.labels = {int(value): str(name) for value, name in labels.items()}
        self.prediction_key = prediction_key
        self.reference_key = reference_key
        self.rows: list[Row] = []
        super().__init__()

    def reset(self) -> None:
        """Forget all cases."""
        self.rows = []

    def iteration_completed(self, engine: Engine) -> None:
        """Add the engine's decollated batch; keys of the batch are seen beside those of the output."""
        self.update(cases_of(engine))

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add cases: one mapping each, with prediction, reference and, if known, ``case``."""
        for case in output:
            prediction, reference = case[self.prediction_key], case[self.reference_key]
            if prediction.shape != reference.shape:
                raise ValueError(f"prediction {tuple(prediction.shape)} and reference {tuple(reference.shape)} differ")
            scores = dice_per_label(prediction.cpu(), reference.cpu(), list(self.labels))
            self.rows.append({"case": _name(case), **{self.labels[label]: score for label, score in scores.items()}})

    def compute(self) -> float:
        """Mean over the labels of the mean Dice over the cases (0 when there is no case)."""
        means = [mean for mean in self.label_means().values() if mean == mean]
        return sum(means) / len(means) if means else 0.0

    def label_means(self) -> dict[str, float]:
        """Mean Dice of each label over the cases where prediction or reference has it."""
        return {name: _mean([row[name] for row in self.rows]) for name in self.labels.values()}


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


def _name(case: Mapping[str, Any]) -> str:
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
