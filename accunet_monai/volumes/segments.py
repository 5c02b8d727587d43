"""What the labels of a label map mean, as DICOM wants to hear it: ``segments.yaml`` of a bundle.

A segment is described by codes, not by its name alone: category and property type as in DICOM PS3.16, CID 7150 and
CID 7151 (SNOMED CT), with a modifier such as "anterior" (CID 2) where no code of its own exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from accunet_monai.errors import VolumeError

MAX_SEGMENTS = 65535
"""Segment numbers are 16-bit unsigned integers (PS3.3, C.8.20.4)."""

MAX_LONG_STRING = 64
"""Characters in DICOM's value representation LO (PS3.5, table 6.2-1)."""

MAX_SHORT_STRING = 16
"""Characters in DICOM's value representation SH, of code values and coding schemes."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CodedTerm:
    """A code of a terminology, e.g. ``CodedTerm("5366008", "SCT", "Hippocampus")``; SCT is SNOMED CT.

    Raises:
        VolumeError: ``SEGMENTS_INVALID``.
    """

    code: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        _check_text("a code", self.code, MAX_SHORT_STRING)
        _check_text("a coding scheme", self.scheme, MAX_SHORT_STRING)
        _check_text("a code's meaning", self.meaning, MAX_LONG_STRING)


@dataclass(frozen=True)
class SegmentDescription:
    """What one label stands for.

    Args:
        label: value in the label map, from 1; also the segment number.
        name: what viewers show.
        category: PS3.16, CID 7150, e.g. Anatomical Structure.
        type: PS3.16, CID 7151, e.g. Hippocampus.
        colour: recommended display colour: red, green and blue, each 0 to 255.
        modifier: narrows ``type``, e.g. Anterior.

    Raises:
        VolumeError: ``SEGMENTS_INVALID``.
    """

    label: int
    name: str
    category: CodedTerm
    type: CodedTerm
    colour: tuple[int, int, int]
    modifier: CodedTerm | None = None

    def __post_init__(self) -> None:
        if type(self.label) is not int or not 1 <= self.label <= MAX_SEGMENTS:
            raise _invalid(f"a label is a whole number from 1 to {MAX_SEGMENTS}, found {self.label!r}.")
        _check_text(f"the name of segment {self.label}", self.name, MAX_LONG_STRING)
        if any(type(part) is not int or not 0 <= part <= 255 for part in self.colour):
            raise _invalid(f"the colour of segment {self.label} is not three whole numbers of 0 to 255: {self.colour}.")


@dataclass(frozen=True)
class AlgorithmInfo:
    """What made a label map: goes into SegmentationAlgorithmIdentification and ContributingEquipment.

    Args:
        name, version: of the bundle.
        weights_sha256: 64 hexadecimal digits, of the weights file.
        config_sha256: the same of the configuration that was run.

    Raises:
        VolumeError: ``SEGMENTS_INVALID``.
    """

    name: str
    version: str
    weights_sha256: str | None = None
    config_sha256: str | None = None

    def __post_init__(self) -> None:
        _check_text("the algorithm's name", self.name, MAX_LONG_STRING)
        _check_text("the algorithm's version", self.version, MAX_LONG_STRING)
        for digest in (self.weights_sha256, self.config_sha256):
            if digest is not None and not _SHA256.fullmatch(digest):
                raise _invalid(f"a SHA-256 digest has 64 lower-case hexadecimal digits, found {digest!r}.")

    @property
    def digests(self) -> dict[str, str]:
        """The known digests by name."""
        known = {"weights_sha256": self.weights_sha256, "config_sha256": self.config_sha256}
        return {name: digest for name, digest in known.items() if digest is not None}


@dataclass(frozen=True)
class SegmentTable:
    """All labels of an algorithm, 1 to S without gaps, as DICOM numbers its segments.

    Raises:
        VolumeError: ``SEGMENTS_INVALID``.
    """

    algorithm: AlgorithmInfo
    segments: tuple[SegmentDescription, ...]

    def __post_init__(self) -> None:
        labels = [segment.label for segment in self.segments]
        if not labels or labels != list(range(1, len(labels) + 1)):
            raise _invalid(f"labels must be 1, 2, 3 … in this order and without gaps, found {labels}.")


def read_segments(path: str | os.PathLike[str]) -> SegmentTable:
    """Reads a ``segments.yaml``: a mapping with ``algorithm`` (``name``, ``version``) and ``segments`` (a list).

    Each segment has ``label``, ``name``, ``category``, ``type``, ``colour`` and, if wanted, ``modifier``. A code is a
    mapping of ``code`` (quoted: it is text), ``scheme`` and ``meaning``. Unknown keys are refused.

    Raises:
        VolumeError: ``FILE_MISSING`` or ``SEGMENTS_INVALID``, with the path.
    """
    source = Path(path)
    if not source.is_file():
        raise VolumeError("FILE_MISSING", "there is no such file.", path=source)
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
        document = _mapping("the file", content, {"algorithm", "segments"})
        algorithm = _mapping("algorithm", document["algorithm"], {"name", "version"})
        return SegmentTable(
            AlgorithmInfo(algorithm["name"], algorithm["version"]),
            tuple(_segment(item) for item in _list("segments", document["segments"])),
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VolumeError("SEGMENTS_INVALID", f"the file is not YAML ({error}).", path=source) from error
    except VolumeError as error:
        raise VolumeError(error.code, error.message, path=source, hint=error.hint) from error


def _segment(item: Any) -> SegmentDescription:
    fields = _mapping("a segment", item, {"label", "name", "category", "type", "colour"}, {"modifier"})
    return SegmentDescription(
        label=fields["label"],
        name=fields["name"],
        category=_term("category", fields["category"]),
        type=_term("type", fields["type"]),
        colour=_colour(fields["colour"]),
        modifier=_term("modifier", fields["modifier"]) if "modifier" in fields else None,
    )


def _colour(item: Any) -> tuple[int, int, int]:
    parts = _list("colour", item)
    if len(parts) != 3:
        raise _invalid(f"a colour has three parts, found {parts}.")
    return parts[0], parts[1], parts[2]


def _term(name: str, item: Any) -> CodedTerm:
    fields = _mapping(name, item, {"code", "scheme", "meaning"})
    return CodedTerm(fields["code"], fields["scheme"], fields["meaning"])


def _mapping(name: str, item: Any, required: set[str], optional: set[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise _invalid(f"{name} must be a mapping, found {type(item).__name__}.")
    if missing := required - item.keys():
        raise _invalid(f"{name} lacks {', '.join(sorted(missing))}.")
    if unknown := item.keys() - required - (optional or set()):
        raise _invalid(f"{name} has unknown keys: {', '.join(sorted(map(str, unknown)))}.")
    return item


def _list(name: str, item: Any) -> Sequence[Any]:
    if not isinstance(item, list):
        raise _invalid(f"{name} must be a list, found {type(item).__name__}.")
    return item


def _check_text(name: str, value: Any, longest: int) -> None:
    """ASCII only: an object's character set is that of its source series, in which other letters may not exist."""
    if not isinstance(value, str):
        raise _invalid(f"{name} must be text, found {value!r}.", "Put it between quotes.")
    if not value.strip() or len(value) > longest or not value.isascii() or not value.isprintable() or "\\" in value:
        raise _invalid(f"{name} must have 1 to {longest} ASCII characters and no backslash, found {value!r}.")


def _invalid(message: str, hint: str | None = None) -> VolumeError:
    return VolumeError("SEGMENTS_INVALID", message, hint=hint)
