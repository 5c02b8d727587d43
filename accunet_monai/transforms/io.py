"""Loading volumes, label maps and pictures into MONAI's dictionaries, and saving label maps on their file's grid."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.enums import MetaKeys, SpaceKeys

from accunet_monai.errors import VolumeError
from accunet_monai.transforms.source import DICOM_SOURCE, FILENAME, READ_OPTIONS, source_grid, source_meta, source_name
from accunet_monai.volumes import (
    Grid,
    Series,
    Volume,
    is_dicom,
    read_channels,
    read_label_map,
    read_picture,
    read_series,
    read_volume,
    write_label_map,
)
from accunet_monai.volumes.dicom_seg import write_seg
from accunet_monai.volumes.geometry import largest_shift_mm, same_placement
from accunet_monai.volumes.label_reading import read_labels_of
from accunet_monai.volumes.nifti_header import Form


class LoadVolumed(MapTransform):
    """Path, DICOM :class:`~accunet_monai.volumes.Series` or :class:`~accunet_monai.volumes.Volume` → MetaTensor.

    The tensor is (channels, X, Y, Z) float32 on the source's own grid. ``affine`` is voxel → RAS mm (MONAI's ``space``
    "RAS"), so that ``Orientationd``, ``Spacingd`` and their inverses work; ``meta["filename_or_obj"]`` is the absolute
    path, or "" for a volume that came from no file. What :class:`SaveLabelMapd` needs of the source is in the meta.

    Args:
        keys: keys that hold paths (NIfTI, MetaImage, NRRD, or a DICOM file, folder or DICOMDIR), series or volumes.
        allow_missing_keys: whether absent keys are passed over.
        channels: of the image; of several a path is that of a 4D NIfTI file or of nnU-Net's ``CASE_0000``, see
            :mod:`accunet_monai.volumes.channels`, and a volume is the first one of such a file.
        time_point, form, fill_nonfinite, series_uid: as of :func:`~accunet_monai.volumes.read_volume`, for paths.

    Raises:
        VolumeError: what :func:`~accunet_monai.volumes.read_volume` and
            :func:`~accunet_monai.volumes.read_channels` raise.
        KeyError: a key is missing and ``allow_missing_keys`` is false.
        ValueError: ``time_point`` of several channels.
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        *,
        channels: int = 1,
        time_point: int | None = None,
        form: Form | None = None,
        fill_nonfinite: float | None = None,
        series_uid: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if channels > 1 and time_point is not None:
            raise ValueError("the volumes of a 4D file are channels or time points, not both")
        self.channels = channels
        self.time_point = time_point
        self.form = form
        self.fill_nonfinite = fill_nonfinite
        self.series_uid = series_uid

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces the paths, series or volumes under ``keys`` by tensors."""
        result = dict(data)
        for key in self.key_iterator(result):
            source = result[key]
            volumes = [self._volume(source)] if self.channels == 1 else self._several(source)
            result[key] = _meta_tensor(volumes[0], np.float32, volumes[1:])
        return result

    def _several(self, source: Any) -> list[Volume]:
        first = source if isinstance(source, Volume) else None
        path = source if first is None else first.provenance.get("path", "")
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            message = f"{self.channels} channels are needed, found one volume without a file."
            raise VolumeError("VOLUME_CHANNELS", message)
        return read_channels(path, self.channels, first, form=self.form, fill_nonfinite=self.fill_nonfinite)

    def _volume(self, source: Any) -> Volume:
        if isinstance(source, Volume):
            return source
        if isinstance(source, Series):
            return read_series(source)
        return read_volume(
            source,
            time_point=self.time_point,
            form=self.form,
            fill_nonfinite=self.fill_nonfinite,
            series_uid=self.series_uid,
        )


class LoadLabelMapd(MapTransform):
    """Path or :class:`~accunet_monai.volumes.Volume` of labels → MetaTensor (1, X, Y, Z) uint8 (int32 above 255).

    A DICOM SEG is put onto the planes of the image that lies under ``image``: a path, a volume or a loaded tensor.

    Raises:
        VolumeError: what :func:`~accunet_monai.volumes.read_label_map` raises, and ``LABEL_NOT_INTEGER`` for a Volume
            of another type.
        KeyError: a key is missing and ``allow_missing_keys`` is false.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces the paths or volumes under ``keys`` by label tensors."""
        result = dict(data)
        for key in self.key_iterator(result):
            source = result[key]
            volume = source if isinstance(source, Volume) else _labels(source, result.get("image"))
            _check_labels(volume.array, volume.provenance.get("path"))
            result[key] = _meta_tensor(volume, np.uint8 if int(volume.array.max()) <= 255 else np.int32)
        return result


def _labels(path: Any, image: Any) -> Volume:
    if image is None or not (Path(path).is_file() and is_dicom(Path(path))):
        return read_label_map(path)
    if isinstance(image, MetaTensor):
        image = Volume(image.array[0], np.asarray(image.affine.cpu(), dtype=np.float64))
    return read_labels_of(path, image if isinstance(image, Volume) else read_volume(image))


class LoadPictured(MapTransform):
    """Path of a PNG or JPEG → MetaTensor (C, H, W) float32 of 0 to 255, rows from top to bottom.

    Args:
        keys: keys that hold paths.
        channels: 1 for grey, 3 for colour.

    Raises:
        VolumeError: what :func:`~accunet_monai.volumes.read_picture` raises.
        KeyError: a key is missing and ``allow_missing_keys`` is false.
    """

    def __init__(self, keys: KeysCollection, channels: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces the paths under ``keys`` by tensors."""
        result = dict(data)
        for key in self.key_iterator(result):
            pixels = read_picture(result[key], self.channels)
            meta = {
                FILENAME: str(Path(result[key]).absolute()),
                MetaKeys.ORIGINAL_CHANNEL_DIM: 0,
                MetaKeys.SPATIAL_SHAPE: np.array(pixels.shape[1:]),
            }
            result[key] = MetaTensor(torch.from_numpy(pixels), meta=meta)
        return result


