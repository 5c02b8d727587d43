"""How much of a label map survives the way to a coarser grid and back?

    python benchmarks/label_resampling.py PATH/labelsTr --spacing 1.3,1.6,2

Each label map of the folder (without one: made halves of ellipsoids) goes to each spacing and back, by both
interpolations; prints the mean Dice of its labels with what they were. Nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.progress import track

from accunet_monai.volumes import Volume, read_label_map
from accunet_monai.volumes.resampling import grid_of_spacing, resample_label_map
from benchmarks.measuring.report import Report

INTERPOLATIONS = ("label_linear", "nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="label maps")
    parser.add_argument("--spacing", default="1.3,1.6,2", help="mm, several with commas")
    parser.add_argument("--cases", type=int, default=20, help="so many label maps, in order of their names")
    parser.add_argument("--output", type=Path, help="also write the table as Markdown")
    options = parser.parse_args()
    label_maps = _made(options.cases) if options.folder is None else _read(options.folder, options.cases)
    rows = [
        (f"{spacing} mm", *(f"{_mean_dice(label_maps, float(spacing), how):.3f}" for how in INTERPOLATIONS))
        for spacing in options.spacing.split(",")
    ]
    report = Report(options.output)
    report.table("Dice after there and back", ("spacing", *INTERPOLATIONS), rows, f"{len(label_maps)} label maps.")


def _read(folder: Path, cases: int) -> list[Volume]:
    files = sorted(file for file in folder.glob("*.nii.gz") if not file.name.startswith("."))
    return [read_label_map(file) for file in files[:cases]]


def _made(cases: int) -> list[Volume]:
    """Ellipsoids of 8 to 14 by 6 by 6 voxels of 1 mm, one label in front, one behind."""
    points = np.stack(np.meshgrid(*[np.arange(36.0)] * 3, indexing="ij"), axis=-1)
    rng = np.random.default_rng(0)
    made = []
    for _ in range(cases):
        centre = rng.uniform(16, 19, 3)
        inside = (((points - centre) / (6, rng.uniform(8, 14), 6)) ** 2).sum(-1) <= 1
        made.append(Volume((inside * np.where(points[..., 1] > centre[1], 1, 2)).astype(np.uint8), np.eye(4)))
    return made


def _mean_dice(label_maps: list[Volume], spacing: float, interpolation: str) -> float:
    return fmean(_dice(one, spacing, interpolation) for one in track(label_maps, f"{spacing} mm", transient=True))


def _dice(original: Volume, spacing: float, interpolation: str) -> float:
    there = resample_label_map(original, grid_of_spacing(original, spacing), interpolation)
    back = resample_label_map(there, original, interpolation).array
    labels = [label for label in np.unique(original.array) if label]
    overlaps = ((np.sum((back == one) & (original.array == one)), np.sum(back == one)) for one in labels)
    sizes = (np.sum(original.array == one) for one in labels)
    return fmean(2 * both / (found + size) for (both, found), size in zip(overlaps, sizes, strict=True))


if __name__ == "__main__":
    main()
