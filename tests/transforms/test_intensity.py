"""Intensities: by hand, and against MONAI where it does the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.dictionary import ClipIntensityPercentilesd
from monai.transforms.transform import MapTransform

from accunet_monai.transforms import ClipPercentilesd, WindowCTd, ZScoreForegroundd

AFFINE = torch.diag(torch.tensor([2.0, 3, 4, 1], dtype=torch.float64))


def body(air: int = 0) -> MetaTensor:
    """10 × 10 × 10 tissue around 100 ± 10, in ``air`` more slices of 0."""
    values = np.random.default_rng(0).normal(100, 10, (1, 10, 10, 10)).astype(np.float32)
    padded = np.concatenate([values, np.zeros((1, air, 10, 10), np.float32)], axis=1)
    return MetaTensor(torch.from_numpy(padded), affine=AFFINE)


def test_a_window_in_hounsfield_units() -> None:
    values = torch.tensor([-1024.0, -160, -60, 40, 140, 240, 3000]).reshape(1, 7, 1, 1)
    scaled = WindowCTd("ct", center=40, width=400)({"ct": MetaTensor(values, affine=AFFINE)})["ct"]
    np.testing.assert_allclose(scaled.flatten(), [0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert torch.equal(scaled.affine, AFFINE)
    for width in (0, -5, float("nan")):
        with pytest.raises(ValueError, match="width"):
            WindowCTd("ct", 40, width)


@pytest.mark.parametrize("foreground", ["mean", 0.0])
def test_the_z_score_of_the_foreground_does_not_depend_on_the_air(foreground: str | float) -> None:
    few, many = (ZScoreForegroundd("x", foreground)({"x": body(air)})["x"] for air in (20, 40))  # type: ignore[arg-type]
    tissue = few[:, :10]
    assert torch.equal(tissue, many[:, :10])
    assert float(tissue.mean()) == pytest.approx(0, abs=1e-5)
    assert float(tissue.std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    assert float(few[:, 10:].max()) < float(tissue.min())
    assert torch.equal(few.affine, AFFINE)


def test_each_channel_has_its_own_statistics_and_all_voxels_count_on_request() -> None:
    one = body(5)
    both = ZScoreForegroundd("x", "all")({"x": torch.cat([one, one * 3 + 7])})["x"]
    assert torch.allclose(both[0], both[1], atol=1e-5)
    assert float(both[0].mean()) == pytest.approx(0, abs=1e-5)


def test_a_constant_image_becomes_zero_and_an_empty_foreground_means_all() -> None:
    constant = MetaTensor(torch.full((1, 3, 3, 3), 5.0))
    assert not ZScoreForegroundd("x")({"x": constant})["x"].any()
    assert not ZScoreForegroundd("x", 1e9)({"x": constant})["x"].any()


def test_percentiles_of_all_voxels_are_monais() -> None:
    data = {"x": body(3)}
    ours = ClipPercentilesd("x", 2.0, 97.0)(data)["x"]
    theirs = ClipIntensityPercentilesd("x", 2.0, 97.0)(data)["x"]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert torch.equal(ours.affine, AFFINE)


def test_percentiles_of_the_foreground_do_not_depend_on_the_air() -> None:
    highest = [float(ClipPercentilesd("x", 5, 95, "mean")({"x": body(air)})["x"].max()) for air in (20, 60)]
    assert highest[0] == highest[1]
    moved = [float(ClipPercentilesd("x", 5, 95)({"x": body(air)})["x"].max()) for air in (20, 60)]
    assert moved[0] > moved[1] + 5
    clipped = ClipPercentilesd("x", 10, 90, 0.0)({"x": body(0)})["x"].numpy().ravel()
    low, high = np.percentile(body(0).numpy(), [10, 90])
    np.testing.assert_allclose([clipped.min(), clipped.max()], [low, high], rtol=1e-6)


def test_large_volumes_have_percentiles_too() -> None:
    values = torch.arange(2**24 + 2**14, dtype=torch.float32).reshape(1, 16, 1024, -1)  # torch.quantile ends at 2²⁴
    clipped = ClipPercentilesd("x", 25, 75)({"x": values})["x"]
    assert float(clipped.min()) == pytest.approx(2**22, rel=1e-3)


@pytest.mark.parametrize("wrong", ["median", float("nan")])
def test_unknown_foregrounds_and_percentiles(wrong: str | float) -> None:
    for kind in (ZScoreForegroundd, ClipPercentilesd):
        with pytest.raises(ValueError, match="foreground"):
            kind("x", foreground=wrong)  # type: ignore[arg-type]
    for lower, upper in ((-1, 50), (50, 50), (90, 10), (0, 101)):
        with pytest.raises(ValueError, match="percentiles"):
            ClipPercentilesd("x", lower, upper)


@pytest.mark.parametrize("transform", [WindowCTd("x", 0, 1), ZScoreForegroundd("x"), ClipPercentilesd("x")])
def test_the_callers_tensor_stays_as_it_is(transform: MapTransform) -> None:
    data = {"x": body(2)}
    before = data["x"].clone()
    transform(data)
    assert torch.equal(data["x"], before)
