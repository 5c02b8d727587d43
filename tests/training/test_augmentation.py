"""Each change of BatchAugmentation does what it says, alone; no test here passes if it does nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accunet_monai.training import BatchAugmentation

NOTHING: dict[str, Any] = {
    "probability": 1.0,
    "rotation": 0.0,
    "scale": (1.0, 1.0),
    "shift": 0.0,
    "elastic": 0.0,
    "contrast": (1.0, 1.0),
    "brightness": 0.0,
    "gamma": (1.0, 1.0),
    "noise": 0.0,
    "blur": 0.0,
}


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four images of noise with a bright block, whose label is the block."""
    image = torch.randn(4, 2, 24, 32, generator=torch.Generator().manual_seed(0)) * 0.1
    label = torch.zeros(4, 1, 24, 32, dtype=torch.long)
    image[:, :, 4:10, 18:28] += 3
    label[:, :, 4:10, 18:28] = 2
    return image, label


def only(**changes: Any) -> BatchAugmentation:
    """An augmentation with every change off but these."""
    return BatchAugmentation(**{**NOTHING, **changes})


def test_everything_off_returns_the_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, label = only()(*batch)
    torch.testing.assert_close(image, batch[0], atol=2e-5, rtol=0)
    assert torch.equal(label, batch[1])


