"""`accunet registry …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from accunet_monai.cli.common import app, console, guarded

registry_app = typer.Typer(no_args_is_help=True, help="Models registered in MLflow: list, register, promote, pull.")
app.add_typer(registry_app, name="registry")

RunsOption = Annotated[
    Path, typer.Option("--runs-dir", help="Folder of the database mlflow.db, unless MLFLOW_TRACKING_URI is set.")
]


@registry_app.command("list")
def list_command(runs_dir: RunsOption = Path("runs")) -> None:
    """The registered models with their versions, aliases and runs."""
    from accunet_monai.registry import list_versions

    table = Table("model", "version", "aliases", "Dice", "run", "gate")
    for item in guarded(list_versions, runs_dir):
        dice = "–" if item.dice is None else f"{item.dice:.3f}"
        table.add_row(item.name, item.version, ", ".join(item.aliases), dice, item.run_id, item.gate)
    console.print(table)


@registry_app.command("register")
def register_command(
    run_id: Annotated[str, typer.Argument(help="Of a training that has come to its end.")],
    name: Annotated[str, typer.Argument(help="Of the registered model; made if need be.")],
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Register the bundle of a run as a new version of a model."""
    from accunet_monai.registry import register_run

    version = guarded(register_run, run_id, name, runs_dir)
    _say(f"registered: version {version} of {name}; next: accunet registry promote {name} {version}")


@registry_app.command("promote")
def promote_command(
    name: Annotated[str, typer.Argument(help="Of the registered model.")],
    version: Annotated[str, typer.Argument(help="Number of the version.")],
    alias: Annotated[str, typer.Option(help="To give.")] = "champion",
    compared: Annotated[
        bool,
        typer.Option("--compared/--not-compared", help="Compare case by case with the version that has the alias."),
    ] = True,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Give a version an alias, unless its interval shows it to be worse than the version that has it."""
    from accunet_monai.evaluation import print_comparison
    from accunet_monai.registry import promote

    gate = guarded(promote, name, version, alias, runs_dir, compared)
    if gate.comparison is not None:
        print_comparison(gate.comparison, console)
    _say(f"models:/{name}@{alias} is version {gate.version}: {gate.said}")


@registry_app.command("pull")
def pull_command(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/3.")],
    folder: Annotated[Path, typer.Argument(help="The bundle's folder; made, must not exist.")],
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Write a registered model's bundle with a manifest, for hosts that have no MLflow."""
    from accunet_monai.bundle import manifest_digest
    from accunet_monai.registry import pull

    path = guarded(pull, uri, folder, runs_dir)
    _say(f"written: {path}\nsha256 of the manifest: {manifest_digest(path)}")


@registry_app.command("tidy")
def tidy_command(
    output_dirs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of trainings whose log could not be sent.")
    ] = None,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """End runs of killed trainings as KILLED, and send what trainings kept while MLflow was away."""
    from accunet_monai.training.tracking import tidy

    closed, unsent = guarded(tidy, output_dirs or [], runs_dir)
    for run_id in closed:
        _say(f"KILLED: {run_id}")
    for folder in unsent:
        _say(f"not sent: {folder}")
    if unsent:
        raise typer.Exit(1)


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
