"""The demo's parts in a row, with what they show and do not show."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

from rich.console import Console

from accunet_monai.demo.hippocampus import segment_hippocampi
from accunet_monai.demo.round_trip import send_through_pacs
from accunet_monai.demo.tissue import train_on_made_brains

HONESTY = (
    "The image is an average of 152 people, and all training shapes are deformations of the same anatomy: "
    "this shows that contrast transfers, not that the network generalises to other people. Not a medical device."
)


def run_demo(
    output: Path, *, train: bool = True, control: bool = False, pacs: bool = True, console: Console | None = None
) -> None:
    """Segment the average brain's hippocampi; train on made brains, evaluate on the average one; go through a PACS.

    Args:
        output: folder for label maps, pictures, weights and MLflow's database.
        train: also train (a few minutes on two cores).
        control: also train on shuffled labels, which must fail.
        pacs: also send the hippocampi through a PACS.
        console: where to print.

    Raises:
        DatasetError: ``NILEARN_MISSING`` when the extra ``demo`` is not installed.
    """
    console = console or Console()
    started = time.monotonic()
    part = count(1)
    console.rule(f"{next(part)}. The shipped network segments both hippocampi of a brain it never saw")
    segment_hippocampi(output, console)
    if train:
        console.rule(f"{next(part)}. A small ACC-UNet trains on made brains and segments the real average T1")
        train_on_made_brains(output, console)
        if control:
            console.rule(f"{next(part)}. Control: the same training on shuffled labels")
            train_on_made_brains(output, console, shuffle_labels=True)
    if pacs:
        console.rule(f"{next(part)}. The hippocampi go through a PACS and come back as DICOM SEG")
        send_through_pacs(output, console)
    console.print(HONESTY, style="yellow")
    console.print(f"{time.monotonic() - started:.0f} s, all files in {output}", highlight=False)
