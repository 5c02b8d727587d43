"""The network as its users meet it: sizes, refusals, factories, optimiser groups, TorchScript, export, compilation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from accunet_monai.networks import (
    ACCUNet,
    create_acc_unet,
    create_acc_unet_binary,
    create_acc_unet_multiclass,
    weight_decay_groups,
)
from tests.networks.compilation import COMPILE
from tests.networks.randomised import calibrate, randomise

SAME = 1e-6
"""Largest difference of logits between two ways of running the same network, as a share of their spread.

Compared in float64: random weights amplify rounding, and what is asked here is whether the function is the same.
"""


@pytest.fixture(scope="module")
def network() -> ACCUNet:
    return _made(2, 2, 3, base_filters=4)


@pytest.fixture
def compiler() -> Iterator[Callable[..., Callable[[Tensor], Tensor]]]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        yield torch.compile
    torch.compiler.reset()


@pytest.mark.parametrize(("base_filters", "expected"), [(16, 4257715), (32, 16771245), (64, 66566689)])
def test_parameter_counts_are_the_published_ones(base_filters: int, expected: int) -> None:
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in ACCUNet(2, 3, 1, base_filters).parameters())
    assert counted == expected


def test_defaults_are_the_published_network() -> None:
    with torch.device("meta"):
        config = ACCUNet(2, 3, 1).config
    assert (config["base_filters"], config["mlfc_iterations"], config["mlfc"]) == (32, 3, "published")


@pytest.mark.parametrize(
    ("spatial_dims", "size"), [(2, (16, 16)), (2, (33, 47)), (2, (1, 1)), (2, (17, 64)), (3, (16, 20, 9))]
)
def test_logits_have_the_size_of_the_input(spatial_dims: int, size: tuple[int, ...]) -> None:
    network = ACCUNet(spatial_dims, 2, 3, base_filters=2).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(33, 47), (16, 17), (31, 32), (5, 3)])
def test_other_sizes_are_padded_at_their_ends_by_edge_values_and_cropped(
    network: ACCUNet, size: tuple[int, int]
) -> None:
    image = torch.randn(1, 2, *size, dtype=torch.float64)
    rows, columns = (torch.arange(-(-n // 16) * 16).clamp(max=n - 1) for n in size)
    with torch.no_grad():
        padded_by_hand = network(image[:, :, rows][:, :, :, columns])
        assert torch.equal(network(image), padded_by_hand[:, :, : size[0], : size[1]])


def test_padding_in_3d_is_by_edge_values_too() -> None:
    network = _made(3, 1, 2, base_filters=2, mlfc_iterations=1)
    image = torch.randn(1, 1, 15, 16, 18, dtype=torch.float64)
    axes = [torch.arange(n).clamp(max=last) for n, last in ((16, 14), (16, 15), (32, 17))]
    with torch.no_grad():
        by_hand = network(image[:, :, axes[0]][:, :, :, axes[1]][:, :, :, :, axes[2]])
        assert torch.equal(network(image), by_hand[:, :, :15, :16, :18])


def test_multiples_of_16_reach_the_first_block_unchanged(network: ACCUNet) -> None:
    seen: list[Tensor] = []
    hook = network.encoder[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.randn(1, 2, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        network(image)
    hook.remove()
    assert torch.equal(seen[0], image)


def test_without_mlfc_passes_there_are_no_mlfc_parameters() -> None:
    network = ACCUNet(2, 1, 1, base_filters=2, mlfc_iterations=0).eval()
    assert not [name for name, _ in network.named_parameters() if name.startswith("mlfc")]
    assert network(torch.zeros(1, 1, 16, 16)).shape == (1, 1, 16, 16)


def test_binary_probabilities_are_the_sigmoid() -> None:
    network = _made(2, 1, 1, base_filters=2)
    image = torch.randn(2, 1, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        logits, probabilities = network(image), network.probabilities(image)
    torch.testing.assert_close(probabilities, 1 / (1 + (-logits).exp()))
    assert (logits < 0).any() or (logits > 1).any()  # logits indeed, not probabilities


def test_multiclass_probabilities_are_the_softmax_over_channels(network: ACCUNet) -> None:
    image = torch.randn(2, 2, 16, 32, dtype=torch.float64)
    with torch.no_grad():
        logits, probabilities = network(image), network.probabilities(image)
    torch.testing.assert_close(probabilities, logits.exp() / logits.exp().sum(1, keepdim=True))


def test_factories_hand_their_arguments_on() -> None:
    made = create_acc_unet_multiclass(3, 4, input_shape=(32, 48), base_filters=2, mlfc_iterations=1)
    assert made.config == {
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 4,
        "base_filters": 2,
        "mlfc_iterations": 1,
        "act": ("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        "norm": "batch",
        "dropout": 0.0,
        "mlfc": "published",
        "input_shape": [32, 48],
        "use_checkpoint": False,
    }
    assert create_acc_unet(3, 4, (32, 48), 2, 1).config == made.config
    assert create_acc_unet_binary(3, 1, (32, 48), 2, 1).config == {**made.config, "out_channels": 1}


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_binary_means_one_class(classes: int) -> None:
    with pytest.raises(ValueError, match=f"exactly 1 output channel, got num_classes={classes}"):
        create_acc_unet_binary(1, classes)


@pytest.mark.parametrize("classes", [0, 1])
def test_multiclass_means_at_least_two_classes(classes: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 classes, background included, got {classes}"):
        create_acc_unet_multiclass(1, classes)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("spatial_dims", 1, "spatial_dims must be 2 or 3, got 1"),
        ("in_channels", 0, "in_channels must be at least 1, got 0"),
        ("out_channels", 0, "out_channels must be at least 1, got 0"),
        ("base_filters", 0, "base_filters must be at least 1, got 0"),
        ("mlfc_iterations", -1, "mlfc_iterations must be at least 0, got -1"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("mlfc", "heavy", "got 'heavy'"),
        ("input_shape", (16,), r"2 positive sizes, got \[16\]"),
        ("input_shape", (16, 0), r"2 positive sizes, got \[16, 0\]"),
    ],
)
def test_impossible_arguments_are_refused(argument: str, value: object, message: str) -> None:
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "base_filters": 2, argument: value}
    with pytest.raises(ValueError, match=message):
        ACCUNet(**arguments)


@pytest.mark.parametrize(
    ("image", "expected", "found"),
    [
        (torch.zeros(2, 16, 16), "4 axes", "3"),
        (torch.zeros(1, 2, 16, 16, 16), "4 axes", "5"),
        (torch.zeros(1, 3, 16, 16), "2 input channels", "3"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.uint8), "floating point", "torch.uint8"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.complex64), "floating point", "torch.complex64"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.float32), "torch.float64", "torch.float32"),
        (torch.zeros(1, 2, 16, 16, dtype=torch.float16), "torch.float64", "torch.float16"),
    ],
)
def test_wrong_input_is_refused_naming_expected_and_found(
    network: ACCUNet, image: Tensor, expected: str, found: str
) -> None:
    with pytest.raises(ValueError, match=f"expects .*{expected}.*, found {found}"):
        network(image)


def test_a_given_input_shape_is_the_only_one_taken() -> None:
    network = create_acc_unet(1, 1, input_shape=(20, 24), base_filters=2).eval()
    assert network(torch.zeros(3, 1, 20, 24)).shape == (3, 1, 20, 24)
    for size in ((24, 20), (20, 16), (32, 32)):
        with pytest.raises(ValueError, match=r"\[20, 24\], found .*" + ", ".join(map(str, size))):
            network(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_takes_its_own_precision_too(dtype: torch.dtype) -> None:
    network = ACCUNet(2, 2, 3, base_filters=4).eval()
    image = torch.randn(1, 2, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(image.to(dtype))
    assert logits.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), network(image), atol=0.02, rtol=0)


def test_channels_last_gives_the_same_logits(network: ACCUNet) -> None:
    image = torch.randn(2, 2, 33, 47, dtype=torch.float64)
    fast = copy.deepcopy(network).to(memory_format=torch.channels_last)
    with torch.no_grad():
        _assert_same(fast(image.to(memory_format=torch.channels_last)), network(image))


@pytest.mark.parametrize("variant", ["published", "weighted", "lite"])
def test_weight_decay_groups_hold_every_parameter_once(variant: str) -> None:
    network = ACCUNet(2, 1, 1, base_filters=2, mlfc=variant)
    network.head.bias.requires_grad_(False)
    kernels, others = weight_decay_groups(network, 0.1)
    grouped = [id(parameter) for group in (kernels, others) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert (kernels["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_only_convolution_kernels_decay(optimiser: type[torch.optim.Optimizer], spatial_dims: int) -> None:
    network = randomise(ACCUNet(spatial_dims, 1, 1, base_filters=2, mlfc_iterations=1, mlfc="weighted"), 0)
    kernels = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    }
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser(weight_decay_groups(network, 0.1), lr=0.5).step()
    after = dict(network.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == kernels
    for name in kernels:
        torch.testing.assert_close(after[name].detach(), before[name] * 0.95)


@pytest.mark.parametrize("variant", ["published", "weighted", "lite"])
def test_every_parameter_gets_a_gradient(variant: str) -> None:
    """A parameter that takes no part in the output stops DistributedDataParallel."""
    network = ACCUNet(2, 1, 2, base_filters=8, mlfc=variant).train()
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("spatial_dims", "variant", "sizes"),
    [
        (2, "published", [(33, 47), (16, 32)]),
        (2, "lite", [(33, 47)]),
        (2, "weighted", [(33, 47)]),
        (3, "published", [(17, 16, 9)]),
    ],
)
def test_torchscript_gives_the_same_logits(spatial_dims: int, variant: str, sizes: list[tuple[int, ...]]) -> None:
    network = _made(spatial_dims, 1, 2, base_filters=2, mlfc=variant, mlfc_iterations=1)
    scripted = torch.jit.script(network)
    for size in sizes:
        image = torch.randn(2, 1, *size, dtype=torch.float64)
        with torch.no_grad():
            _assert_same(scripted(image), network(image))
            _assert_same(scripted.probabilities(image), network.probabilities(image))
    with pytest.raises(torch.jit.Error, match="expects 1 input channels, found 4"):
        scripted(torch.zeros(1, 4, *[16] * spatial_dims, dtype=torch.float64))


def test_export_is_dynamic_in_batch_height_and_width() -> None:
    network = _made(2, 2, 3, base_filters=2, mlfc_iterations=1)
    height, width = (torch.export.Dim(name, min=17, max=4096) for name in ("height", "width"))
    axes = {0: torch.export.Dim("batch", max=1024), 2: height, 3: width}
    exported = torch.export.export(
        network, (torch.randn(2, 2, 33, 47, dtype=torch.float64),), dynamic_shapes=(axes,)
    ).module()
    for shape in ((2, 2, 33, 47), (1, 2, 32, 32), (3, 2, 50, 17), (1, 2, 64, 48)):
        image = torch.randn(*shape, dtype=torch.float64)
        with torch.no_grad():
            _assert_same(exported(image), network(image))


@COMPILE
def test_export_in_3d_is_dynamic_too() -> None:
    network = _made(3, 1, 2, base_filters=2, mlfc_iterations=0)
    axes = {axis: torch.export.Dim(name, min=17, max=512) for axis, name in ((2, "x"), (3, "y"), (4, "z"))}
    exported = torch.export.export(
        network, (torch.randn(1, 1, 17, 19, 18, dtype=torch.float64),), dynamic_shapes=(axes,)
    ).module()
    image = torch.randn(1, 1, 32, 20, 33, dtype=torch.float64)
    with torch.no_grad():
        _assert_same(exported(image), network(image))


@pytest.mark.parametrize("spatial_dims", [2, pytest.param(3, marks=COMPILE)])
def test_the_whole_network_is_one_graph(compiler: Callable[..., Callable[[Tensor], Tensor]], spatial_dims: int) -> None:
    """``fullgraph`` fails on any break; the graph is run as traced, which takes no C++ compiler."""
    network = _made(spatial_dims, 1, 2, base_filters=2, mlfc_iterations=1)
    compiled = compiler(network, fullgraph=True, backend="eager")
    image = torch.randn(1, 1, *(33, 47, 16)[:spatial_dims], dtype=torch.float64)
    with torch.no_grad():
        _assert_same(compiled(image), network(image))


@COMPILE
def test_compiled_logits_are_the_same(compiler: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    network = _made(2, 1, 2, base_filters=2, mlfc_iterations=1)
    compiled = compiler(network, fullgraph=True)
    image = torch.randn(2, 1, 33, 47, dtype=torch.float64)
    with torch.no_grad():
        _assert_same(compiled(image), network(image))


def _made(spatial_dims: int, in_channels: int, out_channels: int, **arguments: object) -> ACCUNet:
    network = randomise(ACCUNet(spatial_dims, in_channels, out_channels, **arguments), seed=0)
    generator = torch.Generator().manual_seed(1)
    return calibrate(network, torch.randn(2, in_channels, *(48, 32, 32)[:spatial_dims], generator=generator)).double()


def _assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    spread = (expected.max() - expected.min()).item()
    assert spread > 1e-3  # these logits do depend on the image
    assert (found - expected).abs().max().item() <= SAME * spread
