"""What a reviewer gets at the end of a training: the evaluation of the best validation, as files."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor

from accunet_monai.bundle import Prediction
from accunet_monai.errors import NetworkError
from accunet_monai.evaluation import Row, count_reliability, draw_case, measure_case, write_report
from accunet_monai.evaluation.calibration import Reliability
from accunet_monai.inferers import SliceInferer
from accunet_monai.networks import load_network
from accunet_monai.training.evaluation import case_name_of
from accunet_monai.training.tracking.best import PackedLabels
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.volumes import Volume


@dataclass(frozen=True)
class ReviewedCase:
    """A validation case with the label map of the best validation, all on the grid that the network sees.

    Attributes:
        case: name under which it is logged.
        subject: name under which its subject is logged.
        image: a volume, or a picture (C, H, W) of 0 to 255.
        reference: label map (X, Y, Z) or (H, W).
        prediction: label map of that shape.
    """

    case: str
    subject: str
    image: Volume | npt.NDArray[Any]
    reference: npt.NDArray[Any]
    prediction: npt.NDArray[Any]

    @property
    def spacing(self) -> tuple[float, ...]:
        """In mm per array axis; of a picture 1 and 1."""
        return self.image.spacing if isinstance(self.image, Volume) else (1.0, 1.0)


def reviewed_cases(
    items: Iterable[Mapping[str, Any]], predictions: Mapping[str, PackedLabels], identities: Identities
) -> Iterator[ReviewedCase]:
    """The items of a validation dataset joined with the predictions of the best validation.

    Args:
        items: ``image``, ``label``, ``case`` and, if known, ``subject``.
        predictions: case → label map.
        identities: under which names cases are logged.
    """
    for item in items:
        name = case_name_of(item)
        reference = np.asarray(item["label"])[0].astype(np.uint16)
        packed = predictions.get(name)
        if packed is not None and packed.shape == reference.shape:
            subject = identities.subject(str(item.get("subject", name)))
            image = _shown(item["image"], reference.ndim)
            yield ReviewedCase(identities.case(name), subject, image, reference, packed.array())


def report_cases(
    cases: Iterable[ReviewedCase],
    labels: Mapping[int, str],
    folder: Path,
    title: str,
    counts: Reliability | None = None,
    ignore_label: int | None = None,
) -> list[Row]:
    """Write the evaluation of these cases into ``folder``, see ``accunet_monai.evaluation.write_report``.

    Args:
        cases: to measure and to draw.
        labels: label value → name.
        folder: where tables, plots and the page go.
        title: of the page.
        counts: for the reliability diagram.
        ignore_label: value of the references whose voxels do not count.

    Returns:
        The rows of the table of cases; without any nothing is written.
    """
    rows: list[Row] = []
    for case in cases:
        maps = case.prediction, case.reference
        found = measure_case(
            *maps, case.spacing, labels, case=case.case, subject=case.subject, ignore_label=ignore_label
        )
        draw_case(folder, Prediction(case.image, case.prediction), case.reference, found, labels)
        rows += found
    if rows:
        write_report(folder, rows, title, counts)
    return rows


def reliability_of(
    weights: Path,
    inferer: Any,
    items: Iterable[Mapping[str, Any]],
    labels: Mapping[int, str],
    cases: int,
    ignore_label: int | None = None,
) -> Reliability | None:
    """Voxels of the first cases by the probability that the best network gives them.

    ``None`` where probabilities of labels cannot be had: for other inferers than ``SliceInferer``, for regions, and for
    weights that do not say what network they are of.

    Args:
        weights: of the best network.
        inferer: of the evaluator.
        items: of the validation dataset.
        labels: label value → name.
        cases: how many are looked at: each takes as long as its validation.
        ignore_label: value of the references whose voxels do not count.
    """
    if not isinstance(inferer, SliceInferer) or inferer.rule.regions is not None or not weights.is_file():
        return None
    try:
        network = load_network(weights).eval()
    except NetworkError:
        return None
    inferer = copy.copy(inferer)
    inferer.output = "probabilities"
    counts: Reliability | None = None
    for item in itertools.islice(items, cases):
        with torch.inference_mode():
            probabilities = inferer(torch.as_tensor(item["image"])[None], network)
        reference = np.asarray(item["label"])[0]
        found = count_reliability(np.asarray(probabilities)[0], reference, labels, ignore_label=ignore_label)
        counts = found if counts is None else counts + found
    return counts


def _shown(image: Any, dimensions: int) -> Volume | npt.NDArray[Any]:
    channels = np.asarray(image).astype(np.float32)
    if dimensions == 2:
        low, high = float(channels.min()), float(channels.max())
        return (channels - low) * (255 / max(high - low, 1e-6))
    affine = np.asarray(image.affine, dtype=np.float64) if isinstance(image, MetaTensor) else np.eye(4)
    return Volume(channels[0], affine)
