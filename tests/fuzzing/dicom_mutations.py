"""One damage to a DICOM file: to its bytes, its elements, its sequences, its pixels, or what it promises."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.valuerep import STR_VR, VR

from tests.fuzzing.byte_mutations import BYTE_MUTATIONS, spliced
from tests.fuzzing.elements import ITEM, PIXEL_DATA, UNDEFINED, Element, Parts, parts_of

Mutation = Callable[[bytes, Random], bytes]

_VRS = (*(vr.encode() for vr in VR if len(vr) == 2), b"ZZ", b"??", b"\0\0")
_SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    RLELossless,
    UID("1.2.840.10008.1.2.99"),
    UID("1.2.840.10008.1.2.4.100"),
)
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "NumberOfFrames",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation",
    "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelData", "FloatPixelData",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "PlanePositionSequence",
    "PixelMeasuresSequence", "ModalityLUTSequence", "SpecificCharacterSet", "ExtendedOffsetTable",
)  # fmt: skip
_TAGS = tuple(int(Tag(keyword)) for keyword in _KEYWORDS)
_SIZES = tuple(int(Tag(keyword)) for keyword in ("Rows", "Columns"))
_NUMBERS = (
    b"", b" ", b"0", b"-0", b"1", b"-1", b"2", b"1e-30", b"1e30", b"1e308", b"1E400", b"-1e400", b"nan", b"inf",
    b"-inf", b"0x10", b"1,5", b"1.5.2", b"1_000", b"2147483648", b"-2147483649", b"99999999999999999999", b"\\",
    b"1\\2", b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0", b"1\\0\\0\\1\\0\\0", b"nan\\0\\0\\0\\1\\0", b"1e200\\0\\0",
    b"0\\0\\1e300", b"\xff\xfe", b"\0\0", b"1\0", "１２".encode(), b"9" * 400,
)  # fmt: skip
_TEXTS = (
    b"", b" ", b"\0", b"\\", b"\\\\\\", b"A" * 70, b"\xff\xfe\xfd", b"\x1b$B", b"../../../etc/passwd", b"ISO_IR 192",
    b"ISO 2022 IR 87", b"1.2.3", b"1.2.840.10008.5.1.4.1.1.2", b"1.2.840.10008.5.1.4.1.1.4.1", b"VFRAME", b"LOCALIZER",
    b"ORIGINAL\\PRIMARY\\MOSAIC", b"MONOCHROME1", b"PALETTE COLOR", b"20201399", b"250000.999999", b"x" * 5000,
)  # fmt: skip
_WHOLE = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    255,
    256,
    4095,
    32767,
    32768,
    65534,
    65535,
    2**31 - 1,
    2**32 - 1,
)
_LENGTHS = (
    0,
    1,
    2,
    4,
    7,
    8,
    16,
    254,
    255,
    65534,
    65535,
    2**24,
    2**28 + 2,
    2**31 - 2,
    2**31,
    0xFFFFFFF0,
    0xFFFFFFFE,
    UNDEFINED,
)
_FRAME_MARKERS = (b"\xff\xc3", b"\xff\xf7", b"\xff\xc1")
_SIZ = b"\xff\x4f\xff\x51"


def mutated(content: bytes, other: bytes, random: Random) -> bytes:
    """``content`` with one to four damages; ``other`` is a file of another kind that parts may come from."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        chosen = random.choices(_ALL, _WEIGHTS)[0]
        content = spliced(content, other, random) if chosen is spliced else chosen(content, random)  # type: ignore[operator]
    return content


def _of_elements(change: Callable[[Parts, list[Element], Random], bytes]) -> Mutation:
    """A damage to the dataset; bytes in which no elements can be found stay as they are."""

    def mutation(content: bytes, random: Random) -> bytes:
        parts = parts_of(content)
        elements = parts.elements
        return replace(parts, body=change(parts, elements, random)).content if elements else content

    return mutation


