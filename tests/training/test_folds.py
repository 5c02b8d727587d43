"""Cross-validation on a made dataset, killed on its way; and how label maps are cleaned is chosen elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import nibabel as nib
import numpy as np
import pytest

from accunet_monai.bundle import load_bundle, read_plain, verify_bundle
from accunet_monai.errors import BundleError, DatasetError
from accunet_monai.evaluation import read_rows, worst_first
from accunet_monai.training import StopOnNonFinite, cross_validate
from accunet_monai.training.bundle_copy import copy_bundle, with_other_network
from accunet_monai.training.cleaning_choice import choose_cleaning, cleaning_arguments, cleaning_scores
from accunet_monai.training.folds import _CrossValidation
from accunet_monai.training.resume import state_path
from accunet_monai.training.run_file import read_run_file
from accunet_monai.training.state_file import write_state
from accunet_monai.volumes import read_label_map
from tests.training.small import Killed
from tests.training.test_kill import weights
from tests.training.tiny_bundle import CASES, tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client_of(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'runs' / 'mlflow.db'}")


def runs_of(folder: Path) -> list[Any]:
    client = client_of(folder)
    experiment = client.get_experiment_by_name("hippocampus_mri")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def kill_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """The training of a fold ends as by SIGKILL in this iteration, counted over all folds."""
    real, left = StopOnNonFinite.check, [iteration]

    def check(self: StopOnNonFinite, engine: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        real(self, engine)

    monkeypatch.setattr(StopOnNonFinite, "check", check)


def test_a_killed_cross_validation_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**tiny_bundle(tmp_path, folds=2), "max_epochs": 1}
    alone, killed = tmp_path / "alone", tmp_path / "out"
    assert cross_validate(tmp_path / "bundle", {**values, "output_dir": str(alone)}, folds=2, fold=1) is None
    assert {path.name for path in alone.iterdir()} == {"bundle", "fold_1"}
    with monkeypatch.context() as patch:
        kill_at(patch, 5)  # three iterations a fold: in the second
        with pytest.raises(Killed):
            cross_validate(tmp_path / "bundle", values, folds=2)
    with pytest.raises(DatasetError, match="--resume") as caught:
        cross_validate(tmp_path / "bundle", values, folds=2)
    assert caught.value.code == "RUN_UNFINISHED"
    first = (killed / "fold_0" / "last.safetensors").stat().st_mtime_ns
    by_itself = read_run_file(killed / "fold_0")["run_id"]
    client_of(tmp_path).delete_tag(by_itself, "mlflow.parentRunId")
    summary: Any = cross_validate(tmp_path / "bundle", values, folds=2, resume=True)
    assert (killed / "fold_0" / "last.safetensors").stat().st_mtime_ns == first  # not trained again
    assert weights(killed / "fold_1") == weights(alone / "fold_1")
    runs = runs_of(tmp_path)
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    _, parent, *nested = runs
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert {run.data.tags["fold"] for run in nested} == {"0", "1"}
    assert parent.data.metrics["out_of_fold_dice"] == pytest.approx(summary.overall["dice"].mean)
    _check_parent(client_of(tmp_path), parent, killed, [run.info.run_id for run in nested])
    _check_folder(tmp_path, killed)


def _check_parent(client: mlflow.MlflowClient, parent: Any, output: Path, folds: list[str]) -> None:
    """A reviewer finds in the run above the folds what there is in the run of a training, of all cases."""
    shown = {name: parent.data.params.get(name) for name in ("folds", "network", "max_epochs", "batch_size", "loss")}
    assert shown == {"folds": "2", "network": "ACCUNet", "max_epochs": "1", "batch_size": "4", "loss": "dice_ce"}
    inputs = {found.dataset.name: json.loads(found.dataset.profile) for found in parent.inputs.dataset_inputs}
    assert inputs == {f"fold {fold}": {"cases": 2, "subjects": 1} for fold in range(2)}
    assert all(f"/runs/{run}" in parent.data.tags["mlflow.note.content"] for run in folds)
    history = client.get_metric_history(parent.info.run_id, "fold_dice")
    assert np.mean([point.value for point in history]) == pytest.approx(parent.data.metrics["out_of_fold_dice"])
    assert [point.step for point in history] == [0, 1]
    found = Path(client.download_artifacts(parent.info.run_id, ""))
    assert (found / "cases.csv").read_bytes() == (output / "cases.csv").read_bytes()
    table = json.loads((found / "cases.json").read_text())
    assert len(table["data"]) == 8
    assert {"bland_altman.png", "boxes.png", "summary.json", "config.yaml"} <= {path.name for path in found.iterdir()}
    page = (found / "review.html").read_text()
    assert all(case in page for case in CASES[:4])
    assert page.index(worst_first(read_rows(output))[0]) == min(page.index(case) for case in CASES[:4])


def _check_folder(tmp_path: Path, output: Path) -> None:
    """Every case was predicted by the network that has not seen its subject, and the bundle has all networks."""
    rows = read_rows(output / "cases.csv")
    assert [row["case"] for row in rows] == [case for case in CASES[:4] for _ in range(2)]
    assert {row["case"]: row["subject"] for row in rows} == {
        case: f"subject_{n // 2}" for n, case in enumerate(CASES[:4])
    }
    for fold in range(2):
        mine = {path.name.removesuffix(".nii.gz") for path in (output / f"fold_{fold}" / "predictions").iterdir()}
        assert mine == set(CASES[2 * fold : 2 * fold + 2])
        predictor = load_bundle(output / "bundle", output / f"fold_{fold}" / "last.safetensors")
        image = tmp_path / "data" / "imagesTr" / f"{CASES[2 * fold]}.nii.gz"
        stored = read_label_map(output / f"fold_{fold}" / "raw" / f"{CASES[2 * fold]}.nii.gz").array
        plain = load_bundle(copy_bundle(output / "bundle", tmp_path / f"plain_{fold}", cleaning={}), predictor.weights)
        np.testing.assert_array_equal(plain.predict(image).label_map, stored)
    verify_bundle(output / "bundle")
    files = sorted((output / "bundle" / "models").glob("fold_*"))
    assert [path.name for path in files] == [f"fold_{fold}.safetensors" for fold in range(2)]
    assert load_bundle(output / "bundle", files).predict(image).label_map.shape == stored.shape


def test_folds_are_drawn_by_subject_where_the_split_has_others(tmp_path: Path) -> None:
    values = tiny_bundle(tmp_path)
    with pytest.raises(DatasetError, match="no fold 2 of 2"):
        cross_validate(tmp_path / "bundle", values, folds=2, fold=2)
    with pytest.raises(BundleError, match="Did you mean 'max_epochs'"):
        cross_validate(tmp_path / "bundle", {**values, "max_epoch": 3}, folds=2)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()
    run = _CrossValidation(tmp_path / "bundle", values, (), 2, None)
    run.prepare()
    split = json.loads((run.bundle / "configs" / "split.json").read_text())
    assert sorted(case for fold in split["folds"] for case in fold) == CASES
    subjects = [{split["subjects"][case] for case in fold} for fold in split["folds"]]
    assert len(subjects) == 2
    assert not subjects[0] & subjects[1]


def test_a_fold_that_was_trained_on_other_cases_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, out = {**tiny_bundle(tmp_path, folds=2), "max_epochs": 1}, tmp_path / "out"
    source, kept = tmp_path / "bundle" / "configs" / "split.json", out / "bundle" / "configs" / "split.json"
    split = json.loads(source.read_text())

    def resumed(folds: int = 2, **changed: Any) -> None:
        cross_validate(tmp_path / "bundle", values | changed, folds=folds, resume=True)

    def refused(told: str, folds: int = 2, **changed: Any) -> None:
        with pytest.raises(DatasetError) as caught:
            resumed(folds, **changed)
        assert (caught.value.code, told in str(caught.value)) == ("RESUME_CHANGED", True), caught.value

    resumed()
    refused("settings: folds (2).", folds=3)
    refused("settings: seed.", seed=1)
    new = [split["folds"][0], [*split["folds"][1], *CASES[4:]]]
    source.write_text(json.dumps(split | {"folds": new}))
    refused(f"settings: cases ({CASES[4]}, {CASES[5]}).")
    source.write_text(json.dumps(split | {"folds": split["folds"][::-1]}))  # of each fold half would be known to it
    refused("settings: which case is in which fold.")
    source.write_text(json.dumps(split | {"subjects": {}}))
    refused("settings: subjects.")
    source.write_text(json.dumps(split | {"folds": split["folds"][::-1]}))
    kept.unlink()  # as where folds of several machines are brought together
    refused("settings: cases.")
    assert not kept.exists()  # what is refused changes nothing
    for fold in range(2):  # as versions wrote it that kept no cases
        write_state({"finished": True}, state_path(out / f"fold_{fold}"))
    refused("settings: cases.")
    source.write_text(json.dumps(split))
    raw = [out / "fold_0" / "raw" / f"{case}.nii.gz" for case in CASES[:2]]
    before = [path.stat().st_mtime_ns for path in raw]
    (out / "fold_1" / "best_validation.npz").unlink()
    shutil.copy(out / "fold_0" / "last.safetensors", out / "fold_1" / "last.safetensors")
    made = (out / "fold_1" / "raw" / f"{CASES[2]}.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    resumed()
    assert capsys.readouterr().out.count("fold 1: warning: its training did not keep which cases") == 1
    assert [path.stat().st_mtime_ns for path in raw] == before
    assert (out / "fold_1" / "raw" / f"{CASES[2]}.nii.gz").stat().st_mtime_ns > made  # its weights are others
    paths = (raw[0], out / "fold_1" / "raw" / f"{CASES[2]}.nii.gz")
    before = [path.stat().st_mtime_ns for path in paths]
    image = tmp_path / "data" / "imagesTr" / f"{CASES[0]}.nii.gz"
    edited = nib.load(image)
    nib.save(nib.Nifti1Image(np.asarray(edited.dataobj)[:, ::-1].copy(), edited.affine), image)
    resumed()
    assert [path.stat().st_mtime_ns > made for path, made in zip(paths, before, strict=True)] == [True, False]


def test_drawn_folds_leave_out_what_the_split_holds_out(tmp_path: Path) -> None:
    values = tiny_bundle(tmp_path, folds=0)
    source = tmp_path / "bundle" / "configs" / "split.json"
    parts = {"training": CASES[:2], "validation": CASES[2:4], "test": CASES[4:]}
    source.write_text(json.dumps(json.loads(source.read_text()) | {"parts": parts}))
    run = _CrossValidation(tmp_path / "bundle", values, (), 2, None)
    run.prepare()
    assert sorted(case["case"] for fold in run.cases() for case in fold) == CASES[:4]


def speckled(seed: int, where: tuple[int, ...] = (1,)) -> tuple[np.ndarray, np.ndarray, float]:
    """A prediction whose label 1 has stray voxels and whose label 2 is in two halves that belong together."""
    reference = np.zeros((12, 12, 12), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    reference[8:10, 1:4, 8:10] = 2
    reference[8:10, 6:9, 8:10] = 2
    prediction = reference.copy()
    rng = np.random.default_rng(seed)
    for _ in range(4):
        prediction[0, rng.integers(12), 11] = 1
    return prediction, reference, 1.0


def test_each_label_is_cleaned_as_helps_it() -> None:
    scores = [cleaning_scores(*speckled(seed), [1, 2]) for seed in range(3)]
    chosen = choose_cleaning(scores, [1, 2])
    assert chosen == {1: "largest_component", 2: "none"}
    assert cleaning_arguments(chosen) == {"largest_component": [1]}
    one = scores[0]
    assert one[1, "largest_component"] == 1.0
    assert one[2, "none"] == 1.0
    assert one[2, "largest_component"] == pytest.approx(2 * 12 / 36)
    hollow = speckled(0)
    hollow[0][3:5, 3:5, 3:5] = 0
    assert choose_cleaning([cleaning_scores(*hollow, [1, 2])], [1, 2])[1] == "both"


def test_a_bundle_with_another_network_trains_and_predicts(tmp_path: Path) -> None:
    from accunet_monai.workflow import run_config

    values = {**tiny_bundle(tmp_path), "max_epochs": 1}
    del values["output_dir"]
    copied = with_other_network(tmp_path / "bundle", values, "basic_unet")
    assert values["output_dir"] == f"{tmp_path / 'runs'}/bundle_basic_unet"
    shutil.rmtree(tmp_path / "bundle")
    run_config(copied, "train", values)
    predictor = load_bundle(copied, Path(values["output_dir"]) / "best.safetensors")
    assert type(predictor.network).__name__ == "BasicUNet"
    assert predictor.predict(tmp_path / "data" / "imagesTr" / "case_0.nii.gz").label_map.shape == (10, 20, 18)
    for name in ("train", "evaluate", "inference"):
        network_def = read_plain(Path(copied) / "configs" / f"{name}.yaml")["network_def"]
        assert (network_def["in_channels"], network_def["out_channels"]) == (3, 3)
    with pytest.raises(BundleError, match="Did you mean 'basic_unet'"):
        with_other_network(copied, {}, "basicunet")
