"""MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``) through SimpleITK, with what ITK passes over checked.

ITK reads these formats well when they are whole and say where they lie. It is silent where they do not: a voxel size or
direction that is missing becomes 1 mm along LPS, another unit counts as mm, an intensity slope is not applied, damaged
compressed voxels become zeros, and a header may name any file of the machine as its voxels. So the header's text and
the length of its voxels are checked here first, and each of these is refused, as are several values per voxel.
"""

# mypy: untyped-calls-exclude=SimpleITK
from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.geometry import lps_from_ras
from accunet_monai.volumes.limits import check_size
from accunet_monai.volumes.volume import Grid

PathLike = str | os.PathLike[str]

ITK_ENDINGS = (".mha", ".mhd", ".nrrd", ".nhdr")
"""What names of MetaImage and NRRD files end in."""

_HEADER_LIMIT = 1 << 16  # bytes; these headers have some hundred
_CHUNK = 1 << 16  # of compressed bytes: at most 64 MiB when inflated
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS

_NRRD_SPACES = {
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"),
    *("lps", "ras", "las"),
}
"""The spaces of patients that ITK turns into LPS; it takes every other one for LPS."""

_PLACING: dict[str, tuple[tuple[str, ...], ...]] = {
    "MetaImage": (
        ("elementspacing", "elementsize"),
        ("transformmatrix", "rotation", "orientation"),
        ("offset", "position", "origin"),
    ),
    "NRRD": (("space",), ("space directions",), ("space origin",)),
}
"""Fields without which a file does not say where it lies; of those in one group any will do."""

_NEUTRAL: dict[str, tuple[str, ...]] = {
    "elementtointensityfunctionslope": ("1", "1.0"),
    "elementtointensityfunctionoffset": ("0", "0.0"),
    "distanceunits": ("mm",),
    "binarydata": ("true",),
    "headersize": ("0",),
    "byte skip": ("0",),
    "line skip": ("0",),
}
"""Fields that change the meaning of the voxels, with the only values that are read; NRRD names have their spaces."""


@dataclass(frozen=True)
class _Layout:
    """Where the voxels are: in ``data_file`` from byte ``start``, as they are or as one zlib or gzip stream."""

    format: str
    data_file: Path
    start: int
    compressed: bool


def read_itk(path: PathLike) -> tuple[npt.NDArray[Any], Grid]:
    """The numbers of a 3D MetaImage or NRRD file as stored, (X, Y, Z), and their grid.

    Raises:
        VolumeError: with the path, ``FILE_MISSING``, ``IMAGE_UNREADABLE``, ``IMAGE_TRUNCATED``, ``IMAGE_PLACEMENT``
            (the header does not say where the image lies, or in another unit or space), ``VOLUME_NOT_3D``,
            ``VOLUME_RGB``, ``VOLUME_COMPLEX``, ``VOLUME_TOO_LARGE`` or ``VOLUME_AFFINE``.
    """
    source = Path(path)
    layout = _layout(source)
    reader, grid = _information(source, layout)
    _check_voxels(source, layout, math.prod(grid.shape) * _item_size(reader))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(source, error) from error
    values: npt.NDArray[Any] = SimpleITK.GetArrayFromImage(image).T
    digest = hashlib.sha256()
    for file in itk_files(source):
        digest.update(file.read_bytes())
    return values, Grid(grid.shape, grid.affine_ras, {**grid.provenance, "sha256": digest.hexdigest()})


def itk_files(path: PathLike) -> tuple[Path, ...]:
    """The files that an image is made of: its header's, and the one with its voxels where they lie apart.

    Raises:
        VolumeError: as :func:`read_itk`, as far as the header's text shows it.
    """
    source = Path(path)
    return tuple(dict.fromkeys((source, _layout(source).data_file)))


def read_itk_grid(path: PathLike) -> Grid:
    """Shape, placement and provenance from the header alone (no ``sha256``, no voxel is read).

    Raises:
        VolumeError: as :func:`read_itk`, as far as the header shows it.
    """
    source = Path(path)
    return _information(source, _layout(source))[1]


