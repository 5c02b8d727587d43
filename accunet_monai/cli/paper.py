"""`accunet paper-table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from accunet_monai.cli.common import app, console, guarded


@app.command("paper-table")
def paper_table(
    folder: Annotated[Path, typer.Argument(help="Folder of the results: SET/split_K/test/cases.csv.")] = Path(
        "runs/paper"
    ),
) -> None:
    """Print our test Dice beside the published one, for the sets of pictures trained with configs/paper."""
    from accunet_monai.evaluation.paper import paper_results, print_paper_table

    print_paper_table(guarded(paper_results, folder), console)
