"""What follows from a dataset's facts: every choice with its reason, and every one of them can be made by the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accunet_monai.datasets import Listing, folds_by_subject
from accunet_monai.errors import DatasetError, did_you_mean
from accunet_monai.planning.examination import Examination, trained_on
from accunet_monai.planning.facts import CaseFacts
from accunet_monai.planning.memory import largest_batch, training_bytes
from accunet_monai.planning.sides import has_side, unnamed

AXES = ("left to right (sagittal slices)", "back to front (coronal slices)", "bottom to top (axial slices)")

ANISOTROPIC = 1.5
"""Slices this many times as far apart as their pixels are slices of the scanner, and interpolating between them is
guessing; nnU-Net's threshold is 3, for 3D networks."""

NEAR = 2.5
"""Neighbours no farther than this many pixels show much of the same."""

SAME_SPACING = 0.05
"""In-plane spacings within this share of their median are taken as one."""

CLEARLY = 0.95
"""Another axis is preferred to axial slices where those cover less than this share of what it does."""

NARROW = 32
"""No slice has a side of fewer voxels, or of an eighth of the other's, where slicing along that side avoids it."""

LARGEST_PLANE = 320
"""Pixels of a side up to which whole slices are trained on."""

CROP = 256
STEPS = 7000
"""Steps of the shipped hippocampus bundle's training, of similar size; a first training should take hours, not days."""

BARE = 0.2
"""At most this share of the slices that are drawn has no label."""

LAST = 1e-4
"""Weight of slices without a label that come only when all others are drawn."""


@dataclass(frozen=True)
class Choice:
    """A choice: its key in plan.yaml, its value and why."""

    key: str
    value: Any
    reason: str


class Plan:
    """Choices in the order in which they were made; a user's own values take the place of ours.

    Args:
        own: key → value.
    """

    def __init__(self, own: Mapping[str, Any] | None = None) -> None:
        self.choices: list[Choice] = []
        self._own = dict(own or {})

    def choose(self, key: str, value: Any, reason: str) -> Any:
        """Take note of a choice; returns the value, or the user's."""
        own = self._own.pop(key, value)
        if own != value:
            value, reason = own, f"set by you; the plan had {shown(value)}: {reason}"
        self.choices.append(Choice(key, value, reason))
        return value

    def __getitem__(self, key: str) -> Any:
        return next(choice.value for choice in self.choices if choice.key == key)

    def check_all_used(self) -> None:
        """Refuse own values for what the plan does not choose.

        Raises:
            DatasetError: ``PLAN_UNKNOWN_KEY``.
        """
        for key in self._own:
            known = [choice.key for choice in self.choices]
            hint = did_you_mean(key, known) or f"It chooses {', '.join(known)}."
            raise DatasetError("PLAN_UNKNOWN_KEY", f"the plan has no choice {key!r}.", hint=hint)


def make_plan(
    found: Examination, memory_gib: float, *, gpu: bool = False, own: Mapping[str, Any] | None = None
) -> Plan:
    """All choices for a dataset.

    Args:
        found: the examined dataset.
        memory_gib: that a training may take.
        gpu: whether it is a GPU's.
        own: the user's values.

    Raises:
        DatasetError: ``PLAN_UNKNOWN_KEY``, ``PLAN_MEMORY`` (not even one slice fits), ``PLAN_VALUE`` (a value that
            makes no sense).
    """
    plan = Plan(own)
    try:
        plan.choose("modality", found.modality, "as declared" if found.listing.channels else "as the intensities look")
        _choose_planes(plan, found.facts)
        _choose_intensities(plan, found)
        _choose_sampling(plan, found)
        _choose_network(plan, found, memory_gib, gpu)
        _choose_training(plan, found)
        _choose_cache(plan, found, memory_gib)
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, DatasetError):
            raise
        hint = "Values are as plan.yaml of an earlier plan has them."
        raise DatasetError("PLAN_VALUE", f"a value that was set makes no sense ({error}).", hint=hint) from error
    plan.check_all_used()
    return plan


def network_classes(listing: Listing) -> int:
    """Channels that the network gives: a region each, or background and every label up to the largest."""
    return len(listing.regions) or max(listing.labels) + 1


def in_plane(axis: int) -> tuple[int, int]:
    """The axes of rows and columns of slices along an axis."""
    first, second = (other for other in range(3) if other != axis)
    return first, second


