"""Processes that train a whole bundle are killed by SIGKILL, again and again."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.training.tiny_bundle import tiny_bundle, train

KILLS = max(3, int(os.environ.get("ACCUNET_EXAMPLES", "0")) // 100)
ITERATIONS = 6


def run_and_die(folder: str, values: dict[str, Any], place: str, number: int) -> None:
    """In a process of its own: train, and SIGKILL this process where ``place`` is reached for the n-th time."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    left = number

    def reached(real: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return counted

    if place == "iteration":
        from accunet_monai.training import StopOnNonFinite

        StopOnNonFinite.check = reached(StopOnNonFinite.check)  # type: ignore[method-assign]
    elif place == "file":  # written, not yet renamed
        os.fsync = reached(os.fsync)
    train(Path(folder), values)


@pytest.fixture(scope="module")
def processes() -> Any:
    """Forked from a server that has imported all that takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accunet_monai.training", "tests.training.tiny_bundle", "mlflow"])
    return context


def ended(processes: Any, *arguments: Any) -> int:
    process = processes.Process(target=run_and_die, args=arguments)
    process.start()
    process.join()
    return int(process.exitcode)


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_weights_after_kills_are_those_of_a_training_that_was_left_alone(
    processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = tiny_bundle(tmp_path)
    assert ended(processes, str(tmp_path), {**values, "output_dir": str(tmp_path / "alone")}, "", 0) == 0
    chosen = random.Random(os.environ.get("ACCUNET_EXAMPLES", "0"))
    died = 0
    for _ in range(KILLS):
        place = chosen.choice(["iteration", "iteration", "file"])
        code = ended(processes, str(tmp_path), {**values, "resume": True}, place, chosen.randint(1, 3))
        assert code in (0, -signal.SIGKILL)
        died += code != 0
    assert died
    assert ended(processes, str(tmp_path), {**values, "resume": True}, "", 0) == 0
    kept = {"best.safetensors", "last.safetensors"}
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == kept
    assert weights(tmp_path / "out") == weights(tmp_path / "alone")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hippocampus_mri")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    for run in runs:
        steps = Counter(point.step for point in client.get_metric_history(run.info.run_id, "train_loss"))
        assert steps == {1: 1, 2: 1}


def weights(folder: Path) -> dict[str, str]:
    """sha256 of each file's tensors: its header names the MLflow run, which is another."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        found[path.name] = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    return found
