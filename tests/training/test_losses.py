"""Losses against hand-computed values and against MONAI's, and that each part of them does something."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss, DiceLoss, TverskyLoss
from torch import Tensor

from accunet_monai.errors import NetworkError
from accunet_monai.networks import ACCUNet
from accunet_monai.training import AugmentedBatch, DeepSupervision, SegmentationLoss, make_loss

NAMES = ("dice_bce", "dice_ce", "dice", "tversky", "focal", "dice_focal")
ALL_BUT_ONE = pytest.mark.parametrize("name", NAMES)


def logits_of(probability: float) -> float:
    return math.log(probability / (1 - probability))


def four_pixels() -> tuple[Tensor, Tensor]:
    """Probabilities .9 .6 .2 .5 of a mask 1 1 0 0."""
    logits = torch.tensor([logits_of(p) for p in (0.9, 0.6, 0.2, 0.5)]).reshape(1, 1, 2, 2)
    return logits, torch.tensor([1, 1, 0, 0]).reshape(1, 1, 2, 2)


CROSS_ENTROPY = -(math.log(0.9) + math.log(0.6) + math.log(0.8) + math.log(0.5)) / 4
DICE = 1 - 2 * 1.5 / (2.2 + 2)  # overlap .9 + .6, found 2.2, expected 2
FOCAL = -(0.1**2 * math.log(0.9) + 0.4**2 * math.log(0.6) + 0.2**2 * math.log(0.8) + 0.5**2 * math.log(0.5)) / 4
TVERSKY = 1 - 1.5 / (1.5 + 0.3 * 0.7 + 0.7 * 0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", DICE),
        ("dice_bce", (DICE + CROSS_ENTROPY) / 2),
        ("dice_ce", DICE + CROSS_ENTROPY),
        ("focal", FOCAL),
        ("dice_focal", DICE + FOCAL),
        ("tversky", TVERSKY),
    ],
)
def test_a_mask_by_hand(name: str, expected: float) -> None:
    assert float(make_loss(name)(*four_pixels())) == pytest.approx(expected, abs=1e-5)


def test_classes_by_hand() -> None:
    """Two pixels, three classes: probabilities (.5 .3 .2) of class 1 and (.1 .1 .8) of class 2."""
    logits = torch.log(torch.tensor([[0.5, 0.1], [0.3, 0.1], [0.2, 0.8]])).reshape(1, 3, 1, 2)
    label = torch.tensor([1, 2]).reshape(1, 1, 1, 2)
    dice = 1 - (2 * 0.3 / 1.4 + 2 * 0.8 / 2.0) / 2
    assert float(make_loss("dice")(logits, label)) == pytest.approx(dice, abs=1e-4)
    with_background = 1 - (0 + 2 * 0.3 / 1.4 + 2 * 0.8 / 2.0) / 3
    assert float(make_loss("dice", include_background=True)(logits, label)) == pytest.approx(with_background, abs=1e-4)
    entropy = -(math.log(0.3) + math.log(0.8)) / 2
    assert float(make_loss("dice_ce")(logits, label)) == pytest.approx(dice + entropy, abs=1e-4)


def random_batch(seed: int, classes: int = 3, samples: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, 6, 5, generator=generator) * 2
    return logits, torch.randint(0, max(classes, 2), (samples, 1, 6, 5), generator=generator)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.booleans(), background=st.booleans())
def test_equal_to_monais_losses(seed: int, batch: bool, background: bool) -> None:
    logits, label = random_batch(seed)
    usual: dict[str, Any] = {"include_background": background, "to_onehot_y": True, "softmax": True, "batch": batch}
    ours: dict[str, Any] = {"include_background": background, "batch": batch}
    assert torch.isclose(make_loss("dice_ce", **ours)(logits, label), DiceCELoss(**usual)(logits, label), atol=1e-6)
    assert torch.isclose(make_loss("dice", **ours)(logits, label), DiceLoss(**usual)(logits, label), atol=1e-6)
    monai = TverskyLoss(**usual, alpha=0.3, beta=0.7)(logits, label)
    assert torch.isclose(make_loss("tversky", **ours)(logits, label), monai, atol=1e-5)


@ALL_BUT_ONE
def test_descending_it_learns_the_label(name: str) -> None:
    logits, label = random_batch(1)
    logits = (0.1 * logits).requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(make_loss(name)(logits, label), logits)
        logits = (logits - 60 * gradient).detach().requires_grad_()
    right = logits.argmax(1, keepdim=True) == label
    assert float(right[label != 0].float().mean()) > 0.95


@ALL_BUT_ONE
def test_what_nobody_annotated_counts_nowhere(name: str) -> None:
    logits, label = random_batch(2)
    ignored = torch.zeros_like(label, dtype=torch.bool)
    ignored[:, :, :3] = True
    loss = make_loss(name, ignore_label=255)
    inner = (logits[:, :, 3:], label[:, :, 3:])
    found = loss(logits, torch.where(ignored, 255, label))
    assert torch.isclose(found, make_loss(name)(*inner), atol=1e-6)
    changed = torch.where(ignored, logits + 7, logits)
    assert torch.equal(loss(changed, torch.where(ignored, 255, label)), found)
    assert not torch.isclose(make_loss(name)(logits, label), found, atol=1e-4)
    nothing = loss(logits.requires_grad_(), torch.full_like(label, 255))
    assert torch.isfinite(nothing)
    nothing.backward()
    assert float(logits.grad.abs().max()) == 0  # type: ignore[union-attr]


@ALL_BUT_ONE
def test_overlapping_regions_are_masks_of_their_own(name: str) -> None:
    logits, _ = random_batch(3, classes=2)
    label = torch.randint(0, 4, (4, 1, 6, 5), generator=torch.Generator().manual_seed(0))
    label[0, 0, 0, 0] = 255
    batch = {"image": torch.zeros(4, 1, 6, 5), "label": label}
    _, regions = AugmentedBatch(regions=[[1, 2, 3], [3]], ignore_label=255)(batch, "cpu")
    loss = make_loss(name, ignore_label=255)
    alone = [loss(logits[:, n : n + 1], regions[:, n : n + 1]) for n in range(2)]
    assert torch.isclose(loss(logits, regions), (alone[0] + alone[1]) / 2, atol=1e-5)
    assert not torch.isclose(alone[0], alone[1], atol=1e-4)


def test_a_class_that_nobody_sees_costs_nothing() -> None:
    logits, label = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long)
    logits[:, 0] = 50
    assert float(make_loss("dice")(logits, label)) == pytest.approx(0, abs=1e-5)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, label = random_batch(5, samples=64)
    exact = make_loss("dice_ce")(logits.half().float(), label)
    assert torch.equal(make_loss("dice_ce")(logits.half(), label), exact)


def test_unknown_names() -> None:
    with pytest.raises(NetworkError, match="Did you mean 'dice_ce'") as caught:
        make_loss("dice-ce")
    assert caught.value.code == "LOSS_UNKNOWN"
    with pytest.raises(NetworkError, match="There are dice_bce"):
        make_loss("xyz")


def test_deep_supervision_reaches_the_decoder_and_leaves_the_network_as_it_is() -> None:
    torch.manual_seed(0)
    network = ACCUNet(2, 1, 3, base_filters=2, mlfc_iterations=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x, label = torch.randn(2, 1, 30, 20), torch.randint(0, 3, (2, 1, 30, 20))
    alone = network.eval()(x)
    module = DeepSupervision(network)
    assert torch.equal(module.eval()(x), alone)
    assert network.state_dict().keys() == before.keys()
    levels = module.train()(x)
    assert [tuple(one.shape) for one in levels] == [(2, 3, 30, 20)] * 4
    loss = make_loss("dice_ce", deep_supervision=True)
    single = SegmentationLoss()
    by_hand = sum(single(one, label) / 2**level for level, one in enumerate(levels))
    assert torch.isclose(loss(levels, label), by_hand)
    loss(levels, label).backward()
    for head in module.heads:
        assert float(head.weight.grad.abs().max()) > 0  # type: ignore[union-attr,operator]
    gradients = {}
    for deep in (False, True):
        network.zero_grad()
        found = module(x)
        (loss(found, label) if deep else single(found[0], label)).backward()
        gradients[deep] = next(network.decoder[0].parameters()).grad.clone()  # type: ignore[union-attr]
    assert not torch.allclose(gradients[True], gradients[False], rtol=1e-3)


def test_deep_supervision_lines_up_with_the_image() -> None:
    """A stage whose features mark a corner gives logits that mark the same corner."""
    network = ACCUNet(2, 1, 2, base_filters=1, mlfc_iterations=0)
    module = DeepSupervision(network).train()
    for head in module.heads:
        torch.nn.init.ones_(head.weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def corner(stage: Any, inputs: Any, output: Tensor) -> Tensor:
        marked = torch.zeros_like(output)
        marked[:, :, 0, -1] = 1
        return marked

    for stage in network.decoder[:-1]:
        stage._forward_hooks.clear()
        stage.register_forward_hook(corner)
        stage.register_forward_hook(module._keep)
    for level in module(torch.zeros(1, 1, 64, 32))[1:]:
        assert level[0, 0, 0, 31] == level.max() > max(level[0, 0, 40:].max(), level[0, 0, :, :16].max())


def test_networks_without_such_a_decoder_are_refused() -> None:
    with pytest.raises(NetworkError) as caught:
        DeepSupervision(torch.nn.Conv2d(1, 1, 1))
    assert caught.value.code == "NO_DECODER"
