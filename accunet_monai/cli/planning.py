"""`accunet plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accunet_monai.cli.common import SetOption, app, console, guarded, overrides


@app.command()
def plan(
    dataset: Annotated[
        Path,
        typer.Argument(
            help="Folder with dataset.json (Decathlon, nnU-Net raw), a CSV file with image and label, or case folders."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder, named as the bundle.")],
    memory: Annotated[
        float | None,
        typer.Option(min=0.05, help="GiB that training may take; by default the GPU's, or half of what is free."),
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="split.json with the subjects of the cases, and folds if they are to be kept.")
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="An edited docs/plan.yaml of an earlier plan.")
    ] = None,
    settings: SetOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier plan's files; weights stay.")] = False,
) -> None:
    """Examine a labelled dataset and write a bundle that trains at once; every choice is printed with its reason."""
    from accunet_monai.planning import plan_dataset

    guarded(
        plan_dataset,
        dataset,
        output,
        memory_gib=memory,
        own=overrides(settings),
        plan_file=plan_file,
        split_file=split,
        overwrite=overwrite,
        console=console,
    )
