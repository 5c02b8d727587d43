"""Every layout lists its cases, labels and channels; what cannot be used is refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accunet_monai.datasets import dataset_digest, labelled_cases, list_dataset
from accunet_monai.errors import DatasetError
from tests.planning import made


def test_the_decathlons_layout(tmp_path: Path) -> None:
    listing = list_dataset(made.decathlon(tmp_path))
    assert (listing.layout, listing.labels, listing.channels) == ("Decathlon", {1: "liver", 2: "tumour"}, ("MRI",))
    assert [case["case"] for case in listing.cases] == ["case_0", "case_1", "case_2", "case_3"]
    assert listing.licence == "CC0-1.0"
    assert listing.ignore_label is None


def test_nnunets_layout_with_its_ignore_label(tmp_path: Path) -> None:
    listing = list_dataset(made.nnunet(tmp_path))
    assert (listing.layout, listing.labels) == ("nnU-Net raw", {1: "kidney_left", 2: "tumour"})
    assert listing.ignore_label == 3
    assert listing.channels == ("T1",)
    (first, *_) = labelled_cases(tmp_path)
    assert first["case"] == "made_000"
    assert Path(first["image"]).name == "made_000_0000.nii.gz"
    assert Path(first["label"]) == tmp_path / "labelsTr" / "made_000.nii.gz"


def test_nnunets_first_version_lists_images_without_their_channel(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path, cases=1)
    (folder / "imagesTr" / "case_0.nii.gz").rename(folder / "imagesTr" / "case_0_0000.nii.gz")
    (case,) = labelled_cases(folder)
    assert case["case"] == "case_0"
    assert Path(case["image"]).name == "case_0_0000.nii.gz"


def test_a_table_with_subjects_and_names_beside_it(tmp_path: Path) -> None:
    path = made.table(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"1": "cortex", "2": "medulla"}))
    listing = list_dataset(path)
    assert listing.labels == {1: "cortex", 2: "medulla"}
    found = [(case["case"], case["subject"]) for case in listing.cases]
    assert found == [(f"scan_{n}_t1", f"patient_{n // 2}") for n in range(4)]
    assert Path(labelled_cases(path)[3]["label"]) == tmp_path / "scan_3" / "mask.nii.gz"


def test_case_folders_with_groups_of_names(test_data: Path) -> None:
    listing = list_dataset(test_data / "ct_totalsegmentator")
    assert [case["case"] for case in listing.cases] == ["abdomen_pelvis", "abdomen_upper", "mr_abdomen"]
    assert listing.names["total (CT)"][5] == listing.names["total_mr (MR)"][5] == "liver"


def test_channels_and_regions_as_nnunet_has_them(tmp_path: Path) -> None:
    listing = list_dataset(made.regions(tmp_path))
    assert listing.channels == ("T1", "FLAIR")
    assert [(region.name, region.values, region.label) for region in listing.regions] == [
        ("whole tumour", (1, 2, 3), 1),
        ("core", (2, 3), 2),
        ("enhancing", (3,), 3),
    ]
    assert listing.labels == {1: "whole tumour only", 2: "core only", 3: "enhancing"}
    first = labelled_cases(tmp_path)[0]
    names = {key: Path(first[key]).name for key in ("image", "image_1", "label")}
    assert names == {"image": "made_000_0000.nii.gz", "image_1": "made_000_0001.nii.gz", "label": "made_000.nii.gz"}
    before = dataset_digest([first])
    made.save(Path(first["image_1"]), made.volume(9)[0])
    assert dataset_digest([first]) != before  # the second channel is data, too
    Path(first["image_1"]).unlink()
    with pytest.raises(DatasetError, match="made_000_0001") as caught:
        labelled_cases(tmp_path)
    assert caught.value.code == "DATASET_FILES"


def without_order(folder: Path) -> Path:
    described = json.loads((folder / "dataset.json").read_text())
    del described["regions_class_order"]
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def one_file_an_organ(folder: Path) -> Path:
    made.save(folder / "s0001" / "ct.nii.gz", made.volume(0)[0])
    made.save(folder / "s0001" / "segmentations" / "liver.nii.gz", made.volume(0)[1])
    return folder


def with_text(name: str, text: str) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name if name.endswith(".csv") else folder

    return written


@pytest.mark.parametrize(
    ("make", "code", "told"),
    [
        (lambda folder: folder / "nowhere", "DATASET_MISSING", "nowhere"),
        (lambda folder: folder, "DATASET_LAYOUT", "columns image and label"),
        (one_file_an_organ, "DATASET_LAYOUT", "--ml"),
        (lambda folder: without_order(made.regions(folder)), "DATASET_REGIONS", "regions_class_order"),
        (with_text("cases.csv", "path,mask\na,b\n"), "DATASET_INVALID", "found mask, path"),
        (with_text("cases.csv", ""), "DATASET_INVALID", "found none"),
        (with_text("dataset.json", "{"), "DATASET_INVALID", "dataset.json"),
        (with_text("dataset.json", "[]"), "DATASET_INVALID", "dataset.json"),
        (with_text("dataset.json", '{"channel_names": 3}'), "DATASET_INVALID", "dataset.json"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, make: Any, code: str, told: str) -> None:
    dataset = make(tmp_path)
    with pytest.raises(DatasetError) as caught:
        list_dataset(dataset)
    assert caught.value.code == code
    assert told in str(caught.value)
