"""Everything wrong with a dataset is told at once; what is only odd is a warning."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from accunet_monai.datasets import list_dataset
from accunet_monai.errors import DatasetError
from accunet_monai.planning import Examination, examine
from accunet_monai.volumes import read_label_map, read_volume
from tests.planning import made


def examined(path: Path, **options: Any) -> Examination:
    return examine(list_dataset(path), **options)


def problems_of(path: Path, **options: Any) -> list[str]:
    with pytest.raises(DatasetError) as caught:
        examined(path, **options)
    assert caught.value.code == "DATASET_BROKEN"
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def labels(folder: Path, number: int) -> tuple[Path, np.ndarray]:
    path = folder / "labelsTr" / f"case_{number}.nii.gz"
    return path, np.asarray(nib.load(path).dataobj).copy()


def test_facts_of_a_made_case_are_those_it_was_made_with(tmp_path: Path) -> None:
    image, label = made.volume(0)
    turned = np.array([[-2.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])  # LAS: x runs to the left
    folder = made.decathlon(tmp_path)
    made.save(folder / "imagesTr" / "case_0.nii.gz", image, affine=turned)
    made.save(folder / "labelsTr" / "case_0.nii.gz", label, affine=turned)
    fact = examined(folder).facts[0]
    assert (fact.axcodes, fact.shape, fact.spacing) == ("LAS", (20, 24, 18), (2, 1, 3))
    x, y, z = 15 - 5, 6, 12 - 4  # blocks of 10 × 6 × 8 voxels, one behind the other
    assert fact.counts == {0: label.size - 2 * x * y * z, 1: x * y * z, 2: x * y * z}
    assert fact.coverage == pytest.approx((2 * y * z / (24 * 18), x * z / (20 * 18), 2 * x * y / (20 * 24)))
    assert fact.empty == pytest.approx((10 / 20, 12 / 24, 10 / 18))
    assert fact.slices_with[1] == {1: 6, 2: 6}
    assert len(fact.intensities) == 2 * x * y * z
    assert fact.intensities.mean() == pytest.approx(75, abs=1)


def test_all_problems_of_a_broken_dataset_are_told_at_once(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path, cases=9)
    path, label = labels(folder, 0)
    made.save(path, label[:-1])
    path, label = labels(folder, 1)
    made.save(path, label, affine=np.array([[1.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    path, label = labels(folder, 2)
    label[0, 0, :3] = 7
    made.save(path, label)
    (folder / "labelsTr" / "case_3.nii.gz").unlink()
    image, _ = made.volume(4)
    image[1, 1, 1] = np.nan
    made.save(folder / "imagesTr" / "case_4.nii.gz", image)
    made.save(folder / "imagesTr" / "case_5.nii.gz", made.volume(6)[0])  # case 6's image
    made.save(folder / "imagesTr" / "case_7.nii.gz", np.stack([made.volume(7)[0]] * 2, 3))
    path, label = labels(folder, 8)
    made.save(path, label[:, :, ::-1].copy(), affine=np.diag([1.0, 1, -1, 1]))
    split = tmp_path / "split.json"
    leak = {"subjects": {"case_0": "a", "case_1": "a"}, "parts": {}, "folds": [["case_0"], ["case_1"]]}
    split.write_text(json.dumps(leak))
    found = problems_of(folder, split_file=split)
    told = {line.split("]")[0][1:] + line.split("]")[1].split(":")[0]: line for line in found}
    assert set(told) == {
        "SPLIT_LEAK split.json",
        "LABEL_GRID case_0",
        "LABEL_GRID case_1",
        "LABEL_UNDECLARED case_2",
        "FILE_MISSING case_3",
        "VOLUME_NONFINITE case_4",
        "IMAGE_TWICE case_6",
        "VOLUME_NOT_3D case_7",
        "LABEL_GRID case_8",
    }
    assert len(found) == 9
    assert "19 × 24 × 18 on an image of 20 × 24 × 18" in told["LABEL_GRID case_0"]
    assert "up to 4 mm off" in told["LABEL_GRID case_1"]
    assert "value 7 (3 voxels)" in told["LABEL_UNDECLARED case_2"]
    assert "oriented RAI on an image oriented RAS" in told["LABEL_GRID case_8"]


def test_names_given_twice_and_too_few_subjects(tmp_path: Path) -> None:
    path = made.table(tmp_path)
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(["scan_0/t1.nii.gz", "scan_0/mask.nii.gz", "patient_0"])
    assert any(line.startswith("[CASE_TWICE] scan_0_t1: 2 cases") for line in problems_of(path))
    one = made.decathlon(tmp_path / "one", cases=1)
    (line,) = problems_of(one)
    assert line.startswith("[SUBJECTS_TOO_FEW]")


def test_what_is_only_odd_is_a_warning(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path, cases=6)
    path, label = labels(folder, 1)
    made.save(path, label * 0)
    image, label = made.volume(2)
    for part, array in (("imagesTr", image), ("labelsTr", label)):
        made.save(folder / part / "case_2.nii.gz", array, affine=np.diag([-1.0, 1, 1, 1]))
        made.save(folder / part / "case_3.nii.gz", made.volume(3)[part == "labelsTr"], (1, 1, 9))
    angle = np.radians(20)
    oblique = np.eye(4)
    oblique[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    for part, array in zip(("imagesTr", "labelsTr"), made.volume(4), strict=True):
        made.save(folder / part / "case_4.nii.gz", array, affine=oblique)
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"]["3"] = "cyst"
    (folder / "dataset.json").write_text(json.dumps(described))
    found = {(warning.code, warning.case): warning.message for warning in examined(folder).warnings}
    assert set(found) == {
        ("LABEL_EMPTY", "case_1"),
        ("ORIENTATION_MIXED", "dataset"),
        ("SPACING_ODD", "case_3"),
        ("IMAGE_OBLIQUE", "case_4"),
        ("LABEL_ABSENT", "dataset"),
        ("SUBJECTS_FEW", "dataset"),
        ("SUBJECTS_ASSUMED", "dataset"),
    }
    assert "1 × LAS" in found["ORIENTATION_MIXED", "dataset"]
    assert "cyst" in found["LABEL_ABSENT", "dataset"]
    assert "20 degrees" in found["IMAGE_OBLIQUE", "case_4"]


def test_subjects_come_from_the_table_or_from_a_split_file(tmp_path: Path) -> None:
    path = made.table(tmp_path)
    found = examined(path)
    assert [fact.subject for fact in found.facts] == ["patient_0", "patient_0", "patient_1", "patient_1"]
    assert found.listing.labels == {1: "label 1", 2: "label 2"}
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"subjects": {"scan_2_t1": "patient_0"}, "parts": {}}))
    assert [fact.subject for fact in examined(path, split_file=split).facts].count("patient_0") == 3


def test_an_image_of_another_modality_is_left_out_and_names_fit_the_others(test_data: Path) -> None:
    found = examined(test_data / "ct_totalsegmentator")
    assert found.modality == "CT"
    assert [fact.case for fact in found.facts] == ["abdomen_pelvis", "abdomen_upper"]
    assert [case["case"] for case in found.listing.cases] == ["abdomen_pelvis", "abdomen_upper"]
    assert len(found.listing.labels) == 117
    assert ("MODALITY_MIXED", "mr_abdomen") in {(warning.code, warning.case) for warning in found.warnings}


def test_dicom_series_with_segmentation_objects(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "dicom" / "seg_dcmqi"
    table = tmp_path / "cases.csv"
    rows = [
        (folder / "ct-3slice", folder / "seg" / "liver.dcm"),
        (folder / "24x38x3" / "image", folder / "24x38x3" / "label.seg"),
    ]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "case"), *((*row, f"case_{n}") for n, row in enumerate(rows))])
    found = examined(table)
    assert {fact.modality for fact in found.facts} <= {"CT", "MR"}
    liver = read_label_map(folder / "seg" / "liver_seg.nrrd").array  # dcmqi's input, from which the object was made
    assert found.facts[0].counts[1] == int((liver > 0).sum())
    assert found.facts[0].shape == read_volume(folder / "ct-3slice").reoriented("RAS").shape
