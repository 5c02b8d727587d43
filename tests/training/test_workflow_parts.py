"""Handlers and tracking on small real engines and a real MLflow store."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler

from accunet_monai.errors import NetworkError
from accunet_monai.networks import ACCUNet, load_network
from accunet_monai.training import (
    CaseDice,
    FinalValidation,
    GradientClip,
    MLflowTracker,
    RichProgress,
    StopOnNonFinite,
    WeightsSaver,
)
from accunet_monai.training.tracking import resolved_config, tracking_uri


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests' runs go to their own database, whatever the machine's environment says."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one MLflow database for all tests here; each test has its own experiment."""
    return tmp_path_factory.mktemp("runs")


def evaluator_with(scores: list[float]) -> Engine:
    """An engine whose metric takes the given values in turn, with one case to picture."""
    values = iter(scores)
    volume = torch.zeros(1, 8, 8, 4)
    volume[:, 2:6, 2:6, 1:3] = 1

    def step(engine: Engine, batch: object) -> object:
        engine.state.batch = [{"case": "case_1"}]
        return [{"image": MetaTensor(volume), "pred": MetaTensor(volume), "label": MetaTensor(volume)}]

    engine = Engine(step)
    engine.add_event_handler(Events.COMPLETED, lambda e: e.state.metrics.update(val_mean_dice=next(values)))
    return engine


def test_the_best_weights_are_those_of_the_best_score(tmp_path: Path) -> None:
    network = ACCUNet(2, 1, 2, base_filters=2)
    evaluator = evaluator_with([0.5, 0.8, 0.7])
    WeightsSaver(network, tmp_path).attach(evaluator)
    heads = []
    for _ in range(3):
        torch.nn.init.normal_(network.head.weight)
        heads.append(network.head.weight.detach().clone())
        evaluator.run([0])
    assert torch.equal(load_network(tmp_path / "best.safetensors").head.weight, heads[1])
    assert torch.equal(load_network(tmp_path / "last.safetensors").head.weight, heads[2])


def trainer_with(
    network: torch.nn.Module, loss: Callable[..., torch.Tensor], handlers: list[Any], epochs: int = 2
) -> Any:
    batch = {"image": torch.randn(2, 1, 16, 16), "label": torch.zeros(2, 1, 16, 16)}
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=[batch, batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        loss_function=loss,
        train_handlers=handlers,
        decollate=False,
    )


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    calls = iter([1.0, float("nan"), 1.0, 1.0])
    trainer = trainer_with(network, lambda pred, label: pred.mean() * 0 + next(calls), [StopOnNonFinite()])
    with pytest.raises(NetworkError, match="epoch 1, iteration 2") as caught:
        trainer.run()
    assert caught.value.code == "LOSS_NOT_FINITE"


def test_gradients_are_clipped_to_the_norm() -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    norms = []
    trainer = trainer_with(network, lambda pred, label: 1e3 * pred.square().mean(), [GradientClip(network, 0.5)], 1)
    before = [p.detach().clone() for p in network.parameters()]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: norms.append(e.state.gradient_norm))
    trainer.run()
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(network.parameters(), before, strict=True)]).norm()
    assert min(norms) > 0.5
    assert float(moved) <= 2 * 0.5 * 0.01 + 1e-6  # two steps of lr × clipped norm


def tracked(tmp_path: Path, store: Path, loss: Callable[..., torch.Tensor]) -> Any:
    """A trainer with tracker and progress; the experiment is named after the test's folder."""
    root = tmp_path / "bundle"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text("{}")
    network = ACCUNet(2, 1, 2, base_filters=2)
    evaluator = evaluator_with([0.4, 0.6])
    metric = CaseDice({1: "organ"})
    metric.attach(evaluator, "unused")
    WeightsSaver(network, tmp_path / "out").attach(evaluator)
    tracker = MLflowTracker(tmp_path.name, evaluator, metric, tmp_path / "out", root, folder=store)
    shown = RichProgress(evaluator)
    trainer = trainer_with(network, loss, [tracker, shown])
    trainer.shown = shown
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: evaluator.run([0]))
    return trainer


