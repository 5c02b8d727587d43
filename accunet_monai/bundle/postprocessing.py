"""Label maps with the uncertainty of each voxel, and maps brought back to the image's grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor

from accunet_monai.inferers import SliceInferer
from accunet_monai.inferers.labels import LabelRule

STEPS = 255
"""An uncertainty is stored as one of so many steps, beside the label in one number, and so in the file."""


def with_uncertainty(inferer: Inferer, batch: Tensor, network: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """What an inferer gives, and the entropy of the probabilities (N, 1, *spatial), float32 of 0 to 1.

    With a :class:`~accunet_monai.inferers.SliceInferer` that gives label maps, the entropy is computed slab by slab, as
    the label map is; four bytes a voxel are held. Other inferers hold all logits or probabilities anyway.

    Args:
        inferer: of a bundle.
        batch: (N, C, *spatial).
        network: for the inferer.
    """
    if isinstance(inferer, SliceInferer) and inferer.output == "label_map":
        packed = _UncertainInferer.like(inferer)(batch, network)
        return packed // (STEPS + 1), (packed % (STEPS + 1)).float() / STEPS
    output = inferer(batch, network)
    rule = inferer.rule if isinstance(inferer, SliceInferer) else LabelRule()
    are_probabilities = isinstance(inferer, SliceInferer) and inferer.output == "probabilities"
    return output, entropy(output if are_probabilities else rule.probabilities(output, 1), rule.regions is not None)


def entropy(probabilities: Tensor, regions: bool = False) -> Tensor:
    """Entropy of probabilities (N, classes, *spatial) as a share of the highest possible: (N, 1, *spatial) of 0 to 1.

    Of one channel it is that of the channel and its complement, of ``regions`` the largest of all channels' own. Class
    by class, so that no second tensor of all classes is made.

    Example:
        >>> entropy(torch.tensor([[[1.0, 0.5, 0.0]]]))
        tensor([[[0., 1., 0.]]])
    """
    channels = [probabilities[:, index : index + 1].float() for index in range(probabilities.shape[1])]
    if regions or len(channels) == 1:
        total = torch.zeros_like(channels[0])
        for channel in channels:
            total = torch.maximum(total, -torch.xlogy(channel, channel) - torch.xlogy(1 - channel, 1 - channel))
        return (total / math.log(2)).clamp_(0, 1)
    total = torch.zeros_like(channels[0])
    for channel in channels:
        total -= torch.xlogy(channel, channel)
    return (total / math.log(len(channels))).clamp_(0, 1)


def on_image_grid(values: Tensor, image: Any, preprocessing: Any) -> np.ndarray[Any, Any]:
    """A map (1, *spatial) on the grid that the preprocessing gave → float32 (*spatial) on the image's own.

    Interpolated linearly where the preprocessing resamples.

    Args:
        values: on the grid of ``image``.
        image: the preprocessed image, a MetaTensor that knows what was done to it.
        preprocessing: what did it.
    """
    from monai.transforms import Invertd

    if getattr(image, "applied_operations", None):  # else it lies on the image's grid already
        inverse = Invertd("map", preprocessing, orig_keys="image", nearest_interp=False)
        values = inverse({"map": values, "image": image})["map"]
    result: np.ndarray[Any, Any] = np.clip(np.asarray(values, dtype=np.float32)[0], 0, 1)
    return result


class _UncertainRule(LabelRule):
    """Gives each voxel one number: its label times 256, plus its entropy in steps of 1/255."""

    def label_map(self, values: Tensor, *, are_logits: bool) -> Tensor:
        labels = super().label_map(values, are_logits=are_logits).to(torch.int32)
        probabilities = self.probabilities(values, 1) if are_logits else values
        steps = (entropy(probabilities, self.regions is not None)[:, 0] * STEPS).round_().to(torch.int32)
        return labels * (STEPS + 1) + steps

    def label_type(self, channels: int) -> torch.dtype:
        return torch.int32


class _UncertainInferer(SliceInferer):
    """A SliceInferer whose label maps are those of :class:`_UncertainRule`."""

    @classmethod
    def like(cls, inferer: SliceInferer) -> _UncertainInferer:
        """One with all settings of another."""
        made = cls.__new__(cls)
        made.__dict__.update(vars(inferer))
        return made

    @property
    def rule(self) -> LabelRule:
        return _UncertainRule(self.threshold, self.regions)
