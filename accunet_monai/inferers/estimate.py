"""How much memory an inference will take, before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from accunet_monai.inferers import accumulate
from accunet_monai.inferers.accumulate import needed_bytes
from accunet_monai.inferers.plan import SlicePlan, make_plan

if TYPE_CHECKING:
    from accunet_monai.inferers.slice_inferer import SliceInferer

_FLOAT, _INDEX = 4, 8  # bytes of a float32 and of an index

KEPT_BY_ALLOCATOR = 2
"""Memory that buffers take, in multiples of their tensors: allocators keep much of what is freed for the next ones.

benchmarks/inference.py prints the estimate beside what was measured.
"""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that one call of a ``SliceInferer`` takes, and how often it runs the network.

    Printed, it is a short table.

    Attributes:
        input: the volumes. The caller holds them; memory-mapped ones need not be in memory.
        result: label maps, or probabilities or logits of every class.
        sums: of all classes over several views, as far as they are kept in memory.
        on_disk: of the same, as far as they are kept in a temporary file.
        buffers: windows of a batch, their outputs, slices that are being blended, finished slices before they are
            written. They do not grow with the number of slices.
        network_call: what the network itself takes for a batch, beside its input and output; None if not known.
        windows: how often the network sees a window; with ``skip_below`` at most.
        batches: calls of the network.
    """

    input: int
    result: int
    sums: int
    on_disk: int
    buffers: int
    network_call: int | None
    windows: int
    batches: int

    @property
    def added(self) -> int:
        """Memory beyond the input, with the network's as far as it is known."""
        return self.result + self.sums + self.buffers + (self.network_call or 0)

    def __str__(self) -> str:
        call = "not known" if self.network_call is None else _readable(self.network_call)
        rows = {
            "input": _readable(self.input),
            "result": _readable(self.result),
            "sums over views": f"{_readable(self.sums)}, on disk {_readable(self.on_disk)}",
            "buffers": _readable(self.buffers),
            "network": f"{call} a call, {self.windows} windows in {self.batches} calls",
            "added in all": _readable(self.added),
        }
        return "\n".join(f"{name:<16} {value}" for name, value in rows.items())


def estimate(
    inferer: SliceInferer,
    shape: Sequence[int],
    classes: int,
    dtype: torch.dtype = torch.float32,
    network_call: int | None = None,
) -> MemoryEstimate:
    """Estimate the memory of ``inferer(volumes, network)`` for a network with one output in float32.

    Args:
        inferer: with all its settings.
        shape: of the volumes, (N, C, X, Y, Z) or (C, X, Y, Z).
        classes: channels of the network's output.
        dtype: of the volumes.
        network_call: bytes that the network takes for a batch beside its input and output, where that is known.

    Raises:
        ValueError: for other shapes.

    Example:
        >>> from accunet_monai.inferers import SliceInferer
        >>> print(estimate(SliceInferer(spatial_dim=2, sw_batch_size=8), (1, 1, 512, 512, 800), classes=5))
        input            800.0 MiB
        result           200.0 MiB
        sums over views  0.0 MiB, on disk 0.0 MiB
        buffers          300.0 MiB
        network          not known a call, 800 windows in 100 calls
        added in all     500.0 MiB
    """
    if len(shape) not in (4, 5) or min(shape) < 1:
        raise ValueError(f"shape must be (N, C, X, Y, Z) or (C, X, Y, Z), got {tuple(shape)}")
    items, channels, *size = shape if len(shape) == 5 else (1, *shape)
    plans = [make_plan(inferer, axis, size, torch.device("cpu"), torch.float32) for axis in inferer.axes]
    stored = inferer.dtype or torch.float32
    values = (items, classes, *size)
    result, sums, on_disk = needed_bytes(values, stored), 0, 0
    if inferer.output == "label_map":
        result = needed_bytes((items, *size), inferer.rule.label_type(classes))
        if len(plans) > 1:
            needed = needed_bytes(values, stored)
            on_disk = needed if needed > accumulate.SCRATCH_IN_MEMORY_BYTES else 0
            sums = needed - on_disk
    windows = [items * size[plan.axis] * len(plan.windows) * len(plan.flips) for plan in plans]
    return MemoryEstimate(
        input=needed_bytes((items, channels, *size), dtype),
        result=result,
        sums=sums,
        on_disk=on_disk,
        buffers=max(_buffers(inferer, plan, channels, classes, size[plan.axis]) for plan in plans),
        network_call=network_call,
        windows=sum(windows),
        batches=sum(math.ceil(count / inferer.sw_batch_size) for count in windows),
    )


def _buffers(inferer: SliceInferer, plan: SlicePlan, channels: int, classes: int, slices: int) -> int:
    """Windows and stacked batch, outputs, sums of a slice with their average, slab and its labels."""
    pixels, window = math.prod(plan.plane), plan.weight.numel()
    stacked = channels * (2 * plan.context_slices + 1)
    batch = inferer.sw_batch_size * window * (2 * stacked + classes) * _FLOAT
    blending = math.prod(plan.padded) * (stacked + classes * (len(plan.flips) + 2)) * _FLOAT
    one = classes * pixels * _FLOAT
    collected = min(max(accumulate.SLAB_BYTES // one, 1), slices)
    copies = 2 if len(inferer.axes) == 1 else 4  # pending and joined; added to the sums, and their mean
    return KEPT_BY_ALLOCATOR * (batch + blending + collected * (copies * one + pixels * (_FLOAT + _INDEX)))


def _readable(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
