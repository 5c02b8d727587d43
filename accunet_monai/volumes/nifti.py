"""NIfTI-1 and NIfTI-2 single files (``.nii``, ``.nii.gz``): read without guessing, write label maps on their grid.

Which placement counts is said in :mod:`accunet_monai.volumes.nifti_header`. ``scl_slope`` and ``scl_inter`` are
applied. Compression is found by content, not by name.
"""

# mypy: untyped-calls-exclude=nibabel
from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.geometry import FloatArray
from accunet_monai.volumes.labels import smallest_unsigned
from accunet_monai.volumes.limits import DEFLATE_LIMIT, check_size
from accunet_monai.volumes.nifti_header import GEOMETRY_FIELDS, Form, NiftiHeader, form_affine, parse_header
from accunet_monai.volumes.volume import HEADER_GEOMETRY, Grid, Volume

PathLike = str | os.PathLike[str]

_CHUNK = 1 << 20
_NIFTI1_MAX_DIM = 32767  # dim[] is int16


def read_nifti(
    path: PathLike, *, time_point: int | None = None, form: Form | None = None, memory_map: bool = False
) -> tuple[npt.NDArray[Any], Grid]:
    """The numbers of a 3D NIfTI image, (X, Y, Z) in native byte order with scale factors applied, and their grid.

    The numbers are not checked; :func:`accunet_monai.volumes.read_volume` does that. Memory follows what the file
    holds, not what its header promises.

    Args:
        path: a NIfTI file.
        time_point: which volume of a 4D file; one alone needs no choice.
        form: the placement to take when the header's two contradict each other.
        memory_map: map the voxels of an uncompressed file in place of reading them, where they are stored as they are
            wanted (no scale factors, native byte order). The file must not change as long as the array is in use.

    Raises:
        VolumeError: with the path, ``FILE_MISSING``, ``NIFTI_EMPTY``, ``NIFTI_UNREADABLE``, ``NIFTI_TRUNCATED``,
            ``NIFTI_FORMS``, ``VOLUME_NOT_3D``, ``VOLUME_TIME_POINT``, ``VOLUME_TOO_LARGE``, ``VOLUME_RGB``,
            ``VOLUME_COMPLEX`` or ``VOLUME_AFFINE``.
    """
    source = Path(path)
    with _opened(source) as (stream, largest_size):
        header = parse_header(stream, source, time_point, form)
        if header.end > largest_size:
            raise _truncated(source, header.end, f"at most {largest_size}")
        check_size(header.grid.shape, source)
        if memory_map and isinstance(stream, io.BufferedReader):  # the file itself, not what is unpacked from it
            flat: npt.NDArray[Any] = np.memmap(
                source, header.dtype, "r", offset=header.start, shape=(header.size // header.dtype.itemsize,)
            )
        else:
            flat = np.frombuffer(_read_part(stream, header, source), dtype=header.dtype)
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    grid = Grid(header.grid.shape, header.grid.affine_ras, {**header.grid.provenance, "sha256": digest})
    return _scaled(flat.reshape(grid.shape, order="F"), header.scale), grid


def read_nifti_grid(path: PathLike, *, time_point: int | None = None, form: Form | None = None) -> Grid:
    """Shape, placement and provenance of a NIfTI file from its header alone (no ``sha256``, no voxel is read).

    Raises:
        VolumeError: as :func:`read_nifti`, as far as the header shows it.
    """
    source = Path(path)
    with _opened(source) as (stream, _):
        return parse_header(stream, source, time_point, form).grid


def write_label_map(
    path: PathLike, label_map: npt.NDArray[Any], like: Volume | Grid, description: str = "", *, overwrite: bool = True
) -> Path:
    """Writes a label map on exactly the grid of ``like``, as the smallest unsigned integer type that holds it.

    When ``like`` came from a NIfTI file its sform and qform, their codes and its unit are written unchanged, so every
    reader places the label map as it places the image. Otherwise the affine goes into the sform and, where it has no
    shear, into the qform (code 1, scanner). The same input gives the same bytes. Nothing unfinished is ever visible.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; the folder is made when missing.
        label_map: (X, Y, Z) integers from 0 or booleans.
        like: the volume or grid that the label map belongs to.
        description: for the header's ``descrip`` (ASCII, cut at 79 characters).
        overwrite: whether an existing file may be replaced.

    Raises:
        VolumeError: ``LABEL_GRID``, ``LABEL_NOT_INTEGER``, ``NIFTI_NAME`` or ``FILE_EXISTS``.
    """
    target = _checked_target(path, label_map.shape, like, "the label map", overwrite)
    labels = smallest_unsigned(label_map, target)
    header = _header(labels, like, description)
    header.set_intent("label")
    header.set_slope_inter(1.0, 0.0)
    header["cal_max"] = float(labels.max())
    return _write(target, labels, header)


def write_share_map(
    path: PathLike, shares: npt.NDArray[Any], like: Volume | Grid, description: str = "", *, overwrite: bool = True
) -> Path:
    """Writes a map of shares of 0 to 1, such as an uncertainty, on exactly the grid of ``like``.

    A share is stored as a byte with the scale factor 1/255, which readers apply: a quarter of what float32 would take,
    and off by 0.002 at most. Everything else is as of :func:`write_label_map`.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; the folder is made when missing.
        shares: (X, Y, Z) of 0 to 1.
        like: the volume or grid that the map belongs to.
        description: for the header's ``descrip``.
        overwrite: whether an existing file may be replaced.

    Raises:
        VolumeError: ``LABEL_GRID``, ``SHARE_RANGE``, ``NIFTI_NAME`` or ``FILE_EXISTS``.
    """
    target = _checked_target(path, shares.shape, like, "the map", overwrite)
    if not (float(shares.min()) >= 0 and float(shares.max()) <= 1):
        raise VolumeError("SHARE_RANGE", "shares are numbers of 0 to 1.", path=target)
    stored = np.rint(shares * np.float32(255)).astype(np.uint8)
    header = _header(stored, like, description)
    header.set_slope_inter(1 / 255, 0.0)
    header["cal_max"] = 1.0
    return _write(target, stored, header)


def _checked_target(path: PathLike, shape: tuple[int, ...], like: Volume | Grid, what: str, overwrite: bool) -> Path:
    target = Path(path)
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise VolumeError("NIFTI_NAME", f"the name of {what} ends in .nii or .nii.gz.", path=target)
    if shape != like.shape:
        raise VolumeError(
            "LABEL_GRID",
            f"{what} has shape {shape}, its image {like.shape}.",
            path=target,
            hint=f"Bring {what} back to the image's own grid first.",
        )
    if not overwrite and target.exists():
        raise VolumeError("FILE_EXISTS", "the file exists and may not be replaced.", path=target)
    return target


def _write(target: Path, values: npt.NDArray[Any], header: nib.Nifti1Header) -> Path:
    image_class: Any = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(values, None, header)
    image.header.set_slope_inter(*header.get_slope_inter())  # nibabel forgets a header's own
    content: bytes = image.to_bytes()
    with atomic_output(target) as stream:
        if target.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as compressed:
                compressed.write(content)
        else:
            stream.write(content)
    return target


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The uncompressed stream and an upper bound of its length; damage met while reading becomes a VolumeError."""
    if not path.is_file():
        found = "it is not a file" if path.exists() else "there is no such file"
        raise VolumeError("FILE_MISSING", f"{found}.", path=path)
    try:
        size = path.stat().st_size
        if size == 0:
            raise VolumeError("NIFTI_EMPTY", "the file is empty (0 bytes).", path=path)
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                    yield cast(BinaryIO, stream), size * DEFLATE_LIMIT
            else:
                yield file, size
    except EOFError as error:
        raise VolumeError("NIFTI_TRUNCATED", "the gzip stream ends too early.", path=path) from error
    except (OSError, zlib.error) as error:
        raise VolumeError("NIFTI_UNREADABLE", f"the file cannot be read ({error}).", path=path) from error


def _read_part(stream: BinaryIO, header: NiftiHeader, path: Path) -> bytearray:
    """The volume's bytes, in steps; the stream is read to its end, which shows its length and verifies the checksum."""
    stream.seek(header.start)
    data = bytearray()
    while len(data) < header.size:
        part = stream.read(min(_CHUNK, header.size - len(data)))
        if not part:
            raise _truncated(path, header.end, str(stream.tell()))
        data += part
    while stream.read(_CHUNK):
        pass
    if stream.tell() < header.end:
        raise _truncated(path, header.end, str(stream.tell()))
    return data


def _truncated(path: Path, expected: int, found: str) -> VolumeError:
    return VolumeError(
        "NIFTI_TRUNCATED",
        f"the header promises {expected} bytes, the file holds {found}.",
        path=path,
        hint="Copy it again.",
    )


def _scaled(raw: npt.NDArray[Any], scale: tuple[float, float] | None) -> npt.NDArray[Any]:
    """Native byte order, scale factors applied in float64 (the only loss is the caller's later choice of type)."""
    if scale is None:
        wide = raw.dtype.kind == "f" and raw.dtype.itemsize > 8
        return raw.astype(np.float64 if wide else raw.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        result: npt.NDArray[Any] = raw.astype(np.float64) * scale[0] + scale[1]
    return result


def _header(stored: npt.NDArray[Any], like: Volume | Grid, description: str) -> nib.Nifti1Header:
    """The type of the numbers and the place of ``like``."""
    second = like.provenance.get("format") == "NIfTI-2" or max(like.shape) > _NIFTI1_MAX_DIM
    header = nib.Nifti2Header() if second else nib.Nifti1Header()
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    if not _copy_geometry(header, like):
        _encode_affine(header, like.affine_ras)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    return header


def _copy_geometry(header: nib.Nifti1Header, like: Volume | Grid) -> bool:
    """Copies the source header's fields; says whether they place the volume exactly as ``like`` does."""
    geometry: Mapping[str, Any] | None = like.provenance.get(HEADER_GEOMETRY)
    if geometry is None:
        return False
    for name in GEOMETRY_FIELDS:
        header[name] = geometry[name]
    header["pixdim"][:4] = geometry["pixdim"]
    header["xyzt_units"] = geometry["space_unit"]
    return np.array_equal(form_affine(header, like.provenance.get("form", "sform")), like.affine_ras)


def _encode_affine(header: nib.Nifti1Header, affine_ras: FloatArray) -> None:
    header.set_xyzt_units("mm")
    header.set_sform(affine_ras, code=1)
    try:
        header.set_qform(affine_ras, code=1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a quaternion cannot hold shear: the sform alone says it
        header.set_qform(affine_ras, code=0, strip_shears=True)
