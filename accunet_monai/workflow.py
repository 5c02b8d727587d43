"""A bundle's configs run by MONAI: started from our command line, and asked from within what is being run."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accunet_monai.bundle import LITERAL_SECTIONS, find_bundle, list_bundles, read_plain
from accunet_monai.errors import BundleError, did_you_mean

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

_DATA = ("metadata", "segments", "split")
"""Files beside the configs that are none."""

_NOTHING = object()


def run_config(
    bundle: str | os.PathLike[str],
    name: str,
    overrides: Mapping[str, Any],
    overlays: tuple[str | os.PathLike[str], ...] = (),
) -> ConfigWorkflow:
    """Run a config of a bundle, as ``python -m monai.bundle run`` does, but refuse override keys it does not have.

    Args:
        bundle: a shipped bundle's name or a bundle's folder.
        name: of the config, e.g. ``"train"``.
        overrides: config key (nested with ``::`` or ``#``) → value.
        overlays: further config files whose top-level keys replace the bundle's.

    Returns:
        The finished workflow.

    Raises:
        BundleError: as :func:`config_files`.
    """
    from monai.bundle import create_workflow

    folder = find_bundle(bundle) / "configs"
    files = config_files(bundle, name, overrides, overlays)
    for chatty in ("monai.bundle.scripts", "monai.bundle.workflows"):  # they print every argument
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        if folder.parent in list_bundles():  # MONAI warns that a config can run any code; of ours this is known
            warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
        workflow = create_workflow(
            config_file=files if len(files) > 1 else files[0],
            meta_file=str(folder / "metadata.json"),
            logging_file=str(folder / "logging.conf"),
            workflow_type="train" if name == "train" else "infer",
            **overrides,
        )
    workflow.run()
    workflow.finalize()
    return workflow  # type: ignore[no-any-return]


def config_files(
    bundle: str | os.PathLike[str],
    name: str,
    overrides: Mapping[str, Any],
    overlays: Sequence[str | os.PathLike[str]] = (),
) -> list[str]:
    """A bundle's config and what is laid over it, once all keys are known to be there.

    Args:
        bundle: a shipped bundle's name or a bundle's folder.
        name: of the config.
        overrides: config key → value.
        overlays: further config files.

    Raises:
        BundleError: ``BUNDLE_NO_CONFIG``, ``CONFIG_MISSING`` (an overlay), ``OVERRIDE_UNKNOWN`` with the nearest key
            there is, ``OVERRIDE_VALUE`` (text where a number is wanted), ``DEVICE_MISSING``, ``OVERLAY_LITERAL``, or
            ``BUNDLE_INVALID`` for a config or overlay that is no plain data.
    """
    folder = find_bundle(bundle) / "configs"
    found = (path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml", ".json"))
    configs = {path.stem: path for path in found if path.stem not in _DATA}
    if name not in configs:
        hint = f"It has {', '.join(configs)}."
        raise BundleError("BUNDLE_NO_CONFIG", f"the bundle has no config {name!r}.", path=folder, hint=hint)
    config = configs[name]
    known = read_plain(config)
    for overlay in overlays:
        _check_overlay(overlay, known, name)
    for key, value in overrides.items():
        _check_key(key, value, known, name, config)
    return [str(config), *(str(overlay) for overlay in overlays)]


def _check_overlay(overlay: str | os.PathLike[str], config: Mapping[str, Any], name: str) -> None:
    path = Path(overlay)
    if not path.is_file():
        raise BundleError("CONFIG_MISSING", "no such config file.", path=path)
    for key, value in read_plain(path).items():
        _check_key(key, value, config, name, path)


def _check_key(key: str, value: Any, config: Mapping[str, Any], name: str, path: Path) -> None:
    """Refuse a key that the config lacks, at whatever depth, or that changes what the bundle computes."""
    parts = str(key).lstrip("+").replace("#", "::").split("::")  # MONAI merges where a key starts with +
    if parts[0] in LITERAL_SECTIONS:
        message = f"{parts[0]!r} must stay equal in train, evaluate and inference; it may not be set from outside."
        raise BundleError("OVERLAY_LITERAL", message, path=path, hint="Copy the bundle and change it there.")
    place: Any = config
    for part in parts:
        place = _child(place, part)
    unknown = key if place is _NOTHING else next(_unknown_keys(value, place, "::".join(parts)), None)
    if unknown is not None:
        hint = did_you_mean(str(unknown).replace("#", "::"), _keys(config))
        hint = hint or f"Top-level keys: {', '.join(map(str, config))}."
        raise BundleError("OVERRIDE_UNKNOWN", f"{name} has no key {unknown!r}.", path=path, hint=hint)
    if isinstance(value, str) and not value.startswith(("$", "@")):
        if isinstance(place, int | float) and not isinstance(place, bool):
            message = f"{key} is a number, here {place}; found {value!r}."
            raise BundleError("OVERRIDE_VALUE", message, path=path)
        if key == "device":
            _check_device(value)


def _check_device(device: str) -> None:
    """Refuse a device that is not there, before it takes minutes to read a dataset."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # of a PyTorch without CUDA it is an assertion
        reason = str(error).splitlines()[0]
        hint = "Leave it out: then it is a GPU where there is one, else the CPU."
        raise BundleError("DEVICE_MISSING", f"there is no device {device!r} ({reason}).", hint=hint) from error


def _child(place: Any, part: str) -> Any:
    """What lies under a key or index of a nested config."""
    if isinstance(place, list):
        inside = part.isdecimal() and int(part) < len(place)
        return place[int(part)] if inside else _NOTHING
    return place.get(part, _NOTHING) if isinstance(place, Mapping) else _NOTHING


def _unknown_keys(value: Any, known: Any, prefix: str) -> Iterator[str]:
    """Keys of a new value that the old one lacks. A component may be replaced by another, with other arguments."""
    if isinstance(value, Mapping) and isinstance(known, Mapping) and "_target_" not in value:
        for key, item in value.items():
            if known and key not in known:
                yield f"{prefix}::{key}"
            yield from _unknown_keys(item, known.get(key), f"{prefix}::{key}")


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """All keys of a nested config, as overrides name them."""
    if isinstance(config, Mapping | list):
        for key, item in config.items() if isinstance(config, Mapping) else enumerate(config):
            yield f"{prefix}{key}"
            yield from _keys(item, f"{prefix}{key}::")


def running_workflow() -> ConfigWorkflow | None:
    """The MONAI ``ConfigWorkflow`` in which the calling config expression is being evaluated, or ``None``.

    MONAI's configs know neither their own path nor their resolved content; the workflow on the call stack does.
    """
    from monai.bundle import ConfigWorkflow

    frame = inspect.currentframe()
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, ConfigWorkflow):
            return candidate
        frame = frame.f_back
    return None


def running_bundle_root(shipped_name: str) -> str:
    """For ``bundle_root`` in a config: the folder whose config is being run, else the shipped bundle of this name.

    With this a bundle runs from any working directory, also as a copy or under another name.
    """
    workflow = running_workflow()
    if workflow is not None:
        root = Path(workflow.config_root_path).resolve().parent
        if (root / "configs" / "metadata.json").is_file():
            return str(root)
    return str(find_bundle(shipped_name))
