"""Versions of registered models: made of a run, listed, and pulled as a bundle's folder."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from accunet_monai.bundle import read_manifest, verify_bundle, write_manifest
from accunet_monai.training.tracking import TrackingError
from accunet_monai.training.tracking.files import BUNDLE
from accunet_monai.training.tracking.model import register_bundle
from accunet_monai.training.tracking.runs import connect, find_run, shown_uri, unreachable

PathLike = str | os.PathLike[str]

DATASET_TAG = "dataset"
METRIC = "val_mean_dice"

_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Listed:
    """A version of a registered model, with its aliases, its run, and that run's mean Dice if it has one."""

    name: str
    version: str
    aliases: tuple[str, ...]
    run_id: str
    dice: float | None
    gate: str


def register_run(run_id: str, name: str, folder: PathLike = "runs") -> str:
    """Register the bundle that a run has logged; returns the version's number.

    Args:
        run_id: of a training that has come to its end.
        name: of the registered model, made if need be.
        folder: where the default database lies.

    Raises:
        TrackingError: ``REGISTRY_NO_BUNDLE``, ``TRACKING_RUN_MISSING``, ``TRACKING_SERVER``.
    """
    client = connect(folder)
    find_run(client, run_id)
    with tempfile.TemporaryDirectory() as place:
        try:
            bundle = Path(client.download_artifacts(run_id, BUNDLE, place))
        except (MlflowException, OSError) as error:
            hint = "Only a training that has come to its end has one."
            raise TrackingError("REGISTRY_NO_BUNDLE", f"run {run_id!r} has no bundle.", hint=hint) from error
        return register_bundle(client, run_id, bundle, name)


def list_versions(folder: PathLike = "runs") -> list[Listed]:
    """All versions of all registered models, the newest of each first.

    Raises:
        TrackingError: ``TRACKING_SERVER``.
    """
    client = connect(folder)
    try:
        models = list(client.search_registered_models())
        found: list[Listed] = []
        for model in models:
            aliases: dict[str, list[str]] = {}
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append(alias)
            versions = client.search_model_versions(f"name = '{model.name}'")
            newest = sorted(versions, key=lambda item: -int(item.version))
            found += [_listed(client, item, tuple(sorted(aliases.get(str(item.version), ())))) for item in newest]
    except MlflowException as error:
        raise unreachable(client, error) from error
    return found


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means.

    Raises:
        TrackingError: ``REGISTRY_URI``, ``REGISTRY_NO_MODEL``, ``TRACKING_SERVER``.
    """
    asked = _URI.fullmatch(uri)
    if asked is None:
        hint = "Write models:/NAME@champion or models:/NAME/3."
        raise TrackingError("REGISTRY_URI", f"{uri!r} does not name a version of a model.", hint=hint)
    try:
        if asked["alias"]:
            return client.get_model_version_by_alias(asked["name"], asked["alias"])
        return client.get_model_version(asked["name"], asked["version"])
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise unreachable(client, error) from error
        hint = "See them with: accunet registry list"
        raise TrackingError("REGISTRY_NO_MODEL", f"there is no {uri}.", path=shown_uri(client), hint=hint) from error


def run_of(uri: str, folder: PathLike = "runs") -> str:
    """The run that made a registered model's weights: the one that the manifest of its bundle names once pulled.

    Raises:
        TrackingError: ``REGISTRY_URI``, ``REGISTRY_NO_MODEL``, ``TRACKING_SERVER``.
    """
    return find_version(connect(folder), uri).run_id or ""


def pull(uri: str, target: PathLike, folder: PathLike = "runs") -> Path:
    """Write a registered model's bundle into a new folder, with a manifest that names its run and its data.

    The folder is written whole or not at all and needs no MLflow to be used; ``accunet bundle verify`` passes.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        target: the bundle's folder; made, must not exist.
        folder: where the default database lies.

    Raises:
        TrackingError: ``REGISTRY_URI``, ``REGISTRY_NO_MODEL``, ``REGISTRY_TARGET``, ``TRACKING_SERVER``.
        BundleError: what was downloaded is not as its manifest says, or asks for more than is allowed.
    """
    target = Path(target)
    if target.exists():
        raise TrackingError("REGISTRY_TARGET", "there is something already.", path=target, hint="Name a new folder.")
    client = connect(folder)
    version = find_version(client, uri)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as place:
        try:
            source = client.get_model_version_download_uri(version.name, str(version.version))
            model = download_artifacts(artifact_uri=source, dst_path=place, tracking_uri=str(client.tracking_uri))
        except (MlflowException, OSError) as error:
            raise unreachable(client, error) from error
        bundle = Path(model) / "artifacts" / BUNDLE
        known = read_manifest(bundle)
        if known is None or known.mlflow_run is None:
            digest = find_run(client, version.run_id or "").data.tags.get(DATASET_TAG)
            write_manifest(bundle, mlflow_run=version.run_id, dataset_digest=digest)
        verify_bundle(bundle)
        shutil.move(bundle, target)
    return target


def _listed(client: MlflowClient, version: ModelVersion, aliases: tuple[str, ...]) -> Listed:
    dice = None
    if version.run_id:
        try:
            dice = client.get_run(version.run_id).data.metrics.get(METRIC)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
                raise
    return Listed(version.name, str(version.version), aliases, version.run_id or "", dice, version.tags.get("gate", ""))
