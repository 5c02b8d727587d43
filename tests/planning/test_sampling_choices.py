"""What a planned training draws, measured: slices without a label, crops that hold one, slicing axis, mirror."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from accunet_monai.datasets import list_dataset
from accunet_monai.errors import DatasetError
from accunet_monai.planning import Examination, Plan, examine, make_plan
from accunet_monai.planning.choices import split_of
from accunet_monai.planning.configs import make_configs
from accunet_monai.planning.sides import has_side, unnamed
from accunet_monai.training import SliceDataset, SliceSampler
from accunet_monai.training.slices import Pick
from tests.planning import made

THICK = (1.0, 1.0, 5.0)


def dataset(
    folder: Path, label: np.ndarray, names: Sequence[str], spacing: Sequence[float] = THICK, cases: int = 2
) -> Path:
    """Cases of noise, all with one label map."""
    entries = []
    for number in range(cases):
        image = np.random.default_rng(number).normal(0, 1, label.shape).astype(np.float32)
        entry = {key: f"{part}/case_{number}.nii.gz" for key, part in (("image", "imagesTr"), ("label", "labelsTr"))}
        made.save(folder / entry["image"], image, spacing)
        made.save(folder / entry["label"], label, spacing)
        entries.append(entry)
    labels = {"0": "background"} | {str(value): name for value, name in enumerate(names, 1)}
    described = {"labels": labels, "modality": {"0": "MRI"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def planned(path: Path) -> tuple[Examination, Plan]:
    found = examine(list_dataset(path))
    return found, make_plan(found, 4.0)


def sampled(found: Examination, plan: Plan, batch_size: int = 1) -> tuple[SliceDataset, SliceSampler]:
    """Slices and sampler of the training part with what the planned config has."""
    train = yaml.safe_load(make_configs("made", found, plan)["train.yaml"])["train"]
    members = split_of(found, plan)["parts"]["training"]

    def read(case: Mapping[str, str]) -> dict[str, np.ndarray]:
        return {key: np.asarray(nib.Nifti1Image.from_filename(case[key]).dataobj)[None] for key in ("image", "label")}

    keys = ("roi_size", "spatial_dim")
    options = {key: train["dataset"][key] for key in keys}
    cases = [case for case in found.listing.cases if case["case"] in members]
    slices = SliceDataset(cases, read, **options, progress=False)
    chosen = {key: train["sampler"][key] for key in ("slices_per_epoch", "empty", "balance")}
    return slices, SliceSampler(slices, batch_size, **chosen)


def drawn(sampler: SliceSampler, epochs: int = 10) -> list[list[Pick]]:
    """The picks of each epoch."""
    return [[pick for batch in sampler for pick in batch] for _ in range(epochs)]


def reason(plan: Plan, key: str) -> str:
    return next(choice.reason for choice in plan.choices if choice.key == key)


@pytest.mark.parametrize("labelled", [10, 45])
@pytest.mark.parametrize("labels", [1, 5])
def test_as_many_slices_without_a_label_are_drawn_as_is_printed(tmp_path: Path, labels: int, labelled: int) -> None:
    label = np.zeros((40, 40, 50), np.uint8)
    label[5:35, 5:35, :labelled] = 1
    for value in range(2, labels + 1):
        label[value, 5:35, 3] = value  # in one slice: balanced
    found, plan = planned(dataset(tmp_path, label, "abcde"[:labels], cases=5))
    assert plan["balance"] == (labels == 5)
    slices, sampler = sampled(found, plan)
    epochs = drawn(sampler)
    bare = [not slices.labels(pick.index) for picks in epochs for pick in picks]
    wanted = min(0.2, 1 - labelled / 50)
    assert np.mean(bare) == pytest.approx(wanted, abs=0.03)
    if labels == 1:  # and each slice with a label once in each epoch
        seen = [index for index in range(len(slices)) if slices.labels(index)]
        for picks in epochs:
            assert sorted(pick.index for pick in picks if slices.labels(pick.index)) == seen
    else:
        assert f"they are {wanted:.0%} of those drawn" in reason(plan, "empty")


def test_crops_of_large_slices_hold_a_small_lesion(tmp_path: Path) -> None:
    label = np.zeros((400, 400, 16), np.uint8)
    label[380:388, 10:18, 4:8] = 1  # near a corner, where few crops would have it
    found, plan = planned(dataset(tmp_path, label, ["lesion"]))
    assert plan["roi_size"] == [256, 256]
    assert "label in view" in reason(plan, "roi_size")
    slices, sampler = sampled(found, plan)
    picks = [pick for picks in drawn(sampler) for pick in picks]
    held = [bool((slices[pick]["label"] == 1).any()) for pick in picks]
    assert all(seen == bool(slices.labels(pick.index)) for pick, seen in zip(picks, held, strict=True))
    assert np.mean(held) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((512, 512, 1), (1, 1, 1), 2),
        ((1, 200, 300), (1, 1, 1), 0),
        ((28, 1, 28), (1, 1, 1), 1),
        ((120, 120, 24), (1, 1, 1), 2),
        ((300, 35, 300), (1, 1, 1), 1),
        ((300, 200, 1), (1, 2, 1), 2),  # coarse across the only slice
    ],
)
def test_volumes_of_few_slices_are_sliced_across_these(
    tmp_path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], axis: int
) -> None:
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(2 * size // 5, max(1, 3 * size // 5)) for size in shape)] = 1
    _, plan = planned(dataset(tmp_path, label, ["lesion"], spacing))
    assert plan["slicing_axis"] == axis
    assert reason(plan, "slicing_axis").endswith(f"slices along another axis would be {min(shape)} voxels wide")


def test_an_epoch_of_a_small_dataset_has_a_batch(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 9), np.uint8)
    label[5:35, 5:35, 4:7] = 1
    found, plan = planned(dataset(tmp_path, label, ["lesion"]))
    _, sampler = sampled(found, plan, plan["batch_size"])  # one case with three slices of a label and one without
    assert len(sampler) == 1


@pytest.mark.parametrize(
    ("names", "mirrored"),
    [
        (("Lung_L", "Lung_R"), False),
        (("lh hippocampus", "rh hippocampus"), False),
        (("LKidney", "RKidney"), False),
        (("kidney", "liver"), True),
        (("label 1", "label 2"), False),
        (("label 1",), True),
    ],
)
def test_images_are_mirrored_where_no_label_may_have_a_side(
    tmp_path: Path, names: tuple[str, ...], mirrored: bool
) -> None:
    label = np.zeros((40, 40, 10), np.uint8)
    label[5:20, 5:35], label[20:35, 5:35] = 1, len(names)
    _, plan = planned(dataset(tmp_path, label, names))
    assert plan["mirror_left_right"] == mirrored
    assert ("labels without a name, e.g. label 1" in reason(plan, "mirror_left_right")) == (
        not mirrored and names[0] == "label 1"
    )


def test_sides_are_known_by_many_names() -> None:
    sided = "Left kidney,kidney_right,L-Kidney,kidney_r,Lung_R,lt lung,rt_lung,lh.V1,ctx-rh,rib_R1,kidneyL,femur (l)"
    sided += ",Niere links,rechte Niere,rein gauche,rene destro,pulmo sinister,cochlea_sin,LV,Lung_L_2"
    assert [name for name in sided.split(",") if not has_side(name)] == []
    others = "liver,tumour,vertebrae_L1,L5,pons,Brainstem,spinal cord,cerebellum,label 1,GTVp,CSF,Prostate,renal lesion"
    assert [name for name in others.split(",") if has_side(name)] == []
    assert unnamed(["label 1", "Class_2", "3", "liver", "label 4 (L)"]) == ["label 1", "Class_2", "3"]


def test_folds_are_drawn_from_what_a_split_does_not_hold_out(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 6), np.uint8)
    label[10:20, 10:20, 2:5] = 1
    folder = dataset(tmp_path / "data", label, ["lesion"], cases=5)
    split = tmp_path / "split.json"
    subjects = {"case_1": "one", "case_2": "one"}
    split.write_text(json.dumps({"subjects": subjects, "parts": {"test": ["case_1"]}, "folds": []}))
    found = examine(list_dataset(folder), split)
    plan = make_plan(found, memory_gib=4, gpu=False)
    assert plan["folds"] == 3  # case_2 is of the subject that is tested on
    folds = split_of(found, plan)["folds"]
    assert sorted(name for members in folds for name in members) == ["case_0", "case_3", "case_4"]
    split.write_text(json.dumps({"subjects": subjects, "parts": {"test": ["case_0", "case_1", "case_3"]}, "folds": []}))
    with pytest.raises(DatasetError, match="SUBJECTS_TOO_FEW"):
        examine(list_dataset(folder), split)
