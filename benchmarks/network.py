"""How much faster and smaller is our form of ACC-UNet than its literal definition, with the same weights?

    python benchmarks/network.py --width 32 --shape 2,3,224,224 --output network.md

Runs the forms in turns (so that a busy moment hits all of them), in evaluation and as a training step. Prints medians
and ratios against the literal form (eager, contiguous: tests/networks/literal.py) or, where that does not fit into
memory, the first that does; the peak memory of a fresh process for each; GMAC an image; and which share of the
operations of a large matrix product, timed in the same turns, each form gets out of the machine. Three of MONAI's
networks run on the same input, for scale: they are other networks, at their own widths, and have no ratios.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.measuring.forms import (
    EVALUATION,
    FORMS,
    LITERAL,
    MODES,
    Case,
    forms_of,
    make_input,
    make_network,
    multiply_accumulates,
    operations,
    parameters,
    random_weights,
    run_once,
)
from benchmarks.measuring.memory import Memory, measure_memory
from benchmarks.measuring.options import make_parser, parse_shape, prepare
from benchmarks.measuring.report import Report, describe_machine, mebibytes, ratio
from benchmarks.measuring.timing import Timing, matrix_product, take_turns

TITLES = {EVALUATION: "Evaluation", "training": "Training step (forward, backward, SGD)"}
COLUMNS = (
    "form",
    "median ms",
    "fastest–slowest",
    "times as fast",
    "added memory",
    "share of memory",
    "GMAC an image",
    "of the limit",
    "in the kernel",
)
PEER_COLUMNS = (*COLUMNS[:3], "parameters", "added memory", *COLUMNS[6:])
LARGEST_DIFFERENCE = 1e-3
"""Share of the logits' spread, or of the loss; random weights amplify float32 rounding much more than trained ones.

