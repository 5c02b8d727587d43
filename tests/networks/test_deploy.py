"""The folded network is the network: to rounding in float64 and float32, in its labels in bfloat16."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from accunet_monai.bundle import load_bundle
from accunet_monai.networks import ACCUNet, HANCBlock, MLFCLayer
from accunet_monai.networks.deploy import FoldedHANCBlock, optimize_for_inference
from tests.networks.compilation import COMPILE
from tests.networks.randomised import calibrate, randomise

EXACT = 1e-10
"""Share of the logits' spread, float64: folding changes the order of roundings, nothing else."""
CLOSE = 1e-4
"""The same in float32."""
SAME_LABELS = 0.999
"""Share of voxels whose label bfloat16 may not change, on images a bundle was made for."""


@pytest.mark.parametrize(
    ("spatial_dims", "variant"), [(2, "published"), (2, "lite"), (2, "weighted"), (3, "published"), (3, "weighted")]
)
def test_folding_is_exact(spatial_dims: int, variant: str) -> None:
    network = _made(spatial_dims, mlfc=variant)
    image = _image(spatial_dims)
    folded = optimize_for_inference(network, dtype=torch.float64)
    assert not [part for part in folded.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert _difference(folded, network, image) <= EXACT


@pytest.mark.parametrize("variant", ["published", "lite", "weighted"])
def test_float32_is_close(variant: str) -> None:
    torch.manual_seed(1)  # some draws amplify float32's rounding beyond the bound, folded or not
    network = ACCUNet(2, 2, 3, base_filters=8, mlfc=variant)
    calibrate(network, torch.randn(2, 2, 48, 32))
    assert _difference(optimize_for_inference(network), network, _image(2)) <= CLOSE


@pytest.mark.parametrize("bundle", ["hippocampus_mri", "brain_tissue_t1"])
def test_shipped_weights_survive(bundle: str) -> None:
    network = load_bundle(bundle).network
    image = torch.randn(2, network.in_channels, 64, 48, dtype=torch.float64)
    assert _difference(optimize_for_inference(network, dtype=torch.float64), network, image) <= EXACT
    assert _difference(optimize_for_inference(network), network, image) <= CLOSE


def test_label_maps_of_real_images_are_the_same(test_data: Path) -> None:
    predictor = load_bundle("hippocampus_mri")
    original = predictor.network
    images = sorted((test_data / "hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))[:3]
    expected = [predictor.predict(image).label_map for image in images]
    assert all(label_map.any() for label_map in expected)
    agreement = {}
    for dtype in (torch.float32, torch.bfloat16):
        predictor.network = optimize_for_inference(original, dtype=dtype)
        same = [predictor.predict(image).label_map == there for image, there in zip(images, expected, strict=True)]
        agreement[dtype] = np.concatenate([part.ravel() for part in same]).mean()
    assert agreement[torch.float32] == 1
    assert agreement[torch.bfloat16] >= SAME_LABELS


@settings(max_examples=15, deadline=None)
@given(
    spatial_dims=st.sampled_from([2, 3]),
    channels=st.integers(1, 3),
    k=st.integers(1, 3),
    expansion=st.integers(1, 34),
    chunk_expansion=st.integers(1, 34),
    seed=st.integers(0, 999),
)
def test_chunks_sum_to_the_block(
    spatial_dims: int, channels: int, k: int, expansion: int, chunk_expansion: int, seed: int
) -> None:
    block = randomise(HANCBlock(spatial_dims, channels, 4, k, expansion), seed).double().eval()
    folded = FoldedHANCBlock(copy.deepcopy(block), chunk_expansion)
    assert len(folded.chunks) == -(-expansion // chunk_expansion)
    image = torch.randn(2, channels, *[8] * spatial_dims, dtype=torch.float64)
    assert _difference(folded, block, image) <= EXACT


def test_the_wide_block_never_holds_its_expanded_tensor() -> None:
    block = HANCBlock(2, 8, 8, k=3, expansion=34).eval()
    image = torch.randn(1, 8, 32, 32)
    at_once = 8 * 32 * 32  # elements of one map as wide as the input
    assert _largest_tensor(block, image) == 34 * at_once
    assert _largest_tensor(optimize_for_inference(block), image) == 6 * at_once


def test_blocks_in_other_networks_are_folded_too() -> None:
    classifier = nn.Sequential(HANCBlock(2, 1, 8, k=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    calibrate(randomise(classifier, 0), torch.randn(4, 1, 16, 16))
    folded = optimize_for_inference(classifier, dtype=torch.float64)
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]
    assert _difference(folded, classifier, torch.randn(4, 1, 16, 16, dtype=torch.float64)) <= EXACT


def test_activations_with_weights_and_norms_without_are_folded() -> None:
    network = _made(2, act=("prelu", {"init": 0.2}), norm=("batch", {"affine": False, "eps": 1e-3}))
    assert _difference(optimize_for_inference(network, dtype=torch.float64), network, _image(2)) <= EXACT
    half = optimize_for_inference(network, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert half(_image(2)).isfinite().all()


def test_the_original_stays_as_it_was() -> None:
    network = _made(2, dropout=0.5).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    random_state = torch.get_rng_state()
    folded = optimize_for_inference(network, example_shape=(1, 2, 16, 16))
    assert network.training
    assert not folded.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in network.parameters()}
    # made in training mode, it is the evaluation form, without dropout
    assert _difference(optimize_for_inference(network, dtype=torch.float64), network, _image(2)) <= EXACT


def test_training_mode_changes_nothing() -> None:
    folded = optimize_for_inference(_made(2, dropout=0.5), dtype=torch.float64)
    image = _image(2)
    with torch.inference_mode():
        expected = folded(image)
        assert torch.equal(folded.train()(image), expected)


def test_weights_are_channels_last_in_the_asked_precision_and_gates_in_float32() -> None:
    folded = optimize_for_inference(_made(2), dtype=torch.bfloat16)
    kernels = {name: p for name, p in folded.named_parameters() if p.dim() == 4}
    assert {p.dtype for p in kernels.values()} == {torch.bfloat16}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels.values())
    gates = {p.dtype for name, p in folded.named_parameters() if ".gate." in name}
    assert gates == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_come_back_in_the_dtype_of_the_image(dtype: torch.dtype) -> None:
    folded = optimize_for_inference(_made(2), dtype=dtype)
    with torch.inference_mode():
        assert folded(_image(2).float()).dtype == torch.float32
        probabilities = folded.probabilities(_image(2))
    assert probabilities.dtype == torch.float64
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 33, 47, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 1}), ("batch", {"track_running_stats": False})])
def test_other_norms_are_refused(norm: object) -> None:
    with pytest.raises(ValueError, match="only batch norms with running statistics can be folded, found"):
        optimize_for_inference(ACCUNet(2, 1, 1, base_filters=2, norm=norm))
    with pytest.raises(ValueError, match="only batch norms"):
        optimize_for_inference(MLFCLayer(2, (2, 4), norm=norm))


