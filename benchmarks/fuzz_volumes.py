"""Can a damaged file do more than be refused? Thousands of mutants, each read in a process with bounds.

    python benchmarks/fuzz_volumes.py --dicom 10000 --nifti 5000 --seed 0 --jobs 2

Small whole files of every kind (tests/fuzzing/subjects.py) get bits flipped, ends cut, lengths and tags and types
changed, elements lost and doubled, sequences torn, and sizes that they do not have. Each mutant is then found and read,
as a grid, as planes and resampled. It must be read, or refused with a typed error. Any other exception, more than 2 GiB
of memory or 10 s of time, the death of the process, and two ways of reading that do not agree are failures. Each is
printed with what runs it again alone, and the exit status is then 1.

    python benchmarks/fuzz_volumes.py --seed 0 --case dicom:1234 --keep mutant/
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzzing.cases import READ, Case, check, files_of, prepare, subject_of
from tests.fuzzing.workers import Limits, Outcome, run_cases

SHOWN = 20
"""So many failures are printed with their tracebacks; all of them are counted."""

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    options = _read_options()
    if options.case and options.keep:
        _keep(options.case, options.keep)
    cases = [options.case] if options.case else list(_cases(options))
    outcomes = _run(cases, options)
    _report(outcomes)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom", type=int, default=2000, help="mutants of DICOM folders (default 2000)")
    parser.add_argument("--nifti", type=int, default=1000, help="mutants of NIfTI files (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other mutants (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seconds", type=float, default=10.0, help="wall time that a case may take (default 10)")
    parser.add_argument("--memory", type=float, default=2.0, help="GiB that its process may take (default 2)")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="only this one")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --case: write its files there")
    options = parser.parse_args()
    if options.keep and not options.case:
        parser.error("--keep needs --case")
    if options.case:
        kind, _, number = options.case.partition(":")
        if kind not in ("dicom", "nifti") or not number.isdecimal():
            parser.error("--case must look like dicom:1234 or nifti:5")
        options.case = Case(kind, int(number), options.seed)
    return options


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    for kind in ("dicom", "nifti"):
        yield from (Case(kind, index, options.seed) for index in range(getattr(options, kind)))


def _run(cases: Sequence[Case], options: argparse.Namespace) -> list[Outcome]:
    limits = Limits(memory=int(options.memory * 2**30), seconds=options.seconds)
    outcomes: list[Outcome] = []
    failed = 0
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task("mutants", total=len(cases), failed=0)
        for outcome in run_cases(cases, check, options.jobs, limits, prepare):
            outcomes.append(outcome)
            if outcome.failed:
                failed += 1
                if failed <= SHOWN:
                    _print_failure(outcome)
            bar.update(task, advance=1, failed=failed)
    return outcomes


def _print_failure(outcome: Outcome) -> None:
    case = outcome.case
    console.print(f"[bold red]{outcome.word}[/]: {subject_of(case)}, after {outcome.seconds:.1f} s")
    console.print(f"python benchmarks/fuzz_volumes.py --seed {case.seed} --case {case} --keep mutant/")
    console.print(outcome.detail, markup=False)


def _report(outcomes: Sequence[Outcome]) -> None:
    for kind in dict.fromkeys(outcome.case.kind for outcome in outcomes):
        of_kind = [outcome for outcome in outcomes if outcome.case.kind == kind]
        _print_words(kind, of_kind)
        _print_subjects(kind, of_kind)
        slowest = max(of_kind, key=lambda outcome: outcome.seconds)
        largest = max(of_kind, key=lambda outcome: outcome.peak)
        console.print(
            f"{len(of_kind)} mutants, {sum(outcome.failed for outcome in of_kind)} failed. "
            f"The slowest took {slowest.seconds:.2f} s ({slowest.case}), "
            f"the largest process {largest.peak / 2**20:.0f} MiB ({largest.case})."
        )


def _print_words(kind: str, outcomes: Sequence[Outcome]) -> None:
    table = Table("outcome", "mutants", title=f"{kind}: what became of them")
    counts = Counter((outcome.failed, outcome.word) for outcome in outcomes)
    for (failed, word), count in sorted(counts.items(), key=lambda item: (not item[0][0], -item[1])):
        table.add_row(f"[bold red]FAILED: {word}[/]" if failed else word, str(count))
    console.print(table)


def _print_subjects(kind: str, outcomes: Sequence[Outcome]) -> None:
    table = Table("subject", "mutants", "read", "refused", "failed", title=f"{kind}: by what was damaged")
    names = Counter(subject_of(outcome.case) for outcome in outcomes)
    for name, count in names.items():
        own = [outcome for outcome in outcomes if subject_of(outcome.case) == name]
        failed = sum(outcome.failed for outcome in own)
        read = sum(outcome.word == READ for outcome in own)
        table.add_row(name, *map(str, (count, read, count - read - failed, failed)))
    console.print(table)


def _keep(case: Case, folder: Path) -> None:
    for name, content in files_of(case).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    console.print(f"The files of {case} are in {folder}.")


if __name__ == "__main__":
    sys.exit(main())
