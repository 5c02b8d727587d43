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
    guarded,
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what lies unfinished in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where it lies.")] = False,
    find_lr: Annotated[bool, typer.Option("--find-lr", help="Only look for a learning rate; keeps nothing.")] = False,
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate with so many folds by subject.")] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Of --folds, train this one alone (from 0).")] = None,
    network: Annotated[str | None, typer.Option(help="Train basic_unet, MONAI's BasicUNet, to compare.")] = None,
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
    if folds is not None:
        from accunet_monai.training.folds import cross_validate

        guarded(cross_validate, bundle, values, config or (), folds, fold, network, resume, overwrite)
        return
    if fold is not None:
        raise typer.BadParameter("--fold is one of --folds")
    if network is not None:
        from accunet_monai.training.bundle_copy import with_other_network

        bundle = guarded(with_other_network, bundle, values, network)
    values |= {
        key: True for key, given in (("resume", resume), ("overwrite", overwrite), ("find_lr", find_lr)) if given
    }
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
    """Measure a bundle's weights on its validation cases: tables with intervals, plots, a page for review."""
    values = overrides(override)
    for key, value in (("dataset_dir", dataset_dir), ("weights", weights), ("device", device)):
        if value is not None:
            values[key] = str(value)
    run_bundle_config(bundle, "evaluate", values, config)