@_of_elements
def value_changed(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Another value of the same type, of the old length where it can be padded to it, else with its own."""
    element = _chosen(elements, random)
    value = _another_value(parts, element, random)
    old = element.end - element.value
    if len(value) < old and random.random() < 0.7:
        value = value.ljust(old, b" ")
    return _with_value(parts, element, value + b" " * (len(value) % 2))


@_of_elements
def value_exchanged(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """The value of another element."""
    element, donor = _chosen(elements, random), random.choice(elements)
    return _with_value(parts, element, parts.body[donor.value : donor.end][:70000])


@_of_elements
def value_flipped(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Some bits within one value."""
    element = _chosen(elements, random)
    body = bytearray(parts.body)
    for _ in range(random.randint(1, 4)):
        if element.end > element.value:
            body[random.randrange(element.value, element.end)] ^= 1 << random.randrange(8)
    return bytes(body)


@_of_elements
def length_lies(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Another number in a length field."""
    element = random.choice(elements)
    lies = (*_LENGTHS, element.length + 1, element.length + 2, element.length - 1, element.length - 2, len(parts.body))
    return _patched(parts, element.length_at, parts.number(random.choice(lies), element.length_size))


@_of_elements
def vr_changed(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Another value representation, sensible or not; only explicit ones are stored."""
    element = random.choice([element for element in elements if element.vr] or elements)
    return _patched(parts, element.start + 4, random.choice(_VRS)) if not parts.implicit else parts.body


@_of_elements
def tag_changed(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """An element under another tag: of those that matter, or next to its own."""
    element = random.choice(elements)
    tag = random.choice((*_TAGS, element.tag + 1, element.tag ^ 0x10000, 0xFFFEE00D, 0xFFFEE0DD, ITEM, 0))
    return _patched(parts, element.start, parts.number(tag >> 16, 2) + parts.number(tag, 2))


@_of_elements
def elements_swapped(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Two elements in each other's place."""
    first, second = sorted(random.choices(elements, k=2), key=lambda element: element.start)
    if first.end > second.start:
        return parts.body
    body = parts.body
    return (
        body[: first.start]
        + body[second.start : second.end]
        + body[first.end : second.start]
        + body[first.start : first.end]
        + body[second.end :]
    )


@_of_elements
def element_deleted(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """One element less."""
    element = _chosen(elements, random)
    return parts.body[: element.start] + parts.body[element.end :]


@_of_elements
def element_duplicated(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """One element twice or very often, in place or in the place of another."""
    element, place = random.choice(elements), random.choice(elements)
    where = random.choice((element.end, place.start))
    copies = parts.body[element.start : element.end][:5000] * random.choice((1, 1, 1, 2, 50))
    return parts.body[:where] + copies + parts.body[where:]


@_of_elements
def nesting_damaged(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """A sequence or item that does not end, ends early, loses its beginning, or becomes another thing."""
    nested = [element for element in elements if element.vr == "SQ" or element.tag >> 16 == 0xFFFE]
    if not nested:
        return parts.body
    element = random.choice(nested)
    if random.random() < 0.5:
        tag = random.choice((ITEM, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFEE0FF))
        return _patched(parts, element.start, parts.number(tag >> 16, 2) + parts.number(tag, 2))
    if random.random() < 0.5:
        return parts.body[: element.start] + parts.body[element.value :]
    return _patched(parts, element.length_at, parts.number(UNDEFINED, element.length_size))


@_of_elements
def nested_deeply(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Sequences within sequences, up to beyond any stack, sometimes inside those that the reader looks into."""
    element, depth = random.choice(elements), random.choice((5, 60, 400, 3000, 20000))
    sequence = random.choice((Tag("PerFrameFunctionalGroupsSequence"), Tag("ModalityLUTSequence"), Tag(0x0008, 0x1140)))
    tag = parts.number(sequence.group, 2) + parts.number(sequence.element, 2)
    start = tag + (b"" if parts.implicit else b"SQ\0\0") + b"\xff" * 4
    item = parts.number(0xFFFE, 2) + parts.number(0xE000, 2) + b"\xff" * 4
    return parts.body[: element.start] + (start + item) * depth + parts.body[element.start :]


@_of_elements
def grown(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """Rows, columns and frames that are far more than there is, told by the header and by code streams alike."""
    rows, columns = (random.choice((64, 4096, 8192, 16384, 40000, 65535)) for _ in range(2))
    body = bytearray(parts.body)
    for element in elements:
        if element.tag in _SIZES and element.end - element.value == 2:
            body[element.value : element.end] = parts.number(rows if element.tag == _SIZES[0] else columns, 2)
        if element.tag == int(Tag("NumberOfFrames")) and random.random() < 0.5:
            digits = random.choice((b"9", b"1", b"0", b"99999999"))
            body[element.value : element.end] = digits.ljust(element.end - element.value)[: element.end - element.value]
        if element.depth == 1 and element.tag == ITEM:
            _grow_stream(body, element, rows, columns)
    return bytes(body)


@_of_elements
def pixels_damaged(parts: Parts, elements: list[Element], random: Random) -> bytes:
    """The code streams' own headers, offset tables, or any bytes of the pixel data."""
    places = [element for element in elements if element.tag == PIXEL_DATA or (element.depth and element.tag == ITEM)]
    if not places:
        return parts.body
    element = random.choice(places)
    end = min(element.end, element.value + 80) if random.random() < 0.6 else element.end
    body = bytearray(parts.body)
    for _ in range(random.choice((1, 1, 2, 8))):
        if end > element.value:
            body[random.randrange(element.value, end)] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
    return bytes(body)


def syntax_changed(content: bytes, random: Random) -> bytes:
    """Another transfer syntax is named; the dataset stays."""
    for syntax in sorted(_SYNTAXES, key=len, reverse=True):
        old = _padded(syntax)
        where = content.find(old, 132, 600)
        if where > 0:
            new = _padded(random.choice(_SYNTAXES))
            length = struct.pack("<H", len(new))
            return content[: where - 2] + length + new + content[where + len(old) :]
    return content


def meta_damaged(content: bytes, random: Random) -> bytes:
    """Preamble, mark or file meta information: bytes of it, its length, or all of it gone."""
    if random.random() < 0.2:
        return content[random.choice((1, 128, 132, 144, 140 + random.randrange(300))) :]
    if random.random() < 0.5:
        return content[:140] + struct.pack("<I", random.choice((*_LENGTHS, 10, 150, 1000)) % 2**32) + content[144:]
    return b"".join((content[:128], BYTE_MUTATIONS[0](content[128:500], random), content[500:]))


def _chosen(elements: Sequence[Element], random: Random) -> Element:
    """Half of the time one that the reader looks at."""
    known = [element for element in elements if element.tag in _TAGS]
    return random.choice(known if known and random.random() < 0.6 else elements)


def _another_value(parts: Parts, element: Element, random: Random) -> bytes:
    if element.vr in ("DS", "IS"):
        return random.choice(_NUMBERS)
    if element.vr in STR_VR:
        return random.choice(_TEXTS)
    if element.vr in ("FD", "FL"):
        form = ("<" if parts.little else ">") + ("d" if element.vr == "FD" else "f")
        return struct.pack(form, random.choice((0.0, -1.0, 1e30, -1e30, float("inf"), float("nan"))))
    size = {"US": 2, "SS": 2, "UL": 4, "SL": 4}.get(element.vr, random.choice((1, 2, 3, 4, 8)))
    return parts.number(random.choice(_WHOLE), size) * random.choice((1, 1, 1, 2, 3))


def _with_value(parts: Parts, element: Element, value: bytes) -> bytes:
    length = parts.number(len(value), element.length_size)
    body = parts.body
    between = body[element.length_at + element.length_size : element.value]
    return body[: element.length_at] + length + between + value + body[element.end :]


def _patched(parts: Parts, where: int, new: bytes) -> bytes:
    return parts.body[:where] + new + parts.body[where + len(new) :]


def _grow_stream(body: bytearray, element: Element, rows: int, columns: int) -> None:
    stream = bytes(body[element.value : element.end])
    if stream.startswith(_SIZ):
        body[element.value + 8 : element.value + 16] = struct.pack(">II", columns, rows)
        body[element.value + 24 : element.value + 32] = struct.pack(">II", columns, rows)  # one tile
        return
    for marker in _FRAME_MARKERS:
        where = stream.find(marker, 0, 600)
        if where > 0:
            body[element.value + where + 5 : element.value + where + 9] = struct.pack(">HH", rows, columns)


def _padded(uid: UID) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


_STRUCTURAL: tuple[Mutation, ...] = (
    value_changed,
    value_exchanged,
    value_flipped,
    length_lies,
    vr_changed,
    tag_changed,
    elements_swapped,
    element_deleted,
    element_duplicated,
    nesting_damaged,
    nested_deeply,
    grown,
    pixels_damaged,
    syntax_changed,
    meta_damaged,
)
_ALL = (*_STRUCTURAL, *BYTE_MUTATIONS, spliced)
_WEIGHTS = [6 if mutation is value_changed else 2 for mutation in _STRUCTURAL] + [1] * (len(BYTE_MUTATIONS) + 1)
