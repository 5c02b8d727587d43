"""How a batch goes through the network in training: in what precision, and in how many parts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from accunet_monai.errors import NetworkError
from accunet_monai.networks.blocks import running_statistics_kept

Precision = Literal["float32", "bfloat16", "float16"]


class TrainingForward(Inferer):
    """A MONAI inferer for trainers: autocast to bfloat16, and a batch in parts that fit the memory.

    In parts, all but the logits of a part is forgotten and computed a second time in the backward pass (gradient
    checkpointing). So any loss sees the whole batch, and its gradient is that of the whole batch, Dice included, which
    summed losses of small batches do not give. Batch norms take their statistics part by part.

    Args:
        precision: ``float16`` is the trainer's business (``amp=True``), because it needs a gradient scaler.
        parts: number of parts.
    """

    def __init__(self, precision: Precision = "float32", parts: int = 1) -> None:
        super().__init__()
        self.precision = precision
        self.parts = parts

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Image (N, C, *spatial) → what the network gives for it."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=True) if self._casts() else nullcontext():
            if self.parts == 1 or not torch.is_grad_enabled():
                return network(inputs, *args, **kwargs)
            found = [
                checkpoint(
                    network,
                    part,
                    use_reentrant=False,
                    context_fn=lambda: (nullcontext(), running_statistics_kept(network)),
                )
                for part in inputs.chunk(self.parts)
            ]
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return [torch.cat(level) for level in zip(*found, strict=True)]

    def _casts(self) -> bool:
        return self.precision == "bfloat16"


def uses_scaler(precision: str, device: str | torch.device) -> bool:
    """Whether a trainer needs ``amp=True``: float16 with a gradient scaler, on GPUs alone.

    Raises:
        NetworkError: ``PRECISION`` for float16 on a CPU, or a name that is none.
    """
    if precision not in ("float32", "bfloat16", "float16"):
        message = f"there is no precision {precision!r}."
        raise NetworkError("PRECISION", message, hint="There are float32, bfloat16 and float16.")
    if precision == "float16" and torch.device(device).type != "cuda":
        raise NetworkError("PRECISION", "float16 is trained on GPUs alone.", hint="Take bfloat16.")
    return precision == "float16"
