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
    pacs: Annotated[bool, typer.Option(help="Send the hippocampi through a PACS, too.")] = True,
    write_dicom: Annotated[
        Path | None, typer.Option("--write-dicom", help="Only write the demo's volumes as DICOM series into a folder.")
    ] = None,
) -> None:
    """Segment a brain MRI, train a small network, send a series through a PACS; needs no data and no network."""
    if write_dicom is not None:
        for folder in guarded(_write_dicom, write_dicom):
            console.print(f"written: {folder}", highlight=False, markup=False, soft_wrap=True)
        return
    guarded(_demo, output, train=train, control=control, pacs=pacs, console=console)


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


def _write_dicom(folder: Path) -> list[Path]:
    from accunet_monai.demo.series import write_demo_series

    return write_demo_series(folder)


def _demo(*args: Any, **kwargs: Any) -> None:
    from accunet_monai.demo import run_demo

    run_demo(*args, **kwargs)
