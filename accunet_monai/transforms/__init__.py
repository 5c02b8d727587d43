"""MONAI dictionary transforms over :mod:`accunet_monai.volumes`, usable by ``_target_`` in a bundle's config."""

from __future__ import annotations

from accunet_monai.transforms.intensity import ClipPercentilesd, WindowCTd, ZScoreForegroundd
from accunet_monai.transforms.io import LoadLabelMapd, LoadPictured, LoadVolumed, SaveLabelMapd
from accunet_monai.transforms.postprocessing import CleanLabelsd
from accunet_monai.transforms.spatial import OrientVolumed, ResampleVolumed

__all__ = [
    "CleanLabelsd",
    "ClipPercentilesd",
    "LoadLabelMapd",
    "LoadPictured",
    "LoadVolumed",
    "OrientVolumed",
    "ResampleVolumed",
    "SaveLabelMapd",
    "WindowCTd",
    "ZScoreForegroundd",
]
