"""Windows of volumes, slice after slice, as the network gets them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from accunet_monai.inferers.plan import SlicePlan


@dataclass(frozen=True, slots=True)
class Window:
    """One image for the network.

    Attributes:
        item: volume of the batch.
        index: slice of the volume.
        number: of the plan's windows.
        flip: of the plan's flips.
        used: whether its result counts, see ``cut_windows``.
        image: (C', rows, columns).
        condition: of the same shape in rows and columns, or None.
    """

    item: int
    index: int
    number: int
    flip: int
    used: bool
    image: Tensor
    condition: Tensor | None


def cut_windows(volume: Tensor, plan: SlicePlan, condition: Tensor | None = None) -> Iterator[Window]:
    """All windows in all their mirrorings, slice after slice.

    Windows with no value above ``plan.skip_below`` are left out, except for the first one: it tells how many classes
    there are, and is marked as not used.

    Args:
        volume: (N, C, X, Y, Z); may be memory-mapped and of integers: only slices are copied, into floating point.
        plan: how its slices are cut.
        condition: of the same shape, cut alike.
    """
    first = True
    for item in range(volume.shape[0]):
        for index in range(volume.shape[plan.axis + 2]):
            stack = _stack(volume, plan, item, index)
            beside = None if condition is None else _stack(condition, plan, item, index)
            for number, place in enumerate(plan.windows):
                part = stack[(..., *place)]
                used = plan.skip_below is None or not bool((part <= plan.skip_below).all())
                if not used and not first:
                    continue
                first = False
                for flip, dims in enumerate(plan.flips):
                    cut = None if beside is None else _mirrored(beside[(..., *place)], dims)
                    yield Window(item, index, number, flip, used, _mirrored(part, dims), cut)


def _stack(volume: Tensor, plan: SlicePlan, item: int, index: int) -> Tensor:
    """A slice with its neighbours, (neighbours, C, padded rows, padded columns), in floating point."""
    last = volume.shape[plan.axis + 2] - 1
    around = range(index - plan.context_slices, index + plan.context_slices + 1)
    stack = torch.stack([volume[item].select(plan.axis + 1, min(max(place, 0), last)) for place in around])
    stack = stack if stack.is_floating_point() else stack.to(torch.float32)
    if not any(plan.pad):
        return stack
    value = plan.cval if plan.padding_mode == "constant" else None
    return F.pad(stack, plan.pad, mode=plan.padding_mode, value=value)


def _mirrored(part: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(neighbours, C, rows, columns) → (neighbours · C, rows, columns), mirrored."""
    return (part.flip(dims) if dims else part).flatten(0, 1)
