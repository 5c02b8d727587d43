"""``accunet``: the command line. Heavy packages are imported by the commands, so that ``accunet --help`` is quick."""

from __future__ import annotations

import contextlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accunet_monai import __version__
from accunet_monai.errors import AccunetError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="ACC-UNet for medical images: train, evaluate and run MONAI bundles. Not a medical device.",
)
bundle_app = typer.Typer(no_args_is_help=True, help="List, describe, verify and convert bundles.")
app.add_typer(bundle_app, name="bundle")

console = Console()
errors = Console(stderr=True)

BundleArgument = Annotated[str, typer.Argument(help="Name of a shipped bundle, or a bundle's folder.")]
DatasetOption = Annotated[
    Path | None,
    typer.Option(
        "--dataset_dir",
        "--dataset-dir",
        help="Folder with dataset.json, imagesTr and labelsTr; by default what the bundle's config says.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default cuda when there is one.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; may be repeated.")
]
OverlayOption = Annotated[
    list[Path] | None, typer.Option("--config", help="Config file laid over the bundle's, e.g. configs/fast_dev.yaml.")
]


class NetworkPrecision(StrEnum):
    """What the network computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LabelFormat(StrEnum):
    """What label maps are written as."""

    NIFTI = "nifti"
    SEG = "seg"


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for label maps, pictures and the MLflow database.")] = Path(
        "accunet-demo"
    ),
    train: Annotated[bool, typer.Option(help="Train the small network, too (a few minutes).")] = True,
    control: Annotated[bool, typer.Option(help="Also train on shuffled labels, which must fail.")] = False,
) -> None:
    """Segment a brain MRI, train a small network and show its experiment; needs no data and no network."""
    _guarded(_demo, output, train=train, control=control, console=console)


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
    values = _overrides(override)
    for key, value in (
        ("dataset_dir", dataset_dir),
        ("output_dir", output_dir),
        ("max_epochs", epochs),
        ("device", device),
    ):
        if value is not None:
            values[key] = str(value) if isinstance(value, Path) else value
    _run_config(bundle, "train", values, config)


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
    values = _overrides(override)
    for key, value in (("dataset_dir", dataset_dir), ("weights", weights), ("device", device)):
        if value is not None:
            values[key] = str(value)
    _run_config(bundle, "evaluate", values, config)


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

        _guarded(explain_memory, source, bundle, console)
        return
    from accunet_monai.batch import predict_files

    report = _guarded(
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

    _guarded(
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

    _guarded(print_series, path, console)


@bundle_app.command("list")
def list_command() -> None:
    """The bundles shipped with this installation."""
    from accunet_monai.bundle import list_bundles, read_metadata

    table = Table("bundle", "version", "task")
    for path in _guarded(list_bundles):
        metadata = read_metadata(path)
        table.add_row(path.name, str(metadata.get("version", "?")), str(metadata.get("task", "")))
    console.print(table)


@bundle_app.command("show")
def show_command(bundle: BundleArgument) -> None:
    """A bundle's purpose, labels, network and weights."""
    from accunet_monai.summary import print_bundle

    _guarded(print_bundle, bundle, console)


@bundle_app.command("export-checkpoint")
def export_command(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Argument(help="File to write, e.g. model.pt.")],
    weights: Annotated[Path | None, typer.Option(help="Weights to convert instead of the bundle's.")] = None,
) -> None:
    """Write the bundle's safetensors weights as a PyTorch state_dict, for tools that want model.pt."""
    from accunet_monai.summary import export_checkpoint

    _guarded(export_checkpoint, bundle, output, weights)
    console.print(f"written: {output}")


