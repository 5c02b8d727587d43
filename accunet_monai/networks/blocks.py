"""Building blocks of ACC-UNet (Ibtehaz & Kihara, MICCAI 2023, arXiv:2308.13680), for 2D and 3D.

HANC's and MLFC's definitions concatenate up-sampled copies of pooled maps and mix them with one 1×1 convolution.
A 1×1 convolution is linear and acts on each pixel alone, so it commutes with nearest-neighbour up-sampling: each pooled
map is convolved at its own low resolution and the results are summed from coarse to fine. Same function, same
weights, and no concatenation at full resolution. ``sum_coarse_to_fine`` is that sum; both modules use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

ActivationSpec = str | tuple[str, dict[str, object]]
NormSpec = str | tuple[str, dict[str, object]]

LEAKY_RELU: tuple[str, dict[str, object]] = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})
"""The activation of the published network, used after every normalisation."""

SQUEEZE_REDUCTION = 8
"""Squeeze-and-excitation reduces channels by this factor (paper, section 3.1)."""


def sum_coarse_to_fine(maps: list[Tensor]) -> Tensor:
    """Sum maps ordered fine to coarse, each half the size of the one before, at the finest resolution.

    Args:
        maps: tensors (N, C, *spatial), the next one exactly half as large along each spatial axis.

    Returns:
        (N, C, *spatial of the first): the sum of all maps, up-sampled by nearest neighbour.
    """
    total = maps[-1]
    for index in range(len(maps) - 2, -1, -1):
        total = maps[index] + F.interpolate(total, scale_factor=2.0, mode="nearest")
    return total


class SqueezeExcitation(nn.Module):
    """Channel gate followed by batch norm and activation: ``act(bn(x * sigmoid(fc2(act(fc1(mean(x)))))))``.

    Unlike MONAI's ``ChannelSELayer`` it ends in a normalisation and an activation, as ACC-UNet defines it.

    Args:
        spatial_dims: 2 or 3.
        channels: number of channels of input and output.
        reduction: the gate's hidden layer has ``max(1, channels // reduction)`` units.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        reduction: int = SQUEEZE_REDUCTION,
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
    ) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.norm = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) → the same shape."""
        gate = torch.sigmoid(self.fc2(self.act(self.fc1(x.flatten(2).mean(-1)))))
        gate = gate.reshape([x.shape[0], x.shape[1]] + [1] * (x.dim() - 2))
        gated: Tensor = self.act(self.norm(x * gate))
        return gated


class HANCLayer(nn.Module):
    """Hierarchical Aggregation of Neighbourhood Context (paper, section 3.1).

    Every pixel sees itself and the averages and maxima of the aligned blocks of 2, 4, … 2^(k−1) pixels that contain it,
    mixed by one 1×1 convolution, then normalised and activated. In evaluation mode a pixel's receptive
    field is exactly its aligned block of 2^(k−1) pixels along each axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the (expanded) input.
        out_channels: channels of the output.
        k: number of scales; 1 means a plain 1×1 convolution. Spatial sizes must be multiples of 2^(k−1).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        k: int,
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
    ) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        conv = Conv[Conv.CONV, spatial_dims]
        self.block = 2 ** (k - 1)
        self.average_pool = Pool[Pool.AVG, spatial_dims](2)
        self.max_pool = Pool[Pool.MAX, spatial_dims](2)
        self.own = conv(in_channels, out_channels, 1)
        self.pooled = nn.ModuleList(conv(2 * in_channels, out_channels, 1, bias=False) for _ in range(k - 1))
        self.norm = get_norm_layer(norm, spatial_dims, out_channels)
        self.act = get_act_layer(act)
        self._initialise(fan_in=in_channels * (2 * k - 1))

    def _initialise(self, fan_in: int) -> None:
        """Draw the parts as PyTorch would draw the one convolution over all 2k−1 maps that they make up."""
        bound = 1 / math.sqrt(fan_in)
        for parameter in [*self.own.parameters(), *self.pooled.parameters()]:
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) → (N, out_channels, *spatial)."""
        projected = [self.own(x)]
        average, maximum = x, x
        for project in self.pooled:
            average, maximum = self.average_pool(average), self.max_pool(maximum)
            projected.append(project(torch.cat([average, maximum], 1)))
        mixed: Tensor = self.act(self.norm(sum_coarse_to_fine(projected)))
        return mixed


class HANCBlock(nn.Module):
    """The convolutional block of ACC-UNet: inverted bottleneck with HANC inside (paper, figure 1B).

    1×1 expansion → 3×3 depthwise → HANC back to ``in_channels`` → sum with the input → 1×1 to ``out_channels`` →
    squeeze-and-excitation, every step with normalisation, all but the sum with activation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        k: scales of the HANC layer; spatial sizes must be multiples of 2^(k−1).
        expansion: the depthwise convolution works on ``expansion * in_channels`` channels.
        dropout: probability of channel dropout before the squeeze-and-excitation.
        use_checkpoint: in training, drop the expanded channels after the forward pass and compute them again in the
            backward pass: less memory for more time, the same gradients and running statistics. Compiled networks
            ignore it: PyTorch's compiler decides itself what to compute again.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        k: int,
        expansion: int = 3,
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        expanded = in_channels * expansion
        self.use_checkpoint = use_checkpoint
        self.act = get_act_layer(act)
        self.expand = conv(in_channels, expanded, 1)
        self.expand_norm = get_norm_layer(norm, spatial_dims, expanded)
        self.depthwise = conv(expanded, expanded, 3, padding=1, groups=expanded)
        self.depthwise_norm = get_norm_layer(norm, spatial_dims, expanded)
        self.hanc = HANCLayer(spatial_dims, expanded, in_channels, k, act, norm)
        self.residual_norm = get_norm_layer(norm, spatial_dims, in_channels)
        self.project = conv(in_channels, out_channels, 1)
        self.project_norm = get_norm_layer(norm, spatial_dims, out_channels)
        self.dropout = (nn.Dropout2d if spatial_dims == 2 else nn.Dropout3d)(dropout) if dropout else nn.Identity()
        self.squeeze = SqueezeExcitation(spatial_dims, out_channels, act=act, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) → (N, out_channels, *spatial)."""
        mixed = self.residual_norm(x + self._context_of(x))
        projected = self.act(self.project_norm(self.project(mixed)))
        squeezed: Tensor = self.squeeze(self.dropout(projected))
        return squeezed

    def _context_of(self, x: Tensor) -> Tensor:
        if not is_scripting():  # noqa: SIM102 (TorchScript)
            if self.use_checkpoint and computed_twice(self):
                return checkpointed(self, self._expanded_context, x)
        return self._expanded_context(x)

    def _expanded_context(self, x: Tensor) -> Tensor:
        """Everything that happens in expanded channels: x → what HANC adds to it, the same shape."""
        expanded = self.act(self.expand_norm(self.expand(x)))
        expanded = self.act(self.depthwise_norm(self.depthwise(expanded)))
        context: Tensor = self.hanc(expanded)
        return context


class ResPath(nn.Module):
    """Residual path of a skip connection (paper, section 3.2): ``blocks`` times ``x + se(act(bn(conv3×3(x))))``.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of input and output.
        blocks: number of residual blocks.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        blocks: int,
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                Conv[Conv.CONV, spatial_dims](channels, channels, 3, padding=1),
                get_norm_layer(norm, spatial_dims, channels),
                get_act_layer(act),
                SqueezeExcitation(spatial_dims, channels, act=act, norm=norm),
            )
            for _ in range(blocks)
        )
        self.norm = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.final_norm = get_norm_layer(norm, spatial_dims, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) → the same shape."""
        for block in self.blocks:
            x = x + block(x)
        normed: Tensor = self.final_norm(self.act(self.norm(x)))
        return normed


def computed_twice(module: nn.Module) -> bool:
    """Whether activation checkpointing has any use here: eager training with gradients wanted.

    PyTorch's compiler decides itself what to compute again in the backward pass.
    """
    return module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def checkpointed(module: nn.Module, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """``function(*inputs)``, computed again in the backward pass; the norms of ``module`` count the batch once.

    Nothing random may happen in ``function``.
    """
    result: Tensor = checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), running_statistics_kept(module)),
    )
    return result


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Norms of ``module`` use the batch's statistics as in training, but do not count the batch a second time."""
    norms = [one for one in module.modules() if isinstance(one, _NormBase) and one.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    counts = [int(counter) for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for counter, count in zip(counters, counts, strict=True):
            counter.fill_(count)
