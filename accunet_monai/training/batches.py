"""From a loader's batch to what the network and the loss get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accunet_monai.training.augmentation import BatchAugmentation


class AugmentedBatch:
    """``prepare_batch`` of a MONAI trainer: augment the batch, then move it to the device.

    Args:
        augmentation: called with image (N, C, H, W), label (N, L, H, W) and the batch's ``draw``, the number of each
            sample's draw; ``None`` changes nothing.
        regions: the label values of each of several regions, which may overlap, say ``[[1, 2, 3], [2, 3]]``: the label
            map becomes one channel of 0 and 1 for each, for a network with a sigmoid.
        ignore_label: value that stands for "not annotated"; with regions it is kept in every channel.
    """

    def __init__(
        self,
        augmentation: BatchAugmentation | None = None,
        regions: Sequence[Sequence[int]] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        self.augmentation = augmentation
        self.regions = regions
        self.ignore_label = ignore_label

    def __call__(
        self, batch: Mapping[str, Tensor], device: torch.device | str, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Batch of a ``SliceDataset`` → (image, label) on the device, channels last."""
        image, label = batch["image"], batch["label"]
        if self.augmentation is not None:
            image, label = self.augmentation(image, label, draw=batch.get("draw"))
        if self.regions is not None:
            label = as_regions(label, self.regions, self.ignore_label)
        image = image.to(device, non_blocking=non_blocking, memory_format=torch.channels_last, **kwargs)
        return image, label.to(device, non_blocking=non_blocking)


def as_regions(label: Tensor, regions: Sequence[Sequence[int]], ignore_label: int | None = None) -> Tensor:
    """Label map (N, 1, H, W) → (N, regions, H, W) of 0 and 1, and of ``ignore_label`` where the label map has that.

    Example:
        >>> as_regions(torch.tensor([0, 1, 2, 9]).reshape(1, 1, 1, 4), [[1, 2], [2]], ignore_label=9).squeeze()
        tensor([[0, 1, 1, 9],
                [0, 0, 1, 9]])
    """
    channels = [torch.isin(label, torch.tensor(list(values), device=label.device)) for values in regions]
    inside = torch.cat(channels, 1).to(label.dtype)
    if ignore_label is None:
        return inside
    return torch.where(label == ignore_label, torch.full_like(inside, ignore_label), inside)
