"""A run: what is found at a source, segmented with a bundle, into a folder that a later run goes on with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from accunet_monai import __version__
from accunet_monai.batch.measures import measure, write_measures
from accunet_monai.batch.page import PAGE, write_page
from accunet_monai.batch.pipeline import overlapped
from accunet_monai.batch.planes import as_volume
from accunet_monai.batch.records import Record, Records
from accunet_monai.batch.report import BatchReport, title
from accunet_monai.batch.results import OutputFormat, ResultWriter
from accunet_monai.batch.sources import Source, content_digest, find_sources, source_key
from accunet_monai.bundle import Prediction, Predictor, Work, load_bundle
from accunet_monai.errors import AccunetError, BundleError
from accunet_monai.volumes import (
    PlaneStack,
    Series,
    Volume,
    read_planes,
    read_series,
    read_volume,
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
    """

    output_format: OutputFormat = "nifti"
    overlay: bool = False
    uncertainty: bool = False
    measures: bool = False
    review: bool = False
    overwrite: bool = False
    ignore_contract: bool = False

    @property
    def takes_planes(self) -> bool:
        """Whether results can be written of planes that are no grid: only DICOM SEG can say where each plane lies."""
        return self.output_format == "seg" and not self.uncertainty

    @property
    def kinds(self) -> set[str]:
        """What is wanted beside the label map."""
        return {name for name in ("overlay", "uncertainty", "measures", "review") if getattr(self, name)}


def predict_files(
    source: PathLike,
    bundle: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    weights: PathLike | Sequence[PathLike] | None = None,
    device: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> BatchReport:
    """Segment ``source`` with a bundle; each label map is ``output/NAME_seg`` on the image's own grid.

    Beside each label map ``NAME_seg.json`` says what it was made from. A source whose content, model and options are
    those of its record is not segmented again as long as its results are unchanged. ``predictions.json`` lists all
    sources with what became of them.

    Args:
        source: a file; or a folder, whose NIfTI, MetaImage and NRRD files are taken (not those of its subfolders) and
            each DICOM series below it at any depth; or a DICOMDIR.
        bundle: a shipped bundle's name or a bundle's folder; of several the probabilities are averaged.
        output: folder for the results; not the source folder, where results would be taken for images next time.
        weights: instead of the bundle's; of several the probabilities are averaged.
        device: where the network runs; by default cuda when there is one.
        console: where progress and summary are printed.
        options: fields of :class:`PredictOptions`.

    Raises:
        BundleError: when nothing can be done at all; what concerns one file or series is in the report.
    """
    import torch

    console, wanted = console or Console(), PredictOptions(**options)
    predictor = load_bundle(bundle, weights, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    writer = ResultWriter(predictor, wanted.output_format, wanted.kinds)
    report = BatchReport()
    sources = find_sources(Path(source), predictor, report, planes=wanted.takes_planes)
    folder = Path(output)
    inputs = {Path(source).resolve()} | {item.parent.resolve() for item in sources if isinstance(item, Path)}
    if folder.resolve() in inputs:
        raise BundleError(
            "OUTPUT_TAKEN", "results would lie among the images.", path=folder, hint="Use another --output."
        )
    stages = _Stages(predictor, writer, Records(folder), wanted)
    outcomes = overlapped(sources, stages.read, stages.compute, stages.write)
    for item, outcome in track(outcomes, "segmenting", total=len(sources), console=console, transient=True):
        if isinstance(outcome, Exception):
            report.failed[item] = _as_error(item, outcome)
            continue
        record, fresh = outcome
        report.records[item] = record
        (report.written if fresh else report.skipped)[item] = folder / record.label_map
    _write_summaries(report, folder, predictor, wanted)
    report.print(console)
    return report


@dataclass
class _Case:
    """One source on its way."""

    source: Source
    name: str
    input_sha256: str
    work: Work
    planes: PlaneStack | None = None


class _Stages:
    """The three stages of a run; each is called from one thread only."""

    def __init__(self, predictor: Predictor, writer: ResultWriter, records: Records, options: PredictOptions) -> None:
        self.predictor = predictor
        self.writer = writer
        self.records = records
        self.options = options
        self._names: dict[str, Source] = {}

    def read(self, source: Source) -> _Case | Record:
        """The preprocessed image, or the record of what is done already."""
        digest = content_digest(source)
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
        return _Case(source, name, digest, work, planes)

    def compute(self, case: _Case | Record) -> _Case | Record:
        """Runs the network."""
        if isinstance(case, _Case):
            self.predictor.infer(case.work, uncertainty=self.options.uncertainty)
        return case

    def write(self, case: _Case | Record) -> tuple[Record, bool]:
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
        image = read_series(source) if isinstance(source, Series) else read_volume(source)
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


def _as_error(source: Source, error: Exception) -> AccunetError:
    """Errors on purpose as they are; whatever else it is, the other files have gone on."""
    if isinstance(error, AccunetError):
        return error
    path = source if isinstance(source, Path) else None
    return BundleError("PREDICT_FAILED", f"{type(error).__name__}: {error}", path=path)


def _write_summaries(report: BatchReport, folder: Path, predictor: Predictor, options: PredictOptions) -> None:
    """What concerns the whole run."""
    run = {
        "package": f"accunet-monai {__version__}",
        "bundle": predictor.bundle.name,
        "version": str(predictor.metadata.get("version", "")),
        "model_sha256": predictor.digest,
        "networks": len(predictor.members),
        "options": asdict(options),
    }
    report.write(folder, run)
    if options.measures:
        rows = [
            {"source": record.title, "result": record.label_map, **row}
            for record in report.records.values()
            for row in record.measures or ()
        ]
        write_measures(folder, rows)
    if options.review:
        cases = [folder / record.outputs["review"]["file"] for record in report.records.values()]
        write_page(folder / PAGE, cases, f"{predictor.bundle.name}: {len(cases)} results")
