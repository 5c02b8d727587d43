"""Runs in MLflow as trainings leave them: a table of cases and a bundle, without the training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient

from accunet_monai.evaluation import Row, measure_case, write_rows
from accunet_monai.networks.checkpoint import save_network
from accunet_monai.training.run_file import run_header, write_run_file
from accunet_monai.training.tracking.files import assemble_bundle
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.training.tracking.runs import open_experiment, start_run
from tests import made_bundle
from tests.training.tracked import LABELS, volume_bundle

DIGEST = "d" * 64


def logged_run(client: MlflowClient, folder: Path, found: float, subjects: int = 8) -> str:
    """A finished run whose cases have about ``found`` of their labels' rows found; returns its id."""
    from monai.bundle import ConfigParser

    experiment = open_experiment(client, "made", folder)
    run_id = start_run(client, experiment, f"finds {found}", {"dataset": DIGEST})
    client.log_metric(run_id, "val_mean_dice", found, step=1)
    place = folder / run_id
    write_rows(case_rows(found, subjects), place / "cases.csv")
    bundle = volume_bundle(place)
    torch.manual_seed(int(1000 * found))
    network = ConfigParser(made_bundle.read_config(bundle, "inference")).get_parsed_content("network_def")
    with torch.no_grad():
        network.head.weight.mul_(20)  # so that every label occurs
    write_run_file(place, {"run_id": run_id, "dataset_digest": DIGEST})
    weights = save_network(network, place / "best.safetensors", run_header(place))
    assemble_bundle(place / "bundle", bundle, weights, Identities(), run_id, DIGEST)
    client.log_artifact(run_id, str(place / "cases.csv"))
    client.log_artifacts(run_id, str(place / "bundle"), "bundle")
    client.set_terminated(run_id, "FINISHED")
    return run_id


def case_rows(found: float, subjects: int) -> list[Row]:
    """Measured from label maps in which the first rows of both labels are found."""
    rows: list[Row] = []
    rng = np.random.default_rng(0)
    for number in range(subjects):
        reference = np.zeros((20, 8, 4), np.uint8)
        reference[:, 1:4, 1:3], reference[:, 4:7, 1:3] = 1, 2
        prediction = reference.copy()
        prediction[round(20 * min(1.0, found + rng.uniform(-0.05, 0.05))) :] = 0
        rows += measure_case(prediction, reference, (1, 1, 1), LABELS, case=f"c{number}", subject=f"s{number}")
    return rows
