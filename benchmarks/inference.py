"""What does segmenting a volume slice by slice cost in memory and time, beside MONAI's SliceInferer and beside none?

    python benchmarks/inference.py --output inference.md

Five parts, each with its own baseline. *memory*: a large volume and a trivial network, each inferer in a fresh process,
against MONAI's. *throughput*: ACC-UNet through the inferer against the same network on the same batches, already cut.
*speed*: a volume through MONAI's inferer with the literal form of ACC-UNet (tests/networks/literal.py), through ours
with the folded one, and through a bundle's predictor from file to file, same weights. *growth*: time against the number
of slices. *stages*: where the predictor's time goes. Timed runs take turns, so that a busy moment of the machine hits
all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from monai.inferers.inferer import SliceInferer as MonaiSliceInferer
from torch import Tensor, nn

from accunet_monai.bundle import Precision, load_bundle
from accunet_monai.inferers import SliceInferer
from benchmarks.inference_runs.fresh import RUNS, added_memory
from benchmarks.inference_runs.stages import STAGES, make_bundle, segment_file, timed_stages, write_image
from benchmarks.measuring.forms import EVALUATION, LITERAL, Case, make_network, random_weights
from benchmarks.measuring.options import make_parser, prepare
from benchmarks.measuring.parts import some_of
from benchmarks.measuring.report import Report, describe_machine, mebibytes, ratio
from benchmarks.measuring.timing import Timing, take_turns

CLASSES = 5
SIZES = {"memory": (512, 512, 800), "throughput": (224, 224, 16), "speed": (256, 256, 64), "growth": (128, 128, 16)}
QUICK = {"memory": (256, 256, 32), "throughput": (32, 32, 4), "speed": (32, 32, 4), "growth": (32, 32, 2)}
"""Of the volumes, (X, Y, Z); slices are taken along z."""
BATCH = 2
"""Windows a call with ACC-UNet: at 256² the literal form takes more than a gigabyte for each."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
"""Of the predictor."""
DOUBLINGS = 3
"""Of the number of slices in *growth*."""
CLOSE = 1e-3
"""Of the logits' spread: how far the folded network may be from the literal one; see benchmarks/network.py."""


def main() -> None:
    options = _read_options()
    report = Report(options.output)
    report.paragraph(describe_machine(options.device))
    for name in options.parts:
        PARTS[name](report, options)


def _read_options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--parts", type=some_of(PARTS), default=tuple(PARTS), help=f"some of {','.join(PARTS)}")
    options = parser.parse_args()
    options.sizes = QUICK if options.quick else SIZES
    if options.quick:
        options.width, options.repeats = 8, 1
    prepare(options)
    return options


def _measure_memory(report: Report, options: argparse.Namespace) -> None:
    shape = options.sizes["memory"]
    added = {name: added_memory(name, shape, CLASSES, torch.get_num_threads()) for name in RUNS}
    baseline = next(iter(added))
    reference = added[baseline].peak
    rows = [
        (name, mebibytes(one.peak), ratio(one.peak, reference), mebibytes(one.estimated), f"{one.seconds:.1f}")
        for name, one in added.items()
    ]
    columns = ("", "added memory", "share of MONAI's", "estimated", "seconds")
    size = mebibytes(4 * shape[0] * shape[1] * shape[2])
    caption = f"Ratios against “{baseline}”, which leaves the label map to be made. The volume itself: {size}."
    report.table(f"Memory of {_describe(shape)}, {CLASSES} classes, a trivial network", columns, rows, caption)


def _measure_throughput(report: Report, options: argparse.Namespace) -> None:
    shape = options.sizes["throughput"]
    (network,), volume = _networks(("folded",), shape, options), _volume(shape)
    batches = list(_slices(volume).split(BATCH))
    inferer = SliceInferer(spatial_dim=2, sw_batch_size=BATCH)

    def bare() -> None:
        for batch in batches:
            network(batch)

    runs: dict[str, Callable[[], object]] = {"bare network": bare, "label map": partial(inferer, volume, network)}
    timings = _timed(runs, options)
    rows = [
        (name, *_times(timing), f"{timings['bare network'].median / timing.median:.1%}")
        for name, timing in timings.items()
    ]
    title = f"Throughput: ACC-UNet, width {options.width}, {_describe(shape)} in batches of {BATCH}"
    caption = "Ratios against “bare network”, which gets the same batches, already cut, and makes no labels."
    report.table(title, ("", "median ms", "fastest–slowest", "throughput"), rows, caption)


def _measure_speed(report: Report, options: argparse.Namespace) -> None:
    shape = options.sizes["speed"]
    volume = _volume(shape)
    literal, folded, half = _networks((LITERAL, "folded", "folded-bf16"), shape, options)
    monais = MonaiSliceInferer(spatial_dim=2, roi_size=shape[:2], sw_batch_size=BATCH)
    ours = SliceInferer(spatial_dim=2, sw_batch_size=BATCH)
    _check_equal(monais, literal, folded, volume[..., :BATCH])
    runs: dict[str, Callable[[], object]] = {
        "MONAI, literal form": lambda: monais(volume, literal) > 0,
        "our inferer, folded": partial(ours, volume, folded),
        "our inferer, folded, bfloat16": partial(ours, volume, half),
    }
    with TemporaryDirectory() as name:
        bundle, image = _bundle_and_image(Path(name), options)
        for precision in PRECISIONS:
            predictor = load_bundle(bundle, precision=precision, device=options.device)
            runs[f"our predictor, file to file, {precision}"] = partial(segment_file, predictor, image)
        timings = _timed(runs, options)
    baseline = next(iter(timings))
    rows = [(name, *_times(timing), ratio(timings[baseline].median, timing.median)) for name, timing in timings.items()]
    title = f"Speed: ACC-UNet, width {options.width}, {_describe(shape)} in batches of {BATCH}"
    caption = (
        f"Ratios against “{baseline}”; all give label maps, and the float32 logits are equal within {CLOSE:.1%}. "
        "The predictor also reads, resamples, brings labels back to the file's grid, cleans and writes them."
    )
    report.table(title, ("", "median ms", "fastest–slowest", "times as fast"), rows, caption)


