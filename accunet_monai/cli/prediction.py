"""`accunet predict`, `export` and `series`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from accunet_monai.cli.common import BundleArgument, DeviceOption, app, console, guarded


class NetworkPrecision(StrEnum):
    """What the network computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LabelFormat(StrEnum):
    """What label maps are written as."""

    NIFTI = "nifti"
    SEG = "seg"


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Argument(
            help="A file or folder: NIfTI, MetaImage, NRRD, DICOM (folder or DICOMDIR); PNG or JPEG for a 2D bundle."
        ),
    ],
    bundle: Annotated[
        list[str], typer.Option(help="Name of a shipped bundle, or a bundle's folder; several are averaged.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps.")] = Path("predictions"),
    overlay: Annotated[bool, typer.Option(help="Also write a picture of each result.")] = False,
    uncertainty: Annotated[bool, typer.Option(help="Also write a map of the network's uncertainty.")] = False,
    measures: Annotated[bool, typer.Option(help="Also write volumes and more of each label as CSV and JSON.")] = False,
    review: Annotated[bool, typer.Option(help="Also write one HTML page to look through all results.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Do again what an earlier run has done.")] = False,
    ignore_contract: Annotated[
        bool, typer.Option("--ignore-contract", help="Segment images that the bundle was not made for, too.")
    ] = False,
    explain: Annotated[bool, typer.Option(help="Only print the memory that each image will take.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes with a network each; on Ray by default one a GPU, or else one a machine."),
    ] = None,
    ray: Annotated[str | None, typer.Option(help="Work on the Ray cluster at this address (extra ray).")] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Weights to use instead of the bundle's; several are averaged.")
    ] = None,
    device: DeviceOption = None,
    output_format: Annotated[
        LabelFormat, typer.Option("--format", help="nifti, or seg: DICOM SEG, for DICOM series.")
    ] = LabelFormat.NIFTI,
    precision: Annotated[
        NetworkPrecision, typer.Option(help="bfloat16 is faster where the processor multiplies in it.")
    ] = NetworkPrecision.FLOAT32,
) -> None:
    """Segment files and DICOM series: one label map each, on its own grid. One that fails does not stop the others.

    A run that was stopped goes on where it was when it is started again.
    """
    if explain:
        from accunet_monai.batch import explain_memory

        guarded(explain_memory, source, bundle, console)
        return
    from accunet_monai.batch import predict_files

    report = guarded(
        predict_files,
        source,
        bundle[0] if len(bundle) == 1 else bundle,
        output,
        weights=weights or None,
        device=device,
        workers=workers,
        ray=ray,
        console=console,
        output_format=output_format.value,
        overlay=overlay,
        uncertainty=uncertainty,
        measures=measures,
        review=review,
        overwrite=overwrite,
        ignore_contract=ignore_contract,
        precision=precision.value,
    )
    if report.failed:
        raise typer.Exit(1)


@app.command()
def export(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Argument(help="File to write, e.g. model.ts, model.pt2 or model.onnx.")],
    file_format: Annotated[str, typer.Option("--format", help="torchscript, pt2 or onnx.")] = "torchscript",
    weights: Annotated[Path | None, typer.Option(help="Weights to export instead of the bundle's.")] = None,
    precision: Annotated[
        str, typer.Option(help="float32; bfloat16 for torchscript and pt2; int8 for onnx.")
    ] = "float32",
    dataset_dir: Annotated[
        Path | None,
        typer.Option(
            "--dataset_dir",
            "--dataset-dir",
            help="Labelled dataset: measures Dice and time on the validation cases; int8 needs it to be calibrated.",
        ),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities/--logits", help="What the program gives.")] = False,
) -> None:
    """Write a bundle's network as one file that runs without this package, checked against the network."""
    from accunet_monai.export import export_bundle

    guarded(
        export_bundle,
        bundle,
        output,
        file_format,
        weights=weights,
        precision=precision,
        dataset_dir=dataset_dir,
        probabilities=probabilities,
        console=console,
    )


@app.command()
def series(path: Annotated[Path, typer.Argument(help="A DICOM file, a folder of any depth, or a DICOMDIR.")]) -> None:
    """The DICOM series at a path, and why one of them would be refused."""
    from accunet_monai.summary import print_series

    guarded(print_series, path, console)
