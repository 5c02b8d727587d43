"""The fused kernel computes the folded block; it is kept only where it is measured faster.

Triton's interpreter runs the kernel's logic on the CPU. It must be switched on before Triton is imported, so those
tests run in a process of their own, ``interpreter``. The same kernel is compiled for real GPUs, which takes none.
"""

from __future__ import annotations

import copy
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accunet_monai.bundle import load_bundle
from accunet_monai.networks import ACCUNet, HANCBlock
from accunet_monai.networks.deploy import FoldedHANCBlock, optimize_for_inference
from accunet_monai.networks.fused import HAS_TRITON, TILINGS, FusedHANCBlock, Tiling, candidates
from accunet_monai.networks.gpu import FOLDED, Choice, GraphedNetwork, choices, keep_fastest
from tests.conftest import ROOT, Require
from tests.networks.randomised import calibrate, randomise

CLOSE = 2e-6
"""Share of the outputs' spread, float32: the same sums in another order."""
SMALL, LARGE = Tiling(8, 16, 4), Tiling(16, 32, 8)
CUT = 1.5
"""Triton 3.7's interpreter cuts bits off where PyTorch and GPUs round to bfloat16."""
SAME_LABELS = 0.999
"""Share of pixels whose label bfloat16 may not change, as of the folded network."""
ON_GPU = 0.01
"""Share of the logits' spread, float32 on a GPU: PyTorch's convolutions there round their factors to 10 bits (TF32)."""


@pytest.fixture(scope="session")
def triton_is_there(require: Require) -> None:
    require("triton", HAS_TRITON, "no triton: pip install triton")


