"""Which cleaning of label maps helps, found on predictions of cases that the networks were not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.volumes.cleaning import clean_labels

LabelMap = npt.NDArray[Any]
Scores = dict[tuple[int, str], float]
"""(label, way to clean it) → Dice."""

CANDIDATES: dict[str, tuple[str, ...]] = {
    "none": (),
    "largest_component": ("largest_component",),
    "fill_holes": ("fill_holes",),
    "both": ("largest_component", "fill_holes"),
}
"""Ways to clean a label, from doing least to doing most."""

LEAST_GAIN = 1e-4
"""Mean Dice that a way must add to one that does less."""


def cleaning_scores(
    prediction: LabelMap,
    reference: LabelMap,
    voxel_mm3: float,
    labels: Sequence[int],
    ignore_label: int | None = None,
) -> Scores:
    """Dice of each label after each way to clean it; NaN where neither has it.

    Args:
        prediction: label map (X, Y, Z).
        reference: the expert's.
        voxel_mm3: volume of a voxel.
        labels: label values.
        ignore_label: voxels with this value in the reference are cleaned like all others, but do not count.

    Returns:
        (label, way) → Dice.
    """
    scores: Scores = {}
    counted = np.ones(reference.shape, bool) if ignore_label is None else reference != ignore_label
    for label in labels:
        expected = (reference == label) & counted
        for way, steps in CANDIDATES.items():
            largest, holes = ([label] if step in steps else [] for step in ("largest_component", "fill_holes"))
            cleaned = clean_labels(prediction, voxel_mm3, largest_component=largest, fill_holes=holes)
            found = (cleaned == label) & counted
            total = np.count_nonzero(found) + np.count_nonzero(expected)
            scores[label, way] = 2 * np.count_nonzero(found & expected) / total if total else float("nan")
    return scores


def choose_cleaning(scores: Sequence[Scores], labels: Sequence[int]) -> dict[int, str]:
    """Label → the way with the highest mean Dice over these cases; of ways that differ by nothing the first.

    Args:
        scores: :func:`cleaning_scores` of cases.
        labels: label values.
    """
    chosen = {}
    for label in labels:
        best, best_mean = "none", -1.0
        for way in CANDIDATES:
            values = [case[label, way] for case in scores]
            known = [value for value in values if value == value]
            mean = sum(known) / len(known) if known else 0.0
            if mean > best_mean + LEAST_GAIN:
                best, best_mean = way, mean
        chosen[label] = best
    return chosen


def cleaning_arguments(chosen: Mapping[int, str]) -> dict[str, list[int]]:
    """As ``clean_labels`` and ``CleanLabelsd`` take them: step → labels.

    Example:
        >>> cleaning_arguments({1: "none", 2: "both", 3: "fill_holes"})
        {'largest_component': [2], 'fill_holes': [2, 3]}
    """
    steps = ("largest_component", "fill_holes")
    found = {step: [label for label, way in chosen.items() if step in CANDIDATES[way]] for step in steps}
    return {step: members for step, members in found.items() if members}