def _information(path: Path, layout: _Layout) -> tuple[SimpleITK.ImageFileReader, Grid]:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    reader.SetImageIO("MetaImageIO" if layout.format == "MetaImage" else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    shape, components = tuple(reader.GetSize()), reader.GetNumberOfComponents()
    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise VolumeError("VOLUME_COMPLEX", f"the voxels are complex ({kind}), expected real numbers.", path=path)
    if components != 1:
        code = "VOLUME_RGB" if components in (3, 4) else "VOLUME_NOT_3D"
        message = f"each voxel has {components} values, expected one."
        raise VolumeError(code, message, path=path, hint="Extract one of them first.")
    if len(shape) != 3:
        raise VolumeError("VOLUME_NOT_3D", f"expected a 3D volume, found shape {shape}.", path=path)
    check_size(shape, path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    provenance = {"path": os.fspath(path), "format": layout.format}
    return reader, Grid((shape[0], shape[1], shape[2]), lps_from_ras(affine), provenance)


def _item_size(reader: SimpleITK.ImageFileReader) -> int:
    size: int = SimpleITK.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    return size


def _layout(path: Path) -> _Layout:
    """Reads the header's text and refuses what ITK would pass over."""
    if not path.is_file():
        found = "it is not a file" if path.exists() else "there is no such file"
        raise VolumeError("FILE_MISSING", f"{found}.", path=path)
    with path.open("rb") as file:
        block = file.read(_HEADER_LIMIT)
    name = "NRRD" if block.startswith(b"NRRD000") else "MetaImage"
    fields, start = _nrrd_fields(block, path) if name == "NRRD" else _meta_fields(block, path)
    _check_placing(name, fields, path)
    for field, known in _NEUTRAL.items():
        if field in fields and fields[field].lower() not in known:
            message = f"the header's {field!r} is {fields[field]!r}; only {known[0]!r} is read."
            raise VolumeError("IMAGE_UNREADABLE", message, path=path)
    if name == "NRRD":
        encoding, data = fields.get("encoding", ""), fields.get("data file", fields.get("datafile", ""))
        if encoding not in ("raw", "gzip", "gz"):
            message = f"the voxels are encoded as {encoding!r}; raw and gzip are read."
            raise VolumeError("IMAGE_UNREADABLE", message, path=path)
        compressed = encoding != "raw"
    else:
        data = fields["elementdatafile"]
        data = "" if data.lower() == "local" else data
        compressed = fields.get("compresseddata", "false").lower() == "true"
    return _Layout(name, _data_file(path, data), 0 if data else start, compressed)


def _meta_fields(block: bytes, path: Path) -> tuple[dict[str, str], int]:
    """The fields up to ``ElementDataFile``, and the byte that follows them."""
    fields: dict[str, str] = {}
    position = 0
    for line in block.splitlines(keepends=True):
        position += len(line)
        text = line.decode("latin-1").strip()
        separator = min((found for found in map(text.find, "=:") if found > 0), default=0)  # MetaIO takes both
        if not separator:
            break
        _add(fields, text[:separator], text[separator + 1 :], path)
        if "elementdatafile" in fields:
            return fields, position
    raise VolumeError("IMAGE_UNREADABLE", "the file does not start with a MetaImage header.", path=path)


def _nrrd_fields(block: bytes, path: Path) -> tuple[dict[str, str], int]:
    """The fields up to the empty line (or the end of a detached header), and the byte that follows them."""
    fields: dict[str, str] = {}
    position = 0
    for line in block.splitlines(keepends=True):
        position += len(line)
        text = line.decode("latin-1").strip()
        if not text:
            break
        key, colon, value = text.partition(":")
        if colon and not text.startswith("#") and not value.startswith("="):  # `key:=value` is for people
            _add(fields, key, value, path)
    return fields, position


def _add(fields: dict[str, str], key: str, value: str, path: Path) -> None:
    name = key.strip().lower()
    if name in fields:
        raise VolumeError("IMAGE_UNREADABLE", f"the header has the field {name!r} twice.", path=path)
    fields[name] = value.strip()


def _check_placing(name: str, fields: Mapping[str, str], path: Path) -> None:
    missing = [group[0] for group in _PLACING[name] if not any(fields.get(field) for field in group)]
    if missing:
        raise VolumeError(
            "IMAGE_PLACEMENT",
            f"the header does not say where the image lies: {', '.join(missing)} missing.",
            path=path,
            hint="Write it again with a tool that knows the image's placement.",
        )
    if name == "NRRD" and fields["space"].lower() not in _NRRD_SPACES:
        raise VolumeError("IMAGE_PLACEMENT", f"the space {fields['space']!r} is not one of a patient.", path=path)
    units = {unit.strip('"').lower() for unit in fields.get("space units", "").split()}
    if not units <= {"mm", ""}:
        raise VolumeError("IMAGE_PLACEMENT", f"the space units are {fields['space units']}, expected mm.", path=path)


def _data_file(path: Path, name: str) -> Path:
    """The file of the voxels: this one, or one beside it, never one elsewhere."""
    if not name:
        return path
    plain = name.removeprefix("./")
    sibling = path.parent / plain
    if Path(plain).name != plain or "%" in plain or plain.split()[0].upper() == "LIST":
        message = f"the voxels are in {name!r}; only one file beside the header is read."
        raise VolumeError("IMAGE_UNREADABLE", message, path=path)
    if not sibling.is_file():
        raise VolumeError("FILE_MISSING", f"the file of its voxels, {name!r}, is not beside it.", path=path)
    return sibling


def _check_voxels(path: Path, layout: _Layout, expected: int) -> None:
    """The voxels are all there and whole: nothing of their size is allocated before that is known."""
    with layout.data_file.open("rb") as file:
        file.seek(layout.start)
        found = (
            _inflated_size(file, expected, path)
            if layout.compressed
            else os.fstat(file.fileno()).st_size - layout.start
        )
    if found < expected:
        message = f"the header promises {expected} bytes of voxels, the file holds {found}."
        raise VolumeError("IMAGE_TRUNCATED", message, path=path, hint="Copy it again.")


def _inflated_size(file: Any, expected: int, path: Path) -> int:
    """The length of a zlib or gzip stream, whose checksum is verified; it is not followed beyond what is expected."""
    stream, found = zlib.decompressobj(_ZLIB_OR_GZIP), 0
    try:
        while not stream.eof and found <= expected:
            part = file.read(_CHUNK)
            if not part:
                break
            found += len(stream.decompress(part))
    except zlib.error as error:
        raise VolumeError("IMAGE_UNREADABLE", f"the compressed voxels are damaged ({error}).", path=path) from error
    return found if stream.eof else min(found, expected - 1)


def _unreadable(path: Path, error: RuntimeError) -> VolumeError:
    reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else "no reason given"
    return VolumeError("IMAGE_UNREADABLE", f"the file cannot be read ({reason}).", path=path)