bfloat16 is not held to it: what its rounding costs is measured on real images, by tests/networks/test_deploy.py.
"""
PRODUCT_SIZE = {"cpu": 4096, "cuda": 16384}
"""Rows of the multiplied matrices: large enough that more would not be faster."""


def main() -> None:
    options = _read_options()
    report = Report(options.output)
    report.paragraph(describe_machine(options.device))
    shape = "×".join(map(str, options.shape))
    report.paragraph(f"Width {options.width}, input {shape}, {options.repeats} runs of each form in turn.")
    memory = {case: measure_memory(case, options.memory) for mode in MODES for case in _cases(mode, options)}
    macs = {name: multiply_accumulates(_case(name, EVALUATION, options)) for name in options.forms}
    for mode in MODES:
        measured = {case: memory[case] for case in _cases(mode, options)}
        timings, limits = _time(measured, options)
        _report_forms(report, mode, measured, timings, limits, macs)
        _report_peers(report, mode, measured, timings, limits, macs)


def _read_options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=7)
    parser.add_argument("--shape", type=parse_shape, default=(2, 3, 224, 224), help="N,C,H,W or N,C,X,Y,Z")
    parser.add_argument("--forms", type=_forms, default=tuple(FORMS), help=f"some of {','.join(FORMS)}")
    parser.add_argument("--memory", type=_gibibytes, help="GiB a form may take (default: nearly all there is)")
    options = parser.parse_args()
    if options.quick:
        options.width, options.shape, options.repeats = 8, (2, 3, 64, 64), 1
        options.forms = tuple(name for name in options.forms if not FORMS[name].compiled)
    if len(options.shape) == 5 and options.device == "cpu":  # PyTorch has no 3D average pooling for it there
        options.forms = tuple(name for name in options.forms if FORMS[name].precision is torch.float32)
    prepare(options)
    return options


def _forms(text: str) -> tuple[str, ...]:
    chosen = set(text.split(","))
    if unknown := chosen - set(FORMS):
        raise argparse.ArgumentTypeError(f"unknown forms {', '.join(sorted(unknown))}; known are {', '.join(FORMS)}")
    return tuple(name for name in FORMS if name in chosen | {LITERAL})


def _gibibytes(text: str) -> int:
    return int(float(text) * 2**30)


def _cases(mode: str, options: argparse.Namespace) -> list[Case]:
    return [_case(name, mode, options) for name in forms_of(mode, options.forms)]


def _case(name: str, mode: str, options: argparse.Namespace) -> Case:
    return Case(name, mode, options.shape, options.width, device=options.device)


def _time(
    memory: dict[Case, Memory], options: argparse.Namespace
) -> tuple[dict[Case, Timing], dict[torch.dtype, float]]:
    """Timings of the cases that fit, and operations a second of a matrix product by precision."""
    weights = random_weights(next(iter(memory)))
    runs = {}
    for case in memory:
        if memory[case].fits:
            runs[case] = partial(run_once, case, make_network(case, weights), make_input(case))
    _check_equal({case: run() for case, run in runs.items() if not FORMS[case.form].peer})
    size = 256 if options.quick else PRODUCT_SIZE[options.device]
    precisions = dict.fromkeys(FORMS[case.form].precision for case in runs)
    products = {precision: matrix_product(precision, size, options.device) for precision in precisions}
    for product in products.values():
        product()
    timings = take_turns({**runs, **products}, options.repeats, options.device)
    limits = {precision: 2 * size**3 / timings.pop(precision).median for precision in products}
    return timings, limits


def _check_equal(outputs: dict[Case, Tensor]) -> None:
    """A comparison of speed means nothing if the outputs differ: logits in evaluation, the first loss in training."""
    exact = {case: output.float() for case, output in outputs.items() if FORMS[case.form].precision is torch.float32}
    for case, output in exact.items():
        first, expected = next(iter(exact.items()))
        scale = expected.abs() if expected.dim() == 0 else expected.max() - expected.min()
        difference = ((output - expected).abs().max() / scale).item()
        if not difference <= LARGEST_DIFFERENCE:
            raise SystemExit(f"{case.mode}: {case.form} differs from {first.form} by {difference:.1e}")


def _report_forms(
    report: Report,
    mode: str,
    memory: dict[Case, Memory],
    timings: dict[Case, Timing],
    limits: dict[torch.dtype, float],
    macs: dict[str, float],
) -> None:
    cases = [case for case in memory if not FORMS[case.form].peer]
    baseline = next((case for case in cases if case in timings), None)
    rows = []
    for case in cases:
        added, timing = memory[case].added, timings.get(case)
        if timing is None or baseline is None:
            share = "–"
            figures = ("does not fit", "–", "–", f"about {mebibytes(added)}")
        else:
            share = ratio(added, memory[baseline].added)
            speed = ratio(timings[baseline].median, timing.median)
            figures = (f"{1000 * timing.median:.0f}", timing.range, speed, mebibytes(added))
        rows.append((FORMS[case.form].title, *figures, share, *_efficiency(case, timing, limits, macs)))
    against = "no form fits" if baseline is None else f"ratios against “{FORMS[baseline.form].title}”"
    caption = f"{TITLES[mode]}: {against}. {_describe(limits)}"
    report.table(TITLES[mode], COLUMNS, rows, caption)


def _report_peers(
    report: Report,
    mode: str,
    memory: dict[Case, Memory],
    timings: dict[Case, Timing],
    limits: dict[torch.dtype, float],
    macs: dict[str, float],
) -> None:
    rows = []
    for case in memory:
        if not FORMS[case.form].peer:
            continue
        timing, size = timings.get(case), f"{parameters(case) / 1e6:.1f} M"
        speed = ("does not fit", "–") if timing is None else (f"{1000 * timing.median:.0f}", timing.range)
        added = mebibytes(memory[case].added)
        efficiency = _efficiency(case, timing, limits, macs)
        rows.append((FORMS[case.form].title, *speed, size, added, *efficiency))
    if rows:
        ours = parameters(Case("eager", mode, case.shape, case.width)) / 1e6
        caption = f"Other networks on the same input, as MONAI makes them; ACC-UNet has {ours:.1f} M parameters."
        report.table(f"{TITLES[mode]}: MONAI's networks, for scale", PEER_COLUMNS, rows, caption)


def _efficiency(
    case: Case, timing: Timing | None, limits: dict[torch.dtype, float], macs: dict[str, float]
) -> tuple[str, str, str]:
    """GMAC an image, share of the matrix product's operations a second, share of time in the kernel."""
    count = f"{macs[case.form] / 1e9:.2f}"
    if timing is None:
        return count, "–", "–"
    rate = operations(case, macs[case.form]) / timing.median
    return count, f"{rate / limits[FORMS[case.form].precision]:.1%}", f"{timing.kernel_share:.0%}"


def _describe(limits: dict[torch.dtype, float]) -> str:
    rates = (f"{str(precision).removeprefix('torch.')} {rate / 1e9:.4g}" for precision, rate in limits.items())
    return f"The limit is a square matrix product in the same run, GFLOP/s: {', '.join(rates)}." if limits else ""


if __name__ == "__main__":
    main()