def test_zero_probability_returns_the_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, label = BatchAugmentation(probability=0.0)(*batch)
    torch.testing.assert_close(image, batch[0], atol=2e-5, rtol=0)
    assert torch.equal(label, batch[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_mirror_flips_the_named_axis_or_nothing(batch: tuple[torch.Tensor, torch.Tensor], axis: int) -> None:
    augmentation = only(mirror=[axis])
    outcomes = set()
    for _ in range(4):
        image, label = augmentation(*batch)
        for index in range(4):
            flipped = torch.equal(label[index], batch[1][index].flip(axis + 1))
            kept = torch.equal(label[index], batch[1][index])
            assert flipped != kept
            expected = batch[0][index].flip(axis + 1) if flipped else batch[0][index]
            torch.testing.assert_close(image[index], expected, atol=2e-5, rtol=0)
            outcomes.add(flipped)
    assert outcomes == {True, False}


def test_mirrored_slices_come_in_reverse_order_with_their_channels_kept() -> None:
    image = torch.arange(6.0).reshape(1, 6, 1, 1).expand(32, 6, 8, 8)  # three slices of two channels
    label = torch.zeros(32, 1, 8, 8, dtype=torch.long)
    mirrored, _ = only(mirror_slices=3)(image, label)
    orders = {tuple(sample[:, 0, 0].round().int().tolist()) for sample in mirrored}
    assert orders == {(0, 1, 2, 3, 4, 5), (4, 5, 2, 3, 0, 1)}


def test_rotation_turns_rigidly_in_pixels_also_where_the_image_is_not_square() -> None:
    augmentation = only(rotation=90.0)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(32.0), indexing="ij")
    disc = ((rows - 23.5) ** 2 + (columns - 15.5) ** 2 < 100).float()[None, None]
    _image, label = augmentation(disc.repeat(8, 1, 1, 1), disc.long().repeat(8, 1, 1, 1))
    overlap = (label * disc.long()).sum((1, 2, 3)) / disc.sum()
    assert float(overlap.min()) > 0.95  # a disc about the centre stays where it is, but for pixels at its rim
    bar = ((rows - 23.5).abs() < 2).float()[None, None] * ((columns - 15.5).abs() < 10).float()
    _, turned = augmentation(bar.repeat(8, 1, 1, 1), bar.long().repeat(8, 1, 1, 1))
    assert float((turned * bar.long()).sum((1, 2, 3)).min() / bar.sum()) < 0.7  # a bar does not


def test_scale_changes_the_area_within_its_range() -> None:
    block = torch.zeros(16, 1, 64, 64, dtype=torch.long)
    block[:, :, 22:42, 22:42] = 1
    _, label = only(scale=(0.5, 2.0))(block.float(), block)
    ratio = label.sum((1, 2, 3)) / 400
    assert float(ratio.min()) >= 0.2
    assert float(ratio.max()) <= 4.5
    assert float(ratio.min()) < 0.8
    assert float(ratio.max()) > 1.3


def test_shift_moves_by_at_most_its_share() -> None:
    point = torch.zeros(32, 1, 40, 40, dtype=torch.long)
    point[:, :, 18:22, 18:22] = 1
    _, label = only(shift=0.2)(point.float(), point)
    rows = torch.stack([torch.nonzero(one[0]).float().mean(0) for one in label]) - 19.5
    assert float(rows.abs().max()) <= 8.5
    assert float(rows.abs().max()) > 3


def test_elastic_bends_image_and_label_together() -> None:
    stripes = ((torch.arange(48) // 6) % 2).repeat(48, 1)[None, None].repeat(4, 1, 1, 1)
    image, label = only(elastic=2.0)(stripes.float(), stripes)
    assert not torch.equal(label, stripes)
    assert float(((image > 0.5).long() == label).float().mean()) > 0.95


def test_labels_keep_their_values(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, label = BatchAugmentation(probability=1.0, mirror=(0, 1), elastic=3.0)(*batch)
    assert set(label.unique().tolist()) <= {0, 2}
    assert label.dtype == torch.long


@pytest.mark.parametrize(
    "change",
    [
        {"contrast": (0.5, 2.0)},
        {"brightness": 1.0},
        {"gamma": (0.5, 2.0)},
        {"noise": 1.0},
        {"blur": 2.0},
        {"colour_jitter": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_intensity_changes_leave_the_label(batch: tuple[torch.Tensor, torch.Tensor], change: dict[str, Any]) -> None:
    image, label = only(**change)(*batch)
    assert torch.equal(label, batch[1])
    assert float((image - batch[0]).abs().amax((1, 2, 3)).max()) > 0.2


def test_gamma_keeps_the_range_and_contrast_scales_it(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    bent, _ = only(gamma=(0.3, 3.0))(*batch)
    torch.testing.assert_close(bent.amax((1, 2, 3)), batch[0].amax((1, 2, 3)), atol=1e-4, rtol=0)
    torch.testing.assert_close(bent.amin((1, 2, 3)), batch[0].amin((1, 2, 3)), atol=1e-4, rtol=0)
    scaled, _ = only(contrast=(2.0, 2.0))(*batch)
    torch.testing.assert_close(scaled, batch[0] * 2, atol=1e-4, rtol=0)


def test_blur_of_a_point_is_a_gaussian() -> None:
    from accunet_monai.training.augmentation import _gaussian_blur

    point = torch.zeros(2, 1, 21, 21)
    point[:, :, 10, 10] = 1
    blurred = _gaussian_blur(point, torch.tensor([0.0, 1.5]))
    assert torch.equal(blurred[0], point[0])  # no blur
    offsets = torch.arange(-5, 6).float()
    kernel = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    kernel = kernel / kernel.sum()
    torch.testing.assert_close(blurred[1, 0, 10, 5:16], kernel * kernel[5], atol=1e-6, rtol=1e-4)


def test_the_seed_fixes_everything_whatever_else_draws(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    first = BatchAugmentation(seed=3)
    torch.rand(17)
    second = BatchAugmentation(seed=3)
    for _ in range(3):
        one, other = first(*batch), second(*batch)
        torch.rand(5)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(BatchAugmentation(seed=4)(*batch)[0], BatchAugmentation(seed=3)(*batch)[0])


def test_samples_of_a_batch_differ(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    same = batch[0][:1].repeat(4, 1, 1, 1)
    image, _ = BatchAugmentation(probability=1.0)(same, batch[1])
    assert float((image[0] - image[1]).abs().max()) > 0.1
