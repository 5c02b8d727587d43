"""What ``SliceInferer`` accepts: every impossible argument is refused when the inferer is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accunet_monai.inferers.accumulate import NUMPY_TYPES

if TYPE_CHECKING:
    from accunet_monai.inferers.slice_inferer import SliceInferer

VIEWS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The spatial axis along which each view's slices are taken, of a volume in RAS."""

_OUTPUTS = ("label_map", "probabilities", "logits")
_MODES = ("constant", "gaussian")
_PADDING_MODES = ("constant", "reflect", "replicate", "circular")
_LARGEST_LABEL = torch.iinfo(torch.int32).max


def check_arguments(inferer: SliceInferer) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: with the argument's name and what it may be.
    """
    _check_windows(inferer)
    for name, value, known in (
        ("output", inferer.output, _OUTPUTS),
        ("mode", inferer.mode, _MODES),
        ("padding_mode", inferer.padding_mode, _PADDING_MODES),
        *(("views", view, tuple(VIEWS)) for view in inferer.views),
    ):
        _require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
    for name, values in (("views", inferer.views), ("mirror_axes", inferer.mirror_axes)):
        _require(len(set(values)) == len(values), f"{name} names something twice: {', '.join(map(str, values))}")
    logits = inferer.output == "logits"
    _require(not (logits and inferer.views), "several views are averaged as probabilities: output must not be 'logits'")
    _require(
        not (logits and inferer.skip_below is not None),
        "what is skipped has probabilities but no logits: with skip_below output must not be 'logits'",
    )
    _require(0 < inferer.threshold < 1, f"threshold must be in (0, 1), got {inferer.threshold}")
    _require(
        inferer.regions is None
        or (len(inferer.regions) > 0 and all(_is_whole(r) and 0 <= r <= _LARGEST_LABEL for r in inferer.regions)),
        f"regions has one label for each channel, whole numbers from 0, got {inferer.regions}",
    )


def check_inputs(inputs: Tensor, kwargs: dict[str, Any]) -> None:
    """Refuse what is no batch of volumes, and a condition of another shape.

    Raises:
        ValueError: with the shape found.
    """
    _require(inputs.dim() == 5, f"SliceInferer expects (batch, channel, x, y, z), found {inputs.dim()} axes")
    _require(inputs.numel() > 0, f"SliceInferer expects at least one slice, found shape {tuple(inputs.shape)}")
    condition = kwargs.get("condition")
    _require(
        not isinstance(condition, Tensor) or condition.shape == inputs.shape,
        f"condition must have the shape {tuple(inputs.shape)} of the inputs",
    )


def dtype_of(name: str, value: torch.dtype | str | None) -> torch.dtype | None:
    """A torch type of floating point from itself or from its name, as configs have it.

    Raises:
        ValueError: for other types; ``dtype`` has to exist in NumPy.
    """
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    known = (torch.bfloat16, torch.float16) if name == "amp" else tuple(NUMPY_TYPES)
    names = ", ".join(str(known_type).removeprefix("torch.") for known_type in known)
    _require((value is None) or dtype in known, f"{name} must be one of {names}, got {value!r}")
    return dtype


def _check_windows(inferer: SliceInferer) -> None:
    roi_size, overlap, sigma_scale = inferer.roi_size, inferer.overlap, inferer.sigma_scale
    _require(
        roi_size is None or (isinstance(roi_size, Sequence) and len(roi_size) in (2, 3)),
        f"roi_size has one size per in-plane axis (2) or per axis (3), got {roi_size}",
    )
    _require(
        _per_axis(overlap) and all(0 <= share < 1 for share in _each(overlap)),
        f"overlap must be in [0, 1), once, for both in-plane axes (2) or per axis (3), got {overlap}",
    )
    _require(
        _per_axis(sigma_scale) and all(scale > 0 for scale in _each(sigma_scale)),
        f"sigma_scale must be above 0, once, for both in-plane axes (2) or per axis (3), got {sigma_scale}",
    )
    _require(inferer.spatial_dim in (0, 1, 2), f"spatial_dim must be 0, 1 or 2, got {inferer.spatial_dim}")
    _require(
        all(axis in (0, 1, 2) for axis in inferer.mirror_axes),
        f"mirror_axes are spatial axes, 0, 1 or 2, got {inferer.mirror_axes}",
    )
    _require(inferer.sw_batch_size >= 1, f"sw_batch_size must be at least 1, got {inferer.sw_batch_size}")
    _require(inferer.context_slices >= 0, f"context_slices must not be negative, got {inferer.context_slices}")


def _each(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, Sequence) else (value,)


def _per_axis(value: float | Sequence[float]) -> bool:
    return len(_each(value)) in (1, 2, 3) and not (isinstance(value, Sequence) and len(value) == 1)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
