"""Augmentation of whole batches of slices as tensor operations: one grid sample for all spatial changes together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from accunet_monai.training.filters import gaussian_blur, lower_resolution

_CHANGES = (
    "rotation",
    "scale",
    "shift",
    "elastic",
    "low_resolution",
    "blur",
    "gamma",
    "contrast",
    "brightness",
    "noise",
)
_UNIFORM = (*_CHANGES, "shift_2", "mirror_0", "mirror_1", "mirror_slices")


class BatchAugmentation:
    """Random spatial and intensity changes of a batch of 2D images and label maps, drawn anew for each sample.

    Spatial changes (mirror, rotation, scale, shift, elastic deformation) are composed into one sampling grid: images
    are interpolated linearly, label maps by nearest neighbour, outside is the border's value. Intensity changes
    assume images standardised to about zero mean and unit variance.

    Each sample's changes are a pure function of the seed and of the number of its draw: it is changed in the same way
    whatever the other samples of its batch are, in whichever process, and after a resumed training as without a stop.

    Args:
        probability: chance of each change for each sample.
        mirror: spatial axes of the image (0: rows, 1: columns) that may be mirrored.
        mirror_slices: number of slices given as channels, whose order is reversed in half of the samples: that mirrors
            the volume along the slicing axis; 0 leaves the order alone.
        rotation: largest rotation in degrees, or smallest and largest (counter-clockwise where rows go down).
        scale: smallest and largest zoom.
        shift: largest shift as a fraction of the size.
        elastic: standard deviation of the elastic displacement in pixels.
        elastic_spacing: distance in pixels of the elastic deformation's control points.
        contrast: smallest and largest factor of contrast.
        brightness: standard deviation of an added constant.
        gamma: smallest and largest exponent, applied to the intensities rescaled to 0…1.
        noise: largest standard deviation of added Gaussian noise.
        blur: largest standard deviation of a Gaussian blur, in pixels, or smallest and largest.
        low_resolution: largest factor by which pixels grow before the image is brought back to its size; 1 for none.
        colour_jitter: standard deviation of each channel's own brightness, for RGB.
        seed: of all draws.
    """

    def __init__(
        self,
        probability: float = 0.5,
        mirror: Sequence[int] = (),
        mirror_slices: int = 0,
        rotation: float | tuple[float, float] = 15.0,
        scale: tuple[float, float] = (0.85, 1.2),
        shift: float = 0.05,
        elastic: float = 1.0,
        elastic_spacing: int = 12,
        contrast: tuple[float, float] = (0.7, 1.4),
        brightness: float = 0.2,
        gamma: tuple[float, float] = (0.7, 1.5),
        noise: float = 0.2,
        blur: float | tuple[float, float] = 1.0,
        low_resolution: float = 1.0,
        colour_jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.probability = probability
        self.mirror = tuple(mirror)
        self.mirror_slices = mirror_slices
        self.rotation = (-rotation, rotation) if isinstance(rotation, int | float) else tuple(rotation)
        self.scale = scale
        self.shift = shift
        self.elastic = elastic
        self.elastic_spacing = elastic_spacing
        self.contrast = contrast
        self.brightness = brightness
        self.gamma = gamma
        self.noise = noise
        self.blur = (0.0, blur) if isinstance(blur, int | float) else tuple(blur)
        self.low_resolution = low_resolution
        self.colour_jitter = colour_jitter
        self.seed = seed
        self._calls = 0

    def __call__(
        self, image: Tensor, label: Tensor, draw: int | Tensor | None = None, offset: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (N, C, H, W), floating point.
            label: (N, L, H, W), any type; only its own values come out. Several channels are regions of their own.
            draw: a number for each sample (N,), or one for the batch, say that of the iteration: then sample i's draw
                is this number with its position ``offset + i``. By default the number of the call.
            offset: where in the batch of all processes together this part begins.

        Returns:
            Image and label of the same shapes and types.
        """
        drawn = _Drawn(self, image, list(self._numbers(len(image), draw, offset)))
        if self._is_spatial():
            grid = self._grid(drawn, image)
            image = _sample(image, grid, "bilinear")
            label = _sample(label.float(), grid, "nearest").to(label.dtype)
        return self._intensity(drawn, self._mirror_slices(drawn, image)), label

    def _numbers(self, n: int, draw: int | Tensor | None, offset: int) -> Iterator[tuple[int, ...]]:
        if isinstance(draw, Tensor):
            yield from ((int(number),) for number in draw.tolist())
        else:
            if draw is None:
                draw = self._calls
                self._calls += 1
            yield from ((draw, offset + position) for position in range(n))

    def _is_spatial(self) -> bool:
        moved = self.rotation != (0.0, 0.0) or tuple(self.scale) != (1.0, 1.0) or self.shift > 0 or self.elastic > 0
        return bool(self.mirror) or (moved and self.probability > 0)

    def _grid(self, drawn: _Drawn, image: Tensor) -> Tensor:
        """Sampling grid (N, H, W, 2) in grid_sample's coordinates (−1…1, x before y)."""
        n, _, height, width = image.shape
        angle = torch.deg2rad(drawn.between("rotation", self.rotation, 0.0))
        zoom = drawn.factor("scale", self.scale)
        cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        aspect = height / width
        reach = 2 * self.shift
        offset = [drawn.chosen("shift") * drawn.uniform(name, -reach, reach) for name in ("shift", "shift_2")]
        theta = torch.stack(
            [torch.stack([cosine, -sine * aspect, offset[0]], 1), torch.stack([sine / aspect, cosine, offset[1]], 1)], 1
        )
        for axis in self.mirror:
            flip = 1 - 2 * (drawn.uniform(f"mirror_{axis}") < 0.5).float()
            theta[:, :, 1 - axis] *= flip[:, None]  # grid_sample's x is the image's last axis
        grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
        if drawn.displacement is not None:
            smooth = F.interpolate(drawn.displacement, size=(height, width), mode="bicubic", align_corners=True)
            in_units = smooth.permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height]) * self.elastic
            grid = grid + in_units * drawn.chosen("elastic")[:, None, None, None]
        return grid.to(image)

    def _mirror_slices(self, drawn: _Drawn, image: Tensor) -> Tensor:
        if not self.mirror_slices:
            return image
        n, _, height, width = image.shape
        reversed_order = image.reshape(n, self.mirror_slices, -1, height, width).flip(1).reshape(image.shape)
        chosen = drawn.uniform("mirror_slices") < 0.5
        return torch.where(chosen.to(image.device)[:, None, None, None], reversed_order, image)

    def _intensity(self, drawn: _Drawn, image: Tensor) -> Tensor:
        image = lower_resolution(image, drawn.factor("low_resolution", (1.0, self.low_resolution)))
        image = gaussian_blur(image, drawn.between("blur", self.blur, 0.0), self.blur[1])
        if self.gamma != (1.0, 1.0):
            gamma = _per_sample(drawn.factor("gamma", self.gamma), image)
            low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
            span = (high - low).clamp_min(1e-6)
            image = ((image - low) / span) ** gamma * span + low
        contrast = drawn.factor("contrast", self.contrast)
        brightness = drawn.chosen("brightness") * drawn.normal * self.brightness
        image = image * _per_sample(contrast, image) + _per_sample(brightness, image)
        if drawn.channels is not None:
            image = image + (drawn.channels[:, :, None, None] * self.colour_jitter).to(image)
        if drawn.noise is not None:
            strength = drawn.between("noise", (0.0, self.noise), 0.0)
            image = image + drawn.noise.to(image) * _per_sample(strength, image)
        return image


