"""From logits to probabilities and label maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelRule:
    """What channels mean: classes that exclude each other, one mask, or overlapping regions.

    Attributes:
        threshold: on sigmoids, of one channel or of regions.
        regions: the label of each channel, if channels are overlapping regions. They are written in this order, so
            that later ones lie on top: whole tumour 1, core 2, enhancing 3.
    """

    threshold: float = 0.5
    regions: tuple[int, ...] | None = None

    def is_sigmoid(self, channels: int) -> bool:
        """Whether channels are independent of each other; else they are classes, the first of them background."""
        return channels == 1 or self.regions is not None

    def probabilities(self, logits: Tensor, dim: int = 0) -> Tensor:
        """Sigmoid or softmax over the channels along ``dim``, in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return torch.sigmoid(logits) if self.is_sigmoid(logits.shape[dim]) else torch.softmax(logits, dim)

    def background(self, probabilities: Tensor) -> Tensor:
        """Probabilities (channels, …) of what is background for certain, in the shape of those given."""
        certain = torch.zeros_like(probabilities)
        if not self.is_sigmoid(len(certain)):
            certain[0] = 1
        return certain

    def label_map(self, values: Tensor, *, are_logits: bool) -> Tensor:
        """(n, channels, …) → (n, …) of ``label_type``.

        Raises:
            ValueError: where there are more or fewer channels than regions.
        """
        channels = values.shape[1]
        if not self.is_sigmoid(channels):  # .max: argmax over the channels of contiguous memory is many times slower
            return values.max(1).indices.to(self.label_type(channels))
        label_map = torch.zeros(values[:, 0].shape, dtype=self.label_type(channels), device=values.device)
        masks = (torch.sigmoid(values) if are_logits else values) > self.threshold
        for label, mask in zip(self.regions or (1,), masks.unbind(1), strict=True):
            label_map.masked_fill_(mask, label)
        return label_map

    def check(self, channels: int) -> None:
        """Refuse a network whose channels are not the regions.

        Raises:
            ValueError: where there are more or fewer channels than regions.
        """
        if self.regions is not None and len(self.regions) != channels:
            raise ValueError(f"regions gives {len(self.regions)} labels, the network {channels} channels")

    def label_type(self, channels: int) -> torch.dtype:
        """The smallest of uint8, int16 and int32 that holds every label."""
        largest = max(self.regions) if self.regions else max(channels - 1, 1)
        types = (torch.uint8, torch.int16, torch.int32)
        return next(dtype for dtype in types if largest <= torch.iinfo(dtype).max)
