"""`accunet train` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accunet_monai.cli.common import (
    BundleArgument,
    DatasetOption,
    DeviceOption,
    OverlayOption,
    SetOption,
    app,
    overrides,
    run_bundle_config,
)


@app.command()
def train(
    bundle: BundleArgument,
    dataset_dir: DatasetOption = None,
    output_dir: Annotated[Path | None, typer.Option(help="Folder for weights and tables.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.")] = None,
    device: DeviceOption = None,
    config: OverlayOption = None,
    override: SetOption = None,
) -> None:
    """Train a bundle on a labelled dataset, tracked in MLflow."""
    values = overrides(override)
    for key, value in (
        ("dataset_dir", dataset_dir),
        ("output_dir", output_dir),
        ("max_epochs", epochs),
        ("device", device),
    ):
        if value is not None:
            values[key] = str(value) if isinstance(value, Path) else value
    run_bundle_config(bundle, "train", values, config)


@app.command()
def evaluate(
    bundle: BundleArgument,
    dataset_dir: DatasetOption = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to evaluate instead of the bundle's.")] = None,
    device: DeviceOption = None,
    config: OverlayOption = None,
    override: SetOption = None,
) -> None:
    """Dice per case and label of a bundle's weights on its validation cases."""
    values = overrides(override)
    for key, value in (("dataset_dir", dataset_dir), ("weights", weights), ("device", device)):
        if value is not None:
            values[key] = str(value)
    run_bundle_config(bundle, "evaluate", values, config)
