"""Volumes and pictures on disk and in memory: NIfTI, MetaImage, NRRD, DICOM, PNG and JPEG; no torch and no MONAI.

A :class:`Volume` is valid once constructed. Readers are tolerant of what is harmless and refuse the rest with one
:class:`~accunet_monai.errors.VolumeError`; writers are strict and atomic.
"""

from __future__ import annotations

from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.channels import channel_files, first_channels, read_channels, read_first_channel
from accunet_monai.volumes.dicom_files import SkippedFile
from accunet_monai.volumes.dicom_seg import write_seg
from accunet_monai.volumes.dicom_seg_read import DicomSeg, read_seg
from accunet_monai.volumes.dicom_series import FoundSeries, Series, find_series, read_planes, read_series
from accunet_monai.volumes.dicom_source import DicomSource, SourceFrame
from accunet_monai.volumes.nifti import write_label_map
from accunet_monai.volumes.picture import read_picture, write_label_picture
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.preview import contact_sheet, label_colour, render_overlay
from accunet_monai.volumes.reading import (
    VOLUME_ENDINGS,
    is_dicom,
    read_grid,
    read_label_map,
    read_volume,
    series_name,
    volume_stem,
)
from accunet_monai.volumes.resampling import grid_of_spacing, resample, resample_label_map
from accunet_monai.volumes.segments import AlgorithmInfo, SegmentTable, read_segments
from accunet_monai.volumes.statistics import label_statistics
from accunet_monai.volumes.volume import Grid, Volume

__all__ = [
    "VOLUME_ENDINGS",
    "AlgorithmInfo",
    "DicomSeg",
    "DicomSource",
    "FoundSeries",
    "Grid",
    "PlaneStack",
    "SegmentTable",
    "Series",
    "SkippedFile",
    "SourceFrame",
    "Volume",
    "atomic_output",
    "channel_files",
    "contact_sheet",
    "find_series",
    "first_channels",
    "grid_of_spacing",
    "is_dicom",
    "label_colour",
    "label_statistics",
    "read_channels",
    "read_first_channel",
    "read_grid",
    "read_label_map",
    "read_picture",
    "read_planes",
    "read_seg",
    "read_segments",
    "read_series",
    "read_volume",
    "render_overlay",
    "resample",
    "resample_label_map",
    "series_name",
    "volume_stem",
    "write_label_map",
    "write_label_picture",
    "write_seg",
]
