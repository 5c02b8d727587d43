"""Filters of a batch of images with a strength for each sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(image: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Separable Gaussian blur with a standard deviation for each sample; 0 changes nothing.

    Args:
        image: (N, C, H, W).
        sigma: (N,), in pixels.
        largest: that a standard deviation may be: the kernel ends at three times this, so that a sample's blur does
            not depend on the others'.
    """
    chosen = torch.nonzero(sigma > 0)[:, 0].to(image.device)
    if not len(chosen):
        return image
    n, (channels, height, width) = len(chosen), image.shape[1:]
    strength = sigma.to(image)[chosen]
    radius = max(1, min(math.ceil(3 * largest), height - 1, width - 1))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / strength.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(image[chosen].reshape(1, n * channels, height, width), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return image.index_copy(0, chosen, flat.reshape(n, channels, height, width))


def lower_resolution(image: Tensor, factor: Tensor) -> Tensor:
    """Images as from a scanner with larger pixels: every so many pixels one is taken, and these are interpolated.

    As MONAI's ``RandSimulateLowResolution`` and nnU-Net's: down by nearest neighbour, up linearly.

    Args:
        image: (N, C, H, W).
        factor: (N,): the pixels' growth, from 1, which changes nothing.
    """
    chosen = torch.nonzero(factor > 1)[:, 0].to(image.device)
    if not len(chosen):
        return image
    changed = image[chosen]
    for axis in (2, 3):
        changed = _coarser(changed, factor.to(image)[chosen], axis)
    return image.index_copy(0, chosen, changed)


def _coarser(image: Tensor, factor: Tensor, axis: int) -> Tensor:
    """Along one axis: each pixel between the two coarse pixels that it lies between."""
    size = image.shape[axis]
    number = (size / factor).round().clamp_min(1)[:, None]  # of coarse pixels; they fill the image
    step = size / number
    place = ((torch.arange(size, device=image.device) + 0.5) / step - 0.5).clamp_min(0)
    below = torch.minimum(place.floor(), number - 1)
    share = (place - below).clamp(0, 1)

    def taken(coarse: Tensor) -> Tensor:
        source = ((torch.minimum(coarse, number - 1) + 0.5) * step).floor().long().clamp(0, size - 1)
        shape = [len(image), 1, 1, 1]
        shape[axis] = size
        return image.gather(axis, source.reshape(shape).expand_as(image))

    weight = share.reshape([len(image), 1, *((size, 1) if axis == 2 else (1, size))])
    return torch.lerp(taken(below), taken(below + 1), weight.to(image.dtype))
