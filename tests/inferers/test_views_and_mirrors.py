"""Views and mirrorings: volumes whose voxels encode their position, and averages computed without the inferer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accunet_monai.inferers import SliceInferer, accumulate
from accunet_monai.inferers.plan import flips_of

SHAPE = (4, 5, 6)
CLOSE = 1e-6
"""Averages of a few float32 probabilities, in another order."""
HALF = 2e-3
"""Sums of up to three probabilities rounded to float16 on the way: each by 2⁻¹¹ of its size at most."""


def positions() -> Tensor:
    """(1, 3, X, Y, Z): every voxel holds its own coordinates."""
    return torch.stack(torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in SHAPE), indexing="ij"))[
        None
    ]


def uneven(x: Tensor) -> Tensor:
    """Three classes that depend on what is above and to the left, so that no axis and no direction is like another."""
    down, right = torch.cumsum(x[:, :1], 2), torch.cumsum(x[:, -1:], 3)
    return torch.cat([x[:, :1], down / 3, right / 4], 1)


def subsets(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]


# ----------------------------------------------------------------------------------------------------------------------
# Views


@pytest.mark.parametrize(("view", "axis"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_a_view_is_cut_along_its_axis_and_put_back_in_place(view: str, axis: int) -> None:
    rows, columns = (dim for dim in range(3) if dim != axis)
    seen = []

    def network(x: Tensor) -> Tensor:
        seen.extend(x[:, axis, 0, 0].tolist())
        assert (x[:, axis] == x[:, axis, :1, :1]).all()  # one slice at a time
        assert (x[:, rows].diff(dim=1) == 1).all() and (x[:, columns].diff(dim=2) == 1).all()  # noqa: PT018
        return torch.cat([x / 10, x[:, :1] * 0], 1)  # positions as logits

    result = SliceInferer(views=[view], output="probabilities", sw_batch_size=3)(positions(), network)
    assert seen == list(range(SHAPE[axis]))
    expected = torch.softmax(torch.cat([positions() / 10, torch.zeros(1, 1, *SHAPE)], 1), 1)
    torch.testing.assert_close(result, expected, atol=CLOSE, rtol=0)


def made_volume(seed: int = 1) -> Tensor:
    return torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_views_average_the_probabilities_of_passes_along_their_axes() -> None:
    volume = made_volume()
    single = [SliceInferer(spatial_dim=axis, output="probabilities")(volume, uneven) for axis in (0, 2)]
    assert float((single[0] - single[1]).abs().max()) > 0.1
    both = SliceInferer(views=["sagittal", "axial"], output="probabilities", sw_batch_size=4)(volume, uneven)
    torch.testing.assert_close(both, (single[0] + single[1]) / 2, atol=CLOSE, rtol=0)
    labels = SliceInferer(views=["sagittal", "axial"])(volume, uneven)
    assert torch.equal(labels, both.argmax(1, keepdim=True).to(torch.uint8))


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, CLOSE), ("float16", HALF)])
def test_three_views_give_the_same_from_memory_and_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None, tolerance: float
) -> None:
    volume, views = made_volume(), ["axial", "coronal", "sagittal"]
    settings: dict[str, Any] = {"dtype": dtype, "scratch_dir": tmp_path, "sw_batch_size": 2}
    mean = sum(SliceInferer(views=[view], output="probabilities")(volume, uneven) for view in views) / 3
    inferer = SliceInferer(views=views, **settings)
    in_memory = inferer(volume, uneven)
    mapped = []
    make = accumulate.MappedTensor.temporary
    monkeypatch.setattr(accumulate.MappedTensor, "temporary", lambda *a: mapped.append(make(*a)) or mapped[-1])
    monkeypatch.setattr(accumulate, "SCRATCH_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(accumulate, "SLAB_BYTES", 2 * 3 * 4 * 5 * 4)  # a few slices, whatever the view
    from_disk = inferer(volume, uneven)
    assert len(mapped) == 1
    assert list(tmp_path.iterdir()) == []  # without a name from the start
    assert mapped[0].tensor.dtype == (torch.float16 if dtype else torch.float32)
    torch.testing.assert_close(mapped[0].tensor.float(), mean, atol=tolerance, rtol=0)
    first, second = mean.topk(2, 1).values.split(1, 1)
    clear = first - second > 2 * tolerance
    assert clear.float().mean() > 0.9
    expected = mean.argmax(1, keepdim=True).to(torch.uint8)
    assert torch.equal(from_disk[clear], expected[clear])
    assert torch.equal(in_memory, from_disk)


def test_probabilities_of_views_in_a_file_are_the_average(tmp_path: Path) -> None:
    volume, views = made_volume(), ["axial", "coronal"]
    label_map = SliceInferer(views=views).write_probabilities(tmp_path / "p.npy", volume, uneven)
    expected = SliceInferer(views=views, output="probabilities")(volume, uneven)
    stored = np.load(tmp_path / "p.npy", mmap_mode="r")
    assert np.array_equal(stored, expected.numpy())
    assert torch.equal(label_map, expected.argmax(1, keepdim=True).to(torch.uint8))


# ----------------------------------------------------------------------------------------------------------------------
# Mirrorings


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_network_sees_every_mirroring_and_the_result_is_mirrored_back(axis: int) -> None:
    volume, mirrored = positions(), [dim for dim in range(3) if dim != axis]
    seen = []

    def network(x: Tensor) -> Tensor:
        directions = (x[:, mirrored[0]].diff(dim=1).sign(), x[:, mirrored[1]].diff(dim=2).sign())
        for down, right in zip(*directions, strict=True):
            seen.append((int(down.unique()), int(right.unique())))
        return torch.cat([x, x[:, :1] * 0], 1)

    inferer = SliceInferer(spatial_dim=axis, mirror_axes=mirrored, output="logits", sw_batch_size=3)
    result = inferer(volume, network)
    assert torch.equal(result[:, :3], volume)
    assert seen == [(1, 1), (-1, 1), (1, -1), (-1, -1)] * SHAPE[axis]


def test_mirroring_along_the_slices_reverses_the_neighbours() -> None:
    volume = torch.arange(5.0)[None, None, :, None, None].expand(1, 1, 5, 2, 3).clone()
    seen: list[list[float]] = []

    def network(x: Tensor) -> Tensor:
        seen.extend(x[:, :, 0, 0].tolist())
        return x[:, 1:2]

    result = SliceInferer(context_slices=1, mirror_axes=[0], output="logits")(volume, network)
    assert seen[:6] == [[0, 0, 1], [1, 0, 0], [0, 1, 2], [2, 1, 0], [1, 2, 3], [3, 2, 1]]
    assert torch.equal(result, volume)
    assert flips_of((0, 1, 2), axis=0, context_slices=0) == ((), (2,), (3,), (2, 3))  # it makes no difference: once


@pytest.mark.parametrize("output", ["probabilities", "logits"])
@pytest.mark.parametrize("axes", [(1,), (0, 2), (0, 1, 2)])
def test_mirrorings_average_the_results_of_mirrored_volumes(output: Any, axes: tuple[int, ...]) -> None:
    volume = made_volume()
    # windows that lie symmetrically, so that mirroring windows is mirroring the volume
    common: dict[str, Any] = {"roi_size": (3, 6), "overlap": 0.5, "mode": "gaussian", "context_slices": 1}

    def network(x: Tensor) -> Tensor:
        return uneven(x) + x[:, :3] ** 2

    single = SliceInferer(output=output, **common)
    mirrored = []
    for chosen in subsets(axes):
        dims = [axis + 2 for axis in chosen]
        mirrored.append(single(volume.flip(dims), network).flip(dims))
    assert float((mirrored[0] - mirrored[1]).abs().max()) > 0.1
    expected = torch.stack(mirrored).mean(0)
    result = SliceInferer(mirror_axes=axes, output=output, sw_batch_size=7, **common)(volume, network)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    if output == "probabilities":
        labels = SliceInferer(mirror_axes=axes, **common)(volume, network)
        assert torch.equal(labels, result.argmax(1, keepdim=True).to(torch.uint8))


def test_batches_are_filled_across_mirrorings_windows_slices_and_volumes() -> None:
    sizes: list[int] = []

    def network(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    volume = torch.randn(2, 1, 4, 4, 3)  # 2 volumes × 3 slices × 2 windows × 4 mirrorings = 48
    inferer = SliceInferer(roi_size=(2, 4), overlap=0, sw_batch_size=20, spatial_dim=2, mirror_axes=(0, 1))
    inferer(volume, network)
    assert sizes == [20, 20, 8]


def test_views_and_mirrorings_together() -> None:
    volume, views = made_volume(), ["coronal", "axial"]
    passes = [SliceInferer(views=[view], mirror_axes=(0, 2), output="probabilities")(volume, uneven) for view in views]
    both = SliceInferer(views=views, mirror_axes=(0, 2), output="probabilities")(volume, uneven)
    torch.testing.assert_close(both, (passes[0] + passes[1]) / 2, atol=CLOSE, rtol=0)