class SaveLabelMapd(MapTransform):
    """MetaTensor (1, X, Y, Z) of labels, already inverted to its source's grid → NIfTI or DICOM SEG on that very grid.

    The grid of a file is read again from the header of ``meta["filename_or_obj"]``. The label map goes to
    ``output_dir/NAME_POSTFIX.nii.gz`` (``output_dir/NAME/NAME_POSTFIX.nii.gz`` with ``separate_folder``), and its path
    to ``meta["saved_to"]``. NAME is the file's, or modality and digest of a DICOM series. Files are written atomically.

    Args:
        keys: keys that hold label maps.
        output_dir: made when missing.
        output_postfix: what follows the source's name; "" for none.
        separate_folder: one folder for each source.
        output_ext: ``.nii.gz``, ``.nii``, or ``.dcm`` for DICOM SEG, which needs a DICOM source.
        allow_missing_keys: whether absent keys are passed over.
        segments: path of the ``segments.yaml`` that says what the labels mean; needed for ``.dcm``.

    Raises:
        VolumeError: ``LABEL_GRID`` when shape or affine is not the source's (a transform was not inverted),
            ``LABEL_NOT_INTEGER``, ``LABEL_NO_SOURCE`` when the meta names no file, ``OUTPUT_TAKEN`` when this
            transform has already written that name for another source (two folders with files of one name), and what
            :func:`~accunet_monai.volumes.dicom_seg.write_seg` raises.
        ValueError: ``.dcm`` without ``segments``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str | os.PathLike[str],
        output_postfix: str = "seg",
        separate_folder: bool = False,
        output_ext: str = ".nii.gz",
        allow_missing_keys: bool = False,
        segments: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if output_ext == ".dcm" and segments is None:
            raise ValueError("DICOM SEG needs segments: the path of a segments.yaml")
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.separate_folder = separate_folder
        self.output_ext = output_ext
        self.segments = segments
        self._source_of: dict[Path, tuple[Path, str]] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Writes the label maps under ``keys``; adds ``saved_to`` to their meta."""
        result = dict(data)
        for key in self.key_iterator(result):
            tensor = result[key]
            source = _source_file(tensor)
            grid = source_grid(tensor, source)
            target = self._claimed(self._target(grid, source), source, tensor)
            labels = _label_array(tensor, source)
            _check_same_grid(tensor, labels.shape, grid, source)
            self._write(target, labels, grid)
            saved = tensor.clone()  # a new tensor: the caller's meta stays as it is
            saved.meta[MetaKeys.SAVED_TO] = str(target)
            result[key] = saved
        return result

    def _write(self, target: Path, labels: np.ndarray[Any, Any], grid: Grid) -> None:
        if self.segments is None or self.output_ext != ".dcm":
            write_label_map(target, labels, like=grid, description="accunet-monai label map")
        else:
            write_seg(target, labels, Volume(labels, grid.affine_ras, grid.provenance), self.segments)

    def _target(self, grid: Grid, source: Path) -> Path:
        name = source_name(grid, source)
        folder = self.output_dir / name if self.separate_folder else self.output_dir
        postfix = f"_{self.output_postfix}" if self.output_postfix else ""
        return folder / f"{name}{postfix}{self.output_ext}"

    def _claimed(self, target: Path, source: Path, tensor: MetaTensor) -> Path:
        if target.exists() and target.samefile(source):
            raise VolumeError("OUTPUT_TAKEN", "the label map would replace its own image.", path=target)
        asked = source, f"{tensor.meta.get(READ_OPTIONS)}{tensor.meta.get(DICOM_SOURCE)}"
        earlier = self._source_of.setdefault(target, asked)
        if earlier != asked:
            raise VolumeError(
                "OUTPUT_TAKEN",
                f"already written for {earlier[0]}, now asked for {source}.",
                path=target,
                hint="Use separate output folders for sources of one name.",
            )
        return target


