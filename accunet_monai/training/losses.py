"""Losses as functions of sums over the whole batch: of all processes', without pixels that nobody annotated.

MONAI's losses know neither; where they do the same, tests hold these equal to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DeepSupervisionLoss
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from accunet_monai.errors import NetworkError, did_you_mean
from accunet_monai.training.distributed import global_sum

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, as MONAI does: a class that nobody sees costs nothing."""


class SegmentationLoss(_Loss):
    """A weighted sum of an overlap term (Dice, Tversky) and a pixel term (cross-entropy, focal) of one batch of logits.

    Several channels are classes that exclude each other (softmax, the first of them background) when the label has one
    channel of class numbers. They are overlapping regions (sigmoid) when the label has a channel of 0 and 1 for each of
    them. One channel of logits is a mask (sigmoid) of all labels but 0.

    Args:
        overlap: weight of 1 - the mean over the classes of their overlap; 0 leaves the term out.
        pixel: weight of the mean over the pixels of their (binary) cross-entropy.
        alpha: weight of false positives in the overlap (Tversky); with beta ½ each it is Dice.
        beta: weight of false negatives.
        gamma: the focal loss's exponent, which turns cross-entropy away from pixels that are right already; 0: none.
        include_background: count the background's overlap too.
        batch: overlap of the whole batch; else of each sample, and their mean.
        ignore_label: pixels with this value count nowhere.

    Sources: Dice: Milletari et al. 2016; Tversky: Salehi et al. 2017; focal: Lin et al. 2017.
    """

    def __init__(
        self,
        overlap: float = 1.0,
        pixel: float = 1.0,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 0.0,
        include_background: bool = False,
        batch: bool = True,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        self.overlap = overlap
        self.pixel = pixel
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.include_background = include_background
        self.batch = batch
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Logits (N, C, *spatial) and label (N, 1 or C, *spatial) of integers → the loss, float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        valid = torch.ones_like(label, dtype=torch.bool) if self.ignore_label is None else label != self.ignore_label
        label = torch.where(valid, label, 0)
        excluding = label.shape[1] == 1 and logits.shape[1] > 1
        if not excluding:
            label = (label != 0).long()
        loss = logits.new_zeros(())
        if self.pixel:
            errors = self._pixel_errors(logits, label, excluding)
            sums = global_sum(torch.stack([(errors * valid).sum(), valid.expand_as(errors).sum().to(errors)]))
            loss = loss + self.pixel * sums[0] / sums[1].clamp_min(1)
        if self.overlap:
            loss = loss + self.overlap * self._overlap_loss(logits, label, valid, excluding)
        return loss

    def _pixel_errors(self, logits: Tensor, label: Tensor, excluding: bool) -> Tensor:
        if excluding:
            errors = F.cross_entropy(logits, label[:, 0].long(), reduction="none")[:, None]
        else:
            errors = F.binary_cross_entropy_with_logits(logits, label.to(logits), reduction="none")
        return errors * (1 - torch.exp(-errors)) ** self.gamma if self.gamma else errors

    def _overlap_loss(self, logits: Tensor, label: Tensor, valid: Tensor, excluding: bool) -> Tensor:
        if excluding:
            found = torch.softmax(logits, 1)
            expected = F.one_hot(label[:, 0].long(), logits.shape[1]).movedim(-1, 1).to(found)
            first = 0 if self.include_background else 1
            found, expected = found[:, first:], expected[:, first:]
        else:
            found, expected = torch.sigmoid(logits), label.to(logits)
        found, expected = found * valid, expected * valid
        axes = list(range(2, found.dim()))
        sums = torch.stack([(found * expected).sum(axes), found.sum(axes), expected.sum(axes)])  # (3, N, classes)
        if self.batch:
            sums = global_sum(sums.sum(1, keepdim=True))
        true_positive, total_found, total_expected = sums
        missed = self.alpha * (total_found - true_positive) + self.beta * (total_expected - true_positive)
        overlaps = (true_positive + SMOOTH / 2) / (true_positive + missed + SMOOTH / 2)
        loss: Tensor = 1 - overlaps.mean()
        return loss


_LOSSES: dict[str, dict[str, float]] = {
    "dice_bce": {"overlap": 0.5, "pixel": 0.5},
    "dice_ce": {"overlap": 1.0, "pixel": 1.0},
    "dice": {"overlap": 1.0, "pixel": 0.0},
    "tversky": {"overlap": 1.0, "pixel": 0.0, "alpha": 0.3, "beta": 0.7},
    "focal": {"overlap": 0.0, "pixel": 1.0, "gamma": 2.0},
    "dice_focal": {"overlap": 1.0, "pixel": 1.0, "gamma": 2.0},
}
"""Name → arguments. ``dice_bce`` is that of the paper (½ Dice + ½ binary cross-entropy)."""


def make_loss(name: str, deep_supervision: bool = False, **settings: Any) -> nn.Module:
    """A loss by name: ``dice_bce`` (the paper's), ``dice_ce``, ``dice``, ``tversky``, ``focal``, ``dice_focal``.

    Args:
        name: of the loss.
        deep_supervision: the network gives several logits; each coarser one counts half as much (MONAI's
            ``DeepSupervisionLoss``).
        settings: arguments of :class:`SegmentationLoss` to change.

    Raises:
        NetworkError: ``LOSS_UNKNOWN``.
    """
    if name not in _LOSSES:
        hint = did_you_mean(name, _LOSSES) or f"There are {', '.join(_LOSSES)}."
        raise NetworkError("LOSS_UNKNOWN", f"there is no loss {name!r}.", hint=hint)
    loss = SegmentationLoss(**{**_LOSSES[name], **settings})
    return DeepSupervisionLoss(loss) if deep_supervision else loss


class DeepSupervision(nn.Module):
    """A network that in training gives the logits of its coarser decoder stages too, through heads of their own.

    The network itself stays as it is: the heads live here, and nothing of them is in the weights that are kept. Where
    the gradient has a short way into the decoder, training is often steadier (Lee et al. 2015).

    Args:
        network: an ``ACCUNet``, or another network whose ``decoder`` is a list of stages from coarse to fine that give
            ``channels`` and whose ``out_channels`` are those of its logits.

    Raises:
        NetworkError: ``NO_DECODER`` for a network that has no such stages.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        stages = list(getattr(network, "decoder", []))[:-1]
        if not stages or not hasattr(network, "head"):
            raise NetworkError(
                "NO_DECODER",
                f"{type(network).__name__} has no list of decoder stages.",
                hint="Set deep_supervision: false.",
            )
        widths = [network.head.in_channels * 2**level for level in range(len(stages), 0, -1)]
        self.heads = nn.ModuleList(
            type(network.head)(width, network.head.out_channels, 1).to(network.head.weight) for width in widths
        )
        self._found: list[Tensor] = []
        for stage in stages:
            stage.register_forward_hook(self._keep)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Image (N, C, *spatial) → logits, in training a list of them, all of the image's size, fine to coarse."""
        self._found = []
        logits: Tensor = self.network(x)
        found, self._found = self._found, []
        if not self.training:
            return logits
        size = [-(-length // 16) * 16 for length in x.shape[2:]]  # as ACCUNet pads
        mode = "bilinear" if len(size) == 2 else "trilinear"
        coarser = [
            F.interpolate(head(features), size, mode=mode, align_corners=False)
            for head, features in zip(self.heads, found, strict=True)
        ]
        inside = (slice(None), slice(None), *(slice(0, length) for length in x.shape[2:]))
        return [logits, *(one[inside] for one in reversed(coarser))]

    def _keep(self, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        if self.training:
            self._found.append(output)


def trained_module(network: nn.Module, deep_supervision: bool = False) -> nn.Module:
    """What a trainer trains: the network, or the network with heads on its decoder's stages."""
    return DeepSupervision(network) if deep_supervision else network
