"""Bundles: finding them, describing them, and running their inference on files without trusting their configs.

``monai.bundle run`` evaluates a whole config, expressions included. A :class:`Predictor` resolves only the literal
sections ``network_def``, ``preprocessing``, ``inferer`` and ``postprocessing``, and only targets named in
``ALLOWED_TARGETS``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from accunet_monai.errors import BundleError
from accunet_monai.volumes import Volume, read_picture, read_volume

if TYPE_CHECKING:
    import torch

LITERAL_SECTIONS = ("network_def", "preprocessing", "inferer", "postprocessing")
"""The sections that decide what a bundle computes; they hold no expression and no macro."""

WEIGHTS = Path("models") / "model.safetensors"

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
"""What the literal sections may build. All are plain computations on their arguments."""


@dataclass(frozen=True)
class Prediction:
    """A label map with the image it was made from.

    Attributes:
        image: the volume as read, or a picture (C, H, W).
        label_map: unsigned integers on the image's own grid, (X, Y, Z) or (H, W).
    """

    image: Volume | np.ndarray[Any, Any]
    label_map: np.ndarray[Any, Any]


def bundles_folder() -> Path:
    """The folder of the shipped bundles: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_bundles", package.parent / "bundles"):
        if folder.is_dir():
            return folder
    raise BundleError("BUNDLE_NONE", "this installation carries no bundles.", path=package)


def list_bundles() -> list[Path]:
    """Folders of the shipped bundles, by name."""
    return sorted(path.parent.parent for path in bundles_folder().glob("*/configs/metadata.json"))


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """Folder of a bundle, given by its path or by the name of a shipped one.

    Raises:
        BundleError: ``BUNDLE_UNKNOWN``, naming what there is.
    """
    given = Path(name_or_path)
    shipped = {path.name: path for path in list_bundles()}
    if (given / "configs" / "metadata.json").is_file():
        return given.resolve()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    raise BundleError(
        "BUNDLE_UNKNOWN",
        "neither a bundle's folder (with configs/metadata.json) nor the name of a shipped bundle.",
        path=given,
        hint=f"Shipped: {', '.join(shipped) or 'none'}.",
    )


