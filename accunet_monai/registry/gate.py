"""The gate before an alias: a version that is worse on the same patients does not become the champion."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import Comparison, Row, compare, read_rows
from accunet_monai.evaluation.comparison import FEWEST_SUBJECTS
from accunet_monai.registry.versions import PathLike, find_version
from accunet_monai.training.tracking import TrackingError
from accunet_monai.training.tracking.runs import connect, unreachable

CHAMPION = "champion"
TABLE = "cases.csv"
GATE_TAG = "gate"


@dataclass(frozen=True)
class Gate:
    """What was decided, and on what.

    Attributes:
        version: that has the alias now.
        before: the version that had it, if there was one.
        comparison: of the two; ``None`` where none was made.
        said: the reason, as it is kept in the version's tag ``gate``.
    """

    version: str
    before: str | None
    comparison: Comparison | None
    said: str


def promote(name: str, version: str, alias: str = CHAMPION, folder: PathLike = "runs", compared: bool = True) -> Gate:
    """Give a version an alias, unless it is worse than the version that has it.

    Compared are the tables of cases that the two runs have logged, case by case: worse means that the whole 95 %
    interval of the mean Dice's change is below 0, see ``accunet_monai.evaluation.compare``.

    Args:
        name: of the registered model.
        version: its number.
        alias: to give.
        folder: where the default database lies.
        compared: ``False`` gives the alias without a comparison.

    Raises:
        TrackingError: ``REGISTRY_WORSE``; ``REGISTRY_NOT_COMPARABLE`` where a run has no table, the tables are of
            other cases, of too few subjects for a verdict, or give no interval; ``REGISTRY_NO_MODEL``,
            ``TRACKING_SERVER``.
    """
    client = connect(folder)
    candidate = find_version(client, f"models:/{name}/{version}")
    try:
        champion = find_version(client, f"models:/{name}@{alias}")
    except TrackingError as error:
        if error.code != "REGISTRY_NO_MODEL":
            raise
        champion = None
    before = None if champion is None else str(champion.version)
    comparison = None
    if champion is None or before == str(candidate.version):
        said = f"the first {alias}" if champion is None else f"already the {alias}"
    elif not compared:
        said = f"not compared with version {before}"
    else:
        comparison = _compared(client, champion.run_id, candidate.run_id)
        said = _said(comparison, str(before))
        _check_decides(comparison, said)
        if comparison.verdict == "worse":
            raise TrackingError(
                "REGISTRY_WORSE",
                f"version {version} of {name!r} is worse than the {alias}: {said}.",
                hint="The alias stays where it is.",
            )
    try:
        client.set_model_version_tag(name, str(candidate.version), GATE_TAG, f"{alias}: {said}")
        client.set_registered_model_alias(name, alias, str(candidate.version))
    except MlflowException as error:
        raise unreachable(client, error) from error
    return Gate(str(candidate.version), before, comparison, said)


def _compared(client: MlflowClient, run_a: str | None, run_b: str | None) -> Comparison:
    try:
        return compare(_rows(client, run_a), _rows(client, run_b))
    except (DatasetError, MlflowException, OSError) as error:
        raise TrackingError(
            "REGISTRY_NOT_COMPARABLE",
            f"the runs {run_a} and {run_b} cannot be compared ({error}).",
            hint="Evaluate both on the same cases, or decide without a comparison: --not-compared.",
        ) from error


def _check_decides(comparison: Comparison, said: str) -> None:
    """Refuse a comparison that could not say "worse" whatever the two versions find."""
    few = comparison.subjects < FEWEST_SUBJECTS
    if few or math.isnan(comparison.overall.low + comparison.overall.high):
        why = f"there are fewer than {FEWEST_SUBJECTS} subjects" if few else "the change has no interval"
        raise TrackingError(
            "REGISTRY_NOT_COMPARABLE",
            f"no verdict is possible, {why}: {said}.",
            hint="Evaluate both on more subjects, or decide without a comparison: --not-compared.",
        )


def _rows(client: MlflowClient, run_id: str | None) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        return read_rows(Path(client.download_artifacts(run_id or "", TABLE, place)))


def _said(comparison: Comparison, before: str) -> str:
    change = comparison.overall
    return (
        f"mean Dice {comparison.mean_a:.3f} → {comparison.mean_b:.3f} against version {before}, "
        f"change {change.text(3)} over {comparison.subjects} subjects, "
        f"{comparison.better} cases better, {comparison.worse} worse"
    )
