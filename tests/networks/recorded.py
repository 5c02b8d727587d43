"""Reads ``tests/parity``: recorded outputs of the authors' implementation, and its weights by the formula there."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "parity"
CASES = {
    "acc_unet_rgb_binary": "published",
    "acc_unet_gray_3class": "published",
    "acc_unet_lite_gray_binary": "lite",
    "acc_unet_w_gray_binary": "weighted",
}
"""Case → variant."""


@functools.cache
def facts(case: str) -> dict[str, Any]:
    """``in_channels``, ``n_classes``, ``n_filts``, ``seed`` and ``state_dict_shapes``."""
    return json.loads((FOLDER / f"{case}.json").read_text())


def image_and_logits(case: str) -> tuple[Tensor, Tensor]:
    """The recorded input and output, float32."""
    with np.load(FOLDER / f"{case}.npz") as arrays:
        return torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["logits"])


def formula_weights(case: str) -> dict[str, Tensor]:
    """The authors' ``state_dict``, as ``tests/parity/README.md`` says it is drawn; a fresh dictionary each time."""
    return dict(_drawn_weights(case))


@functools.cache
def _drawn_weights(case: str) -> dict[str, Tensor]:
    shapes = facts(case)["state_dict_shapes"]
    rng = np.random.RandomState(facts(case)["seed"])
    weights = {}
    for key in sorted(shapes):
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
            continue
        drawn = _scaled(key, shapes[key], np.asarray(rng.standard_normal(shapes[key])))
        weights[key] = torch.from_numpy(drawn.astype(np.float32))
    return weights


def _scaled(key: str, shape: list[int], a: np.ndarray) -> np.ndarray:
    if key.endswith("running_var"):
        return 0.8 + np.abs(a) * 0.4
    if key.endswith("running_mean"):
        return a * 0.1
    if len(shape) == 4:
        return a * np.sqrt(1 / np.prod(shape[1:]))
    if len(shape) == 2:
        return a * np.sqrt(1 / shape[1])
    if key.endswith("weight"):
        return 0.9 + 0.1 * a
    if key.endswith(".W"):
        return np.full(shape, 0.3)
    return a * 0.05
