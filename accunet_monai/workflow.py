"""A bundle's configs run by MONAI: started from our command line, and asked from within what is being run."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accunet_monai.bundle import LITERAL_SECTIONS, find_bundle, list_bundles
from accunet_monai.errors import BundleError

if TYPE_CHECKING:
    from monai.bundle import ConfigWorkflow

_DATA = ("metadata", "split")
"""Files beside the configs that are none."""


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
        BundleError: ``BUNDLE_NO_CONFIG``, ``CONFIG_MISSING`` (an overlay), ``OVERRIDE_UNKNOWN`` with the nearest key
            there is, or ``OVERLAY_LITERAL``.
    """
    from monai.bundle import ConfigParser, create_workflow

    folder = find_bundle(bundle) / "configs"
    found = (path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml", ".json"))
    configs = {path.stem: path for path in found if path.stem not in _DATA}
    if name not in configs:
        hint = f"It has {', '.join(configs)}."
        raise BundleError("BUNDLE_NO_CONFIG", f"the bundle has no config {name!r}.", path=folder, hint=hint)
    config = configs[name]
    files = [str(config), *(str(overlay) for overlay in overlays)]
    parser = ConfigParser()
    parser.read_config(str(config))
    for overlay in overlays:
        _check_overlay(overlay, parser.get())
    for key in overrides:
        if key not in parser:
            known = {name: item for name, item in parser.get().items() if name != "_meta_"}
            near = difflib.get_close_matches(key.replace("#", "::"), list(_keys(known)), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Top-level keys: {', '.join(map(str, known))}."
            raise BundleError("OVERRIDE_UNKNOWN", f"{name} has no key {key!r}.", path=config, hint=hint)
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


def _check_overlay(overlay: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
    """Refuse an overlay that cannot be read, has keys the config lacks, or changes what the bundle computes."""
    from monai.bundle import ConfigParser

    if not Path(overlay).is_file():
        raise BundleError("CONFIG_MISSING", "no such config file.", path=overlay)
    for key in ConfigParser.load_config_file(overlay):
        if key in LITERAL_SECTIONS:
            message = f"{key!r} must stay equal in train, evaluate and inference; an overlay may not set it."
            raise BundleError("OVERLAY_LITERAL", message, path=overlay, hint="Copy the bundle and change it there.")
        if key not in config:
            near = difflib.get_close_matches(key, [str(known) for known in config], n=1)
            hint = f"Did you mean {near[0]!r}?" if near else None
            raise BundleError("OVERRIDE_UNKNOWN", f"the config has no key {key!r}.", path=overlay, hint=hint)


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
