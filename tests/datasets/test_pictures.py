"""The paper's sets are read as their archives have them, and divided as published."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from accunet_monai.datasets import PICTURE_SETS, dataset_digest, picture_cases, read_picture_case
from accunet_monai.datasets.pictures import split_pictures
from accunet_monai.errors import DatasetError
from tests.datasets.made_pictures import COUNT, MAKERS, disc, save


def refusal(code: str, *arguments: object, **more: object) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        picture_cases(*arguments, **more)  # type: ignore[arg-type]
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize("name", PICTURE_SETS)
def test_every_picture_comes_with_its_own_mask(name: str, deeper: bool, tmp_path: Path) -> None:
    """The masks tell the seeds that the pictures were drawn with."""
    MAKERS[name](tmp_path / "as the archive names it" if deeper else tmp_path)
    cases = picture_cases(name, tmp_path)
    drawn = [disc(seed)[1] for seed in range(COUNT + 5)]
    seeds = set()
    for case in cases:
        pixels, mask = read_picture_case(case, PICTURE_SETS[name].threshold)
        assert (pixels.dtype, pixels.shape, mask.dtype, mask.shape) == (np.float32, (3, 32, 32), np.uint8, (1, 32, 32))
        assert set(np.unique(mask)) == {0, 1}
        (seed,) = (seed for seed, expected in enumerate(drawn) if np.array_equal(expected, mask[0]))
        expected = disc(seed)[0]
        grey = np.abs(pixels.mean(0) - (expected.mean(-1) if name in ("glas", "clinicdb") else expected[..., 0]))
        assert name in ("covid", "isic2018") or grey.max() < 1  # a window, and JPEG
        seeds.add(seed)
    assert len(seeds) == len(cases) == (COUNT + 4 if name == "glas" else COUNT)


def test_glands_are_all_foreground_whatever_their_numbers(tmp_path: Path) -> None:
    folder = MAKERS["glas"](tmp_path)
    numbers = np.zeros((32, 32), dtype=np.uint8)
    numbers[:2], numbers[4:6], numbers[8:10] = 1, 2, 200
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([255, 255, 255] + [0, 0, 0] * 255)  # the palette's colours say nothing
    picture.save(folder / "train_1_anno.bmp")
    case = next(case for case in picture_cases("glas", folder) if case["case"] == "train_1")
    assert np.flatnonzero(read_picture_case(case, 0)[1][0].any(1)).tolist() == [0, 1, 4, 5, 8, 9]


def test_glas_knows_its_patients_and_its_own_test_part(tmp_path: Path) -> None:
    MAKERS["glas"](tmp_path)
    cases = {case["case"]: case for case in picture_cases("glas", tmp_path)}
    assert cases["train_1"]["subject"] == cases["train_2"]["subject"] == "patient 0"
    assert cases["train_3"]["subject"] == "patient 1"
    for split in range(3):
        test = picture_cases("glas", tmp_path, "test", split)
        assert {case["case"] for case in test} == {"testA_1", "testA_2", "testB_1", "testB_2"}
    (tmp_path / "Grade.csv").unlink()
    assert {case["subject"] for case in picture_cases("glas", tmp_path)} == set(cases)


def test_png_of_clinicdb_are_read_too(tmp_path: Path) -> None:
    MAKERS["clinicdb"](tmp_path, ending="png")
    case = picture_cases("clinicdb", tmp_path)[0]
    np.testing.assert_array_equal(read_picture_case(case)[1][0], disc(int(case["case"]))[1])


def test_all_masks_of_a_picture_are_joined_and_normal_pictures_left_out(tmp_path: Path) -> None:
    MAKERS["busi"](tmp_path)
    cases = {case["case"]: case for case in picture_cases("busi", tmp_path)}
    first = cases["benign (1)"]
    assert {Path(first[key]).name for key in ("label", "label_2", "label_3")} == {
        "benign (1)_mask.png", "benign (1)_mask_1.png", "benign (1)_mask_2.png",
    }  # fmt: skip
    np.testing.assert_array_equal(read_picture_case(first)[1][0], disc(0)[1])
    assert not any(name.startswith("normal") for name in cases)
    before = dataset_digest(cases.values())
    save(Path(first["label_3"]), np.ones((32, 32), dtype=bool))
    assert dataset_digest(cases.values()) != before  # the third mask counts, too


def test_a_slice_of_the_stack_is_shown_in_the_lung_window(tmp_path: Path) -> None:
    hounsfield = np.zeros((4, 3, 6), dtype=np.float32)  # x, y, slices
    hounsfield[:, 0, 5] = [-2000, -1250, -500, 3000]
    kinds = np.zeros((4, 3, 6), dtype=np.uint8)
    kinds[1, 2, 5], kinds[2, 0, 5] = 3, 1
    for name, array in (("tr_im", hounsfield), ("tr_mask", kinds)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = picture_cases("covid", tmp_path)[5]
    assert (case["case"], case["subject"]) == ("tr_005", "tr_005")
    pixels, mask = read_picture_case(case, 0)
    np.testing.assert_allclose(pixels[:, 0], [[0, 0, 127.5, 255]] * 3)  # level -500, width 1500
    np.testing.assert_allclose(pixels[:, 1:], 255 * 1250 / 1500, rtol=1e-6)
    assert np.argwhere(mask[0]).tolist() == [[0, 2], [2, 1]]  # rows are y


def test_a_grey_picture_is_given_three_times(tmp_path: Path) -> None:
    MAKERS["clinicdb"](tmp_path)
    grey = save(tmp_path / "Original" / "1.tif", np.arange(1024, dtype=np.uint32).reshape(32, 32).astype(np.uint8))
    case = next(case for case in picture_cases("clinicdb", tmp_path) if case["image"] == str(grey))
    pixels, _ = read_picture_case(case)
    assert (pixels == np.asarray(Image.open(grey), dtype=np.float32)).all()


# ----------------------------------------------------------------------------------------------------------------------
# Splits


@pytest.mark.parametrize(("name", "known"), PICTURE_SETS.items())
def test_as_many_pictures_are_tested_as_published(name: str, known: object) -> None:
    published = PICTURE_SETS[name]
    names = [f"{number}" for number in range(published.pictures)]
    if name == "glas":
        parts = [("train", 85), ("testA", 60), ("testB", 20)]
        names = [f"{part}_{number}" for part, count in parts for number in range(1, count + 1)]
        assert len(names) == published.pictures
    split = split_pictures(names, 0, published.official_test)
    assert len(split["test"]) == published.tested
    if name == "glas":
        assert [len(split[part]) for part in ("training", "validation")] == [68, 17]
    else:
        assert len(split["validation"]) == published.tested
        assert len(split["training"]) / published.pictures == pytest.approx(0.6, abs=0.005)


@given(count=st.integers(5, 60), split=st.integers(0, 9), order=st.randoms(use_true_random=False))
def test_a_split_is_a_partition_whatever_the_order(count: int, split: int, order: object) -> None:
    names = [f"n{number}" for number in range(count)]
    shuffled = list(names)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = split_pictures(shuffled, split)
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert parts == split_pictures(names, split)
    assert parts != split_pictures(names, split + 1) or count < 7


def test_parts_of_a_folder_are_apart_and_limited(tmp_path: Path) -> None:
    MAKERS["clinicdb"](tmp_path)
    parts = {part: picture_cases("clinicdb", tmp_path, part, 2) for part in ("training", "validation", "test")}
    assert [len(cases) for cases in parts.values()] == [6, 2, 2]
    assert len({case["case"] for cases in parts.values() for case in cases}) == COUNT
    assert picture_cases("clinicdb", tmp_path, "training", 2, limit=3) == parts["training"][:3]


# ----------------------------------------------------------------------------------------------------------------------
# Refusals


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert "Did you mean 'glas'?" in str(refusal("DATASET_UNKNOWN", "galas", tmp_path))
    assert "Ground Truth" not in str(refusal("DATASET_MISSING", "clinicdb", tmp_path / "nowhere"))
    assert str(tmp_path) in str(refusal("DATASET_MISSING", "busi", tmp_path))
    MAKERS["clinicdb"](tmp_path)
    refusal("SPLIT_INVALID", "clinicdb", tmp_path, "testing")
    (tmp_path / "Ground Truth" / "7.tif").unlink()
    (tmp_path / "Original" / "3.tif").unlink()
    assert "2 pictures lack a mask or masks a picture, e.g. 3, 7." in str(
        refusal("DATASET_FILES", "clinicdb", tmp_path)
    )


def test_too_few_pictures_leave_no_test(tmp_path: Path) -> None:
    MAKERS["clinicdb"](tmp_path, count=2)
    refusal("DATASET_TOO_SMALL", "clinicdb", tmp_path, "test")


def test_a_mask_of_another_size_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    MAKERS["clinicdb"](tmp_path)
    cases = picture_cases("clinicdb", tmp_path)
    save(Path(cases[0]["label"]), np.zeros((32, 31), dtype=np.uint8))
    Path(cases[1]["image"]).write_bytes(b"no picture")
    for case, code in ((cases[0], "LABEL_GRID"), (cases[1], "PICTURE_UNREADABLE")):
        with pytest.raises(DatasetError) as caught:
            read_picture_case(case)
        assert caught.value.code == code
