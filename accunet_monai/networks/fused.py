"""A folded HANC block with its expanded tensor kept on the chip: one GPU kernel in Triton, 2D, for inference.

One program computes one square tile of the output, aligned to HANC's largest block. It reads the tile's input with a
border of one pixel, then goes through the expanded channels a few at a time: expansion, activation, depthwise 3×3,
activation, averages and maxima of aligned 2×2 blocks, of 2×2 of these, …, and the contraction at each scale, which is
summed over the expanded channels in float32. At the end the scales are summed coarse to fine and the input is added.

Pixels of a tile are numbered so that the four children of every aligned block follow each other (Morton order): pooling
is a reshape and a reduction, up-sampling is a reshape.

PyTorch's CUDA builds for Linux bring Triton along, its CPU builds do not; without it ``candidates`` finds none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accunet_monai.networks.deploy import FoldedHANCBlock
from accunet_monai.networks.gpu import Run, keep_fastest

HAS_TRITON = importlib.util.find_spec("triton") is not None
if HAS_TRITON:
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

_jit: Callable[[Any], Any] = triton.jit if HAS_TRITON else lambda function: function

LARGEST_TILE = 16384
"""Pixels times channels of a tile at most: its sums, in float32, must fit the registers of one multiprocessor."""


@dataclass(frozen=True)
class Tiling:
    """How the kernel cuts its work. All are powers of two.

    Args:
        side: pixels of a tile along each axis; at least HANC's block of 2^(k−1).
        chunk: expanded channels that run at once, at least 16.
        warps: groups of 32 threads that share a tile.
    """

    side: int
    chunk: int
    warps: int

    def __str__(self) -> str:
        return f"fused {self.side}×{self.side}, {self.chunk} channels, {self.warps} warps"


TILINGS = (Tiling(16, 16, 8), Tiling(8, 32, 4), Tiling(8, 16, 8))
"""What is tried. Large tiles recompute less border and load the weights less often, small ones occupy more of a GPU."""


def candidates(block: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Fused forms of ``block``, by name; none if the kernel cannot compute it or Triton is not there."""
    if not HAS_TRITON or not isinstance(block, FoldedHANCBlock):
        return {}
    fitting = [tiling for tiling in TILINGS if _misfit(block, tiling) is None]
    return {str(tiling): partial(FusedHANCBlock, block, tiling) for tiling in fitting}


def use_fused_blocks(network: nn.Module, shape: Sequence[int], device: torch.device, cuda_graph: bool) -> None:
    """On a GPU with Triton: put the fused form of each HANC block into ``network`` wherever it is measured faster.

    Args:
        network: folded, on ``device``; changed in place.
        shape: (N, C, *spatial) of the images to be fast for.
        device: the GPU.
        cuda_graph: whether the network will be replayed as a CUDA graph; the blocks are then measured in one.
    """
    if not HAS_TRITON:
        return
    with torch.cuda.device(device):
        noise = torch.randn(*shape, device=device, generator=torch.Generator(device).manual_seed(0))
        keep_fastest(network, noise, candidates, _graph_seconds if cuda_graph else _seconds)


