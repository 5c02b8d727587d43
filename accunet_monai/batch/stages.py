"""The three stages that one source goes through, with what they share over a run; and what a run is told to write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accunet_monai.batch.measures import measure
from accunet_monai.batch.planes import as_volume
from accunet_monai.batch.records import Record, Records
from accunet_monai.batch.report import title
from accunet_monai.batch.results import OutputFormat, ResultWriter
from accunet_monai.batch.sources import Source, content_digest, source_key
from accunet_monai.bundle import Precision, Prediction, Predictor, Work, load_bundle
from accunet_monai.errors import AccunetError, BundleError
from accunet_monai.volumes import (
    PlaneStack,
    Series,
    Volume,
    read_first_channel,
    read_planes,
    read_series,
    series_name,
    volume_stem,
)
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class PredictOptions:
    """What a run writes, and how it deals with what is there.

    Args:
        output_format: ``"nifti"``, or ``"seg"`` for DICOM SEG, which a DICOM series can have when the bundle has a
            ``configs/segments.yaml``. Pictures get PNG.
        overlay: also write ``NAME_overlay.png``.
        uncertainty: also write ``NAME_uncertainty``: the entropy of the probabilities, 0 to 1, on the image's grid.
        measures: also write ``measures.csv`` and ``measures.json``.
        review: also write ``review.html``.
        overwrite: do again what an earlier run has done.
        ignore_contract: segment what the bundle's input contract refuses; the records say so.
        precision: of the network, ``"float32"`` or ``"bfloat16"``.
    """

    output_format: OutputFormat = "nifti"
    overlay: bool = False
    uncertainty: bool = False
    measures: bool = False
    review: bool = False
    overwrite: bool = False
    ignore_contract: bool = False
    precision: Precision = "float32"

    @property
    def takes_planes(self) -> bool:
        """Whether results can be written of planes that are no grid: only DICOM SEG can say where each plane lies."""
        return self.output_format == "seg" and not self.uncertainty

    @property
    def kinds(self) -> set[str]:
        """What is wanted beside the label map."""
        return {name for name in ("overlay", "uncertainty", "measures", "review") if getattr(self, name)}


@dataclass
class Case:
    """One source on its way."""

    source: Source
    name: str
    input_sha256: str
    work: Work
    planes: PlaneStack | None = None


class Stages:
    """The three stages of a run; each is called from one thread only.

    Args:
        predictor: whose network runs.
        writer: of its predictions.
        records: of the folder for the results.
        options: of the run.
    """

    def __init__(self, predictor: Predictor, writer: ResultWriter, records: Records, options: PredictOptions) -> None:
        self.predictor = predictor
        self.writer = writer
        self.records = records
        self.options = options
        self._names: dict[str, Source] = {}

    def read_records(self) -> None:
        """Look again at what is done: others may have written."""
        self.records = Records(self.records.folder)

    def read(self, source: Source) -> Case | Record:
        """The preprocessed image, or the record of what is done already."""
        digest = content_digest(source, self.predictor.channels)
        done = None if self.options.overwrite else self._done(source, digest)
        if done is not None:
            self._claim(done.label_map, source)
            return done
        planes = None
        if self.predictor.takes_pictures and isinstance(source, Path):
            image: Path | Volume = source
            name = source.stem
        elif isinstance(source, Series) and source.problem is not None:
            planes = read_planes(source)
            image = as_volume(planes, self.predictor, source.problem.code)
            name = series_name(planes.provenance[PROVENANCE_KEY])
        else:
            image, name = self._volume(source)
        work = self.predictor.prepare(image, ignore_contract=self.options.ignore_contract)
        self._claim(f"{name}_seg{self._ending}", source)
        return Case(source, name, digest, work, planes)

    def compute(self, case: Case | Record) -> Case | Record:
        """Runs the network."""
        if isinstance(case, Case):
            self.predictor.infer(case.work, uncertainty=self.options.uncertainty)
        return case

    def write(self, case: Case | Record) -> tuple[Record, bool]:
        """The record of a source, and whether it was made now."""
        if isinstance(case, Record):
            return case, False
        prediction = self.predictor.finish(case.work)
        breaches = prediction.breaches
        facts = {
            "source": source_key(case.source),
            "title": title(case.source),
            "input_sha256": case.input_sha256,
            "model_sha256": self.predictor.digest,
            "options": self.writer.options,
            "contract": {
                "breaches": [str(breach) for breach in breaches],
                "ignored": any(breach.otherwise == "refuse" for breach in breaches),
            },
            "measures": self._measures(prediction, case.planes) if self.options.measures else None,
        }
        return self.records.write(case.name, self.writer.writers(case.name, prediction, case.planes), facts), True

    def _measures(self, prediction: Prediction, planes: PlaneStack | None) -> list[dict[str, Any]]:
        rows = measure(prediction, self.predictor.labels)
        return rows if planes is None else [{**row, "volume_ml": None} for row in rows]  # unknown between planes

    def _done(self, source: Source, digest: str) -> Record | None:
        wanted = {"label_map"} | self.options.kinds
        model = self.predictor.digest
        record = self.records.find_done(source_key(source), digest, model, self.writer.options, wanted)
        refused = record is not None and record.contract["ignored"] and not self.options.ignore_contract
        return None if refused else record

    def _volume(self, source: Source) -> tuple[Volume, str]:
        channels = self.predictor.channels
        image = read_series(source) if isinstance(source, Series) else read_first_channel(source, channels)
        dicom = image.provenance.get(PROVENANCE_KEY)
        if self.options.output_format == "seg" and dicom is None:
            message = "DICOM SEG refers to DICOM images, and this is none."
            raise BundleError("SEG_NO_SOURCE", message, path=image.provenance.get("path"), hint="Use NIfTI.")
        return image, volume_stem(str(source)) if dicom is None else series_name(dicom)

    @property
    def _ending(self) -> str:
        if self.predictor.takes_pictures:
            return ".png"
        return ".dcm" if self.options.output_format == "seg" else ".nii.gz"

    def _claim(self, file: str, source: Source) -> None:
        earlier = self._names.setdefault(file, source)
        if earlier is not source:
            path = source if isinstance(source, Path) else None
            raise BundleError("OUTPUT_TAKEN", f"its label map would replace that of {title(earlier)}.", path=path)


def open_stages(
    bundle: PathLike | Sequence[PathLike],
    weights: PathLike | Sequence[PathLike] | None,
    device: str | None,
    folder: Path,
    options: PredictOptions,
) -> Stages:
    """The stages of a run, with the network in memory.

    Args:
        bundle: as of :func:`~accunet_monai.batch.predict_files`.
        weights: likewise.
        device: likewise.
        folder: for the results.
        options: of the run.

    Raises:
        AccunetError: what opening the bundle and the :class:`ResultWriter` raise.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictor = load_bundle(bundle, weights, device, options.precision)
    return Stages(predictor, ResultWriter(predictor, options.output_format, options.kinds), Records(folder), options)


def as_error(source: Source, error: Exception) -> AccunetError:
    """Errors on purpose as they are; whatever else it is, the other files have gone on."""
    if isinstance(error, AccunetError):
        return error
    path = source if isinstance(source, Path) else None
    return BundleError("PREDICT_FAILED", f"{type(error).__name__}: {error}", path=path)
