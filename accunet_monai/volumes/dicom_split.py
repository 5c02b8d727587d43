"""The frames of one series → parts that are one volume each, told apart by the attributes that differ.

What changes the grid or the contrast always parts frames. What merely counts repetitions (time, cardiac phase,
acquisition) parts them only where several frames lie at the same depth, and only if it tells all of them apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from accunet_monai.volumes.dicom_frames import Frame

SAME_DEPTH_MM = 0.01
"""Frames whose depths differ by less lie at the same place: positions are written with two decimals or more."""

SAME_DIRECTION = 1e-3
"""Orientations belong together when no cosine differs by more: a twentieth of a degree. Slices of one stack repeat
their cosines; what little they differ is rounding."""

SAME_SPACING_MM = 1e-3
"""Pixel spacings belong together when they differ by less: over 512 pixels this is half a pixel of 1 mm."""

Part = tuple[dict[str, str], list[Frame]]

_COMPONENTS = frozenset("MPRI")  # magnitude, phase, real, imaginary
_CONTRAST = ("EchoTime", "EffectiveEchoTime", "DiffusionBValue", "InversionTimes", "ComplexImageComponent", "StackID")
_COUNTERS = ("TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers")
_TIMES = ("AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime", "ContentTime")
_CONDITIONS = (
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "DiffusionGradientOrientation",
    "InversionTime",
    "FlipAngle",
    "RepetitionTime",
    "FrameReferenceTime",
    "FrameReferenceDateTime",
    "ConvolutionKernel",
    "KVP",
    "ImageType",
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    *_TIMES,
)


def split(frames: Sequence[Frame]) -> list[Part]:
    """Parts of one series: what tells each from the others, and its frames in order of depth.

    Frames that nothing tells apart stay together; the geometry check then refuses them as duplicates. So do odd ones:
    an image of another orientation or size among many is a mistake and no volume of its own.
    """
    parts = _by_text({}, list(frames), "Localizer", _localizer)
    parts = [finer for label, members in parts for finer in _by_orientation(label, members)]
    for name in ("Component", *_CONTRAST):
        key = _component if name == "Component" else _tag(name)
        parts = [finer for label, members in parts for finer in _by_text(label, members, name, key)]
    return [finer for label, members in parts for finer in _by_repetition(label, by_depth(members))]


def by_depth(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames grouped by their depth along the normal of the first that has one, ascending.

    Those without a place come last, each by itself.
    """
    depths = depths_of(frames)
    groups: list[list[Frame]] = []
    last = np.nan
    for index in np.argsort(depths, kind="stable"):
        if abs(depths[index] - last) <= SAME_DEPTH_MM:
            groups[-1].append(frames[index])
        else:
            groups.append([frames[index]])
            last = depths[index]
    return groups


def depths_of(frames: Sequence[Frame]) -> npt.NDArray[np.float64]:
    """(N,) mm along the normal of the first frame that has an orientation; NaN for frames without a place."""
    cosines = next((frame.orientation for frame in frames if frame.orientation), (np.nan,) * 6)
    places = np.array([frame.position or (np.nan,) * 3 for frame in frames], dtype=np.float64).reshape(-1, 3)
    depths: npt.NDArray[np.float64] = places @ np.cross(cosines[:3], cosines[3:])
    return depths


def is_localizer(frame: Frame) -> bool:
    """Whether the image type says so."""
    return "LOCALIZER" in _image_type(frame)