class FusedHANCBlock(nn.Module):
    """:class:`FoldedHANCBlock` with everything up to the sum with its input in one kernel.

    Args:
        folded: the block on its device in its precision; its ``project`` and ``squeeze`` are shared, not copied.
        tiling: how the work is cut.

    Raises:
        ValueError: for a block that is not 2D, float32, bfloat16 or float16, with (leaky) ReLU, or does not fit the
            tiling; in ``forward`` for spatial sizes that are no multiples of 2^(k−1), as the folded block, and for an
            image that wants a gradient, which the kernel has not.
    """

    expand: Tensor

    def __init__(self, folded: FoldedHANCBlock, tiling: Tiling) -> None:
        super().__init__()
        if misfit := _misfit(folded, tiling):
            raise ValueError(f"this block cannot be fused: {misfit}")
        self.tiling = tiling
        self.slope = _slope(folded.act)
        self.scales = _scales(folded)
        for name, packed in _pack(folded, tiling.chunk).items():
            self.register_buffer(name, packed)
        self.project, self.act, self.squeeze = folded.project, folded.act, folded.squeeze

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, rows, columns) → (N, out_channels, rows, columns)."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("the fused block has no gradient; use the folded one")
        if x.shape[2] % 2 ** (self.scales - 1) or x.shape[3] % 2 ** (self.scales - 1):
            raise ValueError(f"spatial sizes must be multiples of {2 ** (self.scales - 1)}, found {tuple(x.shape[2:])}")
        mixed = self._mix(x.to(self.expand.dtype).contiguous(memory_format=torch.channels_last))
        squeezed: Tensor = self.squeeze(self.act(self.project(mixed)))
        return squeezed

    def extra_repr(self) -> str:
        """Shown when the network is printed."""
        return str(self.tiling)

    def _mix(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        side, chunk = self.tiling.side, self.tiling.chunk
        mixed = torch.empty_like(x, memory_format=torch.channels_last)
        grid = (triton.cdiv(height, side) * triton.cdiv(width, side), batch)
        weights = self.buffers(recurse=False)
        padded_channels, padded_expanded = self.expand.shape
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _hanc_kernel[grid](
                x, mixed, *weights, height, width, channels, padded_expanded, self.slope,
                K=self.scales, SIDE=side, HALO=triton.next_power_of_2((side + 2) ** 2), C=padded_channels, E=chunk,
                PRECISION="tf32x3", num_warps=self.tiling.warps, num_stages=2,
            )  # fmt: skip
        return mixed


@_jit
def _hanc_kernel(
    image: tl.tensor,
    output: tl.tensor,
    expand: tl.tensor,
    expand_bias: tl.tensor,
    depthwise: tl.tensor,
    depthwise_bias: tl.tensor,
    contract: tl.tensor,
    hanc_bias: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    expanded: tl.tensor,
    slope: tl.tensor,
    K: tl.constexpr,
    SIDE: tl.constexpr,
    HALO: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """``hanc_act(hanc(image)) + image``, both (N, rows, columns, channels); weights as ``_pack`` makes them.

    K scales, tiles of SIDE × SIDE pixels, their border included in HALO rows, C padded channels, E expanded at once.
    """
    REACH: tl.constexpr = SIDE + 2
    PIXELS: tl.constexpr = SIDE * SIDE
    tiles = tl.cdiv(width, SIDE)
    top = tl.program_id(0) // tiles * SIDE
    left = tl.program_id(0) % tiles * SIDE
    start = tl.program_id(1).to(tl.int64) * height * width * channels
    channel = tl.arange(0, C)

    near = tl.arange(0, HALO)
    y = top - 1 + near // REACH
    x = left - 1 + near % REACH
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width) & (near < REACH * REACH))[:, None]
    offset = start + (y * width + x).to(tl.int64)[:, None] * channels + channel[None, :]
    around = tl.load(image + offset, mask=inside & (channel < channels)[None, :], other=0.0)
    y, x = _place(tl.arange(0, PIXELS), K, SIDE)
    corner = y * REACH + x

    totals: tl.tuple = (tl.zeros((PIXELS, C), tl.float32),)
    for scale in tl.static_range(1, K):
        totals += (tl.zeros((PIXELS >> (2 * scale), C), tl.float32),)
    for first in range(0, expanded, E):
        chunk = first + tl.arange(0, E)
        weight = tl.load(expand + channel[:, None] * expanded + chunk[None, :])
        wide = tl.dot(around, weight, input_precision=PRECISION) + tl.load(expand_bias + chunk)[None, :]
        wide = tl.where(inside, _leaky(wide, slope), 0.0).to(around.dtype)  # the 3×3 convolution pads with zeros
        average = _leaky(_depthwise(wide, corner, depthwise + first, depthwise_bias + first, expanded, REACH), slope)
        maximum = average
        matrix = contract + chunk[:, None] * C + channel[None, :]
        sums: tl.tuple = (tl.dot(average.to(around.dtype), tl.load(matrix), totals[0], input_precision=PRECISION),)
        for scale in tl.static_range(1, K):
            average = tl.sum(tl.reshape(average, (PIXELS >> (2 * scale), 4, E)), 1) * 0.25
            maximum = tl.max(tl.reshape(maximum, (PIXELS >> (2 * scale), 4, E)), 1)
            matrix += expanded * C
            total = tl.dot(average.to(around.dtype), tl.load(matrix), totals[scale], input_precision=PRECISION)
            matrix += expanded * C
            total = tl.dot(maximum.to(around.dtype), tl.load(matrix), total, input_precision=PRECISION)
            sums += (total,)
        totals = sums

    total = totals[K - 1]
    for scale in tl.static_range(1, K):
        total = tl.broadcast_to(total[:, None, :], (total.shape[0], 4, C))
        total = tl.reshape(total, (total.shape[0] * 4, C)) + totals[K - 1 - scale]
    total = _leaky(total + tl.load(hanc_bias + channel)[None, :], slope)
    y += top
    x += left
    offset = start + (y * width + x).to(tl.int64)[:, None] * channels + channel[None, :]
    mask = ((y < height) & (x < width))[:, None] & (channel < channels)[None, :]
    total += tl.load(image + offset, mask=mask, other=0.0)
    tl.store(output + offset, total.to(around.dtype), mask=mask)


@_jit
def _place(pixel: tl.tensor, K: tl.constexpr, SIDE: tl.constexpr) -> tl.tensor:
    """Row and column in a tile of its pixels in Morton order."""
    rest = pixel >> (2 * (K - 1))
    y = rest // (SIDE >> (K - 1)) << (K - 1)
    x = rest % (SIDE >> (K - 1)) << (K - 1)
    for scale in tl.static_range(K - 1):
        y += ((pixel >> (2 * scale + 1)) & 1) << scale
        x += ((pixel >> (2 * scale)) & 1) << scale
    return y, x


