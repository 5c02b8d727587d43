"""One slice from its windows: blended where they overlap, averaged over mirrorings."""

from __future__ import annotations

import torch
from torch import Tensor

from accunet_monai.inferers.labels import LabelRule
from accunet_monai.inferers.plan import SlicePlan
from accunet_monai.inferers.windows import Window


class SliceBlend:
    """Collects one output of the network over the windows of one slice.

    Overlapping windows are blended as logits, as MONAI does; mirrorings are then averaged.

    Args:
        plan: of the slices.
        rule: to make probabilities before mirrorings are averaged, or None to leave logits.
    """

    def __init__(self, plan: SlicePlan, rule: LabelRule | None) -> None:
        self._plan, self._rule = plan, rule
        self._sums: list[Tensor | None] = [None] * len(plan.flips)
        self._weights: Tensor | None = None
        self._empty = torch.empty(0)  # in the shape, precision and place of a slice's result
        self._windows = 0

    def add(self, window: Window, output: Tensor) -> None:
        """Add the output (channels, rows, columns) of a window, whose memory may be used again afterwards."""
        plan, place = self._plan, (..., *self._plan.windows[window.number])
        if not len(self._empty):
            dtype = output.dtype if output.is_floating_point() else torch.float32
            self._empty = torch.empty((), dtype=dtype, device=output.device).expand(len(output), *plan.plane)
        if not window.used:
            return
        self._windows += window.flip == 0
        dims = [dim - 1 for dim in plan.flips[window.flip] if dim != 0]  # of the stack → of the output
        output = output.flip(dims)  # a copy in any case
        if len(plan.windows) == 1:
            self._sums[window.flip] = output
            return
        weight = plan.weight.to(output.device)
        total = self._sums[window.flip]
        if total is None:
            dtype = torch.promote_types(output.dtype, weight.dtype)
            total = self._sums[window.flip] = output.new_zeros((len(output), *plan.padded), dtype=dtype)
        total[place] += output * weight
        if window.flip == 0:
            self._weights = weight.new_zeros(plan.padded) if self._weights is None else self._weights
            self._weights[place] += weight

    def mean(self) -> Tensor:
        """(channels, rows, columns): logits in the network's precision, or probabilities in float32 at least.

        What no window covers is background. The collected sums are used up.
        """
        mean: Tensor | None = None
        while self._sums:
            total = self._sums.pop()
            if total is not None:
                values = self._values(self._plan.unpad(self._blended(total)))
                mean = values if mean is None else mean + values
        if mean is None:
            return self._background()
        if len(self._plan.flips) > 1:
            mean = mean / len(self._plan.flips)
        if self._rule is None:
            return mean.to(self._empty.dtype)
        if self._windows == len(self._plan.windows) or self._weights is None:
            return mean
        return torch.where(self._plan.unpad(self._weights) > 0, mean, self._rule.background(mean))

    def _values(self, logits: Tensor) -> Tensor:
        """Probabilities, or logits in a precision to average them in."""
        if self._rule is not None:
            return self._rule.probabilities(logits)
        return logits if len(self._plan.flips) == 1 else logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _blended(self, total: Tensor) -> Tensor:
        """Sums → means, rounded to the precision of the network's output, as one window's are."""
        return total if self._weights is None else (total / self._weights).to(self._empty.dtype)

    def _background(self) -> Tensor:
        if self._rule is None:
            raise ValueError("a slice without windows has no logits")
        return self._rule.background(torch.zeros_like(self._empty, dtype=torch.float32))
