"""Numbers of each label of a prediction: volume, mean intensity, sides of the image it touches; as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accunet_monai.bundle import Prediction
from accunet_monai.volumes import Volume, atomic_output

COLUMNS = ("source", "result", "label", "name", "voxels", "volume_ml", "mean_intensity", "touches_border", "sides")

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def measure(prediction: Prediction, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """One row for each label that the bundle knows or that occurs, in label order.

    Args:
        prediction: of a volume or a picture.
        labels: label value → name.

    Returns:
        Rows with ``label``, ``name``, ``voxels`` (of a picture: pixels), ``volume_ml`` (``None`` for a picture),
        ``mean_intensity`` in the image's units, of a colour picture over its channels (``None`` where the label is
        absent), ``touches_border`` and ``sides``: the image's sides that the label touches, as letters of R, L, A, P, S
        and I, or top, bottom, left and right. A label that touches one may go on outside of the image.
    """
    label_map, image = prediction.label_map, prediction.image
    if isinstance(image, Volume):
        values, ml = image.array, image.voxel_volume_ml
        ends = [(_OPPOSITE[code], code) for code in image.axcodes]
    else:
        values, ml = image.mean(axis=0), None
        ends = [("top", "bottom"), ("left", "right")]
    voxels, sums = _totals(label_map, values)
    touched = _touched(label_map, ends)
    present = {int(label) for label in np.flatnonzero(voxels)}
    rows = []
    for label in sorted((present | set(labels)) - {0}):
        count = int(voxels[label]) if label < len(voxels) else 0
        sides = [side for side, found in touched.items() if label in found]
        rows.append(
            {
                "label": label,
                "name": labels.get(label, f"label {label}"),
                "voxels": count,
                "volume_ml": None if ml is None else round(count * ml, 6),
                "mean_intensity": float(f"{sums[label] / count:.6g}") if count else None,
                "touches_border": bool(sides),
                "sides": sides,
            }
        )
    return rows


def write_measures(folder: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[Path, Path]:
    """Write ``measures.csv`` and ``measures.json``.

    Args:
        folder: for both.
        rows: of :func:`measure`, with ``source`` and ``result``.
    """
    listed = [{name: row[name] for name in COLUMNS} for row in rows]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in listed:
        flag = "yes" if row["touches_border"] else "no"
        table.writerow({**row, "touches_border": flag, "sides": " ".join(row["sides"])})
    paths = folder / "measures.csv", folder / "measures.json"
    for path, content in zip(paths, (text.getvalue(), json.dumps(listed, indent=1)), strict=True):
        with atomic_output(path) as stream:
            stream.write(content.encode())
    return paths


def _totals(label_map: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """For each label the number of voxels and the sum of the values; by slices, as bincount takes 16 bytes a voxel."""
    size = int(label_map.max()) + 1
    voxels, sums = np.zeros(size, np.int64), np.zeros(size)
    for index in range(label_map.shape[-1]):
        labels, weights = label_map[..., index].ravel(), values[..., index].ravel()
        voxels += np.bincount(labels, minlength=size)
        sums += np.bincount(labels, weights, minlength=size)
    return voxels, sums


def _touched(label_map: np.ndarray[Any, Any], ends: list[tuple[str, str]]) -> dict[str, set[int]]:
    """Side → the labels in the outermost layer there."""
    touched = {}
    for axis, names in enumerate(ends):
        for name, index in zip(names, (0, -1), strict=True):
            touched[name] = {int(label) for label in np.unique(np.take(label_map, index, axis=axis))}
    return touched
