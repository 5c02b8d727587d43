"""The few values of a received dataset that decide where it belongs, taken from its first bytes within bounds."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from accunet_monai.errors import PacsError

HEAD_BYTES = 1 << 16
"""Ordinary headers have theirs within the first 10 kB; only private elements before the series' UID make it more."""

_LAST = 0x0020000E
_TAGS = {
    "sop_class_uid": 0x00080016,
    "sop_instance_uid": 0x00080018,
    "modality": 0x00080060,
    "patient_id": 0x00100020,
    "issuer": 0x00100021,
    "study_uid": 0x0020000D,
    "series_uid": _LAST,
}
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True, slots=True)
class Head:
    """Where an instance belongs. ``patient_id`` is kept in memory only."""

    sop_class_uid: str
    sop_instance_uid: str
    modality: str
    patient_id: str
    issuer: str
    study_uid: str
    series_uid: str


def read_head(data: bytes, syntax: str, *, whole: bool) -> Head | None:
    """The values of a dataset's first bytes; ``None`` when they end before the series' UID can have come.

    Args:
        data: from the dataset's start, without preamble and meta header.
        syntax: its transfer syntax.
        whole: there is no more of the dataset than ``data``.

    Raises:
        PacsError: ``INSTANCE_UNREADABLE``, or ``INSTANCE_UID`` when an identifier is missing or no UID.
    """
    if syntax == DeflatedExplicitVRLittleEndian:
        data = inflated_head(data)
    passed: list[int] = []

    def beyond(tag: int, vr: str | None, length: int) -> bool:
        if tag > _LAST:
            passed.append(tag)
        return tag > _LAST

    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    try:
        ds = read_dataset(BytesIO(data), implicit, little, stop_when=beyond, specific_tags=list(_TAGS.values()))
        values = {name: _text(ds.get_item(tag)) for name, tag in _TAGS.items()}
    except Exception as error:  # pydicom raises many types on damaged bytes; all mean the same here
        if not whole:
            return None
        raise PacsError("INSTANCE_UNREADABLE", f"the dataset's head is damaged ({type(error).__name__}).") from error
    if not passed and not whole:
        return None
    for name, value in values.items():
        if name.endswith("_uid") and not _UID.fullmatch(value):
            raise PacsError("INSTANCE_UID", f"{name} is missing or no UID.")
    return Head(**values)


def inflated_head(data: bytes) -> bytes:
    """The first bytes of a deflated dataset, a few times ``HEAD_BYTES`` at most."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, 4 * HEAD_BYTES)
    except zlib.error as error:
        raise PacsError("INSTANCE_UNREADABLE", "the deflated data is damaged.") from error


class InflatedSize:
    """Counts what a deflated dataset inflates to, in pieces, holding none of it.

    Args:
        limit: bytes; more is refused.
    """

    def __init__(self, limit: int) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._left = limit

    def add(self, data: bytes | memoryview) -> None:
        """Count a piece.

        Raises:
            PacsError: ``INSTANCE_INFLATED`` or ``INSTANCE_UNREADABLE``.
        """
        rest: bytes | memoryview = data
        while rest and not self._inflater.eof:
            try:
                self._left -= len(self._inflater.decompress(rest, 1 << 20))
            except zlib.error as error:
                raise PacsError("INSTANCE_UNREADABLE", "the deflated data is damaged.") from error
            if self._left < 0:
                raise PacsError("INSTANCE_INFLATED", "the dataset inflates to more than is allowed.")
            rest = self._inflater.unconsumed_tail


def _text(element: object) -> str:
    value = element.value if isinstance(element, RawDataElement) else None
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else ""
