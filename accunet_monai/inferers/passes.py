"""One pass of the network over the slices along one axis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from torch import Tensor

from accunet_monai.inferers.blend import SliceBlend
from accunet_monai.inferers.labels import LabelRule
from accunet_monai.inferers.network_call import NetworkCall
from accunet_monai.inferers.plan import SlicePlan
from accunet_monai.inferers.windows import Window, cut_windows

Finished = tuple[int, int, list[Tensor]]
"""Volume, slice, and for each output of the network (channels, rows, columns)."""


def finished_slices(
    volume: Tensor, condition: Tensor | None, plan: SlicePlan, call: NetworkCall, rule: LabelRule | None
) -> Iterator[Finished]:
    """Every slice of every volume in order, as soon as its last window is done.

    Args:
        volume: (N, C, X, Y, Z).
        condition: of the same shape, cut alike and given to the network, too.
        plan: how slices are cut.
        call: of the network.
        rule: to make probabilities of logits; None gives logits.
    """
    outputs = call(cut_windows(volume, plan, condition))
    slices = volume.shape[plan.axis + 2]
    done = 0
    background: list[Tensor] = []
    for (item, index), group in groupby(outputs, key=lambda pair: (pair[0].item, pair[0].index)):
        values = _blended(group, plan, rule)
        if rule is not None and plan.skip_below is not None:
            background = background or [rule.background(tensor) for tensor in values]
            for skipped in range(done, item * slices + index):
                yield *divmod(skipped, slices), background
        yield item, index, values
        done = item * slices + index + 1
    for skipped in range(done, volume.shape[0] * slices):
        yield *divmod(skipped, slices), background


def _blended(group: Iterable[tuple[Window, list[Tensor]]], plan: SlicePlan, rule: LabelRule | None) -> list[Tensor]:
    """One slice of each output from the outputs for its windows."""
    blends: list[SliceBlend] = []
    for window, outputs in group:
        blends = blends or [SliceBlend(plan, rule) for _ in outputs]
        for blend, output in zip(blends, outputs, strict=True):
            blend.add(window, output)
    return [blend.mean() for blend in blends]
