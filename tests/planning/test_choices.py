"""Each choice follows from the facts it names, and can be made by the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accunet_monai.datasets import list_dataset
from accunet_monai.errors import DatasetError
from accunet_monai.planning import Plan, examine, make_plan
from accunet_monai.planning.choices import split_of
from accunet_monai.planning.memory import largest_batch, training_bytes
from tests.planning import made


def planned(path: Path, memory: float = 4.0, split: Path | None = None, gpu: bool = False, **own: Any) -> Plan:
    return make_plan(examine(list_dataset(path), split), memory, gpu=gpu, own=own)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_sliced_as_they_were_taken(tmp_path: Path, axis: int) -> None:
    spacing = [0.8, 0.8, 0.8]
    spacing[axis] = 4.0
    plan = planned(made.decathlon(tmp_path, spacings=[spacing]))
    assert plan["slicing_axis"] == axis
    assert plan["context_slices"] == 0  # 4 mm are five pixels
    assert plan["in_plane_spacing"] is None


def test_cubes_are_sliced_where_a_slice_shows_most(tmp_path: Path, test_data: Path) -> None:
    plan = planned(made.decathlon(tmp_path))  # 2 · 6 · 8 of 24 × 18, 10 · 8 of 20 × 18, 2 · 10 · 6 of 20 × 24 pixels
    assert plan["slicing_axis"] == 2
    assert plan["roi_size"] == [32, 32]
    assert plan["context_slices"] == 1


def test_spacings_that_differ_are_resampled_to_their_median(tmp_path: Path) -> None:
    spacings = [(1.0, 1.0, 3.0), (1.5, 1.5, 3.0), (2.0, 2.0, 3.0)]
    plan = planned(made.decathlon(tmp_path, cases=3, spacings=spacings))
    assert plan["in_plane_spacing"] == [1.5, 1.5]
    assert plan["roi_size"] == [32, 32]  # 24 pixels of 2 mm are 32 of 1.5 mm


def test_large_planes_are_cropped(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path, cases=2)
    for number in range(2):
        for part, array in zip(("imagesTr", "labelsTr"), made.volume(number, (340, 200, 4)), strict=True):
            made.save(folder / part / f"case_{number}.nii.gz", array, (1, 1, 5))
    plan = planned(folder)
    assert plan["roi_size"] == [256, 208]


def test_a_ct_window_is_of_the_labelled_voxels(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path, ct=True)
    plan = planned(folder)
    values = np.concatenate([made.volume(n, ct=True)[0][made.volume(n, ct=True)[1] > 0] for n in range(4)])
    assert plan["modality"] == "CT"
    assert plan["window"] == [round(float(v)) for v in np.percentile(values, [0.5, 99.5])]
    assert plan["normalisation"]["mean"] == pytest.approx(75, abs=1)
    assert planned(made.decathlon(tmp_path / "mr"))["window"] == [0.5, 99.5]


def test_memory_decides_width_and_batch(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path)
    sizes = {memory: planned(folder, memory) for memory in (0.05, 0.1, 0.4, 4.0)}
    widths = [plan["width"] for plan in sizes.values()]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (4, 16)
    assert planned(folder, 4.0, gpu=True)["width"] == 32
    for memory, plan in sizes.items():
        taken = training_bytes(plan["batch_size"], *plan["roi_size"], plan["width"], 3, 3)
        assert taken <= memory * 2**30
    with pytest.raises(DatasetError, match="one slice of 32 × 32") as caught:
        planned(folder, 0.001)
    assert caught.value.code == "PLAN_MEMORY"


@pytest.mark.parametrize(
    ("width", "batch", "size", "measured"),
    [(32, 2, 224, 4882), (16, 8, 64, 866), (8, 8, 128, 1703), (32, 2, 128, 1726), (4, 8, 64, 232)],
)
def test_the_memory_of_a_step_is_what_was_measured(width: int, batch: int, size: int, measured: int) -> None:
    """MiB above what is resident, as benchmarks/network.py measures them; a plan may say more, not less."""
    planned = training_bytes(batch, size, size, width, 3, 1) / 2**20
    assert 0.99 * measured < planned < 1.3 * measured


def test_the_largest_batch_is_what_fits() -> None:
    taken = training_bytes(8, 64, 48, 16, 3, 3)
    assert largest_batch(taken, 64, 48, 16, 3, 3, most=16) == 8
    assert largest_batch(taken - 1, 64, 48, 16, 3, 3, most=16) == 4
    assert largest_batch(100 * taken, 64, 48, 16, 3, 3, most=16) == 16
    assert largest_batch(2**20, 64, 48, 16, 3, 3, most=16) == 0


def test_rare_labels_are_balanced_and_sides_are_not_mirrored(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path)
    plan = planned(folder)
    assert (plan["balance"], plan["mirror_left_right"]) == (False, True)
    for number in range(4):
        _, label = made.volume(number)
        label[label == 2] = 0
        label[10, 10, 9] = 2
        made.save(folder / "labelsTr" / f"case_{number}.nii.gz", label)
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"]["1"] = "Left kidney"
    (folder / "dataset.json").write_text(json.dumps(described))
    plan = planned(folder)
    assert (plan["balance"], plan["mirror_left_right"]) == (True, False)


def test_own_choices_are_followed_by_those_that_depend_on_them(tmp_path: Path) -> None:
    folder = made.decathlon(tmp_path)
    plan = planned(folder, slicing_axis=0, width=2, max_epochs=3)
    assert (plan["slicing_axis"], plan["width"], plan["max_epochs"]) == (0, 2, 3)
    assert plan["roi_size"] == [32, 32]
    (width,) = (choice for choice in plan.choices if choice.key == "width")
    assert width.reason.startswith("set by you; the plan had 16")
    with pytest.raises(DatasetError, match="Did you mean 'batch_size'") as caught:
        planned(folder, batchsize=4)
    assert caught.value.code == "PLAN_UNKNOWN_KEY"
    with pytest.raises(DatasetError) as caught:
        planned(folder, roi_size="wide")
    assert caught.value.code == "PLAN_VALUE"


def test_folds_are_by_subject_or_as_given(tmp_path: Path) -> None:
    path = made.table(tmp_path, cases=8)
    found = examine(list_dataset(path))
    split = split_of(found, make_plan(found, 4.0))
    assert [len(members) for members in split["folds"]] == [2, 2, 2, 2]
    assert all(len({split["subjects"][name] for name in members}) == 1 for members in split["folds"])
    assert split["parts"]["validation"] == split["folds"][0]
    own = tmp_path / "own.json"
    folds = [[f"scan_{n}_t1" for n in range(4)], [f"scan_{n}_t1" for n in range(4, 8)]]
    own.write_text(json.dumps({"subjects": split["subjects"], "parts": {}, "folds": folds}))
    found = examine(list_dataset(path), own)
    assert split_of(found, make_plan(found, 4.0))["folds"] == folds
    parts = {"training": [f"scan_{n}_t1" for n in range(2, 8)], "validation": ["scan_0_t1", "scan_1_t1"]}
    own.write_text(json.dumps({"subjects": split["subjects"], "parts": parts}))
    found = examine(list_dataset(path), own)
    again = split_of(found, make_plan(found, 4.0))
    assert (again["parts"], again["folds"]) == (parts, split["folds"])
    own.write_text(json.dumps({"subjects": {}, "parts": {}, "folds": [["scan_0_t1"], ["scan_9_t1"]]}))
    found = examine(list_dataset(path), own)
    with pytest.raises(DatasetError, match="scan_9_t1"):
        split_of(found, make_plan(found, 4.0))