@_jit
def _depthwise(
    wide: tl.tensor, corner: tl.tensor, weights: tl.tensor, bias: tl.tensor, stride: tl.tensor, REACH: tl.constexpr
) -> tl.tensor:
    """3×3 sums over ``wide`` (halo, E), whose rows are REACH apart, from each pixel's upper left neighbour on."""
    chunk = tl.arange(0, wide.shape[1])
    sums = tl.zeros((corner.shape[0], wide.shape[1]), tl.float32) + tl.load(bias + chunk)[None, :]
    for tap in range(9):  # not unrolled: nine index tensors at once would fill the registers
        index = tl.broadcast_to((corner + tap // 3 * REACH + tap % 3)[:, None], sums.shape)
        sums += tl.gather(wide, index, 0) * tl.load(weights + tap * stride + chunk)[None, :]
    return sums


@_jit
def _leaky(values: tl.tensor, slope: tl.tensor) -> tl.tensor:
    return tl.where(values >= 0, values, values * slope)


def _seconds(run: Run) -> float:
    """Median time on the current GPU with cold caches, the gaps between kernels included."""
    return float(triton.testing.do_bench(run, return_mode="median")) / 1e3


def _graph_seconds(run: Run) -> float:
    """The same when ``run`` is replayed as a CUDA graph, which has hardly any gaps."""
    return float(triton.testing.do_bench_cudagraph(run, return_mode="median")) / 1e3


def _misfit(folded: FoldedHANCBlock, tiling: Tiling) -> str | None:
    """Why the kernel cannot compute this block with this tiling; ``None`` if it can."""
    first: Any = folded.chunks[0]
    expand = first.expand
    if not isinstance(expand, nn.Conv2d):
        return "it is not 2D"
    if expand.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its precision is {expand.weight.dtype}"
    if _slope(folded.act) is None or _slope(folded.act) != _slope(folded.hanc_act):
        return f"its activation is {folded.act}"
    if tiling.side < 2 ** (_scales(folded) - 1):
        return f"HANC's blocks of {2 ** (_scales(folded) - 1)} pixels are larger than a tile of {tiling.side}"
    if tiling.side**2 * _padded(expand.in_channels) > LARGEST_TILE:
        return f"a tile of {tiling.side}×{tiling.side} pixels with {expand.in_channels} channels is too large"
    return None


def _slope(act: nn.Module) -> float | None:
    """Slope of a (leaky) ReLU below zero; ``None`` for any other activation."""
    if isinstance(act, nn.LeakyReLU):
        return float(act.negative_slope)
    return 0.0 if isinstance(act, nn.ReLU) else None


def _scales(folded: FoldedHANCBlock) -> int:
    first: Any = folded.chunks[0]
    return len(first.pooled) + 1


def _padded(channels: int) -> int:
    """The next power of two, from 16 on: what matrix products on a GPU take."""
    return max(16, 1 << (channels - 1).bit_length())


def _pack(folded: FoldedHANCBlock, chunk: int) -> dict[str, Tensor]:
    """The weights in the order and form that the kernel reads; padded by zeros, whose channels stay zero all the way.

    ``expand`` (C, E), ``depthwise`` (9, E), ``contract`` (2k−1, E, C): own, then average and maximum of each scale.
    Matrices in the block's precision, what is multiplied pixel by pixel or added in float32.
    """
    parts: list[Any] = list(folded.chunks)
    contractions = [torch.cat([part.own.weight.detach().flatten(1) for part in parts], 1)]
    for scale in range(_scales(folded) - 1):
        pooled = [part.pooled[scale].weight.detach().flatten(1).chunk(2, 1) for part in parts]
        contractions += [torch.cat(kind, 1) for kind in zip(*pooled, strict=True)]
    channels, expanded = contractions[0].shape
    more = (0, _padded(channels) - channels)
    wider = (0, -expanded % chunk)

    def joined(name: str, of: str) -> Tensor:
        return torch.cat(
            [getattr(getattr(part, name), of).detach().flatten(1 if of == "weight" else 0) for part in parts]
        )

    return {
        "expand": F.pad(joined("expand", "weight").t(), wider + more).contiguous(),
        "expand_bias": F.pad(joined("expand", "bias").float(), wider),
        "depthwise": F.pad(joined("depthwise", "weight").t().float(), wider).contiguous(),
        "depthwise_bias": F.pad(joined("depthwise", "bias").float(), wider),
        "contract": F.pad(torch.stack(contractions).transpose(1, 2), more + wider).contiguous(),
        "hanc_bias": F.pad(parts[0].own.bias.detach().float(), more),
    }
