"""One case: a made folder with damage that its number decides, and what the readers must hold to when they meet it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from random import Random
from typing import TypeVar

import numpy as np

from accunet_monai.errors import AccunetError, SeriesError
from accunet_monai.volumes import Grid, Volume, find_series, read_grid, read_planes, read_series, read_volume
from tests.fuzzing import dicom_mutations, nifti_mutations
from tests.fuzzing.subjects import ENTRIES, Files, dicom_subjects, nifti_subjects

MAX_BYTES = 1 << 28
"""What a case lets an array take, so that a mutant that honestly holds more than a small machine has is refused."""

READ = "read"

Result = TypeVar("Result")


class InconsistentError(Exception):
    """Two ways to the same thing do not agree."""


@dataclass(frozen=True, order=True)
class Case:
    """The ``index``-th mutant of ``kind`` (dicom, nifti) under ``seed``; always the same files."""

    kind: str
    index: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}"


def subject_of(case: Case) -> str:
    """What is damaged; the subjects take turns."""
    names = list(_subjects(case.kind))
    return names[case.index % len(names)]


def files_of(case: Case) -> dict[str, bytes]:
    """The mutant's files."""
    random = Random(f"{case.kind} {case.index} {case.seed}")
    subjects = _subjects(case.kind)
    files = dict(subjects[subject_of(case)])
    other = random.choice(list(random.choice(list(subjects.values())).values()))
    if case.kind == "nifti":
        return {name: nifti_mutations.mutated(content, other, random) for name, content in files.items()}
    return _damaged_folder(files, other, random)


def check(case: Case, folder: Path) -> str:
    """Writes the files and reads them in every way; gives ``read`` or the refusal's code. All else is an exception."""
    for name, content in files_of(case).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if case.kind == "nifti":
        return _check_nifti(folder / subject_of(case))
    return _check_dicom(folder / ENTRIES.get(subject_of(case), "."))


def prepare() -> None:
    """Makes the subjects, which takes longer than a case."""
    _subjects("dicom")
    _subjects("nifti")


def _subjects(kind: str) -> Mapping[str, Files]:
    return dicom_subjects() if kind == "dicom" else nifti_subjects()


def _damaged_folder(files: dict[str, bytes], other: bytes, random: Random) -> dict[str, bytes]:
    """One file is damaged, or all in the same way; now and then a file is gone, empty, or there twice."""
    names = sorted(files)
    chosen = [random.choice(names)] if random.random() < 0.6 else names
    if "DICOMDIR" in names and random.random() < 0.7:
        chosen = ["DICOMDIR"]
    seed = random.random()
    for name in chosen:
        files[name] = dicom_mutations.mutated(files[name], other, Random(seed))
    name, kind = random.choice(names), random.random()
    if kind < 0.03:
        del files[name]
    elif kind < 0.05:
        files[name] = b""
    elif kind < 0.1:
        files[str(PurePosixPath(name).with_name("copy"))] = files[chosen[0]]
    return files


def _check_dicom(path: Path) -> str:
    volume, code = _attempt(lambda: read_series(path, max_bytes=MAX_BYTES))
    _check_volume(volume)
    _attempt(lambda: read_planes(path, max_bytes=MAX_BYTES))
    found, _ = _attempt(lambda: find_series(path))
    if found is None:
        return code or READ
    if short := [file.reason for file in found.skipped if "MemoryError" in file.reason]:
        raise MemoryError(short[0])
    for series in found[:4]:
        series.describe()
        volume, refusal = _attempt(partial(read_series, series, max_bytes=MAX_BYTES))
        _check_volume(volume)
        _check_problem(series.problem, refusal)
        volume, _ = _attempt(partial(read_series, series, irregular="resample", max_bytes=MAX_BYTES))
        _check_volume(volume)
    return code or READ


def _attempt(read: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """What was read, or the code of the refusal; that memory ran out is no refusal, whatever it was turned into."""
    try:
        return read(), None
    except AccunetError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        return None, error.code


def _check_problem(problem: SeriesError | None, code: str | None) -> None:
    """What ``find_series`` says from headers is what ``read_series`` does, but for the pixels' values."""
    known = problem.code if problem else None
    if known != code and (known is not None or not (code or "").startswith(("PIXEL_", "VOLUME_NONFINITE", "DICOM_"))):
        raise InconsistentError(f"find_series says {known}, read_series {code}")


def _check_volume(volume: Volume | None) -> None:
    if volume is None:
        return
    source = volume.provenance["dicom"]
    if volume.array.dtype != np.float32 or volume.array.nbytes > MAX_BYTES:
        raise InconsistentError(f"{volume} takes {volume.array.nbytes} bytes")
    if not source.resampled and len(source.frames) != volume.shape[2]:
        raise InconsistentError(f"{volume} names {len(source.frames)} frames")


def _check_nifti(path: Path) -> str:
    volume, code = _attempt(lambda: read_volume(path))
    grid, _ = _attempt(lambda: read_grid(path))
    if volume is not None:
        _check_same(volume, grid, read_volume(path, memory_map=True))
    for point in (0, 2):
        mapped = point > 0
        _attempt(lambda: read_volume(path, time_point=point, form="qform", fill_nonfinite=0.0, memory_map=mapped))  # noqa: B023
    return code or READ


def _check_same(volume: Volume, grid: Grid | None, mapped: Volume) -> None:
    if grid is None or grid.shape != volume.shape or not np.array_equal(grid.affine_ras, volume.affine_ras):
        raise InconsistentError(f"read_volume gives {volume}, read_grid {grid}")
    if not np.array_equal(volume.array, mapped.array):
        raise InconsistentError(f"{volume} has other voxels when it is mapped")
