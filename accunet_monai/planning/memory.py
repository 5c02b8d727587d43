"""How much memory a training step takes, from measured runs."""

from __future__ import annotations

BYTES_PER_PIXEL = 1850
"""Of a training step for each pixel, image and unit of width, in float32: 1594 to 1856 as measured by
``benchmarks/measuring`` for widths of 4 to 32 and 64² to 224² pixels, the largest for the smallest."""

PARAMETERS = 16_770_000
"""Of width 32; they grow with the square of the width. Each takes its value, gradient and two moments of AdamW."""

LOGIT_COPIES = 6
"""Logits, softmax, one-hot reference and the gradients of these, all of (N, classes, rows, columns) float32."""


def training_bytes(batch: int, rows: int, columns: int, width: int, channels: int, classes: int) -> int:
    """Bytes that a training step adds to what the program takes at rest.

    Example:
        >>> round(training_bytes(2, 224, 224, width=32, channels=3, classes=1) / 2**20)
        5925
    """
    pixels = batch * rows * columns
    activations = BYTES_PER_PIXEL * pixels * width + 4 * pixels * (channels + LOGIT_COPIES * classes)
    return activations + round(16 * PARAMETERS * (width / 32) ** 2)


def largest_batch(available: int, rows: int, columns: int, width: int, channels: int, classes: int, most: int) -> int:
    """The largest power of two of images that fits, at most ``most``; 0 where not even one does."""
    batch = most
    while batch and training_bytes(batch, rows, columns, width, channels, classes) > available:
        batch //= 2
    return batch
