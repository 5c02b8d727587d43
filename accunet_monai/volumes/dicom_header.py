"""One DICOM file's header: read once, without its pixels, values taken from the raw bytes.

pydicom finds the elements; the few values needed here are converted from their bytes, which costs a tenth of building
pydicom's own value types and never warns. Elements that are absent, empty or not what their type promises read as
None or empty: whether that matters is for the caller to judge.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import read_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_refusals import refusal_of

MAX_INFLATED_BYTES = 1 << 29
"""A deflated file may inflate to this much: 1000 frames of 512×512 at 16 bits. Larger objects come uncompressed or
with compressed pixel data, and a few kilobytes of zeros must not fill the memory."""

MAX_ELEMENT_BYTES = 1 << 28
"""A header element longer than this is not read. Functional groups of 10 000 frames take a tenth of it."""

_PRIVATE = {  # name: (tag, value representation), with the block that all real files use
    "SiemensBValue": (0x0019100C, "IS"),
    "SiemensTileCount": (0x0019100A, "US"),
    "SiemensCreator0019": (0x00190010, "LO"),
    "SiemensCreator0029": (0x00290010, "LO"),
    "SiemensCsaImageHeader": (0x00291010, "OB"),
    "GeBValue": (0x00431039, "IS"),
    "GeCreator0043": (0x00430010, "LO"),
    "UihCreator0065": (0x00650010, "LO"),
    "UihBValue": (0x00651009, "FD"),
    "UihTileCount": (0x00651050, "DS"),
    "UihFrameSequence": (0x00651051, "SQ"),
}
_TOP_LEVEL = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SeriesDescription SeriesNumber InstanceNumber
    ImageType FrameOfReferenceUID Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated
    BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit PixelSpacing SliceThickness
    SpacingBetweenSlices ImagePositionPatient ImageOrientationPatient RescaleSlope RescaleIntercept RescaleType
    ModalityLUTSequence Units EchoTime EchoNumbers InversionTime FlipAngle RepetitionTime TemporalPositionIdentifier
    TemporalPositionIndex NumberOfTemporalPositions TriggerTime NominalCardiacTriggerDelayTime AcquisitionNumber
    AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate ContentTime FrameReferenceTime
    DiffusionBValue DiffusionGradientOrientation ComplexImageComponent ConvolutionKernel KVP
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ExtendedOffsetTable ExtendedOffsetTableLengths
    """.split()  # noqa: SIM905
_PIXEL_ELEMENTS = {0x7FE00008: "float", 0x7FE00009: "double", 0x7FE00010: "integer"}
_BEFORE_PIXELS = (0, 1, 2)  # of group 7FE0: its length and the two offset tables
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FD": "d", "FL": "f", "US or SS": "H"}
_LONG_TEXT_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT", "SV", "UV"})


class _Tags(dict[str, tuple[int, str]]):
    """Keyword → (tag, value representation), looked up once."""

    def __missing__(self, name: str) -> tuple[int, str]:
        tag = tag_for_keyword(name)
        if tag is None:
            raise KeyError(name)
        self[name] = int(tag), dictionary_VR(tag)
        return self[name]


_TAGS = _Tags(_PRIVATE)
_WANTED = [_TAGS[name][0] for name in (*_PRIVATE, *_TOP_LEVEL)]
_META_WANTED = [0x00020000, 0x00020002, 0x00020003, 0x00020010]


