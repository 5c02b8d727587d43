"""One way in for volumes on disk: the format is found, the numbers are checked, and a :class:`Volume` comes out.

| | |
|---|---|
| NIfTI | :mod:`accunet_monai.volumes.nifti` |
| MetaImage, NRRD | :mod:`accunet_monai.volumes.metaimage` |
| DICOM file, folder or DICOMDIR | :func:`accunet_monai.volumes.dicom_series.read_series` |
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.dicom_series import read_series
from accunet_monai.volumes.dicom_source import DicomSource
from accunet_monai.volumes.labels import smallest_unsigned, whole_numbers
from accunet_monai.volumes.metaimage import ITK_ENDINGS, read_itk, read_itk_grid
from accunet_monai.volumes.nifti import read_nifti, read_nifti_grid
from accunet_monai.volumes.nifti_header import Form
from accunet_monai.volumes.volume import Grid, Volume

PathLike = str | os.PathLike[str]

VOLUME_ENDINGS = (".nii.gz", ".nii", *ITK_ENDINGS)
"""What names of files with one volume each end in. DICOM needs no ending."""


def read_volume(
    path: PathLike,
    dtype: npt.DTypeLike = np.float32,
    *,
    time_point: int | None = None,
    form: Form | None = None,
    fill_nonfinite: float | None = None,
    memory_map: bool = False,
    series_uid: str | None = None,
) -> Volume:
    """Reads a 3D image: NIfTI, MetaImage, NRRD, or a DICOM file, folder or DICOMDIR, with scale factors applied.

    A 4D file with one time point counts as 3D. ``provenance`` has ``path``, ``format``, ``sha256`` (of a file's bytes)
    and, for NIfTI, the header's own geometry fields.

    Args:
        path: a file, or a folder of DICOM objects.
        dtype: floating-point type of the array.
        time_point: which volume of a 4D NIfTI file.
        form: ``"sform"`` or ``"qform"``, for NIfTI files in which the two contradict each other.
        fill_nonfinite: what takes the place of NaN and infinite voxels; by default they are refused, since what they
            should be cannot be guessed. ``provenance["replaced_nonfinite"]`` says how many there were.
        memory_map: map the voxels of an uncompressed NIfTI file where they are stored as ``dtype`` without scale
            factors, in place of a copy. The file must not change as long as the volume is in use.
        series_uid: which series of a DICOM folder that holds several.

    Raises:
        VolumeError: with the path: what :func:`~accunet_monai.volumes.nifti.read_nifti`,
            :func:`~accunet_monai.volumes.metaimage.read_itk` and
            :func:`~accunet_monai.volumes.dicom_series.read_series` raise, and ``VOLUME_NONFINITE``.
        TypeError: ``dtype`` is not floating point.
        ValueError: ``fill_nonfinite`` is not finite.
    """
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"dtype must be floating point, found {np.dtype(dtype)}; label maps: read_label_map")
    if fill_nonfinite is not None and not np.isfinite(fill_nonfinite):
        raise ValueError(f"fill_nonfinite must be a finite number, found {fill_nonfinite}")
    source = Path(path)
    if series_uid is not None or is_dicom(source):
        series = read_series(source, series_uid=series_uid)
        return Volume(series.array.astype(dtype, copy=False), series.affine_ras, series.provenance)
    values, grid = _read_file(source, time_point, form, memory_map)
    values, provenance = _filled(values, fill_nonfinite, dict(grid.provenance))
    with np.errstate(over="ignore"):  # too large for dtype becomes infinite, which Volume reports
        return Volume(values.astype(dtype, copy=False), grid.affine_ras, provenance)


def read_label_map(path: PathLike, *, time_point: int | None = None, form: Form | None = None) -> Volume:
    """Reads a label map from NIfTI, MetaImage or NRRD: whole numbers from 0, as the smallest unsigned integer type.

    Files that store whole numbers as floating point or with scale factors are accepted.

    Args:
        path: a file.
        time_point: which volume of a 4D NIfTI file.
        form: ``"sform"`` or ``"qform"``, for NIfTI files in which the two contradict each other.

    Raises:
        VolumeError: as :func:`read_volume`, and ``LABEL_NOT_INTEGER`` for fractions or negative values.
    """
    values, grid = _read_file(Path(path), time_point, form)
    checked = Volume(values, grid.affine_ras, grid.provenance).array
    return Volume(smallest_unsigned(whole_numbers(checked, path), path), grid.affine_ras, grid.provenance)


def read_grid(path: PathLike, *, time_point: int | None = None, form: Form | None = None) -> Grid:
    """Shape, placement and provenance of a NIfTI, MetaImage or NRRD file from its header alone (no ``sha256``).

    Raises:
        VolumeError: as :func:`read_volume`, as far as the header shows it.
    """
    source = Path(path)
    if _is_itk(source, time_point):
        return read_itk_grid(source)
    return read_nifti_grid(source, time_point=time_point, form=form)


def is_dicom(path: Path) -> bool:
    """Whether a path is to be read as DICOM: a folder with something in it, or a file that no other format claims."""
    if path.is_dir():
        return any(path.iterdir())
    if not path.is_file() or path.name.lower().endswith(VOLUME_ENDINGS):
        return False
    with path.open("rb") as file:
        beginning = file.read(4)
    nifti = {int.from_bytes(beginning, "little"), int.from_bytes(beginning, "big")} & {348, 540}
    return not nifti and not beginning.startswith(b"\x1f\x8b")


def volume_stem(path: PathLike) -> str:
    """The file's name without the ending of its format (``a.b.nii.gz`` → ``a.b``)."""
    name = Path(path).name
    ending = next((ending for ending in VOLUME_ENDINGS if name.lower().endswith(ending)), Path(name).suffix)
    return name[: len(name) - len(ending)]


def series_name(source: DicomSource) -> str:
    """A file name for results on a series: modality and a digest (``MR_1a2b3c4d``). Its texts may hold anything."""
    first = source.frames[0].sop_instance_uid if source.frames else ""
    identity = repr((source.series_uid, sorted(source.split.items()), first))
    modality = re.sub(r"[^A-Z0-9]", "", source.modality.upper()) or "series"
    return f"{modality}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _read_file(
    path: Path, time_point: int | None, form: Form | None, memory_map: bool = False
) -> tuple[npt.NDArray[Any], Grid]:
    if _is_itk(path, time_point):
        return read_itk(path)
    return read_nifti(path, time_point=time_point, form=form, memory_map=memory_map)


def _is_itk(path: Path, time_point: int | None) -> bool:
    if not path.name.lower().endswith(ITK_ENDINGS):
        return False
    if time_point:
        raise VolumeError("VOLUME_TIME_POINT", f"there is no time point {time_point}: the format is 3D.", path=path)
    return True


def _filled(
    values: npt.NDArray[Any], fill: float | None, provenance: dict[str, Any]
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    if fill is None or values.dtype.kind != "f":
        return values, provenance
    finite = np.isfinite(values)
    replaced = values.size - int(np.count_nonzero(finite))
    if replaced:
        values = np.where(finite, values, values.dtype.type(fill))
    return values, {**provenance, "replaced_nonfinite": replaced}
