"""Rows as an evaluation gives them, made from few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from accunet_monai.evaluation import Row


def row(case: str, label: str = "one", dice: float = 0.8, subject: str | None = None, **more: object) -> Row:
    return {
        "case": case,
        "subject": subject or case,
        "label": label,
        "status": "neither" if math.isnan(dice) else "both",
        "dice": dice,
        "iou": dice / (2 - dice),
        "hd95_mm": 10 * (1 - dice),
        "surface_dice": dice,
        "tolerance_mm": 1.0,
        "volume_prediction_ml": 2.0 + dice,
        "volume_reference_ml": 3.0,
        "volume_error_ml": dice - 1,
        "volume_error_percent": 100 * (dice - 1) / 3,
        **more,
    }


def rows_of(dice: Mapping[str, Sequence[float]], subjects: Mapping[str, str] | None = None) -> list[Row]:
    """From case → Dice of the labels one, two, …."""
    names = ("one", "two", "three")
    return [
        row(case, name, value, (subjects or {}).get(case))
        for case, values in dice.items()
        for name, value in zip(names, values, strict=False)
    ]
