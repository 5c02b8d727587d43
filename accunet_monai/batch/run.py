"""Segment files and DICOM series: label maps and pictures out, failures reported and passed over."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from accunet_monai.bundle import Prediction, Predictor, find_images, load_bundle, read_literal_sections
from accunet_monai.errors import AccunetError, BundleError, SeriesError
from accunet_monai.volumes import (
    VOLUME_ENDINGS,
    Series,
    Volume,
    contact_sheet,
    find_series,
    is_dicom,
    read_series,
    read_volume,
    render_overlay,
    series_name,
    volume_stem,
    write_label_map,
    write_label_picture,
)
from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.dicom_seg import write_seg
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY
from accunet_monai.volumes.segments import SegmentTable, read_segments

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
SEGMENTS = Path("configs") / "segments.yaml"

DAMAGED = ("DICOM_UNREADABLE", "PIXEL_TOO_LARGE", "FILE_MISSING")
"""Codes of skipped DICOM files that are reported as failures: each might have been a slice of one of the series."""

OutputFormat = Literal["nifti", "seg"]
Source = Path | Series


@dataclass
class BatchReport:
    """What became of each file and series.

    Attributes:
        written: source → label map.
        failed: source → the error that stopped it.
    """

    written: dict[Source, Path] = field(default_factory=dict)
    failed: dict[Source, AccunetError] = field(default_factory=dict)


def predict_files(
    source: str | os.PathLike[str],
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overlay: bool = False,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    output_format: OutputFormat = "nifti",
    console: Console | None = None,
) -> BatchReport:
    """Segment ``source`` with a bundle; each label map is ``output/NAME_seg`` on the image's own grid.

    Args:
        source: a file; or a folder, whose NIfTI, MetaImage and NRRD files are taken (not those of its subfolders) and
            each DICOM series below it at any depth; or a DICOMDIR.
        bundle: a shipped bundle's name or a bundle's folder.
        output: folder for the results; not the source folder, where results would be taken for images next time.
        overlay: also write ``NAME_overlay.png``.
        weights: instead of the bundle's.
        device: where the network runs; by default cuda when there is one.
        output_format: ``"nifti"``, or ``"seg"`` for DICOM SEG, which a DICOM series can have when the bundle has a
            ``configs/segments.yaml``. Pictures get PNG.
        console: where progress and summary are printed.

    Raises:
        BundleError: when nothing can be done at all; what concerns one file or series is in the report.
    """
    import torch

    console = console or Console()
    predictor = load_bundle(bundle, weights, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    writer = _Writer(predictor, Path(output), output_format, overlay)
    report = BatchReport()
    sources = _sources(Path(source), predictor, report)
    inputs = {Path(source).resolve()} | {item.parent.resolve() for item in sources if isinstance(item, Path)}
    if writer.folder.resolve() in inputs:
        message = "results would lie among the images."
        raise BundleError("OUTPUT_TAKEN", message, path=writer.folder, hint="Use another --output.")
    for item in track(sources, "segmenting", console=console, transient=True):
        try:
            report.written[item] = writer.segment(item, taken=report.written)
        except AccunetError as error:
            report.failed[item] = error
        except Exception as error:  # whatever it is, the other files go on
            path = item if isinstance(item, Path) else None
            report.failed[item] = BundleError("PREDICT_FAILED", f"{type(error).__name__}: {error}", path=path)
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


class _Writer:
    """A bundle with the place and the format of its results."""

    def __init__(self, predictor: Predictor, folder: Path, output_format: OutputFormat, overlay: bool) -> None:
        self.predictor = predictor
        self.folder = folder
        self.overlay = overlay
        self.segments = _segment_table(predictor) if output_format == "seg" else None

    def segment(self, source: Source, taken: dict[Source, Path]) -> Path:
        """Segments one source and writes its label map."""
        if self.predictor.takes_pictures and isinstance(source, Path):
            image: Path | Volume = source
            name, ending = source.stem, ".png"
        else:
            image = read_series(source) if isinstance(source, Series) else read_volume(source)
            dicom = image.provenance.get(PROVENANCE_KEY)
            if self.segments is not None and dicom is None:
                message = "DICOM SEG refers to DICOM images, and this is none."
                raise BundleError("SEG_NO_SOURCE", message, path=image.provenance.get("path"), hint="Use NIfTI.")
            name = volume_stem(str(source)) if dicom is None else series_name(dicom)
            ending = ".nii.gz" if self.segments is None else ".dcm"
        target = self.folder / f"{name}_seg{ending}"
        earlier = next((_title(other) for other, written in taken.items() if written == target), None)
        if earlier is not None:
            path = source if isinstance(source, Path) else None
            raise BundleError("OUTPUT_TAKEN", f"its label map would replace that of {earlier}.", path=path)
        prediction = self.predictor.predict(image)
        self._write(target, prediction)
        if self.overlay:
            write_overlay(prediction, self.folder / f"{name}_overlay.png", name, self.predictor.labels)
        return target

    def _write(self, target: Path, prediction: Prediction) -> None:
        if not isinstance(prediction.image, Volume):
            write_label_picture(target, prediction.label_map)
        elif self.segments is not None:
            write_seg(target, prediction.label_map, prediction.image, self.segments)
        else:
            description = f"accunet-monai {self.predictor.bundle.name} {self.predictor.metadata.get('version', '')}"
            write_label_map(target, prediction.label_map, prediction.image, description=description)


def _sources(path: Path, predictor: Predictor, report: BatchReport) -> Sequence[Source]:
    """What is to be segmented; series that cannot be and damaged files go into the report.

    Raises:
        BundleError: ``INPUT_MISSING`` or ``INPUT_EMPTY``.
    """
    if predictor.takes_pictures:
        return find_images(path, PICTURE_ENDINGS)
    if not is_dicom(path) or (path / "imagesTr").is_dir():
        return find_images(path, VOLUME_ENDINGS)
    found = find_series(path)
    for skipped in found.skipped:
        if skipped.code in DAMAGED and not skipped.path.name.lower().endswith(VOLUME_ENDINGS):
            report.failed[skipped.path] = SeriesError(skipped.code, skipped.reason, path=skipped.path)
    report.failed |= {series: series.problem for series in found if series.problem is not None}
    readable = [series for series in found if series.problem is None]
    try:
        files = find_images(path, VOLUME_ENDINGS) if path.is_dir() else ()
    except BundleError:  # a folder of DICOM alone
        files = ()
    if not files and not readable and not report.failed:
        reason = f"; the first of {len(found.skipped)} files: {found.skipped[0].reason}" if found.skipped else ""
        raise BundleError("INPUT_EMPTY", f"there is no image or series to segment{reason}.", path=path)
    return [*files, *readable]


def _segment_table(predictor: Predictor) -> SegmentTable:
    """What the bundle's labels mean, with the digests of the weights and of the configuration that are run.

    Raises:
        BundleError: ``BUNDLE_NO_SEGMENTS``, or ``BUNDLE_PICTURES`` for a bundle of pictures.
        VolumeError: ``SEGMENTS_INVALID``.
    """
    path = predictor.bundle / SEGMENTS
    if predictor.takes_pictures:
        raise BundleError("BUNDLE_PICTURES", "pictures have no DICOM SEG.", path=predictor.bundle)
    if not path.is_file():
        message = "the bundle does not say what its labels mean in DICOM."
        raise BundleError("BUNDLE_NO_SEGMENTS", message, path=path, hint="Add it, or write NIfTI.")
    table = read_segments(path)
    config = json.dumps(read_literal_sections(predictor.bundle), sort_keys=True)
    algorithm = replace(
        table.algorithm,
        weights_sha256=hashlib.sha256(predictor.weights.read_bytes()).hexdigest(),
        config_sha256=hashlib.sha256(config.encode()).hexdigest(),
    )
    return replace(table, algorithm=algorithm)


def _title(source: Source) -> str:
    if isinstance(source, Path):
        return str(source)
    return "".join(letter if letter.isprintable() else "?" for letter in source.describe())


def _print_report(report: BatchReport, console: Console) -> None:
    for source, error in report.failed.items():
        where = "" if error.path is not None and error.path == _title(source) else f"{_title(source)}: "
        console.print(f"[red]failed[/red] {escape(where + str(error))}", highlight=False, soft_wrap=True)
    for source, path in report.written.items():
        if isinstance(source, Series):  # its result has another name
            console.print(escape(f"{path.name}: {_title(source)}"), highlight=False, soft_wrap=True)
    table = Table("label maps written", "failed")
    table.add_row(str(len(report.written)), str(len(report.failed)))
    console.print(table)
    if report.written:
        folder = next(iter(report.written.values())).parent
        console.print(f"in {folder}", highlight=False, soft_wrap=True, markup=False)
