"""How close does the folded network come to what the machine allows: how many bytes, how many operations, which floor?

    python benchmarks/roofline.py --width 32 --shape 2,3,224,224 --output roofline.md

Each stage's work is counted: the operations of its convolutions; the bytes that it cannot avoid (each block reads its
input and its weights once and writes its output once); the bytes that it moves as it is folded, one operation after the
other, each reading and writing memory; and those with HANC blocks fused (accunet_monai.networks.fused). The memory's
bandwidth (copy, triad) and the processor's matrix product are measured in the same turns. A block's floor is the larger
of its bytes over the one and its operations over the other; a stage's floor is the sum over its blocks. The gap is the
measured time over the floor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from accunet_monai.networks import ACCUNet
from accunet_monai.networks.deploy import FoldedHANCBlock, optimize_for_inference
from accunet_monai.networks.gpu import choices
from benchmarks.measuring.options import make_parser, parse_shape, prepare
from benchmarks.measuring.report import Report, describe_machine
from benchmarks.measuring.timing import matrix_product, take_turns

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ARRAY_BYTES = {"cpu": 2**28, "cuda": 2**30, "quick": 2**25}
"""Of each array that is copied: many times any cache, if not quick."""
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192, "quick": 512}
"""Rows of the multiplied matrices: from here on larger ones are hardly faster, if not quick."""
WHOLE = "whole network"
Runs = dict[str, Callable[[], object]]
COLUMNS = (
    "stage",
    "10⁹ operations",
    "MB at least",
    "MB fused",
    "MB as folded",
    "limited by",
    "floor ms",
    "floor as folded ms",
    "measured ms",
    "measured / floor",
)


@dataclass(frozen=True)
class Work:
    """What a block does: ``operations`` (two a multiply-accumulate), and bytes at ``least``, ``fused``, ``folded``."""

    operations: int
    least: int
    fused: int
    folded: int


@dataclass(frozen=True)
class Limits:
    """What the machine can do: bytes and operations a second."""

    bandwidth: float
    operations: float

    def floor(self, work: Work, moved: int) -> float:
        """Seconds that the work takes at least when it moves so many bytes."""
        return max(moved / self.bandwidth, work.operations / self.operations)


def main() -> None:
    options = _read_options()
    dtype = PRECISIONS[options.precision]
    report = Report(options.output)
    report.paragraph(describe_machine(options.device))
    shape = "×".join(map(str, options.shape))
    report.paragraph(f"Width {options.width}, input {shape}, {options.precision}, best of {options.repeats} runs.")

    network, image = _make(options, dtype), torch.randn(options.shape, device=options.device)
    with torch.inference_mode():
        calls = blocks_and_inputs(network, image)
        work = {name: count(block, inputs) for name, (block, inputs) in calls.items()}
        if options.device == "cuda":  # counted as folded, timed as it runs
            network = _make(options, dtype, options.shape)
            report.paragraph("\n".join(map(str, choices(network))))
            calls = blocks_and_inputs(network, image)
        runs: Runs = {name: partial(block, *inputs) for name, (block, inputs) in calls.items()}
        seconds = _best(runs | {WHOLE: partial(network, image)} | _limit_runs(options), options)
    _report_stages(report, work, _limits(report, options, seconds), seconds)


def blocks_and_inputs(network: nn.Module, image: Tensor) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Every block of a network of ours with what it is called with for ``image``, by name, in order.

    A block is what could be one kernel: a HANC block, a residual path, an MLFC pass, an up-sampling, the head.
    """
    calls: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}

    def remember(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[name] = (module, inputs)

    parts = dict(network.named_children())
    hooks = [
        module.register_forward_pre_hook(partial(remember, name.removeprefix("network.")))
        for name, module in parts["network"].named_modules(prefix="network")
        if _is_block(name.removeprefix("network."))
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return calls


def count(block: nn.Module, inputs: tuple[Any, ...]) -> Work:
    """The work of one call of a folded block."""
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
        output = block(*inputs)
    least = _bytes([inputs, list(block.parameters()), output])
    fused = _fused(block, inputs[0]) if isinstance(block, FoldedHANCBlock) else traffic.moved
    return Work(counter.get_total_flops(), least, fused, traffic.moved)


def _fused(block: FoldedHANCBlock, x: Tensor) -> int:
    """Bytes of a block's fused kernel, whose output is as large as its input, and of what follows it."""
    with _Traffic() as rest:
        block.squeeze(block.act(block.project(x)))
    return _bytes([x, list(block.chunks.parameters()), x]) + rest.moved


class _Traffic(TorchDispatchMode):
    """Bytes that operations read and write, when none of them finds anything in a cache."""

    moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            self.moved += _bytes([args, kwargs, result])
        return result


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _is_block(name: str) -> bool:
    """Stages of two blocks: encoder.0.0; the others are one: skips.0, mlfc.0, upsample.0, head."""
    parts = name.split(".")
    if parts[0] in ("encoder", "decoder"):
        return len(parts) == 3
    return name == "head" or (parts[0] in ("skips", "mlfc", "upsample") and len(parts) == 2)


def _read_options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--shape", type=parse_shape, default=(2, 3, 224, 224), help="N,C,H,W")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of weights and feature maps")
    options = parser.parse_args()
    if options.quick:
        options.width, options.shape, options.repeats = 8, (1, 3, 96, 96), 2
    prepare(options)
    return options


def _make(options: argparse.Namespace, dtype: torch.dtype, example_shape: tuple[int, ...] | None = None) -> nn.Module:
    torch.manual_seed(0)
    network = ACCUNet(len(options.shape) - 2, options.shape[1], 1, options.width)
    return optimize_for_inference(network, example_shape, options.device, dtype)


def _limit_runs(options: argparse.Namespace) -> Runs:
    """What shows the machine's bandwidth and its operations a second."""
    first, second, third = (torch.ones(_size(options)[0] // 4, device=options.device) for _ in range(3))
    runs: Runs = {
        "copy": partial(first.copy_, second),
        "triad": partial(torch.add, second, third, alpha=2.0, out=first),
    }
    for name in _products(options):
        runs[name] = matrix_product(PRECISIONS[name], _size(options)[1], options.device)
    return runs


def _best(runs: Runs, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest of some runs, each after one to warm up: a floor is compared with what can be reached."""
    for run in runs.values():
        run()
    timings = take_turns(runs, options.repeats, options.device)
    return {name: min(timing.seconds) for name, timing in timings.items()}


def _limits(report: Report, options: argparse.Namespace, seconds: dict[str, float]) -> Limits:
    size, rows = _size(options)
    rates = {"copy": 2 * size / seconds["copy"], "triad": 3 * size / seconds["triad"]}
    products = {name: 2 * rows**3 / seconds[name] for name in _products(options)}
    report.paragraph(
        f"Bandwidth: {', '.join(f'{name} {rate / 1e9:.1f} GB/s' for name, rate in rates.items())}. "
        f"Product of {rows}×{rows} matrices, 10⁹ operations a second: "
        f"{', '.join(f'{name} {rate / 1e9:.0f}' for name, rate in products.items())}."
    )
    return Limits(max(rates.values()), products[options.precision])


def _size(options: argparse.Namespace) -> tuple[int, int]:
    """Bytes of the copied arrays, rows of the multiplied matrices."""
    scale = "quick" if options.quick else options.device
    return ARRAY_BYTES[scale], PRODUCT_SIZE[scale]


def _products(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(("float32", "bfloat16", options.precision)))


def _report_stages(report: Report, work: dict[str, Work], limits: Limits, seconds: dict[str, float]) -> None:
    stages: dict[str, list[str]] = {}
    for name in work:
        stages.setdefault(".".join(name.split(".")[:2]), []).append(name)
    rows = [_row(stage, names, work, limits, sum(map(seconds.__getitem__, names))) for stage, names in stages.items()]
    rows.append(_row(WHOLE, work, work, limits, seconds[WHOLE]))
    caption = "floor: each block at the machine's limit; as folded: with the bytes that its operations move one by one"
    report.table("Roofline of the folded network", COLUMNS, rows, caption)


def _row(title: str, names: Iterable[str], work: dict[str, Work], limits: Limits, measured: float) -> list[str]:
    parts = [work[name] for name in names]
    floor = sum(limits.floor(part, part.least) for part in parts)
    moving = sum(part.least for part in parts) / limits.bandwidth
    computing = sum(part.operations for part in parts) / limits.operations
    return [
        title,
        f"{sum(part.operations for part in parts) / 1e9:.2f}",
        f"{sum(part.least for part in parts) / 1e6:.1f}",
        f"{sum(part.fused for part in parts) / 1e6:.1f}",
        f"{sum(part.folded for part in parts) / 1e6:.1f}",
        "memory" if moving > computing else "arithmetic",
        f"{1e3 * floor:.3g}",
        f"{1e3 * sum(limits.floor(part, part.folded) for part in parts):.3g}",
        f"{1e3 * measured:.3g}",
        f"{measured / floor:.1f}",
    ]


if __name__ == "__main__":
    main()
