"""MLflow tracking of a training run: what was run, on what, how it went, and pictures of validation cases by step."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ignite.engine import Engine, Events
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image
from rich.console import Console

from accunet_monai.training.evaluation import CaseDice, cases_of, write_case_table
from accunet_monai.training.handlers import BEST_WEIGHTS, last_loss, on_exception
from accunet_monai.volumes import contact_sheet
from accunet_monai.workflow import running_workflow

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_LONGEST_PARAM = 500  # characters: MLflow's limit of a parameter's value is 6000, nobody reads that in a table
_PARAMS_PER_CALL = 100  # MLflow takes no more at once
_PACKAGES = ("accunet-monai", "torch", "monai", "pytorch-ignite", "numpy", "nibabel", "mlflow")


def tracking_uri(folder: str | os.PathLike[str] = "runs") -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, else an SQLite database ``mlflow.db`` in ``folder``."""
    given = os.environ.get(URI_VARIABLE)
    if given:
        return given
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path / 'mlflow.db'}"


def resolved_config(parser: ConfigParser) -> dict[str, Any]:
    """The merged config with its top-level expressions and references replaced by their values, where these are plain.

    Args:
        parser: of a workflow that has been initialised.
    """
    config: dict[str, Any] = dict(parser.get())
    for key, value in config.items():
        if isinstance(value, str) and value.startswith(("$", "@")):
            found = parser.get_parsed_content(key)
            if found is None or isinstance(found, str | int | float | bool):
                config[key] = found
    return config


