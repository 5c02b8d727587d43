"""The tracker on a small real training and a real MLflow store in SQLite."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image
from pydicom.uid import MRImageStorage

from accunet_monai.bundle import load_bundle, read_manifest, verify_bundle
from accunet_monai.errors import AccunetError, DatasetError
from accunet_monai.evaluation import means_by_label, read_rows
from accunet_monai.networks import load_network
from accunet_monai.networks.checkpoint import save_network
from accunet_monai.training import CaseDice, MLflowTracker
from accunet_monai.training.run_file import read_run_file, run_header, write_run_file
from accunet_monai.training.tracking import (
    ParentRun,
    TrackingError,
    close_stale_runs,
    resolved_config,
    tidy,
    tracking_uri,
)
from accunet_monai.training.tracking.best import BestValidation
from accunet_monai.training.tracking.files import assemble_bundle, log_settings
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.training.tracking.means import EpochMeans
from accunet_monai.training.tracking.names import metric_names
from accunet_monai.training.tracking.outbox import UNSENT, Outbox, logged_metrics
from accunet_monai.training.tracking.pictures import ValidationPictures
from accunet_monai.training.tracking.report import ReviewedCase, report_cases
from accunet_monai.training.tracking.runs import HEARTBEAT, STALE_SECONDS, connect, open_experiment, start_run
from accunet_monai.training.tracking.settings import params_of
from accunet_monai.volumes import Volume, read_volume
from tests import made_bundle
from tests.training.tracked import LABELS, Training, nifti_cases, volume_bundle
from tests.volumes.nifti_as_dicom import write_series

pytestmark = pytest.mark.filterwarnings("ignore:.*set_model.*:UserWarning")


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests' runs go to their own database, whatever the machine's environment says."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one MLflow database for all tests here; each test has its own experiment."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def client(store: Path) -> MlflowClient:
    return connect(store)


@pytest.fixture
def experiment(client: MlflowClient, store: Path, tmp_path: Path) -> str:
    return open_experiment(client, tmp_path.name, store)


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Training, str, Path]]:
    """A training that has come to its end, its run, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    bundle = volume_bundle(folder)
    cases = nifti_cases(folder / "data", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        training = Training(bundle, cases, folder / "out", tracked={"folder": store, "pictures": 1, "spatial_dim": 0})
        run_id = training.run()
    return training, run_id, folder


def metric_steps(client: MlflowClient, run_id: str) -> Counter[tuple[str, int]]:
    names = client.get_run(run_id).data.metrics
    return Counter((name, entry.step) for name in names for entry in client.get_metric_history(run_id, name))


def pictures(client: MlflowClient, run_id: str) -> Counter[tuple[str, int]]:
    names = [Path(item.path).name for item in client.list_artifacts(run_id, "images") if item.path.endswith(".png")]
    return Counter((name.split("+")[0], int(name.split("+")[2])) for name in names)


# ----------------------------------------------------------------------------------------------------------------------
# What is logged


def test_a_run_tells_what_happened(client: MlflowClient, finished: tuple[Training, str, Path]) -> None:
    training, run_id, folder = finished
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["version.torch"] == version("torch")
    assert "| front | 0." in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["learning_rate"] == 0.01
    assert run.data.metrics["val_mean_dice"] == pytest.approx(training.metric.compute())
    assert {"system/cpu_utilization_percentage", "val_dice_front", "val_dice_back"} <= set(run.data.metrics)
    steps = [entry.step for entry in client.get_metric_history(run_id, "val_mean_dice")]
    assert steps == [1, 2]
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    names = {item.path for item in client.list_artifacts(run_id)}
    assert names >= {
        "bundle", "config.yaml", "split.json", "images", "cases.csv", "cases.parquet", "cases.json", "summary.json",
        "bland_altman.png", "boxes.png", "reliability.png", "review.html", "validation_cases.csv",
    }  # fmt: skip
    assert not (folder / "out" / UNSENT).exists()
    keys = ("val_01_case_00", "worst_01", "worst_02", "worst_03")
    assert pictures(client, run_id) == {(key, step): 1 for key in keys for step in (0, 1, 2)}


def test_the_datasets_are_inputs_with_their_digest(client: MlflowClient, finished: tuple[Training, str, Path]) -> None:
    _, run_id, folder = finished
    run = client.get_run(run_id)
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert inputs.keys() == {"training", "validation"}
    assert run.data.tags["dataset.training"].startswith(inputs["training"].digest)
    assert inputs["training"].profile == '{"cases": 3, "subjects": 2}'
    assert read_run_file(folder / "out")["dataset_digest"] == run.data.tags["dataset"]
    assert run_header(folder / "out") == {"mlflow_run": run_id, "dataset_digest": run.data.tags["dataset"]}


def test_the_table_is_of_the_best_weights(
    client: MlflowClient, finished: tuple[Training, str, Path], tmp_path: Path
) -> None:
    """The logged bundle, run by the predictor on the files, gives the Dice of the logged table."""
    _, run_id, folder = finished
    bundle = Path(client.download_artifacts(run_id, "bundle", str(tmp_path)))
    manifest = read_manifest(bundle)
    assert manifest is not None
    assert (manifest.mlflow_run, manifest.dataset_digest) == (run_id, client.get_run(run_id).data.tags["dataset"])
    verify_bundle(bundle)
    best = load_network(folder / "out" / "best.safetensors")
    logged = load_network(bundle / "models" / "model.safetensors")
    assert torch.equal(best.head.weight, logged.head.weight)
    rows = read_rows(client.download_artifacts(run_id, "cases.csv", str(tmp_path)))
    predictor = load_bundle(bundle)
    assert {row["subject"] for row in rows} == {"subject_0", "subject_1"}
    for row in rows:
        found = predictor.predict(folder / "data" / "imagesTr" / f"{row['case']}.nii.gz").label_map
        reference = np.asarray(read_volume(folder / "data" / "labelsTr" / f"{row['case']}.nii.gz").array)
        (label,) = (value for value, name in LABELS.items() if name == row["label"])
        total = int((found == label).sum()) + int((reference == label).sum())
        assert row["dice"] == pytest.approx(2 * int(((found == label) & (reference == label)).sum()) / total)


def test_curves_and_tables_leave_out_what_is_ignored(client: MlflowClient, store: Path, tmp_path: Path) -> None:
    """Every second row of the references is not annotated; the labels have names that MLflow refuses."""
    cases = nifti_cases(tmp_path / "data", 2)
    for case in cases:
        volume = read_volume(case["label"])
        array = volume.array.copy()
        array[:, ::2] = 9
        made_bundle.save_volume(Path(case["label"]), array.astype(np.uint8))
    arguments = {"folder": store, "experiment": tmp_path.name, "pictures": 1}
    training = Training(volume_bundle(tmp_path), cases, tmp_path / "out", epochs=1, tracked=arguments)
    training.trainer.loss_function = torch.nn.CrossEntropyLoss(ignore_index=9)
    training.metric.ignore_label = 9
    training.metric.labels = {1: "tumour_(core)", 2: "tumour_[core]"}
    run_id = training.run()
    found = client.get_run(run_id).data.metrics
    assert {"train_loss", "learning_rate"} <= found.keys()
    rows = read_rows(client.download_artifacts(run_id, "cases.csv", str(tmp_path)))
    means = means_by_label(rows)
    assert means["tumour_(core)"] != means["tumour_[core]"]
    assert found["val_mean_dice"] == pytest.approx(sum(means.values()) / 2)
    assert found["val_dice_tumour__core_"] == pytest.approx(means["tumour_(core)"])
    assert found["val_dice_tumour__core__2"] == pytest.approx(means["tumour_[core]"])


def test_a_report_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    """The label is found wholly, 8 voxels; another 12 lie where nobody has annotated (9)."""
    reference = np.zeros((12, 8, 8), np.uint16)
    reference[1:3, 1:3, 1:3] = 1
    prediction = reference.copy()
    prediction[8:11, 1:3, 1:3] = 1
    reference[6:] = 9
    case = ReviewedCase("a", "a", Volume(np.zeros(reference.shape, np.float32), np.eye(4)), reference, prediction)
    (row,) = report_cases([case], {1: "organ"}, tmp_path, "made", ignore_label=9)
    assert (row["dice"], row["hd95_mm"], row["volume_error_ml"]) == (1.0, 0.0, 0.0)
    (without,) = report_cases([case], {1: "organ"}, tmp_path, "made")
    assert without["dice"] == pytest.approx(2 * 8 / (8 + 20))
    book = ValidationPictures({1: "organ"}, 1, 1, 2, Identities(), ignore_label=9)
    maps = {"image": reference, "pred": prediction, "label": reference}
    book.add(1, {"case": "a", **{key: MetaTensor(array[None].astype(np.int32)) for key, array in maps.items()}})
    assert {overlay.title for _, overlay in book.take()} == {"a: Dice 1.000"}


def test_the_worst_cases_are_pictured_the_worst_first() -> None:
    reference = torch.zeros(1, 10, 10, 4)
    reference[:, :, :, 1:3] = 1
    book = ValidationPictures({1: "organ"}, 2, 3, 2, Identities())
    for number, share in enumerate([10, 2, 7, 0, 5, 9], 1):  # rows of the organ that are found
        prediction = reference.clone()
        prediction[:, share:] = 0
        book.add(number, {"case": f"c{share}", "image": MetaTensor(reference), "pred": prediction, "label": reference})
    taken = [(key, overlay.title) for key, overlay in book.take()]
    assert [key for key, _ in taken] == ["val_01_c10", "val_02_c2", "worst_01", "worst_02", "worst_03"]
    assert [title for _, title in taken[2:]] == ["c0: Dice 0.000", "c2: Dice 0.333", "c5: Dice 0.667"]
    assert book.take() == []


def test_a_picture_of_two_dimensions_is_drawn(tmp_path: Path) -> None:
    grey, labels = torch.rand(3, 20, 30), torch.zeros(1, 20, 30)
    labels[:, 5:15, 10:20] = 1
    book = ValidationPictures({1: "gland"}, 1, 0, 2, Identities())
    book.add(1, {"case": "a", "image": grey, "pred": labels, "label": torch.zeros_like(labels)})
    ((_, overlay),) = book.take()
    path = tmp_path / "overlay.png"
    path.write_bytes(overlay.png({1: "gland"}, 2, 1))
    drawn = np.asarray(Image.open(path)).astype(int)
    assert drawn.shape == (20, 30, 3)
    plain = ((grey - grey.min()) / (grey.max() - grey.min()) * 255).round().permute(1, 2, 0).numpy()
    apart = np.abs(drawn - plain).max(-1) > 2
    assert apart[5:15, 10:20].mean() > 0.9
    assert not apart[:4].any()


# ----------------------------------------------------------------------------------------------------------------------
# How a run ends


def stopped(training: Training, at: int, error: BaseException | None) -> None:
    """Stop the training at an iteration: by an exception, or by SIGTERM."""

    def stop(engine: Engine) -> None:
        if error is None:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise error

    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=at), stop)


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [(ValueError("no"), ValueError, "FAILED"), (KeyboardInterrupt(), KeyboardInterrupt, "KILLED"),
     (None, SystemExit, "KILLED")],
)  # fmt: skip
def test_a_run_that_does_not_come_to_its_end_is_closed_at_once(
    tmp_path: Path, store: Path, client: MlflowClient, error: Any, raised: type[BaseException], status: str
) -> None:
    arguments = {"folder": store, "experiment": tmp_path.name, "worst_pictures": 0, "pictures": 0}
    training = Training(volume_bundle(tmp_path), nifti_cases(tmp_path, 1), tmp_path / "out", tracked=arguments)
    stopped(training, 2, error)
    with pytest.raises(raised):
        training.run()
    assert training.tracker is not None
    run = client.get_run(str(training.tracker.run_id))
    assert run.info.status == status
    assert run.data.tags["error"] == raised.__name__
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_resumed_run_is_the_same_run_and_has_each_step_once(
    tmp_path: Path, store: Path, client: MlflowClient
) -> None:
    arguments = {"folder": store, "experiment": tmp_path.name, "picture_interval": 1, "resume": True}
    bundle, cases = volume_bundle(tmp_path), nifti_cases(tmp_path, 1)
    first = Training(bundle, cases, tmp_path / "out", epochs=3, tracked=arguments)
    stopped(first, 5, KeyboardInterrupt())  # two epochs of two iterations are logged
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert first.tracker is not None
    before = metric_steps(client, str(first.tracker.run_id))
    again = Training(bundle, cases, tmp_path / "out", epochs=3, tracked=arguments)
    statuses = []
    again.trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda e: statuses.append(client.get_run(str(first.tracker.run_id)).info.status)
    )
    assert again.run() == first.tracker.run_id
    after = metric_steps(client, str(first.tracker.run_id))
    assert {("val_mean_dice", 1), ("val_mean_dice", 2)} <= before.keys()
    assert ("val_mean_dice", 3) not in before
    assert {("val_mean_dice", 3), ("train_loss", 3)} <= after.keys()
    assert set(after.values()) == {1}
    assert set(pictures(client, str(first.tracker.run_id)).values()) == {1}
    assert statuses == ["RUNNING"] * 3
    assert client.get_run(str(first.tracker.run_id)).info.status == "FINISHED"
    assert len(client.search_runs([again.tracker.experiment_id])) == 1  # type: ignore[union-attr]


