"""Calls of the network: batches that shrink where memory runs out, and outputs of any structure as a list."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from accunet_monai.inferers.windows import Window

Structure = Tensor | tuple[Tensor, ...] | dict[Any, Tensor]

logger = logging.getLogger(__name__)

OUT_OF_MEMORY_ADVICE = (
    "Even one window at a time is too large for the memory: take a smaller roi_size, lower precision "
    '(amp="bfloat16" or "float16"), or another device.'
)


class NetworkCall:
    """Runs the network on windows, in batches that are halved for good when memory runs out.

    Args:
        network: (windows, C', rows, columns) → a tensor, or a tuple, list or dict of them, each (windows, channels,
            rows, columns).
        args: handed to the network after the windows (and their condition, if there is one).
        kwargs: handed to the network.
        batch_size: windows per call.
        device: of the network.
        amp: precision of autocast, or None to leave autocast as it is outside.
        output_key: the output that is wanted: a key of the dict, or a position.
        one_output: whether a single output is wanted, which is then the first of a tuple or list.

    Attributes:
        device: of the network.
        batch_size: as it is now.
        pack: puts one result for each output into the structure that the network gave.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        batch_size: int,
        device: torch.device,
        amp: torch.dtype | None,
        output_key: int | str | None,
        one_output: bool,
    ) -> None:
        self._network, self._args, self._kwargs = network, args, kwargs
        self.device, self._amp = device, amp
        self._output_key, self._one_output = output_key, one_output
        self.batch_size = batch_size
        self.pack: Callable[[list[Tensor]], Structure] = _only

    def __call__(self, windows: Iterator[Window]) -> Iterator[tuple[Window, list[Tensor]]]:
        """Each window with the network's outputs for it, (channels, rows, columns) each.

        Outputs are good until the next pair is asked for: a network may use their memory again, as CUDA graphs do.

        Raises:
            ValueError: for outputs of another number or size than the windows, or that are no tensors.
            torch.OutOfMemoryError: when even one window is too large; with advice.
        """
        waiting: list[Window] = []
        while True:
            waiting.extend(islice(windows, max(self.batch_size - len(waiting), 0)))
            batch = waiting[: self.batch_size]
            if not batch:
                return
            outputs = self._attempt(batch)
            if outputs is None:
                self._shrink(len(batch))
                continue
            for number, window in enumerate(batch):
                yield window, [output[number] for output in outputs]
            del waiting[: len(batch)]

    def _attempt(self, windows: Sequence[Window]) -> list[Tensor] | None:
        """The outputs, or None where memory ran out for more than one window."""
        try:
            return self._run(windows)
        except torch.OutOfMemoryError as error:
            if len(windows) == 1:
                raise torch.OutOfMemoryError(f"{error} {OUT_OF_MEMORY_ADVICE}") from error
        return None  # outside of the handler, whose exception holds on to the network's tensors

    def _shrink(self, tried: int) -> None:
        self.batch_size = tried // 2
        logger.warning("out of memory with %d windows a batch, going on with %d", tried, self.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _run(self, windows: Sequence[Window]) -> list[Tensor]:
        images = torch.stack([window.image for window in windows]).to(self.device)
        conditions = [window.condition for window in windows if window.condition is not None]
        beside = (torch.stack(conditions).to(self.device),) if conditions else ()
        with self._autocast():
            outputs = self._network(images, *beside, *self._args, **self._kwargs)
        tensors = self._flatten(outputs)
        for tensor in tensors:
            if tensor.dim() != 4 or tensor.shape[0] != len(windows) or tensor.shape[2:] != images.shape[2:]:
                raise ValueError(
                    f"the network turned windows {tuple(images.shape)} into {tuple(tensor.shape)}, expected the same "
                    "number and size"
                )
        return tensors

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._amp is None else torch.autocast(self.device.type, self._amp)

    def _flatten(self, outputs: Any) -> list[Tensor]:
        """The wanted outputs as a list; sets ``pack`` to go back."""
        if isinstance(outputs, Tensor):
            return [outputs]
        if isinstance(outputs, Mapping):
            chosen, self.pack = self._of_mapping(outputs)
        elif isinstance(outputs, Sequence) and len(outputs) > 0:
            chosen, self.pack = self._of_sequence(outputs)
        else:
            chosen = [outputs]
        for tensor in chosen:
            if not isinstance(tensor, Tensor):
                raise ValueError(f"the network gave a {type(tensor).__name__} where a tensor of logits was expected")
        return chosen

    def _of_mapping(self, outputs: Mapping[Any, Any]) -> tuple[list[Any], Callable[[list[Tensor]], Structure]]:
        keys = list(outputs)
        if self._output_key is not None:
            if self._output_key not in outputs:
                raise ValueError(f"output_key={self._output_key!r} is not among the network's outputs {keys}")
            return [outputs[self._output_key]], _only
        if not self._one_output:
            return [outputs[key] for key in keys], lambda results: dict(zip(keys, results, strict=True))
        if len(keys) != 1:
            raise ValueError(f"the network gave outputs {keys}: say with output_key which one the label map is made of")
        return [outputs[keys[0]]], _only

    def _of_sequence(self, outputs: Sequence[Any]) -> tuple[list[Any], Callable[[list[Tensor]], Structure]]:
        if self._output_key is not None or self._one_output:
            place = self._output_key or 0
            if not isinstance(place, int) or not -len(outputs) <= place < len(outputs):
                raise ValueError(f"output_key={place!r} is no position among the network's {len(outputs)} outputs")
            return [outputs[place]], _only
        return list(outputs), (_only if len(outputs) == 1 else tuple)


def _only(results: list[Tensor]) -> Structure:
    return results[0]
