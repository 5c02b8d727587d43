"""What a compressed frame itself says of its size, read from its first bytes before a decoder allocates by them."""

from __future__ import annotations

from dataclasses import dataclass

_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ (ISO/IEC 15444-1 Annex A)
_SIZ_BYTES = 41  # up to the first component's precision
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})  # baseline, extended, progressive, lossless; JPEG-LS
_STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})


@dataclass(frozen=True, slots=True)
class CodestreamSize:
    """Rows, columns, components, and bits of a sample."""

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False


def codestream_size(frame: bytes) -> CodestreamSize | None:
    """Size by the JPEG, JPEG-LS or JPEG 2000 header at the start of ``frame``; None if there is none."""
    if frame[:2] == _JPEG_START:
        return _jpeg_size(frame)
    start = frame[:512].find(_J2K_START)  # after the boxes, if someone stored a whole JP2 file
    return None if start < 0 else _jpeg2000_size(frame[start:])


def _jpeg_size(frame: bytes) -> CodestreamSize | None:
    position = 2
    while position + 9 < len(frame):
        if frame[position] != 0xFF:
            return None
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _STANDALONE_MARKERS:
            position += 2
        elif marker in _FRAME_MARKERS:
            rows, columns = _big_endian(frame, position + 5), _big_endian(frame, position + 7)
            return CodestreamSize(rows, columns, frame[position + 9], frame[position + 4])
        else:
            position += 2 + max(2, _big_endian(frame, position + 2))
    return None


def _jpeg2000_size(frame: bytes) -> CodestreamSize | None:
    if len(frame) < _SIZ_BYTES + 2:
        return None
    right, bottom, left, top = (_big_endian(frame, 8 + 4 * n, 4) for n in range(4))
    precision = frame[42]
    return CodestreamSize(bottom - top, right - left, _big_endian(frame, 40), (precision & 0x7F) + 1, precision > 127)


def _big_endian(frame: bytes, position: int, size: int = 2) -> int:
    return int.from_bytes(frame[position : position + size], "big")
