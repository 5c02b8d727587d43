"""What is damaged: small whole files of every kind that the readers know, each a folder of name → content."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from functools import cache, partial

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from tests.corpus import TRAPS
from tests.corpus.classic import classic
from tests.corpus.encoding import COMPRESSED_SYNTAXES, NATIVE_SYNTAXES, encapsulated, named, to_bytes
from tests.corpus.enhanced import enhanced, mosaic, vframe
from tests.corpus.phantom import Stack, phantom
from tests.volumes.made import LAS, oblique

Files = Mapping[str, bytes]
"""Relative path → content."""

ENTRIES = {"DICOMDIR": "DICOMDIR"}
"""What the reader is given instead of the folder."""


@cache
def dicom_subjects() -> dict[str, Files]:
    """Every form of DICOM images: classic ones in each transfer syntax, multi-frame ones, tiled ones, a DICOMDIR."""
    return {name: make() for name, make in _DICOM.items()}


@cache
def nifti_subjects() -> dict[str, Files]:
    """NIfTI-1 and -2, plain and compressed, in both byte orders, of all kinds of numbers and one to four axes."""
    return {name: {name: content} for name, content in _nifti().items()}


def _stack(**options: object) -> Stack:
    return phantom(**{"slices": 6, "rows": 32, "columns": 32, "levels": 3000, **options})  # type: ignore[arg-type]


def _classic(modality: str = "CT", syntax: UID = ExplicitVRLittleEndian, **options: object) -> Files:
    stack = _stack(lowest=-1024.0 if modality == "CT" else 0.0, **options)
    return named([to_bytes(ds, syntax) for ds in classic(stack, modality)])


def _enhanced(modality: str = "MR", syntax: UID = ExplicitVRLittleEndian) -> Files:
    stack = _stack(lowest=-1024.0 if modality == "CT" else 0.0)
    return {"enhanced": to_bytes(enhanced(stack, modality), syntax)}


def _of_undefined_lengths() -> Files:
    """Elements of its nested sequences can change in length without a contradiction."""
    return {"enhanced": to_bytes(_undefined(enhanced(_stack(lowest=0.0))))}


def _undefined(ds: Dataset) -> Dataset:
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _undefined(item)
    return ds


def _in_fragments(offsets: str) -> Files:
    syntax = COMPRESSED_SYNTAXES["JPEG-LS"]
    return {"enhanced": encapsulated(enhanced(_stack(lowest=0.0)), syntax, offsets=offsets)}


def _tiled(make: Callable[[Stack], Dataset]) -> Files:
    return {"tiled": to_bytes(make(_stack(lowest=0.0, slices=9, rows=16, columns=16)))}


def _dicomdir() -> Files:
    return next(trap.made.files for trap in TRAPS if trap.name == "dicomdir file" and trap.case.form == "classic")


_DICOM: dict[str, Callable[[], Files]] = {
    "CT": _classic,
    "MR": partial(_classic, "MR", orientation="double-oblique"),
    "PT": partial(_classic, "PT", slices=4),
    "tilted CT": partial(_classic, tilt_degrees=15.0),
    **{f"CT {words}": partial(_classic, "CT", syntax) for words, syntax in NATIVE_SYNTAXES.items()},
    **{f"CT {words}": partial(_classic, "CT", syntax) for words, syntax in COMPRESSED_SYNTAXES.items()},
    "enhanced CT": partial(_enhanced, "CT"),
    "enhanced MR": _of_undefined_lengths,
    "enhanced PT": partial(_enhanced, "PT"),
    "enhanced MR deflated": partial(_enhanced, "MR", NATIVE_SYNTAXES["deflated"]),
    "enhanced CT JPEG 2000": partial(_enhanced, "CT", COMPRESSED_SYNTAXES["JPEG 2000"]),
    "enhanced CT RLE": partial(_enhanced, "CT", COMPRESSED_SYNTAXES["RLE"]),
    "enhanced MR basic offsets": partial(_in_fragments, "basic"),
    "enhanced MR extended offsets": partial(_in_fragments, "extended"),
    "mosaic": partial(_tiled, mosaic),
    "vframe": partial(_tiled, vframe),
    "DICOMDIR": _dicomdir,
}


def _nifti() -> dict[str, bytes]:
    ramp = np.arange(16 * 14 * 12).reshape(16, 14, 12)
    colours = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    contents = {
        "int16.nii": _nifti1(ramp.astype(np.int16), oblique()),
        "scaled.nii": _nifti1(ramp.astype(np.int16), LAS, scale=(0.25, -3.5)),
        "float32.nii": _nifti1(ramp.astype(np.float32), oblique()),
        "float64.nii": _nifti1(ramp.astype(np.float64), LAS),
        "big_endian.nii": _nifti1(ramp.astype(np.int16), LAS, order=">"),
        "time_points.nii": _nifti1(np.stack([ramp, ramp + 1, ramp + 2], -1).astype(np.int16), LAS),
        "one_time_point.nii": _nifti1(ramp[..., None].astype(np.uint8), LAS),
        "picture.nii": _nifti1(ramp[:, :, 0].astype(np.int16), LAS),
        "complex.nii": _nifti1(ramp.astype(np.complex64), LAS),
        "colours.nii": _nifti1(colours, LAS),
        "second.nii": nib.Nifti2Image(ramp.astype(np.int32), oblique()).to_bytes(),
    }
    packed = {
        f"{name}.gz": gzip.compress(contents[name], mtime=0) for name in ("int16.nii", "scaled.nii", "second.nii")
    }
    return contents | packed


def _nifti1(
    array: np.ndarray, affine: np.ndarray, *, scale: tuple[float, float] | None = None, order: str = "<"
) -> bytes:
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(array.dtype)
    image = nib.Nifti1Image(array, affine, header)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    if scale:
        image.header.set_slope_inter(*scale)
    stream = io.BytesIO()
    image.to_stream(stream)
    return stream.getvalue()