def runs_of(tmp_path: Path, store: Path) -> list[Any]:
    client = mlflow.MlflowClient(tracking_uri=tracking_uri(store))
    experiment = client.get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_a_run_in_mlflow_tells_what_happened(tmp_path: Path, store: Path) -> None:
    trainer = tracked(tmp_path, store, lambda pred, label: pred.square().mean())
    trainer.run()
    (run,) = runs_of(tmp_path, store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_mean_dice"] == 0.6
    assert run.data.metrics["val_dice_organ"] == 1.0
    assert run.data.metrics["train_loss"] > 0
    assert run.data.metrics["learning_rate"] == 0.01
    assert run.data.params["version.torch"] == version("torch")
    client = mlflow.MlflowClient(tracking_uri=tracking_uri(store))
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_mean_dice")] == [1, 2]
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"bundle", "config.yaml", "validation_cases.csv", "images"} <= names
    pictures = {Path(item.path).name.split("+")[0] for item in client.list_artifacts(run.info.run_id, "images")}
    assert pictures == {"val_01_case_1"}
    folder = Path(client.download_artifacts(run.info.run_id, "bundle", str(tmp_path)))
    weights = load_network(folder / "models" / "model.safetensors")
    assert torch.equal(weights.head.weight, load_network(tmp_path / "out" / "best.safetensors").head.weight)


def test_a_failed_run_is_marked_and_the_next_is_its_own(tmp_path: Path, store: Path) -> None:
    trainer = tracked(tmp_path, store, lambda pred, label: torch.tensor(float("nan"), requires_grad=True))
    StopOnNonFinite().attach(trainer)
    with pytest.raises(NetworkError):
        trainer.run()
    (run,) = runs_of(tmp_path, store)
    assert run.info.status == "FAILED"
    assert not trainer.shown.progress.live.is_started
    assert mlflow.active_run() is None


def test_an_interrupted_run_is_marked_as_killed(tmp_path: Path, store: Path) -> None:
    def interrupted(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    trainer = tracked(tmp_path, store, interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert runs_of(tmp_path, store)[0].info.status == "KILLED"


def test_the_environment_names_the_tracking_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(tmp_path) == "http://127.0.0.1:5000"


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3]), (2, [2, 3]), (5, [3])])
def test_every_run_ends_validated(interval: int, expected: list[int]) -> None:
    case = {"image": torch.zeros(1, 1, 4, 4), "label": torch.zeros(1, 1, 4, 4)}
    evaluator = SupervisedEvaluator("cpu", [case], torch.nn.Identity(), decollate=False)
    validated: list[int] = []
    evaluator.add_event_handler(Events.STARTED, lambda e: validated.append(e.state.max_epochs))
    network = torch.nn.Conv2d(1, 1, 1)
    handlers = [ValidationHandler(interval, evaluator), FinalValidation(evaluator)]
    trainer_with(network, lambda pred, label: pred.square().mean(), handlers, epochs=3).run()
    assert validated == expected


def test_the_config_is_recorded_with_values_in_place_of_expressions() -> None:
    parser = ConfigParser({"folder": "runs", "out": "$@folder + '/x'", "again": "@out", "net": "$torch.nn.Identity()"})
    parser.parse()
    found = resolved_config(parser)
    assert found["out"] == "runs/x"
    assert found["again"] == "runs/x"
    assert found["net"] == "$torch.nn.Identity()"


def test_the_command_that_shows_a_run_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    engine = Engine(lambda engine, batch: None)
    tracker = MLflowTracker("x", engine, CaseDice({1: "organ"}), tmp_path, tmp_path, folder=folder)
    command = tracker.command().splitlines()[0]
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
