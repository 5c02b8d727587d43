"""What the commands share: consoles, options, and how an error becomes one line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from accunet_monai.errors import AccunetError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="ACC-UNet for medical images: train, evaluate and run MONAI bundles. Not a medical device.",
)
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


def run_bundle_config(bundle: str, name: str, values: dict[str, Any], overlays: list[Path] | None) -> None:
    """Run a config of a bundle with overridden keys and overlays."""
    from accunet_monai.workflow import run_config

    guarded(run_config, bundle, name, values, tuple(overlays or ()))


def overrides(pairs: list[str] | None) -> dict[str, Any]:
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


def guarded(function: Any, *args: Any, **kwargs: Any) -> Any:
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
