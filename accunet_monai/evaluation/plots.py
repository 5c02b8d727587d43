"""Pictures of evaluations as PNG: agreement of volumes, spread of the measures, calibration. Needs matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accunet_monai.evaluation.calibration import Reliability
from accunet_monai.evaluation.measures import Row
from accunet_monai.evaluation.summary import MOST_LABELS, known_measure
from accunet_monai.volumes import atomic_output, label_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

NORMAL_95 = 1.96
"""Standard deviations on either side of a normal distribution's middle that hold 95 % of it."""


def bland_altman(rows: Sequence[Row], path: PathLike) -> Path:
    """Volume error against the mean of both volumes, a panel for each label (Bland & Altman, Lancet 1986).

    Each case is a point; lines are the mean error and the limits of agreement, 1.96 standard deviations around it.

    Args:
        rows: one for each case and label; cases that have the label nowhere are left out.
        path: the PNG.
    """
    labels = _labels(rows)
    figure, panels = _panels(len(labels))
    for index, (label, panel) in enumerate(zip(labels, panels, strict=True)):
        chosen = [row for row in rows if row["label"] == label and row["status"] != "neither"]
        pairs = np.array([(row["volume_prediction_ml"], row["volume_reference_ml"]) for row in chosen]).reshape(-1, 2)
        means, errors = pairs.mean(axis=1), pairs[:, 0] - pairs[:, 1]
        panel.axhline(0, color="0.75", linewidth=1)
        panel.scatter(means, errors, s=22, color=_colour(index), edgecolor="0.25", linewidth=0.5, zorder=3)
        if len(errors) > 1:
            bias, spread = float(errors.mean()), NORMAL_95 * float(errors.std(ddof=1))
            panel.axhline(bias, color="0.2", linewidth=1.2)
            panel.axhspan(bias - spread, bias + spread, color="0.5", alpha=0.12, linewidth=0)
            note = f"{bias:+.3g} ml, limits {bias - spread:+.3g} to {bias + spread:+.3g}"
            panel.set_title(f"{label}\n{note}", fontsize=10)
        else:
            panel.set_title(label, fontsize=10)
        panel.set_xlabel("mean of both volumes (ml)")
        panel.set_ylabel("prediction − reference (ml)")
    return _save(figure, path)


def label_boxes(rows: Sequence[Row], path: PathLike, measures: Sequence[str] = ("dice", "hd95_mm")) -> Path:
    """Box plots of measures by label, with a point for each case.

    The box holds the middle half of the cases and the median; whiskers reach to the last case within 1.5 box heights.

    Args:
        rows: one for each case and label.
        path: the PNG.
        measures: a panel for each.

    Raises:
        DatasetError: ``MEASURE_UNKNOWN``.
    """
    labels = _labels(rows)
    many = len(labels) > MOST_LABELS
    figure, panels = _panels(
        len(measures), width=1.6 + len(labels) * (0.3 if many else 1.1), columns=1 if many else len(measures)
    )
    draw = np.random.default_rng(0)
    for name, panel in zip(measures, panels, strict=True):
        values = [
            [row[name] for row in rows if row["label"] == label and not math.isnan(row[name])] for label in labels
        ]
        panel.boxplot(
            values,
            widths=0.5,
            showfliers=False,
            medianprops={"color": "0.1", "linewidth": 1.5},
            boxprops={"color": "0.4"},
        )
        for index, of_label in enumerate(values):
            places = index + 1 + draw.uniform(-0.17, 0.17, len(of_label))
            panel.scatter(places, of_label, s=16, color=_colour(index), edgecolor="0.25", linewidth=0.4, zorder=3)
        between = ", " if many else "\n"
        names = [f"{label}{between}n = {len(of_label)}" for label, of_label in zip(labels, values, strict=True)]
        slant = 90 if many else 30 if max(map(len, labels)) > 10 and len(labels) > 2 else 0
        panel.set_xticks(range(1, len(labels) + 1), names, fontsize=9, rotation=slant)
        panel.set_ylabel(known_measure(name).title)
        panel.grid(axis="y", color="0.9")
    return _save(figure, path)


def reliability_diagram(counts: Reliability, path: PathLike) -> Path:
    """Share of voxels that have a label against the probability they were given, a panel for each label.

    On the dashed line probabilities mean what they say; below it the network is too sure. Points grow with
    the number of voxels.

    Args:
        counts: of all cases.
        path: the PNG.
    """
    figure, panels = _panels(len(counts.labels))
    for index, (label, panel) in enumerate(zip(counts.labels, panels, strict=True)):
        given, share, voxels = counts.curve(label)
        sizes = 12 + 90 * np.sqrt(voxels / max(voxels[1:].max(initial=1), 1)).clip(0, 1)
        panel.plot([0, 1], [0, 1], linestyle="--", color="0.6", linewidth=1)
        panel.plot(given, share, color=_colour(index), linewidth=1.5)
        panel.scatter(given, share, s=sizes, color=_colour(index), edgecolor="0.25", linewidth=0.5, zorder=3)
        error = counts.expected_error(label)
        note = "" if math.isnan(error) else f"\nexpected calibration error {error:.3f}"
        panel.set_title(label + note, fontsize=10)
        panel.set_xlabel("probability")
        panel.set_ylabel("share of voxels with the label")
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    return _save(figure, path)


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows))


def _panels(count: int, width: float = 4.2, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure drawn without any window, with so many panels, in rows of at most so many columns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(max(count, 1), columns)
    lines = -(-max(count, 1) // columns)
    figure = Figure(figsize=(width * columns, 3.8 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Any] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    for panel in panels[:count]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]


def _colour(index: int) -> tuple[float, float, float]:
    red, green, blue = (part / 255 for part in label_colour(index + 1))
    return red, green, blue


def _save(figure: Figure, path: PathLike) -> Path:
    with atomic_output(path) as stream:
        figure.savefig(stream, format="png", metadata={"Software": None})
    return Path(path)
