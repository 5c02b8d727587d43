"""Siemens mosaics and UIH grids: a whole volume tiled into one stored image, cut into its planes.

A mosaic has ceil(√N) rows and columns of tiles, filled row by row. Its ImagePositionPatient places a single image of
the mosaic's size around the first slice's centre, so the first slice's corner lies half the difference of the sizes
further in (nibabel, "Siemens mosaic format"). The planes follow one another along the private CSA header's
SliceNormalVector, which may oppose row × column. A UIH grid has only the rows it needs and lists each plane's position
in a private sequence (the vendor's table in dcm2niix, UIH/README).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from accunet_monai.volumes.dicom_header import Values

if TYPE_CHECKING:
    from accunet_monai.volumes.dicom_frames import Frame

NORMAL_TOLERANCE = 1e-3
"""How far a mosaic's slice normal may be from ± rows × columns: both come with at least four decimals."""


MAX_TILES = 4096
"""No scanner puts more slices into one image; a lying header must not make millions of tiles."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A plane's part of a stored frame: its first row and column and its size."""

    row: int
    column: int
    rows: int
    columns: int


def tiles_of(values: Values, frame: Frame) -> tuple[Frame, ...]:
    """The planes of a mosaic or grid; the frame itself if it is neither.

    What cannot be cut becomes one frame whose instance has a problem, ``GEOM_MOSAIC``: never a picture of tiles that
    passes for a slice.
    """
    kinds = frame.tags.get("ImageType", "").upper().split("\\")
    if "MOSAIC" in kinds:
        return _mosaic(values, frame)
    if any(kind.startswith("VFRAME") for kind in kinds) or (values.whole("UihTileCount") or 1) > 1:
        return _grid(values, frame)
    return (frame,)


def _mosaic(values: Values, frame: Frame) -> tuple[Frame, ...]:
    tags = _csa_tags(values)
    count = _first_whole(tags, "NumberOfImagesInMosaic") or values.whole("SiemensTileCount") or 0
    if count < 1:
        return _refused(frame, "neither NumberOfImagesInMosaic nor (0019,100A) says how many slices it has")
    across = math.ceil(math.sqrt(count))
    tiles = _tiles(frame, count, across, across)
    if tiles is None:
        return _refused(frame, f"{frame.rows}×{frame.columns} pixels do not hold {count} slices in equal tiles")
    if frame.position is None or frame.orientation is None or frame.spacing is None:
        return (frame,)
    normal = _signed_normal(tags, frame.orientation)
    if normal is None:
        return _refused(frame, "no CSA header says whether its slices ascend or descend")
    step = frame.slice_spacing or frame.thickness
    if not step or step <= 0:
        return _refused(frame, "it has neither SpacingBetweenSlices nor SliceThickness")
    first = _first_corner(frame, tiles[0])
    return tuple(
        replace(frame, tile=tile, position=tuple((first + k * step * normal).tolist())) for k, tile in enumerate(tiles)
    )


def _grid(values: Values, frame: Frame) -> tuple[Frame, ...]:
    items = values.items("UihFrameSequence")
    count = values.whole("UihTileCount")
    positions = [item.numbers("ImagePositionPatient", 3) for item in items]
    if count is None or count < 1 or len(items) != count or None in positions:
        return _refused(frame, f"{count} slices are declared, {len(positions)} places are listed")
    across = math.ceil(math.sqrt(count))
    tiles = _tiles(frame, count, across, math.ceil(count / across))
    if tiles is None:
        return _refused(frame, f"{frame.rows}×{frame.columns} pixels do not hold {count} slices in equal tiles")
    return tuple(
        replace(frame, tile=tile, position=position)  # type: ignore[arg-type]
        for tile, position in zip(tiles, positions, strict=True)
    )


def _tiles(frame: Frame, count: int, across: int, down: int) -> list[Tile] | None:
    """Tiles in order, row by row; None if they do not fill the image evenly."""
    rows, columns = frame.rows // down, frame.columns // across
    if rows * down != frame.rows or columns * across != frame.columns or not 0 < count <= MAX_TILES:
        return None
    return [Tile(k // across * rows, k % across * columns, rows, columns) for k in range(count)]


def _first_corner(frame: Frame, tile: Tile) -> Any:
    position, cosines, spacing = map(np.array, (frame.position, frame.orientation, frame.spacing))
    along_row = (frame.columns - tile.columns) / 2 * spacing[1] * cosines[:3]
    along_column = (frame.rows - tile.rows) / 2 * spacing[0] * cosines[3:]
    return position + along_row + along_column


def _signed_normal(tags: dict[str, Any], orientation: tuple[float, ...]) -> Any:
    """Row × column, turned to where the slices go; None if the CSA header does not say or contradicts."""
    stated = np.array(tags.get("SliceNormalVector", {}).get("items", []), dtype=object)
    try:
        vector = stated.astype(float)
    except (TypeError, ValueError):
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    for sign in (1.0, -1.0):
        if vector.shape == (3,) and np.abs(sign * normal - vector).max() <= NORMAL_TOLERANCE:
            return sign * normal
    return None


def _csa_tags(values: Values) -> dict[str, Any]:
    content = values.raw("SiemensCsaImageHeader")
    if not content or not values.text("SiemensCreator0029").startswith("SIEMENS CSA HEADER"):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM part experimental when it is imported
        from nibabel.nicom import csareader
    try:
        tags: dict[str, Any] = csareader.read(content)["tags"]
    except Exception:  # damaged private bytes raise many types; the mosaic is then refused for what is missing
        return {}
    return tags


def _first_whole(tags: dict[str, Any], name: str) -> int | None:
    items = tags.get(name, {}).get("items") or [None]
    return items[0] if isinstance(items[0], int) else None


def _refused(frame: Frame, why: str) -> tuple[Frame, ...]:
    problem = ("GEOM_MOSAIC", f"the image is a mosaic of slices that cannot be cut: {why}")
    return (replace(frame, instance=replace(frame.instance, problem=frame.instance.problem or problem)),)
