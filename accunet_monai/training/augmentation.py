"""Augmentation of whole batches of slices as tensor operations: one grid sample for all spatial changes together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class BatchAugmentation:
    """Random spatial and intensity changes of a batch of 2D images and label maps, drawn anew for each sample.

    Spatial changes (mirror, rotation, scale, shift, elastic deformation) are composed into one sampling grid: images
    are interpolated linearly, label maps by nearest neighbour, outside is the border's value. Intensity changes
    assume images standardised to about zero mean and unit variance. Draws come from an own generator,
    so that a seed fixes them whatever else draws random numbers.

    Args:
        probability: chance of each change for each sample.
        mirror: spatial axes of the image (0: rows, 1: columns) that may be mirrored.
        mirror_slices: number of slices given as channels, whose order is reversed in half of the samples: that mirrors
            the volume along the slicing axis; 0 leaves the order alone.
        rotation: largest rotation in degrees.
        scale: smallest and largest zoom.
        shift: largest shift as a fraction of the size.
        elastic: standard deviation of the elastic displacement in pixels.
        elastic_spacing: distance in pixels of the elastic deformation's control points.
        contrast: smallest and largest factor of contrast.
        brightness: standard deviation of an added constant.
        gamma: smallest and largest exponent, applied to the intensities rescaled to 0…1.
        noise: largest standard deviation of added Gaussian noise.
        blur: largest standard deviation of a Gaussian blur, in pixels.
        colour_jitter: standard deviation of each channel's own brightness, for RGB.
        seed: of the generator.
    """

    def __init__(
        self,
        probability: float = 0.5,
        mirror: Sequence[int] = (),
        mirror_slices: int = 0,
        rotation: float = 15.0,
        scale: tuple[float, float] = (0.85, 1.2),
        shift: float = 0.05,
        elastic: float = 1.0,
        elastic_spacing: int = 12,
        contrast: tuple[float, float] = (0.7, 1.4),
        brightness: float = 0.2,
        gamma: tuple[float, float] = (0.7, 1.5),
        noise: float = 0.2,
        blur: float = 1.0,
        colour_jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.probability = probability
        self.mirror = tuple(mirror)
        self.mirror_slices = mirror_slices
        self.rotation = rotation
        self.scale = scale
        self.shift = shift
        self.elastic = elastic
        self.elastic_spacing = elastic_spacing
        self.contrast = contrast
        self.brightness = brightness
        self.gamma = gamma
        self.noise = noise
        self.blur = blur
        self.colour_jitter = colour_jitter
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (N, C, H, W), floating point.
            label: (N, 1, H, W), any type; only its own values come out.

        Returns:
            Image and label of the same shapes and types.
        """
        grid = self._grid(image)
        moved = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        reference = F.grid_sample(
            label.to(image.dtype), grid, mode="nearest", padding_mode="border", align_corners=False
        )
        return self._intensity(self._mirror_slices(moved)), reference.to(label.dtype)

    def _grid(self, image: Tensor) -> Tensor:
        """Sampling grid (N, H, W, 2) in grid_sample's coordinates (−1…1, x before y)."""
        n, _, height, width = image.shape
        angle = self._chosen(n) * self._uniform(n, -1, 1) * math.radians(self.rotation)
        zoom = torch.exp(self._chosen(n) * self._uniform(n, math.log(self.scale[0]), math.log(self.scale[1])))
        cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        aspect = height / width
        offset = 2 * self.shift * self._uniform((n, 2), -1, 1) * self._chosen(n)[:, None]
        theta = torch.stack(
            [
                torch.stack([cosine, -sine * aspect, offset[:, 0]], 1),
                torch.stack([sine / aspect, cosine, offset[:, 1]], 1),
            ],
            1,
        )
        for axis in self.mirror:
            column = 1 - axis  # grid_sample's x is the image's last axis
            flip = 1 - 2 * (self._uniform(n, 0, 1) < 0.5).float()
            theta[:, :, column] = theta[:, :, column] * flip[:, None]
        grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
        if self.elastic > 0:
            grid = grid + self._displacement(n, height, width)
        return grid.to(image)

    def _displacement(self, n: int, height: int, width: int) -> Tensor:
        """Smooth random displacement (N, H, W, 2), in grid_sample's units."""
        points = [max(2, round(size / self.elastic_spacing) + 2) for size in (height, width)]
        coarse = self._normal((n, 2, *points)) * self.elastic
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return smooth * torch.tensor([2 / width, 2 / height]) * self._chosen(n)[:, None, None, None]

    def _mirror_slices(self, image: Tensor) -> Tensor:
        if not self.mirror_slices:
            return image
        reversed_order = image.unflatten(1, (self.mirror_slices, -1)).flip(1).flatten(1, 2)
        chosen = self._uniform(len(image), 0, 1) < 0.5
        return torch.where(chosen.to(image.device)[:, None, None, None], reversed_order, image)

    def _intensity(self, image: Tensor) -> Tensor:
        n, channels = image.shape[:2]
        per_sample = (n, 1, 1, 1)
        if self.blur > 0:
            image = _gaussian_blur(image, (self._chosen(n) * self._uniform(n, 0, self.blur)).to(image))
        gamma = torch.exp(self._chosen(n) * self._uniform(n, math.log(self.gamma[0]), math.log(self.gamma[1])))
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        image = ((image - low) / span) ** gamma.reshape(per_sample).to(image) * span + low
        contrast = torch.exp(self._chosen(n) * self._uniform(n, math.log(self.contrast[0]), math.log(self.contrast[1])))
        brightness = self._chosen(n) * self._normal((n,)) * self.brightness
        image = image * contrast.reshape(per_sample).to(image) + brightness.reshape(per_sample).to(image)
        if self.colour_jitter > 0:
            image = image + (self._normal((n, channels, 1, 1)) * self.colour_jitter).to(image)
        strength = self._chosen(n) * self._uniform(n, 0, self.noise)
        return image + self._normal(tuple(image.shape)).to(image) * strength.reshape(per_sample).to(image)

    def _chosen(self, n: int) -> Tensor:
        return (torch.rand(n, generator=self.generator) < self.probability).float()

    def _uniform(self, shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur of (N, C, H, W) with a standard deviation (pixels) per sample; 0 changes nothing."""
    n, channels, height, width = image.shape
    radius = max(1, min(math.ceil(3 * float(sigma.max())), height - 1, width - 1))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(image.reshape(1, n * channels, height, width), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=n * channels).reshape(image.shape)
