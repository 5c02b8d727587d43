"""Learning rates over the iterations of a training, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from accunet_monai.errors import NetworkError, did_you_mean

RESTART_EPOCHS = 10
"""T₀ of the paper's cosine restarts."""
RESTART_MINIMUM = 1e-4
"""Their lowest learning rate."""
POLY_POWER = 0.9
"""As in nnU-Net and DeepLab."""
_LEAST_STEPS = 12
"""OneCycleLR with a rise of a tenth of fewer than 11 steps divides by zero."""


def make_schedule(
    name: str,
    optimizer: Optimizer,
    epochs: int,
    epoch_length: int,
    warmup: float = 0.0,
) -> LRScheduler:
    """A schedule by name, to be stepped after each iteration.

    ``constant``; ``poly``: (1 − t)^0.9 of the optimiser's learning rate; ``cosine_restarts``: as the paper has it, from
    the learning rate down to 1e-4 within ten epochs, then again, changed at each epoch's end; ``one_cycle``: PyTorch's
    ``OneCycleLR``, whose rise is its warm-up and which moves Adam's first beta the other way.

    Args:
        name: of the schedule.
        optimizer: its groups' learning rates are the highest.
        epochs: of the training.
        epoch_length: iterations of an epoch.
        warmup: share of all iterations in which the learning rate rises, linearly but for ``one_cycle``; 0.1 there for
            0.

    Raises:
        NetworkError: ``SCHEDULE_UNKNOWN``.
    """
    steps = max(1, epochs * epoch_length)
    if name == "one_cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, highest, total_steps=max(_LEAST_STEPS, steps + 1), pct_start=warmup or 0.1)
    base = optimizer.param_groups[0]["lr"]
    shapes: dict[str, Callable[[int], float]] = {
        "constant": lambda step: 1.0,
        "poly": lambda step: max(0.0, 1 - step / steps) ** POLY_POWER,
        "cosine_restarts": lambda step: cosine_restarts(step // epoch_length, base) / base,
    }
    if name not in shapes:
        known = (*shapes, "one_cycle")
        hint = did_you_mean(name, known) or f"There are {', '.join(known)}."
        raise NetworkError("SCHEDULE_UNKNOWN", f"there is no schedule {name!r}.", hint=hint)
    rise, shape = warmup * steps, shapes[name]
    return LambdaLR(optimizer, lambda step: shape(step) * (min(1.0, (step + 1) / rise) if rise else 1.0))


def cosine_restarts(epoch: int, highest: float) -> float:
    """The published learning rate in an epoch, counted from 0 (Loshchilov & Hutter 2017, without growing periods).

    Example:
        >>> [round(cosine_restarts(epoch, 1e-3), 6) for epoch in (0, 5, 9, 10)]
        [0.001, 0.00055, 0.000122, 0.001]
    """
    phase = epoch % RESTART_EPOCHS / RESTART_EPOCHS
    lowest = min(RESTART_MINIMUM, highest)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * phase)) / 2
