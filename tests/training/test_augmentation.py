"""Each change of BatchAugmentation does what it says, alone; no test here passes if it does nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from accunet_monai.training import AugmentedBatch, BatchAugmentation
from accunet_monai.training.filters import gaussian_blur, lower_resolution

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
        {"low_resolution": 3.0},
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
    point = torch.zeros(2, 1, 21, 21)
    point[:, :, 10, 10] = 1
    blurred = gaussian_blur(point, torch.tensor([0.0, 1.5]), 1.5)
    assert torch.equal(blurred[0], point[0])  # no blur
    offsets = torch.arange(-5, 6).float()
    kernel = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    kernel = kernel / kernel.sum()
    torch.testing.assert_close(blurred[1, 0, 10, 5:16], kernel * kernel[5], atol=1e-6, rtol=1e-4)
    assert torch.equal(
        gaussian_blur(point[1:], torch.tensor([0.5]), 1.5), gaussian_blur(point, torch.tensor([1.5, 0.5]), 1.5)[1:]
    )


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


@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 1), (180.0, 2), (-90.0, 3)])
def test_rotation_by_a_right_angle_is_that_of_the_array(degrees: float, turns: int) -> None:
    image = torch.randn(3, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 5, (3, 1, 20, 20), generator=torch.Generator().manual_seed(1))
    turned, reference = only(rotation=(degrees, degrees))(image, label)
    torch.testing.assert_close(turned, torch.rot90(image, turns, (2, 3)), atol=2e-5, rtol=0)
    assert torch.equal(reference, torch.rot90(label, turns, (2, 3)))


def test_scale_by_two_is_an_interpolation_of_the_middle() -> None:
    image = torch.randn(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))
    zoomed, _ = only(scale=(2.0, 2.0))(image, torch.zeros_like(image))
    expected = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 8:-8, 12:-12]
    torch.testing.assert_close(zoomed, expected, atol=2e-5, rtol=0)


def test_elastic_displaces_by_its_standard_deviation_in_pixels() -> None:
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(96.0), indexing="ij")
    places = torch.stack([rows, columns]).repeat(40, 1, 1, 1)
    moved, _ = only(elastic=2.0)(places, torch.zeros(40, 1, 60, 96))
    displacement = (moved - places)[:, :, 15:-15, 15:-15]
    # control points have this deviation; between them bicubic interpolation averages, so that a little is lost
    for axis in range(2):
        assert 1.2 < float(displacement[:, axis].std()) < 2.2
    steps = (displacement[..., 1:] - displacement[..., :-1]).abs()
    assert float(steps.max()) < 2.0  # and it is smooth


def test_blur_lowers_a_wave_by_the_gaussians_factor() -> None:
    columns = torch.arange(64.0).expand(2, 1, 32, 64)
    for period in (6, 9, 16):
        wave = torch.cos(2 * math.pi * columns / period)
        blurred, _ = only(blur=(1.2, 1.2))(wave, torch.zeros_like(wave))
        measured = float(blurred[..., 8:-8].pow(2).mean().sqrt() / wave[..., 8:-8].pow(2).mean().sqrt())
        assert measured == pytest.approx(math.exp(-((1.2 * 2 * math.pi / period) ** 2) / 2), abs=0.01)


@pytest.mark.parametrize("factor", [2, 4])
def test_low_resolution_is_nearest_down_and_linear_up(factor: int) -> None:
    image = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    coarse = F.interpolate(image, scale_factor=1 / factor, mode="nearest-exact")
    expected = F.interpolate(coarse, scale_factor=factor, mode="bilinear", align_corners=False)
    found = lower_resolution(image, torch.tensor([1.0, factor]))
    assert torch.equal(found[0], image[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)
    augmented, _ = only(low_resolution=4.0)(image, torch.zeros_like(image))
    detail = [(array[..., 1:] - array[..., :-1]).pow(2).mean() for array in (augmented, image)]
    assert float(detail[0] / detail[1]) < 0.6


def test_noise_and_brightness_have_their_deviations() -> None:
    flat = torch.zeros(400, 1, 16, 16)
    noisy, _ = only(noise=1.0)(flat, flat)
    strengths = noisy.std((1, 2, 3))
    assert float(strengths.mean()) == pytest.approx(0.5, abs=0.05)  # uniform between 0 and 1
    assert float(strengths.max()) < 1.15
    bright, _ = only(brightness=0.5)(flat, flat)
    assert float(bright[:, 0, 0, 0].std()) == pytest.approx(0.5, abs=0.05)
    assert float(bright.std((1, 2, 3)).max()) < 1e-6


def test_gamma_is_a_power_of_the_rescaled_intensities() -> None:
    image = torch.linspace(-1, 3, 64).reshape(1, 1, 8, 8)
    bent, _ = only(gamma=(2.0, 2.0))(image, torch.zeros_like(image))
    torch.testing.assert_close(bent, ((image + 1) / 4) ** 2 * 4 - 1, atol=1e-5, rtol=1e-5)


def test_half_of_the_samples_are_changed_by_half_the_probability() -> None:
    image = torch.zeros(600, 1, 4, 4)
    changed, _ = BatchAugmentation(**{**NOTHING, "probability": 0.3, "brightness": 1.0})(image, image)
    assert float((changed[:, 0, 0, 0] != 0).float().mean()) == pytest.approx(0.3, abs=0.06)


def test_a_sample_is_changed_by_its_own_draw_whatever_stands_beside_it(batch: Any) -> None:
    image, label = batch
    augmentation = BatchAugmentation(
        probability=0.7, mirror=(0, 1), mirror_slices=2, colour_jitter=0.2, low_resolution=2.0, seed=5
    )
    draws = torch.tensor([3, 11, 40, 7])
    whole = augmentation(image, label, draw=draws)
    augmentation(image, label)
    order = torch.tensor([2, 0, 3])
    part = augmentation(image[order], label[order], draw=draws[order])
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[order], other, atol=1e-5, rtol=0)
    assert not torch.equal(whole[0], augmentation(image, label, draw=draws + 1)[0])


def test_two_halves_of_a_batch_are_the_whole(batch: Any) -> None:
    image, label = batch
    augmentation = BatchAugmentation(probability=0.7, mirror=(0, 1), seed=5)
    whole = augmentation(image, label, draw=12)
    halves = [augmentation(image[s], label[s], draw=12, offset=s.start) for s in (slice(0, 2), slice(2, 4))]
    for number in range(2):
        joined = torch.cat([half[number] for half in halves])
        torch.testing.assert_close(joined, whole[number], atol=1e-5, rtol=0)
    without_offset = augmentation(image[2:], label[2:], draw=12)[0]
    assert float((without_offset - whole[0][2:]).abs().max()) > 0.1


def test_the_ignore_label_moves_with_the_image_and_stays_what_it_is() -> None:
    label = torch.zeros(8, 1, 32, 32, dtype=torch.long)
    label[:, :, 8:20, 8:24] = 255
    label[:, :, 12:16, 12:16] = 3
    image, moved = only(rotation=45.0, elastic=1.5, scale=(0.8, 1.3))(label.float(), label)
    assert set(moved.unique().tolist()) == {0, 3, 255}
    assert moved.dtype == torch.long
    assert float((image.round().long() == moved).float().mean()) > 0.85  # but for pixels between two values


def test_overlapping_regions_move_together_and_stay_masks() -> None:
    label = torch.zeros(6, 1, 24, 24, dtype=torch.long)
    label[:, :, 4:20, 6:18] = 1
    label[:, :, 8:14, 8:14] = 2
    label[:, :, 0:3] = 9
    image = torch.randn(6, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"rotation": 60.0, "elastic": 2.0}
    batch = {"image": image, "label": label, "draw": torch.arange(6)}
    prepare = AugmentedBatch(only(**settings), regions=[[1, 2], [2]], ignore_label=9)
    _, regions = prepare(batch, "cpu")
    assert regions.shape == (6, 2, 24, 24)
    assert set(regions.unique().tolist()) == {0, 1, 9}
    assert bool((regions[:, 0] >= (regions[:, 1] == 1)).all())  # the inner lies in the outer
    # regions made before augmentation give the same as label maps made into regions after it
    masks = torch.cat([(label == 1) | (label == 2), label == 2], 1).long()
    _, moved = only(**settings)(image, masks, draw=torch.arange(6))
    assert torch.equal(moved == 1, regions == 1)
