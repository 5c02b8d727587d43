"""ACC-UNet exactly as its definition reads: pool, upsample, concatenate, one 1×1 convolution. Slow and plain.

Our own transcription of the paper and of ``tests/parity/README.md``. It takes the authors' ``state_dict`` keys, in 2D
and, by the same rules, in 3D. It is the oracle of the property tests and the baseline of ``benchmarks/network.py``:
eager, contiguous, without any of the rearrangements of ``accunet_monai.networks``. Sizes must be multiples of 16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVERAGE_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
LEVELS = 4


def act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.01)


def upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="nearest")


def interleave(maps: list[Tensor]) -> Tensor:
    """Maps of C channels each → channel ``c * len(maps) + j`` is channel c of map j."""
    return torch.stack(maps, 2).flatten(1, 2)


class SqueezeExcite(nn.Module):
    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 8)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.bn = NORM[dims](channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(2).mean(2)
        gate = torch.sigmoid(self.fc2(act(self.fc1(mean))))
        return act(self.bn(x * gate.reshape(*gate.shape, *[1] * (x.dim() - 2))))


class HANC(nn.Module):
    def __init__(self, dims: int, channels: int, out_channels: int, k: int) -> None:
        super().__init__()
        self.dims, self.k = dims, k
        self.cnv = CONV[dims](channels * (2 * k - 1), out_channels, 1)
        self.bn = NORM[dims](out_channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for pool in (AVERAGE_POOL[self.dims], MAX_POOL[self.dims]):
            maps += [upsample(pool(x, 2**scale), 2**scale) for scale in range(1, self.k)]
        return act(self.bn(self.cnv(interleave(maps))))


class Block(nn.Module):
    def __init__(self, dims: int, channels: int, out_channels: int, k: int, expansion: int = 3) -> None:
        super().__init__()
        expanded = channels * expansion
        self.conv1, self.norm1 = CONV[dims](channels, expanded, 1), NORM[dims](expanded)
        self.conv2, self.norm2 = CONV[dims](expanded, expanded, 3, padding=1, groups=expanded), NORM[dims](expanded)
        self.hnc = HANC(dims, expanded, channels, k)
        self.norm = NORM[dims](channels)
        self.conv3, self.norm3 = CONV[dims](channels, out_channels, 1), NORM[dims](out_channels)
        self.sqe = SqueezeExcite(dims, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        expanded = act(self.norm1(self.conv1(x)))
        expanded = act(self.norm2(self.conv2(expanded)))
        mixed = self.norm(x + self.hnc(expanded))
        return self.sqe(act(self.norm3(self.conv3(mixed))))


class ResidualPath(nn.Module):
    def __init__(self, dims: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(CONV[dims](channels, channels, 3, padding=1) for _ in range(blocks))
        self.bns = nn.ModuleList(NORM[dims](channels) for _ in range(blocks))
        self.sqes = nn.ModuleList(SqueezeExcite(dims, channels) for _ in range(blocks))
        self.bn = NORM[dims](channels)
        self.sqe = NORM[dims](channels)  # a batch norm, in spite of its name

    def forward(self, x: Tensor) -> Tensor:
        for conv, bn, sqe in zip(self.convs, self.bns, self.sqes, strict=True):
            x = x + sqe(act(bn(conv(x))))
        return self.sqe(act(self.bn(x)))


class ConvUnit(nn.Module):
    def __init__(self, dims: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CONV[dims](channels, out_channels, 1)
        self.batchnorm = NORM[dims](out_channels)
        self.sqe = SqueezeExcite(dims, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.sqe(act(self.batchnorm(self.conv1(x))))


class MLFC(nn.Module):
    def __init__(self, dims: int, widths: list[int], variant: str) -> None:
        super().__init__()
        self.dims, self.variant = dims, variant
        for level, width in enumerate(widths, start=1):
            self.add_module(f"cnv_blks{level}", nn.ModuleList([ConvUnit(dims, sum(widths), width)]))
            self.add_module(f"cnv_mrg{level}", nn.ModuleList([ConvUnit(dims, 2 * width, width)]))
            self.add_module(f"bns{level}", nn.ModuleList([NORM[dims](width)]))
            self.add_module(f"bns_mrg{level}", nn.ModuleList([NORM[dims](width)]))
            self.add_module(f"sqe{level}", SqueezeExcite(dims, width))
        if variant == "weighted":
            self.W = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        last = [getattr(self, f"sqe{level + 1}") for level in range(len(features))]
        if self.variant == "lite":
            return [sqe(own) for sqe, own in zip(last, features, strict=True)]
        return [last[level](self._fuse(features, level)) for level in range(len(features))]

    def _fuse(self, features: list[Tensor], level: int) -> Tensor:
        convolve, convolve_merged, norm, norm_merged = (
            getattr(self, f"{name}{level + 1}")[0] for name in ("cnv_blks", "cnv_mrg", "bns", "bns_mrg")
        )
        own = features[level]
        resampled = [self._resample(feature, level - other) for other, feature in enumerate(features)]
        compiled = act(norm(convolve(torch.cat(resampled, 1))))
        merged = convolve_merged(interleave([compiled, own]))
        total = merged * self.W + own * (1 - self.W) if self.variant == "weighted" else merged + own
        return act(norm_merged(total))

    def _resample(self, feature: Tensor, halvings: int) -> Tensor:
        if halvings > 0:
            return AVERAGE_POOL[self.dims](feature, 2**halvings)
        return upsample(feature, 2**-halvings) if halvings < 0 else feature


class LiteralACCUNet(nn.Module):
    """The whole network under the authors' names; ``variant`` is "published", "lite" or "weighted"."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        base_filters: int = 32,
        passes: int = 3,
        variant: str = "published",
    ) -> None:
        super().__init__()
        self.dims, self.passes = dims, passes
        widths = [base_filters * 2**level for level in range(LEVELS + 1)]
        for level, k in enumerate((3, 3, 3, 2, 1)):
            before = widths[level - 1] if level else in_channels
            self.add_module(f"cnv{level + 1}1", Block(dims, before, widths[level], k))
            self.add_module(f"cnv{level + 1}2", Block(dims, widths[level], widths[level], k))
        for level in range(LEVELS):
            self.add_module(f"rspth{level + 1}", ResidualPath(dims, widths[level], LEVELS - level))
        for index in range(passes):
            self.add_module(f"mlfc{index + 1}", MLFC(dims, widths[:LEVELS], variant))
        for stage, (level, k) in enumerate(((3, 2), (2, 3), (1, 3), (0, 3)), start=6):
            self.add_module(f"up{stage}", TRANSPOSED[dims](widths[level + 1], widths[level], 2, stride=2))
            self.add_module(f"cnv{stage}1", Block(dims, 2 * widths[level], widths[level], k))
            self.add_module(f"cnv{stage}2", Block(dims, widths[level], widths[level], k, 34 if stage == 7 else 3))
        self.out = CONV[dims](base_filters, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for level in range(1, LEVELS + 2):
            x = self._stage(level, x if level == 1 else MAX_POOL[self.dims](x, 2))
            features.append(x)
        skips = [self.get_submodule(f"rspth{level + 1}")(features[level]) for level in range(LEVELS)]
        for index in range(self.passes):
            skips = self.get_submodule(f"mlfc{index + 1}")(skips)
        for level in range(6, 10):
            x = self._stage(level, torch.cat([self.get_submodule(f"up{level}")(x), skips[9 - level]], 1))
        return self.out(x)

    def _stage(self, level: int, x: Tensor) -> Tensor:
        return self.get_submodule(f"cnv{level}2")(self.get_submodule(f"cnv{level}1")(x))
