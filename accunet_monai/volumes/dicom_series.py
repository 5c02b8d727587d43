"""DICOM series: found in a file, folder tree or DICOMDIR, and read right or refused, never silently wrong.

``find_series`` lists what is there, each series split into parts that are one volume, with the reason why a part would
be refused. ``read_series`` gives the regular grid, ``read_planes`` the planes one by one. Refusals are
:class:`~accunet_monai.errors.SeriesError` with one of these codes:

- which series: ``SERIES_NONE`` (nothing readable), ``SERIES_AMBIGUOUS`` (several; name one), ``SERIES_NOT_IMAGE``,
  ``SERIES_MIXED_TYPES`` (units differ), ``FILE_MISSING``, ``NOT_DICOM``, ``DICOM_UNREADABLE`` (damaged);
- what each plane lacks: ``GEOM_NO_POSITION``, ``GEOM_NO_ORIENTATION``, ``GEOM_NO_SPACING``, ``GEOM_MOSAIC`` (tiles that
  cannot be cut);
- how planes fail to belong together: ``GEOM_ORIENTATION`` (also: not unit vectors at right angles), ``GEOM_SHAPE``,
  ``GEOM_SPACING``;
- how planes fail to make a grid: ``GEOM_DUPLICATE``, ``GEOM_MISSING_SLICE``, ``GEOM_NONUNIFORM``, ``GEOM_TILT``,
  ``GEOM_FRAME_OF_REFERENCE``, ``GEOM_SINGLE_SLICE`` (no thickness known);
- pixels: ``PIXEL_MISSING``, ``PIXEL_TRUNCATED``, ``PIXEL_SIZE`` (declared against real size), ``PIXEL_TOO_LARGE``,
  ``PIXEL_DECODE``, ``PIXEL_SYNTAX`` (no decoder), ``PIXEL_TYPE`` (colour, floating point, MONOCHROME1 in CT),
  ``PIXEL_RESCALE`` (missing, not finite, or not linear).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, overload

import numpy as np

from accunet_monai.errors import SeriesError
from accunet_monai.volumes.dicom_files import SkippedFile, read_headers
from accunet_monai.volumes.dicom_frames import Frame, frames_of
from accunet_monai.volumes.dicom_geometry import Stack, check_distinct, grid_of, stack_of
from accunet_monai.volumes.dicom_refusals import refusal, refusal_of
from accunet_monai.volumes.dicom_resample import regular_grid
from accunet_monai.volumes.dicom_source import PROVENANCE_KEY, DicomSource
from accunet_monai.volumes.dicom_split import by_depth, is_localizer, split
from accunet_monai.volumes.dicom_values import AIR, MAX_DECODED_BYTES, decode, pixel_digests
from accunet_monai.volumes.geometry import lps_from_ras
from accunet_monai.volumes.planes import PlaneStack
from accunet_monai.volumes.volume import Volume

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Series:
    """A series, or the part of one that is one volume.

    Args:
        study_uid, series_uid, frame_of_reference_uid: empty where the files leave them empty.
        modality: ``CT``, ``MR`` or ``PT``.
        description, number: SeriesDescription and SeriesNumber.
        split: what tells this part from the others of the same series.
        frames: its planes in order of depth, where that is known.
        notes: what was dropped from it.
        problem: why :func:`read_series` would refuse it, judged from headers and sizes; pixels are not decoded.
    """

    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    modality: str
    description: str
    number: int | None
    split: Mapping[str, str]
    frames: tuple[Frame, ...]
    notes: tuple[str, ...] = ()
    problem: SeriesError | None = field(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "split", MappingProxyType(dict(self.split)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "split": dict(self.split)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "split": MappingProxyType(state["split"])})

    def describe(self) -> str:
        """One line for people."""
        first = self.frames[0]
        parts = [
            self.modality,
            "" if self.number is None else f"series {self.number}",
            self.description and repr(self.description),
            f"{first.columns}×{first.rows}×{len(self.frames)}",
            ", ".join(f"{name} {value}" for name, value in self.split.items()),
            self.series_uid,
            f"refused: {self.problem.code}" if self.problem else "",
        ]
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True, eq=False)
class FoundSeries(Sequence[Series]):
    """What is at a path: the series, and the files that belong to none."""

    path: Path
    series: tuple[Series, ...]
    skipped: tuple[SkippedFile, ...]

    @overload
    def __getitem__(self, index: int) -> Series: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Series, ...]: ...
    def __getitem__(self, index: int | slice) -> Series | tuple[Series, ...]:
        return self.series[index]

    def __len__(self) -> int:
        return len(self.series)


def find_series(path: PathLike) -> FoundSeries:
    """All series of a file, a folder tree or a DICOMDIR, by headers alone.

    Names and extensions do not matter. Files that are not DICOM, or hold no CT, MR or PET image, are in ``skipped``.

    Raises:
        SeriesError: ``FILE_MISSING``, or ``DICOM_UNREADABLE`` for a damaged DICOMDIR.
    """
    headers, skipped = read_headers(Path(path))
    by_series: dict[tuple[str, ...], list[Frame]] = defaultdict(list)
    for header in headers:
        try:
            frames = frames_of(header)
        except Exception as error:  # sequences are parsed here; pydicom raises many types on damaged bytes
            skipped.append(SkippedFile(header.path, "DICOM_UNREADABLE", f"the header is damaged ({error})"))
            continue
        if isinstance(frames, str):
            skipped.append(SkippedFile(header.path, "SERIES_NOT_IMAGE", frames))
        else:
            by_series[_series_key(frames[0])].extend(frames)
    found = [series for frames in by_series.values() for series in _parts(frames)]
    return FoundSeries(Path(path), tuple(found), tuple(skipped))


def read_series(
    source: Series | PathLike,
    *,
    series_uid: str | None = None,
    irregular: Literal["refuse", "resample"] = "refuse",
    max_bytes: int = MAX_DECODED_BYTES,
    workers: int = 1,
) -> Volume:
    """Reads a series as a regular grid.

    Args:
        source: one of :func:`find_series`, or a path that holds one series.
        series_uid: which one, where the path holds several; localizers that share it are then left aside.
        irregular: whether sheared, uneven and gapped stacks are refused or resampled to an even grid at right angles
            (linear interpolation; said in the provenance).
        max_bytes: what the array may take.
        workers: processes that decompress. They take a second to start, anew for each series, so more than one can pay
            for hundreds of JPEG 2000 slices only; and a script's own
            work must be under ``if __name__ == "__main__"``.

    Returns:
        ``array`` float32 (columns, rows, slices) in modality units (HU; Bq/ml; stored · slope + intercept), slices in
        order of their position along rows × columns. ``provenance`` has ``path``, ``format`` and ``dicom``, a
        :class:`~accunet_monai.volumes.dicom_source.DicomSource`.

    Raises:
        SeriesError: with one of the codes above.
    """
    series = source if isinstance(source, Series) else _the_series(find_series(source), series_uid)
    stack = _usable_stack(series)
    affine, resampling = regular_grid(stack) if irregular == "resample" else (grid_of(stack), None)
    array, padded = decode(stack.frames, max_bytes, workers)
    if resampling is not None:
        array = resampling.apply(array, AIR.get(series.modality, 0.0), max_bytes)
    provenance = _provenance(series, stack, padded, resampled=resampling is not None)
    return Volume(array, lps_from_ras(affine), provenance)


def read_planes(
    source: Series | PathLike,
    *,
    series_uid: str | None = None,
    max_bytes: int = MAX_DECODED_BYTES,
    workers: int = 1,
) -> PlaneStack:
    """Reads a series plane by plane, each at its own place: sheared, uneven and gapped stacks as they are.

    Args:
        source: as of :func:`read_series`.
        series_uid: likewise.
        max_bytes: likewise.
        workers: likewise.

    Raises:
        SeriesError: with one of the codes above, but none of ``GEOM_MISSING_SLICE``, ``GEOM_NONUNIFORM``,
            ``GEOM_TILT`` and ``GEOM_SINGLE_SLICE``.
    """
    series = source if isinstance(source, Series) else _the_series(find_series(source), series_uid)
    stack = _usable_stack(series)
    check_distinct(stack)
    array, padded = decode(stack.frames, max_bytes, workers)
    affines = [lps_from_ras(stack.affine_lps(origin, stack.normal)) for origin in stack.positions]
    return PlaneStack(array, np.array(affines), _provenance(series, stack, padded, resampled=False))


def _series_key(frame: Frame) -> tuple[str, ...]:
    """Files without a SeriesInstanceUID belong together when they share a folder and a series number."""
    found = frame.instance
    if found.series_uid:
        return found.study_uid, found.series_uid
    return found.study_uid, "", str(found.path.parent), str(found.number), found.modality


def _parts(frames: list[Frame]) -> list[Series]:
    same_name: dict[object, list[Frame]] = defaultdict(list)
    for frame in frames:
        uid = frame.instance.sop_instance_uid or id(frame)
        same_name[uid, frame.frame_number, frame.tile].append(frame)
    distinct, copies = _without_copies(same_name.values())
    parts = []
    for label, members in split(distinct):
        kept, twice = _without_copies(by_depth(members))
        parts.append(_part(label, kept, copies + twice))
    return parts


def _without_copies(groups: Iterable[list[Frame]]) -> tuple[list[Frame], tuple[str, ...]]:
    """The frames without those that have the same pixels at the same place as another of their group; what went."""
    kept: list[Frame] = []
    notes = []
    for group in groups:
        seen: dict[object, Frame] = {}
        digests = pixel_digests(group) if len(group) > 1 else [None]
        for frame, digest in zip(group, digests, strict=True):
            key = (digest, frame.position, frame.orientation) if digest else id(frame)
            first = seen.setdefault(key, frame)
            if first is frame:
                kept.append(frame)
            else:
                notes.append(f"{frame.name} in {frame.instance.path.name} repeats {first.instance.path.name}: dropped")
    return kept, tuple(notes)


def _part(label: dict[str, str], frames: list[Frame], notes: tuple[str, ...]) -> Series:
    first = frames[0].instance
    series = Series(
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
        modality=first.modality,
        description=first.description,
        number=first.number,
        split=label,
        frames=tuple(frames),
        notes=notes,
    )
    try:
        grid_of(_usable_stack(series))
    except SeriesError as error:
        return replace(series, problem=error)
    return series


def _usable_stack(series: Series) -> Stack:
    """The planes in order, each with a place, readable pixels and values of one unit."""
    frames = series.frames
    for frame in frames:
        if frame.instance.problem:
            code, message = frame.instance.problem
            concerned = [other for other in frames if other.instance.problem == frame.instance.problem]
            raise refusal(code, message, concerned)
    lacking = [frame for frame in frames if frame.rescale is None]
    if lacking:
        message = f"{len(lacking)} of {len(frames)} images have no usable rescale slope and intercept"
        raise refusal("PIXEL_RESCALE", message, lacking)
    kinds = {(frame.instance.modality, frame.units) for frame in frames}
    if len(kinds) > 1:
        raise refusal("SERIES_MIXED_TYPES", f"different modalities or units: {sorted(kinds)}", frames)
    return stack_of(frames)


def _the_series(found: FoundSeries, series_uid: str | None) -> Series:
    """The one that can be meant. A damaged file might be a part of it, so that it cannot be overlooked."""
    damaged = [file for file in found.skipped if file.code in ("DICOM_UNREADABLE", "PIXEL_TOO_LARGE")]
    if damaged:
        message = f"{len(damaged)} damaged files may belong to the series: {damaged[0].reason.rstrip('.')}"
        raise refusal_of(damaged[0].code, message, damaged[0].path, [file.path.name for file in damaged])
    candidates = [series for series in found if series_uid in (None, series.series_uid)]
    if series_uid is not None:
        candidates = [series for series in candidates if not is_localizer(series.frames[0])] or candidates
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise SeriesError(
            "SERIES_AMBIGUOUS",
            f"{len(candidates)} series or parts: " + "; ".join(series.describe() for series in candidates[:4]) + ".",
            path=found.path,
            hint="Name one by series_uid, or take one from find_series.",
            series_uid=candidates[0].series_uid if len({series.series_uid for series in candidates}) == 1 else None,
            instances=[series.frames[0].name for series in candidates],
        )
    if len(found):
        raise refusal_of("SERIES_NONE", f"there is no series {series_uid}", found.path)
    reasons = {file.code: file.reason.rstrip(".") for file in found.skipped}
    only = next(iter(reasons)) if len(reasons) == 1 and (found.path.is_file() or "NOT_DICOM" not in reasons) else None
    message = f"{len(found.skipped)} files, no image series: {'; '.join(reasons.values()) or 'there are none'}"
    raise refusal_of(only or "SERIES_NONE", message, found.path)


def _provenance(series: Series, stack: Stack, padded: int, *, resampled: bool) -> dict[str, Any]:
    notes = list(series.notes)
    if padded:
        notes.append(f"{padded} padding pixels set to {AIR.get(series.modality, 0.0):g}")
    if any(frame.instance.pixels.photometric == "MONOCHROME1" for frame in stack.frames):
        notes.append("MONOCHROME1: to be shown with low values bright; the values are as stored")
    if resampled:
        notes.append("resampled by linear interpolation to an even grid at right angles")
    paths = {frame.instance.path for frame in stack.frames}
    source = DicomSource(
        study_uid=series.study_uid,
        series_uid=series.series_uid,
        frame_of_reference_uid=series.frame_of_reference_uid or None,
        modality=series.modality,
        units=stack.frames[0].units,
        transfer_syntaxes=tuple(sorted({frame.instance.pixels.syntax for frame in stack.frames})),
        frames=tuple(frame.source for frame in stack.frames),
        split=series.split,
        notes=tuple(notes),
        resampled=resampled,
    )
    path = paths.pop() if len(paths) == 1 else stack.frames[0].instance.path.parent
    return {"path": os.fspath(path), "format": "DICOM", PROVENANCE_KEY: source}
