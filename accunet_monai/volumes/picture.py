"""PNG and JPEG pictures: in as arrays of known channels, out as label pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.atomic import atomic_output

PathLike = str | os.PathLike[str]

SIXTEEN_BIT_STEP = 257.0
"""65535 / 255: what one of 256 grey values is worth in a 16-bit PNG."""


def read_picture(path: PathLike, channels: int) -> npt.NDArray[np.float32]:
    """Reads a PNG or JPEG as float32 (C, H, W) of 0 to 255, rows from top to bottom, as a viewer shows it.

    EXIF orientation is applied, 16-bit grey is brought to 0 to 255, palettes are resolved, an opaque alpha channel is
    dropped. A colour picture whose three channels are equal counts as grey. Nothing else is converted: the model must
    fit the picture.

    Args:
        path: a PNG or JPEG file.
        channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        VolumeError: ``FILE_MISSING``, ``PICTURE_UNREADABLE`` or ``PICTURE_CHANNELS``.
        ValueError: ``channels`` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, found {channels}")
    if not Path(path).is_file():
        raise VolumeError("FILE_MISSING", "there is no such file.", path=path)
    pixels = _opaque(_decoded(path), path)
    if channels == 1 and pixels.shape[0] == 3 and (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    if pixels.shape[0] != channels:
        raise VolumeError(
            "PICTURE_CHANNELS",
            f"expected {_named(channels)}, found {_named(pixels.shape[0])}.",
            path=path,
            hint="Convert the picture, or use a model made for it.",
        )
    return pixels


def write_label_picture(path: PathLike, label_map: npt.NDArray[Any]) -> Path:
    """Writes labels (H, W), rows from top to bottom, as grey values of a PNG: 8 bits, or 16 for labels above 255.

    Raises:
        VolumeError: ``LABEL_NOT_INTEGER`` (fractions, negative, above 65535), ``LABEL_GRID`` (not two axes) or
            ``PICTURE_NAME`` (does not end in ``.png``: JPEG would change labels).
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise VolumeError("PICTURE_NAME", "a label picture ends in .png.", path=target)
    if label_map.ndim != 2 or label_map.size == 0:
        raise VolumeError("LABEL_GRID", f"expected (height, width), found {label_map.shape}.", path=target)
    if label_map.dtype.kind not in "biu" or int(label_map.min()) < 0 or int(label_map.max()) > 65535:
        raise VolumeError("LABEL_NOT_INTEGER", "labels of a picture are integers of 0 to 65535.", path=target)
    stored = label_map.astype(np.uint8 if int(label_map.max()) <= 255 else np.uint16)
    with atomic_output(target) as stream:
        Image.fromarray(np.ascontiguousarray(stored)).save(stream, format="PNG")
    return target


def _decoded(path: PathLike) -> npt.NDArray[np.float32]:
    """(C, H, W) with 1 to 4 channels, 0 to 255."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode in ("I;16", "I;16B", "I;16L", "I"):
                return np.asarray(picture, dtype=np.float32)[np.newaxis] / np.float32(SIXTEEN_BIT_STEP)
            picture = picture.convert(_plain_mode(picture))
            pixels = np.asarray(picture, dtype=np.float32)
    except Exception as error:  # Pillow's decoders raise many types on damaged bytes; all mean the same here
        raise VolumeError("PICTURE_UNREADABLE", f"not a readable PNG or JPEG ({error}).", path=path) from error
    return pixels[np.newaxis] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _plain_mode(picture: Image.Image) -> str:
    transparent = "transparency" in picture.info
    if picture.mode == "P":
        return "RGBA" if transparent else "RGB"
    if picture.mode in ("1", "L"):
        return "LA" if transparent else "L"
    return picture.mode if picture.mode in ("LA", "RGBA") else "RGBA" if transparent else "RGB"


def _opaque(pixels: npt.NDArray[np.float32], path: PathLike) -> npt.NDArray[np.float32]:
    if pixels.shape[0] in (1, 3):
        return pixels
    if (pixels[-1] != 255).any():
        raise VolumeError("PICTURE_CHANNELS", "the picture is partly transparent.", path=path, hint="Flatten it first.")
    return pixels[:-1]


def _named(channels: int) -> str:
    return "a grey picture (1 channel)" if channels == 1 else f"a colour picture ({channels} channels)"
