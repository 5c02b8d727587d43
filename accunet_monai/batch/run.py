"""A run: what is found at a source, segmented with a bundle, into a folder that a later run goes on with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from accunet_monai import __version__
from accunet_monai.batch.measures import write_measures
from accunet_monai.batch.page import PAGE, write_page
from accunet_monai.batch.pipeline import overlapped
from accunet_monai.batch.ray_workers import RayActors
from accunet_monai.batch.records import Record
from accunet_monai.batch.report import BatchReport
from accunet_monai.batch.sources import Source, find_sources
from accunet_monai.batch.stages import PredictOptions, as_error, open_stages
from accunet_monai.batch.workers import Job, Processes, distribute
from accunet_monai.bundle import Predictor
from accunet_monai.errors import BundleError

PathLike = str | os.PathLike[str]


def predict_files(
    source: PathLike,
    bundle: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    weights: PathLike | Sequence[PathLike] | None = None,
    device: str | None = None,
    workers: int | None = None,
    ray: str | None = None,
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
        workers: processes with a network each, by default one; on Ray by default one a GPU, or else one a machine.
        ray: address of a Ray cluster to work on, instead of on this machine. Images, bundle and results must lie on a
            file system that all its machines see at the same place.
        console: where progress and summary are printed.
        options: fields of :class:`PredictOptions`.

    Raises:
        BundleError: when nothing can be done at all; what concerns one file or series is in the report.
        WorkerError: when no worker starts: ``WORKER_START``, ``WORKER_FILES``, ``WORKER_MODEL``; ``RAY_MISSING`` or
            ``RAY_UNREACHABLE``.
    """
    console, wanted, folder = console or Console(), PredictOptions(**options), Path(output)
    alone = ray is None and workers in (None, 1)
    stages = open_stages(bundle, weights, device if alone else "cpu", folder, wanted)
    predictor, report = stages.predictor, BatchReport()
    sources = find_sources(Path(source), predictor, report, planes=wanted.takes_planes)
    inputs = {Path(source).resolve()} | {item.parent.resolve() for item in sources if isinstance(item, Path)}
    if folder.resolve() in inputs:
        raise BundleError(
            "OUTPUT_TAKEN", "results would lie among the images.", path=folder, hint="Use another --output."
        )
    outcomes: Iterable[tuple[Source, tuple[Record, bool] | Exception]]
    if alone:
        outcomes = overlapped(sources, stages.read, stages.compute, stages.write)
    else:
        job = Job(bundle, weights, device, wanted, folder, predictor.digest)
        outcomes = distribute(sources, Processes(job, workers or 1) if ray is None else RayActors(job, workers, ray))
    progress = track(outcomes, "segmenting", total=len(sources), console=console, transient=True)
    _report_outcomes(report, folder, sources, dict(progress))
    _write_summaries(report, folder, predictor, wanted)
    report.print(console)
    return report


def _report_outcomes(
    report: BatchReport,
    folder: Path,
    sources: Sequence[Source],
    outcomes: Mapping[Source, tuple[Record, bool] | Exception],
) -> None:
    """In the sources' order, in which workers do not finish."""
    for source in sources:
        outcome = outcomes[source]
        if isinstance(outcome, Exception):
            report.failed[source] = as_error(source, outcome)
            continue
        record, fresh = outcome
        report.records[source] = record
        (report.written if fresh else report.skipped)[source] = folder / record.label_map


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