@pytest.fixture(scope="module")
def interpreter(triton_is_there: None) -> Iterator[ProcessPoolExecutor]:
    """A process in which kernels are interpreted."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _correct_bfloat16) as executor, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        executor.submit(int).result()  # starts the process
        patch.undo()
        yield executor


# --- the kernel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "k", "expansion", "size", "tiling"),
    [
        (5, 3, 3, (8, 8), SMALL),  # one tile
        (5, 3, 3, (12, 20), SMALL),  # edges inside tiles
        (3, 2, 3, (10, 18), SMALL),
        (1, 1, 3, (11, 13), SMALL),  # sizes that nothing divides
        (2, 4, 2, (8, 24), SMALL),  # a tile is one block
        (2, 5, 2, (32, 16), LARGE),
        (32, 3, 3, (20, 36), LARGE),  # nothing padded but the border
        (33, 2, 1, (6, 4), SMALL),  # an image smaller than a tile
        (4, 3, 34, (8, 12), LARGE),  # many chunks, the last one padded
    ],
)
def test_the_kernel_computes_the_folded_block(
    interpreter: ProcessPoolExecutor,
    channels: int,
    k: int,
    expansion: int,
    size: tuple[int, int],
    tiling: Tiling,
) -> None:
    errors = interpreter.submit(_errors, torch.float32, tiling, size, channels, k, expansion).result()
    assert errors["fused"] <= CLOSE, errors


@settings(max_examples=8, deadline=None)
@given(
    channels=st.integers(1, 20),
    k=st.integers(1, 3),
    expansion=st.integers(1, 5),
    blocks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    tiling=st.sampled_from([SMALL, *TILINGS]),
    slope=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_any_width_and_size(interpreter, channels, k, expansion, blocks, tiling, slope) -> None:  # type: ignore[no-untyped-def]
    size = tuple(count * 2 ** (k - 1) for count in blocks)
    act = ("leakyrelu", {"negative_slope": slope}) if slope else "relu"
    errors = interpreter.submit(_errors, torch.float32, tiling, size, channels, k, expansion, act).result()
    assert errors["fused"] <= CLOSE, errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_errs_about_as_the_folded_block(
    interpreter: ProcessPoolExecutor, dtype: torch.dtype
) -> None:
    errors = interpreter.submit(_errors, dtype, SMALL, (12, 20), 16, 3, 3).result()
    assert 0 < errors["fused"] <= CUT * errors["folded"]


def test_no_tensor_holds_expanded_channels(interpreter: ProcessPoolExecutor) -> None:
    largest = interpreter.submit(_largest_tensors).result()
    pixels = 32 * 32
    assert largest == {"folded": 3 * 8 * pixels, "fused": 8 * pixels}


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_it_compiles_for_real_gpus_and_fits_them(
    triton_is_there: None, tiling: Tiling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = _compile(tiling, channels=32, k=3, pointer="*bf16", capability=90)
    assert "wgmma" in compiled.asm["ptx"] or "mma.sync" in compiled.asm["ptx"]  # products run on tensor cores
    assert compiled.metadata.shared <= 99 * 1024  # what the smallest GPUs since 2020 give one program


@pytest.mark.parametrize(
    ("block", "dtype", "reason"),
    [
        (lambda: HANCBlock(3, 2, 2, k=2), torch.float32, "not 2D"),
        (lambda: HANCBlock(2, 2, 2, k=2), torch.float64, "precision is torch.float64"),
        (lambda: HANCBlock(2, 2, 2, k=2, act="prelu"), torch.float32, "activation is PReLU"),
        (lambda: HANCBlock(2, 2, 2, k=5), torch.float32, "blocks of 16 pixels are larger than a tile of 8"),
        (lambda: HANCBlock(2, 257, 2, k=1, expansion=1), torch.float32, "8×8 pixels with 257 channels is too large"),
    ],
)
def test_what_the_kernel_cannot_compute_is_refused(
    block: Callable[[], HANCBlock], dtype: torch.dtype, reason: str
) -> None:
    folded = _folded(block(), dtype)
    with pytest.raises(ValueError, match=f"cannot be fused: .*{reason}"):
        FusedHANCBlock(folded, SMALL)


def test_only_tilings_that_fit_are_candidates(triton_is_there: None) -> None:
    def named(block: HANCBlock) -> list[int]:
        return [tiling.side for tiling in TILINGS if str(tiling) in candidates(_folded(block, torch.float32))]

    assert named(HANCBlock(2, 64, 4, k=3)) == [16, 8, 8]
    assert named(HANCBlock(2, 65, 4, k=3)) == [8, 8]  # 128 channels when padded
    assert named(HANCBlock(2, 4, 4, k=5)) == [16]
    assert named(HANCBlock(3, 4, 4, k=2)) == []


def test_without_triton_nothing_is_fused() -> None:
    code = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "from accunet_monai.networks import HANCBlock\n"
        "from accunet_monai.networks.deploy import FoldedHANCBlock\n"
        "from accunet_monai.networks.fused import candidates\n"
        "assert candidates(FoldedHANCBlock(HANCBlock(2, 4, 4, k=2))) == {}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


def test_sizes_and_gradients_are_refused() -> None:
    fused = FusedHANCBlock(_folded(HANCBlock(2, 2, 2, k=3), torch.float32), SMALL)
    with pytest.raises(ValueError, match=r"multiples of 4, found \(8, 10\)"):
        fused(torch.zeros(1, 2, 8, 10))
    with pytest.raises(ValueError, match="no gradient"):
        fused(torch.zeros(1, 2, 8, 8, requires_grad=True))


# --- the choice ------------------------------------------------------------------------------------------------------


def test_on_a_cpu_the_interpreted_kernel_is_slower_and_the_folded_blocks_stay(interpreter: ProcessPoolExecutor) -> None:
    left, difference = interpreter.submit(_choose_for_two_blocks, _wall_clock).result()
    assert [(choice.block, choice.shape, choice.kept) for choice in left] == [
        ("network.0", (1, 2, 32, 40), FOLDED),
        ("network.1", (1, 4, 32, 40), FOLDED),
    ]
    assert all(set(choice.seconds) == {FOLDED, *map(str, TILINGS)} and not choice.refused for choice in left)
    assert difference == 0


def test_where_less_memory_traffic_counts_the_fused_blocks_are_kept(interpreter: ProcessPoolExecutor) -> None:
    left, difference = interpreter.submit(_choose_for_two_blocks, _bytes_written).result()
    assert len(left) == 2
    assert {choice.kept for choice in left} <= {str(tiling) for tiling in TILINGS}
    assert 0 < difference <= CLOSE


def test_the_fastest_right_candidate_is_kept_and_the_reasons_are_written_down() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), _folded(randomise(HANCBlock(2, 4, 4, k=2), 0), torch.float32))
    cost = {FOLDED: 3.0, "same": 2.0, "slower": 5.0}
    timer = _Timer(network[1], cost)
    keep_fastest(network, torch.randn(2, 1, 8, 8), timer.candidates, timer)
    (choice,) = choices(network)
    assert (choice.block, choice.shape, choice.kept, choice.seconds) == ("1", (2, 4, 8, 8), "same", cost)
    assert choice.refused["fails"] == "RuntimeError: out of shared memory"
    assert choice.refused["no number"] == "differs by nan of the spread"
    assert choice.refused["wrong weight"].startswith("differs by ")
    assert network[1] is timer.made["same"]
    assert str(choice).startswith("1 at 2×4×8×8: same kept; folded 3000.000 ms; same 2000.000 ms; slower 5000.000 ms; ")


def test_a_network_with_choices_can_still_be_scripted() -> None:
    network = nn.Sequential(_folded(randomise(HANCBlock(2, 4, 4, k=2), 0), torch.float32))
    image = torch.randn(2, 4, 8, 8)
    keep_fastest(network, image, _Timer(network[0], {FOLDED: 1.0, "same": 2.0, "slower": 3.0}).candidates, _wall_clock)
    assert choices(network)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


def test_nothing_is_chosen_on_a_cpu() -> None:
    fast = optimize_for_inference(ACCUNet(2, 1, 1, base_filters=2, mlfc_iterations=0), example_shape=(1, 1, 16, 16))
    assert choices(fast) == []
    assert not [module for module in fast.modules() if isinstance(module, FusedHANCBlock)]


# --- CUDA graphs and autocast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"example_shape": (1, 1, 16, 16)},
        {"device": "cuda"},
        {"device": "cuda", "example_shape": (1, 1, 16, 16), "compile": True},
    ],
)
def test_a_graph_needs_a_gpu_and_a_shape_and_replaces_compilation(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cuda_graph takes a CUDA device, an example_shape and compile=False, got c"):
        optimize_for_inference(ACCUNet(2, 1, 1, base_filters=2, mlfc_iterations=0), cuda_graph=True, **arguments)


def test_a_recording_is_replayed_for_its_shape_alone_and_outputs_keep_their_memory() -> None:
    network = nn.Conv2d(1, 2, 3).eval()
    example = torch.randn(1, 1, 8, 8)
    replayed: list[torch.Size] = []
    graphed = GraphedNetwork(network, example, partial(_record_on_cpu, replayed))
    images = [torch.randn(1, 1, 8, 8), torch.randn(1, 1, 8, 8), torch.randn(1, 1, 9, 8), torch.randn(2, 1, 8, 8)]
    with torch.no_grad():
        outputs = [graphed(image) for image in images]
        for image, output in zip(images, outputs, strict=True):
            torch.testing.assert_close(output, network(image))
        with pytest.raises(RuntimeError, match="should be the same"):  # not silently converted
            graphed(example.double())
    assert replayed == [example.shape] * 2


def test_autocast_gives_the_labels_of_float32() -> None:
    network = load_bundle("hippocampus_mri").network
    fast = optimize_for_inference(network)
    image = torch.randn(2, network.in_channels, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = fast(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = fast(image)
            assert (network(image).argmax(1) == expected.argmax(1)).float().mean() >= SAME_LABELS
    assert found.dtype == torch.float32
    assert not torch.allclose(found, expected, atol=1e-3)  # it did compute in bfloat16
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= SAME_LABELS


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_on_a_gpu_the_network_gives_the_same_logits(require: Require, cuda_graph: bool) -> None:
    require("cuda", torch.cuda.is_available(), "no CUDA GPU")
    network = calibrate(randomise(ACCUNet(2, 1, 3, base_filters=16), 0), torch.randn(4, 1, 64, 64))
    images = torch.randn(2, 2, 1, 96, 80)
    fast = optimize_for_inference(network, (2, 1, 96, 80), device="cuda", cuda_graph=cuda_graph)
    assert len(choices(fast)) == 18
    with torch.inference_mode():
        outputs = [fast(image.cuda()) for image in images]
        outputs.append(fast(images[0, :1, :, :64].cuda()))
        for image, output in zip([*images, images[0, :1, :, :64]], outputs, strict=True):
            assert _difference(output.cpu(), network(image)) <= ON_GPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_on_a_gpu_the_kernel_computes_the_folded_block(require: Require, tiling: Tiling, dtype: torch.dtype) -> None:
    require("cuda", torch.cuda.is_available(), "no CUDA GPU")
    errors = _errors(dtype, tiling, (36, 52), 32, 3, 3, device="cuda")
    assert errors["fused"] <= max(1.2 * errors["folded"], CLOSE), errors


# --- what runs in the interpreter's process --------------------------------------------------------------------------


def _correct_bfloat16() -> None:
    """Let the interpreter multiply matrices in bfloat16; Triton 3.7 multiplies the integers that hold their bits."""
    import triton.language as tl
    from triton.runtime import interpreter

    as_it_is = interpreter.InterpreterBuilder.create_dot

    def widened(handle):  # type: ignore[no-untyped-def]
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None).view("float32")
        return interpreter.TensorHandle(data, tl.float32)

    def create_dot(self, a, b, d, *arguments):  # type: ignore[no-untyped-def]
        return as_it_is(self, widened(a), widened(b), d, *arguments)

    interpreter.InterpreterBuilder.create_dot = create_dot
    torch.set_num_threads(1)


def _errors(
    dtype: torch.dtype,
    tiling: Tiling,
    size: tuple[int, int],
    channels: int,
    k: int,
    expansion: int,
    act: object = ("leakyrelu", {"negative_slope": 0.01}),
    device: str = "cpu",
) -> dict[str, float]:
    """Difference of the folded and the fused block in ``dtype`` from the block itself in float64."""
    block = randomise(HANCBlock(2, channels, 4, k, expansion, act=act), seed=channels)
    folded = _folded(block, dtype).to(device)
    image = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    forms = {"folded": folded, "fused": FusedHANCBlock(folded, tiling)}
    with torch.no_grad():
        expected = block.double().eval()(image.double())
        return {name: _difference(form(image.to(device)).cpu(), expected) for name, form in forms.items()}


def _largest_tensors() -> dict[str, int]:
    folded = _folded(HANCBlock(2, 8, 8, k=3), torch.float32)
    image = torch.randn(1, 8, 32, 32)  # larger than the weights, which the interpreter copies
    found = {}
    for name, form in (("folded", folded), ("fused", FusedHANCBlock(folded, SMALL))):
        with torch.no_grad(), _Written() as written:
            form(image)
        found[name] = max(written.sizes) // image.element_size()
    return found


def _choose_for_two_blocks(timer: Callable[[Callable[[], object]], float]) -> tuple[list[Choice], float]:
    """The choices, and how much the output changed by them."""
    blocks = nn.Sequential(HANCBlock(2, 2, 4, k=3), HANCBlock(2, 4, 4, k=2))
    fast = optimize_for_inference(randomise(blocks, 0))
    image = torch.randn(1, 2, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = fast(image)
        keep_fastest(fast, image, candidates, timer)
        return choices(fast), _difference(fast(image), before)


def _wall_clock(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _bytes_written(run: Callable[[], object]) -> float:
    """The time of a machine that is limited by writing to memory at 1 byte a second."""
    with _Written() as written:
        run()
    return float(sum(written.sizes))


class _Written(TorchDispatchMode):
    """The bytes of every tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.sizes.append(result.nbytes)
        return result


