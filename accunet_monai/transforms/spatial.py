"""Orientation and spacing of volumes, with inverses that land on the exact grid a volume came from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.spatial.dictionary import Orientationd
from monai.transforms.transform import MapTransform
from monai.utils.enums import TraceKeys
from monai.utils.misc import ensure_tuple_rep

from accunet_monai.volumes import Grid, Volume
from accunet_monai.volumes.labels import whole_numbers
from accunet_monai.volumes.resampling import (
    ImageInterpolation,
    LabelInterpolation,
    grid_of_spacing,
    resample,
    resample_label_map,
)

_MODES = ("linear", "bspline", "nearest", "label_linear")


class OrientVolumed(Orientationd):
    """Array axes that point to ``axcodes``, by flips and permutations only: MONAI's ``Orientationd`` for RAS tensors.

    Args:
        keys: keys of MetaTensors (C, X, Y, Z).
        axcodes: one of L/R, one of P/A and one of I/S, in the order wanted.
        allow_missing_keys: whether absent keys are passed over.
    """

    def __init__(self, keys: KeysCollection, axcodes: str = "RAS", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, axcodes=axcodes, labels=None, allow_missing_keys=allow_missing_keys)


class ResampleVolumed(MapTransform, InvertibleTransform):
    """MetaTensor (C, X, Y, Z) → the same at another spacing, see :mod:`accunet_monai.volumes.resampling`.

    The inverse brings it back to exactly the grid it had. There label maps (``Invertd(nearest_interp=True)``) are
    interpolated by ``label_interpolation`` and probabilities or logits (``nearest_interp=False``) linearly.

    Args:
        keys: keys of MetaTensors.
        spacing: mm along the array axes, one number for all three; 0 or less keeps that axis as it is.
        interpolation: ``"linear"`` or ``"bspline"`` for images, ``"label_linear"`` or ``"nearest"`` for label maps; one
            for all keys or one for each.
        label_interpolation: of label maps in the inverse, ``"label_linear"`` or ``"nearest"``.
        anti_alias: whether images are blurred along axes that become coarser.
        allow_missing_keys: whether absent keys are passed over.

    Raises:
        VolumeError: ``VOLUME_TOO_LARGE``, and ``LABEL_NOT_INTEGER`` for ``"label_linear"`` on fractions.
        TypeError: what lies under a key is no MetaTensor.
        ValueError: an unknown interpolation.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: float | Sequence[float],
        interpolation: str | Sequence[str] = "linear",
        label_interpolation: LabelInterpolation = "label_linear",
        anti_alias: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.interpolation = ensure_tuple_rep(interpolation, len(self.keys))
        for mode in (*self.interpolation, label_interpolation):
            if mode not in _MODES:
                raise ValueError(f"interpolation must be one of {', '.join(_MODES)}, found {mode!r}")
        self.spacing = spacing
        self.label_interpolation: LabelInterpolation = label_interpolation
        self.anti_alias = anti_alias

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resamples the tensors under ``keys``."""
        result = dict(data)
        for key, mode in self.key_iterator(result, self.interpolation):
            tensor = result[key]
            source = _grid(tensor, key)
            target = grid_of_spacing(source, self.spacing)
            changed = _on_grid(tensor, source, target, mode, self.anti_alias)
            # MONAI turns a "mode" that it knows into "nearest" where label maps are inverted
            trace = {"mode": "linear" if mode == "bspline" else mode, "original_affine": source.affine_ras.copy()}
            result[key] = self.push_transform(changed, orig_size=source.shape, extra_info=trace)  # type: ignore[no-untyped-call]
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Brings the tensors under ``keys`` back to the grids they had."""
        result = dict(data)
        for key in self.key_iterator(result):
            tensor = result[key]
            trace = self.pop_transform(tensor)
            shape = tuple(int(size) for size in trace[TraceKeys.ORIG_SIZE])
            extra = trace[TraceKeys.EXTRA_INFO]
            target = Grid((shape[0], shape[1], shape[2]), np.asarray(extra["original_affine"], dtype=np.float64))
            mode = extra["mode"]
            if mode != "linear" and _are_labels(tensor):
                mode = self.label_interpolation
            result[key] = _on_grid(tensor, _grid(tensor, key), target, mode, self.anti_alias)
        return result


def _grid(tensor: Any, key: Hashable) -> Grid:
    if not isinstance(tensor, MetaTensor) or tensor.ndim != 4:
        raise TypeError(f"{key!r} must be a MetaTensor (C, X, Y, Z): load it with LoadVolumed")
    _, x, y, z = tensor.shape
    return Grid((x, y, z), tensor.affine.cpu().numpy().astype(np.float64))


def _on_grid(tensor: MetaTensor, source: Grid, target: Grid, mode: str, anti_alias: bool) -> MetaTensor:
    """The tensor's channels on ``target``, with its meta and type; images become float32."""
    channels = [
        _channel(values, source, target, mode, anti_alias) for values in tensor.as_tensor().detach().cpu().numpy()
    ]
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(channels)))
    if mode in ("label_linear", "nearest"):
        stacked = stacked.to(tensor.dtype)
    changed: MetaTensor = MetaTensor(stacked.to(tensor.device)).copy_meta_from(tensor)
    changed.affine = torch.from_numpy(target.affine_ras.copy())
    return changed


def _channel(
    values: np.ndarray[Any, Any], source: Grid, target: Grid, mode: str, anti_alias: bool
) -> np.ndarray[Any, Any]:
    if mode == "label_linear" or (mode == "nearest" and values.dtype.kind in "bu"):
        labels = Volume(whole_numbers(values), source.affine_ras)
        return resample_label_map(labels, target, cast(LabelInterpolation, mode)).array.astype(values.dtype)
    image = Volume(values, source.affine_ras)
    return resample(image, target, cast(ImageInterpolation, mode), anti_alias=anti_alias).array


def _are_labels(tensor: MetaTensor) -> bool:
    """Whether all values are whole numbers from 0."""
    values = tensor.as_tensor()
    return bool((values >= 0).all()) and (not values.is_floating_point() or bool((values == values.round()).all()))