def test_a_run_that_was_killed_is_marked_by_the_age_of_its_heartbeat(
    client: MlflowClient, experiment: str, store: Path
) -> None:
    silent, alive, foreign = (start_run(client, experiment, name) for name in ("silent", "alive", "foreign"))
    long_ago = time.time() - STALE_SECONDS - 60
    client.set_tag(silent, HEARTBEAT, f"{long_ago:.0f}")
    client.delete_tag(foreign, HEARTBEAT)
    assert close_stale_runs(client, [experiment]) == [silent]
    found = {run: client.get_run(run).info for run in (silent, alive, foreign)}
    assert [found[run].status for run in (silent, alive, foreign)] == ["KILLED", "RUNNING", "RUNNING"]
    assert found[silent].end_time == pytest.approx(long_ago * 1000, abs=1000)
    client.set_tag(alive, HEARTBEAT, f"{long_ago:.0f}")
    closed, unsent = tidy([], store)
    assert closed == [alive]
    assert unsent == []


def test_folds_are_nested_below_a_run_that_stays_alive(client: MlflowClient, store: Path, tmp_path: Path) -> None:
    cases = nifti_cases(tmp_path, 2)
    bundle = volume_bundle(tmp_path)
    above = (tmp_path.name, "two folds", store, tmp_path / "folds", [cases[:1], cases[1:]], bundle)
    parent = ParentRun(*above)
    arguments = {"folder": store, "experiment": tmp_path.name, "worst_pictures": 0}
    nested = {"parent_run": parent.run_id, "fold": 1}
    training = Training(bundle, cases[1:], tmp_path / "fold_1", 1, arguments | nested)
    client.set_tag(parent.run_id, HEARTBEAT, "1000")
    child = client.get_run(training.run())
    assert child.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (child.info.run_name, child.data.tags["fold"]) == ("fold 1", "1")
    assert float(client.get_run(parent.run_id).data.tags[HEARTBEAT]) > time.time() - 300
    assert parent.close("FINISHED")
    assert client.get_run(parent.run_id).info.status == "FINISHED"
    again = ParentRun(*above, resume=True)
    assert again.run_id == parent.run_id
    assert client.get_run(parent.run_id).info.status == "RUNNING"
    client.delete_tag(child.info.run_id, "mlflow.parentRunId")  # as of a fold that was trained by itself
    write_run_file(tmp_path / "elsewhere", {"run_id": "f" * 32})  # and one that was logged to another server
    links = again.adopt([tmp_path / "elsewhere", tmp_path / "fold_1"])
    assert links == ["", f"#/experiments/{child.info.experiment_id}/runs/{child.info.run_id}"]
    assert client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    again.close("KILLED")


