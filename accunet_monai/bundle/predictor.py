"""A bundle's network with what goes before and after it, run on one image at a time."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from accunet_monai import __version__
from accunet_monai.bundle.contract import Breach, check_input, read_contract
from accunet_monai.bundle.finding import find_bundle
from accunet_monai.bundle.manifest import check_weights
from accunet_monai.bundle.postprocessing import on_image_grid, with_uncertainty
from accunet_monai.bundle.sections import label_names, read_literal_sections, read_metadata
from accunet_monai.errors import BundleError
from accunet_monai.volumes import Volume, read_first_channel, read_picture

if TYPE_CHECKING:
    import torch
    from monai.inferers import Inferer

PathLike = str | os.PathLike[str]
Precision = Literal["float32", "bfloat16"]
Image = Volume | np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prediction:
    """A label map with the image it was made from.

    Attributes:
        image: the volume as read, or a picture (C, H, W).
        label_map: unsigned integers on the image's own grid, (X, Y, Z) or (H, W).
        uncertainty: where asked for, the entropy of the probabilities as a share of the highest possible, float32 of 0
            (sure) to 1 (all labels alike) on the same grid.
        breaches: rules of the bundle's input contract that the image breaks without having been refused.
    """

    image: Image
    label_map: np.ndarray[Any, Any]
    uncertainty: np.ndarray[Any, Any] | None = None
    breaches: tuple[Breach, ...] = ()


@dataclass
class Work:
    """An image on its way through :meth:`Predictor.prepare`, :meth:`Predictor.infer` and :meth:`Predictor.finish`."""

    image: Image
    data: dict[Any, Any]
    breaches: tuple[Breach, ...] = field(default=())


def load_bundle(
    name_or_path: PathLike | Sequence[PathLike],
    weights: PathLike | Sequence[PathLike] | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> Predictor:
    """Open a bundle for inference.

    Args:
        name_or_path: a shipped bundle's name, or a bundle's folder. Of several, which may differ in their networks
            only, the probabilities are averaged.
        weights: safetensors file; by default the bundle's ``models/model.safetensors``. Of several, such as those of
            the folds of a cross-validation, the probabilities are averaged.
        device: where the network runs.
        precision: of the network: ``"bfloat16"`` is faster where the processor multiplies in it; a label in a thousand
            may differ. Logits and what is averaged are float32.

    Raises:
        BundleError: for bundles that are missing, incomplete or ask for more than the allow-list,
            ``BUNDLE_ENSEMBLE`` for several that do not belong together, or with weights beside, and
            ``BUNDLE_PRECISION`` for a network that cannot run in the precision.
        NetworkError: for weights that are missing or do not fit.

    Example:
        >>> predictor = load_bundle("hippocampus_mri")
        >>> predictor.labels
        {1: 'anterior hippocampus', 2: 'posterior hippocampus'}
    """
    if isinstance(name_or_path, str | os.PathLike):
        return Predictor(find_bundle(name_or_path), weights, device, precision=precision)
    first, *others = [find_bundle(bundle) for bundle in name_or_path]
    return Predictor(first, weights, device, also=others, precision=precision)


class Predictor:
    """A bundle's network with its preprocessing, inferer and postprocessing. Made by :func:`load_bundle`.

    :meth:`predict` does all of it. A pipeline over many images calls :meth:`prepare`, :meth:`infer` and :meth:`finish`,
    each in a thread of its own, one call at a time for each.

    Attributes:
        bundle: the bundle's folder.
        metadata: its metadata.
        contract: what input it was made for, if it says so.
        labels: label value → name.
        network: in evaluation mode, with weights; of several their average. A faster form of it may take its place.
        weights: the file they came from; of several the first.
        members: (bundle, weights file) of each network.
        precision: of the network's weights and feature maps.
        preprocessing: dictionary transform of ``image``.
        inferer: runs the network over an image.
    """

    def __init__(
        self,
        bundle: Path,
        weights: PathLike | Sequence[PathLike] | None = None,
        device: str | torch.device = "cpu",
        also: Sequence[Path] = (),
        precision: Precision = "float32",
    ) -> None:
        import torch

        self.bundle = bundle
        self.metadata = read_metadata(bundle)
        self.contract = read_contract(self.metadata, bundle / "configs" / "metadata.json")
        self.labels = label_names(bundle)
        self.device = torch.device(device)
        self.precision = precision
        if precision not in get_args(Precision):
            message = f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}."
            raise BundleError("BUNDLE_PRECISION", message, path=bundle)
        self.members = _members(bundle, weights, also)
        self.weights = self.members[0][1]
        self._sections = read_literal_sections(bundle)
        parts = _built(self._sections, bundle)
        network = _with_weights(parts["network_def"], self.members)
        channels_last = torch.channels_last if self.is_2d_network(network) else torch.preserve_format
        self._loaded: torch.nn.Module = network.to(self.device, memory_format=channels_last).eval()  # type: ignore[call-overload]
        self.network = self._loaded
        self.preprocessing = parts["preprocessing"]
        self.inferer: Inferer = parts["inferer"]
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

    @property
    def channels(self) -> int:
        """Of an image; several are read from a 4D file, or from nnU-Net's, of which the first names the image."""
        from accunet_monai.transforms import LoadVolumed

        steps = getattr(self.preprocessing, "transforms", [self.preprocessing])
        return next((step.channels for step in steps if isinstance(step, LoadVolumed)), 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what comes out: weights, literal sections, contract, version of this package."""
        parts = [
            {
                "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
                "sections": self._sections if bundle == self.bundle else read_literal_sections(bundle),
            }
            for bundle, weights in self.members
        ]
        stated = {"members": parts, "contract": self.metadata.get("input_contract"), "version": __version__}
        if self.precision != "float32":
            stated["precision"] = self.precision
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()

    def predict(
        self, source: PathLike | Volume, *, uncertainty: bool = False, ignore_contract: bool = False
    ) -> Prediction:
        """Segment one file or volume.

        Args:
            source: what :func:`~accunet_monai.volumes.read_volume` takes (NIfTI, MetaImage, NRRD, a DICOM series), the
                path of a picture for a 2D bundle, or a ``Volume``.
            uncertainty: also give the entropy map.
            ignore_contract: run the network on an image that the bundle's input contract refuses, too.

        Returns:
            The image and its label map on the image's own grid.

        Raises:
            VolumeError: for input that cannot be read without guessing.
            BundleError: ``INPUT_CONTRACT`` for an image the bundle was not made for, ``BUNDLE_INPUT`` for a ``Volume``
                given to a bundle of pictures, ``BUNDLE_OUTPUT`` when what comes out of the postprocessing is no label
                map on the image's grid.
        """
        return self.finish(self.infer(self.prepare(source, ignore_contract=ignore_contract), uncertainty=uncertainty))

    def prepare(self, source: PathLike | Volume, *, ignore_contract: bool = False) -> Work:
        """Read, hold against the input contract and preprocess; raises what :meth:`predict` raises for the input."""
        image = self._read(source)
        if not isinstance(image, Volume):
            return Work(image, self.preprocessing({"image": source}))
        breaches = check_input(self.contract, image, ignore=ignore_contract)
        return Work(image, self.preprocessing({"image": image}), breaches)

    def infer(self, work: Work, *, uncertainty: bool = False) -> Work:
        """Run the network; ``work`` is changed and returned."""
        import torch

        with torch.inference_mode():
            batch = work.data["image"][None].to(self.device)
            if uncertainty:
                output, shares = with_uncertainty(self.inferer, batch, self._network_call)
                work.data["uncertainty"] = shares[0].cpu()
            else:
                output = self.inferer(batch, self._network_call)
            work.data["pred"] = output[0].cpu()
        return work

    def finish(self, work: Work) -> Prediction:
        """Postprocess: bring what the network gave back to the image's grid, clean it, and check it."""
        import torch

        data = work.data
        with torch.inference_mode():
            uncertainty = data.pop("uncertainty", None)
            if uncertainty is not None:
                uncertainty = on_image_grid(uncertainty, data["image"], self.preprocessing)
            if self._postprocessing is not None:
                data = self._postprocessing(data)
        grid = work.image.shape if isinstance(work.image, Volume) else work.image.shape[1:]
        label_map = self._label_map(np.asarray(data["pred"]), grid)
        if uncertainty is not None and uncertainty.shape != grid:
            raise self._wrong_output(f"an uncertainty map of shape {grid}", uncertainty)
        return Prediction(work.image, label_map, uncertainty, work.breaches)

    def _read(self, source: PathLike | Volume) -> Image:
        if not self.takes_pictures:
            return source if isinstance(source, Volume) else read_first_channel(source, self.channels)
        if isinstance(source, Volume):
            raise BundleError("BUNDLE_INPUT", "this bundle takes pictures (PNG, JPEG), not volumes.", path=self.bundle)
        return read_picture(source, int(self.metadata["network_data_format"]["inputs"]["image"]["num_channels"]))

    def _label_map(self, values: np.ndarray[Any, Any], grid: tuple[int, ...]) -> np.ndarray[Any, Any]:
        whole = values.dtype.kind in "biu" or bool((values == np.rint(values)).all())
        if values.shape != (1, *grid) or not whole or values.min() < 0 or values.max() > 65535:
            raise self._wrong_output(f"a label map of shape {(1, *grid)}", values)
        label_map: np.ndarray[Any, Any] = values[0].astype(np.uint8 if int(values.max()) <= 255 else np.uint16)
        return label_map

    def _wrong_output(self, expected: str, values: np.ndarray[Any, Any]) -> BundleError:
        return BundleError(
            "BUNDLE_OUTPUT",
            f"expected {expected}, the bundle gave {values.dtype} {values.shape}.",
            path=self.bundle,
            hint="Its postprocessing must invert the spatial preprocessing and end in labels.",
        )

    def _network_call(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        network = self._folded if self.network is self._loaded else self.network  # the caller's own runs as it is
        return network(x, *args, **kwargs)  # type: ignore[no-any-return]

    @cached_property
    def _folded(self) -> torch.nn.Module:
        """The same function with its norms folded away; made at the first image: not all who open a bundle run it."""
        import torch

        from accunet_monai.networks.deploy import optimize_for_inference

        try:
            return optimize_for_inference(self._loaded, device=self.device, dtype=getattr(torch, self.precision))
        except ValueError as error:  # norms that cannot be folded: the network runs as it is
            if self.precision == "float32":
                return self._loaded
            message = f"the network cannot run in {self.precision} ({error})."
            raise BundleError("BUNDLE_PRECISION", message, path=self.bundle) from error


def _members(
    bundle: Path, weights: PathLike | Sequence[PathLike] | None, also: Sequence[Path]
) -> tuple[tuple[Path, Path], ...]:
    """(bundle, weights file) of each network."""
    from accunet_monai.bundle.ensemble import check_alike

    if weights is None:
        bundles = (bundle, *also)
        if also:
            check_alike(bundles, [read_literal_sections(b) for b in bundles], [label_names(b) for b in bundles])
        return tuple((one, check_weights(one)) for one in bundles)
    files = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    if also or not files:
        raise BundleError("BUNDLE_ENSEMBLE", "several bundles come with their own weights.", path=bundle)
    return tuple((bundle, Path(file)) for file in files)


def _with_weights(network: torch.nn.Module, members: Sequence[tuple[Path, Path]]) -> torch.nn.Module:
    """The network with its weights, or the average of several."""
    from accunet_monai.bundle.ensemble import AveragedNetworks
    from accunet_monai.networks import load_weights

    (bundle, weights), *others = members
    empty = [
        copy.deepcopy(network) if other == bundle else _built(read_literal_sections(other), other)["network_def"]
        for other, _ in others
    ]
    first = load_weights(network, weights)
    if not others:
        return first
    rest = [load_weights(one, file) for one, (_, file) in zip(empty, others, strict=True)]
    return AveragedNetworks([first, *rest])


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
