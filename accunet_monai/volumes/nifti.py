"""NIfTI-1 and NIfTI-2 single files (``.nii``, ``.nii.gz``): read without guessing, write label maps on their grid.

Placement is what nibabel decides: the sform when its code is above 0, else the qform when its code is above 0, else
the voxel sizes around the centre (NIfTI-1 standard, "3D image orientation and location", methods 3, 2 and 1). Where
the header declares metres or micrometres the affine is brought to millimetres, which nibabel leaves to its caller.
``scl_slope`` and ``scl_inter`` are applied. Compression is found by content, not by name.
"""

# mypy: untyped-calls-exclude=nibabel
from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.atomic import atomic_output
from accunet_monai.volumes.geometry import FloatArray, checked_affine
from accunet_monai.volumes.volume import HEADER_GEOMETRY, Grid, Volume

PathLike = str | os.PathLike[str]

LABEL_ROUNDING = 1e-4
"""How far a stored label may lie from a whole number: scale factors in NIfTI-1 are float32, so that 254 × (1/254) is
off by up to 1e-5; interpolated label maps have values far from whole numbers."""

DEFLATE_LIMIT = 1032
"""No deflate stream expands more than 1032-fold (zlib technical details), so a header that promises more is false."""

_CHUNK = 1 << 20
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: metre, millimetre, micrometre; else taken as mm
_NIFTI1_MAX_DIM = 32767  # dim[] is int16
_GEOMETRY_FIELDS = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_SROW_FIELDS = ("srow_x", "srow_y", "srow_z")
_logger = logging.getLogger(__name__)


def read_volume(path: PathLike, dtype: npt.DTypeLike = np.float32) -> Volume:
    """Reads a 3D NIfTI image with its scale factors applied.

    A 4D file with one time point counts as 3D. ``provenance`` has ``path``, ``sha256`` (of the file's bytes),
    ``format`` and the header's own geometry fields.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        dtype: floating-point type of the array.

    Raises:
        VolumeError: with the path, one of ``FILE_MISSING``, ``NIFTI_EMPTY``, ``NIFTI_UNREADABLE``,
            ``NIFTI_TRUNCATED``, ``VOLUME_NOT_3D``, ``VOLUME_RGB``, ``VOLUME_COMPLEX``, ``VOLUME_NONFINITE``,
            ``VOLUME_AFFINE``.
        TypeError: ``dtype`` is not floating point.
    """
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"dtype must be floating point, found {np.dtype(dtype)}; label maps: read_label_map")
    values, grid = _read(Path(path))
    with np.errstate(over="ignore"):  # too large for dtype becomes infinite, which Volume reports
        return Volume(values.astype(dtype, copy=False), grid.affine_ras, grid.provenance)


def read_label_map(path: PathLike) -> Volume:
    """Reads a label map: whole numbers from 0, as the smallest unsigned integer type that holds them.

    Files that store whole numbers as floating point or with scale factors are accepted.

    Raises:
        VolumeError: as :func:`read_volume`, and ``LABEL_NOT_INTEGER`` for fractions or negative values.
    """
    values, grid = _read(Path(path))
    checked = Volume(values, grid.affine_ras, grid.provenance).array
    if checked.dtype.kind == "f":
        rounded = np.rint(checked)
        distance = np.abs(checked - rounded)
        if float(distance.max()) > LABEL_ROUNDING or float(np.abs(rounded).max()) >= 2**32:
            worst = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
            raise VolumeError(
                "LABEL_NOT_INTEGER", f"labels are whole numbers, found {checked[worst]} at {worst}.", path=path
            )
        checked = rounded.astype(np.int64)
    return Volume(_smallest_unsigned(checked, path), grid.affine_ras, grid.provenance)


def read_grid(path: PathLike) -> Grid:
    """Shape, placement and provenance of a NIfTI file from its header alone (no ``sha256``, no voxel is read).

    Raises:
        VolumeError: as :func:`read_volume`, as far as the header shows it.
    """
    source = Path(path)
    with _opened(source) as (stream, _):
        return _parsed_header(stream, source).grid


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
    target = Path(path)
    if not target.name.lower().endswith((".nii", ".nii.gz")):
        raise VolumeError("NIFTI_NAME", "the name of a label map ends in .nii or .nii.gz.", path=target)
    if label_map.shape != like.shape:
        raise VolumeError(
            "LABEL_GRID",
            f"the label map has shape {label_map.shape}, its image {like.shape}.",
            path=target,
            hint="Bring the label map back to the image's own grid first.",
        )
    if not overwrite and target.exists():
        raise VolumeError("FILE_EXISTS", "the file exists and may not be replaced.", path=target)
    image = _label_image(_smallest_unsigned(label_map, target), like, description)
    with atomic_output(target) as stream:
        if target.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as compressed:
                compressed.write(image)
        else:
            stream.write(image)
    return target