class MLflowTracker:
    """Log a MONAI trainer and its evaluator to one MLflow run.

    Logged are: parameters of the resolved config, package versions and git state; loss, learning rate and gradient
    norm per epoch; validation Dice per label; pictures of the first validation cases by step (MLflow's image slider);
    at the end the case table, the config and the bundle folder with the best weights, which ``load_bundle`` opens.
    The run ends as FINISHED, FAILED or KILLED whatever happens, so that nothing later logs into it.

    Args:
        experiment: name of the MLflow experiment.
        evaluator: the validating engine, whose output has image, label and pred.
        metric: its case metric.
        output_dir: where the run's files are, best weights included.
        bundle_root: the bundle's folder, logged with the best weights in it.
        run_name: name of the run; by default the local time of its start.
        folder: where the default database lies; see :func:`tracking_uri`.
        pictures: number of validation cases to picture.
        picture_interval: epochs between pictures.
        spatial_dim: axis along which pictures are cut.
    """

    def __init__(
        self,
        experiment: str,
        evaluator: Engine,
        metric: CaseDice,
        output_dir: str | os.PathLike[str],
        bundle_root: str | os.PathLike[str],
        run_name: str | None = None,
        folder: str | os.PathLike[str] = "runs",
        pictures: int = 4,
        picture_interval: int = 5,
        spatial_dim: int = 2,
    ) -> None:
        self.experiment = experiment
        self.evaluator = evaluator
        self.metric = metric
        self.output_dir = Path(output_dir)
        self.bundle_root = Path(bundle_root)
        self.run_name = run_name
        self.folder = Path(folder)
        self.pictures = pictures
        self.picture_interval = picture_interval
        self.spatial_dim = spatial_dim
        self.run_id: str | None = None
        self.experiment_id = ""
        self._losses: list[float] = []
        self._workflow = running_workflow()
        self._config: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        on_exception(engine, self._fail)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._log_pictures, engine)
        self.evaluator.add_event_handler(Events.COMPLETED, self._log_validation, engine)

    def _start(self, engine: Engine) -> None:
        if self._workflow is not None:
            self._config = resolved_config(self._workflow.parser)
        uri = tracking_uri(self.folder)
        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            artifacts = (self.folder.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
            self.experiment_id = self.client.create_experiment(
                self.experiment, artifact_location=artifacts, tags={"mlflow.experimentKind": "custom_model_development"}
            )
        else:
            self.experiment_id = found.experiment_id
            if found.lifecycle_stage == "deleted":  # in the web page, say
                self.client.restore_experiment(self.experiment_id)
        tags = {**_git_state(self.bundle_root), "bundle": self.bundle_root.name}
        name = self.run_name or time.strftime("%Y-%m-%d %H:%M:%S")  # MLflow's own are drawn by the seeded generator
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        self.run_id = run.info.run_id
        found_params = {**dict(_flatten(self._config)), **_environment()}.items()
        params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in found_params]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_CALL])
        text = yaml.safe_dump(_plain(self._config), sort_keys=False)
        self.client.log_text(self.run_id, text, "config.yaml")

    def _collect(self, engine: Engine) -> None:
        self._losses.append(last_loss(engine))

    def _log_epoch(self, engine: Engine) -> None:
        values = {"train_loss": float(np.mean(self._losses)), "learning_rate": engine.optimizer.param_groups[0]["lr"]}  # type: ignore[attr-defined]
        if hasattr(engine.state, "gradient_norm"):
            values["gradient_norm"] = engine.state.gradient_norm
        self._losses = []
        self._log_metrics(values, engine.state.epoch)

    def _log_validation(self, evaluator: Engine, trainer: Engine) -> None:
        values = {name: float(value) for name, value in evaluator.state.metrics.items()}
        values |= {f"val_dice_{_key(name)}": mean for name, mean in self.metric.label_means().items() if mean == mean}
        self._log_metrics(values, trainer.state.epoch)

    def _log_pictures(self, evaluator: Engine, trainer: Engine) -> None:
        first = trainer.state.epoch == 1
        due = (
            first or trainer.state.epoch % self.picture_interval == 0 or trainer.state.epoch == trainer.state.max_epochs
        )
        if self.run_id is None or not due:
            return
        for number, case in enumerate(cases_of(evaluator), evaluator.state.iteration):
            if number > self.pictures:
                return
            with tempfile.TemporaryDirectory() as folder:
                picture = _picture(case, self.metric.labels, self.spatial_dim, Path(folder) / "case.png")
                name = f"val_{number:02d}_{_case_name(case)}"
                with Image.open(picture) as image:
                    self.client.log_image(self.run_id, image, key=name, step=trainer.state.epoch)

    def _log_metrics(self, values: Mapping[str, float], step: int) -> None:
        if self.run_id is not None:
            now = int(time.time() * 1000)
            self.client.log_batch(self.run_id, [Metric(name, value, now, step) for name, value in values.items()])

    def _finish(self, engine: Engine) -> None:
        if self.run_id is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            table = write_case_table(self.metric, Path(folder) / "validation_cases.csv")
            self.client.log_artifact(self.run_id, str(table))
            best = self.output_dir / BEST_WEIGHTS
            if best.is_file():
                copy = Path(folder) / "bundle"
                shutil.copytree(self.bundle_root / "configs", copy / "configs")
                (copy / "models").mkdir()
                shutil.copy2(best, copy / "models" / "model.safetensors")
                self.client.log_artifacts(self.run_id, str(copy), "bundle")
        self.client.set_terminated(self.run_id, "FINISHED")
        told = f"MLflow run {self.run_id} of experiment {self.experiment!r}; see it with:\n  {self.command()}"
        Console().print(told, highlight=False, soft_wrap=True)

    def command(self) -> str:
        """How to see the run: its address on the tracking server, or the command that starts one, and the address."""
        uri = tracking_uri(self.folder)
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/{page}"
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}\n  then http://127.0.0.1:5000/{page}"

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if self.run_id is not None:
            self.client.set_terminated(self.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


def _picture(case: Mapping[str, Any], labels: Mapping[int, str], axis: int, path: Path) -> Path:
    image, prediction, reference = (np.asarray(case[key])[0] for key in ("image", "pred", "label"))
    spacing = None
    if isinstance(case["image"], MetaTensor):
        spacing = tuple(float(mm) for mm in np.linalg.norm(np.asarray(case["image"].affine)[:3, :3], axis=0))
    return contact_sheet(
        image, prediction.astype(np.uint8), path, spacing=spacing, reference=reference.astype(np.uint8), axis=axis,
        title=_case_name(case), label_names=dict(labels),
    )  # fmt: skip


def _case_name(case: Mapping[str, Any]) -> str:
    return str(case.get("case", "case"))


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, scalar) of a nested config; metadata is left out, it is in the bundle."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key != "_meta_":
                yield from _flatten(item, f"{prefix}{key}.")
    elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(i, Mapping) for i in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}{index}.")
    else:
        yield prefix.rstrip("."), value


def _plain(value: Any) -> Any:
    """The config with everything that YAML cannot say turned into text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for package in _PACKAGES:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_state(folder: Path) -> dict[str, str]:
    """Commit of the checkout the bundle lies in, and whether it was changed since; nothing outside a checkout."""
    try:
        commit, status = (
            subprocess.run(  # noqa: S603 (fixed arguments)
                ["git", "-C", str(folder), *arguments],  # noqa: S607
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.changed": "yes" if status else "no"}
