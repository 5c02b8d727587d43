"""`accunet bundle …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from accunet_monai.cli.common import BundleArgument, app, console, guarded

bundle_app = typer.Typer(no_args_is_help=True, help="List, describe, verify and convert bundles.")
app.add_typer(bundle_app, name="bundle")


@bundle_app.command("list")
def list_command() -> None:
    """The bundles shipped with this installation."""
    from accunet_monai.bundle import list_bundles, read_metadata

    table = Table("bundle", "version", "task")
    for path in guarded(list_bundles):
        metadata = read_metadata(path)
        table.add_row(path.name, str(metadata.get("version", "?")), str(metadata.get("task", "")))
    console.print(table)


@bundle_app.command("show")
def show_command(bundle: BundleArgument) -> None:
    """A bundle's purpose, labels, network and weights."""
    from accunet_monai.summary import print_bundle

    guarded(print_bundle, bundle, console)


@bundle_app.command("export-checkpoint")
def export_command(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Argument(help="File to write, e.g. model.pt.")],
    weights: Annotated[Path | None, typer.Option(help="Weights to convert instead of the bundle's.")] = None,
) -> None:
    """Write the bundle's safetensors weights as a PyTorch state_dict, for tools that want model.pt."""
    from accunet_monai.summary import export_checkpoint

    guarded(export_checkpoint, bundle, output, weights)
    console.print(f"written: {output}")


@bundle_app.command("install-weights")
def install_command(
    bundle: BundleArgument,
    weights: Annotated[Path, typer.Argument(help="Trained weights, e.g. runs/hippocampus_mri/best.safetensors.")],
    half: Annotated[bool, typer.Option(help="Store matrices and kernels as float16: half the size.")] = False,
) -> None:
    """Make trained weights the bundle's own, once they are known to fit its network."""
    from accunet_monai.summary import install_weights

    console.print(f"written: {guarded(install_weights, bundle, weights, half=half)}", highlight=False, soft_wrap=True)


@bundle_app.command("manifest")
def manifest_command(
    bundle: BundleArgument,
    mlflow_run: Annotated[str | None, typer.Option(help="Id of the MLflow run that made the weights.")] = None,
    dataset_digest: Annotated[str | None, typer.Option(help="Digest of the data they were trained on.")] = None,
) -> None:
    """Write the bundle's manifest anew: size and sha256 of its files. For whoever vouches for the files."""
    from accunet_monai.bundle import find_bundle, manifest_digest, write_manifest

    folder = guarded(find_bundle, bundle)
    path = guarded(write_manifest, folder, mlflow_run=mlflow_run, dataset_digest=dataset_digest)
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

    folder = guarded(find_bundle, bundle)
    found = guarded(verify_bundle, folder, strict=strict, digest=digest)
    guarded(load_bundle, folder)  # the weights fit the network
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

    path = guarded(unpack_bundle, archive, folder)
    console.print(f"written: {path}; next: accunet bundle verify {path}", highlight=False, markup=False, soft_wrap=True)
