"""How much faster and smaller is our form of ACC-UNet than its literal definition, with the same weights?

    python benchmarks/network.py --width 32 --shape 2,3,224,224

Runs the forms in turns (so that a busy moment hits all of them), in evaluation and as a training step; prints medians
and ratios against the literal form (eager, contiguous: tests/networks/literal.py), GMAC an image, and the peak memory
of a fresh process for each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from accunet_monai.networks import ACCUNet, to_official
from accunet_monai.networks.deploy import optimize_for_inference
from tests.networks.literal import LiteralACCUNet
from tests.networks.randomised import calibrate

BASELINE = "literal"
FORMS = {
    BASELINE: "literal form: eager, contiguous",
    "eager": "ours: eager, contiguous",
    "channels-last": "ours: eager, channels-last",
    "compiled": "ours: channels-last, compiled",
    "folded": "ours: folded for inference",
    "folded-bf16": "ours: folded for inference, bfloat16",
}
INFERENCE_ONLY = {"folded": torch.float32, "folded-bf16": torch.bfloat16}
"""Forms of optimize_for_inference, which cannot be trained, and their precision."""
MODES = {"evaluation": "Evaluation", "training": "Training step (forward, backward, SGD)"}
LARGEST_DIFFERENCE = 1e-3
"""Share of the logits' spread; random weights amplify float32 rounding much more than trained ones.

bfloat16 is not held to it: what its rounding costs is measured on real images, by tests/networks/test_deploy.py.
"""
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which getrusage counts the resident set."""


def main() -> None:
    options = _read_options()
    if options.memory_of:
        print(json.dumps(_added_peak_memory(options)))
        return
    console = Console(width=120)
    console.print(_machine())
    console.print(
        f"width {options.width}, input {options.shape}, float32, median of {options.repeats} interleaved runs"
    )
    # Memory first: a child starts with its parent's resident set on its own account.
    memory = {
        (form, mode): _measure_memory(form, mode, options) for mode in MODES for form in _forms_of(mode, options.forms)
    }
    networks = _make_networks(options)
    x = torch.randn(options.shape)
    _check_equal(networks, x)
    gmac = {form: _gmac_per_image(networks[form], x) for form in options.forms if form != "compiled"}
    for mode, title in MODES.items():
        forms = _forms_of(mode, options.forms)
        runs = {form: partial(_step(mode), networks[form], _arranged(form, x)) for form in forms}
        seconds = _interleaved_medians(runs, options.repeats)
        console.print(_table(title, seconds, {form: memory[form, mode] for form in forms}, gmac))


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=32, help="base_filters (default 32)")
    parser.add_argument("--shape", type=_shape, default=(2, 3, 224, 224), help="N,C,H,W or N,C,X,Y,Z")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each form (default 7)")
    parser.add_argument("--forms", type=_forms, default=tuple(FORMS), help=f"some of {','.join(FORMS)}")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--quick", action="store_true", help="a small network and image, two runs, nothing compiled")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # FORM:MODE, how a fresh process measures itself
    options = parser.parse_args()
    if options.quick:
        options.width, options.shape, options.repeats = 8, (1, 3, 96, 96), 2
        options.forms = tuple(form for form in options.forms if form != "compiled")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in text.split(","))
    if len(shape) not in (4, 5) or min(shape) < 1 or any(size % 16 for size in shape[2:]):
        raise argparse.ArgumentTypeError(
            f"{text}: 4 or 5 sizes, the spatial ones multiples of 16 (for the literal form)"
        )
    return shape


def _forms(text: str) -> tuple[str, ...]:
    chosen = set(text.split(","))
    if unknown := chosen - set(FORMS):
        raise argparse.ArgumentTypeError(f"unknown forms {', '.join(sorted(unknown))}; known are {', '.join(FORMS)}")
    return tuple(form for form in FORMS if form in chosen | {BASELINE})


def _forms_of(mode: str, forms: Iterable[str]) -> tuple[str, ...]:
    return tuple(form for form in forms if mode == "evaluation" or form not in INFERENCE_ONLY)


def _make_networks(options: argparse.Namespace) -> dict[str, nn.Module]:
    """The same random weights in every form, with normalisations that let the image through to the logits."""
    torch.manual_seed(0)
    reference = ACCUNet(len(options.shape) - 2, options.shape[1], 1, options.width)
    calibrate(reference, torch.randn(options.shape))
    return {form: _make(form, reference) for form in options.forms}