def find_images(source: str | os.PathLike[str], endings: Sequence[str] = (".nii", ".nii.gz")) -> list[Path]:
    """The image files of a file or folder, sorted, without hidden ones; of a Decathlon folder those of ``imagesTr``.

    Raises:
        BundleError: ``INPUT_MISSING`` or ``INPUT_EMPTY``.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BundleError("INPUT_MISSING", "no such file or folder.", path=path)
    folder = path / "imagesTr" if (path / "imagesTr").is_dir() else path
    found = sorted(
        item
        for item in folder.iterdir()
        if item.is_file() and item.name.lower().endswith(tuple(endings)) and not item.name.startswith(".")
    )
    if not found:
        raise BundleError("INPUT_EMPTY", f"no file that ends in {' or '.join(endings)}.", path=folder)
    return found


def image_cases(source: str | os.PathLike[str], limit: int | None = None) -> list[dict[str, str]]:
    """``{"image": path}`` for each NIfTI file of :func:`find_images`, for a dataset in a config."""
    return [{"image": str(path)} for path in find_images(source)[:limit]]


def read_metadata(bundle: Path) -> dict[str, Any]:
    """The bundle's ``configs/metadata.json``.

    Raises:
        BundleError: ``BUNDLE_INVALID`` when it is missing, no JSON object, or lacks the input ``image`` or the output
            ``pred`` with its ``channel_def``.
    """
    path = bundle / "configs" / "metadata.json"
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tensors = metadata["network_data_format"]
        dict(tensors["inputs"]["image"]), [int(channel) for channel in tensors["outputs"]["pred"]["channel_def"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
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
        BundleError: ``BUNDLE_INVALID`` (missing, unreadable, YAML aliases), ``BUNDLE_EXPRESSION`` (a ``$`` expression,
            ``%`` macro or ``_mode_`` in a literal section) or ``BUNDLE_TARGET`` (a ``_target_`` not on the allow-list).
    """
    candidates = [bundle / "configs" / f"inference{ending}" for ending in (".yaml", ".yml", ".json")]
    path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506 (it is a SafeLoader)
        sections = {name: config[name] for name in LITERAL_SECTIONS if name != "postprocessing" or config.get(name)}
        for section in sections.values():
            section["_target_"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError("BUNDLE_INVALID", f"no usable inference config ({error!r}).", path=path) from error
    for name, section in sections.items():
        _check_literal(section, name, path)
    return sections


def load_bundle(
    name_or_path: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Predictor:
    """Open a bundle for inference.

    Args:
        name_or_path: a shipped bundle's name, or a bundle's folder.
        weights: safetensors file; by default the bundle's ``models/model.safetensors``.
        device: where the network runs.

    Raises:
        BundleError: for bundles that are missing, incomplete or ask for more than the allow-list.
        NetworkError: for weights that are missing or do not fit.

    Example:
        >>> predictor = load_bundle("hippocampus_mri")
        >>> predictor.labels
        {1: 'anterior hippocampus', 2: 'posterior hippocampus'}
    """
    return Predictor(find_bundle(name_or_path), weights, device)


class Predictor:
    """A bundle's network with its preprocessing, inferer and postprocessing. Made by :func:`load_bundle`.

    Attributes:
        bundle: the bundle's folder.
        metadata: its metadata.
        labels: label value → name.
        network: in evaluation mode, with weights.
        weights: the file they came from.
    """

    def __init__(
        self, bundle: Path, weights: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"
    ) -> None:
        import torch

        from accunet_monai.networks import load_weights

        self.bundle = bundle
        self.metadata = read_metadata(bundle)
        self.labels = label_names(bundle)
        self.device = torch.device(device)
        parts = _built(read_literal_sections(bundle), bundle)
        self.weights = Path(weights or bundle / WEIGHTS)
        network = load_weights(parts["network_def"], self.weights)
        channels_last = torch.channels_last if self.is_2d_network(network) else torch.preserve_format
        self.network = network.to(self.device, memory_format=channels_last).eval()  # type: ignore[call-overload]
        self._preprocessing = parts["preprocessing"]
        self._inferer = parts["inferer"]
        self._postprocessing = parts.get("postprocessing")

    @staticmethod
    def is_2d_network(network: torch.nn.Module) -> bool:
        """Whether the network's convolutions are two-dimensional."""
        import torch

        return any(isinstance(module, torch.nn.Conv2d) for module in network.modules())

    @property
    def takes_pictures(self) -> bool:
        """Whether the bundle is made for 2D pictures (PNG, JPEG) rather than for volumes."""
        return self.metadata.get("intended_input") == "picture"

    def predict(self, source: str | os.PathLike[str] | Volume) -> Prediction:
        """Segment one file or volume.

        Args:
            source: what :func:`~accunet_monai.volumes.read_volume` takes (NIfTI, MetaImage, NRRD, a DICOM series), the
                path of a picture for a 2D bundle, or a ``Volume``.

        Returns:
            The image and its label map on the image's own grid.

        Raises:
            VolumeError: for input that cannot be read without guessing.
            BundleError: ``BUNDLE_INPUT`` for a ``Volume`` given to a bundle of pictures, ``BUNDLE_OUTPUT`` when what
                comes out of the postprocessing is no label map on the image's grid.
        """
        import torch

        image = self._read(source)
        data = self._preprocessing({"image": image if isinstance(image, Volume) else source})
        with torch.inference_mode():
            logits = self._inferer(data["image"][None].to(self.device), self._network_call)
        data["pred"] = logits[0].cpu()
        if self._postprocessing is not None:
            data = self._postprocessing(data)
        grid = image.shape if isinstance(image, Volume) else image.shape[1:]
        return Prediction(image, self._label_map(np.asarray(data["pred"]), grid))

    def _read(self, source: str | os.PathLike[str] | Volume) -> Volume | np.ndarray[Any, Any]:
        if not self.takes_pictures:
            return source if isinstance(source, Volume) else read_volume(source)
        if isinstance(source, Volume):
            raise BundleError("BUNDLE_INPUT", "this bundle takes pictures (PNG, JPEG), not volumes.", path=self.bundle)
        return read_picture(source, int(self.metadata["network_data_format"]["inputs"]["image"]["num_channels"]))

    def _label_map(self, values: np.ndarray[Any, Any], grid: tuple[int, ...]) -> np.ndarray[Any, Any]:
        whole = values.dtype.kind in "biu" or bool((values == np.rint(values)).all())
        if values.shape != (1, *grid) or not whole or values.min() < 0 or values.max() > 65535:
            raise BundleError(
                "BUNDLE_OUTPUT",
                f"expected a label map of shape {(1, *grid)}, the bundle gave {values.dtype} {values.shape}.",
                path=self.bundle,
                hint="Its postprocessing must invert the spatial preprocessing and end in labels.",
            )
        label_map: np.ndarray[Any, Any] = values[0].astype(np.uint8 if int(values.max()) <= 255 else np.uint16)
        return label_map

    def _network_call(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        return self.network(x)  # type: ignore[no-any-return]


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: with them a small file can stand for an endless or enormous config."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def _built(sections: Mapping[str, Any], bundle: Path) -> dict[str, Any]:
    """The checked sections as objects."""
    import torch
    from monai.bundle import ConfigParser
    from monai.inferers import Inferer

    parser = ConfigParser(dict(sections))
    try:
        parts = {name: parser.get_parsed_content(name) for name in sections}
    except Exception as error:  # components refuse impossible arguments in many ways; MONAI wraps these
        raise BundleError(
            "BUNDLE_INVALID", f"a literal section cannot be built ({error.__cause__ or error}).", path=bundle
        ) from error
    if not isinstance(parts["network_def"], torch.nn.Module) or not isinstance(parts["inferer"], Inferer):
        raise BundleError("BUNDLE_INVALID", "network_def is no network or inferer no inferer.", path=bundle)
    return parts


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
    elif isinstance(value, str) and value.startswith("@"):
        section = value[1:].split("::")[0].split("#")[0]
        if section not in LITERAL_SECTIONS:
            message = f"{where}: {value!r} refers to outside the literal sections."
            raise BundleError("BUNDLE_EXPRESSION", message, path=path)
    elif not isinstance(value, str | int | float | None):
        raise BundleError("BUNDLE_EXPRESSION", f"{where}: a {type(value).__name__} is not allowed here.", path=path)
