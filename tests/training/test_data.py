"""Cases, splits and slices."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from accunet_monai.errors import DatasetError
from accunet_monai.training import AugmentedBatch, SliceDataset, decathlon_cases, download_decathlon
from accunet_monai.training.slices import Pick
from accunet_monai.transforms import LoadLabelMapd, LoadVolumed

PREPROCESSING = Compose([LoadVolumed("image"), LoadLabelMapd("label", allow_missing_keys=True)])


def write_case(folder: Path, name: str, image: np.ndarray, label: np.ndarray) -> dict[str, str]:
    """Write image and label, return the entry of dataset.json."""
    for part, array in (("imagesTr", image.astype(np.float32)), ("labelsTr", label.astype(np.uint8))):
        (folder / part).mkdir(exist_ok=True, parents=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / part / f"{name}.nii.gz")
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three cases whose voxels encode their position: value = 100 x + 10 y + z, label = x."""
    entries = []
    for number in range(3):
        x, y, z = np.meshgrid(np.arange(3), np.arange(4), np.arange(5), indexing="ij")
        entries.append(write_case(tmp_path, f"case_{number}", 1000 * number + 100 * x + 10 * y + z, x))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    return tmp_path


def write_split(folder: Path, **parts: Any) -> Path:
    path = folder / "split.json"
    path.write_text(json.dumps({"subjects": {"case_0": "a", "case_1": "a", "case_2": "b"}, "parts": parts}))
    return path


def test_cases_of_a_part_in_the_order_of_the_split(dataset: Path) -> None:
    split = write_split(dataset, training=["case_1", "case_0"], validation=["case_2"])
    assert [case["case"] for case in decathlon_cases(dataset, split, "training")] == ["case_1", "case_0"]
    assert [case["case"] for case in decathlon_cases(dataset, split, "training", limit=1)] == ["case_1"]
    assert [case["case"] for case in decathlon_cases(dataset)] == ["case_0", "case_1", "case_2"]
    assert "reference" in decathlon_cases(dataset, label_key="reference")[0]


def test_a_subject_in_two_parts_is_refused(dataset: Path) -> None:
    split = write_split(dataset, training=["case_0"], validation=["case_1", "case_2"])
    with pytest.raises(DatasetError, match="subject a is in 'training' and in 'validation'") as caught:
        decathlon_cases(dataset, split, "training")
    assert caught.value.code == "SPLIT_LEAK"


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "DATASET_MISSING"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "DATASET_INVALID"),
        (lambda folder: (folder / "dataset.json").write_text("[]"), "DATASET_INVALID"),
        (lambda folder: (folder / "dataset.json").write_text('{"training": []}'), "DATASET_INVALID"),
        (lambda folder: (folder / "labelsTr" / "case_1.nii.gz").unlink(), "DATASET_FILES"),
    ],
)
def test_broken_datasets_are_refused(dataset: Path, damage: Any, code: str) -> None:
    damage(dataset)
    with pytest.raises(DatasetError) as caught:
        decathlon_cases(dataset)
    assert caught.value.code == code
    assert str(dataset) in str(caught.value)


def test_a_split_that_names_unknown_cases_or_parts_is_refused(dataset: Path) -> None:
    split = write_split(dataset, training=["case_0", "case_9"])
    for part, what in (("training", "case_9"), ("testing", "testing")):
        with pytest.raises(DatasetError, match=what) as caught:
            decathlon_cases(dataset, split, part)
        assert caught.value.code == "SPLIT_INVALID"
    split.write_text(json.dumps({"subjects": ["case_0"], "parts": {"training": ["case_0"]}}))
    with pytest.raises(DatasetError, match="subjects must be a mapping"):
        decathlon_cases(dataset, split, "training")
    with pytest.raises(DatasetError, match="without a split file"):
        decathlon_cases(dataset, None, "training")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_each_axis_with_their_neighbours(dataset: Path, axis: int) -> None:
    shape = [3, 4, 5]
    plane = [size for number, size in enumerate(shape) if number != axis]
    cases = decathlon_cases(dataset, limit=2)
    slices = SliceDataset(cases, PREPROCESSING, plane, spatial_dim=axis, context_slices=1, progress=False)
    assert len(slices) == 2 * shape[axis]
    x, y, z = np.meshgrid(np.arange(3), np.arange(4), np.arange(5), indexing="ij")
    volume = torch.tensor(np.moveaxis(1000.0 + 100 * x + 10 * y + z, axis, 0), dtype=torch.float32)
    label = torch.tensor(np.moveaxis(x, axis, 0))
    for position in range(shape[axis]):
        item = slices[shape[axis] + position]  # of the second case
        around = [max(position - 1, 0), position, min(position + 1, shape[axis] - 1)]
        assert torch.equal(item["image"], volume[around])
        assert torch.equal(item["label"][0], label[position])


