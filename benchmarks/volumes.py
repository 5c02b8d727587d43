"""How fast and how small is reading volumes and writing SEGs, against the libraries that others use?

    python benchmarks/volumes.py --output volumes.md

Makes a CT of 512×512×300 in a temporary folder and reads it, all files in the page cache, by `read_series` with all its
checks, by MONAI's PydicomReader, by SimpleITK, by a plain pydicom loop without checks, and as bytes alone; then smaller
JPEG 2000, JPEG-LS and RLE series; writes a SEG of 400 frames by `write_seg`, which compares it in world coordinates,
and by highdicom alone; reads NIfTI files beside nibabel. What is compared gives the same values, or the run ends with
an error. The candidates take turns, so that a busy moment of the machine hits all of them; medians are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring.parts import some_of

if TYPE_CHECKING:  # processes that decode are spawned and import this file again: nothing heavy above `main`
    from benchmarks.measuring.report import Report
    from benchmarks.measuring.timing import Timing

FULL = {"read": (512, 512, 300), "compressed": (512, 512, 60), "segmentation": (512, 512, 400)}
QUICK = {"read": (128, 128, 24), "compressed": (96, 96, 8), "segmentation": (96, 96, 24)}
"""Rows, columns and slices."""


def main() -> None:
    options = _read_options()
    from benchmarks.measuring.report import Report, describe_machine

    report = Report(options.output)
    report.paragraph(f"{describe_machine('cpu')} {os.cpu_count()} processors; {options.repeats} runs of each in turn.")
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="volumes-") as name:
        folder = Path(name)
        for part, measure in PARTS.items():
            if part in options.parts:
                measure(report, folder, sizes, options.repeats)


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=some_of(PARTS), default=tuple(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each (default 7)")
    parser.add_argument("--output", type=Path, help="Markdown file to write the tables to, too")
    parser.add_argument("--quick", action="store_true", help="small volumes, two runs")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 2
    return options


def _measure_reading(report: Report, folder: Path, sizes: Mapping[str, tuple[int, int, int]], repeats: int) -> None:
    from benchmarks.volume_io.made import write_series
    from benchmarks.volume_io.readers import OURS, SERIES_READERS

    size = sizes["read"]
    series = write_series(folder / "series", *size)
    timings = _take_turns({name: partial(read, series) for name, read in SERIES_READERS.items()}, repeats)
    title = f"Reading {_describe(size)}, uncompressed DICOM"
    report.table(
        title, _columns(OURS), _rows(timings, OURS), "Of the same files, in the page cache; ours with every check."
    )
    _measure_memory(report, series, write_series(folder / "warm", 32, 32, 4), size)


def _measure_memory(report: Report, series: Path, warm: Path, size: tuple[int, int, int]) -> None:
    from benchmarks.measuring.report import mebibytes, ratio
    from benchmarks.volume_io.fresh import added_peak
    from benchmarks.volume_io.readers import BYTES, SERIES_READERS

    array = 4 * size[0] * size[1] * size[2]
    rows = []
    for name in SERIES_READERS:
        if name != BYTES:
            added = added_peak(name, warm, series)
            rows.append((name, mebibytes(added), ratio(added, array)))
    caption = (
        f"Peak of a fresh process above what it takes after its imports; the array as float32: {mebibytes(array)}."
    )
    report.table(f"Memory of reading {_describe(size)}", ("", "added", "array = 1"), rows, caption)


def _measure_compressed(report: Report, folder: Path, sizes: Mapping[str, tuple[int, int, int]], repeats: int) -> None:
    from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

    from benchmarks.volume_io.made import write_series
    from benchmarks.volume_io.readers import COMPRESSED_READERS, ITK, OURS

    size = sizes["compressed"]
    for syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless):
        series = write_series(folder / syntax, *size, syntax)
        runs = {name: partial(read, series) for name, read in COMPRESSED_READERS.items()}
        if syntax == RLELossless:
            del runs[ITK]
        title = f"Reading {_describe(size)}, {syntax.name}"
        caption = "Two workers are two processes, started for each series; their start is in the time."
        report.table(title, _columns(OURS), _rows(_take_turns(runs, repeats), OURS), caption)


def _measure_segmentation(
    report: Report, folder: Path, sizes: Mapping[str, tuple[int, int, int]], repeats: int
) -> None:
    from benchmarks.volume_io.made import body_mask, write_series
    from benchmarks.volume_io.segmentation import HIGHDICOM, stored_pixels, writers

    rows, columns, slices = sizes["segmentation"]
    series = write_series(folder / "segmented", rows, columns, slices)
    runs = writers(series, body_mask((columns, rows, slices)), folder)
    for run in runs.values():
        run()
    if stored_pixels(folder / "ours.dcm") != stored_pixels(folder / "theirs.dcm"):
        raise SystemExit("the two SEGs hold other frames")
    timings = _take_turns(runs, repeats, compare=False)
    caption = "highdicom reads the headers of the source, too; ours then decodes what it wrote and compares it."
    report.table(
        f"Writing a SEG of {slices} frames of {rows}×{columns}", _columns(HIGHDICOM), _rows(timings, HIGHDICOM), caption
    )


def _measure_nifti(report: Report, folder: Path, sizes: Mapping[str, tuple[int, int, int]], repeats: int) -> None:
    from benchmarks.volume_io.made import write_nifti
    from benchmarks.volume_io.readers import NIFTI_READERS, OUR_NIFTI

    rows, columns, slices = sizes["read"]
    paths = write_nifti(folder / "nifti", rows, columns, slices // 3)
    for name, path in paths.items():
        timings = _take_turns({reader: partial(read, path) for reader, read in NIFTI_READERS.items()}, repeats)
        title = f"Reading {_describe((rows, columns, slices // 3))}, {name}"
        report.table(
            title, _columns(OUR_NIFTI), _rows(timings, OUR_NIFTI), "Ours with the file's SHA-256 and the check for NaN."
        )


PARTS: dict[str, Callable[..., None]] = {
    "reading": _measure_reading,
    "compressed": _measure_compressed,
    "segmentation": _measure_segmentation,
    "nifti": _measure_nifti,
}


def _take_turns(runs: Mapping[str, Callable[[], Any]], repeats: int, *, compare: bool = True) -> dict[str, Timing]:
    """Timings; each has run once before, and unless told otherwise has given what the first gave."""
    from benchmarks.measuring.timing import take_turns
    from benchmarks.volume_io.readers import same, values

    if compare:
        first = values(next(iter(runs.values()))())
        for name, run in runs.items():
            result = run()
            if result is not None and not same(first, values(result)):
                raise SystemExit(f"{name} reads other values")
    return take_turns(runs, repeats, "cpu")


def _columns(reference: str) -> tuple[str, ...]:
    return "", "median ms", "fastest–slowest", f"time, {reference} = 1"


def _rows(timings: Mapping[str, Timing], reference: str) -> Iterable[tuple[str, ...]]:
    from benchmarks.measuring.report import ratio

    own = timings[reference].median
    for name, timing in timings.items():
        yield name, f"{1000 * timing.median:.4g}", timing.range, ratio(timing.median, own)


def _describe(size: tuple[int, int, int]) -> str:
    return "×".join(map(str, size))


if __name__ == "__main__":
    main()
