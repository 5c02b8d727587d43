"""Second half of the demo: a small network trains on made brains and is tried on an image it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from accunet_monai.bundle import Prediction, load_bundle
from accunet_monai.training.average_brain import CASE, make_average_dataset
from accunet_monai.training.evaluation import dice_per_label
from accunet_monai.training.handlers import BEST_WEIGHTS
from accunet_monai.volumes import Volume, contact_sheet, read_label_map
from accunet_monai.workflow import run_config

BUNDLE = "brain_tissue_t1"


@dataclass(frozen=True)
class TissueResult:
    """What the trained network did on the average brain.

    Attributes:
        dice: tissue → Dice against the argmax of the tissue maps.
        picture: prediction with the reference as outline.
        weights: the trained weights.
    """

    dice: dict[str, float]
    picture: Path
    weights: Path


def train_on_made_brains(
    output: Path, console: Console, *, shuffle_labels: bool = False, overrides: dict[str, Any] | None = None
) -> TissueResult:
    """Train the tissue bundle for a few minutes and evaluate it on the MNI152 average T1.

    Args:
        output: folder for the made volumes, weights, pictures and MLflow's database.
        console: where results are printed.
        shuffle_labels: the control: labels are shuffled among the voxels of each training volume.
        overrides: further keys of the bundle's ``train`` config.
    """
    name = f"{BUNDLE}_shuffled" if shuffle_labels else BUNDLE
    folder = output / name
    settings = {"runs_dir": str(output), "output_dir": str(folder), "shuffle_labels": shuffle_labels, "run_name": name}
    run_config(BUNDLE, "train", {**settings, **(overrides or {})})
    weights = folder / BEST_WEIGHTS
    result = evaluate_on_average_brain(weights, output, name)
    _print(result, console, shuffle_labels)
    return result


def evaluate_on_average_brain(weights: Path, output: Path, name: str) -> TissueResult:
    """Dice per tissue on the MNI152 average T1, and a picture.

    Args:
        weights: of the tissue bundle.
        output: folder for the image (made when missing) and the picture.
        name: of the picture.
    """
    import torch

    dataset = make_average_dataset(output / "mni152").parent
    predictor = load_bundle(BUNDLE, weights)
    prediction = predictor.predict(dataset / "imagesTr" / f"{CASE}.nii.gz")
    reference = read_label_map(dataset / "labelsTr" / f"{CASE}.nii.gz")
    found, expected = (
        torch.from_numpy(prediction.label_map.astype(np.int64)),
        torch.from_numpy(np.array(reference.array)),
    )
    scores = dice_per_label(found, expected, list(predictor.labels))
    picture = _draw(prediction, reference, output / f"{name}.png", predictor.labels)
    return TissueResult({predictor.labels[label]: score for label, score in scores.items()}, picture, weights)


def _draw(prediction: Prediction, reference: Volume, path: Path, labels: dict[int, str]) -> Path:
    """Image, prediction and reference side by side. Patient's right is on the left: last first."""
    image = np.asarray(prediction.image.array if isinstance(prediction.image, Volume) else prediction.image)
    return contact_sheet(
        np.concatenate([image, image, image]),
        np.concatenate([reference.array, prediction.label_map, np.zeros_like(prediction.label_map)]),
        path,
        spacing=reference.spacing,
        columns=2,
        slices=[20, 32, 44, 56],
        title="MNI152 average T1; prediction of a network that saw made images only; reference",
        label_names=labels,
    )


def _print(result: TissueResult, console: Console, shuffled: bool) -> None:
    title = "trained on shuffled labels (control)" if shuffled else "trained on made volumes"
    table = Table("tissue", "Dice on the MNI152 average T1", title=f"Brain tissues, {title}")
    for tissue, score in result.dice.items():
        table.add_row(tissue, f"{score:.3f}")
    console.print(table)
    console.print(f"picture: {result.picture}\nweights: {result.weights}", highlight=False, soft_wrap=True)
