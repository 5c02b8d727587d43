"""The fast form is the definition: equal to the literal form in values, gradients, statistics and a training step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from accunet_monai.networks import ACCUNet, HANCLayer, from_official, to_official
from tests.networks.literal import HANC, LiteralACCUNet
from tests.networks.randomised import calibrate, randomise

ROUNDING = 1e-9
"""Share of the largest value by which two orders of summation may differ in float64, through some hundred layers."""
UNIT = 1e-15
"""Relative error of float64. Some random networks enlarge an error of this size in the image a millionfold: what the
definition itself makes of it, ten times over, is allowed on top."""


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    spatial_dims=st.sampled_from([2, 3]),
    k=st.integers(1, 4),
    channels=st.integers(1, 5),
    out_channels=st.integers(1, 4),
    training=st.booleans(),
    seed=st.integers(0, 999),
)
def test_hanc_layer_is_its_definition(
    data: st.DataObject, spatial_dims: int, k: int, channels: int, out_channels: int, training: bool, seed: int
) -> None:
    size = [2 ** (k - 1) * data.draw(st.integers(1, 3 if spatial_dims == 2 else 2)) for _ in range(spatial_dims)]
    layer = randomise(HANCLayer(spatial_dims, channels, out_channels, k), seed).double().train(training)
    literal = HANC(spatial_dims, channels, out_channels, k).double().train(training)
    _copy_by_definition(layer, literal)
    torch.manual_seed(seed)
    x = torch.randn(3, channels, *size, dtype=torch.float64)
    weighting = torch.randn(3, out_channels, *size, dtype=torch.float64)

    found, found_gradient = _run(layer, x, weighting)
    expected, expected_gradient = _run(literal, x, weighting)
    _assert_equal(found, expected)
    _assert_equal(found_gradient, expected_gradient)
    _assert_equal(layer.norm.running_var, literal.bn.running_var)
    of_maps = literal.cnv.weight.grad.unflatten(1, (channels, 2 * k - 1))
    _assert_equal(layer.own.weight.grad, of_maps[:, :, 0])
    for scale, pooled in enumerate(layer.pooled, start=1):
        _assert_equal(pooled.weight.grad, torch.cat([of_maps[:, :, scale], of_maps[:, :, k - 1 + scale]], 1))


@settings(max_examples=8, deadline=None)
@given(
    data=st.data(),
    spatial_dims=st.sampled_from([2, 3]),
    base_filters=st.integers(1, 4),
    passes=st.integers(0, 3),
    variant=st.sampled_from(["published", "lite", "weighted"]),
    seed=st.integers(0, 999),
)
def test_evaluating_network_is_its_definition(
    data: st.DataObject, spatial_dims: int, base_filters: int, passes: int, variant: str, seed: int
) -> None:
    blocks = data.draw(st.tuples(*[st.integers(1, 3 if spatial_dims == 2 else 1)] * spatial_dims))
    network, literal = _pair(spatial_dims, base_filters, passes, variant, seed)
    torch.manual_seed(seed)
    x = torch.randn(2, 2, *[16 * n for n in blocks], dtype=torch.float64)
    weighting = torch.randn(2, 3, *x.shape[2:], dtype=torch.float64)
    found, found_gradient = _run(network.eval(), x, weighting)
    expected, expected_gradient = _run(literal.eval(), x, weighting)
    assert expected.std() > 1e-4  # these logits do depend on the image
    unsteady = _run(literal, x * (1 + UNIT * torch.randn_like(x)), weighting)
    _assert_equal(found, expected, slack=10 * (unsteady[0] - expected).abs().max().item())
    _assert_equal(found_gradient, expected_gradient, slack=10 * (unsteady[1] - expected_gradient).abs().max().item())


@pytest.mark.parametrize(
    ("spatial_dims", "variant"), [(2, "published"), (2, "weighted"), (2, "lite"), (3, "published")]
)
def test_a_training_step_is_that_of_the_definition(spatial_dims: int, variant: str) -> None:
    """Logits in training mode, gradient of the image, and every weight and running statistic after an SGD step."""
    network, literal = _pair(spatial_dims, base_filters=2, passes=2, variant=variant, seed=5)
    before = {key: value.clone() for key, value in literal.state_dict().items()}
    x = torch.randn(3, 2, *((48, 32) if spatial_dims == 2 else (32, 32, 16)), dtype=torch.float64)
    weighting = torch.randn(3, 3, *x.shape[2:], dtype=torch.float64) / x[0, 0].numel()
    found, found_gradient = _run(network.train(), x, weighting)
    expected, expected_gradient = _run(literal.train(), x, weighting)
    _assert_equal(found, expected)
    _assert_equal(found_gradient, expected_gradient)
    for module in (network, literal):
        torch.optim.SGD(module.parameters(), lr=0.01).step()
    ours = to_official(network)
    for key, value in literal.state_dict().items():
        if variant == "lite" and key.startswith("mlfc") and ("cnv_" in key or "bns" in key):
            continue  # held and never used
        _assert_equal(ours[key].double(), value.double(), key)
        assert not torch.equal(value, before[key]) or not key.endswith(("conv1.weight", "cnv.weight", "running_var"))


@pytest.mark.parametrize("variant", ["published", "weighted"])
def test_translation_in_3d_is_exact_both_ways(variant: str) -> None:
    literal = randomise(LiteralACCUNet(3, 2, 3, 2, 2, variant), 0)
    network = from_official(literal.state_dict())
    assert (network.spatial_dims, network.config["mlfc"]) == (3, variant)
    back = to_official(network)
    assert set(back) == set(literal.state_dict())
    assert all(torch.equal(value, back[key]) for key, value in literal.state_dict().items())


def test_other_sizes_are_the_definition_on_the_edge_padded_image() -> None:
    network, literal = _pair(2, base_filters=2, passes=1, variant="published", seed=1)
    x = torch.randn(1, 2, 33, 47, dtype=torch.float64)
    padded = nn.functional.pad(x, (0, 1, 0, 15), mode="replicate")
    with torch.no_grad():
        _assert_equal(network.eval()(x), literal.eval()(padded)[:, :, :33, :47])


def test_multiplications_are_counted_for_both_forms() -> None:
    """224², width 32, RGB: 10⁹ multiply-accumulates an image, without computing any of them."""
    with torch.device("meta"):
        networks = LiteralACCUNet(2, 3, 1).eval(), ACCUNet(2, 3, 1).eval()
        image = torch.empty(1, 3, 224, 224)
    counted = []
    for network in networks:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
        counted.append(counter.get_total_flops() / 2e9)
    assert 42.9 <= counted[0] <= 43.1
    assert counted[1] <= 24


def _pair(spatial_dims: int, base_filters: int, passes: int, variant: str, seed: int) -> tuple[ACCUNet, LiteralACCUNet]:
    """A random network of ours and, through the authors' keys, the same in literal form; float64."""
    network = ACCUNet(spatial_dims, 2, 3, base_filters=base_filters, mlfc_iterations=passes, mlfc=variant)
    generator = torch.Generator().manual_seed(seed)
    calibrate(randomise(network, seed), torch.randn(2, 2, *(48, 48, 16)[:spatial_dims], generator=generator))
    literal = LiteralACCUNet(spatial_dims, 2, 3, base_filters, passes, variant)
    literal.load_state_dict(to_official(network), strict=True)
    return network.double(), literal.double()


def _copy_by_definition(layer: HANCLayer, literal: HANC) -> None:
    """Input channel ``c * (2k-1) + j`` of the one convolution is map j of channel c: own, averages, maxima."""
    halves = [pooled.weight.chunk(2, 1) for pooled in layer.pooled]
    maps = [layer.own.weight, *(average for average, _ in halves), *(maximum for _, maximum in halves)]
    with torch.no_grad():
        for j, weight in enumerate(maps):
            literal.cnv.weight[:, j :: len(maps)] = weight
        literal.cnv.bias.copy_(layer.own.bias)
    literal.bn.load_state_dict(layer.norm.state_dict())


def _run(module: nn.Module, x: Tensor, weighting: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the gradient of its weighted sum with respect to the input."""
    x = x.clone().requires_grad_()
    output = module(x)
    (output * weighting).sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def _assert_equal(found: Tensor, expected: Tensor, name: str = "", slack: float = 0.0) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (found - expected).abs().max().item() <= ROUNDING * scale + slack, name
