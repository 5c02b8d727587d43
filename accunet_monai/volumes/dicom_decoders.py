"""One compressed frame → its stored values, by one named decoder for each transfer syntax.

JPEG and JPEG 2000 by GDCM (a third faster than pylibjpeg-openjpeg), high-throughput JPEG 2000 by OpenJPEG, JPEG-LS by
CharLS, RLE by pylibjpeg-rle; never pylibjpeg-libjpeg, which is GPL. A frame's own header is held against the dataset's
rows and columns before a decoder allocates by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import encaps, uid

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_codestream import codestream_size, plain_jpeg

MAX_ENCODED_RATIO = 2
"""A compressed frame of more than this times its plain size (plus a kilobyte) is damaged: the worst that RLE and JPEG
do to noise is a few percent."""

JPEG_LS_END = b"\xff\xd9" + bytes(64)
"""Put behind every JPEG-LS frame: on a truncated one CharLS reads on beyond its buffer, for seconds."""

_JPEG = frozenset(map(str, (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)))
_JPEG_LS = frozenset(map(str, (uid.JPEGLSLossless, uid.JPEGLSNearLossless)))
_JPEG_2000 = frozenset(map(str, (uid.JPEG2000Lossless, uid.JPEG2000)))
_HTJ2K = frozenset(map(str, (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)))
DECODABLE = _JPEG | _JPEG_LS | _JPEG_2000 | _HTJ2K | {str(uid.RLELossless)}


@dataclass(frozen=True, slots=True)
class Coding:
    """What the dataset says of each of its compressed frames (grey values, one sample per pixel)."""

    syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool


def decode_frame(frame: bytes, coding: Coding) -> npt.NDArray[Any]:
    """Stored values (rows, columns), integers; signed ones may still lack the sign beyond Bits Stored.

    Raises:
        SeriesError: ``PIXEL_SIZE``, ``PIXEL_TYPE`` or ``PIXEL_DECODE``.
    """
    _check_size(frame, coding)
    try:
        return _decode(frame, coding).reshape(coding.rows, coding.columns)
    except Exception as error:  # every decoder has its own types; all mean that the frame is damaged
        raise SeriesError("PIXEL_DECODE", f"a frame cannot be decoded ({error}).") from error


def _check_size(frame: bytes, coding: Coding) -> None:
    plain = coding.rows * coding.columns * coding.bits_allocated // 8
    if len(frame) > MAX_ENCODED_RATIO * plain + 1024:
        raise SeriesError("PIXEL_SIZE", f"a compressed frame has {len(frame)} bytes, its pixels only {plain}.")
    if coding.syntax == uid.RLELossless:
        return  # its decoder is told the size and stops there
    size = codestream_size(frame)
    if size is None:
        raise SeriesError("PIXEL_DECODE", "a frame does not start as its transfer syntax says.")
    if (size.rows, size.columns, size.components) != (coding.rows, coding.columns, 1):
        found = f"a frame holds {size.rows}×{size.columns} pixels of {size.components} samples"
        raise SeriesError("PIXEL_SIZE", f"{found}, declared are {coding.rows}×{coding.columns} of 1.")
    if coding.syntax in _JPEG and coding.bits_allocated not in (8, 16):  # GDCM would end the whole process
        raise SeriesError("PIXEL_TYPE", f"{coding.bits_allocated} bits are allocated, in JPEG they are 8 or 16.")
    if size.precision > coding.bits_allocated:
        raise SeriesError("PIXEL_TYPE", f"a frame has {size.precision} bits, allocated are {coding.bits_allocated}.")


def _decode(frame: bytes, coding: Coding) -> npt.NDArray[Any]:
    if coding.syntax in _HTJ2K:
        return _openjpeg(frame, coding)
    if coding.syntax in _JPEG_LS:
        import jpeg_ls  # type: ignore[import-untyped]

        buffer, info = jpeg_ls.decode_pixel_data(frame + JPEG_LS_END)
        return np.frombuffer(buffer, "<u1" if info["bits_per_sample"] <= 8 else "<u2")
    if coding.syntax == uid.RLELossless:
        return _rle(frame, coding)
    return _gdcm(frame, coding)


def _rle(frame: bytes, coding: Coding) -> npt.NDArray[Any]:
    from rle.utils import decode_pixel_data

    size = {"rows": coding.rows, "columns": coding.columns, "bits_allocated": coding.bits_allocated}
    try:
        buffer = decode_pixel_data(frame, None, 2, **size)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the decoder's Rust code is no Exception
        raise ValueError(str(error)) from error
    return np.frombuffer(buffer, f"<u{coding.bits_allocated // 8}")


def _openjpeg(frame: bytes, coding: Coding) -> npt.NDArray[Any]:
    from openjpeg.utils import decode_pixel_data

    size = codestream_size(frame)
    width = next(width for width in (1, 2, 4) if size is None or size.precision <= 8 * width)
    values = np.frombuffer(decode_pixel_data(frame, version=2), f"<u{width}")
    if size is None or size.signed == coding.signed:
        return values.view(f"<i{width}") if coding.signed else values
    # The code stream and the dataset disagree on the sign: the bits count, as many as the code stream has (PS3.5 8.2.4)
    bits = values.astype(np.int64) & ((1 << size.precision) - 1)
    return bits - ((bits >> (size.precision - 1)) << size.precision) if coding.signed else bits


def _gdcm(frame: bytes, coding: Coding) -> npt.NDArray[Any]:
    from pydicom.pixels.decoders.base import get_decoder

    options: dict[str, Any] = {
        "number_of_frames": 1,
        "rows": coding.rows,
        "columns": coding.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": coding.bits_allocated,
        "bits_stored": coding.bits_stored,
        "pixel_representation": int(coding.signed),
        "pixel_keyword": "PixelData",
    }
    source = encaps.encapsulate([plain_jpeg(frame) if coding.syntax in _JPEG else frame])
    values, _ = get_decoder(coding.syntax).as_array(source, index=0, raw=True, decoding_plugin="gdcm", **options)
    return values
