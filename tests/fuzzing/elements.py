"""Where the elements of a DICOM file lie, byte by byte, also of one that is damaged: what was found until it breaks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.datadict import DicomDictionary
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
ITEM = 0xFFFEE000
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_DELIMITERS = (0xFFFEE00D, 0xFFFEE0DD)
_DEEPEST = 30


@dataclass(frozen=True, slots=True)
class Element:
    """Offsets in the dataset: of the tag, of the length field (of 2 or 4 bytes), of the value, of what comes next.

    ``vr`` is empty in items, and the dictionary's in implicit files. ``depth`` counts the sequences and items around.
    """

    tag: int
    vr: str
    start: int
    length_at: int
    length_size: int
    length: int
    value: int
    end: int
    depth: int


@dataclass(frozen=True)
class Parts:
    """A file as ``head`` (preamble, mark, file meta information) and ``body`` (the dataset, inflated)."""

    head: bytes
    body: bytes
    implicit: bool
    little: bool
    deflated: bool

    @property
    def content(self) -> bytes:
        """The file again."""
        if not self.deflated:
            return self.head + self.body
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return self.head + packer.compress(self.body) + packer.flush()

    @property
    def elements(self) -> list[Element]:
        """All that can be found, nested ones after the sequence that holds them."""
        return list(_walk(self, 0, len(self.body), 0))

    def number(self, value: int, size: int) -> bytes:
        """In the body's byte order."""
        return (value % (1 << 8 * size)).to_bytes(size, "little" if self.little else "big")


def parts_of(content: bytes) -> Parts:
    """Of a file with preamble and file meta information; of any other bytes a dataset of the default encoding."""
    if content[128:132] != b"DICM" or len(content) < 144:
        return Parts(b"", content, implicit=False, little=True, deflated=False)
    end = min(len(content), 144 + int.from_bytes(content[140:144], "little"))
    head, body = content[:end], content[end:]
    deflated = DeflatedExplicitVRLittleEndian.encode() in head
    if deflated:
        try:
            body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, 1 << 20)
        except zlib.error:
            deflated = False
    implicit = f"{ImplicitVRLittleEndian}\0".encode() in head
    return Parts(head, body, implicit, ExplicitVRBigEndian.encode() not in head, deflated)


def _walk(parts: Parts, position: int, end: int, depth: int) -> Iterator[Element]:
    """Stops where the bytes make no sense any more."""
    while position + 8 <= end and depth < _DEEPEST:
        element = _element_at(parts, position, depth)
        if element is None:
            return
        yield element
        position = element.end
        if element.tag in _DELIMITERS:
            depth = max(0, depth - 1)
        elif element.length == UNDEFINED and element.tag == PIXEL_DATA:
            yield from _fragments(parts, position, end, depth + 1)
            return
        elif element.length == UNDEFINED:
            depth += 1
        elif element.vr == "SQ" or element.tag == ITEM:
            yield from _walk(parts, element.value, element.end, depth + 1)


def _element_at(parts: Parts, position: int, depth: int) -> Element | None:
    body = parts.body
    group, number = struct.unpack_from("<HH" if parts.little else ">HH", body, position)
    tag = group << 16 | number
    vr, length_at, size = "", position + 4, 4
    if parts.implicit and group != 0xFFFE:
        vr = DicomDictionary.get(tag, ("UN",))[0]
    elif group != 0xFFFE:
        raw = body[position + 4 : position + 6]
        if not (raw.isalpha() and raw.isascii()):
            return None
        vr = raw.decode()
        length_at, size = (position + 8, 4) if raw in _LONG else (position + 6, 2)
    value = length_at + size
    if value > len(body):
        return None
    length = int.from_bytes(body[length_at:value], "little" if parts.little else "big")
    end = value if length == UNDEFINED or tag in _DELIMITERS else min(len(body), value + length)
    return Element(tag, vr, position, length_at, size, length, value, end, depth)


def _fragments(parts: Parts, position: int, end: int, depth: int) -> Iterator[Element]:
    while position + 8 <= end:
        element = _element_at(parts, position, depth)
        if element is None:
            return
        yield element
        if element.tag != ITEM:
            return
        position = element.end
