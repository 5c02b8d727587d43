"""The demo's two halves in a row, with what they show and do not show."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from accunet_monai.demo.hippocampus import segment_hippocampi
from accunet_monai.demo.tissue import train_on_made_brains

HONESTY = (
    "The image is an average of 152 people, and all training shapes are deformations of the same anatomy: "
    "this shows that contrast transfers, not that the network generalises to other people. Not a medical device."
)


def run_demo(output: Path, *, train: bool = True, control: bool = False, console: Console | None = None) -> None:
    """Segment both hippocampi of the average brain; train on made brains, evaluate on the average brain.

    Args:
        output: folder for label maps, pictures, weights and MLflow's database.
        train: also train (a few minutes on two cores).
        control: also train on shuffled labels, which must fail.
        console: where to print.

    Raises:
        DatasetError: ``NILEARN_MISSING`` when the extra ``demo`` is not installed.
    """
    console = console or Console()
    started = time.monotonic()
    console.rule("1. The shipped network segments both hippocampi of a brain it never saw")
    segment_hippocampi(output, console)
    if train:
        console.rule("2. A small ACC-UNet trains on made brains and segments the real average T1")
        train_on_made_brains(output, console)
        if control:
            console.rule("3. Control: the same training on shuffled labels")
            train_on_made_brains(output, console, shuffle_labels=True)
    console.print(HONESTY, style="yellow")
    console.print(f"{time.monotonic() - started:.0f} s, all files in {output}", highlight=False)
