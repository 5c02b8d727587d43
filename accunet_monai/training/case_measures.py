"""The full evaluation in Ignite: all measures of each case and label, and the report when all cases are seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from rich.console import Console

from accunet_monai.bundle import Prediction
from accunet_monai.bundle.manifest import file_entry
from accunet_monai.evaluation import (
    Row,
    draw_case,
    means_by_label,
    measure_case,
    print_cases,
    print_summary,
    write_report,
)
from accunet_monai.training.evaluation import CaseMetric, case_name_of, cases_of
from accunet_monai.volumes import Volume
from accunet_monai.volumes.geometry import spacing_of


class CaseMeasures(CaseMetric):
    """Ignite metric: all measures of each case and label, see :func:`~accunet_monai.evaluation.measure_case`.

    Its value is that of :class:`CaseDice`, the mean over labels of the mean Dice over cases. ``rows`` has one row for
    each case and label. The spacing is that of the reference, or of the prediction, whichever is a MetaTensor of a
    volume; pictures are measured in pixels.

    Args:
        labels: label value → name, of the foreground labels.
        prediction_key: key of the predicted label map (1, *spatial) in the engine's decollated output.
        reference_key: key of the reference label map of the same shape.
        ignore_label: value of the reference whose voxels do not count.
        tolerance_mm: of the surface Dice.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        prediction_key: str = "pred",
        reference_key: str = "label",
        ignore_label: int | None = None,
        tolerance_mm: float = 1.0,
    ) -> None:
        super().__init__(labels, prediction_key, reference_key, ignore_label)
        self.rows_per_case = len(self.labels)
        self.tolerance_mm = tolerance_mm

    def rows_of(self, case: Mapping[str, Any]) -> list[Row]:
        """One row for each label."""
        name = case_name_of(case)
        prediction, reference, affine = self.maps_of(case)
        return measure_case(
            prediction,
            reference,
            (1.0,) * reference.ndim if affine is None else spacing_of(affine),
            self.labels,
            case=name,
            subject=str(case.get("subject", name)),
            tolerance_mm=self.tolerance_mm,
        )

    def maps_of(self, case: Mapping[str, Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None]:
        """Prediction and reference (*spatial), background in both where the reference is to be ignored; the affine."""
        prediction, reference = case[self.prediction_key], case[self.reference_key]
        maps = [_label_map(tensor) for tensor in (prediction, reference)]
        if self.ignore_label is not None:
            ignored = maps[1] == self.ignore_label
            maps = [np.where(ignored, 0, each) for each in maps]
        return maps[0], maps[1], _affine(reference, prediction)

    def label_means(self) -> dict[str, float]:
        """Mean Dice of each label over the cases where prediction or reference has it."""
        return means_by_label(self.rows)


class EvaluationReport:
    """Print the evaluation's tables when all cases are seen, and write tables, plots and the page for review.

    See :func:`~accunet_monai.evaluation.write_report` for the files. Each process draws its own cases into
    ``output_dir``, which all must share; the first one writes the rest.

    Args:
        metric: the evaluator's metric.
        output_dir: folder to write into.
        title: of the tables and the page.
        image_key: key of the image (C, *spatial) on the reference's grid, for the page; ``None`` for no page.
        weights: file that is evaluated; ``summary.json`` has its sha256.
    """

    def __init__(
        self,
        metric: CaseMeasures,
        output_dir: str | os.PathLike[str],
        title: str = "Evaluation",
        image_key: str | None = "original",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self.metric = metric
        self.output_dir = Path(output_dir)
        self.title = title
        self.image_key = image_key
        self.weights = None if weights is None else Path(weights)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        if self.image_key is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def draw(self, engine: Engine) -> None:
        """Draw the cases of the engine's last iteration, which the metric has measured."""
        cases = cases_of(engine)
        per_case = self.metric.rows_per_case
        rows = self.metric.rows[-per_case * len(cases) :]
        for number, case in enumerate(cases):
            prediction, reference, affine = self.metric.maps_of(case)
            image = np.asarray(case[str(self.image_key)].cpu())
            shown = Prediction(image if affine is None else Volume(image[0], affine), prediction)
            of_case = rows[number * per_case : (number + 1) * per_case]
            draw_case(self.output_dir, shown, reference, of_case, self.metric.labels)

    def write(self, engine: Engine) -> None:
        """Print and write what all cases come to; of several processes the first one does."""
        if idist.get_rank() == 0:
            about = {} if self.weights is None else {"weights_sha256": file_entry(self.weights).sha256}
            summary = write_report(self.output_dir, self.metric.rows, self.title, about=about)
            print_cases(self.metric.rows, self.title)
            print_summary(summary, self.title)
            Console().print(f"written to {self.output_dir}", highlight=False, soft_wrap=True, markup=False)


def _label_map(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """(*spatial) from (1, *spatial)."""
    found: npt.NDArray[Any] = np.asarray(torch.as_tensor(tensor).cpu())[0]
    return found if found.dtype.kind in "biu" else np.rint(found).astype(np.int64)


def _affine(*tensors: torch.Tensor) -> npt.NDArray[np.float64] | None:
    """Voxel → mm of the first volume that knows; ``None`` for pictures and for tensors without any."""
    for tensor in tensors:
        if isinstance(tensor, MetaTensor) and tensor.ndim == 4:
            affine: npt.NDArray[np.float64] = np.asarray(tensor.affine.cpu(), dtype=np.float64)
            return affine
    return None
