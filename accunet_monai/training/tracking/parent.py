"""The run above a cross-validation's folds: settings and data at its start, at its end the out-of-fold evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accunet_monai.datasets import Case
from accunet_monai.evaluation import Row, Summary, summarise
from accunet_monai.training.run_file import read_run_file, write_run_file
from accunet_monai.training.tracking.data import log_datasets
from accunet_monai.training.tracking.files import log_report, log_settings
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.training.tracking.names import metric_names
from accunet_monai.training.tracking.outbox import Outbox
from accunet_monai.training.tracking.runs import (
    TrackingError,
    close_stale_runs,
    connect,
    find_run,
    open_experiment,
    reopen_run,
    start_run,
)
from accunet_monai.training.tracking.settings import git_state

_PARENT = "mlflow.parentRunId"


class ParentRun:
    """An MLflow run that others are nested below; it is open until :meth:`close`.

    Args:
        experiment: name of the experiment, made if need be.
        name: of the run.
        runs_dir: where the default database lies; see :func:`tracking_uri`.
        output_dir: of the cross-validation: ``run.json`` there names the run; what MLflow does not take waits there.
        folds: the cases of each fold.
        bundle_root: the bundle's folder, whose state in git is told.
        resume: go on with the run that ``run.json`` names, if there is one.

    Raises:
        TrackingError: ``TRACKING_SERVER``, ``TRACKING_RUN_MISSING``.
    """

    def __init__(
        self,
        experiment: str,
        name: str,
        runs_dir: Path,
        output_dir: Path,
        folds: Sequence[Sequence[Case]],
        bundle_root: Path,
        resume: bool = False,
    ) -> None:
        self.folds = folds
        self.identities = Identities(case for fold in folds for case in fold)
        self.client = connect(runs_dir)
        self.experiment_id = open_experiment(self.client, experiment, runs_dir)
        close_stale_runs(self.client, [self.experiment_id])
        earlier = read_run_file(output_dir).get("run_id") if resume else None
        if earlier:
            self.run_id = str(reopen_run(self.client, earlier).info.run_id)
        else:
            tags = {**git_state(bundle_root), "bundle": bundle_root.name, "folds": str(len(folds))}
            tags = {key: self.identities.clean(value) for key, value in tags.items()}
            self.run_id = start_run(self.client, self.experiment_id, name, tags)
        write_run_file(output_dir, {"run_id": self.run_id, "experiment_id": self.experiment_id})
        self.outbox = Outbox(self.client, self.run_id, output_dir)
        self.outbox.start(resumed=bool(earlier))

    def log_start(self, config: Mapping[str, Any], original: Mapping[str, Any]) -> None:
        """Log parameters, config and environment, and each fold as a dataset, unless an earlier process has.

        Args:
            config: that all folds are trained with.
            original: the bundle's own.
        """
        logged = bool(find_run(self.client, self.run_id).data.params)
        log_settings(self.client, self.run_id, config, original, self.identities, resumed=logged)
        parts = {f"fold {number}": cases for number, cases in enumerate(self.folds)}
        log_datasets(self.client, self.run_id, parts, self.identities, resumed=logged)

    def adopt(self, folders: Sequence[Path]) -> list[str]:
        """Nest the runs of folds, also of those that were trained one by one.

        Args:
            folders: of the folds' trainings, each with its ``run.json``.

        Returns:
            For each fold a link to its run in MLflow's page; "" where that is not in this MLflow.
        """
        links = []
        for folder in folders:
            run_id = read_run_file(folder).get("run_id", "")
            try:
                run = find_run(self.client, run_id) if run_id else None
            except TrackingError as error:
                if error.code != "TRACKING_RUN_MISSING":
                    raise
                run = None
            if run is not None and run.data.tags.get(_PARENT) != self.run_id:
                self.client.set_tag(run_id, _PARENT, self.run_id)
            links.append(f"#/experiments/{run.info.experiment_id}/runs/{run_id}" if run is not None else "")
        return links

    def named(self, rows: Sequence[Row]) -> list[Row]:
        """Rows under the names that are logged."""
        return [
            {
                **row,
                "case": self.identities.case(row["case"]),
                "subject": self.identities.subject(row["subject"]),
            }
            for row in rows
        ]

    def log_report(self, report: Path, rows: Sequence[Sequence[Row]], links: Sequence[str]) -> None:
        """Log the out-of-fold evaluation.

        Args:
            report: folder that ``write_report`` wrote.
            rows: of each fold, as they are named there.
            links: of :meth:`adopt`.
        """
        summaries = [summarise(fold) for fold in rows]
        every = [row for fold in rows for row in fold]
        log_report(
            self.outbox,
            report,
            every,
            "Cross-validation, each case predicted by a network that has not seen its subject",
            "\n".join(
                ["| fold | cases | Dice |", "|---|---|---|", *map(_fold_line, range(len(rows)), summaries, links)]
            ),
            "**Artifacts** has `review.html` (the worst cases first), `cases.csv`, `bland_altman.png`, `boxes.png`.",
        )
        whole = summarise(every)
        means = {"out_of_fold_dice": whole.overall["dice"].mean}
        names = metric_names("out_of_fold_dice_", whole.labels)
        means |= {names[label]: found["dice"].mean for label, found in whole.labels.items()}
        self.outbox.metrics({name: mean for name, mean in means.items() if mean == mean}, 0)
        for number, summary in enumerate(summaries):
            self.outbox.metrics({"fold_dice": summary.overall["dice"].mean}, number)

    def close(self, status: str) -> bool:
        """End the run as ``FINISHED``, ``FAILED`` or ``KILLED``; returns whether all of it was sent."""
        return self.outbox.close(status)


def _fold_line(number: int, summary: Summary, link: str) -> str:
    name = f"[fold {number}]({link})" if link else f"fold {number}"
    return f"| {name} | {summary.cases} | {summary.overall['dice'].text(3)} |"
