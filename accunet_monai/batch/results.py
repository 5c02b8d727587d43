"""What is written of a prediction: label map, overlay, uncertainty, pages for review."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from accunet_monai.batch.page import write_case
from accunet_monai.bundle import Prediction, Predictor, read_literal_sections
from accunet_monai.errors import BundleError
from accunet_monai.volumes import (
    Volume,
    atomic_output,
    contact_sheet,
    render_overlay,
    write_label_map,
    write_label_picture,
    write_seg,
)
from accunet_monai.volumes.nifti import write_share_map
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.segments import SegmentTable, read_segments

SEGMENTS = Path("configs") / "segments.yaml"
CASES = Path(".review")
"""Where the parts of the review page lie, so that a later run need not draw them again."""

OutputFormat = Literal["nifti", "seg"]
Writers = dict[str, tuple[str, Callable[[Path], object]]]


class ResultWriter:
    """What is written of each prediction of a run.

    Args:
        predictor: whose predictions they are.
        output_format: ``"nifti"`` or ``"seg"``.
        kinds: ``overlay``, ``uncertainty`` and ``review``, where wanted beside the label map.

    Raises:
        BundleError: ``BUNDLE_NO_SEGMENTS``, or ``BUNDLE_PICTURES`` for SEG of a bundle of pictures.
        VolumeError: ``SEGMENTS_INVALID``.
    """

    def __init__(self, predictor: Predictor, output_format: OutputFormat, kinds: set[str]) -> None:
        self.predictor = predictor
        self.kinds = kinds
        self.segments = _segment_table(predictor) if output_format == "seg" else None

    @property
    def options(self) -> dict[str, str]:
        """What decides, beside the model, how results look."""
        if self.segments is None:
            return {"format": "nifti"}
        segments = (self.predictor.bundle / SEGMENTS).read_bytes()
        return {"format": "seg", "segments_sha256": hashlib.sha256(segments).hexdigest()}

    def writers(self, name: str, prediction: Prediction, planes: PlaneStack | None = None) -> Writers:
        """Kind → (file, what writes it) of one prediction.

        Args:
            name: what the files are named after.
            prediction: of a volume or a picture.
            planes: the planes that the volume stands for, of a series that is no grid.
        """
        volume = isinstance(prediction.image, Volume)
        ending = ".nii.gz" if volume else ".png"
        label_ending = ending if self.segments is None else ".dcm"
        found: Writers = {}
        if "overlay" in self.kinds:
            overlay = partial(write_overlay, prediction, title=name, labels=self.predictor.labels)
            found["overlay"] = (f"{name}_overlay.png", overlay)
        if "uncertainty" in self.kinds:
            found["uncertainty"] = (f"{name}_uncertainty{ending}", partial(self._write_uncertainty, prediction))
        if "review" in self.kinds:
            case = partial(write_case, prediction, title=name, labels=self.predictor.labels)
            found["review"] = (str(CASES / f"{name}.html"), case)
        found["label_map"] = (f"{name}_seg{label_ending}", partial(self._write_label_map, prediction, planes))
        return found

    @property
    def _description(self) -> str:
        return f"accunet-monai {self.predictor.bundle.name} {self.predictor.metadata.get('version', '')}"

    def _write_label_map(self, prediction: Prediction, planes: PlaneStack | None, path: Path) -> None:
        if not isinstance(prediction.image, Volume):
            write_label_picture(path, prediction.label_map)
        elif self.segments is not None:
            write_seg(path, prediction.label_map, planes or prediction.image, self.segments)
        else:
            write_label_map(path, prediction.label_map, prediction.image, description=self._description)

    def _write_uncertainty(self, prediction: Prediction, path: Path) -> None:
        if prediction.uncertainty is None:
            raise BundleError("BUNDLE_OUTPUT", "the prediction has no uncertainty.", path=self.predictor.bundle)
        if isinstance(prediction.image, Volume):
            write_share_map(path, prediction.uncertainty, prediction.image, self._description)
        else:
            write_label_picture(path, np.rint(prediction.uncertainty * 255).astype(np.uint8))


def write_overlay(prediction: Prediction, path: Path, title: str, labels: Mapping[int, str]) -> Path:
    """Write a picture of a prediction: a contact sheet of a volume, or the coloured picture."""
    if isinstance(prediction.image, Volume):
        image = prediction.image.reoriented("RAS")
        label_map = Volume(prediction.label_map, prediction.image.affine_ras).reoriented("RAS")
        return contact_sheet(image.array, label_map.array, path, spacing=image.spacing, title=title, label_names=labels)
    picture = prediction.image
    pixels = render_overlay(picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1), prediction.label_map)
    with atomic_output(path) as file:
        Image.fromarray(pixels).save(file, "PNG")
    return path


def _segment_table(predictor: Predictor) -> SegmentTable:
    """What the bundle's labels mean, with the digests of the weights and of the configuration that are run."""
    path = predictor.bundle / SEGMENTS
    if predictor.takes_pictures:
        raise BundleError("BUNDLE_PICTURES", "pictures have no DICOM SEG.", path=predictor.bundle)
    if not path.is_file():
        message = "the bundle does not say what its labels mean in DICOM."
        raise BundleError("BUNDLE_NO_SEGMENTS", message, path=path, hint="Add it, or write NIfTI.")
    table = read_segments(path)
    config = json.dumps([read_literal_sections(bundle) for bundle in _bundles(predictor)], sort_keys=True)
    digests = [hashlib.sha256(weights.read_bytes()).hexdigest() for _, weights in predictor.members]
    algorithm = replace(
        table.algorithm,
        weights_sha256=digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        config_sha256=hashlib.sha256(config.encode()).hexdigest(),
    )
    return replace(table, algorithm=algorithm)


def _bundles(predictor: Predictor) -> list[Path]:
    return list(dict.fromkeys(bundle for bundle, _ in predictor.members))
