"""A 2D network over the slices of a 3D volume, in batches, slice by slice into the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import Inferer
from monai.utils import fall_back_tuple
from rich.progress import track
from torch import Tensor

Output = Literal["label_map", "probabilities", "logits"]

VIEWS = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The spatial axis along which each view's slices are taken, of a volume in RAS."""

_OUTPUTS = ("label_map", "probabilities", "logits")
_MODES = ("constant", "gaussian")
_PADDING_MODES = ("constant", "reflect", "replicate", "circular")
_SMALLEST_STEP = 1  # pixels between windows, whatever the overlap


@dataclass(frozen=True)
class _Plan:
    """How each slice is cut into windows: all sizes in pixels of the padded slice (rows, columns)."""

    pad: tuple[int, int, int, int]  # as F.pad takes it: left, right, top, bottom
    plane: tuple[int, int]  # of the slice before padding
    windows: list[tuple[slice, slice]]
    weight: Tensor  # of one window
    total: Tensor  # summed weights over the padded slice


class SliceInferer(Inferer):
    """Run a 2D network over the slices of volumes, with in-plane windows and neighbouring slices as channels.

    Argument names and, for equal settings, results are those of MONAI's ``SliceInferer``. Beyond it: batches are filled
    across slices and windows, arguments reach the network, neighbouring slices can be given as channels, and
    by default the result is the label map. It is built slice by slice, so that no buffer of classes × volume is held.

    Args:
        roi_size: window size (rows, columns) in the slice, or (x, y, z), of which the slicing axis is left out;
            ``None`` takes the whole slice. Smaller slices are padded.
        sw_batch_size: windows per call of the network.
        overlap: share of a window that overlaps the next, in [0, 1), one value or one per in-plane axis.
        mode: ``"constant"`` or ``"gaussian"`` weights where windows overlap.
        sigma_scale: standard deviation of the Gaussian weights as a fraction of the window.
        padding_mode: of slices smaller than the window, as ``torch.nn.functional.pad`` names it.
        cval: padding value for ``padding_mode="constant"``.
        sw_device: device of the network; ``None``: that of the input.
        device: device of the result; ``None``: that of the input.
        progress: show a progress bar.
        spatial_dim: the spatial axis (0, 1 or 2) along which slices are taken.
        context_slices: neighbours on either side that are given as channels, ordered by position; beyond the volume's
            ends the outermost slice is repeated. The network sees ``channels * (2 * context_slices + 1)``.
        output: ``"label_map"`` (N, 1, X, Y, Z) uint8, ``"probabilities"`` or ``"logits"`` (N, classes, X, Y, Z).
        threshold: on the sigmoid of a one-channel network, for the label map.
        views: any of ``"sagittal"`` (slices along x), ``"coronal"`` (y) and ``"axial"`` (z) of volumes in RAS: the
            network runs over all of them, and their probabilities are averaged, which holds classes × volume in memory.
            Takes the place of ``spatial_dim``.

    Raises:
        ValueError: for impossible arguments, inputs that are not (N, C, X, Y, Z), and network outputs of other size.

    Example:
        >>> inferer = SliceInferer(spatial_dim=2, sw_batch_size=4, output="logits")
        >>> inferer(torch.ones(1, 1, 4, 4, 3), lambda x: x * 2).unique()
        tensor([2.])
    """

    def __init__(
        self,
        roi_size: Sequence[int] | None = None,
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.25,
        mode: str = "constant",
        sigma_scale: float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        spatial_dim: int = 0,
        context_slices: int = 0,
        output: Output = "label_map",
        threshold: float = 0.5,
        views: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        overlaps = tuple(overlap) if isinstance(overlap, Sequence) else (overlap, overlap)
        _require(
            roi_size is None or len(roi_size) in (2, 3),
            f"roi_size has one size per in-plane axis (2) or per axis (3), got {roi_size}",
        )
        _require(
            len(overlaps) == 2 and all(0 <= o < 1 for o in overlaps),
            f"overlap must be in [0, 1), once or for both in-plane axes, got {overlap}",
        )
        _require(spatial_dim in (0, 1, 2), f"spatial_dim must be 0, 1 or 2, got {spatial_dim}")
        _require(sw_batch_size >= 1, f"sw_batch_size must be at least 1, got {sw_batch_size}")
        _require(context_slices >= 0, f"context_slices must not be negative, got {context_slices}")
        for name, value, known in (
            ("output", output, _OUTPUTS),
            ("mode", mode, _MODES),
            ("padding_mode", padding_mode, _PADDING_MODES),
            *(("views", view, tuple(VIEWS)) for view in views or ()),
        ):
            _require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
        _require(
            not views or output != "logits", "several views are averaged as probabilities: output must not be 'logits'"
        )
        _require(sigma_scale > 0, f"sigma_scale must be above 0, got {sigma_scale}")
        _require(0 < threshold < 1, f"threshold must be in (0, 1), got {threshold}")
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap: tuple[float, ...] = overlaps
        self.mode = mode
        self.sigma_scale = sigma_scale
        self.padding_mode = padding_mode
        self.cval = cval
        self.sw_device = sw_device
        self.device = device
        self.progress = progress
        self.spatial_dim = spatial_dim
        self.context_slices = context_slices
        self.output = output
        self.threshold = threshold
        self.views = tuple(views or ())

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Segment a batch of volumes.

        Args:
            inputs: (N, C, X, Y, Z).
            network: any callable, (windows, C', rows, columns) → (windows, classes, rows, columns).
            *args: passed on to the network.
            **kwargs: passed on to the network.

        Returns:
            As ``output`` says; a ``MetaTensor`` with the input's meta data if the input is one.
        """
        if inputs.dim() != 5:
            raise ValueError(f"SliceInferer expects (batch, channel, x, y, z), found {inputs.dim()} axes")
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if self.views:
            passes = (self._over_slices(volume, VIEWS[v], "probabilities", network, args, kwargs) for v in self.views)
            total = next(passes)
            for probabilities in passes:
                total += probabilities
            result = self._from_probabilities(total / len(self.views))
        else:
            result = self._over_slices(volume, self.spatial_dim, self.output, network, args, kwargs)
        if not isinstance(inputs, MetaTensor):
            return result
        return MetaTensor(result).copy_meta_from(inputs)  # type: ignore[no-any-return]

    def _over_slices(
        self, volume: Tensor, axis: int, output: Output, network: Callable[..., Tensor], args: Any, kwargs: Any
    ) -> Tensor:
        """One pass along one spatial axis of (N, C, X, Y, Z)."""
        slices = volume.movedim(axis + 2, 2)  # (N, C, slices, rows, columns), a view
        plan = self._plan(slices, axis)
        result: Tensor | None = None
        total = slices.shape[0] * slices.shape[2]
        finished: Iterable[tuple[int, int, Tensor]] = self._finished_slices(slices, plan, network, args, kwargs)
        if self.progress:
            finished = track(finished, "slices", total=total, transient=True)
        for item, index, logits in finished:
            values = self._convert(logits, output)
            if result is None:
                shape = (slices.shape[0], values.shape[0], *slices.shape[2:])
                result = torch.empty(shape, dtype=values.dtype, device=self.device or volume.device)
            result[item, :, index] = values
        if result is None:
            raise ValueError(f"SliceInferer expects at least one slice, found shape {tuple(volume.shape)}")
        return result.movedim(2, axis + 2)

    def _plan(self, slices: Tensor, axis: int) -> _Plan:
        rows, columns = slices.shape[3:]
        roi = fall_back_tuple(None if self.roi_size is None else plane_size(self.roi_size, axis), (rows, columns))
        height, width = max(rows, roi[0]), max(columns, roi[1])
        top, left = (height - rows) // 2, (width - columns) // 2
        pad = (left, width - columns - left, top, height - rows - top)
        steps = [
            size if size == full else max(int(size * (1 - overlap)), _SMALLEST_STEP)
            for size, full, overlap in zip(roi, (height, width), self.overlap, strict=True)
        ]
        device = self.sw_device or slices.device
        dtype = torch.promote_types(slices.dtype, torch.float32)  # weights are fractions, also for integer volumes
        weight = compute_importance_map(
            get_valid_patch_size((height, width), roi), self.mode, self.sigma_scale, device=device, dtype=dtype
        )
        windows = [(s[0], s[1]) for s in dense_patch_slices((height, width), roi, steps)]
        total = torch.zeros(height, width, dtype=weight.dtype, device=weight.device)
        for window in windows:
            total[window] += weight
        return _Plan(pad, (rows, columns), windows, weight, total)

    def _finished_slices(
        self, slices: Tensor, plan: _Plan, network: Callable[..., Tensor], args: Any, kwargs: Any
    ) -> Iterator[tuple[int, int, Tensor]]:
        """(volume, slice, blended logits (classes, rows, columns)) as soon as a slice's last window is done."""
        blended: Tensor | None = None
        tasks = self._windows(slices, plan)
        while batch := list(islice(tasks, self.sw_batch_size)):
            patches = torch.stack([patch for _, _, _, patch in batch])
            outputs = network(patches.to(self.sw_device or slices.device), *args, **kwargs)
            if not isinstance(outputs, Tensor):
                raise ValueError(f"the network gave a {type(outputs).__name__}, expected one tensor of logits")
            if outputs.shape[0] != len(batch) or outputs.shape[2:] != patches.shape[2:]:
                raise ValueError(
                    f"the network turned windows {tuple(patches.shape)} into {tuple(outputs.shape)}, expected the same "
                    "number and size"
                )
            for (item, index, number, _), output in zip(batch, outputs, strict=True):
                if len(plan.windows) == 1:
                    yield item, index, self._unpad(output, plan)
                    continue
                if number == 0 or blended is None:
                    dtype = torch.promote_types(output.dtype, plan.weight.dtype)
                    blended = torch.zeros(output.shape[0], *plan.total.shape, dtype=dtype, device=output.device)
                blended[(slice(None), *plan.windows[number])] += output * plan.weight
                if number == len(plan.windows) - 1:
                    mean = blended / plan.total
                    yield item, index, self._unpad(mean.to(output.dtype) if output.is_floating_point() else mean, plan)

    def _windows(self, slices: Tensor, plan: _Plan) -> Iterator[tuple[int, int, int, Tensor]]:
        """(volume, slice, number of the window, window (C', rows, columns)), slice after slice."""
        last = slices.shape[2] - 1
        around = range(-self.context_slices, self.context_slices + 1)
        for item in range(slices.shape[0]):
            for index in range(last + 1):
                neighbours = [slices[item, :, min(max(index + offset, 0), last)] for offset in around]
                image = torch.cat(neighbours) if len(neighbours) > 1 else neighbours[0]
                if any(plan.pad):
                    value = self.cval if self.padding_mode == "constant" else None
                    image = F.pad(image[None], plan.pad, mode=self.padding_mode, value=value)[0]
                for number, window in enumerate(plan.windows):
                    yield item, index, number, image[(slice(None), *window)]

    def _unpad(self, logits: Tensor, plan: _Plan) -> Tensor:
        left, _, top, _ = plan.pad
        rows, columns = plan.plane
        return logits[:, top : top + rows, left : left + columns]

    def _convert(self, logits: Tensor, output: Output) -> Tensor:
        """(classes, rows, columns) → what ``output`` asks for."""
        if output == "logits":
            return logits
        if output == "probabilities":
            return torch.sigmoid(logits) if logits.shape[0] == 1 else torch.softmax(logits, 0)
        if logits.shape[0] == 1:
            return (torch.sigmoid(logits) > self.threshold).to(torch.uint8)
        return logits.argmax(0, keepdim=True).to(_label_type(logits.shape[0]))

    def _from_probabilities(self, probabilities: Tensor) -> Tensor:
        """(N, classes, X, Y, Z) → label map or probabilities, as ``output`` says."""
        if self.output == "probabilities":
            return probabilities
        if probabilities.shape[1] == 1:
            return (probabilities > self.threshold).to(torch.uint8)
        return probabilities.argmax(1, keepdim=True).to(_label_type(probabilities.shape[1]))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def plane_size(roi_size: Sequence[int], axis: int) -> tuple[int, int]:
    """Size (rows, columns) of a slice's window: ``roi_size`` itself, or (x, y, z) without the slicing axis."""
    rows, columns = roi_size if len(roi_size) == 2 else [size for dim, size in enumerate(roi_size) if dim != axis]
    return rows, columns


def _label_type(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int16