class Values:
    """The elements of a dataset or sequence item by keyword (or by a name of ``_PRIVATE``)."""

    __slots__ = ("_elements", "_encoding")

    def __init__(self, elements: Mapping[int, DataElement | RawDataElement], encoding: Any = None) -> None:
        self._elements = elements
        self._encoding = encoding

    def __contains__(self, name: str) -> bool:
        return _TAGS[name][0] in self._elements

    def raw(self, name: str) -> bytes:
        """The element's bytes as stored; empty where it is absent."""
        element = self._elements.get(_TAGS[name][0])
        value = element.value if isinstance(element, RawDataElement) else None
        return value if isinstance(value, bytes) else b""

    def texts(self, name: str) -> tuple[str, ...]:
        """Its values as text without padding; of numbers in binary form, their shortest notation."""
        tag, known_vr = _TAGS[name]
        element = self._elements.get(tag)
        if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
            return ()
        vr = element.VR if element.VR and element.VR != "UN" else known_vr
        if vr in _BINARY:
            return tuple(f"{value:.10g}" for value in _unpacked(element, _BINARY[vr]))
        text = element.value.decode("latin-1").strip(" \0")
        return tuple(part.strip(" \0") for part in text.split("\\")) if text else ()

    def text(self, name: str) -> str:
        """All values as one text, parted by backslashes as in the file; empty where there are none."""
        return "\\".join(self.texts(name))

    def title(self, name: str) -> str:
        """As :meth:`text`, in the file's character set."""
        return _decoded(self.raw(name), self._encoding)

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """Exactly ``count`` finite numbers, else None."""
        texts = self.texts(name)
        if len(texts) != count:
            return None
        try:
            values = tuple(float(text) for text in texts)
        except ValueError:
            return None
        return values if all(math.isfinite(value) for value in values) else None

    def number(self, name: str) -> float | None:
        """The one finite number, else None."""
        values = self.numbers(name, 1)
        return None if values is None else values[0]

    def whole(self, name: str) -> int | None:
        """The one whole number, else None."""
        value = self.number(name)
        return int(value) if value is not None and value == int(value) else None

    def items(self, name: str) -> tuple[Values, ...]:
        """The items of a sequence; none where it is absent."""
        element = self._elements.get(_TAGS[name][0])
        if element is None:
            return ()
        if isinstance(element, RawDataElement):
            element = _converted(element, self._encoding)
        if element.VR != "SQ" or not element.value:
            return ()
        return tuple(Values(_by_tag(item), self._encoding) for item in element.value)

    def item(self, name: str) -> Values:
        """The first item of a sequence, or one without elements."""
        return next(iter(self.items(name)), _NOTHING)


_NOTHING = Values({})


@dataclass(frozen=True, slots=True)
class PixelElement:
    """Where the pixel data lies.

    Args:
        kind: ``integer``, ``float`` or ``double``.
        vr: its value representation.
        offset: of its first byte in the stream.
        length: in bytes, None where it is undefined (encapsulated).
        end: the stream's size.
        stream_start: where in the file a deflated stream begins; 0 where the stream is the file.
    """

    kind: str
    vr: str
    offset: int
    length: int | None
    end: int = 0
    stream_start: int = 0


@dataclass(frozen=True)
class Header:
    """What is known of a file without its pixels."""

    path: Path
    values: Values
    meta: Values
    transfer_syntax: str
    pixels: PixelElement | None

    @cached_property
    def sop_class_uid(self) -> str:
        """Of the dataset, or of the file meta header where that is empty (anonymisers empty it)."""
        return self.values.text("SOPClassUID") or self.meta.text("MediaStorageSOPClassUID")

    @cached_property
    def sop_instance_uid(self) -> str:
        """Likewise."""
        return self.values.text("SOPInstanceUID") or self.meta.text("MediaStorageSOPInstanceUID")


class _Bounded(BufferedReader):
    """A file that is asked for more than it holds does not make room for all of it first."""

    def __init__(self, raw: FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < self._size else self._size)


def read_header(path: Path) -> Header:
    """Reads a file's header and where its pixel data lies.

    Raises:
        SeriesError: ``NOT_DICOM`` for any other kind of file, ``DICOM_UNREADABLE`` for a damaged one,
            ``PIXEL_TOO_LARGE`` for a deflated one that inflates beyond ``MAX_INFLATED_BYTES``.
    """
    try:
        with _Bounded(FileIO(path)) as stream:
            return _read_header(path, stream)
    except SeriesError:
        raise
    except Exception as error:  # pydicom raises many types on damaged bytes; all mean the same here
        reason = f"the file cannot be read ({type(error).__name__}: {error})"
        raise refusal_of("DICOM_UNREADABLE", reason, path, [path.name]) from error


