"""What each block computes: hand-computed values, and receptive fields by perturbation with exact zeros outside."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from accunet_monai.networks import HANCBlock, HANCLayer, MLFCLayer, ResPath, SqueezeExcitation
from accunet_monai.networks.blocks import sum_coarse_to_fine
from tests.networks.randomised import randomise


def test_sum_coarse_to_fine_by_hand() -> None:
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    middle = torch.tensor([[100.0, 200.0], [300.0, 400.0]]).reshape(1, 1, 2, 2)
    coarse = torch.tensor([1000.0]).reshape(1, 1, 1, 1)
    expected = torch.tensor(
        [
            [1100.0, 1101.0, 1202.0, 1203.0],
            [1104.0, 1105.0, 1206.0, 1207.0],
            [1308.0, 1309.0, 1410.0, 1411.0],
            [1312.0, 1313.0, 1414.0, 1415.0],
        ]
    )
    assert torch.equal(sum_coarse_to_fine([fine, middle, coarse])[0, 0], expected)


def test_sum_coarse_to_fine_of_one_map_is_that_map() -> None:
    only = torch.randn(2, 3, 4, 6)
    assert torch.equal(sum_coarse_to_fine([only]), only)


def test_squeeze_excitation_by_hand() -> None:
    layer = SqueezeExcitation(2, channels=2).eval()
    with torch.no_grad():
        layer.fc1.weight.copy_(torch.tensor([[1.0, -1.0]]))  # 2 // 8 channels: one hidden unit all the same
        layer.fc1.bias.fill_(-1.0)
        layer.fc2.weight.copy_(torch.tensor([[100.0], [0.0]]))
        layer.fc2.bias.copy_(torch.tensor([1.0, 0.0]))
        layer.norm.running_mean.copy_(torch.tensor([0.0, 1.0]))
        layer.norm.running_var.copy_(torch.tensor([4.0, 1.0]) - layer.norm.eps)
        layer.norm.weight.copy_(torch.tensor([2.0, 1.0]))
        layer.norm.bias.copy_(torch.tensor([0.0, 0.5]))
    x = torch.tensor([[[1.0, 3.0]], [[2.0, 4.0]]]).reshape(1, 2, 1, 2)
    # means 2 and 3 → fc1: 2 - 3 - 1 = -2 → LeakyReLU -0.02 → fc2: 100·(-0.02) + 1 = -1 and 0 → gates
    gate = [1 / (1 + torch.e), 0.5]
    # channel 0: x·gate / 2 · 2; channel 1: (x / 2 - 1) + 0.5 = 0.5 and 1.5 less 0 → LeakyReLU leaves both
    expected = torch.tensor([[[[1 * gate[0], 3 * gate[0]]], [[2 * gate[1] - 0.5, 4 * gate[1] - 0.5]]]])
    torch.testing.assert_close(layer(x), expected)


def test_squeeze_excitation_ends_in_the_activation() -> None:
    layer = SqueezeExcitation(2, channels=1).eval()
    nn.init.zeros_(layer.fc2.weight)
    nn.init.zeros_(layer.fc2.bias)  # gate 1/2
    layer.norm.running_var.fill_(1 - layer.norm.eps)
    torch.testing.assert_close(layer(torch.full((1, 1, 2, 2), -8.0)), torch.full((1, 1, 2, 2), -0.04))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), spatial_dims=st.sampled_from([2, 3]), k=st.integers(1, 4))
def test_hanc_layer_sees_exactly_its_aligned_block(data: st.DataObject, spatial_dims: int, k: int) -> None:
    block = 2 ** (k - 1)
    blocks = data.draw(st.tuples(*[st.integers(1, 4 if spatial_dims == 2 else 2)] * spatial_dims))
    size = [block * n for n in blocks]
    position = [data.draw(st.integers(0, n - 1)) for n in size]
    layer = randomise(HANCLayer(spatial_dims, 3, 2, k), data.draw(st.integers(0, 99))).double().eval()
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        changed = (layer(x) != layer(_perturbed(x, position))).any(1)[0]
    assert torch.equal(changed, _aligned_block(size, position, block))


def test_hanc_layer_averages_and_takes_maxima() -> None:
    layer = HANCLayer(2, in_channels=1, out_channels=1, k=2).eval()
    with torch.no_grad():
        layer.own.weight.fill_(100.0)
        layer.own.bias.fill_(0.5)
        layer.pooled[0].weight.copy_(torch.tensor([10.0, 1.0]).reshape(1, 2, 1, 1))  # average, maximum
    layer.norm.running_var.fill_(1 - layer.norm.eps)
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).reshape(1, 1, 2, 2)
    # own 100·x, average 3 → 30, maximum 6, bias 0.5
    torch.testing.assert_close(layer(x)[0, 0], torch.tensor([[136.5, 236.5], [336.5, 636.5]]))


@pytest.mark.parametrize("k", [0, -1])
def test_hanc_layer_refuses_no_scales(k: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {k}"):
        HANCLayer(2, 1, 1, k)


def test_hanc_layer_starts_as_one_convolution_over_all_maps_would() -> None:
    torch.manual_seed(0)
    layer, k, channels = HANCLayer(2, 30, 40, 3), 3, 30
    bound = 1 / (channels * (2 * k - 1)) ** 0.5
    for parameter in [layer.own.weight, layer.own.bias, *(pooled.weight for pooled in layer.pooled)]:
        assert bound * 0.8 < parameter.abs().max().item() <= bound


@pytest.mark.parametrize(("spatial_dims", "passes"), [(2, 1), (2, 3), (3, 1)])
def test_mlfc_with_constant_gates_carries_a_deepest_pixel_to_its_aligned_blocks(spatial_dims: int, passes: int) -> None:
    deepest = (4, 3) if spatial_dims == 2 else (2, 2, 2)
    channels = (2, 3, 4, 5)
    layers = [_with_constant_gates(randomise(MLFCLayer(spatial_dims, channels), seed)) for seed in range(passes)]
    features = _pyramid(channels, deepest)
    for position in itertools.product(*([0, n - 1] for n in deepest)):
        changed = _changed_by(layers, features, level=3, position=list(position))
        for level, mask in enumerate(changed):
            block = 2 ** (3 - level)
            size = [n * block for n in deepest]
            assert torch.equal(mask, _aligned_block(size, [p * block for p in position], block)), (level, position)


def test_mlfc_with_constant_gates_carries_a_shallowest_pixel_to_one_pixel_below() -> None:
    channels, deepest, position = (2, 3, 4, 5), (2, 3), [9, 22]
    layer = _with_constant_gates(randomise(MLFCLayer(2, channels), 0))
    for level, mask in enumerate(_changed_by([layer], _pyramid(channels, deepest), level=0, position=position)):
        size = [n * 2 ** (3 - level) for n in deepest]
        assert torch.equal(mask, _aligned_block(size, [p // 2**level for p in position], 1)), level


def test_weighted_mlfc_with_share_zero_keeps_its_own_features() -> None:
    layer = randomise(MLFCLayer(2, (2, 3), variant="weighted"), 1).double().eval()
    nn.init.zeros_(layer.weight)
    features = _pyramid((2, 3), (4, 4))
    with torch.no_grad():
        for own, output, level in zip(features, layer(features), layer.levels, strict=True):
            torch.testing.assert_close(output, level.squeeze(level.act(level.merge_norm(own))))


def test_lite_mlfc_keeps_levels_apart() -> None:
    layer = randomise(MLFCLayer(2, (2, 3, 4, 5), variant="lite"), 1).double().eval()
    changed = _changed_by([layer], _pyramid((2, 3, 4, 5), (2, 2)), level=3, position=[0, 0])
    assert [bool(mask.any()) for mask in changed] == [False, False, False, True]


def test_mlfc_refuses_an_unknown_variant() -> None:
    with pytest.raises(ValueError, match="'heavy'"):
        MLFCLayer(2, (2, 4), variant="heavy")


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("blocks", [1, 2])
def test_residual_path_with_constant_gates_sees_one_more_pixel_around_per_block(spatial_dims: int, blocks: int) -> None:
    path = _with_constant_gates(randomise(ResPath(spatial_dims, 3, blocks), 0))
    size, position = [9] * spatial_dims, [4] * spatial_dims
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        changed = (path(x) != path(_perturbed(x, position))).any(1)[0]
    expected = torch.zeros(size, dtype=torch.bool)
    expected[tuple(slice(p - blocks, p + blocks + 1) for p in position)] = True
    assert torch.equal(changed, expected)


def test_residual_path_with_silent_blocks_is_norm_activation_norm() -> None:
    path = ResPath(2, 2, blocks=2).eval()
    for block in path.blocks:
        nn.init.zeros_(block[-1].norm.weight)  # LeakyReLU(0 · x + 0) = 0
    path.norm.running_var.fill_(1 - path.norm.eps)
    path.final_norm.running_var.fill_(0.25 - path.final_norm.eps)
    x = torch.tensor([3.0, -3.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(path(x).flatten(), torch.tensor([6.0, -0.06]))


def test_hanc_block_drops_whole_channels_only_in_training() -> None:
    block = randomise(HANCBlock(2, 4, 64, k=2, dropout=0.5), 0)
    x = torch.randn(2, 4, 8, 8)
    seen: list[Tensor] = []
    block.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output))
    block.train()(x)
    block.eval()(x)
    dropped = (seen[0] == 0).flatten(2)
    assert torch.equal(dropped.all(2), dropped.any(2))
    assert 0.3 < dropped.all(2).float().mean().item() < 0.7
    assert not (seen[1] == 0).any()


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2}), None])
def test_blocks_leave_their_input_alone(norm: object) -> None:
    """Activations work in place: whatever the norm, they must never reach what the caller still holds."""
    x = torch.randn(2, 4, 8, 8)
    kept = x.clone()
    spec = "batch" if norm is None else norm
    for module in (HANCBlock(2, 4, 4, 3, norm=spec), ResPath(2, 4, 2, norm=spec), HANCLayer(2, 4, 4, 3, norm=spec)):
        module(x)
        assert torch.equal(x, kept)


def _perturbed(x: Tensor, position: list[int]) -> Tensor:
    """Every channel raised by 1 at ``position``: seen by its averages and by itself, whatever the maxima do."""
    changed = x.clone()
    changed[(slice(None), slice(None), *position)] += 1.0
    return changed


def _aligned_block(size: list[int], position: list[int], block: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[tuple(slice(p // block * block, p // block * block + block) for p in position)] = True
    return mask


def _pyramid(channels: tuple[int, ...], deepest: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    factors = [2 ** (len(channels) - 1 - level) for level in range(len(channels))]
    return [
        torch.randn(1, c, *[n * factor for n in deepest], generator=generator, dtype=torch.float64)
        for c, factor in zip(channels, factors, strict=True)
    ]


def _with_constant_gates(module: nn.Module) -> nn.Module:
    """In evaluation mode and float64; the gates keep their biases but no longer look at the input."""
    for part in module.modules():
        if isinstance(part, SqueezeExcitation):
            nn.init.zeros_(part.fc2.weight)
    return module.double().eval()


def _changed_by(layers: list[nn.Module], features: list[Tensor], level: int, position: list[int]) -> list[Tensor]:
    """Per level the mask of pixels that change when one pixel of ``level`` does."""
    touched = list(features)
    touched[level] = _perturbed(features[level], position)
    with torch.no_grad():
        for layer in layers:
            features, touched = layer(features), layer(touched)
    return [(before != after).any(1)[0] for before, after in zip(features, touched, strict=True)]
