"""Multi-Level Feature Compilation: the skip-connection fusion of ACC-UNet (paper, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from accunet_monai.networks.blocks import (
    LEAKY_RELU,
    ActivationSpec,
    NormSpec,
    SqueezeExcitation,
    checkpointed,
    computed_twice,
    sum_coarse_to_fine,
)

MLFCVariant = Literal["published", "lite", "weighted"]
"""``published``: the paper's. ``lite``: only the last squeeze-and-excitation. ``weighted``: learned share W."""


class _ConvUnit(nn.Module):
    """Normalisation, activation and squeeze-and-excitation after a convolution, then norm and activation again."""

    def __init__(self, spatial_dims: int, channels: int, act: ActivationSpec, norm: NormSpec) -> None:
        super().__init__()
        self.norm = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.squeeze = SqueezeExcitation(spatial_dims, channels, act=act, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        squeezed: Tensor = self.squeeze(self.act(self.norm(x)))
        return squeezed


class MLFCLevel(nn.Module):
    """One level's part of an MLFC pass: compile all levels' features at this level's size, merge them with its own.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of all levels, fine to coarse.
        level: index of this level in ``channels``.
        variant: ``"published"`` or ``"weighted"``.
        use_checkpoint: as of :class:`MLFCLayer`.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        level: int,
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
        variant: MLFCVariant = "published",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        conv = Conv[Conv.CONV, spatial_dims]
        own = channels[level]
        self.compile_finer = conv(sum(channels[: level + 1]), own, 1)
        self.compile_coarser = nn.ModuleList(conv(c, own, 1, bias=False) for c in channels[level + 1 :])
        self.compile_unit = _ConvUnit(spatial_dims, own, act, norm)
        self.compile_norm = get_norm_layer(norm, spatial_dims, own)
        self.merge = conv(2 * own, own, 1)
        self.merge_unit = _ConvUnit(spatial_dims, own, act, norm)
        self.merge_norm = get_norm_layer(norm, spatial_dims, own)
        self.act = get_act_layer(act)
        self.squeeze = SqueezeExcitation(spatial_dims, own, act=act, norm=norm)
        bound = 1 / math.sqrt(sum(channels))
        for parameter in [*self.compile_finer.parameters(), *self.compile_coarser.parameters()]:
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, own: Tensor, gathered: Tensor, coarser: list[Tensor], weight: Tensor | None = None) -> Tensor:
        """Fuse this level with all others.

        Args:
            own: (N, C, *spatial), this level's features.
            gathered: (N, sum of the channels of this and all finer levels, *spatial), the finer ones average-pooled.
            coarser: the coarser levels' features, each half the size of the one before.
            weight: share of the merged features in the residual sum, for the ``"weighted"`` variant.
        """
        if not is_scripting():  # noqa: SIM102 (TorchScript)
            if self.use_checkpoint and computed_twice(self):
                return checkpointed(self, self._fuse, own, gathered, coarser, weight)
        return self._fuse(own, gathered, coarser, weight)

    def _fuse(self, own: Tensor, gathered: Tensor, coarser: list[Tensor], weight: Tensor | None) -> Tensor:
        compiled = [self.compile_finer(gathered)]
        for index, project in enumerate(self.compile_coarser):
            compiled.append(project(coarser[index]))
        compiled_map = self.act(self.compile_norm(self.compile_unit(sum_coarse_to_fine(compiled))))
        merged = self.merge_unit(self.merge(torch.cat([compiled_map, own], 1)))
        total = merged + own if weight is None else merged * weight + own * (1 - weight)
        fused: Tensor = self.squeeze(self.act(self.merge_norm(total)))
        return fused


class MLFCLayer(nn.Module):
    """One MLFC pass over the skip features of all levels.

    Each level receives every other level's features (finer ones average-pooled, coarser ones up-sampled by nearest
    neighbour), compiles them by a 1×1 convolution and merges the result with its own features. With all
    squeeze-and-excitation gates held constant, a changed pixel of the deepest of four levels changes exactly
    its aligned block of 8 pixels along each axis at the shallowest.

    Args:
        spatial_dims: 2 or 3.
        channels: channels of the levels, fine to coarse; each level is half as large as the one before.
        variant: ``"published"``; ``"weighted"`` adds a learned scalar share of the merged features (the authors' "W");
            ``"lite"`` keeps only the last squeeze-and-excitation of each level (the authors' "Lite", without the
            parameters that theirs holds and never uses).
        use_checkpoint: in training, compute each level a second time in the backward pass instead of keeping its maps.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        act: ActivationSpec = LEAKY_RELU,
        norm: NormSpec = "batch",
        variant: MLFCVariant = "published",
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if variant not in ("published", "lite", "weighted"):
            raise ValueError(f"variant must be 'published', 'lite' or 'weighted', got {variant!r}")
        self.pool = Pool[Pool.AVG, spatial_dims](2)
        self.weight = nn.Parameter(torch.full((1,), 0.5)) if variant == "weighted" else None
        self.levels = nn.ModuleList()
        self.lite = nn.ModuleList()
        for level in range(len(channels)):
            if variant == "lite":
                self.lite.append(SqueezeExcitation(spatial_dims, channels[level], act=act, norm=norm))
            else:
                self.levels.append(MLFCLevel(spatial_dims, channels, level, act, norm, variant, use_checkpoint))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of all levels, fine to coarse (N, C_level, *spatial_level) → the same shapes."""
        outputs: list[Tensor] = []
        for index, squeeze in enumerate(self.lite):
            outputs.append(squeeze(features[index]))
        gathered = features[0]
        for index, level in enumerate(self.levels):
            if index > 0:
                gathered = torch.cat([self.pool(gathered), features[index]], 1)
            outputs.append(level(features[index], gathered, features[index + 1 :], self.weight))
        return outputs