@dataclass(frozen=True)
class _Header:
    """What is needed to read the voxels of a file."""

    grid: Grid
    dtype: np.dtype[Any]
    offset: int
    scale: tuple[float, float] | None

    @property
    def end(self) -> int:
        """Number of (uncompressed) bytes that the file must have."""
        x, y, z = self.grid.shape
        return self.offset + x * y * z * self.dtype.itemsize


def _read(path: Path) -> tuple[npt.NDArray[Any], Grid]:
    with _opened(path) as (stream, largest_size):
        header = _parsed_header(stream, path)
        if header.end > largest_size:
            raise _truncated(path, header.end, f"at most {largest_size}")
        data = _read_exactly(stream, header.end, path)
        while stream.read(_CHUNK):  # to the end, which verifies gzip's checksum
            pass
    raw = np.frombuffer(data, dtype=header.dtype, offset=header.offset).reshape(header.grid.shape, order="F")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    grid = Grid(header.grid.shape, header.grid.affine_ras, {**header.grid.provenance, "sha256": digest})
    return _scaled(raw, header.scale), grid


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


def _read_exactly(stream: BinaryIO, end: int, path: Path) -> bytearray:
    """The first ``end`` bytes, in steps, so that memory follows what the file holds and not what it promises."""
    stream.seek(0)
    data = bytearray()
    while len(data) < end:
        part = stream.read(min(_CHUNK, end - len(data)))
        if not part:
            raise _truncated(path, end, str(len(data)))
        data += part
    return data


def _truncated(path: Path, expected: int, found: str) -> VolumeError:
    return VolumeError(
        "NIFTI_TRUNCATED",
        f"the header promises {expected} bytes, the file holds {found}.",
        path=path,
        hint="Copy it again.",
    )


def _parsed_header(stream: BinaryIO, path: Path) -> _Header:
    block = stream.read(540)
    if not block:
        raise VolumeError("NIFTI_EMPTY", "the compressed file holds 0 bytes.", path=path)
    nifti, name = _nifti_header(block, path)
    dtype = _number_type(nifti, path)
    return _Header(
        grid=Grid(_shape(nifti, path), _affine(nifti, path), _provenance(nifti, name, path)),
        dtype=dtype,
        offset=_offset(nifti, path),
        scale=_scale(nifti, path),
    )


def _nifti_header(block: bytes, path: Path) -> tuple[nib.Nifti1Header, str]:
    size_field = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    second = 540 in size_field
    header_class: Any = nib.Nifti2Header if second else nib.Nifti1Header
    length, magic = (540, block[4:7]) if second else (348, block[344:347])
    if not size_field & {348, 540}:
        raise VolumeError("NIFTI_UNREADABLE", "the file does not start with a NIfTI header.", path=path)
    if len(block) < length:
        raise VolumeError("NIFTI_TRUNCATED", f"the header has {len(block)} of {length} bytes.", path=path)
    if magic in (b"ni1", b"ni2"):
        raise VolumeError(
            "NIFTI_UNREADABLE", "this is half of a .hdr/.img pair.", path=path, hint="Convert it to a single .nii file."
        )
    if magic not in (b"n+1", b"n+2"):
        raise VolumeError("NIFTI_UNREADABLE", f"the header lacks NIfTI's mark (found {magic!r}).", path=path)
    try:
        header = header_class(block[:length], check=False)
        header.check_fix(logger=_logger, error_level=40)
    except Exception as error:  # nibabel's checks raise many types on damaged bytes; all mean the same here
        raise VolumeError("NIFTI_UNREADABLE", f"the header is damaged ({error}).", path=path) from error
    return header, "NIfTI-2" if second else "NIfTI-1"


def _shape(header: nib.Nifti1Header, path: Path) -> tuple[int, int, int]:
    rank = int(header["dim"][0])
    declared = tuple(int(size) for size in header["dim"][1 : rank + 1])
    if not 1 <= rank <= 7 or min(declared) < 0:
        raise VolumeError("NIFTI_UNREADABLE", f"the header declares the impossible shape {declared}.", path=path)
    if 0 in declared:
        raise VolumeError("NIFTI_EMPTY", f"the header declares no voxels: shape {declared}.", path=path)
    if len(declared) < 3 or any(size != 1 for size in declared[3:]):
        raise VolumeError(
            "VOLUME_NOT_3D",
            f"expected a 3D volume, found shape {declared}.",
            path=path,
            hint="Extract one 3D volume first.",
        )
    return declared[0], declared[1], declared[2]


def _number_type(header: nib.Nifti1Header, path: Path) -> np.dtype[Any]:
    code = int(header["datatype"])
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except nib.spatialimages.HeaderDataError as error:
        raise VolumeError("NIFTI_UNREADABLE", f"the data type code {code} is not known.", path=path) from error
    if dtype.names is not None:
        raise VolumeError("VOLUME_RGB", f"the voxels are colours {dtype.names}, expected grey values.", path=path)
    if dtype.kind == "c":
        raise VolumeError("VOLUME_COMPLEX", f"the voxels are complex ({dtype}), expected real numbers.", path=path)
    if dtype.kind not in "iuf" or dtype.itemsize == 0:
        raise VolumeError("NIFTI_UNREADABLE", f"the data type code {code} is not of numbers.", path=path)
    return dtype


