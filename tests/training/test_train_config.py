"""The keys of train.yaml reach the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from accunet_monai.cli import app
from accunet_monai.errors import DatasetError
from accunet_monai.networks import load_network
from accunet_monai.training.resume import state_path
from accunet_monai.training.state_file import read_state
from accunet_monai.training.stopping import StopOnNonFinite
from tests.training.small import Killed
from tests.training.tiny_bundle import ROOT, tiny_bundle, train

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def cause_of(error: BaseException) -> DatasetError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DatasetError):
        cause = cause.__cause__
    assert isinstance(cause, DatasetError)
    return cause


def command(folder: Path, values: dict[str, Any], *options: str) -> Any:
    """What ``accunet train`` says."""
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return CliRunner().invoke(app, ["train", str(folder / "bundle"), *settings, *options])


def test_all_that_can_be_switched_works_together(tmp_path: Path) -> None:
    values = {
        **tiny_bundle(tmp_path),
        "loss": "dice_focal",
        "schedule": "poly",
        "warmup": 0.5,
        "ema": None,
        "batch_parts": 2,
        "deep_supervision": True,
        "early_stopping": 1,
        "max_epochs": 9,
        "learning_rate": 1e-12,  # learns nothing: the second validation is not better
        "gradient_clip": None,
        "checkpoint_interval": 300,
    }
    seen: list[torch.dtype] = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype) if isinstance(module, torch.nn.Conv2d) else None
    )
    try:
        trainer = train(tmp_path, values, ROOT / "configs" / "amp.yaml").trainer
    finally:
        hook.remove()
    assert trainer.state.epoch == 2
    assert set(seen) == {torch.bfloat16, torch.float32}  # in training, in validation
    assert type(trainer.network).__name__ == "DeepSupervision"
    network = load_network(tmp_path / "out" / "best.safetensors")
    assert network.state_dict().keys() == trainer.network.network.state_dict().keys()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-12 * (1 - 6 / 27) ** 0.9 * 7 / 13.5)


def test_the_papers_recipe_is_a_config_of_this_workflow(tmp_path: Path) -> None:
    values = {**tiny_bundle(tmp_path), "find_lr": True}
    del values["max_epochs"], values["batch_size"], values["val_interval"]
    workflow = train(tmp_path, values, ROOT / "configs" / "paper.yaml")
    trainer = workflow.trainer
    assert trainer.state.iteration == 0  # only looked for a learning rate
    assert (tmp_path / "out" / "learning_rate.png").is_file()
    assert not state_path(tmp_path / "out").exists()
    assert (trainer.loss_function.overlap, trainer.loss_function.pixel) == (0.5, 0.5)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-3}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0}
    assert trainer.state.max_epochs == 1000


def test_another_config_does_not_go_on_with_this_ones_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny_bundle(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(StopOnNonFinite, "check", _killed_in_the_second_iteration)
        with pytest.raises(Killed):
            train(tmp_path, values)
    assert read_state(state_path(tmp_path / "out"))["iteration"] == 1
    refused = command(tmp_path, values)
    assert refused.exit_code == 1
    assert "[RUN_UNFINISHED]" in refused.output
    changed = {**values, "resume": True, "learning_rate": 0.01, "train::augmentation::probability": 0.9}
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, changed)
    error = cause_of(caught.value)
    assert error.code == "RESUME_CHANGED"
    assert "settings: learning_rate, train::augmentation::probability." in error.message
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    workflow = train(tmp_path, {**values, "resume": True, "output_dir": str(moved), "checkpoint_interval": 60})
    assert workflow.trainer.state.iteration == 6
    again = command(tmp_path, {**values, "output_dir": str(moved)}, "--resume")
    assert (again.exit_code, "finished already" in again.output) == (0, True)


def _killed_in_the_second_iteration(self: StopOnNonFinite, engine: Any) -> None:
    if engine.state.iteration == 2:
        raise Killed