@pytest.mark.parametrize("mirror", [(0,), (1, 2)])
def test_a_mirrored_slice_is_that_of_the_mirrored_volume(mirror: tuple[int, ...]) -> None:
    """Of every view, with neighbours and label, of several channels; each axis for itself in half of the draws."""
    shape = (4, 6, 8)
    place = np.arange(np.prod(shape)).reshape(shape)  # each voxel tells where it was
    case = {"image": np.stack([place, -place]).astype(np.float32), "label": place[np.newaxis]}
    arguments: dict[str, Any] = {"spatial_dim": (0, 1, 2), "context_slices": 1, "progress": False}
    slices = SliceDataset([case], dict, shape, mirror=mirror, seed=3, **arguments)
    chosen = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations(mirror, n)]
    every = {}
    for axes in chosen:
        flipped = {key: np.flip(array, [axis + 1 for axis in axes]) for key, array in case.items()}
        every[axes] = SliceDataset([flipped], dict, shape, **arguments)
    for index in (0, 5, 12):  # the first of x, the second of y, the third of z
        counts: Counter[tuple[int, ...]] = Counter()
        for draw in range(400):
            item, again = slices[Pick(index, draw)], slices[Pick(index, draw)]
            assert all(torch.equal(item[key], again[key]) for key in ("image", "label"))
            first, last = (sum(shape[:dim]) for dim in (slices.spatial_dim(index), slices.spatial_dim(index) + 1))
            found = [
                axes
                for axes in chosen
                for other in [first + last - 1 - index if slices.spatial_dim(index) in axes else index]
                if all(torch.equal(item[key], every[axes][other][key]) for key in ("image", "label"))
            ]
            assert len(found) == 1
            counts[found[0]] += 1
        expected = 400 / len(chosen)
        assert all(abs(counts[axes] - expected) < 5 * expected**0.5 for axes in chosen)


def test_nothing_is_mirrored_unasked_and_the_draw_decides_not_the_slice() -> None:
    place = np.arange(4 * 6 * 8, dtype=np.float32).reshape(1, 4, 6, 8)
    case = {"image": place, "label": place.astype(np.int64)}
    plain = SliceDataset([case], dict, [6, 8], 0, progress=False)
    assert all(torch.equal(plain[Pick(1, draw)]["image"][0], torch.tensor(place[0, 1])) for draw in range(50))
    mirrored = SliceDataset([case], dict, [6, 8], 0, progress=False, mirror=[1])
    told = [
        [bool(mirrored[Pick(index, draw)]["image"][0, 0, 0] != place[0, index, 0, 0]) for draw in range(64)]
        for index in (0, 3)
    ]
    assert told[0] == told[1]
    assert {True, False} == set(told[0])


def test_small_slices_are_padded_by_their_edges_and_large_ones_cropped(dataset: Path) -> None:
    cases = decathlon_cases(dataset, limit=1)
    padded = SliceDataset(cases, PREPROCESSING, [7, 8], spatial_dim=0, progress=False)[2]
    assert torch.equal(padded["image"][0, :, 3], torch.tensor([202.0, 202.0, 212.0, 222.0, 232.0, 232.0, 232.0]) + 0)
    assert torch.equal(padded["image"][0, 1], torch.tensor([200.0, 200.0, 201.0, 202.0, 203.0, 204.0, 204.0, 204.0]))
    assert (padded["label"] == 2).all()
    corners = set()
    slices = SliceDataset(cases, PREPROCESSING, [2, 2], spatial_dim=0, progress=False)
    for draw in range(200):
        image = slices[Pick(0, draw)]["image"][0]
        assert torch.equal(slices[Pick(0, draw)]["image"][0], image)
        assert torch.equal(image - image[0, 0], torch.tensor([[0.0, 1.0], [10.0, 11.0]]))
        corners.add(float(image[0, 0]))
    assert corners == {10.0 * row + column for row in range(3) for column in range(4)}


