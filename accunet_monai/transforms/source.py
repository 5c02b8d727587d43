"""What a MetaTensor remembers of the file or series it came from, as text, which batches and worker processes carry."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import MetaKeys

from accunet_monai.volumes import DicomSource, Grid, SourceFrame, Volume, read_grid, volume_stem
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY
from accunet_monai.volumes.reading import series_name

FILENAME = "filename_or_obj"
"""MONAI's key of a MetaTensor's meta for the file it came from."""

READ_OPTIONS = "read_options"
"""Key of the meta for the choices with which a file's header gives the same grid again (JSON)."""

DICOM_SOURCE = "dicom_source"
"""Key of the meta for the series that a volume was made of (JSON), "" for other volumes."""


def source_meta(volume: Volume) -> dict[str, str]:
    """The meta of a volume's source; the same keys for all, so that batches can hold several kinds."""
    provenance = volume.provenance
    options: dict[str, Any] = {}
    if "time_point" in provenance:
        options["time_point"] = provenance["time_point"]
    if provenance.get("form") in ("sform", "qform"):
        options["form"] = provenance["form"]
    source = provenance.get(PROVENANCE_KEY)
    return {READ_OPTIONS: json.dumps(options), DICOM_SOURCE: "" if source is None else _packed(source)}


def source_grid(tensor: MetaTensor, path: Path) -> Grid:
    """The grid that a tensor's source has: of a file from its header, of a DICOM series as it was loaded.

    Raises:
        VolumeError: what :func:`~accunet_monai.volumes.read_grid` raises.
    """
    packed = tensor.meta.get(DICOM_SOURCE)
    if not packed:
        return read_grid(path, **json.loads(tensor.meta.get(READ_OPTIONS) or "{}"))
    x, y, z = (int(size) for size in tensor.meta[MetaKeys.SPATIAL_SHAPE])
    affine = np.asarray(tensor.meta[MetaKeys.ORIGINAL_AFFINE], dtype=np.float64)
    return Grid((x, y, z), affine, {"path": str(path), "format": "DICOM", PROVENANCE_KEY: _unpacked(packed)})


def source_name(source: Grid | Volume, path: Path) -> str:
    """What results are named after: the file, or modality and digest of a series."""
    dicom: DicomSource | None = source.provenance.get(PROVENANCE_KEY)
    return volume_stem(path) if dicom is None else series_name(dicom)


def _packed(source: DicomSource) -> str:
    frames = [{**asdict(frame), "path": str(frame.path)} for frame in source.frames]
    return json.dumps({**vars(source), "split": dict(source.split), "frames": frames})


def _unpacked(text: str) -> DicomSource:
    fields = json.loads(text)
    fields["frames"] = tuple(_frame(**frame) for frame in fields["frames"])
    for name in ("transfer_syntaxes", "notes"):
        fields[name] = tuple(fields[name])
    return DicomSource(**fields)


def _frame(path: str, plane: list[float] | None, **known: Any) -> SourceFrame:
    return SourceFrame(path=Path(path), plane=None if plane is None else tuple(plane), **known)
