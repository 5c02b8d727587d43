"""A network as one compiled program, for inference."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn


class CompiledNetwork(nn.Module):
    """A network compiled as one graph; without gradients its weights are constants of it.

    Only then do PyTorch's CPU convolutions take activations and sums into themselves.
    """

    def __init__(self, network: nn.Module) -> None:
        from torch._inductor import config  # half a second

        super().__init__()
        self.network = network
        network.compile(fullgraph=True)
        self.weights_as_constants = partial(config.patch, freezing=True)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, *spatial) → logits (N, classes, *spatial)."""
        with self.weights_as_constants():  # asked for while PyTorch traces, so no option of ``compile`` would do
            logits: Tensor = self.network(x)
        return logits
