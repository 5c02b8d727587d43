"""How much memory a run will take, told from headers before it starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from accunet_monai.batch.pipeline import AHEAD
from accunet_monai.batch.report import BatchReport, title
from accunet_monai.batch.sources import Source, find_sources
from accunet_monai.bundle import Predictor, load_bundle
from accunet_monai.errors import AccunetError, BundleError
from accunet_monai.inferers import SliceInferer, estimate
from accunet_monai.transforms import ResampleVolumed
from accunet_monai.volumes import Grid, Series, Volume, grid_of_spacing, read_grid
from accunet_monai.volumes.dicom_geometry import grid_of, stack_of
from accunet_monai.volumes.geometry import lps_from_ras

_IMAGES = 2
"""Of each volume in the pipeline: as read, and preprocessed; float32 both."""

PathLike = str | os.PathLike[str]


def explain_memory(
    source: PathLike, bundle: PathLike | Sequence[PathLike], console: Console | None = None
) -> dict[Source, int]:
    """Print, for each source, the grid that the network sees and the memory it takes; nothing is read but headers.

    Added are what the inferer takes beside its input, and the images that the pipeline holds at a time: one that is
    computed, those read ahead and those that are being written, each as read and as preprocessed. What the network
    takes for its own feature maps is not in it; that depends on ``sw_batch_size`` and not on the number of slices.

    Args:
        source: as of :func:`~accunet_monai.batch.predict_files`; volumes.
        bundle: likewise.
        console: where to print.

    Returns:
        source → bytes; without sources that cannot be read.

    Raises:
        BundleError: what finding the sources raises, and ``BUNDLE_PICTURES``.
    """
    console = console or Console()
    predictor = load_bundle(bundle)
    if predictor.takes_pictures:
        raise BundleError("BUNDLE_PICTURES", "the memory is told for volumes, not for pictures.", path=predictor.bundle)
    table = Table()
    for heading in ("image", "grid of the network", "inferer", "images", "in all"):
        table.add_column(heading, overflow="fold")
    found: dict[Source, int] = {}
    unusable = BatchReport()
    for item in find_sources(Path(source), predictor, unusable):
        try:
            shape = _network_shape(_grid(item), predictor)
        except AccunetError as error:
            table.add_row(escape(title(item)), f"fails: {error.code}")
            continue
        inferer = _inferer_bytes(predictor, shape)
        images = (1 + 2 * AHEAD) * _IMAGES * 4 * int(np.prod(shape))
        found[item] = inferer + images
        sizes = (f"{size / 2**20:.1f} MiB" for size in (inferer, images, inferer + images))
        table.add_row(escape(title(item)), " × ".join(map(str, shape)), *sizes)
    for item, problem in unusable.failed.items():
        table.add_row(escape(title(item)), f"fails: {problem.code}")
    console.print(table)
    return found


def _grid(source: Source) -> Grid:
    if isinstance(source, Path):
        return read_grid(source)
    return _series_grid(source)


def _series_grid(series: Series) -> Grid:
    stack = stack_of(series.frames)
    first = stack.frames[0]
    return Grid((first.columns, first.rows, len(stack.frames)), lps_from_ras(grid_of(stack)))


def _network_shape(grid: Grid, predictor: Predictor) -> tuple[int, int, int]:
    """In RAS, and at the spacing that the preprocessing resamples to."""
    empty = Volume(np.broadcast_to(np.uint8(0), grid.shape), grid.affine_ras).reoriented("RAS")  # takes no memory
    for transform in getattr(predictor.preprocessing, "transforms", ()):
        if isinstance(transform, ResampleVolumed):
            return grid_of_spacing(empty, transform.spacing).shape
    return empty.shape


def _inferer_bytes(predictor: Predictor, shape: tuple[int, int, int]) -> int:
    classes = int(predictor.metadata["network_data_format"]["outputs"]["pred"].get("num_channels", 2))
    if isinstance(predictor.inferer, SliceInferer):
        return estimate(predictor.inferer, (1, 1, *shape), classes).added
    return 2 * classes * 4 * int(np.prod(shape))  # logits, and what they are blended from
