"""Smooth random fields and Gaussian blur of 3D arrays, axis by axis as products with small matrices (numpy only)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def smooth_fields(count: int, shape: tuple[int, ...], knots_apart: Array, rng: np.random.Generator) -> Array:
    """Smooth Gaussian random fields of mean 0 and standard deviation 1: cubic B-splines with normal coefficients.

    Args:
        count: number of fields.
        shape: (X, Y, Z).
        knots_apart: distance of the control points along each axis, voxels.
        rng: source of the coefficients.

    Returns:
        (count, X, Y, Z) float32.
    """
    x, y, z = (_spline_weights(n, float(apart)) for n, apart in zip(shape, knots_apart, strict=True))
    knots = rng.standard_normal((count, x.shape[1], y.shape[1], z.shape[1])).astype(np.float32)
    fields: Array = np.einsum("nabc,xa,yb,zc->nxyz", knots, x, y, z, optimize=True)
    return fields


def blurred(image: Array, sigma: Array) -> Array:
    """Gaussian blur by ``sigma`` voxels along each axis; beyond the border the border's value goes on."""
    x, y, z = (_gaussian_weights(n, float(width)) for n, width in zip(image.shape, sigma, strict=True))
    result: Array = np.einsum("abc,xa,yb,zc->xyz", image, x, y, z, optimize=True)
    return result


def _spline_weights(size: int, knots_apart: float) -> Array:
    """Cubic B-spline weights (size, knots), scaled so that white noise on the knots comes out with unit variance."""
    position = np.arange(size) / knots_apart
    knots = np.arange(-1, math.floor(position[-1]) + 3)
    distance = np.abs(position[:, None] - knots[None])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    scaled: Array = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def _gaussian_weights(size: int, sigma: float) -> Array:
    """Matrix (size, size) float32 that blurs one axis."""
    if sigma < 0.1:  # a neighbour's weight would be below 1e-20
        return np.eye(size, dtype=np.float32)
    reach = math.ceil(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = np.zeros((size, size))
    for step, weight in zip(range(-reach, reach + 1), kernel / kernel.sum(), strict=True):
        np.add.at(weights, (np.arange(size), np.clip(np.arange(size) + step, 0, size - 1)), weight)
    return weights.astype(np.float32)