def _meta_tensor(volume: Volume, dtype: type[np.generic], further: Sequence[Volume] = ()) -> MetaTensor:
    """(1 + further channels, X, Y, Z), a copy: volumes are read-only."""
    array = np.empty((1 + len(further), *volume.shape), dtype)
    for number, channel in enumerate((volume, *further)):
        array[number] = channel.array
    path = volume.provenance.get("path")
    affine = torch.from_numpy(volume.affine_ras.copy())
    meta = {
        FILENAME: str(Path(path).absolute()) if path else "",
        MetaKeys.ORIGINAL_AFFINE: affine.clone(),
        MetaKeys.SPATIAL_SHAPE: np.array(volume.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0,  # the channel axis is there already: EnsureChannelFirstd adds no second one
        **source_meta(volume),
    }
    return MetaTensor(torch.from_numpy(array), affine=affine, meta=meta)


def _check_labels(array: np.ndarray[Any, Any], path: str | None) -> None:
    highest = np.iinfo(np.int32).max
    if array.dtype.kind not in "biu" or int(array.min()) < 0 or int(array.max()) > highest:
        raise VolumeError("LABEL_NOT_INTEGER", f"labels are whole numbers of 0 to {highest}.", path=path)


def _source_file(tensor: Any) -> Path:
    name = tensor.meta.get(FILENAME, "") if isinstance(tensor, MetaTensor) else ""
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise VolumeError(
            "LABEL_NO_SOURCE",
            f'the label map does not name the file it belongs to (meta["{FILENAME}"] is {name!r}).',
            hint="Load it with LoadVolumed from a file, or write it with write_label_map.",
        )
    return Path(name)


def _label_array(tensor: MetaTensor, source: Path) -> np.ndarray[Any, Any]:
    """(X, Y, Z) integers from (1, X, Y, Z) of any type."""
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise VolumeError(
            "LABEL_GRID",
            f"expected a label map (1, X, Y, Z), found {tuple(tensor.shape)}.",
            path=source,
            hint="Take the argmax over channels first.",
        )
    values = tensor.as_tensor().detach().cpu()[0]
    if values.is_floating_point():
        if not bool((values == values.round()).all()):
            raise VolumeError("LABEL_NOT_INTEGER", "the label map has values that are not whole numbers.", path=source)
        values = values.to(torch.int64)
    array: np.ndarray[Any, Any] = values.numpy()
    return array


def _check_same_grid(tensor: MetaTensor, shape: tuple[int, ...], grid: Grid, source: Path) -> None:
    hint = "Invert the spatial transforms (Invertd, nearest_interp=True) before saving."
    if shape != grid.shape:
        message = f"the label map has shape {shape}, its image {grid.shape}."
        raise VolumeError("LABEL_GRID", message, path=source, hint=hint)
    affine = np.asarray(tensor.affine.cpu(), dtype=np.float64)
    if affine.shape != (4, 4) or not same_placement(grid.affine_ras, affine, grid.shape):
        shift = largest_shift_mm(grid.affine_ras, affine, grid.shape) if affine.shape == (4, 4) else float("nan")
        message = f"the label map lies up to {shift:.3g} mm away from its image."
        raise VolumeError("LABEL_GRID", message, path=source, hint=hint)