def by_orientation(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames whose direction cosines are near those of a group's first member; frames without go with the first."""
    return _by_nearness(frames, lambda frame: frame.orientation, SAME_DIRECTION)


def by_spacing(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Likewise by pixel spacing."""
    return _by_nearness(frames, lambda frame: frame.spacing, SAME_SPACING_MM)


def _by_orientation(label: dict[str, str], frames: list[Frame]) -> list[Part]:
    """One part for each orientation, if each is a stack."""
    groups = by_orientation(frames)
    if len(groups) == 1 or min(map(len, groups)) == 1:
        return [(label, frames)]
    return [({**label, "ImageOrientationPatient": _cosines(group)}, group) for group in groups]


def _cosines(frames: list[Frame]) -> str:
    first = next(frame.orientation for frame in frames if frame.orientation)
    return "\\".join(f"{value:.4g}" for value in first)


def _by_nearness(
    frames: Sequence[Frame], vector: Callable[[Frame], Sequence[float] | None], tolerance: float
) -> list[list[Frame]]:
    groups: list[tuple[Sequence[float], list[Frame]]] = []
    without = [frame for frame in frames if vector(frame) is None]
    for frame in frames:
        if (value := vector(frame)) is None:
            continue
        near = (members for first, members in groups if _near(first, value, tolerance))
        if (members := next(near, None)) is None:
            groups.append((value, [frame]))
        else:
            members.append(frame)
    if not groups:
        return [without]
    groups[0][1].extend(without)
    return [members for _, members in groups]


def _near(first: Sequence[float], second: Sequence[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))


def _by_text(label: dict[str, str], frames: list[Frame], name: str, key: Callable[[Frame], str]) -> list[Part]:
    groups: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    if len(groups) < 2:
        return [(label, frames)]
    return [({**label, name: text or "none"}, groups[text]) for text in sorted(groups, key=_numbers_first)]


def _by_repetition(label: dict[str, str], groups: list[list[Frame]]) -> list[Part]:
    """Parts with as few frames at one depth as can be; ``groups`` are the frames by depth."""
    worst = max(map(len, groups))
    frames = [frame for group in groups for frame in group]
    if worst == 1:
        return [(label, frames)]
    for name in (*_COUNTERS, *_CONDITIONS):
        key = _tag(name)
        values = sorted({key(frame) for frame in frames}, key=_numbers_first)
        parts = [[members for group in groups if (members := [f for f in group if key(f) == v])] for v in values]
        complete = name in _COUNTERS or all(len(part) == len(groups) for part in parts)
        if 1 < len(parts) <= worst and complete and all(max(map(len, part)) < worst for part in parts):
            labelled = zip(values, parts, strict=True)
            return [finer for text, part in labelled for finer in _by_repetition({**label, name: text or "none"}, part)]
    return _by_rank(label, groups) or [(label, frames)]


def _by_rank(label: dict[str, str], groups: list[list[Frame]]) -> list[Part]:
    """Volumes one after the other, where every slice has a time of its own: the k-th of each depth make volume k.

    Only if all depths have as many frames, and each volume ends before the next begins. Instance numbers serve as times
    only where NumberOfTemporalPositions says that there are as many volumes.
    """
    count = len(groups[0])
    if any(len(group) != count for group in groups):
        return []
    stated = {frame.tags.get("NumberOfTemporalPositions", "") for group in groups for frame in group}
    for name in (*_TIMES, "TriggerTime", "InstanceNumber"):
        numbers = {id(frame): _number(frame, name) for group in groups for frame in group}
        if any(number is None for number in numbers.values()):
            continue
        ranked = [sorted(((numbers[id(f)] or 0.0, f) for f in group), key=lambda pair: pair[0]) for group in groups]
        volumes = list(zip(*ranked, strict=True))
        if name == "InstanceNumber":
            in_order = stated == {str(count)} and all(a[0] < b[0] for row in ranked for a, b in pairwise(row))
        else:
            in_order = all(max(n for n, _ in a) < min(n for n, _ in b) for a, b in pairwise(volumes))
        if in_order:
            return [({**label, name: v[0][1].tags[name]}, [frame for _, frame in v]) for v in volumes]
    return []


def _tag(name: str) -> Callable[[Frame], str]:
    """Reads a tag; equal numbers are equal however they are written."""

    def key(frame: Frame) -> str:
        text = frame.tags.get(name, "")
        number = _number(frame, name)
        return text if number is None or name in _TIMES else f"{number:.6g}"

    return key


def _number(frame: Frame, name: str) -> float | None:
    try:
        return float(frame.tags[name])
    except (KeyError, ValueError):
        return None


def _numbers_first(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _image_type(frame: Frame) -> list[str]:
    return frame.tags.get("ImageType", "").upper().split("\\")


def _localizer(frame: Frame) -> str:
    return "yes" if is_localizer(frame) else "no"


def _component(frame: Frame) -> str:
    """Magnitude, phase, real or imaginary, where the image type says so (third value or later)."""
    return next((value for value in _image_type(frame)[2:] if value in _COMPONENTS), "")