def test_impossible_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got torch.int8"):
        optimize_for_inference(ACCUNet(2, 1, 1, base_filters=2), dtype=torch.int8)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=f"no 3D average pooling in {dtype} on the CPU"):
            optimize_for_inference(ACCUNet(3, 1, 1, base_filters=2, mlfc_iterations=0), dtype=dtype)


def test_images_of_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floating point image, found torch\.uint8"):
        optimize_for_inference(_made(2, mlfc_iterations=0))(torch.zeros(1, 2, 16, 16, dtype=torch.uint8))


def test_an_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expects 2 input channels, found 1"):
        optimize_for_inference(_made(2), example_shape=(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("spatial_dims", "variant"), [(2, "published"), (2, "lite"), (2, "weighted"), (3, "published")]
)
def test_torchscript_gives_the_same_logits(spatial_dims: int, variant: str) -> None:
    folded = optimize_for_inference(_made(spatial_dims, mlfc=variant, mlfc_iterations=1), dtype=torch.float64)
    image = _image(spatial_dims)
    with torch.inference_mode():
        scripted = torch.jit.script(folded)
        torch.testing.assert_close(scripted(image), folded(image))
        torch.testing.assert_close(scripted.probabilities(image), folded.probabilities(image))


def test_export_is_dynamic_in_batch_height_and_width() -> None:
    folded = optimize_for_inference(_made(2, mlfc_iterations=1), dtype=torch.float64)
    height, width = (torch.export.Dim(name, min=17, max=4096) for name in ("height", "width"))
    axes = {0: torch.export.Dim("batch", max=1024), 2: height, 3: width}
    exported = torch.export.export(folded, (_image(2),), dynamic_shapes=(axes,)).module()
    for shape in ((2, 2, 33, 47), (1, 2, 32, 32), (3, 2, 50, 17)):
        image = torch.randn(*shape, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), folded(image))


def test_the_folded_network_is_one_graph() -> None:
    """``fullgraph`` fails on any break; the graph is run as traced, which takes no C++ compiler."""
    folded = optimize_for_inference(_made(2, mlfc_iterations=1), dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(folded, fullgraph=True, backend="eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(_image(2)), folded(_image(2)))
    torch.compiler.reset()


def test_compilation_is_asked_for_the_whole_graph_and_warmed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.append(options))
    optimize_for_inference(_made(2, mlfc_iterations=0), compile=True)
    optimize_for_inference(_made(2, mlfc_iterations=0))
    assert asked == [{"fullgraph": True}]


@COMPILE
def test_compiled_with_weights_as_constants_the_logits_are_the_same() -> None:
    network, image = _made(2, mlfc_iterations=1), _image(2).float()
    torch.compiler.reset()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        found = optimize_for_inference(network, image.shape, compile=True)(image)
        expected = network.double()(image.double())
    assert counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] > 0
    assert float((found - expected).abs().max()) <= CLOSE * float(expected.max() - expected.min())
    torch.compiler.reset()


class _SizeRecorder(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def _largest_tensor(module: nn.Module, image: Tensor) -> int:
    with torch.no_grad(), _SizeRecorder() as recorder:
        module(image)
    return recorder.largest


def _made(spatial_dims: int, **arguments: object) -> ACCUNet:
    network = randomise(ACCUNet(spatial_dims, 2, 3, base_filters=2, **arguments), seed=0)
    generator = torch.Generator().manual_seed(1)
    return calibrate(network, torch.randn(2, 2, *(48, 32, 32)[:spatial_dims], generator=generator))


def _image(spatial_dims: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 2, *(33, 47, 17)[:spatial_dims], generator=generator, dtype=torch.float64)


def _difference(found: nn.Module, original: nn.Module, image: Tensor) -> float:
    """Largest difference of the outputs from those of ``original`` in float64, as a share of their spread."""
    with torch.inference_mode():
        expected = copy.deepcopy(original).double().eval()(image)
        spread = (expected.max() - expected.min()).item()
        assert spread > 1e-3  # these outputs do depend on the image
        return (found(image) - expected).abs().max().item() / spread
