"""The state of a training in one safetensors file: nested values as JSON in its header, tensors beside. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from accunet_monai.errors import DatasetError
from accunet_monai.networks.checkpoint import sorted_header
from accunet_monai.volumes import atomic_output

HEADER_KEY = "accunet_state"
_TENSOR, _PAIRS = "__tensor__", "__pairs__"


def write_state(state: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write nested mappings, sequences, plain values and tensors; whole or not at all, an older file stays until then.

    Args:
        state: e.g. ``state_dict`` of networks and optimisers by name. Sequences come back as lists.
        path: file to write.

    Raises:
        TypeError: for anything else in ``state``.
    """
    tensors: dict[str, Tensor] = {}
    header = {HEADER_KEY: json.dumps(_packed(state, tensors, "state"))}
    with atomic_output(path) as stream:
        stream.write(sorted_header(save(tensors, header)))
    return Path(path)


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`write_state` wrote, tensors on the CPU.

    Raises:
        DatasetError: ``STATE_UNREADABLE`` for a file that is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {})[HEADER_KEY]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        state: dict[str, Any] = _unpacked(json.loads(header), tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        message = f"not the state of a training ({error!r})."
        raise DatasetError("STATE_UNREADABLE", message, path=path, hint="Start anew with --overwrite.") from error
    return state


def _packed(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # several names of one memory are refused
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        items = [(key, _packed(item, tensors, f"{name}.{key}")) for key, item in value.items()]
        if all(isinstance(key, str) for key, _ in items):
            return dict(items)
        return {_PAIRS: items}  # JSON's keys are text: an optimiser's are numbers
    if isinstance(value, list | tuple):
        return [_packed(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: neither plain data nor a tensor")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        if value.keys() == {_PAIRS}:
            return {key: _unpacked(item, tensors) for key, item in value[_PAIRS]}
        return {key: _unpacked(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    return value


def same_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimiser's loaded tensors out in memory as their parameters are.

    A file keeps no strides, and sums over channels-last memory may differ in the last bit from others.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