@bundle_app.command("install-weights")
def install_command(
    bundle: BundleArgument,
    weights: Annotated[Path, typer.Argument(help="Trained weights, e.g. runs/hippocampus_mri/best.safetensors.")],
    half: Annotated[bool, typer.Option(help="Store matrices and kernels as float16: half the size.")] = False,
) -> None:
    """Make trained weights the bundle's own, once they are known to fit its network."""
    from accunet_monai.summary import install_weights

    console.print(f"written: {_guarded(install_weights, bundle, weights, half=half)}", highlight=False, soft_wrap=True)


@bundle_app.command("manifest")
def manifest_command(
    bundle: BundleArgument,
    mlflow_run: Annotated[str | None, typer.Option(help="Id of the MLflow run that made the weights.")] = None,
    dataset_digest: Annotated[str | None, typer.Option(help="Digest of the data they were trained on.")] = None,
) -> None:
    """Write the bundle's manifest anew: size and sha256 of its files. For whoever vouches for the files."""
    from accunet_monai.bundle import find_bundle, manifest_digest, write_manifest

    folder = _guarded(find_bundle, bundle)
    path = _guarded(write_manifest, folder, mlflow_run=mlflow_run, dataset_digest=dataset_digest)
    console.print(
        f"written: {path}\nsha256 of the manifest: {manifest_digest(folder)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@bundle_app.command("verify")
def verify_command(
    bundle: BundleArgument,
    digest: Annotated[
        str | None, typer.Option(help="The sha256 that the manifest must have; stands for the whole bundle.")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Ask for a manifest with all files, and for data only: no model.pt, no programs.")
    ] = True,
) -> None:
    """Whether a bundle is as its manifest says and asks for no more than is allowed; nothing of it is run."""
    from accunet_monai.bundle import find_bundle, load_bundle, verify_bundle

    folder = _guarded(find_bundle, bundle)
    found = _guarded(verify_bundle, folder, strict=strict, digest=digest)
    _guarded(load_bundle, folder)  # the weights fit the network
    console.print(
        f"verified: {folder}\nsha256 of the manifest: {found or 'none'}", highlight=False, markup=False, soft_wrap=True
    )


@bundle_app.command("unpack")
def unpack_command(
    archive: Annotated[Path, typer.Argument(help="Zip file with one bundle in it.")],
    folder: Annotated[Path, typer.Argument(help="The bundle's folder; made, must not exist.")],
) -> None:
    """Unpack a bundle that comes as a zip file, unless an entry would land elsewhere, link or fill the disk."""
    from accunet_monai.bundle import unpack_bundle

    path = _guarded(unpack_bundle, archive, folder)
    console.print(f"written: {path}; next: accunet bundle verify {path}", highlight=False, markup=False, soft_wrap=True)


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


def main() -> None:
    """Entry point of the ``accunet`` script."""
    app()


def _demo(*args: Any, **kwargs: Any) -> None:
    from accunet_monai.demo import run_demo

    run_demo(*args, **kwargs)


def _run_config(bundle: str, name: str, overrides: dict[str, Any], overlays: list[Path] | None) -> None:
    from accunet_monai.workflow import run_config

    _guarded(run_config, bundle, name, overrides, tuple(overlays or ()))


def _overrides(pairs: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` strings with values as YAML reads them."""
    import yaml

    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"expected KEY=VALUE, got {pair!r}")
        if key in values:
            raise typer.BadParameter(f"{key!r} is set twice")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{pair!r} is not YAML ({' '.join(str(error).split())})") from error
        if isinstance(values[key], str):  # YAML 1.1 takes 1e-3 for text
            with contextlib.suppress(ValueError):
                values[key] = float(values[key])
    return values


def _guarded(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a command's work; an error raised on purpose becomes one line and exit status 1."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, AccunetError):  # MONAI wraps what its configs raise
            cause = cause.__cause__
        if cause is None and isinstance(error, ModuleNotFoundError):
            cause = error
            advice = f"the package {error.name} is missing: pip install 'accunet-monai[train,demo]'"
        elif cause is None:
            raise
        else:
            advice = str(cause)
        errors.print(f"[bold red]error:[/bold red] {escape(advice)}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
