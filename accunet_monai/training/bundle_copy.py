"""A bundle's folder copied with another network, postprocessing or split, so that it can be trained and used as any."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from accunet_monai.bundle import find_bundle, read_plain, write_manifest
from accunet_monai.errors import BundleError, did_you_mean
from accunet_monai.volumes import atomic_output

CONFIGS = ("train", "evaluate", "inference")

NETWORKS: dict[str, dict[str, Any]] = {
    "basic_unet": {"_target_": "monai.networks.nets.BasicUNet", "features": [32, 32, 64, 128, 256, 32]},
}
"""Networks to compare with, by name; channels are the bundle's."""

CLEANING = "accunet_monai.transforms.CleanLabelsd"


def copy_bundle(
    source: Path,
    target: Path,
    network: str | None = None,
    cleaning: Mapping[str, Any] | None = None,
    split: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``configs``, ``docs`` and licences of a bundle to another folder, without weights.

    Args:
        source: the bundle.
        target: folder to write; what lies there under these names is replaced.
        network: a name in :data:`NETWORKS`, instead of the bundle's own.
        cleaning: arguments of ``CleanLabelsd`` instead of the bundle's; empty: label maps are not cleaned; ``None``: as
            they are.
        split: content of ``split.json``.

    Returns:
        ``target``.

    Raises:
        BundleError: ``NETWORK_UNKNOWN``.
    """
    shutil.copytree(source / "configs", target / "configs", dirs_exist_ok=True)
    if (source / "docs").is_dir():
        shutil.copytree(source / "docs", target / "docs", dirs_exist_ok=True)
    for licence in source.glob("LICENSE*"):
        shutil.copy2(licence, target / licence.name)
    for name in CONFIGS:
        path = target / "configs" / f"{name}.yaml"
        if path.is_file() and (network is not None or cleaning is not None):
            config = dict(read_plain(path))
            if network is not None:
                config["network_def"] = _other_network(config["network_def"], network)
            if cleaning is not None and "postprocessing" in config:
                config["postprocessing"] = _cleaned(config["postprocessing"], cleaning)
            with atomic_output(path) as stream:
                stream.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    if split is not None:
        with atomic_output(target / "configs" / "split.json") as stream:
            stream.write(json.dumps(split, indent=1).encode())
    write_manifest(target)
    return target


def with_other_network(bundle: str | os.PathLike[str], overrides: dict[str, Any], network: str) -> str:
    """Copy a bundle into the training's ``output_dir`` with another network, to be trained there.

    Args:
        bundle: a shipped bundle's name or a bundle's folder.
        overrides: of the training; gets an ``output_dir`` of its own where it has none.
        network: a name in :data:`NETWORKS`.

    Returns:
        The copy's folder.
    """
    source = find_bundle(bundle)
    runs = overrides.get("runs_dir") or read_plain(source / "configs" / "train.yaml")["runs_dir"]
    folder = Path(overrides.setdefault("output_dir", f"{runs}/{source.name}_{network}"))
    return str(copy_bundle(source, folder / "bundle", network))


def _other_network(network_def: Mapping[str, Any], name: str) -> dict[str, Any]:
    if name not in NETWORKS:
        hint = did_you_mean(name, NETWORKS) or f"There are {', '.join(NETWORKS)}."
        raise BundleError("NETWORK_UNKNOWN", f"there is no network {name!r}.", hint=hint)
    channels = {key: network_def[key] for key in ("spatial_dims", "in_channels", "out_channels")}
    return {**NETWORKS[name], **channels}


def _cleaned(postprocessing: Mapping[str, Any], cleaning: Mapping[str, Any]) -> dict[str, Any]:
    steps = [step for step in postprocessing["transforms"] if step["_target_"] != CLEANING]
    if cleaning:
        steps.append({"_target_": CLEANING, "keys": "pred", **cleaning})
    return {**postprocessing, "transforms": steps}
