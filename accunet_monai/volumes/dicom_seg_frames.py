"""The frames of a DICOM SEG object: where each lies, what it shows and what it was made from (PS3.3, A.51 and C.8.20).

Read with pydicom and numpy alone, so that what highdicom wrote is judged by other code than the one that wrote it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array
from pydicom.tag import Tag

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_source_planes import PlaneGeometry, affines_lps
from accunet_monai.volumes.geometry import FloatArray

SEG_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
"""Segmentation Storage and Label Map Segmentation Storage."""

MAX_FRAME_BYTES = 1 << 28
"""Largest frame that is decoded: 16384×16384 pixels of one byte."""

_IMAGES, _INSTANCE, _FRAME_NUMBER = map(  # looked up once: there may be thousands of frames
    Tag, ("SourceImageSequence", "ReferencedSOPInstanceUID", "ReferencedFrameNumber")
)
_T = TypeVar("_T")
_BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}


@dataclass(frozen=True, eq=False)
class SegFrames:
    """Frames of a SEG object, F of them, decoded one by one.

    Args:
        ds: the whole dataset.
        name: of the file, for errors.
        encoding: ``BINARY``, ``FRACTIONAL`` or ``LABELMAP``.
        affines_lps: (F, 4, 4) pixel (column i, row j, 0) → LPS mm; the third column is the unit normal.
        segment_numbers: (F,) integers; 0 where a frame shows all segments (``LABELMAP``).
        sources: for each frame SOPInstanceUID and frame number (or None) of the images it was made from.
    """

    ds: Dataset
    name: str | None
    encoding: str
    affines_lps: FloatArray
    segment_numbers: npt.NDArray[np.int64]
    sources: tuple[tuple[tuple[str, int | None], ...], ...]

    def __len__(self) -> int:
        return len(self.segment_numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """Columns X and rows Y."""
        return int(self.ds.Columns), int(self.ds.Rows)

    @property
    def maximum(self) -> int:
        """The stored value that means 1 in a ``FRACTIONAL`` object."""
        return int(self.ds.get("MaximumFractionalValue") or 255)

    def pixels(self, index: int) -> npt.NDArray[Any]:
        """(Y, X) stored values of a frame: rows, columns.

        Raises:
            SeriesError: ``PIXEL_DECODE``.
        """
        if self.ds.file_meta.TransferSyntaxUID.is_encapsulated:
            return self._decoded(index)
        columns, rows = self.shape
        size, data = rows * columns, self.ds.PixelData
        if self.encoding == "BINARY":
            first = index * size
            packed = np.frombuffer(data, np.uint8, (first + size + 7) // 8 - first // 8, first // 8)
            bits = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size]
            return bits.reshape(rows, columns)
        dtype = np.dtype(f"<u{int(self.ds.BitsAllocated) // 8}")
        return np.frombuffer(data, dtype, size, index * size * dtype.itemsize).reshape(rows, columns)

    def _decoded(self, index: int) -> npt.NDArray[Any]:
        try:
            return np.asarray(pixel_array(self.ds, index=index)).reshape(self.shape[::-1])
        except Exception as error:  # decoders raise many types on damaged bytes; all mean the same here
            raise SeriesError(
                "PIXEL_DECODE", f"frame {index + 1} cannot be decoded ({error}).", path=self.name
            ) from error


def parse_seg(content: bytes | str | os.PathLike[str]) -> SegFrames:
    """Reads a SEG object from its bytes or a file and checks that it is whole.

    Raises:
        SeriesError: ``FILE_MISSING``, ``DICOM_UNREADABLE``, ``SEG_NOT_SEG``, ``SEG_INVALID``, ``PIXEL_MISSING``,
            ``PIXEL_SIZE`` or ``PIXEL_TOO_LARGE``.
    """
    name = None if isinstance(content, bytes) else os.fspath(content)
    ds = _dataset(content, name)
    if str(ds.get("SOPClassUID")) not in SEG_CLASSES:
        raise SeriesError("SEG_NOT_SEG", f"this is no DICOM SEG but {ds.get('SOPClassUID')!r}.", path=name)
    try:
        frames = _frames(ds, name)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, SeriesError):
            raise
        raise SeriesError("SEG_INVALID", f"the object lacks what a SEG must have ({error}).", path=name) from error
    _check_pixels(frames)
    return frames


def _dataset(content: bytes | str | os.PathLike[str], name: str | None) -> Dataset:
    if name is not None and not Path(name).is_file():
        raise SeriesError("FILE_MISSING", "there is no such file.", path=name)
    try:
        return pydicom.dcmread(io.BytesIO(content) if isinstance(content, bytes) else content)
    except (OSError, InvalidDicomError, ValueError, AttributeError, NotImplementedError, EOFError, KeyError) as error:
        raise SeriesError("DICOM_UNREADABLE", f"the file cannot be read ({error}).", path=name) from error


def _frames(ds: Dataset, name: str | None) -> SegFrames:
    encoding = str(ds.SegmentationType)
    if int(ds.BitsAllocated) not in _BITS.get(encoding, ()) or int(ds.SamplesPerPixel) != 1:
        raise ValueError(f"{encoding} with {ds.BitsAllocated} bits allocated")
    groups = _Groups(ds)
    if len(groups) != int(ds.NumberOfFrames):
        raise ValueError(f"{ds.NumberOfFrames} frames, {len(groups)} descriptions")
    numbers = [0] * len(groups) if encoding == "LABELMAP" else groups.values("SegmentIdentificationSequence", _number)
    return SegFrames(
        ds=ds,
        name=name,
        encoding=encoding,
        affines_lps=_affines(groups),
        segment_numbers=np.array(numbers, dtype=np.int64),
        sources=tuple(groups.values("DerivationImageSequence", _sources, missing=())),
    )


class _Groups:
    """The functional groups of all frames. Equal bytes are interpreted once: most frames share most of theirs."""

    def __init__(self, ds: Dataset) -> None:
        self._shared: Dataset = ds.SharedFunctionalGroupsSequence[0]
        self._frames: Sequence[Dataset] = ds.PerFrameFunctionalGroupsSequence

    def __len__(self) -> int:
        return len(self._frames)

    def values(self, name: str, interpret: Callable[[Any], _T], missing: _T | None = None) -> list[_T]:
        """For each frame what ``interpret`` makes of its own or else the shared sequence ``name``."""
        tag, known = Tag(name), dict[bytes, _T]()
        shared = interpret(self._shared[tag].value) if tag in self._shared else missing
        result = []
        for frame in self._frames:
            raw = frame.get_item(tag) if tag in frame else None
            if raw is None:
                value = shared
            elif not isinstance(raw.value, bytes):
                value = interpret(raw.value)
            elif raw.value in known:
                value = known[raw.value]
            else:
                value = known[raw.value] = interpret(frame[tag].value)
            if value is None:
                raise KeyError(name)
            result.append(value)
        return result


def _affines(groups: _Groups) -> FloatArray:
    orientations = groups.values("PlaneOrientationSequence", lambda items: items[0].ImageOrientationPatient)
    spacings = groups.values("PixelMeasuresSequence", lambda items: items[0].PixelSpacing)
    positions = groups.values("PlanePositionSequence", lambda items: items[0].ImagePositionPatient)
    affines = affines_lps(list(map(PlaneGeometry, positions, orientations, spacings)))
    if not np.isfinite(affines).all():
        raise ValueError("a position that is not finite")
    return affines


def _number(items: Sequence[Dataset]) -> int:
    return int(items[0].ReferencedSegmentNumber)


def _sources(items: Sequence[Dataset]) -> tuple[tuple[str, int | None], ...]:
    found = []
    for derivation in items:
        for image in derivation[_IMAGES].value if _IMAGES in derivation else ():
            number = image[_FRAME_NUMBER].value if _FRAME_NUMBER in image else None
            found.append((str(image[_INSTANCE].value), None if number is None else int(number)))
    return tuple(found)


def _check_pixels(frames: SegFrames) -> None:
    """The bytes that are there against the bytes that are declared, before anything is allocated."""
    ds, (columns, rows) = frames.ds, frames.shape
    if columns * rows > MAX_FRAME_BYTES:
        raise SeriesError("PIXEL_TOO_LARGE", f"a frame of {columns}×{rows} pixels.", path=frames.name)
    if "PixelData" not in ds:
        raise SeriesError("PIXEL_MISSING", "the object has no pixels.", path=frames.name)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    expected = -(-columns * rows * len(frames) * int(ds.BitsAllocated) // 8)
    if not 0 <= len(ds.PixelData) - expected <= 1:
        raise SeriesError("PIXEL_SIZE", f"{len(ds.PixelData)} bytes of pixels for {expected}.", path=frames.name)
