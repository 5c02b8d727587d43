"""One file holds a network: safetensors with the constructor's arguments in its header. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from accunet_monai.errors import NetworkError
from accunet_monai.networks.accunet import ACCUNet

CONFIG_KEY = "accunet_config"


def save_network(network: ACCUNet, path: str | os.PathLike[str], metadata: dict[str, str] | None = None) -> Path:
    """Write weights and constructor arguments to one safetensors file, atomically.

    Args:
        network: the network to keep.
        path: file to write, by convention ``*.safetensors``.
        metadata: further strings for the header, e.g. the run that made the weights.
    """
    return save_weights(network.state_dict(), path, {**(metadata or {}), **network_header(network)})


def load_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> ACCUNet:
    """Rebuild the network that :func:`save_network` wrote, in evaluation mode.

    Raises:
        NetworkError: ``WEIGHTS_MISSING``, ``WEIGHTS_UNREADABLE`` or ``WEIGHTS_NO_CONFIG``.
    """
    weights, header = read_weights(path)
    if CONFIG_KEY not in header:
        raise NetworkError(
            "WEIGHTS_NO_CONFIG",
            "the file has weights but not the network's arguments.",
            path=path,
            hint="Build the network and use load_weights(network, path).",
        )
    try:
        network = ACCUNet(**json.loads(header[CONFIG_KEY]))
    except (TypeError, ValueError) as error:
        raise NetworkError(
            "WEIGHTS_NO_CONFIG", f"the file's arguments make no ACC-UNet ({error}).", path=path
        ) from error
    load_into(network, weights, path)
    return network.to(device).eval()


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a safetensors file strictly into ``network`` and return it.

    Raises:
        NetworkError: ``WEIGHTS_MISSING``, ``WEIGHTS_UNREADABLE`` or ``WEIGHTS_MISMATCH`` (first differences named).
    """
    weights, _ = read_weights(path)
    return load_into(network, weights, path)


def save_weights(state_dict: dict[str, Tensor], path: str | os.PathLike[str], header: dict[str, str]) -> Path:
    """Write a state_dict to a temporary name and rename it, so that a half-written file is never seen.

    The file has the permissions that the user's umask gives (safetensors' own writer makes it private). Equal weights
    and headers give equal bytes.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        weights = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
        temporary.write_bytes(sorted_header(save(weights, header)))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def sorted_header(file: bytes) -> bytes:
    """A safetensors file whose header is sorted: the library writes its strings in another order each time.

    Args:
        file: 8 bytes of the header's length, the header as JSON, the tensors.
    """
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def network_header(network: nn.Module) -> dict[str, str]:
    """What a weights file's header says of the network: its constructor's arguments, if it tells them."""
    config = getattr(network, "config", None)
    return {"format": "pt"} if config is None else {"format": "pt", CONFIG_KEY: json.dumps(config)}


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by key, header) of a safetensors file; half-precision tensors come back as float32."""
    if not Path(path).is_file():
        raise NetworkError("WEIGHTS_MISSING", "no such weights file.", path=path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            header: dict[str, Any] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise NetworkError("WEIGHTS_UNREADABLE", f"not a readable safetensors file ({error}).", path=path) from error
    half = (torch.float16, torch.bfloat16)
    return {key: value.float() if value.dtype in half else value for key, value in weights.items()}, header


def load_into(network: nn.Module, weights: dict[str, Tensor], path: str | os.PathLike[str]) -> nn.Module:
    """Load tensors strictly, with an error that names the first keys that differ."""
    expected = network.state_dict()
    wrong = sorted(set(expected) ^ set(weights))
    wrong += [key for key in sorted(set(expected) & set(weights)) if expected[key].shape != weights[key].shape]
    if wrong:
        raise NetworkError(
            "WEIGHTS_MISMATCH",
            f"{len(wrong)} of the file's {len(weights)} tensors do not fit the network's {len(expected)}, "
            f"first {', '.join(wrong[:3])}.",
            path=path,
            hint="Are these weights of this bundle and version?",
        )
    network.load_state_dict(weights, strict=True)
    return network
