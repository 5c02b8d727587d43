"""What one labelled image is like, as far as a plan asks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.bundle import propose_ranges
from accunet_monai.datasets import count_labels
from accunet_monai.volumes import Volume
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY

SAMPLED = 20_000
"""Intensities of the foreground kept of each image; a percentile of these is off by less than a per cent."""

LOWEST_CT = -300.0
"""HU. Air is -1000, and there is air around or in most bodies; no other modality has a first percentile below this."""

Ranges = Mapping[str, list[list[float]]]


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """A case's facts; whatever has an axis is in the order of RAS: left to right, back to front, bottom to top.

    Args:
        case, subject: names.
        axcodes: the array's own orientation, e.g. ``LPS``.
        shape: voxels.
        spacing: mm.
        modality: DICOM's name, ``CT`` or ``MR``; a guess where the file does not say.
        counts: label value → voxels, background and ignored included.
        coverage: for each axis the share of a slice that is foreground, mean of the slices that have any.
        empty: for each axis the share of slices without any foreground.
        slices_with: for each axis label value → number of slices that hold it.
        intensities: of foreground voxels, at most ``SAMPLED``.
        ranges: the quantities of an input contract, see :func:`~accunet_monai.bundle.propose_ranges`.
        digest: of the voxels.
    """

    case: str
    subject: str
    axcodes: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    modality: str
    counts: Mapping[int, int]
    coverage: tuple[float, float, float]
    empty: tuple[float, float, float]
    slices_with: tuple[Mapping[int, int], Mapping[int, int], Mapping[int, int]]
    intensities: npt.NDArray[np.float32]
    ranges: Ranges
    digest: str


def measure(case: Mapping[str, Any], image: Volume, label: Volume, ignore_label: int | None = None) -> CaseFacts:
    """Facts of an image and the label map on its grid."""
    upright, labels = image.reoriented("RAS"), label.reoriented("RAS").array
    tables = [count_labels(labels, axis) for axis in range(3)]
    values, counts = tables[0][0], tables[0][1].sum(axis=0)
    shown = (values > 0) & (values != (-1 if ignore_label is None else ignore_label))
    areas = [table[:, shown].sum(axis=1) for _, table in tables]
    return CaseFacts(
        case=str(case["case"]),
        subject=str(case["subject"]),
        axcodes="".join(image.axcodes),
        shape=upright.shape,
        spacing=upright.spacing,
        modality=_modality(image),
        counts={int(value): int(count) for value, count in zip(values, counts, strict=True)},
        coverage=_three(_coverage(area, labels.size) for area in areas),
        empty=_three(float((area == 0).mean()) for area in areas),
        slices_with=_three(
            dict(zip(values[shown].tolist(), (table[:, shown] > 0).sum(axis=0).tolist(), strict=True))
            for _, table in tables
        ),
        intensities=_sample(upright.array[np.isin(labels, values[shown])]),
        ranges=propose_ranges([image], margin=0),
        digest=hashlib.sha256(np.ascontiguousarray(upright.array).tobytes()).hexdigest(),
    )


def _modality(image: Volume) -> str:
    source = image.provenance.get(PROVENANCE_KEY)
    if source is not None:
        return str(source.modality)
    step = max(1, image.array.size // 100_000)
    return "CT" if float(np.percentile(image.array.reshape(-1)[::step], 1)) < LOWEST_CT else "MR"


def _coverage(areas: npt.NDArray[Any], voxels: int) -> float:
    """Mean share of a slice that is foreground, from each slice's pixels of it; of slices that have some."""
    return float(areas[areas > 0].mean() * len(areas) / voxels) if areas.any() else 0.0


def _sample(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    chosen = values if len(values) <= SAMPLED else np.random.default_rng(0).choice(values, SAMPLED, replace=False)
    return chosen.astype(np.float32)


def _three(items: Any) -> Any:
    first, second, third = items
    return first, second, third
