"""What is measured of a segmented case: one row for each label, with stated rules for labels that are not there."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import DatasetError, VolumeError
from accunet_monai.volumes.labels import whole_numbers

Row = dict[str, Any]
"""A case and label: the :data:`COLUMNS`."""

Status = Literal["both", "only_reference", "only_prediction", "neither"]

TEXT_COLUMNS = ("case", "subject", "label", "status")
NUMBER_COLUMNS = (
    "dice",
    "iou",
    "hd95_mm",
    "surface_dice",
    "tolerance_mm",
    "volume_prediction_ml",
    "volume_reference_ml",
    "volume_error_ml",
    "volume_error_percent",
)
COLUMNS = (*TEXT_COLUMNS, *NUMBER_COLUMNS)
STATUSES: tuple[Status, ...] = ("both", "only_reference", "only_prediction", "neither")

_NAN = math.nan


@dataclass(frozen=True)
class Measure:
    """A column that is averaged and compared.

    Attributes:
        name: the column.
        title: for people.
        digits: behind the point.
        higher_is_better: else lower is.
        signed: better means nearer to 0.
        overlap: 0 to 1, and 1 where an empty reference is met by an empty prediction.
    """

    name: str
    title: str
    digits: int
    higher_is_better: bool = False
    signed: bool = False
    overlap: bool = False


MEASURES: Mapping[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("dice", "Dice", 3, higher_is_better=True, overlap=True),
        Measure("iou", "IoU", 3, higher_is_better=True, overlap=True),
        Measure("hd95_mm", "HD95 (mm)", 2),
        Measure("surface_dice", "surface Dice", 3, higher_is_better=True, overlap=True),
        Measure("volume_error_ml", "volume error (ml)", 2, signed=True),
        Measure("volume_error_percent", "volume error (%)", 1, signed=True),
    )
}


def measure_case(
    prediction: npt.ArrayLike,
    reference: npt.ArrayLike,
    spacing: Sequence[float],
    labels: Mapping[int, str],
    *,
    case: str,
    subject: str | None = None,
    tolerance_mm: float = 1.0,
    ignore_label: int | None = None,
) -> list[Row]:
    """Overlap, distances between surfaces and volumes of each label of two label maps on one grid.

    A label that only one of them has scores 0 in Dice, IoU and surface Dice and has no HD95; one that neither has gets
    nothing (NaN) but volumes of 0. ``status`` says which it is. HD95 is the larger of the two 95th percentiles of the
    distances from one surface's voxels to the other's; surface Dice is the share of both surfaces' areas that lies
    within the tolerance of the other (Nikolov et al., 2018). Both are MONAI's, around the label only. Where a label
    touches the image's side it has a surface there.

    Args:
        prediction: label map (X, Y, Z) or (H, W) of whole numbers.
        reference: the expert's, of the same shape.
        spacing: mm per array axis. Of pictures without a size: 1 and 1, and distances are in pixels.
        labels: label value → name, of the labels to measure.
        case: name of the case.
        subject: whose case it is, since cases of one subject are no independent ones; by default the case's own.
        tolerance_mm: of the surface Dice.
        ignore_label: voxels with this value in the reference count as background in both.

    Returns:
        One row for each label, in the order of ``labels``. Volumes are NaN in 2D.

    Raises:
        VolumeError: ``LABEL_GRID`` for different shapes, ``LABEL_NOT_INTEGER``.
        DatasetError: ``EVALUATION_SPACING`` when spacing and shape do not match or spacing is not positive.
        ValueError: a label below 1.
    """
    if min(labels, default=1) < 1:
        raise ValueError(f"labels start at 1: 0 is the background; found {min(labels)}")
    found, expected = (whole_numbers(np.asarray(array)) for array in (prediction, reference))
    if found.shape != expected.shape:
        message = f"case {case}: prediction {found.shape} and reference {expected.shape} differ in shape."
        raise VolumeError("LABEL_GRID", message, hint="Bring the prediction back to its image's grid.")
    edges = tuple(float(edge) for edge in spacing)
    if len(edges) != found.ndim or not all(0 < edge < math.inf for edge in edges):
        message = f"case {case}: a spacing of {edges} for an array of shape {found.shape}."
        raise DatasetError("EVALUATION_SPACING", message, hint="Give mm per array axis.")
    voxel_ml = math.prod(edges) / 1000 if found.ndim == 3 else _NAN
    if ignore_label is not None:
        found = np.where(expected == ignore_label, 0, found)
    about = {"case": case, "subject": case if subject is None else subject}
    places = _boxes(found, expected, labels)
    rows = []
    for value, name in labels.items():
        one, other = (array[places[value]] == value for array in (found, expected))
        if value == ignore_label:
            other = np.zeros_like(other)
        values = _measured(one, other, edges, tolerance_mm)
        rows.append({**about, "label": name, **values, **_volumes(one, other, voxel_ml)})
    return [{column: row[column] for column in COLUMNS} for row in rows]


def means_by_label(rows: Iterable[Row], measure: str = "dice") -> dict[str, float]:
    """Mean of a measure over the cases that have a value, label by label; NaN where none has."""
    values: dict[str, list[float]] = {}
    for row in rows:
        known = values.setdefault(row["label"], [])
        if not math.isnan(row[measure]):
            known.append(row[measure])
    return {label: math.fsum(known) / len(known) if known else _NAN for label, known in values.items()}


def mean_of(values: Iterable[float]) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else _NAN


def _boxes(
    found: npt.NDArray[Any], expected: npt.NDArray[Any], labels: Mapping[int, str]
) -> dict[int, tuple[slice, ...]]:
    """Label → the smallest box around it in both maps; an empty box for one that neither has."""
    from scipy.ndimage import find_objects  # type: ignore[import-untyped]

    highest = max(labels, default=0)
    each = [find_objects(np.where(array > highest, 0, array), max_label=highest) for array in (found, expected)]
    places = {}
    for value in labels:
        boxes = [boxes[value - 1] for boxes in each if boxes[value - 1] is not None]
        starts, stops = (
            [pick(getattr(box[axis], end) for box in boxes) for axis in range(found.ndim)]
            if boxes
            else [0] * found.ndim
            for pick, end in ((min, "start"), (max, "stop"))
        )
        places[value] = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    return places


def _measured(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], edges: tuple[float, ...], tolerance_mm: float
) -> Row:
    """Status, overlap and distances of two masks."""
    sizes = int(one.sum()), int(other.sum())
    row: Row = {"tolerance_mm": float(tolerance_mm), "hd95_mm": _NAN}
    if not all(sizes):
        status = "only_prediction" if sizes[0] else "only_reference" if sizes[1] else "neither"
        score = 0.0 if any(sizes) else _NAN
        return {**row, "status": status, "dice": score, "iou": score, "surface_dice": score}
    shared = int((one & other).sum())
    row |= {"status": "both", "dice": 2 * shared / sum(sizes), "iou": shared / (sum(sizes) - shared)}
    return {**row, **_surfaces(one, other, edges, tolerance_mm)}


def _surfaces(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], edges: tuple[float, ...], tolerance_mm: float
) -> Row:
    """HD95 and surface Dice of two masks that are not empty."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    found, expected = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (one, other))
    with warnings.catch_warnings():  # MONAI 1.6.1 warns of an argument that it gives itself
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        distance = compute_hausdorff_distance(found, expected, include_background=True, percentile=95, spacing=edges)
        share = compute_surface_dice(
            found, expected, [tolerance_mm], include_background=True, spacing=edges, use_subvoxels=True
        )
    return {"hd95_mm": round(float(distance), 6), "surface_dice": round(float(share), 6)}  # from float32


def _volumes(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], voxel_ml: float) -> Row:
    found, expected = (int(mask.sum()) * voxel_ml for mask in (one, other))
    return {
        "volume_prediction_ml": found,
        "volume_reference_ml": expected,
        "volume_error_ml": found - expected,
        "volume_error_percent": 100 * (found - expected) / expected if expected else _NAN,
    }
