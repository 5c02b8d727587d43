"""What is written of an evaluation: tables, plots, and one page to look through all cases, the worst first."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from accunet_monai.batch.page import PAGE, write_case, write_page
from accunet_monai.bundle import Prediction
from accunet_monai.evaluation.calibration import Reliability
from accunet_monai.evaluation.measures import MEASURES, Row
from accunet_monai.evaluation.plots import bland_altman, label_boxes, reliability_diagram
from accunet_monai.evaluation.summary import Summary, summarise, worst_first
from accunet_monai.evaluation.tables import TABLE, write_rows
from accunet_monai.volumes import Volume, atomic_output, contact_sheet, render_overlay

SUMMARY = "summary.json"
PARTS = Path(".review")
"""Folder for the parts of the page, in that of the evaluation; it is gone when the page is written."""

MOST_CASES = 100
"""So many cases, the worst, are on the page: at half a megabyte to a megabyte each a browser still opens it."""

WORST = Path("worst")
WORST_CASES = 10

_SHOWN = ("dice", "hd95_mm", "volume_error_ml")
_HEAD = ("", "Dice", "HD95 mm", "volume ml", "error ml")


def draw_case(
    folder: Path, prediction: Prediction, reference: npt.NDArray[Any], rows: Sequence[Row], labels: Mapping[int, str]
) -> Path:
    """Draw a case: for the page with prediction, reference, difference and measures, and as one picture.

    Args:
        folder: of the evaluation.
        prediction: of the case, with its image.
        reference: label map of the prediction's shape.
        rows: of the case, one for each label.
        labels: label value → name.

    Returns:
        The part of the page; :func:`write_report` takes it.
    """
    case = str(rows[0]["case"])
    lines = [_HEAD, *(_line(row) for row in rows)]
    part = _part(folder, case)
    _draw(prediction, reference, part.with_suffix(".png"), case, labels)
    return write_case(prediction, part, case, labels, reference, lines)


def write_report(
    folder: Path,
    rows: Sequence[Row],
    title: str,
    counts: Reliability | None = None,
    about: Mapping[str, str] | None = None,
) -> Summary:
    """Write the tables ``cases.csv`` and ``cases.parquet``, ``summary.json``, the plots, and ``review.html``.

    The pictures of the worst cases that were drawn go to ``worst/``, as ``1_CASE.png`` and so on.

    Args:
        folder: of the evaluation.
        rows: of all cases. Cases that :func:`draw_case` has drawn are on the page, at most
            :data:`MOST_CASES`, sorted by their mean Dice.
        title: of the page.
        counts: for ``reliability.png``, beside ``bland_altman.png`` and ``boxes.png``.
        about: what else ``summary.json`` is to say, e.g. which weights were evaluated.

    Raises:
        DatasetError: ``TABLE_INVALID`` for no rows.
    """
    summary = summarise(rows)
    write_rows(rows, folder / TABLE)
    write_rows(rows, folder / "cases.parquet")
    with atomic_output(folder / SUMMARY) as stream:
        stream.write(json.dumps({"about": dict(about or {}), **summary.as_dict()}, indent=1).encode())
    if not all(math.isnan(row["volume_reference_ml"]) for row in rows):  # pictures have no volume
        bland_altman(rows, folder / "bland_altman.png")
    label_boxes(rows, folder / "boxes.png")
    if counts is not None:
        reliability_diagram(counts, folder / "reliability.png")
    parts = [_part(folder, case) for case in worst_first(rows)]
    drawn = [part for part in parts if part.is_file()]
    if drawn:
        dice = summary.overall["dice"].text(MEASURES["dice"].digits)
        order = "The worst case comes first" + (f", {MOST_CASES} are shown." if len(drawn) > MOST_CASES else ".")
        note = f"Mean Dice {dice}; cases: {summary.cases}, subjects: {summary.subjects}. {order}"
        write_page(folder / PAGE, drawn[:MOST_CASES], title, reference=True, note=note)
        _keep_worst(folder, drawn)
    return summary


def _draw(
    prediction: Prediction, reference: npt.NDArray[Any], path: Path, case: str, labels: Mapping[int, str]
) -> None:
    """The prediction in colours, the reference as a white outline."""
    image, label_map = prediction.image, prediction.label_map
    if isinstance(image, Volume):
        upright = image.reoriented("RAS")
        found, expert = (Volume(each, image.affine_ras).reoriented("RAS").array for each in (label_map, reference))
        contact_sheet(
            upright.array, found, path, spacing=upright.spacing, reference=expert, title=case, label_names=labels
        )
        return
    pixels = render_overlay(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1), label_map, reference)
    with atomic_output(path) as stream:
        Image.fromarray(pixels).save(stream, "PNG")


def _part(folder: Path, case: str) -> Path:
    return folder / PARTS / f"{quote(case, safe='')}.html"


def _keep_worst(folder: Path, drawn: Sequence[Path]) -> None:
    """The pictures of the worst cases come into a folder of their own; all other parts are deleted."""
    shutil.rmtree(folder / WORST, ignore_errors=True)
    (folder / WORST).mkdir()
    for number, part in enumerate(drawn[:WORST_CASES], 1):
        part.with_suffix(".png").replace(folder / WORST / f"{number}_{part.stem}.png")
    shutil.rmtree(folder / PARTS)


def _line(row: Row) -> tuple[str, ...]:
    values = [(row[name], MEASURES[name].digits) for name in _SHOWN]
    dice, distance, error = (f"{value:.{digits}f}" if value == value else "–" for value, digits in values)
    volume = row["volume_prediction_ml"]
    status = {"only_reference": "missed", "only_prediction": "made up", "neither": "nowhere"}.get(row["status"])
    return (row["label"], status or dice, distance, f"{volume:.2f}" if volume == volume else "–", error)
