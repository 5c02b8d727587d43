"""MLflow experiments and runs: opened, reopened and closed by id, so that nothing depends on which run is "active"."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from accunet_monai.errors import AccunetError

URI_VARIABLE = "MLFLOW_TRACKING_URI"

EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment in MLflow's view of model training rather than of language models."""

HEARTBEAT = "accunet.heartbeat"
"""Tag of a run: seconds since 1970 when its training last said that it is alive."""

BEAT_SECONDS = 30.0
STALE_SECONDS = 10 * BEAT_SECONDS
"""A run that is called running and has not been heard of for so long was killed."""

_RUNS_PER_PAGE = 1000


class TrackingError(AccunetError, RuntimeError):
    """An MLflow server, run or registered model is not there, or not what was asked for."""


def tracking_uri(folder: str | os.PathLike[str] = "runs") -> str:
    """``MLFLOW_TRACKING_URI`` if it is set, else an SQLite database ``mlflow.db`` in ``folder``."""
    given = os.environ.get(URI_VARIABLE)
    if given:
        return given
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path / 'mlflow.db'}"


def connect(folder: str | os.PathLike[str] = "runs") -> MlflowClient:
    """A client of :func:`tracking_uri`.

    An unreachable server is given up after seconds rather than the minutes of MLflow's default, unless
    ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` says otherwise: what could not be sent is kept and sent later.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    uri = tracking_uri(folder)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def open_experiment(client: MlflowClient, name: str, folder: str | os.PathLike[str]) -> str:
    """Id of the experiment of this name, which is made, or restored if it was deleted.

    Args:
        client: of :func:`connect`.
        name: of the experiment.
        folder: where artifacts go if the database is a local file; a server keeps its own.

    Raises:
        TrackingError: ``TRACKING_SERVER``: it does not answer, or refuses the login.
    """
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            local = client.tracking_uri.startswith("sqlite:")
            place = (Path(folder).resolve() / "mlartifacts").as_uri() if local else None
            return client.create_experiment(name, artifact_location=place, tags=dict(EXPERIMENT_KIND))
        if found.lifecycle_stage == "deleted":  # in the web page, say
            client.restore_experiment(found.experiment_id)
        for key, value in EXPERIMENT_KIND.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
    except MlflowException as error:
        raise unreachable(client, error) from error
    return str(found.experiment_id)


def start_run(
    client: MlflowClient,
    experiment_id: str,
    name: str | None,
    tags: Mapping[str, str] | None = None,
    parent_run: str | None = None,
) -> str:
    """Id of a new run with a first heartbeat; by default named after the local time, nested below ``parent_run``."""
    nesting = {"mlflow.parentRunId": parent_run} if parent_run else {}
    name = name or time.strftime("%Y-%m-%d %H:%M:%S")  # MLflow's own names are drawn by the seeded generator
    every = {**(tags or {}), **nesting, HEARTBEAT: _now()}
    return str(client.create_run(experiment_id, run_name=name, tags=every).info.run_id)


def reopen_run(client: MlflowClient, run_id: str) -> Run:
    """A run that ended, or was killed, set to RUNNING again; a deleted one is restored.

    Raises:
        TrackingError: ``TRACKING_RUN_MISSING``, ``TRACKING_SERVER``.
    """
    run = find_run(client, run_id)
    if run.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    client.update_run(run_id, status="RUNNING")
    beat(client, run_id)
    return run


def find_run(client: MlflowClient, run_id: str) -> Run:
    """The run of this id.

    Raises:
        TrackingError: ``TRACKING_RUN_MISSING``, ``TRACKING_SERVER``.
    """
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise unreachable(client, error) from error
        raise TrackingError(
            "TRACKING_RUN_MISSING",
            f"MLflow has no run {run_id!r}.",
            path=shown_uri(client),
            hint=f"Set {URI_VARIABLE} to where it was logged, or remove run.json from the output folder for a new run.",
        ) from error


def beat(client: MlflowClient, *run_ids: str) -> None:
    """Say that the training of these runs is alive."""
    for run_id in run_ids:
        client.set_tag(run_id, HEARTBEAT, _now())


def close_stale_runs(
    client: MlflowClient, experiment_ids: Sequence[str], older_than: float = STALE_SECONDS
) -> list[str]:
    """End as ``KILLED`` all runs whose last heartbeat is long ago; returns their ids.

    Nobody is told when a process is killed with SIGKILL or a machine goes off: its run is still called running. Runs
    that never had a heartbeat are not of this package and left alone. The end time is that of the last heartbeat.

    Args:
        client: of :func:`connect`.
        experiment_ids: where to look.
        older_than: seconds without a heartbeat.
    """
    running = []
    token: str | None = None
    while True:
        page = client.search_runs(
            list(experiment_ids), "attributes.status = 'RUNNING'", max_results=_RUNS_PER_PAGE, page_token=token
        )
        running += list(page)
        token = page.token
        if not token:
            break
    stale = [run for run in running if HEARTBEAT in run.data.tags and _age(run) > older_than]
    for run in stale:
        client.set_terminated(run.info.run_id, "KILLED", end_time=int(float(run.data.tags[HEARTBEAT]) * 1000))
    return [str(run.info.run_id) for run in stale]


def unreachable(client: MlflowClient, error: Exception) -> TrackingError:
    """What to say of a server that does not answer."""
    return TrackingError(
        "TRACKING_SERVER",
        f"MLflow does not answer as it should ({without_password(' '.join(str(error).split()))[:300]}).",
        path=shown_uri(client),
        hint=f"See {URI_VARIABLE}, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; "
        f"unset {URI_VARIABLE} to log into the folder runs.",
    )


def shown_uri(client: MlflowClient) -> str:
    """The tracking address without a password."""
    return without_password(str(client.tracking_uri))


def without_password(text: str) -> str:
    """A text without what stands between ``://`` and ``@`` in its addresses."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _age(run: Any) -> float:
    return time.time() - float(run.data.tags[HEARTBEAT])


def _now() -> str:
    return f"{time.time():.0f}"