class _Drawn:
    """The random numbers of a batch, each sample's from a generator of its own; parts that are off draw nothing.

    Args:
        settings: what is on.
        image: (N, C, H, W).
        numbers: what besides the seed identifies each sample's draw.
    """

    def __init__(self, settings: BatchAugmentation, image: Tensor, numbers: Sequence[tuple[int, ...]]) -> None:
        channels, height, width = image.shape[1:]
        points = [max(2, round(size / settings.elastic_spacing) + 2) for size in (height, width)]
        generators = [np.random.default_rng([settings.seed, *number]) for number in numbers]
        chances = np.stack([random.random(len(_CHANGES)) for random in generators])
        values = np.stack([random.random(len(_UNIFORM)) for random in generators])
        self._chosen: dict[str, Tensor] = dict(
            zip(_CHANGES, torch.from_numpy(chances < settings.probability).float().T, strict=True)
        )
        self._values: dict[str, Tensor] = dict(zip(_UNIFORM, torch.from_numpy(values).float().T, strict=True))
        self.normal = _normals(generators, ())
        self.channels = _normals(generators, (channels,)) if settings.colour_jitter > 0 else None
        self.displacement = _normals(generators, (2, *points)) if settings.elastic > 0 else None
        self.noise = _normals(generators, (channels, height, width)) if settings.noise > 0 else None

    def chosen(self, change: str) -> Tensor:
        """1 for the samples (N,) that get a change, else 0."""
        return self._chosen[change]

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A number between two for each sample (N,)."""
        return low + (high - low) * self._values[name]

    def between(self, change: str, limits: Sequence[float], otherwise: float) -> Tensor:
        """A number between two for the samples that get a change, else another."""
        values = self.uniform(change, *limits)
        return torch.where(self._chosen[change] > 0, values, torch.full_like(values, otherwise))

    def factor(self, change: str, limits: Sequence[float]) -> Tensor:
        """A factor between two, evenly on a logarithmic scale, for the samples that get a change, else 1."""
        return torch.exp(self.between(change, [math.log(limit) for limit in limits], 0.0))


def _normals(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    """(N, *shape) standard normal numbers."""
    drawn: list[npt.NDArray[np.float32]] = [random.standard_normal(shape, np.float32) for random in generators]
    return torch.from_numpy(np.stack(drawn))


def _sample(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(image, grid.to(image.dtype), mode=mode, padding_mode="border", align_corners=False)


def _per_sample(values: Tensor, image: Tensor) -> Tensor:
    return values.to(image)[:, None, None, None]