def _make(form: str, reference: ACCUNet) -> nn.Module:
    if form == BASELINE:
        literal = LiteralACCUNet(reference.spatial_dims, reference.in_channels, 1, reference.config["base_filters"])
        literal.load_state_dict(to_official(reference))
        return literal
    network = ACCUNet(**reference.config)
    network.load_state_dict(reference.state_dict())
    if form in INFERENCE_ONLY:
        return optimize_for_inference(network, dtype=INFERENCE_ONLY[form])
    if form == "eager":
        return network
    network = network.to(memory_format=_channels_last(reference.spatial_dims))
    return torch.compile(network, fullgraph=True) if form == "compiled" else network


def _arranged(form: str, x: Tensor) -> Tensor:
    if form not in (BASELINE, "eager"):
        return x.contiguous(memory_format=_channels_last(x.dim() - 2))
    return x


def _channels_last(spatial_dims: int) -> torch.memory_format:
    return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d


def _check_equal(networks: dict[str, nn.Module], x: Tensor) -> None:
    """A comparison of speed means nothing if the outputs differ."""
    with torch.no_grad():
        expected = networks[BASELINE].eval()(x)
        for form, network in networks.items():
            difference = (network.eval()(_arranged(form, x)) - expected).abs().max() / (expected.max() - expected.min())
            if form != "folded-bf16" and not difference.item() <= LARGEST_DIFFERENCE:
                raise SystemExit(f"{form} differs from the literal form by {difference.item():.1e} of the spread")


def _step(mode: str) -> Callable[[nn.Module, Tensor], None]:
    return _training_step if mode == "training" else _evaluate


def _evaluate(network: nn.Module, x: Tensor) -> None:
    network.eval()
    with torch.inference_mode():
        network(x)


def _training_step(network: nn.Module, x: Tensor) -> None:
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6)
    network(x).square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()


def _interleaved_medians(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds by form, after one run of each to warm up (and to compile)."""
    seconds: dict[str, list[float]] = {form: [] for form in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for form, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[form].append(time.perf_counter() - started)
    return {form: statistics.median(values) for form, values in seconds.items()}


def _gmac_per_image(network: nn.Module, x: Tensor) -> float:
    """10⁹ multiply-accumulates of convolutions and matrix products (two operations each) for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(x[:1])
    return counter.get_total_flops() / 2 / 1e9


def _measure_memory(form: str, mode: str, options: argparse.Namespace) -> float:
    """Bytes that one step of ``form`` adds to the peak of a fresh process."""
    shape = ",".join(map(str, options.shape))
    command = [sys.executable, __file__, "--memory-of", f"{form}:{mode}", "--width", str(options.width)]
    command += ["--shape", shape, "--threads", str(torch.get_num_threads())]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def _added_peak_memory(options: argparse.Namespace) -> int:
    form, mode = options.memory_of.split(":")
    torch.manual_seed(0)
    network = _make(form, ACCUNet(len(options.shape) - 2, options.shape[1], 1, options.width))
    x = _arranged(form, torch.randn(options.shape))
    _forget_peak()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _step(mode)(network, x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * MAXRSS_UNIT


def _forget_peak() -> None:
    """Set the peak to what is resident now, where Linux allows it: folding a network takes memory for a moment."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _table(title: str, seconds: dict[str, float], memory: dict[str, float], gmac: dict[str, float]) -> Table:
    table = Table(title=title, caption="ratios: literal form / this form for time, this form / literal form for memory")
    for column in ("form", "median", "times as fast", "peak added memory", "share of memory", "GMAC an image"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for form, median in seconds.items():
        compiled = " (with the compiler's own)" if form == "compiled" else ""
        table.add_row(
            FORMS[form],
            f"{median * 1000:.0f} ms",
            f"{seconds[BASELINE] / median:.2f}",
            f"{memory[form] / 2**20:.0f} MiB{compiled}",
            f"{memory[form] / max(memory[BASELINE], 1):.2f}",
            f"{gmac[form]:.2f}" if form in gmac else "as ours",
        )
    return table


def _machine() -> str:
    """One line: processor, its vector instructions as PyTorch uses them, threads, memory, versions."""
    names = (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    kilobytes = (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    memory = next(kilobytes, 0) / 2**20
    return (
        f"{next(names, platform.processor() or platform.machine())}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def _lines(path: str) -> Iterable[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []


if __name__ == "__main__":
    main()
