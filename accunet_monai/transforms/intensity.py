"""Intensities of volumes: CT windows, z-scores and percentiles, with a foreground that leaves out the air."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.transform import MapTransform

Foreground = float | Literal["mean", "all"]
"""Which voxels count for statistics: those above a value, those above the volume's mean, or all."""

SMALLEST_DEVIATION = 1e-6
"""Standard deviations below this are rounding of a constant image; it becomes 0 and is not blown up to noise."""


class WindowCTd(MapTransform):
    """Hounsfield units → 0 to 1 over a window; what lies below or above is 0 or 1.

    Args:
        keys: keys of tensors in HU.
        center: middle of the window in HU, e.g. 40 for soft tissue, -600 for the lung.
        width: of the window in HU, above 0, e.g. 400 for soft tissue, 1500 for the lung.
        allow_missing_keys: whether absent keys are passed over.

    Raises:
        ValueError: ``width`` is not above 0.
    """

    def __init__(self, keys: KeysCollection, center: float, width: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if not width > 0:
            raise ValueError(f"width must be above 0, found {width}")
        self._scale = ScaleIntensityRange(center - width / 2, center + width / 2, 0.0, 1.0, clip=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales the tensors under ``keys``."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._scale(result[key])
        return result


class ZScoreForegroundd(MapTransform):
    """(x − mean) / standard deviation, both of the foreground; the background is moved along, so it stays darker.

    Args:
        keys: keys of tensors (C, X, Y, Z); each channel has its own statistics.
        foreground: ``"mean"`` (voxels above the channel's mean), a value (voxels above it; 0 where the background was
            set to 0, -500 for a body in CT) or ``"all"``.
        allow_missing_keys: whether absent keys are passed over.

    Raises:
        ValueError: an unknown foreground.
    """

    def __init__(self, keys: KeysCollection, foreground: Foreground = "mean", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.foreground = _checked(foreground)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales the tensors under ``keys`` to float32."""

        def scaled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            inside = _inside(values, self.foreground)
            mean, deviation = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
            result: np.ndarray[Any, Any] = (values - mean) / (deviation if deviation > SMALLEST_DEVIATION else 1.0)
            return result

        return _channelwise(self, data, scaled)


class ClipPercentilesd(MapTransform):
    """Values below and above two percentiles of the foreground become these percentiles.

    For the percentiles of all voxels it gives what MONAI's ``ClipIntensityPercentilesd`` gives; with a foreground, the
    share of air around the body has no influence.

    Args:
        keys: keys of tensors (C, X, Y, Z); each channel has its own statistics.
        lower: percentile, 0 to 100.
        upper: percentile above ``lower``, to 100.
        foreground: as of :class:`ZScoreForegroundd`.
        allow_missing_keys: whether absent keys are passed over.

    Raises:
        ValueError: impossible percentiles or an unknown foreground.
    """

    def __init__(
        self,
        keys: KeysCollection,
        lower: float = 0.5,
        upper: float = 99.5,
        foreground: Foreground = "all",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"percentiles must rise from 0 to 100, found {lower} and {upper}")
        self.lower, self.upper = lower, upper
        self.foreground = _checked(foreground)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clips the tensors under ``keys``; the result is float32."""

        def clipped(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            low, high = np.percentile(_inside(values, self.foreground), [self.lower, self.upper])
            result: np.ndarray[Any, Any] = np.clip(values, low, high)
            return result

        return _channelwise(self, data, clipped)


def _checked(foreground: Foreground) -> Foreground:
    if foreground not in ("mean", "all") and (isinstance(foreground, str) or not np.isfinite(foreground)):
        raise ValueError(f'foreground must be a number, "mean" or "all", found {foreground!r}')
    return foreground


def _inside(values: np.ndarray[Any, Any], foreground: Foreground) -> np.ndarray[Any, Any]:
    """The foreground's values; all of them where it would be empty."""
    if foreground == "all":
        return values
    inside = values[values > (values.mean(dtype=np.float64) if foreground == "mean" else foreground)]
    return inside if inside.size else values


def _channelwise(
    transform: MapTransform,
    data: Mapping[Hashable, Any],
    function: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]],
) -> dict[Hashable, Any]:
    """Applies a function of one channel; meta and traces of MetaTensors stay."""
    result = dict(data)
    for key in transform.key_iterator(result):
        tensor = torch.as_tensor(result[key])
        channels = tensor.detach().cpu().numpy() if not isinstance(tensor, MetaTensor) else tensor.array
        changed = torch.from_numpy(np.stack([function(channel) for channel in channels]).astype(np.float32))
        changed = changed.to(tensor.device)
        result[key] = MetaTensor(changed).copy_meta_from(tensor) if isinstance(tensor, MetaTensor) else changed
    return result
