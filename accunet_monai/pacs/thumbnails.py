"""A small picture of each result for the site's page: the slice with most of it, and no text of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from accunet_monai.volumes import PlaneStack, Volume, atomic_output, read_seg, render_overlay
from accunet_monai.volumes.dicom_source_planes import planes_lps

LONG_SIDE = 240
"""Pixels."""


def thumbnail_of(seg: Path) -> Path:
    """Where the picture of a stored SEG lies, if there is one."""
    return seg.with_suffix(".png")


def draw_thumbnail(seg: Path, like: Volume | PlaneStack, target: Path) -> None:
    """Draw what a SEG file says over the image it was made from, as the series itself is oriented.

    Args:
        seg: the file.
        like: its image.
        target: the PNG.
    """
    label_map = read_seg(seg, like=like).label_map
    found = np.count_nonzero(label_map, axis=(0, 1))
    k = int(found.argmax()) if found.any() else label_map.shape[2] // 2
    across, down = np.linalg.norm(planes_lps(like)[0, :3, :2], axis=0)  # mm of a pixel
    width, height = label_map.shape[0] * across, label_map.shape[1] * down
    scale = LONG_SIDE / max(width, height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = render_overlay(like.array[:, :, k].T, label_map[:, :, k].T, alpha=0.25, size=size)
    with atomic_output(target) as stream:
        Image.fromarray(pixels).save(stream, format="PNG")
