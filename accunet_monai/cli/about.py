"""`accunet demo` and `version`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accunet_monai import __version__
from accunet_monai.cli.common import app, console, guarded


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for label maps, pictures and the MLflow database.")] = Path(
        "accunet-demo"
    ),
    train: Annotated[bool, typer.Option(help="Train the small network, too (a few minutes).")] = True,
    control: Annotated[bool, typer.Option(help="Also train on shuffled labels, which must fail.")] = False,
) -> None:
    """Segment a brain MRI, train a small network and show its experiment; needs no data and no network."""
    guarded(_demo, output, train=train, control=control, console=console)


@app.command()
def version() -> None:
    """The versions of this package and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    console.print(f"accunet-monai {__version__}")
    for package in ("torch", "monai", "pytorch-ignite", "mlflow", "nibabel", "SimpleITK"):
        try:
            console.print(f"{package} {installed(package)}")
        except PackageNotFoundError:
            console.print(f"{package} not installed")


def _demo(*args: Any, **kwargs: Any) -> None:
    from accunet_monai.demo import run_demo

    run_demo(*args, **kwargs)
