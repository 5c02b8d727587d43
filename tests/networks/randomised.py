"""Networks whose normalisations have something to say: fresh ones are identities, which hide mistakes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def randomise(module: Module, seed: int) -> Module:
    """Draw every parameter and running statistic anew from ``seed``, at the scale of ``tests/parity/README.md``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if key.endswith("running_var"):
                drawn = 0.8 + drawn.abs() * 0.4
            elif value.dim() > 1:
                drawn = drawn * value[0].numel() ** -0.5
            elif key.endswith("weight"):
                drawn = 0.9 + 0.1 * drawn
            else:
                drawn = drawn * 0.1
            value.copy_(drawn)
    return module


def calibrate(module: Module, image: Tensor) -> Module:
    """Set every running statistic to those of one pass over ``image``; in evaluation mode afterwards.

    Without it the gates of a random network halve its signal again and again, until logits hardly depend on the image.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(image)
    for norm in norms:
        norm.momentum = 0.1
    return module.eval()