class _Timer:
    """Candidates for one block, right and wrong, and what each of them costs."""

    def __init__(self, block: nn.Module, cost: Mapping[str, float]) -> None:
        self.block, self.cost = block, cost
        self.made = {FOLDED: block} | {name: copy.deepcopy(block) for name in (*cost, "wrong weight", "no number")}
        self.made[FOLDED] = block
        self.made["wrong weight"].chunks[0].own.weight.data.neg_()
        self.made["no number"].project.bias.data[0] = torch.nan

    def candidates(self, block: nn.Module) -> dict[str, Callable[[], nn.Module]]:
        if block is not self.block:
            return {}
        made = {name: partial(self.made.__getitem__, name) for name in self.made if name != FOLDED}
        return made | {"fails": _fail}

    def __call__(self, run: Callable[[], object]) -> float:
        (name,) = (name for name, module in self.made.items() if module is run.func)  # type: ignore[attr-defined]
        run()
        return self.cost[name]


def _fail() -> nn.Module:
    raise RuntimeError("out of shared memory")


def _record_on_cpu(replayed: list[torch.Size], network: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """As a CUDA graph does: reads one memory, writes one memory, whatever it is called with."""
    image, logits = example.clone(), network(example).detach()

    def replay(x: Tensor) -> Tensor:
        replayed.append(x.shape)
        return logits.copy_(network(image.copy_(x)))

    return replay


def _folded(block: HANCBlock, dtype: torch.dtype) -> FoldedHANCBlock:
    return optimize_for_inference(block, dtype=dtype).network


def _difference(found: Tensor, expected: Tensor) -> float:
    spread = (expected.max() - expected.min()).item()
    return (found.double() - expected.double()).abs().max().item() / spread


def _compile(tiling: Tiling, channels: int, k: int, pointer: str, capability: int):  # type: ignore[no-untyped-def]
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from accunet_monai.networks.fused import _hanc_kernel

    constants = {
        "K": k,
        "SIDE": tiling.side,
        "HALO": triton.next_power_of_2((tiling.side + 2) ** 2),
        "C": channels,
        "E": tiling.chunk,
        "PRECISION": "tf32x3",
    }
    types = dict.fromkeys(_hanc_kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("image", "output", "expand", "contract"), pointer) | {"slope": "fp32"}
    types |= dict.fromkeys(("expand_bias", "depthwise", "depthwise_bias", "hanc_bias"), "*fp32")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(types) if types[name].startswith("*")}
    source = ASTSource(_hanc_kernel, types, constants, aligned)
    return triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": tiling.warps, "num_stages": 2})