def _offset(header: nib.Nifti1Header, path: Path) -> int:
    value = float(header["vox_offset"])
    if not np.isfinite(value) or not 348 <= value < 2**62:
        raise VolumeError("NIFTI_UNREADABLE", f"the voxels cannot start at byte {value}.", path=path)
    return int(value)


def _scale(header: nib.Nifti1Header, path: Path) -> tuple[float, float] | None:
    try:
        slope, intercept = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError as error:
        raise VolumeError("NIFTI_UNREADABLE", f"the scale factors are damaged ({error}).", path=path) from error
    return None if slope is None or (slope, intercept) == (1.0, 0.0) else (float(slope), float(intercept or 0.0))


def _scaled(raw: npt.NDArray[Any], scale: tuple[float, float] | None) -> npt.NDArray[Any]:
    """Native byte order, scale factors applied in float64 (the only loss is the caller's later choice of type)."""
    if scale is None:
        wide = raw.dtype.kind == "f" and raw.dtype.itemsize > 8
        return raw.astype(np.float64 if wide else raw.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        result: npt.NDArray[Any] = raw.astype(np.float64) * scale[0] + scale[1]
    return result


def _affine(header: nib.Nifti1Header, path: Path) -> FloatArray:
    with np.errstate(all="ignore"):
        try:
            affine = np.array(header.get_best_affine(), dtype=np.float64)
        except Exception as error:  # an impossible quaternion raises several types in nibabel
            raise VolumeError("VOLUME_AFFINE", f"the orientation is damaged ({error}).", path=path) from error
        affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return checked_affine(affine, path)


def _provenance(header: nib.Nifti1Header, name: str, path: Path) -> dict[str, Any]:
    geometry: dict[str, Any] = {
        "qform_code": int(header["qform_code"]),
        "sform_code": int(header["sform_code"]),
        "space_unit": int(header["xyzt_units"]) & 7,
        "pixdim": [float(value) for value in header["pixdim"][:4]],
    }
    geometry |= {field: float(header[field]) for field in _GEOMETRY_FIELDS}
    geometry |= {field: [float(value) for value in header[field]] for field in _SROW_FIELDS}
    return {"path": os.fspath(path), "format": name, HEADER_GEOMETRY: geometry}


def _label_image(labels: npt.NDArray[Any], like: Volume | Grid, description: str) -> bytes:
    """The bytes of a NIfTI file."""
    second = like.provenance.get("format") == "NIfTI-2" or max(like.shape) > _NIFTI1_MAX_DIM
    header = nib.Nifti2Header() if second else nib.Nifti1Header()
    header.set_data_dtype(labels.dtype)
    header.set_data_shape(labels.shape)
    if not _copy_geometry(header, like):
        _encode_affine(header, like.affine_ras)
    header.set_intent("label")
    header.set_slope_inter(1.0, 0.0)
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["cal_max"] = float(labels.max())
    image_class: Any = nib.Nifti2Image if second else nib.Nifti1Image
    result: bytes = image_class(labels, None, header).to_bytes()
    return result


def _copy_geometry(header: nib.Nifti1Header, like: Volume | Grid) -> bool:
    """Copies the source header's fields; says whether they place the volume exactly as ``like`` does."""
    geometry: Mapping[str, Any] | None = like.provenance.get(HEADER_GEOMETRY)
    if geometry is None:
        return False
    for name in ("qform_code", "sform_code", *_GEOMETRY_FIELDS, *_SROW_FIELDS):
        header[name] = geometry[name]
    header["pixdim"][:4] = geometry["pixdim"]
    header["xyzt_units"] = geometry["space_unit"]
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    affine[:3] *= _MM_PER_UNIT.get(geometry["space_unit"], 1.0)
    return np.array_equal(affine, like.affine_ras)


def _encode_affine(header: nib.Nifti1Header, affine_ras: FloatArray) -> None:
    header.set_xyzt_units("mm")
    header.set_sform(affine_ras, code=1)
    try:
        header.set_qform(affine_ras, code=1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a quaternion cannot hold shear: the sform alone says it
        header.set_qform(affine_ras, code=0, strip_shears=True)


def _smallest_unsigned(labels: npt.NDArray[Any], path: PathLike) -> npt.NDArray[Any]:
    if labels.dtype.kind not in "biu":
        raise VolumeError("LABEL_NOT_INTEGER", f"labels are integers, found {labels.dtype}.", path=path)
    if labels.dtype.kind == "i" and int(labels.min()) < 0:
        raise VolumeError("LABEL_NOT_INTEGER", f"labels start at 0, found {int(labels.min())}.", path=path)
    highest = int(labels.max())
    return labels.astype(next(t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if highest <= np.iinfo(t).max))
