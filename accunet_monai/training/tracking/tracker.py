"""The handler that logs a training to MLflow."""

from __future__ import annotations

import atexit
import itertools
import os
import shlex
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from rich.console import Console

from accunet_monai.bundle import read_plain
from accunet_monai.datasets import Case
from accunet_monai.errors import AccunetError
from accunet_monai.training.distributed import is_main
from accunet_monai.training.evaluation import CaseDice, case_name_of, cases_of
from accunet_monai.training.handlers import BEST_WEIGHTS, last_loss, on_exception
from accunet_monai.training.run_file import read_run_file, write_run_file
from accunet_monai.training.tracking.best import BEST_VALIDATION, BestValidation
from accunet_monai.training.tracking.data import log_datasets
from accunet_monai.training.tracking.files import (
    BUNDLE,
    assemble_bundle,
    log_case_table,
    log_report,
    log_settings,
)
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.training.tracking.means import EpochMeans
from accunet_monai.training.tracking.model import register_bundle
from accunet_monai.training.tracking.names import metric_names
from accunet_monai.training.tracking.outbox import Entry, Outbox
from accunet_monai.training.tracking.pictures import FIRST_KEYS, ValidationPictures
from accunet_monai.training.tracking.report import reliability_of, report_cases, reviewed_cases
from accunet_monai.training.tracking.runs import (
    TrackingError,
    close_stale_runs,
    connect,
    open_experiment,
    reopen_run,
    shown_uri,
    start_run,
    tracking_uri,
    without_password,
)
from accunet_monai.training.tracking.settings import git_state, resolved_config
from accunet_monai.training.tracking.system import machine_metrics
from accunet_monai.workflow import running_workflow

_KILLED = (KeyboardInterrupt, SystemExit, GeneratorExit)

_WHERE = (
    "**Artifacts** has `review.html` (all cases, the worst first), `cases.csv`, `bland_altman.png`; "
    "**Model metrics** has curves, and pictures of the first and the worst cases with a slider for the epoch."
)
"""Last paragraph of a run's description."""


