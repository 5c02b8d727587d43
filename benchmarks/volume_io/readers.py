"""Every way to read a series or a NIfTI file, as functions of a path. Imports are inside: a fresh process makes few.

What they give is an array (X, Y, Z) in HU up to the order of the slices, or ITK's image of it; of bytes alone, nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Reader = Callable[[Path], Any]

OURS = "read_series"
MONAI = "MONAI, PydicomReader"
ITK = "SimpleITK, ImageSeriesReader"
LOOP = "pydicom loop"
BYTES = "the bytes alone"
TWO_WORKERS = "read_series, 2 workers"


def ours(path: Path, workers: int = 1) -> npt.NDArray[Any]:
    """With all checks."""
    from accunet_monai.volumes import read_series

    return read_series(path, workers=workers).array


def monai(path: Path) -> npt.NDArray[Any]:
    """As MONAI's LoadImage gives it, metadata included."""
    return _monai_loader()(str(path)).numpy()


def itk(path: Path) -> Any:
    """Sorted by GDCM; ITK's own image, no copy into an array."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
    return reader.Execute()


def loop(path: Path) -> npt.NDArray[Any]:
    """What a careful user writes: all files, sorted by position, slope and intercept, one float32 array. No checks."""
    import pydicom

    datasets = [pydicom.dcmread(file) for file in path.iterdir()]
    datasets.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    array = np.empty((len(datasets), datasets[0].Rows, datasets[0].Columns), np.float32)
    for plane, ds in zip(array, datasets, strict=True):
        np.multiply(ds.pixel_array, np.float32(ds.RescaleSlope), out=plane)
        plane += np.float32(ds.RescaleIntercept)
    return array.T


def file_bytes(path: Path) -> None:
    """Nothing but reading: no reader can be faster."""
    for file in path.iterdir():
        file.read_bytes()


SERIES_READERS: dict[str, Reader] = {OURS: ours, MONAI: monai, ITK: itk, LOOP: loop, BYTES: file_bytes}
COMPRESSED_READERS: dict[str, Reader] = {
    OURS: ours,
    TWO_WORKERS: partial(ours, workers=2),
    MONAI: monai,
    ITK: itk,
    LOOP: loop,
}


def our_nifti(path: Path, memory_map: bool = False) -> npt.NDArray[Any]:
    """As float32, with the file's SHA-256 and the check for NaN."""
    from accunet_monai.volumes import read_volume

    return read_volume(path, memory_map=memory_map).array


def nibabel(path: Path) -> npt.NDArray[Any]:
    """As float32."""
    import nibabel as nib

    return nib.load(path).get_fdata(dtype=np.float32)


OUR_NIFTI, OUR_MAPPED, NIBABEL = "read_volume", "read_volume, memory-mapped", "nibabel, get_fdata"
NIFTI_READERS: dict[str, Reader] = {
    OUR_NIFTI: our_nifti,
    OUR_MAPPED: partial(our_nifti, memory_map=True),
    NIBABEL: nibabel,
}


def values(result: Any) -> npt.NDArray[Any]:
    """(X, Y, Z) of what a reader gave."""
    if isinstance(result, np.ndarray):
        return result
    import SimpleITK

    return SimpleITK.GetArrayFromImage(result).T


def same(first: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """The same values at the same places, whichever end the slices start from."""
    return first.shape == other.shape and (np.array_equal(first, other) or np.array_equal(first, other[..., ::-1]))


@cache
def _monai_loader() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI tells of readers that are not installed
        from monai.transforms import LoadImage

        return LoadImage(reader="PydicomReader", image_only=True)
