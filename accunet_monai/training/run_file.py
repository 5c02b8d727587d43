"""``run.json`` in a training's output folder: the MLflow run that it belongs to. Needs no MLflow."""

from __future__ import annotations

import json
import os
from pathlib import Path

from accunet_monai.volumes import atomic_output

RUN_FILE = "run.json"


def write_run_file(output_dir: str | os.PathLike[str], content: dict[str, str]) -> Path:
    """Write ``run.json`` whole or not at all; returns its path.

    Args:
        output_dir: of the training; made if need be.
        content: ``run_id``, ``experiment_id``, ``tracking_uri``, and what else is known of the run.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_output(folder / RUN_FILE) as stream:
        stream.write(json.dumps(content, indent=1).encode() + b"\n")
    return folder / RUN_FILE


def read_run_file(output_dir: str | os.PathLike[str]) -> dict[str, str]:
    """What ``run.json`` says; empty where there is none, or none that can be read."""
    try:
        content = json.loads((Path(output_dir) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def run_header(output_dir: str | os.PathLike[str]) -> dict[str, str]:
    """For the header of weights: ``mlflow_run`` and ``dataset_digest`` of the training in this folder, where known."""
    content = read_run_file(output_dir)
    known = {"mlflow_run": content.get("run_id", ""), "dataset_digest": content.get("dataset_digest", "")}
    return {key: value for key, value in known.items() if value}