def _measure_growth(report: Report, options: argparse.Namespace) -> None:
    *plane, least = options.sizes["growth"]
    counts = [least * 2**doubling for doubling in range(DOUBLINGS + 1)]
    case = argparse.Namespace(**{**vars(options), "width": 8})
    (network,) = _networks(("folded",), (*plane, least), case)
    inferer = SliceInferer(spatial_dim=2, sw_batch_size=BATCH)
    runs = {count: partial(inferer, _volume((*plane, count)), network) for count in counts}
    timings = _timed(runs, options)
    rows = [
        (str(count), *_times(timing), f"{1000 * timing.median / count:.2f}", _per_slice(timings, count))
        for count, timing in timings.items()
    ]
    title = f"Growth: ACC-UNet, width 8, slices of {plane[0]}×{plane[1]}"
    columns = ("slices", "median ms", "fastest–slowest", "ms a slice", "a slice, first row = 1")
    report.table(title, columns, rows, f"Ratios against {counts[0]} slices.")


def _measure_stages(report: Report, options: argparse.Namespace) -> None:
    with TemporaryDirectory() as name:
        bundle, image = _bundle_and_image(Path(name), options)
        found = {precision: timed_stages(bundle, image, precision) for precision in PRECISIONS}
    totals = {precision: sum(seconds.values()) for precision, (seconds, _) in found.items()}
    rows = []
    for stage in STAGES:
        taken = [(seconds[stage], totals[precision]) for precision, (seconds, _) in found.items()]
        rows.append((stage, *(text for one, total in taken for text in (f"{1000 * one:.0f}", f"{one / total:.1%}"))))
    rows.append(("in all", *(text for total in totals.values() for text in (f"{1000 * total:.0f}", "100.0%"))))
    seen = next(iter(found.values()))[1]
    title = f"Stages of the predictor: ACC-UNet, width {options.width}, {_describe(seen)} in batches of {BATCH}"
    columns = ("", "float32 ms", "share", "bfloat16 ms", "share of it")
    caption = "One after the other; a run over many volumes reads and writes while the network works on another one."
    report.table(title, columns, rows, caption)


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "memory": _measure_memory,
    "throughput": _measure_throughput,
    "speed": _measure_speed,
    "growth": _measure_growth,
    "stages": _measure_stages,
}


def _networks(forms: tuple[str, ...], shape: tuple[int, ...], options: argparse.Namespace) -> list[nn.Module]:
    """The forms of ACC-UNet with the same weights, for slices of one channel."""
    cases = [Case(form, EVALUATION, (BATCH, 1, *shape[:2]), options.width, device=options.device) for form in forms]
    weights = random_weights(cases[0])
    return [make_network(case, weights).eval() for case in cases]


def _bundle_and_image(folder: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """A bundle of the folded network, and a file that it sees in the size of *speed*."""
    shape = options.sizes["speed"]
    case = Case("folded", EVALUATION, (BATCH, 1, *shape[:2]), options.width, device=options.device)
    bundle = make_bundle(folder / "bundle", options.width, BATCH, random_weights(case))
    return bundle, write_image(folder / "image.nii.gz", shape)


def _volume(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))


def _slices(volume: Tensor) -> Tensor:
    """(1, 1, X, Y, Z) → (Z, 1, X, Y), contiguous."""
    return volume[0].movedim(-1, 0).contiguous()


def _timed(runs: dict[object, Callable[[], object]], options: argparse.Namespace) -> dict[object, Timing]:
    with torch.inference_mode():
        for run in runs.values():
            run()
        return take_turns(runs, options.repeats, options.device)


def _check_equal(inferer: MonaiSliceInferer, literal: nn.Module, folded: nn.Module, volume: Tensor) -> None:
    """A comparison of speed means nothing if the outputs differ."""
    ours = SliceInferer(spatial_dim=2, sw_batch_size=BATCH, output="logits")
    with torch.inference_mode():
        expected, found = inferer(volume, literal), ours(volume, folded)
    difference = float((found - expected).abs().max() / (expected.max() - expected.min()))
    if not difference <= CLOSE:
        raise SystemExit(f"the folded form through our inferer differs from the literal one by {difference:.1e}")


def _times(timing: Timing) -> tuple[str, str]:
    return f"{1000 * timing.median:.0f}", timing.range


def _per_slice(timings: dict[object, Timing], count: int) -> str:
    first = next(iter(timings))
    return f"{timings[count].median / count / (timings[first].median / first):.3f}"


def _describe(shape: tuple[int, int, int]) -> str:
    return "×".join(map(str, shape))


if __name__ == "__main__":
    main()
