"""Artifacts of a run: settings at its start; report and bundle at its end."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag

from accunet_monai.bundle import WEIGHTS, write_manifest
from accunet_monai.bundle.manifest import MANIFEST, bundle_files, is_data
from accunet_monai.evaluation import Row, summarise, worst_first
from accunet_monai.training.evaluation import CaseDice
from accunet_monai.training.tracking.data import SPLIT
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.training.tracking.outbox import Outbox
from accunet_monai.training.tracking.settings import config_text, environment, params_of

BUNDLE = "bundle"
"""Folder of a run's artifacts that holds the bundle with the best weights."""

CONFIG = "config.yaml"

TABLE = "cases.json"
"""The table of cases as MLflow's page shows and compares it."""

_PARAMS_PER_CALL = 100  # MLflow takes no more at once
_COMPUTED_WITH = frozenset({"configs/inference.yaml", "configs/inference.json", "configs/metadata.json"})
_PICTURES = frozenset({".jpg", ".png"})
_PARSED: Mapping[str, Callable[[str], Any]] = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}


def log_settings(
    client: MlflowClient,
    run_id: str,
    config: Mapping[str, Any],
    original: Mapping[str, Any],
    identities: Identities,
    resumed: bool = False,
) -> None:
    """Log the config, as parameters and as a file, and the environment as tags.

    A resumed run keeps its parameters, which MLflow does not let change; where the config has changed, its file is
    logged beside the first one.
    """
    config = identities.cleaned(config)
    text = config_text(config)
    if resumed:
        earlier = sum(item.path.startswith("config") for item in client.list_artifacts(run_id))
        client.log_text(run_id, text, f"config_resumed_{max(1, earlier)}.yaml")
        return
    params = [Param(name, value) for name, value in params_of(config, original).items()]
    for start in range(0, len(params), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_CALL])
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in environment().items()])
    client.log_text(run_id, text, CONFIG)


def log_report(outbox: Outbox, folder: Path, rows: Sequence[Row], heading: str, *further: str) -> None:
    """Log the files of an evaluation, its rows as a table of MLflow's page, and a description of the run.

    Args:
        outbox: of the run.
        folder: that ``write_report`` wrote.
        rows: of all cases.
        heading: of the description: what was evaluated.
        further: paragraphs of it, in Markdown.
    """
    outbox.folder(folder)
    if rows:
        outbox.file(TABLE, lambda: _table_json(rows))
        outbox.tag("mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))
        outbox.tag("mlflow.note.content", _description(rows, heading, further))


def log_case_table(outbox: Outbox, metric: CaseDice, identities: Identities) -> None:
    """Log the Dice of each case in the last validation."""
    rows = [{**row, "case": identities.case(str(row["case"]))} for row in metric.rows]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["case", *metric.labels.values()], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    outbox.file("validation_cases.csv", buffer.getvalue().encode)


def assemble_bundle(
    folder: Path, bundle_root: Path, weights: Path, identities: Identities, run_id: str, digest: str | None
) -> Path:
    """Make a bundle's folder with these weights and a manifest, of what is data in the bundle that was trained.

    What the network is run with goes as it is; from all other texts what identifies patients is taken out. A config in
    which there is any of that is written anew, without its comments.
    """
    found, _ = bundle_files(bundle_root)
    for path in found:
        source, target = bundle_root / path, folder / path
        if path.parts[0] == "models" or path.as_posix() == MANIFEST or not is_data(path):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.as_posix() in _COMPUTED_WITH or path.suffix in _PICTURES:
            shutil.copyfile(source, target)
        else:
            target.write_text(_cleaned_text(source, identities), encoding="utf-8")
    (folder / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, folder / WEIGHTS)
    if (folder / "configs" / "metadata.json").is_file():
        write_manifest(folder, mlflow_run=run_id, dataset_digest=digest)
    return folder


def _cleaned_text(path: Path, identities: Identities) -> str:
    """What a file says without what identifies patients; a config stays one, its numbers and settings untouched."""
    text = path.read_text(encoding="utf-8")
    cleaned = identities.clean(text)
    if path.suffix not in _PARSED:
        return cleaned
    try:
        parsed = _PARSED[path.suffix](text)
    except (ValueError, yaml.YAMLError):
        return cleaned
    is_split = path.name == SPLIT and isinstance(parsed, Mapping)
    found = identities.cleaned_split(parsed) if is_split else identities.cleaned(parsed)
    if found == parsed and cleaned == text:
        return text
    if path.suffix == ".json":
        return json.dumps(found, indent=1, ensure_ascii=False)
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


def _description(rows: Sequence[Row], heading: str, further: Sequence[str]) -> str:
    """What the run's page says first, in Markdown."""
    summary = summarise(rows)
    estimates = {**{label: found["dice"] for label, found in summary.labels.items()}, "mean": summary.overall["dice"]}
    lines = [f"| {label} | {estimate.text(3)} |" for label, estimate in estimates.items()]
    parts = [
        f"{heading}: {summary.cases} cases of {summary.subjects} subjects. Dice with 95 % intervals:",
        "\n".join(["| label | Dice |", "|---|---|", *lines]),
        f"Worst cases: {', '.join(worst_first(rows)[:5])}.",
        *further,
    ]
    return "\n\n".join(parts)


def _table_json(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as MLflow's tables are: JSON in the orientation "split", NaN as null."""
    listed = list(rows)
    columns = list(listed[0]) if listed else []
    data = [[None if row[column] != row[column] else row[column] for column in columns] for row in listed]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False).encode()
