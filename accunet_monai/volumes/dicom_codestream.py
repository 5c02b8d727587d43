"""What a compressed frame itself says of its size, read from its first bytes before a decoder allocates by them.

And whether a JPEG frame's header is sound, because a decoder may not survive one that is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_J2K_START = b"\xff\x4f\xff\x51"  # SOC and SIZ (ISO/IEC 15444-1 Annex A)
_SIZ_BYTES = 41  # up to the first component's precision
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})  # baseline, extended, progressive, lossless; JPEG-LS
_HUFFMAN_TABLES, _SCAN = 0xC4, 0xDA
_FIRST_MARKER = 0xC0  # below are reserved ones
_STANDALONE_MARKERS = frozenset(range(0xD0, 0xDA))  # restarts, start and end: none has a place in the header
_NOTES = frozenset({*range(0xE0, 0xF0), 0xFE})  # application data, comments


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


def plain_jpeg(frame: bytes) -> bytes:
    """A JPEG frame with a sound header and an end, without application data and comments.

    GDCM ends the whole process at a damaged header and at a JFIF version that it does not know, and waits for ever for
    an end that is not there. Nothing that is left out bears on grey values.

    Raises:
        ValueError: when the segments do not follow one another up to the scan, the scan names components or tables
            that are not there, or the end is missing.
    """
    kept, components, tables = [_JPEG_START], set[int](), set[int]()
    for marker, body, end in _jpeg_segments(frame):
        if marker not in _NOTES:
            kept.append(bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body)
        if marker in _FRAME_MARKERS:
            components |= set(body[6::3])
        elif marker == _HUFFMAN_TABLES:
            tables |= _table_numbers(body)
        elif marker == _SCAN:
            _check_scan(body, components, tables)
            if _JPEG_END not in frame[end:]:  # within coded values no FF is followed by D9
                raise ValueError("it has no end")
            return b"".join(kept) + frame[end:]
    raise ValueError("its header is not whole")


def _check_scan(body: bytes, components: set[int], tables: set[int]) -> None:
    pairs = list(zip(body[1:-3:2], body[2:-3:2], strict=False))
    if not pairs or len(body) != 4 + 2 * body[0] or body[0] != len(components):
        raise ValueError("its scan has other components than its header")
    if any(name not in components or selector >> 4 not in tables for name, selector in pairs):
        raise ValueError("its scan names components or tables that are not there")


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, content, where it ends) of each segment up to the scan's header; stops where the bytes are none."""
    position = 2
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = _big_endian(frame, position + 2)
        start, position = position + 4, position + 2 + length
        if marker < _FIRST_MARKER or marker in _STANDALONE_MARKERS or length < 2 or position > len(frame):
            return
        yield marker, frame[start:position], position
        if marker == _SCAN:
            return


def _table_numbers(body: bytes) -> set[int]:
    """Numbers of the tables for DC or lossless coding in a segment of Huffman tables (ISO/IEC 10918-1 B.2.4.2)."""
    numbers = set()
    while len(body) >= 17:
        count = sum(body[1:17])
        if body[0] >> 4 == 0 and len(body) >= 17 + count:
            numbers.add(body[0])
        body = body[17 + count :]
    return numbers


def _jpeg_size(frame: bytes) -> CodestreamSize | None:
    for marker, body, _ in _jpeg_segments(frame):
        if marker in _FRAME_MARKERS and len(body) >= 6:
            return CodestreamSize(_big_endian(body, 1), _big_endian(body, 3), body[5], body[0])
    return None


def _jpeg2000_size(frame: bytes) -> CodestreamSize | None:
    if len(frame) < _SIZ_BYTES + 2:
        return None
    right, bottom, left, top = (_big_endian(frame, 8 + 4 * n, 4) for n in range(4))
    precision = frame[42]
    return CodestreamSize(bottom - top, right - left, _big_endian(frame, 40), (precision & 0x7F) + 1, precision > 127)


def _big_endian(frame: bytes, position: int, size: int = 2) -> int:
    return int.from_bytes(frame[position : position + size], "big")
