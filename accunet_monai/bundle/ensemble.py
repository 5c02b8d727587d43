"""Several networks as one: their probabilities averaged window by window, so that no volume of them is ever held."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accunet_monai.errors import BundleError

SMALLEST_PROBABILITY = 1e-30
"""Probabilities are raised to this before their logarithm is taken; float32 holds it, and no argmax depends on it."""


class AveragedNetworks(nn.Module):
    """Networks of equal input and output whose averaged probabilities are given as logits.

    Softmax (of one channel: sigmoid) of what comes out is the mean of the networks' own. An inferer uses it as any
    network, so the members cost time, and memory for their weights and one window each, but no volume of probabilities.

    Args:
        networks: images (N, C, *spatial) → logits (N, classes, *spatial).

    Raises:
        ValueError: there is none.

    Example:
        >>> sure, unsure = nn.Identity(), nn.Conv2d(1, 1, 1)
        >>> _ = nn.init.zeros_(unsure.weight), nn.init.zeros_(unsure.bias)
        >>> logits = AveragedNetworks([sure, unsure])(torch.full((1, 1, 2, 2), 20.0))
        >>> torch.sigmoid(logits).unique().round(decimals=4)  # of 1 and 0.5
        tensor([0.7500], grad_fn=<RoundBackward1>)
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("there are no networks to average")
        self.members = nn.ModuleList(networks)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, C, *spatial) → logits (N, classes, *spatial), float32 at least."""
        total: Tensor | None = None
        for member in self.members:
            logits = member(x, *args, **kwargs)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            binary = logits.shape[1] == 1
            pair = torch.stack([logits.neg(), logits]).sigmoid() if binary else logits.softmax(1)
            total = pair if total is None else total + pair
        if total is None:
            raise ValueError("there are no networks to average")
        mean = (total / len(self.members)).clamp_min(SMALLEST_PROBABILITY).log()
        return mean[1] - mean[0] if binary else mean


def check_alike(bundles: Sequence[Path], sections: Sequence[dict[str, Any]], labels: Sequence[dict[int, str]]) -> None:
    """Refuse bundles that cannot be averaged: all but the network must be the same, and the labels.

    Raises:
        BundleError: ``BUNDLE_ENSEMBLE``.
    """
    for bundle, section, names in zip(bundles[1:], sections[1:], labels[1:], strict=True):
        other = [
            name
            for name in sections[0] | section
            if name != "network_def" and section.get(name) != sections[0].get(name)
        ]
        if names != labels[0]:
            other.append("labels")
        if other:
            raise BundleError(
                "BUNDLE_ENSEMBLE",
                f"its {' and '.join(other)} differ from those of {os.fspath(bundles[0])}; only networks may.",
                path=bundle,
                hint="Predict with each bundle by itself.",
            )
