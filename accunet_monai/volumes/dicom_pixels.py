"""Stored pixels of DICOM frames: sizes checked before anything is allocated, then read one frame at a time.

Uncompressed frames are read at their offset straight into a scratch plane; compressed ones are handed to a decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom import encaps, uid

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_decoders import DECODABLE, Coding, decode_frame
from accunet_monai.volumes.dicom_header import MAX_INFLATED_BYTES, Header, inflated
from accunet_monai.volumes.dicom_refusals import refusal_of

_NATIVE = frozenset({
    str(uid.ImplicitVRLittleEndian),
    str(uid.ExplicitVRLittleEndian),
    str(uid.ExplicitVRBigEndian),
    str(uid.DeflatedExplicitVRLittleEndian),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where and how an object's frames are stored (PS3.3 C.7.6.3). ``problem`` is (code, message) if unreadable.

    Args:
        padding: stored values from the first to the second mean that there is no pixel.
    """

    path: Path
    syntax: str
    kind: str
    vr: str
    offset: int
    length: int | None
    end: int
    stream_start: int
    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    samples: int
    photometric: str
    padding: tuple[int, int] | None

    @property
    def frame_bytes(self) -> int:
        """Of one frame, decoded."""
        return self.rows * self.columns * self.samples * (self.bits_allocated // 8)

    @property
    def native(self) -> bool:
        """Whether frames are stored uncompressed (though the whole dataset may be deflated)."""
        return self.syntax in _NATIVE

    @property
    def deflated(self) -> bool:
        """Whether the dataset is deflated as a whole."""
        return self.syntax == uid.DeflatedExplicitVRLittleEndian

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a stored value, in the file's byte order."""
        order = ">" if self.syntax == uid.ExplicitVRBigEndian else "<"
        return np.dtype(f"{order}{'i' if self.signed else 'u'}{self.bits_allocated // 8}")


def pixels_of(header: Header) -> Pixels | None:
    """The description of an object's pixels; None where the header has no image size at all."""
    values, element = header.values, header.pixels
    rows, columns = values.whole("Rows"), values.whole("Columns")
    if rows is None or columns is None:
        return None
    allocated = values.whole("BitsAllocated") or 0
    stored = values.whole("BitsStored") or 0
    high_bit = values.whole("HighBit")
    signed = values.whole("PixelRepresentation") == 1
    return Pixels(
        path=header.path,
        syntax=header.transfer_syntax,
        kind=element.kind if element else "",
        vr=element.vr if element else "",
        offset=element.offset if element else 0,
        length=element.length if element else 0,
        end=element.end if element else 0,
        stream_start=element.stream_start if element else 0,
        rows=rows,
        columns=columns,
        frames=1 if "NumberOfFrames" not in values else values.whole("NumberOfFrames") or 0,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=signed,
        samples=1 if "SamplesPerPixel" not in values else values.whole("SamplesPerPixel") or 0,
        photometric=values.text("PhotometricInterpretation"),
        padding=_padding(values.whole("PixelPaddingValue"), values.whole("PixelPaddingRangeLimit"), allocated, signed),
    )


def pixel_problem(pixels: Pixels, modality: str) -> tuple[str, str] | None:
    """Why these pixels cannot be read, as (code, message), from the header and the file's size alone."""
    if pixels.kind == "" or (pixels.length == 0 and pixels.native):
        return "PIXEL_MISSING", "there is no pixel data"
    if pixels.kind != "integer":
        return "PIXEL_TYPE", f"the pixels are {pixels.kind} precision floating point numbers, expected whole numbers"
    if pixels.samples != 1 or pixels.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = f"{pixels.photometric or 'no photometric interpretation'} with {pixels.samples} samples"
        return "PIXEL_TYPE", f"expected grey values, found {found} per pixel"
    if pixels.photometric == "MONOCHROME1" and modality == "CT":
        return "PIXEL_TYPE", "MONOCHROME1 contradicts Hounsfield units"
    if pixels.bits_allocated not in (8, 16, 32) or not 1 <= pixels.bits_stored <= pixels.bits_allocated:
        found = f"{pixels.bits_stored} bits stored of {pixels.bits_allocated} allocated"
        return "PIXEL_TYPE", f"expected 8, 16 or 32 bits, found {found}"
    if not pixels.bits_stored - 1 <= pixels.high_bit < pixels.bits_allocated:
        return "PIXEL_TYPE", f"the high bit {pixels.high_bit} contradicts {pixels.bits_stored} bits stored"
    if pixels.rows < 1 or pixels.columns < 1 or pixels.frames < 1:
        return "PIXEL_SIZE", f"the header declares {pixels.frames} frames of {pixels.rows}×{pixels.columns} pixels"
    if not pixels.native and pixels.syntax not in DECODABLE:
        return "PIXEL_SYNTAX", f"there is no decoder for the transfer syntax {uid.UID(pixels.syntax).name}"
    if pixels.bits_allocated == 8 and pixels.vr == "OW" and pixels.syntax == uid.ExplicitVRBigEndian:
        return "PIXEL_SYNTAX", "8-bit pixels in big endian words have their bytes swapped"
    return _length_problem(pixels)


def read_frames(pixels: Pixels, indices: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
    """The stored values of the frames ``indices`` (from 0, ascending), each (rows, columns) of integers.

    A frame is valid until the next one is asked for: the memory is used again.

    Raises:
        SeriesError: ``PIXEL_TRUNCATED``, ``PIXEL_SIZE``, ``PIXEL_DECODE`` or ``PIXEL_SYNTAX``.
    """
    try:
        with pixels.path.open("rb", buffering=0) as file:
            if pixels.native:
                stream: Any = BytesIO(_inflated_dataset(file, pixels)) if pixels.deflated else file
                yield from _native_frames(stream, pixels, indices)
            else:
                for frame in _encoded_frames(file, pixels, indices):
                    yield _decoded(frame, pixels)
    except OSError as error:
        raise _problem(pixels, "DICOM_UNREADABLE", f"the pixels cannot be read ({error})") from error


def stored_bytes(pixels: Pixels, index: int) -> bytes:
    """One frame's pixel data as it lies in the file, or in the deflated dataset.

    Raises:
        SeriesError: as :func:`read_frames`.
    """
    if pixels.native:
        return next(read_frames(pixels, [index])).tobytes()
    with pixels.path.open("rb") as file:
        return next(_encoded_frames(file, pixels, [index]))


def _encoded_frames(file: BinaryIO, pixels: Pixels, indices: Sequence[int]) -> Iterator[bytes]:
    """The compressed bytes of the frames ``indices`` (ascending), one after the other."""
    wanted = set(indices)
    try:
        file.seek(pixels.offset)
        encaps.parse_basic_offsets(file)
        fragments = encaps.parse_fragments(file)[0]
        if fragments < pixels.frames:
            found = f"there are {fragments} fragments for {pixels.frames} declared frames"
            raise _problem(pixels, "PIXEL_TRUNCATED", found)
        file.seek(pixels.offset)
        frames = encaps.generate_frames(file, number_of_frames=pixels.frames)
        for index, frame in enumerate(frames):
            if index in wanted:
                wanted.remove(index)
                yield frame
            if not wanted:
                return
    except (ValueError, EOFError, OSError, struct.error) as error:
        raise _problem(pixels, "PIXEL_DECODE", f"the encapsulated frames are damaged ({error})") from error
    raise _problem(pixels, "PIXEL_TRUNCATED", f"{len(wanted)} of {pixels.frames} declared frames are missing")


def _decoded(frame: bytes, pixels: Pixels) -> npt.NDArray[Any]:
    coding = Coding(
        pixels.syntax, pixels.rows, pixels.columns, pixels.bits_allocated, pixels.bits_stored, pixels.signed
    )
    try:
        plane = decode_frame(frame, coding)
    except SeriesError as error:
        raise _problem(pixels, error.code, error.message.rstrip(".")) from error
    return _sign_extended(plane, pixels) if pixels.signed else plane


def _native_frames(stream: BinaryIO, pixels: Pixels, indices: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
    raw = np.empty((pixels.rows, pixels.columns), pixels.dtype)
    view = raw.view(np.uint8)
    for index in indices:
        stream.seek(pixels.offset + index * pixels.frame_bytes)
        if stream.readinto(view) != pixels.frame_bytes:  # type: ignore[attr-defined]
            raise _problem(pixels, "PIXEL_TRUNCATED", f"the file ends within frame {index + 1}")
        yield raw


def native_values(raw: npt.NDArray[Any], pixels: Pixels) -> npt.NDArray[Any]:
    """Stored values without the bits beyond Bits Stored, which may hold overlays (PS3.5 8.1.1)."""
    if pixels.bits_stored == pixels.bits_allocated:
        return raw
    unsigned = raw.view(raw.dtype.str.replace("i", "u"))
    shift = pixels.high_bit + 1 - pixels.bits_stored
    masked: npt.NDArray[Any] = np.bitwise_and(unsigned >> shift, (1 << pixels.bits_stored) - 1)
    return _sign_extended(masked, pixels) if pixels.signed else masked


def _sign_extended(values: npt.NDArray[Any], pixels: Pixels) -> npt.NDArray[Any]:
    """Two's complement of Bits Stored bits."""
    wide = values.astype(np.int64 if pixels.bits_allocated > 16 else np.int32)
    sign = 1 << (pixels.bits_stored - 1)
    result: npt.NDArray[Any] = np.bitwise_xor(np.bitwise_and(wide, 2 * sign - 1), sign) - sign
    return result


def _length_problem(pixels: Pixels) -> tuple[str, str] | None:
    if not pixels.native:
        if pixels.length is not None:
            return "PIXEL_DECODE", "compressed pixel data must be encapsulated (of undefined length)"
        return None if pixels.offset < pixels.end else ("PIXEL_MISSING", "there is no pixel data")
    expected = pixels.frame_bytes * pixels.frames
    if pixels.length is None:
        return "PIXEL_SIZE", "uncompressed pixel data must have a length"
    there = min(pixels.length, pixels.end - pixels.offset)
    if there < expected:
        return "PIXEL_TRUNCATED", f"the pixel data has {there} of {expected} bytes"
    if pixels.length > expected + expected % 2:
        declared = f"{pixels.frames} frames of {pixels.rows}×{pixels.columns} at {pixels.bits_allocated} bits"
        return "PIXEL_SIZE", f"the pixel data has {pixels.length} bytes, {declared} are {expected}"
    return None


def _padding(value: int | None, limit: int | None, allocated: int, signed: bool) -> tuple[int, int] | None:
    if value is None or allocated not in (8, 16, 32):
        return None
    ends = [end % (1 << allocated) for end in (value, value if limit is None else limit)]
    if signed:
        ends = [end - (1 << allocated) if end >> (allocated - 1) else end for end in ends]
    return min(ends), max(ends)


def _inflated_dataset(file: BinaryIO, pixels: Pixels) -> bytes:
    file.seek(pixels.stream_start)
    return inflated(file.read(), MAX_INFLATED_BYTES, pixels.path)


def _problem(pixels: Pixels, code: str, message: str) -> SeriesError:
    return refusal_of(code, message, pixels.path, [pixels.path.name])
