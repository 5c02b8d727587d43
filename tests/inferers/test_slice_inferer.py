"""SliceInferer: grids computed by hand, neighbours, how the network is called, refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data.meta_tensor import MetaTensor
from monai.engines.evaluator import SupervisedEvaluator
from monai.inferers.inferer import SliceInferer as MonaiSliceInferer
from torch import Tensor

from accunet_monai.inferers import SliceInferer

CLOSE = 1e-5
"""Blending sums float32 products in another order than MONAI does; values are of the order of 1."""


def column(values: list[list[float]]) -> Tensor:
    """A volume of one slice along its last axis: (1, 1, rows, columns, 1)."""
    return torch.tensor(values)[None, None, :, :, None]


def counting() -> Callable[[Tensor], Tensor]:
    """A network whose n-th window (from 1) is filled with n, whatever is in it."""
    seen = 0

    def network(x: Tensor) -> Tensor:
        nonlocal seen
        numbers = torch.arange(seen + 1, seen + 1 + len(x), dtype=x.dtype)
        seen += len(x)
        return numbers[:, None, None, None].expand(len(x), 1, *x.shape[2:]).clone()

    return network


def plane(inferer: SliceInferer, volume: Tensor, network: Callable[[Tensor], Tensor]) -> list[list[float]]:
    return inferer(volume, network)[0, 0, :, :, 0].tolist()


GRID = torch.zeros(1, 1, 4, 4, 1)


# ----------------------------------------------------------------------------------------------------------------------
# By hand, on 4×4


def test_windows_without_overlap_run_along_rows_first() -> None:
    inferer = SliceInferer(roi_size=(2, 2), overlap=0, spatial_dim=2, output="logits")
    assert plane(inferer, GRID, counting()) == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_overlap_with_constant_weights_is_the_mean_of_the_windows() -> None:
    # rows 0-1, 1-2, 2-3 of full width: windows 1, 2, 3; the inner rows are seen twice
    inferer = SliceInferer(roi_size=(2, 4), overlap=(0.5, 0), spatial_dim=2, output="logits")
    assert plane(inferer, GRID, counting()) == [[1.0] * 4, [1.5] * 4, [2.5] * 4, [3.0] * 4]


def test_the_last_window_is_moved_back_to_the_border() -> None:
    # width 3, step 3: the second window starts at column 1, so that columns 1 and 2 are seen twice
    inferer = SliceInferer(roi_size=(4, 3), overlap=0, spatial_dim=2, output="logits")
    assert plane(inferer, GRID, counting()) == [[1.0, 1.5, 1.5, 2.0]] * 4


def test_overlap_with_gaussian_weights() -> None:
    # windows of width 3 at columns 0 and 1; sigma = 0.5 × 3 = 1.5 pixels, so that a neighbour of the middle pixel
    # weighs exp(-1 / (2 × 1.5²)) = 0.8007 of it; columns 1 and 2 are seen twice
    inferer = SliceInferer(
        roi_size=(4, 3), overlap=0.5, mode="gaussian", sigma_scale=0.5, spatial_dim=2, output="logits"
    )
    second = (1 * 1 + 0.8007 * 2) / 1.8007  # window 1's middle, window 2's left
    third = (0.8007 * 1 + 1 * 2) / 1.8007
    for row in plane(inferer, GRID, counting()):
        assert row == pytest.approx([1, second, third, 2], abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_fractions_whatever_the_volume_is_made_of(dtype: torch.dtype) -> None:
    inferer = SliceInferer(roi_size=(3, 3), overlap=0.5, mode="gaussian", spatial_dim=2, output="logits")
    result = inferer(torch.full((1, 1, 4, 4, 1), 7).to(dtype), lambda x: x)
    assert result.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert torch.allclose(result.float(), torch.tensor(7.0))


def test_slices_smaller_than_the_window_are_padded_on_both_sides_and_cut_again() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    volume = column([[1, 2], [3, 4]])
    inferer = SliceInferer(roi_size=(3, 4), cval=-1, spatial_dim=2, output="logits")
    assert plane(inferer, volume, network) == [[1, 2], [3, 4]]
    assert seen[0][0, 0].tolist() == [[-1, 1, 2, -1], [-1, 3, 4, -1], [-1, -1, -1, -1]]  # the odd row goes after
    inferer = SliceInferer(roi_size=(4, 4), padding_mode="replicate", spatial_dim=2, output="logits")
    assert plane(inferer, volume, network) == [[1, 2], [3, 4]]
    assert seen[1][0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_label_maps_of_one_and_of_several_channels() -> None:
    logit = column([[-2, -0.1, 0.1, 2]])
    binary = SliceInferer(spatial_dim=2)(logit, lambda x: x)
    assert binary.dtype == torch.uint8
    assert binary.flatten().tolist() == [0, 0, 1, 1]
    strict = SliceInferer(spatial_dim=2, threshold=0.8)(logit, lambda x: x)  # sigmoid(2) = 0.88, sigmoid(0.1) = 0.52
    assert strict.flatten().tolist() == [0, 0, 0, 1]
    several = SliceInferer(spatial_dim=2)(logit, lambda x: torch.cat([x * 0, x, -2 * x], 1))
    assert several.shape == (1, 1, 1, 4, 1)
    assert several.flatten().tolist() == [2, 2, 1, 1]
    probabilities = SliceInferer(spatial_dim=2, output="probabilities")
    assert torch.allclose(probabilities(logit, lambda x: x), torch.sigmoid(logit))
    both = probabilities(logit, lambda x: torch.cat([x, -x], 1))
    assert torch.allclose(both[:, :1], torch.sigmoid(2 * logit), atol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Neighbouring slices


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_channels_ordered_by_position_and_repeated_at_the_ends(axis: int) -> None:
    shape = (4, 5, 6)
    position = torch.arange(shape[axis], dtype=torch.float32)
    along = position.reshape([-1 if a == axis else 1 for a in range(3)]).expand(shape)
    volume = torch.stack([along, along + 100])[None]  # channel 1 is channel 0 plus 100
    seen: list[list[float]] = []

    def network(x: Tensor) -> Tensor:
        assert (x == x[:, :, :1, :1]).all()  # every window is one slice, nothing of another
        seen.extend(x[:, :, 0, 0].tolist())
        return x[:, 4:5]  # the slice itself: neighbours -2, -1, then it

    result = SliceInferer(spatial_dim=axis, context_slices=2, sw_batch_size=3, output="logits")(volume, network)
    last = shape[axis] - 1
    assert seen == [
        [channel + min(max(index + offset, 0), last) for offset in (-2, -1, 0, 1, 2) for channel in (0, 100)]
        for index in range(last + 1)
    ]
    assert torch.equal(result[0, 0], along)


def test_neighbours_with_windows_and_padding_equal_the_whole_slice() -> None:
    volume = torch.randn(2, 1, 5, 7, 6, generator=torch.Generator().manual_seed(0))

    def pointwise(x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:2] * x[:, 0:1], x[:, 2:3] - x[:, 1:2]], 1)

    common: dict[str, Any] = {"spatial_dim": 1, "context_slices": 1, "output": "logits"}
    whole = SliceInferer(**common)(volume, pointwise)
    cut = SliceInferer(roi_size=(3, 8), overlap=0.5, mode="gaussian", sw_batch_size=4, **common)(volume, pointwise)
    assert torch.allclose(cut, whole, atol=CLOSE)
    stacked = torch.cat([volume[:, :, :, :1], volume, volume[:, :, :, -1:]], 3)
    assert torch.equal(whole[:, :1], stacked[:, :, :, 1:-1] * stacked[:, :, :, :-2])


# ----------------------------------------------------------------------------------------------------------------------
# How the network is called


def test_batches_are_filled_across_windows_slices_and_volumes() -> None:
    sizes: list[int] = []

    def network(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    volume = torch.randn(2, 1, 4, 4, 3)  # 2 volumes × 3 slices × 4 windows = 24
    SliceInferer(roi_size=(2, 2), overlap=0, sw_batch_size=7, spatial_dim=2, output="logits")(volume, network)
    assert sizes == [7, 7, 7, 3]


def test_arguments_reach_the_network() -> None:
    calls: list[tuple[Any, ...]] = []

    def network(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        return x

    SliceInferer(sw_batch_size=2)(torch.zeros(1, 1, 3, 2, 2), network, "a", 2, flag=True)
    assert calls == [(("a", 2), {"flag": True})] * 2


def test_a_meta_tensor_keeps_its_affine() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.randn(1, 1, 3, 4, 5), affine=affine, meta={"filename_or_obj": "here.nii"})
    result = SliceInferer(spatial_dim=1)(volume, lambda x: x)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, affine)
    assert result.meta["filename_or_obj"] == "here.nii"
    assert type(SliceInferer()(volume.as_tensor(), lambda x: x)) is Tensor


def test_from_a_config_and_in_monais_evaluator() -> None:
    parser = ConfigParser(
        {"inferer": {"_target_": "accunet_monai.inferers.SliceInferer", "spatial_dim": 2, "sw_batch_size": 4}}
    )
    inferer = parser.get_parsed_content("inferer")
    assert isinstance(inferer, SliceInferer)
    volume = torch.randn(1, 1, 4, 5, 6)
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": volume, "label": volume}],
        network=network,
        inferer=inferer,
        decollate=False,
    )
    evaluator.run()
    prediction = evaluator.state.output["pred"]
    assert torch.equal(prediction, inferer(volume, network.eval()))
    assert prediction.shape == (1, 1, 4, 5, 6)


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roi_size": (4, 4, 4, 4)}, "roi_size"),
        ({"roi_size": (4,)}, "roi_size"),
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"overlap": (0.5,)}, "overlap"),
        ({"overlap": (0.5, 0.5, 0.5, 0.5)}, "overlap"),
        ({"overlap": float("nan")}, "overlap"),
        ({"spatial_dim": 3}, "spatial_dim"),
        ({"spatial_dim": -1}, "spatial_dim"),
        ({"sw_batch_size": 0}, "sw_batch_size"),
        ({"context_slices": -1}, "context_slices"),
        ({"output": "labels"}, "label_map, probabilities, logits"),
        ({"mode": "linear"}, "constant, gaussian"),
        ({"padding_mode": "mirror"}, "reflect"),
        ({"sigma_scale": 0.0}, "sigma_scale"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"roi_size": 64}, "roi_size"),
        ({"sigma_scale": (0.1, -0.1)}, "sigma_scale"),
        ({"views": ["oblique"]}, "views must be one of sagittal, coronal, axial, got 'oblique'"),
        ({"views": ["axial", "axial"]}, "views names something twice"),
        ({"views": ["axial"], "output": "logits"}, "not be 'logits'"),
        ({"mirror_axes": (0, 3)}, "mirror_axes"),
        ({"mirror_axes": (1, 1)}, "mirror_axes names something twice: 1, 1"),
        ({"regions": ()}, "regions"),
        ({"regions": (1, -1)}, "regions"),
        ({"regions": (1, 2.5)}, "regions"),
        ({"skip_below": 0.0, "output": "logits"}, "no logits"),
        ({"amp": "float32"}, "amp must be one of bfloat16, float16, got 'float32'"),
        ({"dtype": "bfloat16"}, "dtype must be one of float16, float32, float64"),
        ({"dtype": "nonsense"}, "got 'nonsense'"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SliceInferer(**arguments)


def test_impossible_inputs_and_networks() -> None:
    inferer = SliceInferer(sw_batch_size=2)
    volume = torch.zeros(1, 1, 3, 4, 4)
    with pytest.raises(ValueError, match="found 4 axes"):
        inferer(volume[0], lambda x: x)
    with pytest.raises(ValueError, match="at least one slice"):
        inferer(volume[:, :, :0], lambda x: x)
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\) into \(2, 1, 2, 2\)"):
        inferer(volume, lambda x: x[:, :, ::2, ::2])
    with pytest.raises(ValueError, match=r"into \(1, 1, 4, 4\)"):
        inferer(volume, lambda x: x[:1])
    with pytest.raises(ValueError, match="gave a float"):
        inferer(volume, lambda x: 0.5)
    with pytest.raises(ValueError, match="gave a tuple"):
        inferer(volume, lambda x: ())
    with pytest.raises(ValueError, match=r"condition must have the shape \(1, 1, 3, 4, 4\)"):
        inferer(volume, lambda x, c: x, condition=volume[:, :, :2])


@pytest.mark.parametrize(("axis", "plane"), [(0, (5, 6)), (1, (4, 6)), (2, (4, 5))])
def test_a_window_of_three_sizes_leaves_the_slicing_axis_out(axis: int, plane: tuple[int, int]) -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[2:]))
        return x

    SliceInferer(roi_size=(4, 5, 6), spatial_dim=axis)(torch.zeros(1, 1, 8, 8, 8), network)
    assert set(seen) == {plane}


def test_overlap_may_be_given_per_axis_of_the_volume() -> None:
    # the slicing axis' overlap is left out, as its size is of roi_size: rows 0.5, columns 0
    inferer = SliceInferer(roi_size=(2, 4, 9), overlap=(0.5, 0.0, 0.9), spatial_dim=2, output="logits")
    assert plane(inferer, GRID, counting()) == [[1.0] * 4, [1.5] * 4, [2.5] * 4, [3.0] * 4]


def test_sizes_of_zero_and_below_take_the_whole_axis() -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[2:]))
        return x

    SliceInferer(roi_size=(3, -1), spatial_dim=2)(torch.zeros(1, 1, 8, 7, 1), network)
    assert set(seen) == {(3, 7)}


def test_arguments_come_in_monais_order() -> None:
    names = list(inspect.signature(MonaiSliceInferer.__mro__[1].__init__).parameters)[1:11]
    ours = list(inspect.signature(SliceInferer.__init__).parameters)[1:]
    assert ours[:11] == ["spatial_dim", *names]