def test_every_slice_knows_its_labels(dataset: Path) -> None:
    cases = decathlon_cases(dataset, limit=2)
    across = SliceDataset(cases, PREPROCESSING, [4, 5], spatial_dim=0, progress=False)  # the label is x
    assert [across.labels(index) for index in range(6)] == [set(), {1}, {2}] * 2
    along = SliceDataset(cases, PREPROCESSING, [3, 4], spatial_dim=2, progress=False)
    assert [along.labels(index) for index in range(10)] == [{1, 2}] * 10


def test_image_and_label_of_different_size_are_refused(tmp_path: Path) -> None:
    entry = write_case(tmp_path, "odd", np.zeros((3, 4, 5)), np.zeros((3, 4, 6)))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(DatasetError, match=r"\(3, 4, 5\) and \(3, 4, 6\)") as caught:
        SliceDataset(decathlon_cases(tmp_path), PREPROCESSING, [4, 4], progress=False)
    assert caught.value.code == "LABEL_GRID"


def test_the_batch_is_augmented_and_channels_last() -> None:
    batch = {"image": torch.zeros(2, 3, 8, 8), "label": torch.ones(2, 1, 8, 8, dtype=torch.long)}

    def told(image: torch.Tensor, label: torch.Tensor, draw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image + draw.reshape(-1, 1, 1, 1), label

    image, label = AugmentedBatch(told)({**batch, "draw": torch.tensor([4, 9])}, "cpu")  # type: ignore[arg-type]
    assert (image[0] == 4).all()
    assert (image[1] == 9).all()
    assert torch.equal(label, batch["label"])
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_download_leaves_a_dataset_alone_and_names_the_folder_it_needs(dataset: Path, tmp_path: Path) -> None:
    before = (dataset / "dataset.json").read_bytes()
    download_decathlon(dataset, "Task04_Hippocampus")
    assert (dataset / "dataset.json").read_bytes() == before
    with pytest.raises(DatasetError, match="Task04_Hippocampus") as caught:
        download_decathlon(tmp_path / "elsewhere", "Task04_Hippocampus")
    assert caught.value.code == "DATASET_FOLDER_NAME"


@pytest.mark.parametrize(
    "affine", [np.diag([-1.0, 1, 1, 1]), np.array([[1.0, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])]
)
def test_a_label_that_does_not_lie_on_its_image_is_refused(dataset: Path, affine: np.ndarray) -> None:
    path = dataset / "labelsTr" / "case_1.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), affine), path)
    with pytest.raises(DatasetError, match="case_1") as caught:
        decathlon_cases(dataset)
    assert caught.value.code == "LABEL_GRID"


def test_regions_that_overlap_are_sliced_counted_and_looked_for(tmp_path: Path) -> None:
    whole, core = np.zeros((2, 6, 6, 4), np.uint8)
    whole[1:5, 1:5, 1:3], core[2, 3, 2] = 1, 1
    case = {"image": np.zeros((1, 6, 6, 4), np.float32), "label": np.stack([whole, core])}
    for cache in (None, tmp_path):
        slices = SliceDataset([case], dict, [2, 2], spatial_dim=2, progress=False, cache_dir=cache)
        assert [slices.labels(index) for index in range(4)] == [set(), {1}, {1, 2}, set()]
        for draw in range(20):
            label = slices[Pick(2, draw, label=2)]["label"]
            assert label.shape == (2, 2, 2)
            assert label.flatten(1).sum(1).tolist()[1] == 1  # the core's one pixel is always in view
    assert [len(SliceDataset([case], dict, [6, 6], 2, skip_empty=True, progress=False))] == [2]


def test_the_ignored_label_is_given_out_and_not_looked_for(dataset: Path) -> None:
    slices = SliceDataset(decathlon_cases(dataset, limit=1), PREPROCESSING, [4, 5], 0, ignore_label=2, progress=False)
    assert [slices.labels(index) for index in range(3)] == [set(), {1}, set()]  # the label is x
    assert (slices[2]["label"] == 2).all()
