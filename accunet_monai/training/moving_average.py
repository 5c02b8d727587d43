"""The moving average of a network's weights, which is validated, kept and shipped."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine
from ignite.handlers import EMAHandler
from torch import nn


class MovingAverage:
    """Ignite's ``EMAHandler`` with a state that can be kept, or the network itself where no average is wanted.

    In the beginning the average follows at once and slows down over ``warmup`` iterations; buffers (running statistics
    of norms) are averaged as weights are.

    Args:
        network: whose weights are averaged.
        momentum: share of the new weights in each iteration, e.g. 0.005 for an average over about 200; ``None``: none.
        warmup: iterations in which the share goes down linearly from 0.5 to ``momentum``.

    Attributes:
        network: the averaged network; or the given one.
    """

    def __init__(self, network: nn.Module, momentum: float | None = None, warmup: int = 400) -> None:
        self.network = network
        self._handler: EMAHandler | None = None
        if momentum is not None:
            self._handler = EMAHandler(network, momentum, 0.5, warmup, handle_buffers="update")
            self.network = self._handler.ema_model

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self._handler is not None:
            self._handler.attach(engine)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of iterations in them."""
        if self._handler is None or self._handler.momentum_scheduler is None:
            return {}
        updates = self._handler.momentum_scheduler.event_index
        return {"network": self.network.state_dict(), "updates": updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if self._handler is not None and state and self._handler.momentum_scheduler is not None:
            self.network.load_state_dict(state["network"])
            self._handler.momentum_scheduler.event_index = state["updates"]
