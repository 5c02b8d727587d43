"""Segment a file or a folder of files: label maps and pictures out, failures reported and passed over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from accunet_monai.bundle import Prediction, Predictor, find_images, load_bundle
from accunet_monai.errors import AccunetError, BundleError
from accunet_monai.volumes import Volume, contact_sheet, render_overlay, write_label_map, write_label_picture
from accunet_monai.volumes.atomic import atomic_output

VOLUME_ENDINGS = (".nii", ".nii.gz")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass
class BatchReport:
    """What became of each file.

    Attributes:
        written: source → label map.
        failed: source → the error that stopped it.
    """

    written: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, AccunetError] = field(default_factory=dict)


def predict_files(
    source: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overlay: bool = False,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    console: Console | None = None,
) -> BatchReport:
    """Segment ``source`` with a bundle; each label map is ``output/NAME_seg`` in the image's format.

    Args:
        source: a file, or a folder whose files are taken (not those of its subfolders).
        bundle: a shipped bundle's name or a bundle's folder.
        output: folder for the results; not the source folder, where results would be taken for images next time.
        overlay: also write ``NAME_overlay.png``.
        weights: instead of the bundle's.
        device: where the network runs; by default cuda when there is one.
        console: where progress and summary are printed.

    Raises:
        BundleError: when nothing can be done at all; what concerns one file is in the report.
    """
    import torch

    console = console or Console()
    predictor = load_bundle(bundle, weights, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    files = find_images(source, PICTURE_ENDINGS if predictor.takes_pictures else VOLUME_ENDINGS)
    folder = Path(output)
    if folder.resolve() == files[0].parent.resolve():
        message = "results would lie among the images."
        raise BundleError("OUTPUT_TAKEN", message, path=folder, hint="Use another --output.")
    report = BatchReport()
    for path in track(files, "segmenting", console=console, transient=True):
        try:
            report.written[path] = _predict_file(predictor, path, folder, overlay, taken=report.written)
        except AccunetError as error:
            report.failed[path] = error
        except Exception as error:  # whatever it is, the other files go on
            report.failed[path] = BundleError("PREDICT_FAILED", f"{type(error).__name__}: {error}", path=path)
    _print_report(report, console)
    return report


def write_overlay(prediction: Prediction, path: Path, title: str, labels: dict[int, str]) -> Path:
    """Write a picture of a prediction: a contact sheet of a volume, or the coloured picture."""
    if isinstance(prediction.image, Volume):
        image = prediction.image.reoriented("RAS")
        label_map = Volume(prediction.label_map, prediction.image.affine_ras).reoriented("RAS")
        return contact_sheet(image.array, label_map.array, path, spacing=image.spacing, title=title, label_names=labels)
    from PIL import Image

    picture = prediction.image
    pixels = render_overlay(picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1), prediction.label_map)
    with atomic_output(path) as file:
        Image.fromarray(pixels).save(file, "PNG")
    return path


def _predict_file(predictor: Predictor, path: Path, folder: Path, overlay: bool, taken: Mapping[Path, Path]) -> Path:
    stem = Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem
    target = folder / f"{stem}_seg{'.png' if predictor.takes_pictures else '.nii.gz'}"
    earlier = next((source for source, written in taken.items() if written == target), None)
    if earlier is not None:
        raise BundleError("OUTPUT_TAKEN", f"its label map would replace that of {earlier.name}.", path=path)
    prediction = predictor.predict(path)
    if isinstance(prediction.image, Volume):
        description = f"accunet-monai {predictor.bundle.name} {predictor.metadata.get('version', '')}"
        write_label_map(target, prediction.label_map, prediction.image, description=description)
    else:
        write_label_picture(target, prediction.label_map)
    if overlay:
        write_overlay(prediction, folder / f"{stem}_overlay.png", stem, predictor.labels)
    return target


def _print_report(report: BatchReport, console: Console) -> None:
    for path, error in report.failed.items():
        where = "" if error.path == str(path) else f"{path}: "
        console.print(f"[red]failed[/red] {escape(where + str(error))}", highlight=False, soft_wrap=True)
    table = Table("label maps written", "failed")
    table.add_row(str(len(report.written)), str(len(report.failed)))
    console.print(table)
    if report.written:
        folder = next(iter(report.written.values())).parent
        console.print(f"in {folder}", highlight=False, soft_wrap=True, markup=False)