class MLflowTracker:
    """Log a MONAI trainer and its evaluator to one MLflow run.

    Logged are: parameters of the resolved config, package versions and git state; the datasets with their digests and
    the split; loss, learning rate, gradient norm and times per epoch; use of processor and memory; validation Dice per
    label; pictures of the first and of the worst validation cases by step (MLflow's image slider); at the end the case
    table, plots, a page to look through all validation cases, the config, and the bundle folder with the best weights,
    which ``load_bundle`` opens. It is sent from another thread, see ``Outbox``.

    The run ends as FINISHED, FAILED or KILLED whatever happens, so that nothing later logs into it. Nothing that
    identifies a patient is logged, see ``Identities``. Of several processes only the first logs.

    Args:
        experiment: name of the MLflow experiment.
        evaluator: the validating engine, whose output has image, label and pred.
        metric: its case metric.
        output_dir: where the run's files are, best weights included; ``run.json`` there names the run.
        bundle_root: the bundle's folder, logged with the best weights in it.
        run_name: name of the run; by default the local time of its start, or the fold.
        folder: where the default database lies; see :func:`tracking_uri`.
        pictures: number of validation cases to picture each time.
        picture_interval: epochs between pictures, at least; the first and the last validation have some.
        spatial_dim: axis along which pictures are cut.
        worst_pictures: number of validation cases with the lowest Dice to picture.
        resume: go on with the run that ``run.json`` names, if there is one.
        parent_run: id of the run that this one is nested below; see :class:`ParentRun`.
        fold: of a cross-validation.
        cases: part of the split (``training``, ``validation``) → its cases.
        register: name of a registered model that gets the trained one as a new version.
        key_metric: name of the evaluator's metric by which the best weights are chosen.
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
        worst_pictures: int = 10,
        resume: bool = False,
        parent_run: str | None = None,
        fold: int | None = None,
        cases: Mapping[str, Sequence[Case]] | None = None,
        register: str | None = None,
        key_metric: str = "val_mean_dice",
    ) -> None:
        self.experiment = experiment
        self.evaluator = evaluator
        self.metric = metric
        self.output_dir = Path(output_dir)
        self.bundle_root = Path(bundle_root)
        self.run_name = run_name or (None if fold is None else f"fold {fold}")
        self.folder = Path(folder)
        self.picture_interval = picture_interval
        self.resume = resume
        self.parent_run = parent_run
        self.fold = fold
        self.cases = {part: list(members) for part, members in (cases or {}).items()}
        self.register = register
        self.key_metric = key_metric
        self.run_id: str | None = None
        self.experiment_id = ""
        self._settings = (pictures, worst_pictures, spatial_dim)
        self._means = EpochMeans()
        self._unsent: list[Entry] = []  # of the process that is resumed
        self._best = BestValidation(self.output_dir / BEST_VALIDATION)
        self._workflow = running_workflow()

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._look_at, engine)
        self.evaluator.add_event_handler(Events.COMPLETED, self._log_validation, engine)
        if not is_main():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        on_exception(engine, self._fail)

    def state_dict(self) -> dict[str, Any]:
        """What has been collected of the epoch so far, and what has not reached MLflow yet."""
        unsent = [] if self.run_id is None else self.outbox.open_entries()
        return {"means": self._means.state_dict(), "unsent": [list(entry) for entry in unsent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on collecting from there."""
        self._means.load_state_dict(state["means"])
        self._unsent = [(str(name), float(value), int(at), int(step)) for name, value, at, step in state["unsent"]]

    def command(self) -> str:
        """How to see the run: its address on the tracking server, or the command that starts one, and the address."""
        uri = without_password(tracking_uri(self.folder))
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}?workflowType=machine_learning"
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/{page}"
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}\n  then http://127.0.0.1:5000/{page}"

    def _start(self, engine: Engine) -> None:
        config = {} if self._workflow is None else resolved_config(self._workflow.parser)
        cases = itertools.chain(_cases_of_loader(self.evaluator), *self.cases.values())
        self.identities = Identities(cases)
        fixed, worst, axis = self._settings
        labels, ignored = self.metric.labels, self.metric.ignore_label
        self.pictures = ValidationPictures(labels, fixed, worst, axis, self.identities, ignored)
        self.client = connect(self.folder)
        self.experiment_id = open_experiment(self.client, self.experiment, self.folder)
        close_stale_runs(self.client, [self.experiment_id])
        resumed = self._open_run()
        if self.run_id is None:
            return
        above = [self.parent_run] if self.parent_run else []
        machine = machine_metrics(self.run_id, self.client)
        self.outbox = Outbox(self.client, self.run_id, self.output_dir, above, machine)
        self.outbox.start(resumed)
        self.outbox.entries(self._unsent)
        self.pictures.sent = self.outbox.last_step(*FIRST_KEYS)
        atexit.register(self._close, "FAILED", 0.0)
        self._listen()
        original = self.bundle_root / "configs" / "train.yaml"
        usual = read_plain(original) if original.is_file() else {}
        log_settings(self.client, self.run_id, config, usual, self.identities, resumed=resumed)
        digest = log_datasets(self.client, self.run_id, self.cases, self.identities, resumed=resumed)
        self._write_run_file(digest)

    def _open_run(self) -> bool:
        """Start the run, or reopen the one that is resumed; returns which."""
        before = read_run_file(self.output_dir).get("run_id") if self.resume else None
        if before:
            self.run_id = str(reopen_run(self.client, before).info.run_id)
            return True
        self._best.forget()
        tags = {**git_state(self.bundle_root), "bundle": self.bundle_root.name}
        tags |= {} if self.fold is None else {"fold": str(self.fold)}
        tags = {key: self.identities.clean(value) for key, value in tags.items()}
        name = self.run_name and self.identities.clean(self.run_name)
        self.run_id = start_run(self.client, self.experiment_id, name, tags, self.parent_run)
        self._write_run_file(None)
        return False

    def _write_run_file(self, digest: str | None) -> None:
        known = {"run_id": self.run_id or "", "experiment_id": self.experiment_id}
        known |= {"tracking_uri": shown_uri(self.client), **({"dataset_digest": digest} if digest else {})}
        write_run_file(self.output_dir, known)

    def _listen(self) -> None:
        """Let SIGTERM end the training as an exception, if nothing else in this process takes care of it."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminated)

    def _collect(self, engine: Engine) -> None:
        self._means.add("train_loss", last_loss(engine))
        norm = getattr(engine.state, "gradient_norm", None)
        if norm is not None:
            self._means.add("gradient_norm", norm)

    def _log_epoch(self, engine: Any) -> None:
        values = {**self._means.take(), "learning_rate": float(engine.optimizer.param_groups[0]["lr"])}
        for name in ("loader_seconds", "step_seconds"):
            if hasattr(engine.state, name):
                values[name] = float(getattr(engine.state, name))
        if self.run_id is not None:
            self.outbox.metrics(values, engine.state.epoch)

    def _look_at(self, evaluator: Engine, trainer: Engine) -> None:
        cases = cases_of(evaluator)
        first = evaluator.state.iteration * len(cases) - len(cases) + 1
        for number, case in enumerate(cases, first):
            self._best.add(case_name_of(case), np.asarray(case["pred"].cpu())[0].astype(np.uint16))
            if self.run_id is not None and self._due(trainer):
                self.pictures.add(number, case)

    def _due(self, trainer: Engine) -> bool:
        epoch, before = trainer.state.epoch, self.pictures.sent
        return before is None or epoch - before >= self.picture_interval or epoch == trainer.state.max_epochs

    def _log_validation(self, evaluator: Engine, trainer: Engine) -> None:
        self._best.decide(float(evaluator.state.metrics.get(self.key_metric, float("nan"))))
        if self.run_id is None:
            return
        values = {name: float(value) for name, value in evaluator.state.metrics.items()}
        means = self.metric.label_means()
        names = metric_names("val_dice_", means)
        values |= {names[label]: mean for label, mean in means.items() if mean == mean}
        self.outbox.metrics(values, trainer.state.epoch)
        self.pictures.send(self.outbox, trainer.state.epoch)

    def _finish(self, engine: Engine) -> None:
        if self.run_id is None:
            return
        with tempfile.TemporaryDirectory() as name:
            log_case_table(self.outbox, self.metric, self.identities)
            self._log_report(Path(name) / "report")
            version = self._log_bundle(self.run_id, Path(name) / "bundle")
            sent = self._close("FINISHED")
        told = f"MLflow run {self.run_id} of experiment {self.experiment!r}{version}; see it with:\n  {self.command()}"
        Console().print(told if sent else f"{told}\n  once MLflow answers again", highlight=False, soft_wrap=True)

    def _log_report(self, folder: Path) -> None:
        items = getattr(getattr(self.evaluator, "data_loader", None), "dataset", ())
        cases = reviewed_cases(items, self._best.read(), self.identities)
        weights, inferer = self.output_dir / BEST_WEIGHTS, getattr(self.evaluator, "inferer", None)
        labels, ignored = self.metric.labels, self.metric.ignore_label
        counts = reliability_of(weights, inferer, items, labels, self.pictures.fixed, ignored)
        title = self.identities.clean(f"{self.experiment}, {self.run_name or self.run_id}")
        rows = report_cases(cases, labels, folder, title, counts, ignored)
        log_report(self.outbox, folder, rows, "Best validation", _WHERE)

    def _log_bundle(self, run_id: str, folder: Path) -> str:
        """Log the bundle with the best weights, and register it if that is wanted; returns what to say of that."""
        weights = self.output_dir / BEST_WEIGHTS
        if not weights.is_file():
            return ""
        digest = read_run_file(self.output_dir).get("dataset_digest")
        assemble_bundle(folder, self.bundle_root, weights, self.identities, run_id, digest)
        self.outbox.folder(folder, f"{BUNDLE}/")
        if self.register is None:
            return ""
        try:
            return f", version {register_bundle(self.client, run_id, folder, self.register)} of {self.register!r}"
        except TrackingError as error:  # the training has come to its end: this can be done again by hand
            return f", not registered ({error}): accunet registry register {run_id} {self.register}"

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if self.run_id is None:
            return
        code = f" [{error.code}]" if isinstance(error, AccunetError) else ""
        self.outbox.tag("error", f"{type(error).__name__}{code}")
        self._close("KILLED" if isinstance(error, _KILLED) else "FAILED", 0.0)

    def _close(self, status: str, patience: float = 30.0) -> bool:
        """End the run once, whoever comes first; returns whether all of it was sent."""
        atexit.unregister(self._close)
        if signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return self.outbox.close(status, patience)


def _cases_of_loader(evaluator: Engine) -> list[Mapping[str, Any]]:
    """The cases of a MONAI dataset, where the evaluator has one."""
    data = getattr(getattr(getattr(evaluator, "data_loader", None), "dataset", None), "data", ())
    return [case for case in data if isinstance(case, Mapping)]


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
