"""First half of the demo: the shipped network segments both hippocampi of the average brain that nilearn carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from accunet_monai.bundle import Predictor, label_names, load_bundle
from accunet_monai.errors import DatasetError
from accunet_monai.volumes import Volume, contact_sheet, label_statistics, write_label_map

BUNDLE = "hippocampus_mri"
BOX_MM = (36, 51, 36)
"""Size of the boxes that are segmented, as the training crops have it."""
CENTRE_MM = (27, -22, -14)
"""Centre of the right box in MNI space (RAS); the left one is its mirror image."""
SHIFT_MM = 4
"""The box is also shifted by this much along each axis, either way: how far do the volumes depend on its place?"""
SIDES = {"left": -1, "right": 1}

_PICTURE_BOX_RAS = ((-55, 55), (-60, 15), (-45, 20))  # mm: what the picture shows around the hippocampi

Array = NDArray[Any]


@dataclass(frozen=True)
class HippocampusResult:
    """What was found.

    Attributes:
        volume_ml: side → volume of the whole hippocampus, ml.
        spread_ml: side → (smallest, largest) volume over the shifted boxes, ml.
        centroid_ras: (side, label name) → centroid, mm.
        label_map: file of the label map on the template's grid.
        picture: the overlay.
    """

    volume_ml: dict[str, float]
    spread_ml: dict[str, tuple[float, float]]
    centroid_ras: dict[tuple[str, str], tuple[float, float, float]]
    label_map: Path
    picture: Path


def load_average_brain() -> Volume:
    """The MNI152 T1 average at 1 mm from nilearn's own files (no network).

    Raises:
        DatasetError: ``NILEARN_MISSING`` when nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise DatasetError(
            "NILEARN_MISSING", "the demo needs nilearn.", hint="pip install 'accunet-monai[demo]'"
        ) from error
    image = load_mni152_template(resolution=1)
    return Volume(image.get_fdata(dtype=np.float32), image.affine, {"path": "nilearn: MNI152 T1 average, 1 mm"})


def segment_hippocampi(output: Path, console: Console, brain: Volume | None = None) -> HippocampusResult:
    """Segment both sides, print volumes, centroids and spread, write label map and picture to ``output``.

    Args:
        output: folder, made when missing.
        console: where the table is printed.
        brain: a T1 image in MNI space, 1 mm, RAS; by default the average brain.
    """
    brain = brain or load_average_brain()
    predictor = load_bundle(BUNDLE)
    label_map = np.zeros(brain.shape, np.uint8)
    spread: dict[str, tuple[float, float]] = {}
    shifts = [(0, 0, 0)] + [
        tuple(step if axis == moved else 0 for axis in range(3)) for moved in range(3) for step in (-SHIFT_MM, SHIFT_MM)
    ]
    boxes = [(side, shift) for side in SIDES for shift in shifts]
    volumes: dict[str, list[float]] = {side: [] for side in SIDES}
    for side, shift in track(
        boxes, "segmenting both hippocampi, 7 box positions each", console=console, transient=True
    ):
        centre = np.array(CENTRE_MM) * (SIDES[side], 1, 1) + shift
        corner, found = segment_box(predictor, brain, centre)
        volumes[side].append(float((found > 0).sum()) * brain.voxel_volume_ml)
        if not any(shift):
            label_map[tuple(slice(c, c + n) for c, n in zip(corner, found.shape, strict=True))] = found
    for side, values in volumes.items():
        spread[side] = (min(values), max(values))
    output.mkdir(parents=True, exist_ok=True)
    path = write_label_map(output / "mni152_hippocampi_seg.nii.gz", label_map, brain, description="accunet demo")
    title = "Hippocampi in the MNI152 average T1, segmented by the shipped ACC-UNet (not a medical device)"
    picture = draw_hippocampi(brain, label_map, output / "mni152_hippocampi.png", title)
    centroids = _centroids(brain, label_map, predictor.labels)
    result = HippocampusResult({s: v[0] for s, v in volumes.items()}, spread, centroids, path, picture)
    _print(result, console)
    return result


def segment_box(predictor: Predictor, brain: Volume, centre_ras: Array) -> tuple[tuple[int, int, int], Array]:
    """Segment the box of ``BOX_MM`` around a point.

    Args:
        predictor: of the hippocampus bundle.
        brain: 1 mm, RAS.
        centre_ras: centre of the box, mm.

    Returns:
        (first voxel of the box, label map of the box).
    """
    corner, box = box_around(brain, centre_ras)
    return corner, predictor.predict(box).label_map


def box_around(brain: Volume, centre_ras: Array) -> tuple[tuple[int, int, int], Volume]:
    """The box of ``BOX_MM`` around a point, mm, of a brain of 1 mm in RAS; (its first voxel, the box)."""
    voxel = np.linalg.inv(brain.affine_ras) @ [*centre_ras, 1]
    corner = tuple(int(v) for v in np.rint(voxel[:3] - np.array(BOX_MM) / 2))
    box = tuple(slice(c, c + n) for c, n in zip(corner, BOX_MM, strict=True))
    affine = brain.affine_ras.copy()
    affine[:3, 3] = (brain.affine_ras @ [*corner, 1])[:3]
    return (corner[0], corner[1], corner[2]), Volume(brain.array[box], affine)


def _centroids(
    brain: Volume, label_map: Array, labels: dict[int, str]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    x_of = np.arange(brain.shape[0]) * brain.affine_ras[0, 0] + brain.affine_ras[0, 3]
    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    for side, sign in SIDES.items():
        one_side = np.where((x_of * sign > 0)[:, None, None], label_map, 0).astype(np.uint8)
        for row in label_statistics(one_side, brain, labels):
            if row["centroid_ras"] is not None:
                found[side, row["name"]] = tuple(row["centroid_ras"])
    return found


def draw_hippocampi(brain: Volume, label_map: Array, path: Path, title: str) -> Path:
    """Write a picture of coronal slices around the hippocampi, with the labels over them."""
    corners = np.linalg.inv(brain.affine_ras) @ np.vstack([np.array(_PICTURE_BOX_RAS), [[1, 1]]])
    box = tuple(slice(int(low), int(high)) for low, high in np.rint(corners[:3]).astype(int))
    return contact_sheet(
        brain.array[box],
        label_map[box],
        path,
        axis=1,
        columns=4,
        slices=8,
        title=title,
        label_names=label_names(load_bundle(BUNDLE).bundle),
    )


def _print(result: HippocampusResult, console: Console) -> None:
    table = Table(
        "side", "volume", f"over shifts of ±{SHIFT_MM} mm", "centroids, RAS mm", title="Hippocampi, MNI152 average T1"
    )
    for side in SIDES:
        low, high = result.spread_ml[side]
        points = "\n".join(
            f"{name}: " + ", ".join(f"{value:.1f}" for value in centroid)
            for (which, name), centroid in result.centroid_ras.items()
            if which == side
        )
        table.add_row(side, f"{result.volume_ml[side]:.2f} ml", f"{low:.2f} – {high:.2f} ml", points)
    console.print(table)
    left, right = result.volume_ml["left"], result.volume_ml["right"]
    if left + right:
        console.print(f"left–right difference: {200 * abs(left - right) / (left + right):.1f} %")
    console.print(f"label map: {result.label_map}\npicture:   {result.picture}", highlight=False, soft_wrap=True)
