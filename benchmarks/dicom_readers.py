"""Which DICOM reader is right, which refuses, and which is silently wrong? The trap corpus through five readers.

    python benchmarks/dicom_readers.py --output docs/dicom_traps.md

Each trap of tests/corpus goes through our reader, MONAI's LoadImage with PydicomReader and with ITKReader, SimpleITK's
ImageSeriesReader (each series that it finds in the folder) and dcm2niix, each time in a process of its own. What comes
back is compared in world coordinates, voxel by voxel, with what the files were made of:

- right: all volumes that the files hold, every value in its place, and nothing else;
- refused: nothing came back, and the reader said so;
- warned: something else came back, with a warning that the same reader does not give for a faultless series;
- silently wrong: something else came back without a word;
- crashed: the process died, ran out of time or memory, or raised what no one raises on purpose (an IndexError, say).

Readers that are not installed are left out: itk (``pip install itk``) and dcm2niix (``pip install dcm2niix``).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from monai.transforms import LoadImage
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accunet_monai.errors import AccunetError
from accunet_monai.volumes.dicom_series import find_series, read_series
from tests.corpus import TRAPS, Trap
from tests.corpus.phantom import LPS_RAS, Found, differences

OUTCOMES = ("right", "refused", "warned", "silently wrong", "crashed")
"""From best to worst; a row of several orientations shows each that occurred, and counts as its worst."""

STYLES = dict(zip(OUTCOMES, ("green", "cyan", "yellow", "bold red", "magenta"), strict=True))
ACCIDENTS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError, TypeError)
"""Exceptions by which a program stumbles rather than refuses."""

CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES = 60, 600, 16 << 30
"""Limits of one reader on one trap of a few kilobytes; the address space includes the libraries. Processor time counts:
a busy machine must not make a reader look slow."""

COMPLAINT = re.compile(r"warn|error|unable|missing|skip|inconsisten|variable|differ", re.IGNORECASE)
PLAIN = "plain"


@dataclass(frozen=True)
class Result:
    """What one reader did with one trap: an outcome, why, and the lines in which it complained."""

    outcome: str
    reason: str
    complaints: tuple[str, ...] = ()


def main() -> None:
    options = _read_options()
    _load_itk()
    readers = {name: read for name, (read, present) in READERS.items() if present}
    traps = [trap for trap in TRAPS if trap.name == PLAIN or re.search(options.traps, trap.id)]
    tasks = [(TRAPS.index(trap), name) for trap in traps for name in readers]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        runs = track(pool.map(_run, tasks), "readers on traps", len(tasks), transient=True)
        results = {(TRAPS[index].id, name): result for (index, name), result in zip(tasks, runs, strict=True)}
    results = {key: _warned(results, key) for key in results}
    rows = _rows(traps, results, list(readers))
    Console(width=180).print(_table(rows, list(readers)))
    if options.reasons:
        for (trap, reader), result in results.items():
            if result.outcome not in ("right", "refused"):
                Console(width=180).print(f"{trap} | {reader} | {result.outcome}: {result.reason}", highlight=False)
    if options.output:
        options.output.write_text(_markdown(rows, list(readers), traps), encoding="utf-8")


def read_ours(trap: Trap, folder: Path) -> list[Found]:
    """The whole; where it is ambiguous, each series that can be read."""
    source = folder / trap.made.entry
    try:
        volumes = [read_series(source)]
    except AccunetError as error:
        if error.code != "SERIES_AMBIGUOUS":
            raise
        parts = find_series(source)
        volumes = [read_series(part) for part in parts if part.problem is None]
        problems = [part.problem for part in parts if part.problem is not None]
        if problems and len(volumes) < len(trap.made.truth):
            raise problems[0] from error
    return [Found(volume.array, volume.affine_ras) for volume in volumes]


def read_monai(reader: str) -> Callable[[Trap, Path], list[Found]]:
    """LoadImage on the folder."""

    def read(trap: Trap, folder: Path) -> list[Found]:
        image = LoadImage(reader=reader, image_only=True)(str(folder))
        if image.meta["original_channel_dim"] == -1:
            return []
        return _split(np.asarray(image), np.asarray(image.affine, float))

    return read


def read_simpleitk(trap: Trap, folder: Path) -> list[Found]:
    """Each series that GDCM finds in the folder."""
    found = []
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
        image = reader.Execute()
        if image.GetNumberOfComponentsPerPixel() > 1:
            continue
        if image.GetDimension() == 4 and image.GetSize()[3] == 1:
            image = image[..., 0]
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3] * image.GetSpacing()[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
        found += _split(sitk.GetArrayFromImage(image).T, LPS_RAS @ affine)
    return found


def read_dcm2niix(trap: Trap, folder: Path) -> list[Found]:
    """Every NIfTI file that it writes with its default options."""
    with tempfile.TemporaryDirectory() as output:
        command = [str(shutil.which("dcm2niix")), "-b", "n", "-z", "n", "-o", output, str(folder)]
        done = subprocess.run(command, check=False, timeout=WALL_SECONDS)
        if done.returncode < 0:
            raise MemoryError(f"signal {-done.returncode}")
        images = [nib.load(path) for path in sorted(Path(output).glob("*.nii"))]
        grey = [image for image in images if image.get_data_dtype().names is None]
        return [found for image in grey for found in _split(image.get_fdata(), image.affine)]


READERS: dict[str, tuple[Callable[[Trap, Path], list[Found]], bool]] = {
    "accunet-monai": (read_ours, True),
    "MONAI PydicomReader": (read_monai("PydicomReader"), True),
    "MONAI ITKReader": (read_monai("ITKReader"), find_spec("itk") is not None),
    "SimpleITK": (read_simpleitk, True),
    "dcm2niix": (read_dcm2niix, shutil.which("dcm2niix") is not None),
}


def _load_itk() -> None:
    """The itk package loads its parts when they are first named: once here rather than in each forked process."""
    if find_spec("itk") is not None:
        import itk

        for part in (
            "GDCMSeriesFileNames",
            "GDCMImageIO",
            "ImageSeriesReader",
            "ImageFileReader",
            "array_view_from_image",
        ):
            getattr(itk, part)


def _split(array: np.ndarray, affine: np.ndarray) -> list[Found]:
    """One volume for each index of a fourth axis; a plane is a volume of one slice."""
    if array.ndim == 2:
        array = array[..., None]
    if affine.shape == (4, 4) and not affine[:3, 2].any():
        affine = affine.copy()
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
    if array.ndim == 4:
        return [Found(array[..., n], affine) for n in range(array.shape[3])]
    return [Found(array, affine)]


def _run(task: tuple[int, str]) -> Result:
    """One reader on one trap (by index), in a forked process with limits; all that it prints is kept."""
    trap, (read, _) = TRAPS[task[0]], READERS[task[1]]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "in")
        folder.mkdir()
        trap.make(folder)
        process = multiprocessing.get_context("fork").Process(target=_work, args=(read, trap, Path(work)))
        process.start()
        process.join(WALL_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        answer = Path(work, "answer.json")
        outcome, reason = ("crashed", f"exit status {process.exitcode}")
        if answer.is_file():
            outcome, reason = json.loads(answer.read_text())
        said = Path(work, "said.txt").read_text(errors="replace")
    # Numbers and paths differ from trap to trap; what is complained about does not.
    lines = {re.sub(r"\S*/\S*|[\d.]+", "#", line) for line in said.splitlines() if COMPLAINT.search(line)}
    return Result(outcome, reason, tuple(sorted(lines)))


def _work(read: Callable[[Trap, Path], list[Found]], trap: Trap, work: Path) -> None:
    said = os.open(work / "said.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    used = sum(os.times()[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS, int(used) + CPU_SECONDS))
    warnings.simplefilter("always")
    try:
        found = read(trap, work / "in")
        outcome = _judged(trap, found) if found else ("refused", "no volume")
    except ACCIDENTS as error:
        outcome = ("crashed", f"{type(error).__name__}: {error}")
    except Exception as error:
        outcome = ("refused", f"{type(error).__name__}: {error}")
    (work / "answer.part").write_text(json.dumps(outcome))
    (work / "answer.part").rename(work / "answer.json")


def _judged(trap: Trap, found: Sequence[Found]) -> tuple[str, str]:
    truth, asides = trap.made.truth, trap.made.asides
    if not truth:
        return "silently wrong", "a volume of files that do not say what it is"
    for stacks in ([*truth], [*truth, *asides]):
        reason = differences(stacks, found, trap.tolerance_mm)
        if reason is None:
            return "right", ""
    return "silently wrong", str(reason)


def _warned(results: Mapping[tuple[str, str], Result], key: tuple[str, str]) -> Result:
    """A wrong result with a complaint that no faultless series gets from this reader is no silent one."""
    result = results[key]
    usual = {
        line
        for (trap, reader), other in results.items()
        if reader == key[1] and trap.startswith(f"{PLAIN}-")
        for line in other.complaints
    }
    if result.outcome == "silently wrong" and set(result.complaints) - usual:
        return Result("warned", result.reason, result.complaints)
    return result


Row = tuple[Trap, int, dict[str, Counter[str]]]
"""A trap (of the first orientation), the number of its orientations, and for each reader how often each outcome."""


def _rows(traps: Iterable[Trap], results: Mapping[tuple[str, str], Result], readers: Sequence[str]) -> list[Row]:
    rows: dict[tuple[str, str], list[Trap]] = {}
    for trap in traps:
        rows.setdefault((trap.name, trap.case.form), []).append(trap)
    return [
        (same[0], len(same), {name: Counter(results[trap.id, name].outcome for trap in same) for name in readers})
        for same in rows.values()
    ]


def _expected(trap: Trap) -> str:
    return "right" if not trap.codes else "either" if trap.or_right else "refused"


def _cell(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])


def _worst(counts: Counter[str]) -> str:
    return max(counts, key=OUTCOMES.index)


def _totals(rows: Sequence[Row], readers: Sequence[str]) -> dict[str, list[int]]:
    worst = {name: Counter(_worst(counts[name]) for _, _, counts in rows) for name in readers}
    return {outcome: [worst[name][outcome] for name in readers] for outcome in OUTCOMES}


def _table(rows: Sequence[Row], readers: Sequence[str]) -> Table:
    table = Table("trap", "form", "orientations", "expected", *readers, title="What readers make of the trap corpus")
    for trap, orientations, counts in rows:
        cells = [f"[{STYLES[_worst(counts[name])]}]{_cell(counts[name])}" for name in readers]
        table.add_row(trap.name, trap.case.form, str(orientations), _expected(trap), *cells)
    table.add_section()
    for outcome, numbers in _totals(rows, readers).items():
        table.add_row(f"[{STYLES[outcome]}]{outcome}", "", "", "", *map(str, numbers))
    return table


def _markdown(rows: Sequence[Row], readers: Sequence[str], traps: Sequence[Trap]) -> str:
    names = len({trap.name for trap in traps})
    head = " | ".join(readers)
    lines = [
        PAGE.format(traps=names, cases=len(traps), rows=len(rows), versions=_versions(readers)),
        f"| of {len(rows)} rows | {head} |",
        "|---|" + "---|" * len(readers),
        *(f"| {outcome} | {' | '.join(map(str, numbers))} |" for outcome, numbers in _totals(rows, readers).items()),
        "",
        "## Trap by trap",
        "",
        f"| trap | what is told, and what is true | form | expected | {head} |",
        "|---|---|---|---|" + "---|" * len(readers),
    ]
    for trap, orientations, counts in rows:
        form = trap.case.form + (f" × {orientations} orientations" if orientations > 1 else "")
        cells = " | ".join(_bold(_cell(counts[name])) for name in readers)
        lines.append(f"| {trap.name} | {trap.why} | {form} | {_expected_codes(trap)} | {cells} |")
    return "\n".join(lines) + "\n"


def _bold(cell: str) -> str:
    return f"**{cell}**" if "silently wrong" in cell else cell


def _expected_codes(trap: Trap) -> str:
    codes = " or ".join(f"`{code}`" for code in sorted(trap.codes))
    return "right" if not codes else f"right, or {codes}" if trap.or_right else codes


def _versions(readers: Sequence[str]) -> str:
    found = [f"{name} {version(name)}" for name in ("monai", "pydicom", "simpleitk")]
    if "MONAI ITKReader" in readers:
        found.append(f"itk {version('itk')}")
    if "dcm2niix" in readers:
        said = subprocess.run(["dcm2niix", "--version"], check=False, capture_output=True, text=True).stdout
        found.append(f"dcm2niix {said.split()[-1]}")
    return ", ".join(found)


PAGE = """# DICOM traps

