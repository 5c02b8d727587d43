"""Does ACC-UNet's cost grow linearly with the number of pixels?

    python benchmarks/scaling.py --width 32 --output scaling.md

Times one image of 256² and one of 512² pixels in turns: 4 times as many pixels should take 4 times as long. Pooling,
convolution and MLFC all work on each pixel's neighbourhood; nothing compares all pixels with all, as attention does.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring.forms import (
    EVALUATION,
    FORMS,
    TRAINING,
    Case,
    make_input,
    make_network,
    multiply_accumulates,
    random_weights,
    run_once,
)
from benchmarks.measuring.memory import Memory, measure_memory
from benchmarks.measuring.options import make_parser, prepare
from benchmarks.measuring.report import Report, describe_machine, mebibytes, ratio
from benchmarks.measuring.timing import Timing, take_turns

MEASURED = (("folded", EVALUATION), ("channels-last", EVALUATION), ("channels-last", TRAINING))
LINEAR = (4.0, 4.6)
"""Ratio of times of 512² to 256² pixels that counts as linear: a large image's maps leave the caches."""


def main() -> None:
    options = _read_options()
    report = Report(options.output)
    report.paragraph(describe_machine(options.device))
    report.paragraph(f"Width {options.width}, one image of 3 channels, {options.repeats} runs of each in turn.")
    small = [Case(form, mode, _shape(options.size), options.width, device=options.device) for form, mode in MEASURED]
    pairs = [(case, dataclasses.replace(case, shape=_shape(2 * options.size))) for case in small]
    memory = {case: measure_memory(case) for pair in pairs for case in pair}
    runs = {case: _warm_run(case) for pair in pairs for case in pair if all(memory[each].fits for each in pair)}
    timings = take_turns(runs, options.repeats, options.device)
    _report(report, options.size, pairs, timings, memory)


def _read_options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=9)
    parser.add_argument("--size", type=int, default=256, help="pixels along each axis of the small image (256)")
    options = parser.parse_args()
    if options.quick:
        options.width, options.size, options.repeats = 4, 32, 1
    prepare(options)
    return options


def _shape(size: int) -> tuple[int, ...]:
    return (1, 3, size, size)


def _warm_run(case: Case) -> partial[object]:
    run = partial(run_once, case, make_network(case, random_weights(case)), make_input(case))
    run()
    return run


def _report(
    report: Report,
    size: int,
    pairs: list[tuple[Case, Case]],
    timings: dict[Case, Timing],
    memory: dict[Case, Memory],
) -> None:
    columns = ("form", f"{size}² ms", f"{2 * size}² ms", "time", "linear", "added memory", "memory", "GMAC")
    rows = []
    for small, large in pairs:
        figures = ("does not fit", "–", "–", "–")
        if large in timings:
            times = [timings[case].median for case in (small, large)]
            linear = "yes" if LINEAR[0] <= times[1] / times[0] <= LINEAR[1] else "no"
            figures = (*(f"{1000 * seconds:.0f}" for seconds in times), ratio(times[1], times[0]), linear)
        grown = ratio(memory[large].added, memory[small].added)
        counted = ratio(multiply_accumulates(large), multiply_accumulates(small))
        title = f"{FORMS[small.form].title}, {small.mode}"
        rows.append((title, *figures, mebibytes(memory[large].added), grown, counted))
    caption = (
        f"Ratios of {2 * size}² against {size}² pixels; added memory is that of {2 * size}². "
        f"“Linear”: the time's ratio lies within {LINEAR[0]}–{LINEAR[1]}."
    )
    report.table(f"{2 * size}² against {size}² pixels", columns, rows, caption)


if __name__ == "__main__":
    main()
