"""Images of several channels (T1, T2, FLAIR …), each a volume on one grid, named by one path.

| layout | path | channels |
|---|---|---|
| Decathlon | ``CASE.nii.gz`` | the volumes of the 4D file |
| nnU-Net | ``CASE_0000.nii.gz`` | that file, ``CASE_0001.nii.gz`` beside it, … |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.geometry import same_placement
from accunet_monai.volumes.reading import PathLike, is_dicom, read_grid, read_volume, volume_stem
from accunet_monai.volumes.volume import Volume

_NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")


def channel_files(path: PathLike, channels: int) -> list[Path]:
    """The files that hold an image's channels: one 4D file, or nnU-Net's, of which ``path`` is the first.

    Example:
        >>> [file.name for file in channel_files("brain_0000.nii.gz", 2)]
        ['brain_0000.nii.gz', 'brain_0001.nii.gz']
    """
    first = Path(path)
    stem = volume_stem(first)
    numbered = _NUMBERED.fullmatch(stem)
    if channels == 1 or numbered is None or numbered["number"] != "0000":
        return [first]
    ending = first.name[len(stem) :]
    return [first.with_name(f"{numbered['case']}_{number:04}{ending}") for number in range(channels)]


def first_channels(paths: list[Path]) -> list[Path]:
    """The images among these files: without nnU-Net's ``CASE_0001``, … where ``CASE_0000`` is there, too."""
    there = set(paths)

    def is_further(path: Path) -> bool:
        stem = volume_stem(path)
        numbered = _NUMBERED.fullmatch(stem)
        if numbered is None or numbered["number"] == "0000":
            return False
        return path.with_name(f"{numbered['case']}_0000{path.name[len(stem) :]}") in there

    return [path for path in paths if not is_further(path)]


def read_first_channel(path: PathLike, channels: int | None = None) -> Volume:
    """The volume that stands for an image where one is wanted: for its grid, or to be shown.

    Args:
        path: as of :func:`read_channels`.
        channels: of the image, where a file of several is to be refused for an image of one.
    """
    return read_volume(path, time_point=None if channels == 1 or is_dicom(Path(path)) else 0)


def read_channels(path: PathLike, channels: int, first: Volume | None = None, **options: Any) -> list[Volume]:
    """All channels of an image, on one grid.

    Args:
        path: of a 4D file, or of the first of nnU-Net's.
        channels: how many there must be.
        first: the first one, where it has been read already.
        options: of :func:`~accunet_monai.volumes.read_volume`.

    Raises:
        VolumeError: ``VOLUME_CHANNELS`` for another number of channels or different grids, and what ``read_volume``
            raises.
    """
    if channels == 1:
        return [read_volume(path, **options) if first is None else first]
    files = channel_files(path, channels)
    missing = [file.name for file in files[1:] if not file.is_file()]
    if missing:
        raise VolumeError("VOLUME_CHANNELS", f"channels are missing: {', '.join(missing)}.", path=path)
    if len(files) == 1:
        _check_count(files[0], channels)
        sources = [(files[0], number) for number in range(channels)]
    else:
        sources = [(file, 0) for file in files]
    volumes = [first] if first is not None else []
    volumes += [read_volume(file, time_point=number, **options) for file, number in sources[len(volumes) :]]
    for number, volume in enumerate(volumes):
        same = volume.shape == volumes[0].shape
        if not (same and same_placement(volumes[0].affine_ras, volume.affine_ras, volume.shape)):
            message = f"channel {number} is not on the grid of the first."
            raise VolumeError("VOLUME_CHANNELS", message, path=path, hint="Resample it onto the first.")
    return volumes


def _check_count(path: Path, channels: int) -> None:
    """Refuse a 4D file of another number of volumes."""
    hint = "Channels are the volumes of a 4D NIfTI file, or nnU-Net's files CASE_0000, CASE_0001, …"
    if is_dicom(path):
        raise VolumeError("VOLUME_CHANNELS", f"one DICOM series, {channels} channels are needed.", path=path, hint=hint)
    try:
        read_grid(path, time_point=channels - 1)
    except VolumeError as error:
        if error.code != "VOLUME_TIME_POINT":
            raise
        message = f"{channels} channels are needed: {error.message}"
        raise VolumeError("VOLUME_CHANNELS", message, path=path, hint=hint) from error
    try:
        read_grid(path, time_point=channels)
    except VolumeError as error:
        if error.code != "VOLUME_TIME_POINT":
            raise
        return
    raise VolumeError("VOLUME_CHANNELS", f"more than {channels} volumes.", path=path, hint=hint)