def inflated(data: bytes, limit: int, path: Path) -> bytes:
    """A deflated dataset's bytes (PS3.5 A.5), never more than ``limit``.

    Raises:
        SeriesError: ``PIXEL_TOO_LARGE`` or ``DICOM_UNREADABLE``.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        result = inflater.decompress(data, limit)
    except zlib.error as error:
        raise refusal_of("DICOM_UNREADABLE", f"the deflated data is damaged ({error})", path, [path.name]) from error
    if inflater.unconsumed_tail:
        raise refusal_of("PIXEL_TOO_LARGE", f"the deflated data holds more than {limit} bytes", path, [path.name])
    return result  # a stream that ends too early gives what there is; the pixel data's size is checked against it


def _read_header(path: Path, stream: BinaryIO) -> Header:
    start = _start_of_dicom(path, stream)
    stream.seek(start)
    meta, first_after_meta = _read_meta(stream)
    syntax = meta.text("TransferSyntaxUID")
    source: BinaryIO = stream
    stream.seek(first_after_meta)
    deflated = syntax == DeflatedExplicitVRLittleEndian
    if deflated:
        source = BytesIO(inflated(stream.read(), MAX_INFLATED_BYTES, path))
    implicit, little = _encoding_of(syntax, source)
    values, pixels, end = _read_values(source, implicit, little)
    size = source.seek(0, 2)
    if end > size:
        raise refusal_of("DICOM_UNREADABLE", "the file ends within its header", path, [path.name])
    if pixels is not None:
        pixels = replace(pixels, end=size, stream_start=first_after_meta if deflated else 0)
    if not syntax:
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return Header(path, values, meta, syntax, pixels)


def _start_of_dicom(path: Path, stream: BinaryIO) -> int:
    """132 after preamble and mark; 0 for a bare dataset, which starts with group 0002 or 0008."""
    first = stream.read(132)
    if first[128:] == b"DICM":
        return 132
    if len(first) == 132 and first[:2] in (b"\2\0", b"\x08\0") and first[2:4] < b"\x1a\1":
        return 0
    found = "it is empty" if not first else "it does not have DICOM's mark"
    raise refusal_of("NOT_DICOM", f"this is not a DICOM file: {found}", path)


def _read_meta(stream: BinaryIO) -> tuple[Values, int]:
    """The file meta header (PS3.10 section 7.1) and where the dataset starts."""
    start = stream.tell()
    ds = read_dataset(stream, False, True, stop_when=_after_meta, specific_tags=_META_WANTED)
    end = stream.tell()
    meta = Values(_by_tag(ds))
    length = meta.raw("FileMetaInformationGroupLength")
    if len(length) == 4:  # tells more surely than parsing where a deflated stream begins
        declared = start + 12 + int.from_bytes(length, "little")
        if meta.text("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            end = declared
    return meta, end


def _after_meta(tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _encoding_of(syntax: str, source: BinaryIO) -> tuple[bool, bool]:
    """Whether values have no explicit VR, and whether they are little endian."""
    if syntax:
        return syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    start = source.tell()
    first = source.read(6)
    source.seek(start)
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    return not explicit, not (explicit and first[0] == 0)


def _read_values(source: BinaryIO, implicit: bool, little: bool) -> tuple[Values, PixelElement | None, int]:
    found: list[PixelElement] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag >> 16 < 0x7FE0 or tag & 0xFFFF in _BEFORE_PIXELS:  # plain integers: comparing tags costs ten times more
            return False
        kind = _PIXEL_ELEMENTS.get(tag)
        if kind and not found:
            found.append(PixelElement(kind, vr or "OW", source.tell(), None if length == 0xFFFFFFFF else length))
        return True

    ds = read_dataset(
        source,
        implicit,
        little,
        stop_when=at_pixels,
        defer_size=MAX_ELEMENT_BYTES,
        specific_tags=_WANTED,
    )
    elements = _by_tag(ds)
    for element in elements.values():
        if not isinstance(element, RawDataElement) or element.length in (0, 0xFFFFFFFF):
            continue
        if len(element.value or b"") != element.length:
            raise ValueError(f"element {element.tag} has {len(element.value or b'')} of {element.length} bytes")
    charset = elements.get(0x00080005)
    texts = Values(elements).texts("SpecificCharacterSet") if charset else ()
    return Values(elements, texts), found[0] if found else None, source.tell()


def _by_tag(ds: Any) -> dict[int, DataElement | RawDataElement]:
    return {int(tag): element for tag, element in ds.items()}


def _unpacked(element: RawDataElement, letter: str) -> tuple[Any, ...]:
    value = element.value or b""
    size = struct.calcsize(letter)
    count = len(value) // size
    return struct.unpack(f"{'<' if element.is_little_endian else '>'}{count}{letter}", value[: count * size])


def _converted(element: RawDataElement, encoding: Any) -> DataElement:
    from pydicom.dataelem import convert_raw_data_element

    if element.VR in (None, "UN"):
        element = element._replace(VR="SQ")
    return convert_raw_data_element(element)


@lru_cache(maxsize=256)
def _decoded(value: bytes, charsets: tuple[str, ...] | None) -> str:
    try:
        encodings = convert_encodings(list(charsets) if charsets else None)
        return decode_bytes(value, encodings, set()).strip(" \0")
    except Exception:  # unknown character sets raise many types; a title is for people and never decides anything
        return value.decode("ascii", "replace").strip(" \0")
