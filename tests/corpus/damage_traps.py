"""Traps in what became of the files: copies, damage and files that claim to be huge."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
)

from tests.corpus.classic import classic
from tests.corpus.encoding import change, named, to_bytes
from tests.corpus.enhanced import enhanced
from tests.corpus.file_traps import slice_contents
from tests.corpus.trap import BOTH, Case, Made, trap

MIB = 1 << 20


@trap("Every file is there twice, byte for byte, in another folder.", forms=BOTH)
def copies_of_all_files(case: Case) -> Made:
    stack = case.phantom()
    files = case.files(stack)
    return Made({f"{folder}/{name}": content for folder in "ab" for name, content in files.items()}, (stack,))


@trap("One file is there twice under another name.")
def copy_of_one_file(case: Case) -> Made:
    stack = case.phantom()
    contents = slice_contents(stack)
    return Made({**named(contents), "copy.dcm": contents[3]}, (stack,))


@trap(
    "The same SOPInstanceUID twice with different pixels: one of the two is wrong.",
    "GEOM_DUPLICATE",
    "SERIES_DUPLICATE",
)
def same_uid_other_pixels(case: Case) -> Made:
    stack = case.phantom()
    other = classic(case.phantom(seed=1))[3]
    return Made({**case.files(stack), "other.dcm": to_bytes(other)}, offenders=(other.SOPInstanceUID,))


@trap(
    "Two different slices carry the same SOPInstanceUID (a broken anonymiser). The positions are sound; a refusal is "
    "right as well.",
    "GEOM_DUPLICATE",
    "SERIES_DUPLICATE",
    "DICOM_UNREADABLE",
    or_right=True,
)
def same_uid_for_two_slices(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    datasets[5].SOPInstanceUID = datasets[2].SOPInstanceUID
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("Pixel data of one slice end half-way, as after a broken transfer.", "PIXEL_TRUNCATED", forms=BOTH)
def truncated_pixels(case: Case) -> Made:
    return _one_cut(case, lambda content: content[:-300])


@trap("The last two bytes are missing.", "PIXEL_TRUNCATED", forms=BOTH)
def last_bytes_missing(case: Case) -> Made:
    return _one_cut(case, lambda content: content[:-2])


@trap(
    "The file of one slice inside ends in its header, before any UID: whose it is cannot be known, but the gap shows.",
    *("DICOM_UNREADABLE", "GEOM_MISSING_SLICE", "PIXEL_MISSING", "PIXEL_TRUNCATED"),
)
def truncated_header(case: Case) -> Made:
    made = _one_cut(case, lambda content: content[:420])
    return Made(made.files)


@trap(
    "The file of the last slice ends in its header. That the series was longer cannot be known: to refuse or to report "
    "the file as skipped are both right.",
    *("DICOM_UNREADABLE", "PIXEL_MISSING", "PIXEL_TRUNCATED"),
    or_right=True,
)
def truncated_header_of_last_slice(case: Case) -> Made:
    stack = case.phantom()
    contents = slice_contents(stack)
    contents[7] = contents[7][:420]
    return Made(named(contents), (stack.without(7),), skipped=("slice008.dcm",))


@trap("One slice has a header but no Pixel Data element.", "PIXEL_MISSING", "GEOM_MISSING_SLICE")
def pixel_data_missing(case: Case) -> Made:
    datasets = classic(case.phantom())
    change(datasets[3], PixelData=None)
    return Made(named([to_bytes(ds) for ds in datasets]))


@trap(
    "No slice has a Pixel Data element: a header export.",
    "PIXEL_MISSING",
    "SERIES_NONE",
    "SERIES_NOT_IMAGE",
    forms=BOTH,
)
def only_headers(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack) if case.form == "classic" else [enhanced(stack)]
    return Made(named([to_bytes(change(ds, PixelData=None)) for ds in datasets]))


@trap("Pixel data are empty.", "PIXEL_MISSING", "PIXEL_TRUNCATED", "PIXEL_SIZE", forms=BOTH)
def pixel_data_empty(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack) if case.form == "classic" else [enhanced(stack)]
    return Made(named([to_bytes(change(ds, PixelData=b"")) for ds in datasets]))


@trap(
    "The length of Pixel Data says 100 MB, the file ends after 640 bytes of it.",
    *("PIXEL_TRUNCATED", "PIXEL_SIZE", "DICOM_UNREADABLE"),
)
def pixel_length_too_long(case: Case) -> Made:
    return _one_with_length(case, 100 * MIB)


@trap(
    "The length of Pixel Data is 4 bytes short of Rows × Columns.",
    *("PIXEL_TRUNCATED", "PIXEL_SIZE", "DICOM_UNREADABLE"),
)
def pixel_length_too_short(case: Case) -> Made:
    datasets = classic(case.phantom())
    datasets[3].PixelData = datasets[3].PixelData[:-4]
    return Made(named([to_bytes(ds) for ds in datasets]), offenders=(datasets[3].SOPInstanceUID,))


@trap(
    "Pixel data go on for 64 bytes after the last pixel. To ignore or to refuse that are both right.",
    *("PIXEL_SIZE", "PIXEL_TRUNCATED"),
    or_right=True,
)
def pixel_data_too_long(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for ds in datasets:
        ds.PixelData += b"\x55" * 64
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("Private attributes, an odd-length string and a trailing padding element: all harmless.")
def harmless_oddities(case: Case) -> Made:
    stack = case.phantom()
    datasets = classic(stack)
    for ds in datasets:
        ds.private_block(0x0009, "ACME", create=True).add_new(1, "UN", b"\x00\xff" * 40)
        ds.DataSetTrailingPadding = bytes(100)
    return Made(named([to_bytes(ds) for ds in datasets]), (stack,))


@trap("Rows and Columns say 65535 × 65535 of a file of 2 KB.", "PIXEL_TRUNCATED", "PIXEL_SIZE", "PIXEL_TOO_LARGE")
def bomb_of_rows_and_columns(case: Case) -> Made:
    return Made(named([to_bytes(change(ds, Rows=65535, Columns=65535)) for ds in classic(case.phantom())]))


@trap(
    "NumberOfFrames says two thousand million.", "PIXEL_TRUNCATED", "PIXEL_SIZE", "PIXEL_TOO_LARGE", forms=("enhanced",)
)
def bomb_of_frames(case: Case) -> Made:
    return Made({"enhanced.dcm": to_bytes(change(enhanced(case.phantom()), NumberOfFrames=2**31 - 1))})


@trap(
    "A deflated file of 3 MB inflates to 3 GB, in a private element before the pixels.",
    *("PIXEL_TOO_LARGE", "DICOM_UNREADABLE", "SERIES_NONE", "DICOM_TOO_LARGE"),
)
def bomb_deflated_header(case: Case) -> Made:
    plain = to_bytes(classic(case.phantom())[3], DeflatedExplicitVRLittleEndian)
    meta_end = 144 + int.from_bytes(plain[140:144], "little")
    dataset = zlib.decompress(plain[meta_end:], -15)
    return _deflate_bomb(case, plain[:meta_end], b"\x09\0\x10\0LO\x04\0ACME\x09\0\x01\x10OB\0\0", dataset)


@trap(
    "A deflated file whose Pixel Data inflate to 3 GB, though Rows × Columns is 16 × 20.",
    *("PIXEL_TOO_LARGE", "PIXEL_SIZE", "DICOM_UNREADABLE", "SERIES_NONE", "DICOM_TOO_LARGE"),
)
def bomb_deflated_pixels(case: Case) -> Made:
    plain = to_bytes(classic(case.phantom())[3], DeflatedExplicitVRLittleEndian)
    meta_end = 144 + int.from_bytes(plain[140:144], "little")
    dataset = zlib.decompress(plain[meta_end:], -15)
    start = dataset.index(b"\xe0\x7f\x10\0OW")
    return _deflate_bomb(case, plain[:meta_end], dataset[:start] + b"\xe0\x7f\x10\0OW\0\0", b"")


@trap("Sequences nested 3000 deep, which overflows the stack of recursive parsers.", "DICOM_UNREADABLE", or_right=True)
def nested_sequences(case: Case) -> Made:
    stack = case.phantom()
    contents = slice_contents(stack)
    depth = 3000
    start = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    where = contents[3].index(b"\x10\0\x10\0PN")
    contents[3] = contents[3][:where] + start * depth + end * depth + contents[3][where:]
    return Made(named(contents), (stack,), asides=(stack.without(3),))


def _deflate_bomb(case: Case, meta: bytes, before_length: bytes, after: bytes) -> Made:
    megabytes = 3072
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflater.compress(before_length + (megabytes * MIB).to_bytes(4, "little")) + deflater.flush(
        zlib.Z_FULL_FLUSH
    )
    block = deflater.compress(bytes(MIB)) + deflater.flush(zlib.Z_FULL_FLUSH)
    tail = deflater.compress(after) + deflater.flush()
    contents = slice_contents(case.phantom())
    contents[3] = meta + head + block * megabytes + tail
    return Made(named(contents))


def _one_cut(case: Case, cut: Callable[[bytes], bytes]) -> Made:
    stack = case.phantom()
    if case.form == "enhanced":
        ds = enhanced(stack)
        return Made({"enhanced.dcm": cut(to_bytes(ds))}, offenders=(ds.SOPInstanceUID,))
    datasets = classic(stack)
    contents = [to_bytes(ds) for ds in datasets]
    contents[3] = cut(contents[3])
    return Made(named(contents), offenders=(datasets[3].SOPInstanceUID,))


def _one_with_length(case: Case, length: int) -> Made:
    contents = slice_contents(case.phantom())
    where = contents[3].index(b"\xe0\x7f\x10\0OW\0\0") + 8
    contents[3] = contents[3][:where] + length.to_bytes(4, "little") + contents[3][where + 4 :]
    return Made(named(contents))
