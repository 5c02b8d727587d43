"""All that is random in a training as a function of its seed and the iteration."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from accunet_monai.training.distributed import rank


class Repeatable:
    """Sets what random numbers an iteration sees: the sampler's epoch, and the seeds of the global generators.

    The sampler is told the epoch and how many of its batches are done already; the generators of PyTorch, NumPy and
    Python are seeded by (seed, process, iteration), for dropout and the like. However often a training was interrupted,
    and whatever drew random numbers in between, an iteration sees the same.

    Args:
        seed: of the training.
        sampler: with ``set_epoch(epoch, skip)``, as ``SliceSampler``; ``None`` leaves the order of the data alone.
    """

    def __init__(self, seed: int, sampler: Any = None) -> None:
        self.seed = seed
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration)

    def _epoch(self, engine: Engine) -> None:
        if self.sampler is not None:
            length = engine.state.epoch_length
            self.sampler.set_epoch(engine.state.epoch, engine.state.iteration % length if length else 0)

    def _iteration(self, engine: Engine) -> None:
        text = f"{self.seed} {rank()} {engine.state.iteration}"
        drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        torch.manual_seed(drawn >> 1)
        np.random.seed(drawn % 2**32)  # noqa: NPY002 (MONAI's and others' global generator)
        random.seed(drawn)
