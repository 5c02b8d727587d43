"""Folds are by subject, splits that leak are refused, and a digest is of the content alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from accunet_monai.datasets import (
    content_digest,
    dataset_digest,
    decathlon_cases,
    folds_by_subject,
    labelled_cases,
    list_dataset,
    read_split,
)
from accunet_monai.errors import DatasetError
from accunet_monai.planning import examine, make_plan
from accunet_monai.planning.choices import split_of
from tests.planning import made


@given(sizes=st.lists(st.integers(1, 4), min_size=5, max_size=20), folds=st.integers(2, 5), seed=st.integers(0, 5))
def test_every_case_is_in_one_fold_with_all_of_its_subject(sizes: list[int], folds: int, seed: int) -> None:
    cases = [{"case": f"{s}_{n}", "subject": f"s{s}"} for s, size in enumerate(sizes) for n in range(size)]
    dealt = folds_by_subject(cases, folds, seed)
    assert sorted(name for members in dealt for name in members) == sorted(case["case"] for case in cases)
    owners = [{name.split("_")[0] for name in members} for members in dealt]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(sizes)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= max(sizes)
    assert folds_by_subject(cases[::-1], folds, seed) == dealt


def test_other_seeds_give_other_folds_and_too_many_are_refused() -> None:
    cases = [{"case": str(number)} for number in range(10)]
    assert folds_by_subject(cases, 5, 0) != folds_by_subject(cases, 5, 1)
    for folds in (1, 11):
        with pytest.raises(DatasetError) as caught:
            folds_by_subject(cases, folds)
        assert caught.value.code == "FOLDS_TOO_MANY"


def written(folder: Path, **stated: Any) -> Path:
    path = folder / "split.json"
    subjects = {"case_0": "a", "case_1": "a", "case_2": "b", "case_3": "c"}
    path.write_text(json.dumps({"subjects": subjects, "parts": {}} | stated))
    return path


def test_a_fold_is_validated_on_and_all_others_trained_on(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path)
    folds = [["case_2"], ["case_0", "case_1"], ["case_3"]]
    split = written(tmp_path, folds=folds, parts={"training": ["case_3"], "validation": ["case_2"], "test": []})
    for fold, members in enumerate(folds):
        validation = decathlon_cases(folder, split, "validation", fold=fold)
        training = decathlon_cases(folder, split, "training", fold=fold)
        assert [case["case"] for case in validation] == members
        assert sorted(case["case"] for case in training) == sorted({f"case_{n}" for n in range(4)} - set(members))
        assert {c["subject"] for c in validation} & {c["subject"] for c in training} == set()
    assert [case["case"] for case in decathlon_cases(folder, split, "training")] == ["case_3"]
    with pytest.raises(DatasetError, match="3 folds, counted from 0"):
        decathlon_cases(folder, split, "validation", fold=3)


@pytest.mark.parametrize(
    "stated",
    [
        {"folds": [["case_0"], ["case_1", "case_2"]]},
        {"parts": {"training": ["case_0"], "test": ["case_1"]}},
        {"folds": [["case_0", "case_1"], ["case_2"]], "parts": {"test": ["case_2"]}},
    ],
)
def test_a_subject_on_both_sides_is_refused(tmp_path: Path, stated: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=r"subject [ab] is in") as caught:
        read_split(written(tmp_path, **stated))
    assert caught.value.code == "SPLIT_LEAK"


def described(folder: Path, **stated: Any) -> tuple[Path, Path]:
    """A table whose scans 0 and 1 are of patient_0, 2 and 3 of patient_1 and so on, and a split without subjects."""
    return made.table(folder, cases=6), written(folder, **{"subjects": {}, **stated})


@pytest.mark.parametrize(
    "stated",
    [
        {"parts": {"training": ["scan_0_t1", "scan_2_t1"], "validation": ["scan_1_t1"]}},
        {"folds": [["scan_0_t1", "scan_2_t1"], ["scan_1_t1"]], "parts": {"validation": []}},
    ],
)
def test_a_subject_of_the_table_on_both_sides_is_refused(tmp_path: Path, stated: dict[str, Any]) -> None:
    table, split = described(tmp_path, **stated)
    with pytest.raises(DatasetError, match="subject patient_0 is in") as caught:
        labelled_cases(table, split, "validation")
    assert caught.value.code == "SPLIT_LEAK"
    with pytest.raises(DatasetError, match=r"\[SPLIT_LEAK\] split.json: subject patient_0 is in"):
        examine(list_dataset(table), split)
    two = {"scan_0_t1": "left", "scan_1_t1": "right"}  # a split's subjects take the place of the table's
    assert labelled_cases(*described(tmp_path, subjects=two, **stated))


def test_folds_are_drawn_from_training_and_validation_alone(tmp_path: Path) -> None:
    def drawn(parts: dict[str, list[str]]) -> list[str]:
        table, split = described(tmp_path, parts=parts)
        found = examine(list_dataset(table), split)
        made = split_of(found, make_plan(found, 4.0, own={"folds": 2}))
        split.write_text(json.dumps(made))
        assert labelled_cases(table, split, "training", fold=0)  # the split is one that is not refused
        return sorted(name for members in made["folds"] for name in members)

    scans = [f"scan_{number}_t1" for number in range(6)]
    assert drawn({"training": scans[:2], "validation": scans[2:4], "test": scans[4:]}) == scans[:4]
    assert drawn({"training": scans[:2], "validation": scans[2:4]}) == scans[:4]
    assert drawn({"test": scans[4:5]}) == scans[:4]  # the other scan of the held-out patient is held out, too
    assert drawn({}) == scans


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
def test_the_digest_of_a_header_is_of_its_voxels_too(tmp_path: Path, ending: str) -> None:
    image, case = tmp_path / f"a.{ending}", {"case": "a", "image": str(tmp_path / f"a.{ending}")}
    array = np.zeros((2, 3, 4), np.uint8)
    found = []
    for value in (0, 1, 0):
        array[1, 2, 3] = value
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), image)
        found.append((content_digest(image), dataset_digest([case])))
    assert found[0] == found[2]
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]
    whole = tmp_path / "a.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), whole)
    assert content_digest(whole) == hashlib.sha256(whole.read_bytes()).hexdigest()


def test_the_digest_is_of_names_and_content(tmp_path: Path) -> None:
    first = made.decathlon(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    cases, copies = decathlon_cases(first), decathlon_cases(tmp_path / "second")
    digest = dataset_digest(cases)
    assert len(digest) == 64
    assert dataset_digest(copies[::-1]) == digest
    assert dataset_digest(decathlon_cases(first, label_key="reference")) == digest
    assert dataset_digest(cases[1:]) != digest
    assert dataset_digest([{**cases[0], "case": "renamed"}, *cases[1:]]) != digest
    _, label = made.volume(1)
    label[0, 0, 0] = 2
    made.save(tmp_path / "second" / "labelsTr" / "case_1.nii.gz", label)
    assert dataset_digest(copies) != digest


def test_a_folders_digest_knows_its_files_by_name(tmp_path: Path) -> None:
    for folder, names in (("a", "xy"), ("b", "xy"), ("c", "yx")):
        (tmp_path / folder).mkdir()
        for name, content in zip(names, ("1", "2"), strict=True):
            (tmp_path / folder / name).write_text(content)
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b") != content_digest(tmp_path / "c")
