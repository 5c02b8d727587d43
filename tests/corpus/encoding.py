"""From pydicom datasets to the bytes of files in any transfer syntax, by encoders without GPL."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

NATIVE_SYNTAXES = {
    "implicit little endian": ImplicitVRLittleEndian,
    "explicit big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
COMPRESSED_SYNTAXES = {
    "RLE": RLELossless,
    "JPEG lossless SV1": JPEGLosslessSV1,
    "JPEG lossless process 14": JPEGLossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
}

Value = str | int | float | None
"""What an attribute of a made dataset is set to; None removes it."""


def uid(*parts: object) -> UID:
    """A UID that is always the same for the same words."""
    return generate_uid(entropy_srcs=["accunet corpus", *map(str, parts)])


def to_bytes(ds: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """A DICOM file of ``ds`` (whose pixels are native little endian) in ``syntax``, with preamble and file meta."""
    if syntax in COMPRESSED_SYNTAXES.values():
        return encapsulated(ds, syntax)
    if syntax == ExplicitVRBigEndian and "PixelData" in ds and ds.BitsAllocated > 8:
        swapped = np.frombuffer(ds.PixelData, f"<u{ds.BitsAllocated // 8}").byteswap().tobytes()
        ds = with_element(ds, "PixelData", "OW", swapped)
    return write(ds, syntax)


def write(ds: Dataset, syntax: UID) -> bytes:
    """A DICOM file of ``ds`` as it is: pixel data must already be in the form that ``syntax`` asks for."""
    ds = Dataset(dict(ds.items()))
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", uid("no class"))
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", uid("no instance"))
    ds.file_meta.TransferSyntaxUID = syntax
    how = {"implicit_vr": False, "little_endian": True} if syntax.is_private else {}
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's opinion of values that are wrong on purpose
        pydicom.dcmwrite(content, ds, enforce_file_format=True, **how)
    return content.getvalue()


def with_element(ds: Dataset, keyword: str, vr: str, value: Any) -> Dataset:
    """A new dataset with one element replaced; the other elements are shared with ``ds``."""
    return Dataset({**dict(ds.items()), Tag(keyword): DataElement(keyword, vr, value)})


def without_preamble(content: bytes) -> bytes:
    """The dataset alone, as some old archives leave it: no preamble, no ``DICM``, no file meta information."""
    meta_length = int.from_bytes(content[140:144], "little")
    return content[144 + meta_length :]


def compressed_frames(ds: Dataset, syntax: UID) -> list[bytes]:
    """Each frame's codestream."""
    frames = int(ds.get("NumberOfFrames", 1))
    size = len(ds.PixelData) // frames
    return [_compressed(ds, ds.PixelData[n * size : (n + 1) * size], syntax) for n in range(frames)]


def encapsulated(
    ds: Dataset, syntax: UID, *, fragments: int = 1, offsets: str = "none", keep: int | None = None
) -> bytes:
    """A compressed file with each frame in so many fragments and the offset table ``none``, ``basic`` or ``extended``.

    ``keep`` writes only that many of the frames.
    """
    frames = compressed_frames(ds, syntax)[:keep]
    if offsets == "extended":
        content, table, lengths = encapsulate_extended(frames)
        ds = with_element(
            with_element(ds, "ExtendedOffsetTable", "OV", table), "ExtendedOffsetTableLengths", "OV", lengths
        )
    else:
        content = encapsulate(frames, fragments_per_frame=fragments, has_bot=offsets == "basic")
    ds = with_element(ds, "PixelData", "OB", content)
    ds["PixelData"].is_undefined_length = True
    return write(ds, syntax)


def put_raw(ds: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Sets an element to bytes that pydicom would not let through (explicit VR little endian only)."""
    tag = Tag(keyword)
    ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def change(ds: Dataset, **values: Any) -> Dataset:
    """Sets attributes in place (None removes one) and gives the dataset back."""
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    return ds


def named(contents: Sequence[bytes], pattern: str = "slice{:03d}.dcm") -> Mapping[str, bytes]:
    """Files in order, numbered from 1."""
    return {pattern.format(n): content for n, content in enumerate(contents, start=1)}


def _compressed(ds: Dataset, frame: bytes, syntax: UID) -> bytes:
    if syntax == RLELossless:
        return _by_pydicom(ds, frame, syntax, "pydicom")
    if syntax == JPEGLSLossless:
        return _by_pydicom(ds, frame, syntax, "pyjpegls")
    return _by_gdcm(ds, frame, syntax)


def _by_pydicom(ds: Dataset, frame: bytes, syntax: UID, plugin: str) -> bytes:
    from pydicom.pixels import get_encoder

    return get_encoder(syntax).encode(
        frame,
        encoding_plugin=plugin,
        rows=ds.Rows,
        columns=ds.Columns,
        samples_per_pixel=ds.SamplesPerPixel,
        number_of_frames=1,
        bits_allocated=ds.BitsAllocated,
        bits_stored=ds.BitsStored,
        pixel_representation=ds.PixelRepresentation,
        photometric_interpretation=ds.PhotometricInterpretation,
    )


def _by_gdcm(ds: Dataset, frame: bytes, syntax: UID) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SWIG's types have no __module__
        import gdcm

    writer = gdcm.ImageWriter()  # owns the image: one made by itself is freed twice
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((ds.Columns, ds.Rows, 1))
    image.SetPhotometricInterpretation(
        gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.GetPIType(ds.PhotometricInterpretation))
    )
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    image.SetPixelFormat(
        gdcm.PixelFormat(1, ds.BitsAllocated, ds.BitsStored, ds.BitsStored - 1, ds.PixelRepresentation)
    )
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(frame)
    image.SetDataElement(element)
    converter = gdcm.ImageChangeTransferSyntax()
    converter.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    converter.SetInput(image)
    if not converter.Change():
        raise RuntimeError(f"gdcm cannot encode {syntax}")
    fragments = converter.GetOutput().GetDataElement().GetSequenceOfFragments()
    buffers = [fragments.GetFragment(n).GetByteValue().GetBuffer() for n in range(fragments.GetNumberOfFragments())]
    return b"".join(buffer.encode("utf-8", "surrogateescape") for buffer in buffers)
