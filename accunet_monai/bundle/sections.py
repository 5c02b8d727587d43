"""A bundle's description and the literal sections of its config, read without running anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accunet_monai.bundle.arguments import PREPROCESSING, check_arguments
from accunet_monai.bundle.plain import read_plain
from accunet_monai.errors import BundleError

LITERAL_SECTIONS = ("network_def", "preprocessing", "inferer", "postprocessing")
"""The sections that decide what a bundle computes; they hold no expression and no macro."""

ALLOWED_TARGETS = frozenset(
    {
        "accunet_monai.networks.ACCUNet",
        "accunet_monai.inferers.SliceInferer",
        "accunet_monai.transforms.LoadVolumed",
        "accunet_monai.transforms.LoadLabelMapd",
        "accunet_monai.transforms.LoadPictured",
        "accunet_monai.transforms.OrientVolumed",
        "accunet_monai.transforms.ResampleVolumed",
        "accunet_monai.transforms.WindowCTd",
        "accunet_monai.transforms.ZScoreForegroundd",
        "accunet_monai.transforms.ClipPercentilesd",
        "accunet_monai.transforms.CleanLabelsd",
        "monai.inferers.SimpleInferer",
        "monai.inferers.SlidingWindowInferer",
        "monai.networks.nets.BasicUNet",
        "monai.transforms.Compose",
        "monai.transforms.Activationsd",
        "monai.transforms.AsDiscreted",
        "monai.transforms.Orientationd",
        "monai.transforms.Spacingd",
        "monai.transforms.Resized",
        "monai.transforms.ScaleIntensityRanged",
        "monai.transforms.ScaleIntensityRangePercentilesd",
        "monai.transforms.NormalizeIntensityd",
        "monai.transforms.Invertd",
        "monai.transforms.KeepLargestConnectedComponentd",
        "monai.transforms.FillHolesd",
        "monai.transforms.RemoveSmallObjectsd",
        "monai.transforms.Identityd",
    }
)
"""What the literal sections may build: plain computations on their arguments, which are on a list of their own."""


def read_metadata(bundle: Path) -> dict[str, Any]:
    """The bundle's ``configs/metadata.json``.

    Raises:
        BundleError: ``BUNDLE_INVALID`` when it is missing, no plain JSON object, or lacks the input ``image`` or the
            output ``pred`` with its ``channel_def``; ``BUNDLE_LINK``.
    """
    path = bundle / "configs" / "metadata.json"
    metadata = read_plain(path, within=bundle)
    try:
        tensors = metadata["network_data_format"]
        dict(tensors["inputs"]["image"]), [int(channel) for channel in tensors["outputs"]["pred"]["channel_def"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError("BUNDLE_INVALID", f"no usable metadata ({error!r}).", path=path) from error
    return metadata


def label_names(bundle: Path) -> dict[int, str]:
    """Label value → name of the foreground labels, from the metadata's ``channel_def`` of the output."""
    channels = read_metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
    if len(channels) == 1:
        return {1: str(next(iter(channels.values())))}
    return {int(value): str(name) for value, name in channels.items() if int(value) > 0}


def read_literal_sections(bundle: Path) -> dict[str, Any]:
    """The literal sections of the bundle's ``configs/inference.yaml`` (or ``.json``), checked.

    Raises:
        BundleError: ``BUNDLE_INVALID`` (missing, or no plain data), ``BUNDLE_LINK``, ``BUNDLE_EXPRESSION`` (a ``$``
            expression, ``%`` macro, ``_mode_`` or foreign reference in a literal section), ``BUNDLE_TARGET`` (a
            ``_target_`` not on the allow-list) or ``BUNDLE_ARGUMENT`` (an argument unknown or out of bounds).
    """
    path = config_file(bundle, "inference")
    sections = literal_sections(read_plain(path, within=bundle), path)
    for name, section in sections.items():
        _check_literal(section, name, path)
        check_arguments(section, name, path)
    return sections


def config_file(bundle: Path, name: str) -> Path:
    """Path of a config of the bundle, whether YAML or JSON; that of the YAML file when there is none."""
    candidates = [bundle / "configs" / f"{name}{ending}" for ending in (".yaml", ".yml", ".json")]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def literal_sections(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The literal sections of a config as they stand there; ``postprocessing`` may be missing.

    Raises:
        BundleError: ``BUNDLE_INVALID`` when another one is missing, or one is no component.
    """
    found = {name: config.get(name) for name in LITERAL_SECTIONS}
    sections = {name: section for name, section in found.items() if section or name != "postprocessing"}
    for name, section in sections.items():
        if not isinstance(section, Mapping) or "_target_" not in section:
            raise BundleError("BUNDLE_INVALID", f"{name} is missing or has no _target_.", path=path)
    return sections


def _check_literal(value: Any, where: str, path: Path) -> None:
    """Refuse expressions, macros and unknown targets, wherever they are nested."""
    if isinstance(value, Mapping):
        if "_target_" in value and not (isinstance(value["_target_"], str) and value["_target_"] in ALLOWED_TARGETS):
            raise BundleError(
                "BUNDLE_TARGET",
                f"{where}: {value['_target_']!r} is not among the targets a Predictor may build.",
                path=path,
            )
        for key, item in value.items():
            special = str(key).startswith(("_", "$", "%", "@")) and key not in ("_target_", "_desc_")
            if special or "::" in str(key) or "#" in str(key):
                raise BundleError("BUNDLE_EXPRESSION", f"{where}: the key {key!r} is not allowed here.", path=path)
            _check_literal(item, f"{where}.{key}", path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_literal(item, f"{where}[{index}]", path)
    elif isinstance(value, str) and value.startswith(("$", "%")):
        raise BundleError("BUNDLE_EXPRESSION", f"{where}: {value!r} is an expression or macro.", path=path)
    elif isinstance(value, str) and value.startswith("@") and value != PREPROCESSING:
        message = f"{where}: {value!r} is a reference, and the only one allowed is {PREPROCESSING!r}."
        raise BundleError("BUNDLE_EXPRESSION", message, path=path)
    elif not isinstance(value, str | int | float | None):
        raise BundleError("BUNDLE_EXPRESSION", f"{where}: a {type(value).__name__} is not allowed here.", path=path)
