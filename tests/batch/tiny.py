"""A bundle and images that take milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from accunet_monai.bundle import find_bundle
from tests import made_bundle


def tiny_bundle(folder: Path, contract: dict[str, Any] | None = None) -> Path:
    """The tissue bundle's one-channel network with random weights, which give all four labels, and another contract."""
    bundle = made_bundle.copied_bundle(find_bundle("brain_tissue_t1"), folder)
    metadata = made_bundle.read_metadata(made_bundle.without_contract(bundle))
    if contract is not None:
        metadata["input_contract"] = contract
    made_bundle.write_metadata(bundle, metadata)
    config = made_bundle.read_config(bundle, "inference")
    config["network_def"]["mlfc_iterations"] = 1
    made_bundle.write_config(bundle, "inference", config)
    made_bundle.random_weights(bundle, torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    return bundle


def images(folder: Path, count: int, shape: tuple[int, int, int] = (16, 16, 4)) -> list[Path]:
    """Made volumes ``case_00.nii.gz``, …, each another."""
    paths = [folder / f"case_{number:02d}.nii.gz" for number in range(count)]
    for seed, path in enumerate(paths):
        made_bundle.save_volume(path, made_bundle.made_volume(seed, shape)[0])
    return paths


def broken_images(folder: Path, count: int = 3) -> list[Path]:
    """Files that cannot be read, named so that they lie among the others."""
    paths = [folder / f"case_{number:02d}_broken.nii.gz" for number in range(1, 4 * count, 4)]
    for path in paths:
        path.write_bytes(np.random.default_rng(0).bytes(500))
    return paths
