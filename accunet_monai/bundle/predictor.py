"""A bundle's network with what goes before and after it, run on one image at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accunet_monai.bundle.finding import find_bundle
from accunet_monai.bundle.sections import label_names, read_literal_sections, read_metadata
from accunet_monai.errors import BundleError
from accunet_monai.volumes import Volume, read_picture, read_volume

if TYPE_CHECKING:
    import torch

WEIGHTS = Path("models") / "model.safetensors"


@dataclass(frozen=True)
class Prediction:
    """A label map with the image it was made from.

    Attributes:
        image: the volume as read, or a picture (C, H, W).
        label_map: unsigned integers on the image's own grid, (X, Y, Z) or (H, W).
    """

    image: Volume | np.ndarray[Any, Any]
    label_map: np.ndarray[Any, Any]


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
