"""What do ACC-UNet's MLFC passes cost in time, memory, parameters and operations?

    python benchmarks/mlfc.py --width 32 --shape 2,3,224,224 --output mlfc.md

Runs networks of 0, 1, 3 and 4 passes in turns: evaluation in the folded form, a training step in the channels-last one.
Ratios are against 3 passes, the published number.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring.forms import (
    EVALUATION,
    TRAINING,
    Case,
    make_input,
    make_network,
    multiply_accumulates,
    parameters,
    random_weights,
    run_once,
)
from benchmarks.measuring.memory import Memory, measure_memory
from benchmarks.measuring.options import make_parser, parse_shape, prepare
from benchmarks.measuring.report import Report, describe_machine, mebibytes, ratio
from benchmarks.measuring.timing import Timing, take_turns

PASSES = (0, 1, 3, 4)
PUBLISHED = 3
MEASURED = {EVALUATION: ("Evaluation, folded", "folded"), TRAINING: ("Training step, channels-last", "channels-last")}
COLUMNS = ("passes", "median ms", "fastest–slowest", "time", "added memory", "memory", "parameters", "GMAC an image")


def main() -> None:
    options = _read_options()
    report = Report(options.output)
    report.paragraph(describe_machine(options.device))
    shape = "×".join(map(str, options.shape))
    report.paragraph(f"Width {options.width}, input {shape}, {options.repeats} runs of each network in turn.")
    memory = {case: measure_memory(case) for mode in MEASURED for case in _cases(mode, options)}
    for mode, (title, _) in MEASURED.items():
        cases = _cases(mode, options)
        runs = {case: _warm_run(case) for case in cases if memory[case].fits}
        _report(report, title, cases, take_turns(runs, options.repeats, options.device), memory)


def _read_options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=7)
    parser.add_argument("--shape", type=parse_shape, default=(2, 3, 224, 224), help="N,C,H,W or N,C,X,Y,Z")
    options = parser.parse_args()
    if options.quick:
        options.width, options.shape, options.repeats = 4, (1, 1, 32, 32), 1
    prepare(options)
    return options


def _cases(mode: str, options: argparse.Namespace) -> list[Case]:
    form = MEASURED[mode][1]
    return [Case(form, mode, options.shape, options.width, passes, options.device) for passes in PASSES]


def _warm_run(case: Case) -> partial[object]:
    run = partial(run_once, case, make_network(case, random_weights(case)), make_input(case))
    run()
    return run


def _report(
    report: Report, title: str, cases: list[Case], timings: dict[Case, Timing], memory: dict[Case, Memory]
) -> None:
    published = next(case for case in cases if case.passes == PUBLISHED)
    rows = []
    for case in cases:
        added, size = memory[case].added, f"{parameters(case) / 1e6:.2f} M"
        columns = (mebibytes(added), ratio(added, memory[published].added), size)
        rows.append((str(case.passes), *_times(case, published, timings), *columns, _gmac(case)))
    report.table(title, COLUMNS, rows, f"{title}: ratios against {PUBLISHED} passes, the published number.")


def _times(case: Case, published: Case, timings: dict[Case, Timing]) -> tuple[str, str, str]:
    """Median, range and ratio of medians."""
    if case not in timings:
        return "does not fit", "–", "–"
    timing, reference = timings[case], timings.get(published)
    against = ratio(timing.median, None if reference is None else reference.median)
    return f"{1000 * timing.median:.0f}", timing.range, against


def _gmac(case: Case) -> str:
    return f"{multiply_accumulates(case) / 1e9:.2f}"


if __name__ == "__main__":
    main()
