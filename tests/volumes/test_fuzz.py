"""Damaged files are read or refused, never more: a short run of ``benchmarks/fuzz_volumes.py``, and its own checks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from accunet_monai.volumes import read_series, read_volume
from tests.fuzzing.cases import READ, Case, check, files_of, prepare, subject_of
from tests.fuzzing.dicom_mutations import mutated
from tests.fuzzing.elements import parts_of
from tests.fuzzing.misbehaving import misbehave
from tests.fuzzing.subjects import ENTRIES, dicom_subjects, nifti_subjects
from tests.fuzzing.workers import Limits, run_cases

CASES = [Case("dicom", index) for index in range(150)] + [Case("nifti", index) for index in range(100)]

REFUSED_SUBJECTS = {
    "tilted CT": "GEOM_TILT",
    "time_points.nii": "VOLUME_NOT_3D",
    "picture.nii": "VOLUME_NOT_3D",
    "complex.nii": "VOLUME_COMPLEX",
    "colours.nii": "VOLUME_RGB",
}
"""Whole files that are refused for what they are; all others are read."""


def test_mutants_are_read_or_refused() -> None:
    outcomes = list(run_cases(CASES, check, prepare=prepare))
    assert [(str(outcome.case), outcome.word, outcome.detail) for outcome in outcomes if outcome.failed] == []
    words = Counter(outcome.word for outcome in outcomes)
    # A mutation that always spoils the file at once would test little.
    assert words[READ] > 30
    assert len(words) > 15


@pytest.mark.parametrize("name", [*dicom_subjects(), *nifti_subjects()])
def test_what_is_damaged_is_whole(name: str, tmp_path: Path) -> None:
    files = (dicom_subjects() | nifti_subjects())[name]
    for part, content in files.items():
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).write_bytes(content)
    read = read_series if name in dicom_subjects() else read_volume
    path = tmp_path / name if name in nifti_subjects() else tmp_path / ENTRIES.get(name, ".")
    if name in REFUSED_SUBJECTS:
        with pytest.raises(ValueError, match=REFUSED_SUBJECTS[name]):
            read(path)
    else:
        assert read(path).array.size > 0


@pytest.mark.parametrize("name", sorted(dicom_subjects()))
def test_the_elements_of_a_whole_file_are_found_to_its_end(name: str) -> None:
    for content in dicom_subjects()[name].values():
        parts = parts_of(content)
        assert parts.elements[-1].end == len(parts.body)
        assert parts.deflated or parts.content == content


def test_a_case_is_always_the_same() -> None:
    case = Case("dicom", 7, seed=3)
    assert files_of(case) == files_of(case)
    assert files_of(case) != files_of(Case("dicom", 7, seed=4))
    assert subject_of(case) == subject_of(Case("dicom", 7))


def test_mutations_stand_whatever_they_are_given() -> None:
    """They are used one after the other, so each meets what the others leave."""
    for seed in range(300):
        random = Random(seed)
        content = random.randbytes(random.choice((0, 1, 3, 131, 132, 150, 700)))
        assert isinstance(mutated(content, b"other", random), bytes)


def test_every_kind_of_failure_is_told() -> None:
    """And the next case gets an empty folder and a process that works."""
    cases = ["untyped", "fine", "memory", "slow", "fine", "abort", "exit", "fine"]
    outcomes = list(run_cases(cases, misbehave, limits=Limits(seconds=1.0)))
    words = ["KeyError", "fine", "memory", "hang", "fine", "SIGABRT", "SystemExit", "fine"]
    assert [outcome.word for outcome in outcomes] == words
    assert [outcome.failed for outcome in outcomes] == [word != "fine" for word in words]
    assert "misbehaving.py" in outcomes[3].detail  # the stack at which it hung
