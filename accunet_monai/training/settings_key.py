"""What a preprocessing is, as text: equal for equal settings, in every process and on every day."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

import accunet_monai
from accunet_monai.errors import DatasetError

PACKAGES = ("monai", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom")
"""What reading and preprocessing may compute with; another version may give other voxels."""

SOURCES = ("volumes", "transforms")
"""Our own packages that do: their source counts, not their version, which stays while we work on them."""


def settings_key(*settings: Any) -> str:
    """sha256 over objects' settings and the code that they run.

    Raises:
        DatasetError: ``CACHE_SETTINGS`` for an object that cannot be told from another with other settings.
    """
    stated = [*(describe(item) for item in settings), _versions(), _source_digest()]
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def describe(value: Any, _within: tuple[int, ...] = ()) -> Any:
    """An object as JSON: its class and attributes, without the state of random generators.

    Raises:
        DatasetError: ``CACHE_SETTINGS``.

    Example:
        >>> from functools import partial
        >>> describe({"scale": np.float32(0.5), "function": partial(round, ndigits=1)})
        {'function': ['functools.partial', 'builtins.round', [], {'ndigits': 1}], 'scale': 0.5}
    """
    if id(value) in _within:
        return "itself"
    inner = functools.partial(describe, _within=(*_within, id(value)))
    if isinstance(value, Enum):
        return inner(value.value)
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.random.RandomState | np.random.Generator | torch.Generator):
        return "random"
    if isinstance(value, np.generic):
        return inner(value.item())
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.ascontiguousarray(torch.as_tensor(value).cpu().numpy())
        return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): inner(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(inner(item)) for item in value)
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    return _described_code(value, inner)


def _described_code(value: Any, inner: Any) -> Any:
    if isinstance(value, functools.partial):
        return ["functools.partial", inner(value.func), inner(value.args), inner(value.keywords)]
    if isinstance(value, MethodType):
        return [inner(value.__self__), value.__name__]
    if isinstance(value, type | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        code = value.__code__
        names = [f"{value.__module__}.{value.__qualname__}", code.co_code.hex(), list(code.co_names)]
        constants = [item for item in code.co_consts if not hasattr(item, "co_code")]
        return [*names, inner(constants), inner(value.__defaults__), inner(cells)]
    if isinstance(value, torch.dtype | torch.device | np.dtype):
        return str(value)
    if hasattr(value, "__dict__"):
        return [f"{type(value).__module__}.{type(value).__qualname__}", inner(vars(value))]
    raise DatasetError(
        "CACHE_SETTINGS",
        f"a {type(value).__name__} in the preprocessing does not tell its settings.",
        hint="Leave it out, or train without cache_dir.",
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    root = Path(accunet_monai.__file__).parent
    for package in SOURCES:
        for path in sorted((root / package).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
