"""Volumes and pictures on disk and in memory: numpy, nibabel and Pillow only, no torch and no MONAI.

A :class:`Volume` is valid once constructed. Readers are tolerant of what is harmless and refuse the rest with one
:class:`~accunet_monai.errors.VolumeError`; writers are strict and atomic.
"""

from __future__ import annotations

from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.nifti import read_grid, read_label_map, read_volume, write_label_map
from accunet_monai.volumes.picture import read_picture, write_label_picture
from accunet_monai.volumes.preview import contact_sheet, label_colour, render_overlay
from accunet_monai.volumes.statistics import label_statistics
from accunet_monai.volumes.volume import Grid, Volume

__all__ = [
    "Grid",
    "Volume",
    "atomic_output",
    "contact_sheet",
    "label_colour",
    "label_statistics",
    "read_grid",
    "read_label_map",
    "read_picture",
    "read_volume",
    "render_overlay",
    "write_label_map",
    "write_label_picture",
]