def test_a_resumed_run_must_be_there(tmp_path: Path, store: Path) -> None:
    write_run_file(tmp_path / "out", {"run_id": "f" * 32})
    arguments = {"folder": store, "experiment": tmp_path.name, "resume": True}
    training = Training(volume_bundle(tmp_path), nifti_cases(tmp_path, 1), tmp_path / "out", 1, arguments)
    with pytest.raises(TrackingError, match="ffff") as caught:
        training.run()
    assert caught.value.code == "TRACKING_RUN_MISSING"


# ----------------------------------------------------------------------------------------------------------------------
# The outbox


def test_what_an_absent_server_did_not_take_is_sent_by_the_next(
    client: MlflowClient, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_id = start_run(client, experiment, "away")
    client.log_metric(run_id, "loss", 1.0, step=1)
    picture = tmp_path / "p.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)
    absent = Outbox(MlflowClient("http://127.0.0.1:9"), run_id, tmp_path)
    absent.start()
    began = time.monotonic()
    for step in range(1, 1201):
        absent.metrics({"loss": 1 / step}, step)
    absent.picture("case", 7, picture.read_bytes)
    absent.file("notes/a.txt", lambda: b"kept")
    absent.file("notes/b.txt", lambda: 1 // 0)  # what cannot be made is told, and left out
    assert time.monotonic() - began < 0.5
    assert not absent.close("FAILED", patience=0.0)
    assert client.get_run(run_id).info.status == "RUNNING"

    back = Outbox(client, run_id, tmp_path)
    back.start(resumed=True)
    back.metrics({"loss": 99.0}, 5)  # kept already
    back.metrics({"loss": 0.0}, 1201)
    assert back.close("FINISHED")
    history = {entry.step: entry.value for entry in client.get_metric_history(run_id, "loss")}
    assert history == {step: 1 / step for step in range(1, 1201)} | {1201: 0.0}
    assert len(client.get_metric_history(run_id, "loss")) == 1202  # step 1 is logged twice: by hand before, and kept
    assert pictures(client, run_id) == {("case", 7): 1}
    assert [item.path for item in client.list_artifacts(run_id, "notes")] == ["notes/a.txt"]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not (tmp_path / UNSENT).exists()


def test_numbers_that_a_killed_process_had_not_sent_travel_in_its_state(
    client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    run_id = start_run(client, experiment, "killed")
    killed = Outbox(client, run_id, tmp_path)  # its thread never gets to run
    killed.metrics({"loss": 0.5, "norm": 2.0}, 1)
    killed.metrics({"loss": 0.25}, 2)
    client.log_metric(run_id, "loss", 0.5, step=1)  # this one it did send
    left = killed.open_entries()
    assert [(name, value, step) for name, value, _, step in left] == [
        ("loss", 0.5, 1), ("norm", 2.0, 1), ("loss", 0.25, 2)
    ]  # fmt: skip
    resumed = Outbox(client, run_id, tmp_path)
    resumed.start(resumed=True)
    resumed.entries(left)
    assert resumed.close("FINISHED")
    assert not resumed.open_entries()
    found = [(entry.step, entry.value) for entry in client.get_metric_history(run_id, "loss")]
    assert found == [(1, 0.5), (2, 0.25)]
    assert [entry.step for entry in client.get_metric_history(run_id, "norm")] == [1]


def test_tidying_sends_what_was_kept(
    client: MlflowClient, experiment: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_id = start_run(client, experiment, "away")
    absent = Outbox(MlflowClient("http://127.0.0.1:9"), run_id, tmp_path)
    absent.start()
    absent.metrics({"loss": 0.5}, 3)
    absent.close("FINISHED", patience=0.0)
    assert tidy([tmp_path], store)[1] == []
    assert logged_metrics(client, run_id) == {("loss", 3)}
    assert client.get_run(run_id).info.status == "FINISHED"


def test_what_mlflow_refuses_does_not_hold_up_the_rest(client: MlflowClient, experiment: str, tmp_path: Path) -> None:
    run_id = start_run(client, experiment, "deleted")
    box = Outbox(client, run_id, tmp_path)
    box.start()
    box.metrics({"a bad name?!": 1.0}, 1)
    time.sleep(1.5)
    box.metrics({"good": 2.0}, 1)
    assert box.close("FINISHED")
    assert logged_metrics(client, run_id) == {("good", 1)}


def test_of_a_refused_batch_only_what_is_refused_is_lost(
    client: MlflowClient, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start_run(client, experiment, "one bad name")
    box = Outbox(client, run_id, tmp_path)
    box.metrics({"loss": 0.5, "T1+": 1.0, "val_mean_dice": 0.8, "a//b": 1.0, "rate": 0.1}, 1)  # wait as one batch
    box.start()
    assert box.close("FINISHED")
    assert logged_metrics(client, run_id) == {("loss", 1), ("val_mean_dice", 1), ("rate", 1)}
    assert "T1+, a//b" in caplog.text


def test_every_label_has_a_metric_of_its_own_that_mlflow_takes(client: MlflowClient, experiment: str) -> None:
    labels = ["WM", "tumour_(core)", "tumour_[core]", "tumour_core_", "NCR_&_NET", "a,b", "a b", "T1+", "T1-", "/../",
              "x/", "Großhirn", "脑", "%", "l" * 300, "l" * 301]  # fmt: skip
    names = metric_names("val_dice_", labels)
    assert list(names) == labels
    assert len(set(names.values())) == len(labels)
    assert (names["WM"], names["a b"]) == ("val_dice_WM", "val_dice_a_b_2")
    run_id = start_run(client, experiment, "names")
    for name in names.values():
        client.log_metric(run_id, name, 0.5)
    assert client.get_run(run_id).data.metrics.keys() == set(names.values())


# ----------------------------------------------------------------------------------------------------------------------
# Nobody's name

CANARIES = {
    "PatientName": "Zebediah^Quokka",
    "PatientID": "MRN-774411",
    "PatientBirthDate": "19501231",
    "StudyDate": "20210704",
    "AccessionNumber": "ACC99821",
    "ReferringPhysicianName": "Hornbill^Adalwolf",
    "InstitutionName": "Saint Cassowary Hospital",
}


def everything_in(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, its content as text) of all files, with compressed and encoded parts opened."""
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        raw = path.read_bytes()
        yield str(path.relative_to(folder)), ""
        yield path.name, raw.decode("latin-1")
        if path.suffix == ".db":
            with sqlite3.connect(path) as database:
                yield path.name, "\n".join(database.iterdump())
        if path.suffix == ".parquet":
            yield path.name, str([{key: str(value) for key, value in row.items()} for row in read_rows(path)])
        if path.suffix in (".png", ".webp"):
            with Image.open(path) as image:
                yield path.name, str(image.info)
        for part in re.findall(rb"base64,([A-Za-z0-9+/=]+)", raw):
            yield path.name, base64.b64decode(part).decode("latin-1")


def test_nothing_that_identifies_a_patient_is_logged(tmp_path: Path) -> None:
    cases = nifti_cases(tmp_path / "nifti", 2)
    words = [part for value in CANARIES.values() for part in re.split(r"[\^]", value)]
    for number, case in enumerate(cases):
        volume = read_volume(case["image"])
        folder = tmp_path / "Zebediah_Quokka" / f"MRN-774411_20210704_{number}"
        words.append(write_series(folder, Volume(volume.array, volume.affine_ras), f"made {number}"))
        for file in folder.iterdir():
            ds = pydicom.dcmread(file)
            for keyword, value in CANARIES.items():
                setattr(ds, keyword, value)
            ds.save_as(file)
        words.append(folder.name)
        case |= {"image": str(folder), "case": folder.name, "subject": "Zebediah Quokka"}
    bundle = volume_bundle(tmp_path)
    (bundle / "configs" / "split.json").write_text('{"subjects": {"MRN-774411_20210704_0": "Zebediah Quokka"}}')
    (bundle / "docs").mkdir()
    (bundle / "docs" / "README.md").write_text("Trained on Zebediah's images of 2021-07-04, see /data/MRN-774411.")
    arguments = {"folder": tmp_path / "runs", "run_name": "ACC99821", "picture_interval": 1}
    training = Training(bundle, cases, tmp_path / "out", epochs=1, tracked=arguments)
    training.run()
    leaks = [
        (name, word)
        for name, text in everything_in(tmp_path / "runs")
        for word in [*words, "2021-07-04", "MRN-774411"]
        if word.casefold() in text.casefold() or word.casefold() in name.casefold()
    ]
    assert leaks == []
    client = connect(tmp_path / "runs")
    assert training.tracker is not None
    rows = read_rows(client.download_artifacts(str(training.tracker.run_id), "cases.csv", str(tmp_path)))
    assert all(re.fullmatch(r"dicom-[0-9a-f]{8}", row["case"]) for row in rows)
    assert len({row["case"] for row in rows}) == 2
    assert {row["subject"] for row in rows} == {f"subject of {training.tracker.identities.case(cases[0]['case'])}"}


def test_names_of_other_formats_stay(tmp_path: Path) -> None:
    (case,) = nifti_cases(tmp_path, 1)
    known = Identities([case])
    assert (known.case("case_00"), known.subject("subject_0")) == ("case_00", "subject_0")
    assert known.clean("case_00 of 20210704") == "case_00 of 20210704"


def dicom_case(folder: Path, **header: str) -> dict[str, str]:
    """A case that is one DICOM file with these attributes; its name is the folder's."""
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, f"1.2.{len(str(folder))}.{sum(map(ord, folder.name))}"
    ds.ImageComments = f"{folder.name} " * 200
    for keyword, value in header.items():
        setattr(ds, keyword, value)
    folder.mkdir(parents=True)
    ds.save_as(folder / "a.dcm", implicit_vr=False, little_endian=True)
    return {"image": str(folder), "case": folder.name, "subject": folder.name}


def test_short_names_of_cases_leave_numbers_and_settings_as_they_are(
    client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    """Folders 1, 2 and 26, and a patient called Max: in parameters, in the logged config and in the bundle's."""
    cases = [dicom_case(tmp_path / "data" / name, PatientName="Fae^Max", PatientID="0015") for name in ("1", "2", "26")]
    known = Identities(cases)
    one, two, other = (known.case(name) for name in ("1", "2", "26"))
    config = {
        "learning_rate": 0.0015, "max_epochs": 26, "seed": 2, "labels": {1: "front", 2: "back"}, "size": [26, 1],
        "half": "$@max_epochs/2", "rate": "1e-2", "trained": "fold_1", "net": {"_target_": "made.max.Net_2"},
        "shape": "unet_2d", "near": "@max_epochs", "images": ["/data/1/a.dcm", "/data/2", "26_image.nii.gz"],
        "who": "max", "where": "$'/data/0015/' + @trained", "path": str(tmp_path / "data" / "1"),
    }  # fmt: skip
    expected = config | {
        "images": [f"/data/{one}/a.dcm", f"/data/{two}", f"{other}_image.nii.gz"], "who": "removed",
        "where": "$'/data/removed/' + @trained", "path": str(tmp_path / "data" / one),
    }  # fmt: skip
    bundle = volume_bundle(tmp_path)
    split = {"subjects": {"1": "2", "2": "2", "26": "1"}, "parts": {"training": ["1", "2"], "validation": ["26"]}}
    plain = "learning_rate: 0.0015  # it was 0.26\n"
    written = {"train.yaml": yaml.safe_dump(config), "evaluate.yaml": plain, "split.json": json.dumps(split)}
    for name, text in written.items():
        (bundle / "configs" / name).write_text(text)
    run_id = start_run(client, experiment, "short names")
    log_settings(client, run_id, config, {}, known)
    params = client.get_run(run_id).data.params
    assert {
        "learning_rate": "0.0015",
        "max_epochs": "26",
        "trained": "fold_1",
        "who": "removed",
    }.items() <= params.items()
    logged = Path(client.download_artifacts(run_id, "config.yaml", str(tmp_path))).read_text()
    assert yaml.safe_load(logged) == expected | {"labels": {"1": "front", "2": "back"}}
    network = ConfigParser(made_bundle.read_config(bundle, "inference")).get_parsed_content("network_def")
    weights = save_network(network, tmp_path / "best.safetensors")
    configs = assemble_bundle(tmp_path / "logged", bundle, weights, known, run_id, None) / "configs"
    assert yaml.safe_load((configs / "train.yaml").read_text()) == expected
    assert (configs / "evaluate.yaml").read_text() == plain
    subjects = {one: known.subject("2"), two: known.subject("2"), other: known.subject("1")}
    assert json.loads((configs / "split.json").read_text()) == {
        "subjects": subjects, "parts": {"training": [one, two], "validation": [other]},
    }  # fmt: skip


def test_cases_that_are_not_read_are_withheld_beside_those_of_dicom(tmp_path: Path) -> None:
    """The part that tests, cases beyond a limit: their headers are not read, and their names may be a patient's."""
    read = {**dicom_case(tmp_path / "a_1", PatientID="17"), "subject": "A"}
    known = Identities([read, {"image": "", "case": "file"}])
    split = {
        "subjects": {"a_1": "A", "a_2": "A", "quokka_1": "Quokka^Ze", "quokka_2": "Quokka^Ze", "file": "file"},
        "parts": {"training": ["a_1", "a_2", "file"], "test": ["quokka_1", "quokka_2"]},
        "folds": [["a_1", "a_2"], ["file"]],
    }
    first, subject = known.case("a_1"), known.subject("A")
    other = "subject of withheld-2"
    assert known.cleaned_split(split) == {
        "subjects": {
            first: subject, "withheld-1": subject, "withheld-2": other, "withheld-3": other, "file": "file",
        },
        "parts": {"training": [first, "withheld-1", "file"], "test": ["withheld-2", "withheld-3"]},
        "folds": [[first, "withheld-1"], ["file"]],
    }  # fmt: skip
    assert Identities([{"image": "", "case": "file"}]).cleaned_split(split) == split


def test_names_are_found_in_files_beside_each_other_and_in_no_pseudonym(tmp_path: Path) -> None:
    cases = [
        dicom_case(tmp_path / "QUOKKA", PatientName="Quokka^Ze", PatientID="MRN-774411", AccessionNumber="A-MRN"),
        dicom_case(tmp_path / "dicom", StudyDate="20210704", PatientID="774411", StudyID="4217"),
    ]
    known = Identities(cases)
    first, second = known.case("QUOKKA"), known.case("dicom")
    assert (
        known.clean("QUOKKA_image.nii.gz, QUOKKA2.nii and dicom") == f"{first}_image.nii.gz, {first}2.nii and {second}"
    )
    assert known.clean("a_quokka.png") == "a_removed.png"
    assert known.clean("A-MRN-774411") == "removed"
    assert known.clean("xMRN-774411y of 20210704T1015, /p/4217.nii 4217_a") == (
        "xremovedy of removedT1015, /p/removed.nii removed_a"
    )
    uid = pydicom.dcmread(Path(cases[0]["image"]) / "a.dcm", force=True).SOPInstanceUID
    assert known.clean(f"UID{uid}") == "UIDremoved"
    assert known.cleaned({"exclude": [774411, 4217, 0.774411], "QUOKKA": 1, "last": date(2021, 7, 4)}) == {
        "exclude": ["removed", 4217, 0.774411], first: 1, "last": "removed",
    }  # fmt: skip


def test_no_name_passes_because_a_file_could_not_be_read(tmp_path: Path) -> None:
    """A file without DICOM's preamble is trained on, so its header counts; what cannot be read at all is refused."""
    folder = tmp_path / "QUOKKA"
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, "1.2.3"
    ds.PatientName, ds.PatientID, ds.ImageComments = "QUOKKA^ZEBEDIAH", "774411", "long enough " * 20
    folder.mkdir()
    (folder / "a_note.txt").write_text("no DICOM")
    ds.save_as(folder / "b.dcm", implicit_vr=False, little_endian=True)
    assert (folder / "b.dcm").read_bytes()[:2] == b"\x08\0"
    known = Identities([{"image": str(folder), "case": folder.name, "subject": "Zebediah"}])
    assert re.fullmatch(r"dicom-[0-9a-f]{8}", known.case("QUOKKA"))
    assert "774411" not in known.clean("scan of 774411, Quokka")
    whole = (folder / "b.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(bytes(128) + b"DICM" + whole[:-5])
    with pytest.raises(DatasetError, match=r"b\.dcm") as caught:
        Identities([{"image": str(folder), "case": folder.name}])
    assert caught.value.code == "IDENTITY_UNREADABLE"
    with pytest.raises(AccunetError, match="no such file") as absent:
        Identities([{"image": str(tmp_path / "gone.nii.gz"), "case": "gone"}])
    assert absent.value.code == "FILE_MISSING"


# ----------------------------------------------------------------------------------------------------------------------
# Parts


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.data())
def test_an_interrupted_epoch_has_the_mean_of_a_whole_one(values: list[float], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values)))
    whole, first, second = EpochMeans(), EpochMeans(), EpochMeans()
    for value in values:
        whole.add("loss", value)
    for value in values[:cut]:
        first.add("loss", value)
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.add("loss", value)
    assert second.take() == whole.take()
    assert second.take() == {}


def test_the_best_validation_is_kept_across_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 400, (3, 4, 5)).astype(np.uint16) for _ in range(3)]
    kept = BestValidation(tmp_path / "best.npz")
    assert kept.read() == {}
    for score, array, better in zip((0.5, 0.7, 0.7), maps, (True, True, False), strict=True):
        kept.add("a", array)
        assert kept.decide(score) is better
    again = BestValidation(tmp_path / "best.npz")
    again.add("a", maps[0])
    assert not again.decide(0.6)
    assert again.score() == 0.7
    assert np.array_equal(again.read()["a"].array(), maps[1])
    again.forget()
    again.add("a", maps[2])
    assert again.decide(0.1)
    assert again.decide(float("nan")) is False


def test_the_environment_names_the_tracking_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_the_config_is_recorded_with_values_in_place_of_expressions() -> None:
    parser = ConfigParser({"folder": "runs", "out": "$@folder + '/x'", "again": "@out", "net": "$torch.nn.Identity()"})
    parser.parse()
    found = resolved_config(parser)
    assert found["out"] == "runs/x"
    assert found["again"] == "runs/x"
    assert found["net"] == "$torch.nn.Identity()"


def test_parameters_are_the_options_and_what_was_changed() -> None:
    original = {"epochs": 3, "dataset_dir": "data", "augment": {"rotation": 10, "shift": 0.1}, "net": {"x": "@a#b"}}
    config = {"epochs": 5, "dataset_dir": "other", "init": None, "augment": {"rotation": 30, "shift": 0.1}}
    config |= {"net": {"x": "@a::b"}, "steps": ["$f()"]}
    assert params_of(config, original) == {"epochs": "5", "augment.rotation": "30"}


def test_the_command_that_shows_a_run_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    engine = Engine(lambda engine, batch: None)
    tracker = MLflowTracker("x", engine, CaseDice({1: "organ"}), tmp_path, tmp_path, folder=folder)
    command = tracker.command().splitlines()[0]
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]


def test_an_unreachable_server_is_told_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    training = Training(volume_bundle(tmp_path), nifti_cases(tmp_path, 1), tmp_path / "out", 1, {"folder": tmp_path})
    iterations = itertools.count()
    training.trainer.add_event_handler(Events.ITERATION_STARTED, lambda e: next(iterations))
    with pytest.raises(TrackingError) as caught:
        training.run()
    assert caught.value.code == "TRACKING_SERVER"
    assert "secret" not in str(caught.value)
    assert next(iterations) == 0
