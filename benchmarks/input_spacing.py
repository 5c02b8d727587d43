"""How well does a bundle's network stand images of another spacing than it was trained on?

    python benchmarks/input_spacing.py DATASET --bundle hippocampus_mri --spacing 0.6,0.7,0.8,1.25,1.5,2

Every second validation case of the bundle's split and its reference are resampled to cubes of each spacing, segmented
there in spite of the input contract, and compared there; prints the mean Dice over cases and labels. Without a dataset
a made image is taken, which tells nothing but that the script runs. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.progress import track

from accunet_monai.bundle import Predictor, load_bundle
from accunet_monai.volumes import Volume, read_label_map, read_volume
from accunet_monai.volumes.resampling import grid_of_spacing, resample, resample_label_map
from benchmarks.measuring.report import Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?", help="folder with imagesTr and labelsTr")
    parser.add_argument("--bundle", default="hippocampus_mri", help="a shipped bundle's name, or a bundle's folder")
    parser.add_argument("--spacing", default="0.6,0.7,0.8,1.25,1.5,2", help="mm, several with commas")
    parser.add_argument("--every", type=int, default=2, help="so many validation cases on is the next that is taken")
    parser.add_argument("--quick", action="store_true", help="one spacing")
    parser.add_argument("--output", type=Path, help="also write the table as Markdown")
    options = parser.parse_args()
    predictor = load_bundle(options.bundle)
    pairs = [_made()] if options.dataset is None else _read(options.dataset, predictor, options.every)
    spacings = [1.0] if options.quick else [float(text) for text in options.spacing.split(",")]
    rows = [
        (f"{spacing:g} mm", f"{fmean(_dice(predictor, *pair, spacing) for pair in pairs):.2f}")
        for spacing in track(spacings, transient=True)
    ]
    report = Report(options.output)
    report.table("Dice at another spacing", ("spacing", "mean Dice"), rows, f"{len(pairs)} cases.")


def _read(dataset: Path, predictor: Predictor, every: int) -> list[tuple[Volume, Volume]]:
    split = json.loads((predictor.bundle / "configs" / "split.json").read_text(encoding="utf-8"))
    files = [f"{case}.nii.gz" for case in split["parts"]["validation"][::every]]
    return [(read_volume(dataset / "imagesTr" / f), read_label_map(dataset / "labelsTr" / f)) for f in files]


def _made() -> tuple[Volume, Volume]:
    labels = np.zeros((36, 50, 40), np.uint8)
    labels[12:24, 20:40, 14:26] = 1
    noise = np.random.default_rng(0).normal(0, 5, labels.shape)
    return Volume((100 * labels + noise).astype(np.float32), np.eye(4)), Volume(labels, np.eye(4))


def _dice(predictor: Predictor, image: Volume, reference: Volume, spacing: float) -> float:
    """Mean over the bundle's labels, on the grid of this spacing."""
    grid = grid_of_spacing(image, spacing)
    found = predictor.predict(resample(image, grid), ignore_contract=True).label_map
    expected = resample_label_map(reference, grid).array
    shared = [int(((found == label) & (expected == label)).sum()) for label in predictor.labels]
    sizes = [int((found == label).sum() + (expected == label).sum()) for label in predictor.labels]
    return fmean(2 * both / size if size else 1.0 for both, size in zip(shared, sizes, strict=True))


if __name__ == "__main__":
    main()
