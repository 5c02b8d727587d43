"""Two processes on parts of the same batches train as one process on the whole ones."""

from __future__ import annotations

import json
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from torch import nn

from accunet_monai.networks import load_network
from accunet_monai.training.distributed import parallel, processes, separate_batch_norms, synchronise_batch_norms
from accunet_monai.training.resume import is_finished
from tests.training import two_processes
from tests.training.tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def context() -> Any:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["accunet_monai.training", "tests.training.two_processes"])
    return found


def run_processes(context: Any, count: int, what: str, *arguments: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        context.Process(target=two_processes.start, args=(number, count, port, what, arguments))
        for number in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * count


@pytest.mark.parametrize(("loss", "deep"), [("dice_ce", False), ("dice_bce", True)])
def test_two_processes_have_the_loss_curve_of_one(context: Any, loss: str, deep: bool, tmp_path: Path) -> None:
    found = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        run_processes(context, count, "train_part", folder, loss, deep, 1)
        found[count] = json.loads((folder / "out.json").read_text())
    assert found[2]["losses"] == pytest.approx(found[1]["losses"], abs=1e-5)
    assert found[1]["losses"][0] - min(found[1]["losses"]) > 1e-3  # something was learnt
    assert found[2]["keys"] == found[1]["keys"] == list(found[1]["weights"])
    assert found[2]["kinds"] == ["BatchNorm2d"]
    for key, value in found[1]["weights"].items():
        torch.testing.assert_close(torch.tensor(found[2]["weights"][key]), torch.tensor(value), rtol=0, atol=1e-5)


def test_two_processes_go_through_their_batches_in_parts(context: Any, tmp_path: Path) -> None:
    run_processes(context, 2, "train_part", tmp_path, "dice_ce", False, 2)
    losses = json.loads((tmp_path / "out.json").read_text())["losses"]
    assert losses[0] - min(losses) > 1e-3


def test_two_processes_train_a_bundle_and_one_of_them_writes(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = {**tiny_bundle(tmp_path), "max_epochs": 1, "checkpoint_interval": 300, "early_stopping": 3}
    values["train::sampler::slices_per_epoch"] = 8
    run_processes(context, 2, "train_bundle", tmp_path, values)
    network = load_network(tmp_path / "out" / "last.safetensors")
    assert (network.in_channels, network.out_channels) == (3, 3)
    assert is_finished(tmp_path / "out")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hippocampus_mri")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "val_mean_dice")) == 1


def test_sums_and_questions_over_processes(context: Any, tmp_path: Path) -> None:
    run_processes(context, 2, "small_facts", tmp_path)
    facts = [json.loads((tmp_path / f"facts_{number}.json").read_text()) for number in range(2)]
    assert [one["sum"] for one in facts] == [5.0, 5.0]  # 1 + 4
    assert [one["gradient"] for one in facts] == [
        2 * 1 * 3.0,
        2 * 2 * 3.0,
    ]  # the losses' weights 1 + 2 come back to each
    assert [one["any"] for one in facts] == [[True, False]] * 2
    assert facts[0]["cases"] == [0, 2, 4]
    assert facts[1]["cases"][:2] == [1, 3]


def test_batch_norms_change_their_class_and_come_back() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    names = [name for name, _ in network.named_modules()]
    synchronise_batch_norms(synchronise_batch_norms(network))
    assert [type(network[1]).__name__, type(network[2][0]).__name__] == ["GlobalBatchNorm2d", "GlobalBatchNorm1d"]
    assert [name for name, _ in network.named_modules()] == names
    x = torch.randn(4, 1, 3, 3)
    mixed = network[:2](x)
    separate_batch_norms(network)
    assert type(network[1]) is nn.BatchNorm2d
    assert network.state_dict().keys() == before.keys()
    network.load_state_dict(before)
    assert torch.equal(network[:2](x), mixed)
    assert parallel(network, "cpu") is network
    assert processes() == 1
