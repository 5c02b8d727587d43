"""A 2D network over the slices of 3D volumes, in batches, slab by slab into the result."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from rich.progress import track
from torch import Tensor

from accunet_monai.inferers.accumulate import VolumeResult, slabs
from accunet_monai.inferers.arguments import VIEWS, check_arguments, check_inputs, dtype_of
from accunet_monai.inferers.labels import LabelRule
from accunet_monai.inferers.network_call import NetworkCall, Structure
from accunet_monai.inferers.passes import Finished, finished_slices
from accunet_monai.inferers.plan import make_plan, plane_size

__all__ = ["VIEWS", "Output", "SliceInferer", "plane_size"]

Output = Literal["label_map", "probabilities", "logits"]


class SliceInferer(Inferer):
    """Run a 2D network over the slices of volumes, with in-plane windows and neighbouring slices as channels.

    Argument names and, for equal settings, results are those of MONAI's ``SliceInferer``; the arguments up to
    ``progress`` have its order, too. Beyond it: batches are filled across slices, windows and mirrorings; arguments
    reach the network; and by default the result is the label map, built slab by slab, so that no buffer of
    classes × volume is held in memory.

    Args:
        spatial_dim: the spatial axis (0, 1 or 2) along which slices are taken.
        roi_size: window size (rows, columns) in the slice, or (x, y, z), of which the slicing axis is left out;
            ``None`` takes the whole slice, as 0 and below do along their axis. Smaller slices are padded.
        sw_batch_size: windows per call of the network. It is halved where memory runs out.
        overlap: share of a window that overlaps the next, in [0, 1), one value, or as ``roi_size`` one per axis.
        mode: ``"constant"`` or ``"gaussian"`` weights where windows overlap.
        sigma_scale: standard deviation of the Gaussian weights as a fraction of the window, one value or per axis.
        padding_mode: of slices smaller than the window, as ``torch.nn.functional.pad`` names it.
        cval: padding value for ``padding_mode="constant"``.
        sw_device: device of the network; ``None``: that of the input.
        device: device of the result; ``None``: that of the input.
        progress: show a progress bar.
        context_slices: neighbours on either side that are given as channels, ordered by position; beyond the volume's
            ends the outermost slice is repeated. The network sees ``channels * (2 * context_slices + 1)``.
        output: ``"label_map"`` (N, 1, X, Y, Z) uint8, ``"probabilities"`` or ``"logits"`` (N, classes, X, Y, Z).
            Probabilities are the sigmoid of a single channel, or of ``regions``, else the softmax.
        threshold: on the sigmoid, for the label map.
        regions: the label of each channel, where channels are overlapping regions (sigmoid): they are written in this
            order into the label map, later ones on top.
        views: any of ``"sagittal"`` (slices along x), ``"coronal"`` (y) and ``"axial"`` (z) of volumes in RAS: the
            network runs over all of them, and their probabilities are averaged. Takes the place of ``spatial_dim``.
        mirror_axes: spatial axes of the volume along which windows are mirrored, in all combinations. Averaged are
            probabilities, or logits with ``output="logits"``. The slicing axis counts with ``context_slices``.
        output_key: of a network with several outputs, the one that is wanted: a dict's key or a position. Without it
            the label map is made of the first of a tuple or list, and probabilities and logits come back for all.
        amp: run the network in autocast of this precision, e.g. ``"bfloat16"``; ``None`` leaves autocast as it is
            around the call.
        dtype: ``"float16"``, ``"float32"`` or ``"float64"``: what probabilities and logits are stored in, and the sums
            over several views. ``None``: float32 for probabilities and sums, for logits as the network gives them.
        skip_below: leave out windows in which no value, neighbours included, is above this one. What no window covers
            is background. Not with ``output="logits"``.
        scratch_dir: folder for sums over several views that are not to be held in memory; ``None``: the system's.

    Raises:
        ValueError: for impossible arguments, inputs that are not (N, C, X, Y, Z), and network outputs of other size.
        torch.OutOfMemoryError: where even a single window is too large.

    Example:
        >>> inferer = SliceInferer(spatial_dim=2, sw_batch_size=4, output="logits")
        >>> inferer(torch.ones(1, 1, 4, 4, 3), lambda x: x * 2).unique()
        tensor([2.])
    """

    def __init__(
        self,
        spatial_dim: int = 0,
        roi_size: Sequence[int] | None = None,
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.25,
        mode: str = "constant",
        sigma_scale: float | Sequence[float] = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        *,
        context_slices: int = 0,
        output: Output = "label_map",
        threshold: float = 0.5,
        regions: Sequence[int] | None = None,
        views: Sequence[str] | None = None,
        mirror_axes: Sequence[int] | None = None,
        output_key: int | str | None = None,
        amp: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        skip_below: float | None = None,
        scratch_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dim = spatial_dim
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = str(mode)
        self.sigma_scale = sigma_scale
        self.padding_mode = str(padding_mode)
        self.cval = cval
        self.sw_device = sw_device
        self.device = device
        self.progress = progress
        self.context_slices = context_slices
        self.output = output
        self.threshold = threshold
        self.regions = None if regions is None else tuple(regions)
        self.views = tuple(views or ())
        self.mirror_axes = tuple(mirror_axes or ())
        self.output_key = output_key
        self.amp = dtype_of("amp", amp)
        self.dtype = dtype_of("dtype", dtype)
        self.skip_below = skip_below
        self.scratch_dir = scratch_dir
        check_arguments(self)

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes along which slices are taken, one pass over the volume each."""
        return tuple(VIEWS[view] for view in self.views) or (self.spatial_dim,)

    @property
    def rule(self) -> LabelRule:
        """What the network's channels mean."""
        return LabelRule(self.threshold, self.regions)

    @property
    def averages(self) -> bool:
        """Whether several runs make up a result, or parts of it have none, so that labels need probabilities."""
        return len(self.axes) > 1 or bool(self.mirror_axes) or self.skip_below is not None

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Segment a batch of volumes.

        Args:
            inputs: (N, C, X, Y, Z); may be memory-mapped, and of integers, which the network gets as float32.
            network: any callable, (windows, C', rows, columns) → (windows, classes, rows, columns), or a tuple, list or
                dict of such.
            *args: passed on to the network.
            **kwargs: passed on to the network. As in MONAI, a tensor ``condition`` of the inputs' shape is cut as they
                are and becomes the network's second argument.

        Returns:
            As ``output`` says: a tensor, or a tuple or dict of them where the network gives several; a ``MetaTensor``
            with the input's meta data if the input is one.
        """
        results, pack = self._run(inputs, network, args, kwargs)
        return pack([_like(inputs, result.wanted) for result in results])

    def write_probabilities(
        self, path: str | os.PathLike[str], inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Segment into a label map, and write the probabilities to a file in NumPy's format.

        They are written slab by slab as (N, classes, X, Y, Z) in ``dtype``, under a temporary name until they are
        complete. ``numpy.load(path, mmap_mode="r")`` opens them without reading.

        Args:
            path: of the ``.npy`` file.
            inputs: as of a call.
            network: as of a call; of several outputs that of the label map.
            *args: as of a call.
            **kwargs: as of a call.

        Returns:
            The label map, (N, 1, X, Y, Z), whatever ``output`` is.

        Raises:
            OSError: where the disk has not enough room.
        """
        target = Path(path)
        partial = target.parent / f".{target.name[:100]}.{uuid.uuid4().hex}.partial"
        try:
            (result,), _ = self._run(inputs, network, args, kwargs, partial)
            result.flush()
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return _like(inputs, result.wanted)

    def _run(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        file: Path | None = None,
    ) -> tuple[list[VolumeResult], Callable[[list[Tensor]], Structure]]:
        """One result for each output of the network, and how to pack them; ``file`` is for the probabilities."""
        check_inputs(inputs, kwargs)
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        labels = file is not None or self.output == "label_map"
        logits = file is None and (self.output == "logits" or (labels and not self.averages))
        condition = kwargs["condition"] if isinstance(kwargs.get("condition"), Tensor) else None
        call = NetworkCall(
            network,
            args,
            {name: value for name, value in kwargs.items() if condition is None or name != "condition"},
            batch_size=self.sw_batch_size,
            device=torch.device(self.sw_device or volume.device),
            amp=self.amp,
            output_key=self.output_key,
            one_output=labels,
        )
        dtype = torch.promote_types(volume.dtype, torch.float32)  # weights are fractions, also for integer volumes
        results: list[VolumeResult] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not labels and logits):
            for number, axis in enumerate(self.axes):
                plan = make_plan(self, axis, volume.shape[2:], call.device, dtype)
                finished = finished_slices(volume, condition, plan, call, None if logits else self.rule)
                for slab in slabs(self._tracked(finished, volume.shape[0] * volume.shape[axis + 2])):
                    results = results or [self._result(volume, v, labels, logits, file) for v in slab.values]
                    for result, values in zip(results, slab.values, strict=True):
                        result.add(number, axis, slab, values)
        return results, call.pack

    def _result(self, volume: Tensor, values: Tensor, labels: bool, logits: bool, file: Path | None) -> VolumeResult:
        """Empty, for an output whose first slab has these values."""
        channels = values.shape[1]
        self.rule.check(channels)
        return VolumeResult(
            (volume.shape[0], channels, *volume.shape[2:]),
            rule=self.rule if labels else None,
            are_logits=logits,
            passes=len(self.axes),
            dtype=self.dtype or (values.dtype if file is None else torch.float32),
            device=torch.device(self.device or volume.device),
            file=file,
            scratch_dir=self.scratch_dir,
        )

    def _tracked(self, finished: Iterable[Finished], total: int) -> Iterable[Finished]:
        return track(finished, "slices", total=total, transient=True) if self.progress else finished


def _like(inputs: Tensor, result: Tensor) -> Tensor:
    """With the meta data of the inputs, if they have any."""
    if not isinstance(inputs, MetaTensor):
        return result
    return MetaTensor(result).copy_meta_from(inputs)  # type: ignore[no-any-return]
