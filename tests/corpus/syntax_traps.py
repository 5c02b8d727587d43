"""Traps in how the pixels are encoded: transfer syntaxes, fragments, spoilt codestreams."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.corpus.classic import classic
from tests.corpus.encoding import (
    COMPRESSED_SYNTAXES,
    NATIVE_SYNTAXES,
    compressed_frames,
    encapsulated,
    named,
    to_bytes,
    uid,
    with_element,
    write,
)
from tests.corpus.enhanced import enhanced
from tests.corpus.trap import BOTH, Case, Made, trap

DCIODVFY_READS = {"implicit little endian", *COMPRESSED_SYNTAXES}
"""It does not inflate, and calls the retired big endian an error."""


def _syntax_trap(words: str, syntax: str) -> None:
    def build(case: Case) -> Made:
        stack = case.phantom()
        datasets = classic(stack) if case.form == "classic" else [enhanced(stack)]
        return Made(named([to_bytes(ds, syntax) for ds in datasets]), (stack,))

    build.__name__ = words
    trap(f"Transfer syntax: {words}.", forms=BOTH, valid=words in DCIODVFY_READS)(build)


for _words, _syntax in {**NATIVE_SYNTAXES, **COMPRESSED_SYNTAXES}.items():
    _syntax_trap(_words, _syntax)


def _signed_syntax_trap(words: str, syntax: str) -> None:
    def build(case: Case) -> Made:
        stack = case.phantom()
        datasets = classic(stack, signed=True, bits=16, intercept=0)
        return Made(named([to_bytes(ds, syntax) for ds in datasets]), (stack,))

    build.__name__ = f"signed {words}"
    trap(f"Signed pixels in {words}: the sign is easily lost in decoding.")(build)


for _words, _syntax in COMPRESSED_SYNTAXES.items():
    _signed_syntax_trap(_words, _syntax)


@trap("A series whose slices have three different transfer syntaxes, as after a partial re-compression.")
def mixed_transfer_syntaxes(case: Case) -> Made:
    stack = case.phantom()
    syntaxes = [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless]
    contents = [to_bytes(ds, syntaxes[k % 3]) for k, ds in enumerate(classic(stack))]
    return Made(named(contents), (stack,))


@trap("Each frame's codestream is split into three fragments.")
def fragments(case: Case) -> Made:
    stack = case.phantom()
    contents = [encapsulated(ds, JPEG2000Lossless, fragments=3) for ds in classic(stack)]
    return Made(named(contents), (stack,))


@trap("Two fragments a frame, with a basic offset table that says where frames begin.", forms=("enhanced",))
def fragments_with_basic_offset_table(case: Case) -> Made:
    stack = case.phantom()
    content = encapsulated(enhanced(stack), JPEG2000Lossless, fragments=2, offsets="basic")
    return Made({"enhanced.dcm": content}, (stack,))


@trap("Frames are found by the extended offset table.", forms=("enhanced",))
def extended_offset_table(case: Case) -> Made:
    stack = case.phantom()
    content = encapsulated(enhanced(stack), JPEGLSLossless, offsets="extended")
    return Made({"enhanced.dcm": content}, (stack,))


@trap(
    "Eight frames are declared and six are there.",
    "PIXEL_DECODE",
    "PIXEL_TRUNCATED",
    "PIXEL_SIZE",
    "PIXEL_MISSING",
    forms=("enhanced",),
)
def fewer_compressed_frames(case: Case) -> Made:
    return Made({"enhanced.dcm": encapsulated(enhanced(case.phantom()), RLELossless, keep=6)})


@trap("One codestream ends half-way.", "PIXEL_TRUNCATED", "PIXEL_DECODE", "PIXEL_SIZE")
def truncated_JPEG_2000(case: Case) -> Made:  # noqa: N802
    return _one_stream(case, JPEG2000Lossless, lambda stream: stream[: len(stream) // 2])


@trap("One codestream ends half-way.", "PIXEL_TRUNCATED", "PIXEL_DECODE", "PIXEL_SIZE")
def truncated_JPEG_LS(case: Case) -> Made:  # noqa: N802
    return _one_stream(case, JPEGLSLossless, lambda stream: stream[: len(stream) // 2])


@trap("One codestream ends half-way.", "PIXEL_TRUNCATED", "PIXEL_DECODE", "PIXEL_SIZE")
def truncated_JPEG_lossless(case: Case) -> Made:  # noqa: N802
    return _one_stream(case, JPEGLosslessSV1, lambda stream: stream[: len(stream) // 2])


@trap("One slice's run lengths end half-way.", "PIXEL_TRUNCATED", "PIXEL_DECODE", "PIXEL_SIZE")
def truncated_RLE(case: Case) -> Made:  # noqa: N802
    return _one_stream(case, RLELossless, lambda stream: stream[: len(stream) // 2])


@trap("One codestream is noise.", "PIXEL_DECODE", "PIXEL_TRUNCATED", "PIXEL_SIZE")
def noise_for_JPEG_2000(case: Case) -> Made:  # noqa: N802
    return _one_stream(case, JPEG2000Lossless, lambda stream: np.random.default_rng(8).bytes(len(stream)))


@trap("A codestream of 16 × 20 pixels behind Rows and Columns of 20 × 16.", "PIXEL_SIZE", "PIXEL_DECODE")
def codestream_of_other_size(case: Case) -> Made:
    datasets = classic(case.phantom())
    streams = [compressed_frames(ds, JPEG2000Lossless)[0] for ds in datasets]
    for ds in datasets:
        ds.Rows, ds.Columns = 20, 16
    contents = [_with_stream(ds, JPEG2000Lossless, stream) for ds, stream in zip(datasets, streams, strict=True)]
    return Made(named(contents))


@trap(
    "A JPEG 2000 codestream that says it is 60000 × 60000 behind Rows and Columns of 16 × 20.",
    *("PIXEL_SIZE", "PIXEL_DECODE", "PIXEL_TOO_LARGE", "PIXEL_TRUNCATED"),
)
def bomb_JPEG_2000(case: Case) -> Made:  # noqa: N802
    def grow(stream: bytes) -> bytes:
        size = (60000).to_bytes(4, "big")
        where = stream.index(b"\xff\x51") + 6  # SIZ marker: Xsiz, Ysiz, then offsets, then the tile's size
        return stream[:where] + size * 2 + stream[where + 8 : where + 16] + size * 2 + stream[where + 24 :]

    return _one_stream(case, JPEG2000Lossless, grow)


@trap("The syntax says RLE, the codestream is JPEG 2000.", "PIXEL_DECODE", "PIXEL_TRUNCATED", "PIXEL_SIZE")
def wrong_transfer_syntax(case: Case) -> Made:
    datasets = classic(case.phantom())
    contents = [_with_stream(ds, RLELossless, compressed_frames(ds, JPEG2000Lossless)[0]) for ds in datasets]
    return Made(named(contents))


@trap(
    "The file meta information says explicit VR, the dataset is implicit VR (a known archive bug).",
    "DICOM_UNREADABLE",
    "SERIES_NONE",
    or_right=True,
)
def meta_contradicts_dataset(case: Case) -> Made:
    stack = case.phantom()
    explicit, implicit = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0"
    contents = []
    for ds in classic(stack):
        content = to_bytes(ds, NATIVE_SYNTAXES["implicit little endian"])
        length = int.from_bytes(content[140:144], "little") + 2
        head = content[:140] + length.to_bytes(4, "little") + content[144:400]
        head = head.replace(b"UI\x12\0" + implicit, b"UI\x14\0" + explicit)
        contents.append(head + content[400:])
    return Made(named(contents), (stack,))


@trap("A video syntax.", "PIXEL_SYNTAX", "PIXEL_DECODE", forms=BOTH)
def video_transfer_syntax(case: Case) -> Made:
    return _foreign_syntax(case, MPEG2MPML)


@trap("A private transfer syntax.", "PIXEL_SYNTAX", "PIXEL_DECODE", "DICOM_UNREADABLE", "SERIES_NONE")
def private_transfer_syntax(case: Case) -> Made:
    return _foreign_syntax(case, uid("private syntax"))


def _foreign_syntax(case: Case, syntax: str) -> Made:
    stack = case.phantom()
    datasets = classic(stack) if case.form == "classic" else [enhanced(stack)]
    return Made(named([_with_stream(ds, syntax, b"\0\0\1\xb3" + bytes(200)) for ds in datasets]))


def _with_stream(ds: Dataset, syntax: str, stream: bytes) -> bytes:
    ds = with_element(ds, "PixelData", "OB", encapsulate([stream]))
    ds["PixelData"].is_undefined_length = True
    return write(ds, syntax)


def _one_stream(case: Case, syntax: str, spoil: Callable[[bytes], bytes]) -> Made:
    datasets = classic(case.phantom())
    contents = [to_bytes(ds, syntax) for ds in datasets]
    contents[3] = _with_stream(datasets[3], syntax, spoil(compressed_frames(datasets[3], syntax)[0]))
    return Made(named(contents), offenders=(datasets[3].SOPInstanceUID,))
