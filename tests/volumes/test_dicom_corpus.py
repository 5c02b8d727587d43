"""The reader over the whole trap corpus: right, or refused with the expected code; never silently wrong."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from accunet_monai.errors import SeriesError
from accunet_monai.volumes import Volume
from accunet_monai.volumes.dicom_series import Series, find_series, read_planes, read_series
from tests.conftest import Require
from tests.corpus import TRAPS, Trap
from tests.corpus.phantom import LPS_RAS, ORIENTATIONS, Found, difference, differences, phantom, plane_difference
from tests.corpus.trap import UPRIGHT

MANY_ENOUGH = 60
"""Distinct traps that the corpus has to hold at least, orientations and forms not counted."""

BOMB_MEMORY_MIB = 2048
"""What a file may cost at most, whatever it claims; the bombs claim 3 GB and more."""

NOTHING_FOUND = {"SERIES_NONE", "SERIES_NOT_IMAGE"}
"""Refusals of a folder in which no series is found at all."""


def over(traps: Sequence[Trap]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trap", traps, ids=lambda trap: trap.id)


@pytest.fixture(scope="session")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Trap], Path]:
    """``source_of(trap)``: the path that the reader is given. Each trap is made once."""
    return cache(lambda trap: trap.make(tmp_path_factory.mktemp("trap")))


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({trap.id for trap in TRAPS}) == len(TRAPS)
    assert len({trap.name for trap in TRAPS}) >= MANY_ENOUGH


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_judge_takes_any_order_of_axes_but_no_flip_swap_shift_or_rounding(orientation: str) -> None:
    stack = phantom(orientation, rows=20, lowest=0.25)
    array, affine = stack.values.transpose(2, 1, 0), stack.affine_ras()
    turn = np.eye(4)[[2, 0, 1, 3]].T
    assert difference(stack, Found(array, affine)) is None
    assert difference(stack, Found(array.transpose(2, 0, 1), affine @ turn)) is None
    for wrong in (array[::-1], array[:, ::-1], array[:, :, ::-1], array.transpose(1, 0, 2), array[..., :-1]):
        assert difference(stack, Found(wrong, affine)) is not None
    for wrong in (np.roll(array, 1, axis=2), np.rint(array), np.where(array == array.max(), 0, array)):
        assert difference(stack, Found(wrong, affine)) is not None
    assert difference(stack, Found(array, affine + 2e-4 * np.eye(4, k=3))) is not None
    assert difference(stack, Found(array, LPS_RAS @ affine)) is not None
    assert differences([stack], [Found(array, affine)] * 2) is not None


@over(TRAPS)
def test_the_whole_is_read_right_or_refused(trap: Trap, source_of: Callable[[Trap], Path]) -> None:
    source = source_of(trap)
    before = peak_mib()
    volume, refusal = outcome_of(trap, source)
    assert peak_mib() - before < BOMB_MEMORY_MIB
    assert {file.name for file in map(Path, trap.made.skipped)} <= skipped_names(trap, source)
    if volume is not None:
        assert trap.may_be_right
        check_volume(volume, trap)
    elif trap.may_be_right and len(trap.made.truth) > 1 and refusal.code == "SERIES_AMBIGUOUS":
        check_parts(trap, source)
    else:
        assert refusal.code in trap.codes, refusal
        assert refusal.series_uid or refusal.path
        for offender in trap.made.offenders:
            assert any(instance.split(" ")[0] == offender for instance in refusal.instances)  # "UID frame 3"


@over(TRAPS)
def test_each_series_found_is_right_or_refused(trap: Trap, source_of: Callable[[Trap], Path]) -> None:
    """The parts, too, are never silently wrong, neither as a grid nor as native planes."""
    for series in found_series(trap, source_of(trap)):
        assert series.describe()
        try:
            volume = read_series(series)
        except SeriesError:
            pass
        else:
            assert series.problem is None
            assert matching(trap, volume) is not None
        try:
            planes = read_planes(series)
        except SeriesError:
            continue
        if trap.made.truth:
            reasons = [
                plane_difference(stack, planes.array, planes.affines_ras, trap.tolerance_mm)
                for stack in (*trap.made.truth, *trap.made.asides)
            ]
            assert None in reasons, reasons


@over([trap for trap in TRAPS if trap.codes and not trap.or_right])
def test_a_refusal_says_the_way_out(trap: Trap, source_of: Callable[[Trap], Path]) -> None:
    _, refusal = outcome_of(trap, source_of(trap))
    assert refusal is not None
    assert refusal.hint


@over([trap for trap in TRAPS if trap.name.startswith("localizer")])
def test_localizers_are_listed_as_a_series_of_their_own(trap: Trap, source_of: Callable[[Trap], Path]) -> None:
    assert len(find_series(source_of(trap))) == 2


@over([trap for trap in TRAPS if trap.planes])
def test_native_planes_are_right_although_the_grid_is_refused(trap: Trap, source_of: Callable[[Trap], Path]) -> None:
    planes = read_planes(source_of(trap))
    (stack,) = trap.made.truth
    assert plane_difference(stack, planes.array, planes.affines_ras, trap.tolerance_mm) is None


@over([trap for trap in TRAPS if trap.valid and trap.case.orientation == UPRIGHT])
def test_what_is_meant_to_be_valid_is_valid(trap: Trap, tmp_path: Path, require: Require) -> None:
    dciodvfy = shutil.which("dciodvfy")
    require("dciodvfy", dciodvfy, "no dciodvfy command (Debian package dicom3tools)")
    trap.make(tmp_path)
    for name in trap.made.files:
        report = subprocess.run([str(dciodvfy), "-new", tmp_path / name], capture_output=True, text=True, check=False)
        assert [line for line in report.stderr.splitlines() if line.startswith("Error")] == []


def check_volume(volume: Volume, trap: Trap) -> None:
    """World content within the tolerances, and the interface: float32 (columns, rows, slices) along the normal."""
    assert len(trap.made.truth) == 1
    stack = trap.made.truth[0]
    assert difference(stack, Found(volume.array, volume.affine_ras), trap.tolerance_mm) is None
    assert volume.array.dtype == np.float32
    assert volume.array.shape == stack.values.shape[::-1]
    if len(stack.values) > 1:
        corner = np.array([*volume.array.shape, 2]) - 1
        assert np.abs((volume.affine_ras - stack.affine_ras()) @ corner).max() <= trap.tolerance_mm * 2
    assert len(volume.provenance["dicom"].frames) == volume.array.shape[2]


def check_parts(trap: Trap, source: Path) -> None:
    parts = [part for part in find_series(source) if part.problem is None]
    matches = [matching(trap, read_series(part)) for part in parts]
    assert sorted(matches, key=str) == list(range(len(trap.made.truth)))


@cache
def outcome_of(trap: Trap, source: Path) -> tuple[Volume | None, SeriesError | None]:
    """The volume or the refusal of the whole; anything else that is raised fails the test."""
    try:
        return read_series(source), None
    except SeriesError as error:
        return None, error


def matching(trap: Trap, volume: Volume) -> int | None:
    """Index of the stack that the volume is, if it is any."""
    found = Found(volume.array, volume.affine_ras)
    stacks = (*trap.made.truth, *trap.made.asides)
    matches = [n for n, stack in enumerate(stacks) if not difference(stack, found, trap.tolerance_mm)]
    return matches[0] if matches else None


def found_series(trap: Trap, source: Path) -> Sequence[Series]:
    try:
        return list(find_series(source))
    except SeriesError as error:
        assert error.code in trap.codes | NOTHING_FOUND  # noqa: PT017
        return []


def skipped_names(trap: Trap, source: Path) -> set[str]:
    return {Path(file.path).name for file in find_series(source).skipped} if trap.made.skipped else set()


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
