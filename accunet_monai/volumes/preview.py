"""Pictures of segmentations for people: overlays of one slice, and contact sheets of a volume. Pillow only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from accunet_monai.volumes.atomic import atomic_output

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# Okabe & Ito, "Color Universal Design" (2008): told apart with every common colour vision; strongest on grey first.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
_SHADES = ((0, 0.0), (255, 0.4), (0, 0.4), (255, 0.65))  # towards white or black, and how far
REFERENCE_COLOUR: Colour = (255, 255, 255)
_BACKGROUND: Colour = (16, 18, 22)
_TEXT: Colour = (236, 238, 242)
_FAINT: Colour = (150, 156, 166)

_SHORT_SIDE = (168, 320)  # pixels of a tile's shorter side: at least readable, at most sensible on a screen
_LONG_SIDE = 480
_MARGIN, _GAP = 20, 8
_RIM = 0.35
_AXES = (("sagittal", "x", "AP", "SI"), ("coronal", "y", "RL", "SI"), ("axial", "z", "RL", "AP"))


def contact_sheet(
    image: npt.NDArray[Any],
    label_map: npt.NDArray[Any],
    path: str | os.PathLike[str],
    *,
    spacing: Sequence[float] | None = None,
    reference: npt.NDArray[Any] | None = None,
    axis: int = 2,
    columns: int = 6,
    title: str = "",
    slices: int | Sequence[int] | None = None,
    label_names: Mapping[int, str] | None = None,
) -> Path:
    """Writes a PNG with slices of a volume: label colours over grey, and the reference as a white outline.

    Axial and coronal slices are shown as radiologists see them (the patient's right on the left, anterior or superior
    up), sagittal ones with anterior on the left; letters at the tiles say so.

    Args:
        image: (X, Y, Z) grey values of any scale, in RAS (``Volume.reoriented("RAS")``).
        label_map: (X, Y, Z) integers alike, 0 is background.
        path: the PNG to write.
        spacing: mm per array axis, so that the picture has the patient's proportions; 1 mm when left out.
        reference: (X, Y, Z) labels of an expert, alike.
        axis: the array axis that is cut: 0 sagittal, 1 coronal, 2 axial.
        columns: tiles per row.
        title: first line.
        slices: how many slices, or which; by default up to two rows, spread over those that have labels.
        label_names: label → name for the legend.

    Raises:
        ValueError: shapes differ, are not 3D, or a slice does not exist.
    """
    for other_shape in [label_map.shape] + ([] if reference is None else [reference.shape]):
        if image.ndim != 3 or other_shape != image.shape:
            raise ValueError(f"expected 3D arrays of one shape, found {image.shape} and {other_shape}")
    indices = _chosen_slices(label_map, reference, axis, slices, columns)
    size = _tile_size(image.shape, [float(edge) for edge in spacing or (1.0, 1.0, 1.0)], axis)
    window = intensity_window(image)
    tiles = [
        (
            render_overlay(
                _shown(image, axis, index),
                _shown(label_map, axis, index),
                None if reference is None else _shown(reference, axis, index),
                window=window,
                size=size,
            ),
            index,
        )
        for index in indices
    ]
    entries = _legend_entries(label_map, reference, label_names or {})
    return _write_png(_laid_out(tiles, size, min(columns, len(tiles)), title, entries, axis), path)


def render_overlay(
    image: npt.NDArray[Any],
    label_map: npt.NDArray[Any],
    reference: npt.NDArray[Any] | None = None,
    *,
    alpha: float = 0.4,
    window: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
) -> Pixels:
    """One slice with its labels in colour and the reference as a white outline.

    Args:
        image: (H, W) grey of any scale, or (H, W, 3) colours of 0 to 255; row 0 is shown on top.
        label_map: (H, W) integers, 0 is background.
        reference: (H, W) integers or ``None``.
        alpha: opacity of the colours.
        window: grey values shown as black and white; by default :func:`intensity_window` of this slice.
        size: (height, width) of the result in pixels; by default that of ``image``.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = size or (image.shape[0], image.shape[1])
    canvas = _grey_to_rgb(image, window).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(canvas, dtype=np.float32).copy()
    labels = _nearest(label_map, height, width)
    line = max(1, round(min(height, width) / 160))
    border = _outline(labels, line)
    for label in _present(labels):
        colour = np.array(label_colour(label), dtype=np.float32)
        inside = labels == label
        pixels[inside] += alpha * (colour - pixels[inside])
        pixels[inside & border] = colour
    if reference is not None:
        expert = _nearest(reference, height, width)
        pixels[_outline(expert, 2 * line)] *= _RIM  # so that the white line shows on bright tissue
        pixels[_outline(expert, line)] = REFERENCE_COLOUR
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def label_colour(label: int) -> Colour:
    """Colour of a label from 1: seven that are easily told apart, then lighter and darker ones; repeated after 28."""
    colour = _PALETTE[(label - 1) % len(_PALETTE)]
    towards, amount = _SHADES[(label - 1) // len(_PALETTE) % len(_SHADES)]
    red, green, blue = (round(part + (towards - part) * amount) for part in colour)
    return red, green, blue


def intensity_window(image: npt.NDArray[Any]) -> tuple[float, float]:
    """Grey values to show as black and white: the 1st and the 99.5th percentile (single bright voxels do not count)."""
    low, high = np.percentile(np.asarray(image, dtype=np.float64), (1.0, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def _shown(array: npt.NDArray[Any], axis: int, index: int) -> npt.NDArray[Any]:
    """A slice of a RAS array with rows from superior (or anterior) down and columns from right (or anterior)."""
    result: npt.NDArray[Any] = np.take(array, index, axis=axis).T[::-1, ::-1]
    return result


def _chosen_slices(
    label_map: npt.NDArray[Any],
    reference: npt.NDArray[Any] | None,
    axis: int,
    slices: int | Sequence[int] | None,
    columns: int,
) -> list[int]:
    count = label_map.shape[axis]
    if slices is not None and not isinstance(slices, int):
        if not slices or min(slices) < 0 or max(slices) >= count:
            raise ValueError(f"slices must be some of 0 to {count - 1}, found {list(slices)}")
        return [int(index) for index in slices]
    wanted = slices or 2 * columns
    others = tuple(other for other in range(3) if other != axis)
    labelled = (label_map != 0).any(axis=others)
    if reference is not None:
        labelled |= (reference != 0).any(axis=others)
    candidates = np.flatnonzero(labelled) if labelled.any() else np.arange(count)
    chosen = min(wanted, len(candidates))
    # the middles of equal parts: the very ends of a structure show next to nothing
    return [int(candidates[int((part + 0.5) * len(candidates) / chosen)]) for part in range(chosen)]


def _tile_size(shape: Sequence[int], spacing: Sequence[float], axis: int) -> tuple[int, int]:
    """(height, width) in pixels, with square millimetres."""
    across, up = (other for other in range(3) if other != axis)
    width_mm, height_mm = shape[across] * spacing[across], shape[up] * spacing[up]
    voxels = min(width_mm, height_mm) / min(spacing[across], spacing[up])
    scale = min(max(voxels, _SHORT_SIDE[0]), _SHORT_SIDE[1]) / min(width_mm, height_mm)
    scale = min(scale, _LONG_SIDE / max(width_mm, height_mm))
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _grey_to_rgb(image: npt.NDArray[Any], window: tuple[float, float] | None) -> Image.Image:
    if image.ndim == 3:
        return Image.fromarray(np.clip(np.rint(np.asarray(image)), 0, 255).astype(np.uint8))
    low, high = window or intensity_window(image)
    grey = (np.asarray(image, dtype=np.float64) - low) / (high - low)
    return Image.fromarray((np.clip(grey, 0.0, 1.0) * 255).round().astype(np.uint8)).convert("RGB")


def _nearest(labels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    cols = (np.arange(width) + 0.5) * labels.shape[1] / width
    result: npt.NDArray[Any] = np.asarray(labels)[rows.astype(int)][:, cols.astype(int)]
    return result


def _outline(labels: npt.NDArray[Any], thickness: int) -> npt.NDArray[np.bool_]:
    """Foreground pixels that have another label within ``thickness`` pixels (above, below, left or right)."""
    padded = np.pad(labels, thickness, mode="edge")
    height, width = labels.shape
    border = np.zeros(labels.shape, dtype=bool)
    for step in range(1, thickness + 1):
        for down, right in ((step, 0), (-step, 0), (0, step), (0, -step)):
            rows = slice(thickness + down, thickness + down + height)
            border |= padded[rows, thickness + right : thickness + right + width] != labels
    result: npt.NDArray[np.bool_] = border & (labels != 0)
    return result


def _present(labels: npt.NDArray[Any]) -> list[int]:
    return [int(label) for label in np.unique(labels) if label > 0]


@dataclass(frozen=True)
class _Entry:
    """One line of the legend."""

    name: str
    colour: Colour
    outline: bool = False


def _legend_entries(
    label_map: npt.NDArray[Any], reference: npt.NDArray[Any] | None, names: Mapping[int, str]
) -> list[_Entry]:
    labels = set(_present(label_map)) | {label for label in names if label > 0}
    if reference is not None:
        labels |= set(_present(reference))
    entries = [_Entry(names.get(label, f"label {label}"), label_colour(label)) for label in sorted(labels)]
    if reference is not None:
        entries.append(_Entry("reference", REFERENCE_COLOUR, outline=True))
    return entries


def _laid_out(
    tiles: list[tuple[Pixels, int]],
    size: tuple[int, int],
    columns: int,
    title: str,
    entries: list[_Entry],
    axis: int,
) -> Image.Image:
    height, width = size
    large, small = _font(22), _font(15)
    plane = _AXES[axis][0]
    inner = max(columns * (width + _GAP) - _GAP, 320, round(large.getlength(title)))
    entry_places, legend_lines = _flow(entries, inner, small)
    top = _MARGIN + (34 if title else 0) + 24 * legend_lines + 12
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, top + rows * (height + _GAP) - _GAP + _MARGIN + 22), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN - 4), title, fill=_TEXT, font=large)
    for entry, (x, line) in zip(entries, entry_places, strict=True):
        _draw_entry(draw, entry, _MARGIN + x, top - 12 - 24 * (legend_lines - line), small)
    for number, (pixels, index) in enumerate(tiles):
        x = _MARGIN + (number % columns) * (width + _GAP)
        y = top + (number // columns) * (height + _GAP)
        sheet.paste(Image.fromarray(pixels), (x, y))
        _draw_marks(draw, (x, y, width, height), axis, index)
    note = f"{plane} slices" + (", patient's right on the left" if axis != 0 else ", anterior on the left")
    draw.text((_MARGIN, sheet.height - 12), note, fill=_FAINT, font=_font(13), anchor="ls")
    return sheet


def _flow(entries: list[_Entry], inner: int, font: ImageFont.FreeTypeFont) -> tuple[list[tuple[int, int]], int]:
    """(x, line) of each legend entry, and the number of lines."""
    places, x, line = [], 0, 0
    for entry in entries:
        width = 22 + round(font.getlength(entry.name)) + 22
        if x and x + width - 22 > inner:
            x, line = 0, line + 1
        places.append((x, line))
        x += width
    return places, line + 1 if entries else 0


def _draw_entry(draw: ImageDraw.ImageDraw, entry: _Entry, x: int, y: int, font: ImageFont.FreeTypeFont) -> None:
    box = (x, y + 2, x + 14, y + 16)
    if entry.outline:
        draw.rectangle(box, outline=entry.colour, width=2)
    else:
        draw.rectangle(box, fill=entry.colour)
    draw.text((x + 22, y + 9), entry.name, fill=_TEXT, font=font, anchor="lm")


def _draw_marks(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], axis: int, index: int) -> None:
    """The slice's number and the letters of the picture's sides, with a dark rim so that they read on any grey."""
    x, y, width, height = box
    _, letter, sides, ends = _AXES[axis]
    style: dict[str, Any] = {"font": _font(13), "stroke_width": 2, "stroke_fill": (0, 0, 0)}
    draw.text((x + 6, y + 5), f"{letter} {index}", fill=_TEXT, anchor="lt", **style)
    draw.text((x + 6, y + height // 2), sides[0], fill=_FAINT, anchor="lm", **style)
    draw.text((x + width - 6, y + height // 2), sides[1], fill=_FAINT, anchor="rm", **style)
    draw.text((x + width // 2, y + 5), ends[0], fill=_FAINT, anchor="mt", **style)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; its own wheels have it")
    return font


def _write_png(sheet: Image.Image, path: str | os.PathLike[str]) -> Path:
    with atomic_output(path) as stream:
        sheet.save(stream, format="PNG", compress_level=3)  # twice as quick as the usual 6 for 4 % larger files
    return Path(path)
