"""Names of metrics that MLflow takes."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST_LABEL = 200  # characters of a label in a metric's name, of which MLflow takes 250


def metric_names(prefix: str, labels: Iterable[str]) -> dict[str, str]:
    """Label → a name for its metric that MLflow takes, another one for each label.

    Example:
        >>> metric_names("dice_", ["tumour (core)", "tumour_core_", "T1+"])
        {'tumour (core)': 'dice_tumour_core_', 'tumour_core_': 'dice_tumour_core__2', 'T1+': 'dice_T1_'}
    """
    found: dict[str, str] = {}
    for label in labels:
        name = plain = prefix + re.sub(r"[^\w.-]+", "_", label)[:_LONGEST_LABEL]
        count = 1
        while name in found.values():
            count += 1
            name = f"{plain}_{count}"
        found[label] = name
    return found