def _choose_planes(plan: Plan, facts: Sequence[CaseFacts]) -> None:
    spacing = np.median([fact.spacing for fact in facts], axis=0)
    axis = plan.choose("slicing_axis", *_slicing_axis(spacing, facts))
    rows, columns = in_plane(axis)
    pixel = spacing[[rows, columns]]
    if max(pixel) / min(pixel) < 1.1:
        pixel = np.full(2, float(pixel.mean()))
    every = np.array([fact.spacing for fact in facts])[:, [rows, columns]]
    off = float(np.abs(every / pixel - 1).max())
    target = [round(float(size), 4) for size in pixel]
    if off <= SAME_SPACING:
        told = f"within {off:.0%} of" if off > 0.005 else "at"
        reason = f"every case is {told} {target[0]:g} × {target[1]:g} mm: nothing is resampled"
        pixels = plan.choose("in_plane_spacing", None, reason)
    else:
        reason = f"the median; cases have up to {off:.0%} more or less, and the network sees pixels, not mm"
        pixels = plan.choose("in_plane_spacing", target, reason)
    largest = _largest_plane(plan, facts)
    roi = [min(-(-size // 16) * 16, LARGEST_PLANE) for size in largest]
    if max(largest) <= LARGEST_PLANE:
        reason = (
            f"whole slices: the largest has {largest[0]} × {largest[1]} pixels, and the network takes multiples of 16"
        )
    else:
        roi = [min(size, CROP) for size in roi]
        told = f"parts of slices of up to {largest[0]} × {largest[1]} pixels"
        reason = f"{told}, drawn at random; balance keeps a label in view where the slice has one"
    plan.choose("roi_size", roi, reason)
    distance = float(spacing[axis] / (np.mean(pixels) if pixels is not None else pixel.mean()))
    near = f"neighbouring slices are {spacing[axis]:.3g} mm apart, {distance:.2g} times as far as pixels:"
    if distance <= NEAR:
        plan.choose("context_slices", 1, f"{near} near enough to help as channels")
    else:
        plan.choose("context_slices", 0, f"{near} too far to show the same")


def _largest_plane(plan: Plan, facts: Sequence[CaseFacts]) -> list[int]:
    """Rows and columns of the largest slice, in the pixels that are trained on."""
    plane = list(in_plane(plan["slicing_axis"]))
    sizes = np.array([fact.shape for fact in facts])[:, plane].astype(float)
    if plan["in_plane_spacing"] is not None:
        sizes *= np.array([fact.spacing for fact in facts])[:, plane] / np.asarray(plan["in_plane_spacing"])
    return [math.ceil(size - 1e-6) for size in sizes.max(axis=0)]


def _slicing_axis(spacing: Any, facts: Sequence[CaseFacts]) -> tuple[int, str]:
    shape = np.median([fact.shape for fact in facts], axis=0)
    short, second = (int(axis) for axis in np.argsort(shape)[:2])
    narrow = shape[short] < max(min(NARROW, shape[second] / 2), shape[second] / 8)
    order = np.argsort(spacing)
    axis = int(order[2])
    ratio = float(spacing[axis] / spacing[order[1]])
    shown = " × ".join(f"{size:.3g}" for size in spacing)
    if ratio >= ANISOTROPIC and (axis == short or not narrow):
        return axis, f"{AXES[axis]}: voxels of {shown} mm, this axis is {ratio:.2g} times as coarse"
    if narrow:
        return short, f"{AXES[short]}: slices along another axis would be {shape[short]:g} voxels wide"
    coverage = np.mean([fact.coverage for fact in facts], axis=0)
    axis = int(coverage.argmax())
    if coverage[2] >= CLEARLY * coverage[axis]:
        axis = 2
    told = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(("sagittal", "coronal", "axial"), coverage, strict=True)
    )
    return axis, f"{AXES[axis]}: voxels of {shown} mm are about cubes; the labels cover of a slice with any: {told}"


def _choose_intensities(plan: Plan, found: Examination) -> None:
    if plan["modality"] == "CT":
        values = np.concatenate([fact.intensities for fact in found.facts])
        low, high = (round(float(value)) for value in np.percentile(values, [0.5, 99.5]))
        low, high = plan.choose("window", [low, high], "HU: 0.5th to 99.5th percentile of the labelled voxels")
        clipped = np.clip(values, low, high)
        mean, deviation = round(float(clipped.mean()), 2), round(float(max(clipped.std(), 1.0)), 2)
        reason = (
            "one mean and deviation for all cases, of the labelled voxels in the window: HU mean the same everywhere"
        )
        plan.choose("normalisation", {"mean": mean, "deviation": deviation}, reason)
    else:
        each = "each image" if found.listing.image_channels == 1 else "each channel of each image"
        reason = f"percentiles of {each}: MR has no absolute scale, and its brightest voxels are often artefacts"
        plan.choose("window", [0.5, 99.5], reason)
        plan.choose("normalisation", each, f"mean 0 and deviation 1 within {each}")


def _choose_network(plan: Plan, found: Examination, memory_gib: float, gpu: bool) -> None:
    channels = found.listing.image_channels * (2 * plan["context_slices"] + 1)
    classes = network_classes(found.listing)
    rows, columns = plan["roi_size"]
    available = int(memory_gib * 2**30)

    def taken(batch: int, width: int) -> int:
        return training_bytes(batch, rows, columns, width, channels, classes)

    widths = (32, 16, 8, 4) if gpu else (16, 8, 4)
    fitting = next((width for width in widths if taken(8, width) <= available), widths[-1])
    reason = f"batches of 8 take about {taken(8, fitting) / 2**30:.2g} of {memory_gib:.3g} GiB"
    reason += "" if gpu else "; no GPU here, where the paper's 32 takes three to four times as long as 16"
    width = plan.choose("width", fitting, reason)
    half = max(_drawn(plan, found.facts) // 2, 1)  # what the smallest training draws in an epoch
    most = min(16, 2 ** (half.bit_length() - 1))
    batch = largest_batch(available, rows, columns, width, channels, classes, most)
    if not batch:
        raise DatasetError(
            "PLAN_MEMORY",
            f"one slice of {rows} × {columns} takes {taken(1, width) / 2**30:.2g} GiB at width {width}, "
            f"{memory_gib:.3g} are given.",
            hint="Give more --memory, or --set roi_size or width.",
        )
    reason = f"about {taken(batch, width) / 2**30:.2g} GiB; with more than {most} an epoch would have few steps"
    plan.choose("batch_size", batch, reason)


def _choose_sampling(plan: Plan, found: Examination) -> None:
    axis, facts = plan["slicing_axis"], found.facts
    totals: dict[int, int] = {}
    for fact in facts:
        for value, count in fact.slices_with[axis].items():
            totals[value] = totals.get(value, 0) + count
    names = found.listing.labels
    present = {value: count for value, count in totals.items() if value in names}
    rare, common = min(present, key=lambda v: present[v]), max(present, key=lambda v: present[v])
    told = f"{names[rare]} is in {present[rare]} slices, {names[common]} in {present[common]}: "
    uneven = present[rare] < 0.2 * present[common]
    cropped = any(size > roi for size, roi in zip(_largest_plane(plan, facts), plan["roi_size"], strict=True))
    if cropped:
        told = "slices are cropped, and only what is drawn for a label is cropped around it: "
    reason = told + ("each label is drawn equally often" if uneven or cropped else "even enough")
    balance = plan.choose("balance", uneven or cropped, reason)
    _choose_empty(plan, found, len(totals) if balance else 0)
    _choose_mirror(plan, names)


def _choose_empty(plan: Plan, found: Examination, balanced: int) -> None:
    """How many slices are drawn, and how many of these have no label.

    Args:
        plan: so far.
        found: the examined dataset.
        balanced: number of labels that are drawn equally often, 0 where each slice is.
    """
    axis = plan["slicing_axis"]
    slices = sum(fact.shape[axis] for fact in found.facts)
    bare = sum(fact.empty[axis] * fact.shape[axis] for fact in found.facts) / slices
    share = min(bare, BARE)
    told = f"{bare:.0%} of the slices have no label"
    if balanced:  # they count as one more label
        weight = float(f"{balanced * share / (1 - share):.3g}")
        told += f"; of this weight beside {balanced} labels of weight 1 they are {share:.0%} of those drawn"
    elif bare > BARE:
        weight = LAST
        told += "; of this weight they come after all others, see slices_per_epoch"
    else:
        weight = 1.0
    share = share if plan.choose("empty", weight, told) else 0.0
    number = float(f"{(1 - bare) / (1 - share):.4g}")
    told = f"{number:.0%} of all slices, as many as have a label"
    told += f" and so many more that {share:.0%} have none" if share else ""
    plan.choose("slices_per_epoch", number, told)


def _choose_mirror(plan: Plan, names: Mapping[int, str]) -> None:
    sided = sorted(name for name in names.values() if has_side(name))
    nameless = unnamed(names.values())
    if sided:
        plan.choose("mirror_left_right", False, f"labels know their side, e.g. {sided[0]}")
    elif len(nameless) > 1:
        reason = f"labels without a name, e.g. {nameless[0]}, may be of one side; true where none is"
        plan.choose("mirror_left_right", False, reason)
    else:
        plan.choose("mirror_left_right", True, "no label's name says left or right")


def _drawn(plan: Plan, facts: Sequence[CaseFacts]) -> int:
    """Slices that an epoch would draw of all cases."""
    slices = sum(fact.shape[plan["slicing_axis"]] for fact in facts)
    stated = plan["slices_per_epoch"]
    if stated is None:
        return slices
    return round(stated * slices) if isinstance(stated, float) else int(stated)


def _choose_training(plan: Plan, found: Examination) -> None:
    names = found.listing.labels
    if found.listing.ignore_label is not None:
        reason = "voxels of this value are not annotated and count nowhere"
        plan.choose("ignore_label", found.listing.ignore_label, reason)
    else:
        plan.choose("ignore_label", None, "the dataset declares none")
    voxels = sum(sum(fact.counts.values()) for fact in found.facts)
    share = sum(count for fact in found.facts for value, count in fact.counts.items() if value in names) / voxels
    reason = f"Dice for labels that are small ({share:.2%} of all voxels), cross-entropy for steady gradients"
    plan.choose("loss", "dice_ce", reason)
    if found.split is not None and found.split.folds:
        plan.choose("folds", len(found.split.folds), "as the given split has them")
    else:
        trained = trained_on(found.facts, found.split)
        subjects = len({fact.subject for fact in trained})
        told = f"{len(trained)} cases of {subjects} subjects; a subject's cases stay together"
        plan.choose("folds", min(5, subjects), told)
    slices = _drawn(plan, found.facts) * (plan["folds"] - 1) // plan["folds"]
    steps = max(1, slices // plan["batch_size"])
    epochs = int(np.clip(round(STEPS / steps), 10, 400))
    plan.choose("max_epochs", epochs, f"about {epochs * steps} steps of {steps} an epoch; watch the curve and set more")


def _choose_cache(plan: Plan, found: Examination, memory_gib: float) -> None:
    scale = 1.0
    if plan["in_plane_spacing"] is not None:
        old = np.median([fact.spacing for fact in found.facts], axis=0)[list(in_plane(plan["slicing_axis"]))]
        scale = float(np.prod(old) / np.prod(plan["in_plane_spacing"]))
    voxels = scale * sum(math.prod(fact.shape) for fact in found.facts)
    size = voxels * (4 * found.listing.image_channels + 1) / 2**30  # float32, and a byte for the label
    told = f"the preprocessed volumes take about {size:.2g} GiB:"
    if size > 0.25 * memory_gib:
        plan.choose("cache", True, f"{told} they are kept on disk and mapped into memory")
    else:
        plan.choose("cache", False, f"{told} they stay in memory")


def split_of(found: Examination, plan: Plan) -> dict[str, Any]:
    """The content of split.json: subjects, parts and folds, as far as they were not given made from the subjects.

    Without given parts the first fold is the validation.

    Raises:
        DatasetError: ``FOLDS_TOO_MANY``, ``SPLIT_INVALID`` when the given split names cases that are not there.
    """
    cases = {fact.case: fact.subject for fact in found.facts}
    given = found.split
    folds = [list(members) for members in given.folds] if given is not None else []
    parts = {name: list(members) for name, members in given.parts.items()} if given is not None else {}
    absent = sorted({name for members in (*folds, *parts.values()) for name in members} - set(cases))
    if given is not None and absent:
        message = f"{len(absent)} of its cases are not in the dataset, e.g. {', '.join(absent[:3])}."
        raise DatasetError("SPLIT_INVALID", message, path=given.path)
    drawn = [{"case": fact.case, "subject": fact.subject} for fact in trained_on(found.facts, given)]
    folds = folds or folds_by_subject(drawn, plan["folds"])
    if not {"training", "validation"} <= parts.keys():
        parts |= {"training": [name for members in folds[1:] for name in members], "validation": folds[0]}
    return {"subjects": cases, "parts": parts, "folds": folds}


def shown(value: Any) -> str:
    """A value as the table and the page have it."""
    return "none" if value is None else str(value)
