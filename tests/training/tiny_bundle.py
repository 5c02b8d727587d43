"""A bundle like the hippocampus one, on made volumes and with a network of two filters: it trains in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accunet_monai.workflow import run_config
from tests import made_bundle

ROOT = Path(__file__).resolve().parents[2]
CASES = [f"case_{number}" for number in range(6)]


def tiny_bundle(folder: Path, folds: int = 3) -> dict[str, Any]:
    """Makes ``bundle`` and ``data`` in a folder; returns overrides for a training there."""
    bundle = folder / "bundle"
    shutil.copytree(ROOT / "bundles" / "hippocampus_mri" / "configs", bundle / "configs")
    made_bundle.one_view(bundle, (32, 32))
    for name in ("train", "evaluate", "inference"):
        config = made_bundle.read_config(bundle, name)
        config["network_def"]["base_filters"] = 2
        config["network_def"]["mlfc_iterations"] = 1
        made_bundle.write_config(bundle, name, config)
    made_bundle.without_contract(bundle)
    split = {
        "subjects": {case: f"subject_{number // 2}" for number, case in enumerate(CASES)},
        "parts": {"training": CASES[:4], "validation": CASES[4:]},
        "folds": [CASES[2 * number : 2 * number + 2] for number in range(folds)],
    }
    (bundle / "configs" / "split.json").write_text(json.dumps(split), encoding="utf-8")
    dataset = made_bundle.decathlon_folder(folder / "data", CASES, CASES)
    return {
        "dataset_dir": str(dataset),
        "runs_dir": str(folder / "runs"),
        "output_dir": str(folder / "out"),
        "device": "cpu",
        "max_epochs": 2,
        "val_interval": 1,
        "batch_size": 4,
        "train::sampler::slices_per_epoch": 12,
        "checkpoint_interval": 0,
    }


def train(folder: Path, values: dict[str, Any], *overlays: Path) -> Any:
    """Runs it as the command line does."""
    return run_config(folder / "bundle", "train", values, overlays)
