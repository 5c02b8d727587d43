"""A bundle as a registered model of MLflow: served as it is, with a signature that takes images of any size."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient, pyfunc
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from accunet_monai import __version__
from accunet_monai.bundle import read_metadata
from accunet_monai.training.tracking.runs import find_run, unreachable

_SERVED = "accunet_monai.training.tracking.served_model"
_REQUIRED = ("mlflow", "torch", "monai")
_EXAMPLE = (24, 32, 24)


def register_bundle(client: MlflowClient, run_id: str, bundle: Path, name: str) -> str:
    """Log a bundle's folder as a model of a run, and register it; returns the new version's number.

    Args:
        client: of the tracking store.
        run_id: that made the weights.
        bundle: with them.
        name: of the registered model, made if need be.

    Raises:
        TrackingError: ``TRACKING_SERVER``, ``TRACKING_RUN_MISSING``.
    """
    run = find_run(client, run_id)
    try:
        logged = client.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            about = Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                run_id=run_id,
                model_id=logged.model_id,
            )
            save_model(bundle, path, about)
            client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        made = client.create_model_version(name, logged.artifact_location, run_id, model_id=logged.model_id)
    except MlflowException as error:
        raise unreachable(client, error) from error
    return str(made.version)


def save_model(bundle: Path, path: Path, about: Model | None = None) -> None:
    """Write a bundle as an MLflow model into the folder ``path``."""
    code = importlib.util.find_spec(_SERVED)
    pictures = read_metadata(bundle).get("intended_input") == "picture"
    with warnings.catch_warnings():  # the signature says what type hints would
        warnings.filterwarnings("ignore", "(?s).*type hint", UserWarning)
        pyfunc.save_model(
            path=str(path),
            mlflow_model=about,
            python_model=str(code.origin) if code else None,
            artifacts={"bundle": str(bundle)},
            signature=_picture_signature(bundle) if pictures else _volume_signature(),
            input_example=None if pictures else example_input(_EXAMPLE),
            pip_requirements=[f"accunet-monai=={__version__}", *(f"{name}=={version(name)}" for name in _REQUIRED)],
        )


def example_input(shape: tuple[int, int, int]) -> dict[str, npt.NDArray[Any]]:
    """A made image, no patient's: a bright ball in noise, 1 mm voxels."""
    centre = (np.array(shape) - 1) / 2
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
    noise = np.random.default_rng(0).normal(100, 10, shape)
    image = (noise + 80 * (distance < min(shape) / 3)).astype(np.float32)
    return {"image": image, "affine": np.eye(4)}


def _volume_signature() -> ModelSignature:
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.float32), (-1, -1, -1), "image"),
        TensorSpec(np.dtype(np.float64), (4, 4), "affine"),
    ]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1))]))


def _picture_signature(bundle: Path) -> ModelSignature:
    channels = int(read_metadata(bundle)["network_data_format"]["inputs"]["image"]["num_channels"])
    inputs: list[ColSpec | TensorSpec] = [TensorSpec(np.dtype(np.uint8), (-1, -1, channels), "image")]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype(np.uint8), (-1, -1))]))