A DICOM series can be well-formed and still not be the volume it looks like. Slices are missing, the gantry was tilted,
two echoes share a series, a slope belongs to one frame alone. A reader that does not look makes a volume of it anyway,
and nobody sees that it is wrong. `tests/corpus` makes {traps} such traps, in {cases} cases: classic (one file a slice)
and enhanced (multi-frame) objects, in eight axis-aligned and two oblique orientations where that can matter. All voxels
of a made series differ, so any flip, swap, shift, interpolation or rounding shows.

Our reader has to be right or to refuse with one of the named codes; `tests/volumes/test_dicom_corpus.py` holds it to
that. What it refuses as a regular grid because planes are tilted, missing or unevenly spaced it reads as native planes.

Where the standard leaves freedom the table says so: "right, or" a code. A tilted stack counts as right where a reader
gives a sheared affine that places each voxel rightly. Padding outside of the scanned circle counts as right where it
becomes air; a reader that leaves the raw padding value in is counted as wrong, although nothing moved.

Made by `python benchmarks/dicom_readers.py --output docs/dicom_traps.md` with {versions}.

## The readers

- accunet-monai: `read_series` on the folder; where it asks which series is meant, on each series that it lists.
- MONAI: `LoadImage` on the folder, with `PydicomReader` and with `ITKReader` first; it falls back on its other readers.
- SimpleITK: `ImageSeriesReader` on each series that GDCM finds in the folder.
- dcm2niix: all files that it writes with its default options.

All readers but ours get the folder itself and look into no folders below it, except dcm2niix. An outcome is one of:

- right: all volumes that the files hold, every value (within 0.001) in its place (within 0.0001 mm), and nothing else.
- refused: nothing came back, and the reader said so.
- warned: something else came back, with a warning that the same reader does not give for a faultless series.
- silently wrong: something else came back without a word. So is one of two volumes, without a word about the other.
  A colour picture that a reader marks as colour counts neither way: it is no volume and does not pretend to be one.
- crashed: the process died, ran out of processor time (60 s) or memory (16 GiB of address space), or raised an
  exception by which a program stumbles (an `IndexError`, `AttributeError` or `TypeError`, say) rather than refuses.

## The counts

{rows} rows: a trap in one form. A row of several orientations counts as its worst one.
"""


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traps", default="", help="only traps whose id matches this regular expression")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many at a time (default: all cores)")
    parser.add_argument("--reasons", action="store_true", help="print why each wrong or crashed result is one")
    parser.add_argument("--output", type=Path, help="write the page of the documentation to this Markdown file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
