"""`accunet compare` and `accunet bundle card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accunet_monai.cli.bundles import bundle_app
from accunet_monai.cli.common import BundleArgument, app, console, guarded


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Case table (csv or parquet) of the run that was there, or its folder.")],
    b: Annotated[Path, typer.Argument(help="Likewise, of the run that is to be judged.")],
    metric: Annotated[
        str,
        typer.Option(help="dice, iou, hd95_mm, surface_dice, volume_error_ml or volume_error_percent."),
    ] = "dice",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the comparison here, too.")] = None,
) -> None:
    """Compare two evaluations of the same cases, case by case: is B better than A, and on which cases is it worse?"""
    import json

    from accunet_monai import evaluation
    from accunet_monai.volumes import atomic_output

    rows_a, rows_b = (guarded(evaluation.read_rows, path) for path in (a, b))
    comparison = guarded(evaluation.compare, rows_a, rows_b, metric)
    evaluation.print_comparison(comparison, console)
    if json_file is not None:
        with atomic_output(json_file) as stream:
            stream.write(json.dumps(comparison.as_dict(), indent=1).encode())
        console.print(f"written: {json_file}", highlight=False, markup=False, soft_wrap=True)


@bundle_app.command("card")
def card_command(
    bundle: BundleArgument,
    cases: Annotated[Path, typer.Option(help="Case table of an evaluation, or the evaluation's folder.")],
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="The table is that of cross-validation, not of the bundle's weights.")
    ] = False,
    subgroups: Annotated[
        Path | None, typer.Option(help="CSV: a column case, and columns that divide the cases into groups.")
    ] = None,
) -> None:
    """Write the results of an evaluation into the bundle's docs/README.md, between two marks."""
    from accunet_monai.bundle import find_bundle
    from accunet_monai.evaluation.card import write_card

    folder = guarded(find_bundle, bundle)
    words = ["accunet bundle card", folder.name, "--cases", _said(cases)]
    words += ["--out-of-fold"] if out_of_fold else []
    words += ["--subgroups", _said(subgroups)] if subgroups is not None else []
    command = " ".join(words)
    readme = guarded(write_card, folder, cases, out_of_fold=out_of_fold, subgroups=subgroups, command=command)
    next_step = f"accunet bundle manifest {bundle}"
    console.print(f"written: {readme}; next: {next_step}", highlight=False, markup=False, soft_wrap=True)


def _said(path: Path) -> str:
    """A path as a README may name it: nobody else has this machine's folders."""
    return path.name if path.is_absolute() else path.as_posix()
