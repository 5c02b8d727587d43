"""The header of a NIfTI file: what it promises, and where it places the voxels. No voxel is read here.

**Placement.** The sform when its code is above 0, else the qform when its code is above 0, else the voxel sizes around
the centre (NIfTI-1 standard, "3D image orientation and location", methods 3, 2 and 1; so do nibabel, SPM and FSL). When
both codes are above 0, the two forms are compared, since other readers (ITK among them) may take the other one:

- with **one and the same code** both name the same space, and they must agree within ``FORM_TOLERANCE_VOXELS``;
- with **different codes** they name two spaces (say the scanner's and a template's) and may differ by an alignment, but
  not by more than ``MAX_ALIGNMENT_DEGREES`` between corresponding axes, which every mirrored pair exceeds.

What fails is refused (``NIFTI_FORMS``); the caller can say which form is right. What passes but differs is noted in
the provenance as ``forms_apart_mm``. Where the header declares metres or micrometres the affine is brought to
millimetres, which nibabel leaves to its caller.
"""

# mypy: untyped-calls-exclude=nibabel
from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import nibabel as nib
import numpy as np

from accunet_monai.errors import VolumeError
from accunet_monai.volumes.geometry import FloatArray, checked_affine, largest_shift_mm, spacing_of
from accunet_monai.volumes.volume import HEADER_GEOMETRY, Grid

Form = Literal["sform", "qform"]
"""One of the two placements that a NIfTI header can hold."""

FORM_TOLERANCE_VOXELS = 0.1
"""How far, in the smallest voxel edge, two forms of one space may place a corner voxel apart. Real writers agree within
1e-4 (float32 quaternions); conventions that differ, such as a voxel's centre or its corner, are half a voxel apart."""

MAX_ALIGNMENT_DEGREES = 45.0
"""How far an axis may turn between the scanner's space and the one it was aligned to. Registration turns a patient by
less; swapped axes are 90 degrees apart, and a mirrored pair has an axis that differs by 70 degrees or more."""

GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""Header fields that are copied as they are from an image to its label map, with ``pixdim`` and the unit."""

_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: metre, millimetre, micrometre; else taken as mm
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NiftiHeader:
    """What is needed to read one 3D volume of a NIfTI file.

    Attributes:
        grid: shape, placement and provenance.
        dtype: of the stored numbers, with their byte order.
        start: byte of the (uncompressed) file where the volume begins.
        size: number of bytes of the volume.
        end: number of bytes that the whole file must have; more than ``start + size`` when time points follow.
        scale: slope and intercept, or nothing to apply.
    """

    grid: Grid
    dtype: np.dtype[Any]
    start: int
    size: int
    end: int
    scale: tuple[float, float] | None


def parse_header(stream: BinaryIO, path: Path, time_point: int | None = None, form: Form | None = None) -> NiftiHeader:
    """Reads and checks the header at the stream's beginning.

    Raises:
        VolumeError: ``NIFTI_EMPTY``, ``NIFTI_UNREADABLE``, ``NIFTI_TRUNCATED``, ``NIFTI_FORMS``, ``VOLUME_NOT_3D``,
            ``VOLUME_TIME_POINT``, ``VOLUME_RGB``, ``VOLUME_COMPLEX`` or ``VOLUME_AFFINE``.
    """
    block = stream.read(_HEADER_BYTES)
    if not block:
        raise VolumeError("NIFTI_EMPTY", "the compressed file holds 0 bytes.", path=path)
    header, name = _nifti_header(block, path)
    shape, time_points = _shape(header, path)
    index = _checked_time_point(time_point, shape, time_points, path)
    dtype = _number_type(header, path)
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    offset = _offset(header, path)
    affine, placement = _placed(header, shape, form, path)
    provenance = {"path": os.fspath(path), "format": name, **placement, HEADER_GEOMETRY: _geometry(header)}
    if time_point is not None:
        provenance["time_point"] = index
    return NiftiHeader(
        grid=Grid(shape, affine, provenance),
        dtype=dtype,
        start=offset + index * size,
        size=size,
        end=offset + time_points * size,
        scale=_scale(header, path),
    )


def form_affine(header: nib.Nifti1Header, form: str) -> FloatArray:
    """Voxel → RAS mm by the form of that name ("sform", "qform"; else the voxel sizes), unchecked.

    Raises:
        Exception: nibabel raises several types for an impossible quaternion.
    """
    with np.errstate(all="ignore"):
        if form == "sform":
            affine = header.get_sform()
        else:
            affine = header.get_qform() if form == "qform" else header.get_base_affine()
        result = np.array(affine, dtype=np.float64)
        result[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return result


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


def _shape(header: nib.Nifti1Header, path: Path) -> tuple[tuple[int, int, int], int]:
    """The three spatial sizes and the number of volumes along the fourth axis."""
    rank = int(header["dim"][0])
    declared = tuple(int(size) for size in header["dim"][1 : rank + 1])
    if not 1 <= rank <= 7 or min(declared) < 0:
        raise VolumeError("NIFTI_UNREADABLE", f"the header declares the impossible shape {declared}.", path=path)
    if 0 in declared:
        raise VolumeError("NIFTI_EMPTY", f"the header declares no voxels: shape {declared}.", path=path)
    if len(declared) < 3 or any(size != 1 for size in declared[4:]):
        raise VolumeError(
            "VOLUME_NOT_3D",
            f"expected a 3D volume, found shape {declared}.",
            path=path,
            hint="Extract one 3D volume first.",
        )
    return (declared[0], declared[1], declared[2]), declared[3] if rank > 3 else 1


def _checked_time_point(asked: int | None, shape: tuple[int, int, int], time_points: int, path: Path) -> int:
    if asked is None and time_points > 1:
        raise VolumeError(
            "VOLUME_NOT_3D",
            f"expected a 3D volume, found shape {(*shape, time_points)}.",
            path=path,
            hint=f"Ask for one of its volumes by time_point=0 to {time_points - 1}, or extract one first.",
        )
    if asked is not None and not 0 <= asked < time_points:
        message = f"there is no time point {asked}; the file has {time_points}, counted from 0."
        raise VolumeError("VOLUME_TIME_POINT", message, path=path)
    return asked or 0


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


def _placed(
    header: nib.Nifti1Header, shape: tuple[int, int, int], asked: Form | None, path: Path
) -> tuple[FloatArray, dict[str, Any]]:
    """The affine with ``form`` and, where the two forms differ, ``forms_apart_mm`` for the provenance."""
    codes = {"sform": int(header["sform_code"]), "qform": int(header["qform_code"])}
    if asked is not None and codes[asked] <= 0:
        raise VolumeError("NIFTI_FORMS", f"the file has no {asked} (its code is {codes[asked]}).", path=path)
    used: str = asked or ("sform" if codes["sform"] > 0 else "qform" if codes["qform"] > 0 else "pixdim")
    try:
        affine = checked_affine(form_affine(header, used), path)
    except VolumeError:
        raise
    except Exception as error:  # an impossible quaternion raises several types in nibabel
        raise VolumeError("VOLUME_AFFINE", f"the orientation is damaged ({error}).", path=path) from error
    placement: dict[str, Any] = {"form": used}
    if min(codes.values()) > 0:
        apart, problem = _compared(header, shape, codes)
        if problem and asked is None:
            raise VolumeError(
                "NIFTI_FORMS",
                f"its sform and qform contradict each other: {problem}.",
                path=path,
                hint='Find out which one is right and read it with form="sform" or form="qform".',
            )
        if apart > FORM_TOLERANCE_VOXELS * min(spacing_of(affine)):
            placement["forms_apart_mm"] = apart
    return affine, placement


def _compared(header: nib.Nifti1Header, shape: tuple[int, int, int], codes: dict[str, int]) -> tuple[float, str]:
    """How far the two forms place a corner voxel apart in mm, and what is wrong with that, if anything."""
    try:
        sform, qform = (checked_affine(form_affine(header, form)) for form in ("sform", "qform"))
    except Exception as error:  # as above; the form that is not used may be damaged, too
        return np.inf, f"one of them is damaged ({getattr(error, 'message', error)})"
    apart = largest_shift_mm(sform, qform, shape)
    cosines = (sform[:3, :3] * qform[:3, :3]).sum(axis=0) / np.multiply(spacing_of(sform), spacing_of(qform))
    if float(cosines.min()) < np.cos(np.radians(MAX_ALIGNMENT_DEGREES)):
        degrees = float(np.degrees(np.arccos(np.clip(cosines.min(), -1.0, 1.0))))
        handedness = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3])
        mirrored = ", one is the other's mirror image" if handedness < 0 else ""
        return apart, f"an axis differs by {degrees:.0f} degrees{mirrored}"
    limit = FORM_TOLERANCE_VOXELS * min(spacing_of(sform))
    if codes["sform"] == codes["qform"] and apart > limit:
        return apart, f"both have code {codes['sform']}, and they place a corner voxel {apart:.3g} mm apart"
    return apart, ""


def _geometry(header: nib.Nifti1Header) -> dict[str, Any]:
    """The fields that decide the placement, as plain numbers."""
    return {
        **{name: header[name].tolist() for name in GEOMETRY_FIELDS},
        "pixdim": header["pixdim"][:4].tolist(),
        "space_unit": int(header["xyzt_units"]) & 7,
    }
