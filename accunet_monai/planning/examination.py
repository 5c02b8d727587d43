"""Everything that is wrong with a dataset, found in one pass over its files and told at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from accunet_monai.datasets import Listing, Split, cases_for_folds, read_split
from accunet_monai.datasets.digest import NAMES
from accunet_monai.errors import AccunetError, DatasetError
from accunet_monai.planning.facts import CaseFacts, measure
from accunet_monai.volumes import Volume, read_channels
from accunet_monai.volumes.geometry import largest_shift_mm, same_placement
from accunet_monai.volumes.label_reading import read_labels_of

OBLIQUE_DEGREES = 15.0
"""Beyond this the array's axes are called oblique: a slice along them is no longer axial, coronal or sagittal."""

ODD_SPACING = 3.0
"""A spacing this many times the median, or a part of it, is likely a mistake in the header."""

FEW_SUBJECTS = 10
"""With fewer, the interval of any mean is wider than the differences that one wants to see."""


@dataclass(frozen=True)
class Problem:
    """What is wrong: a stable code, the case, and what was found."""

    code: str
    case: str
    message: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.case}: {self.message}"


@dataclass(frozen=True)
class Examination:
    """A dataset that can be trained on.

    Args:
        listing: its usable cases and all labels, with names.
        facts: of each case.
        warnings: what should be known and does not prevent training.
        modality: of all images.
        split: as given by the user, if one was.
    """

    listing: Listing
    facts: tuple[CaseFacts, ...]
    warnings: tuple[Problem, ...]
    modality: str
    split: Split | None = None


def examine(
    listing: Listing, split_file: str | os.PathLike[str] | None = None, console: Console | None = None
) -> Examination:
    """Read every image and label of a dataset and hold them against each other and against what is declared.

    Args:
        listing: from :func:`~accunet_monai.datasets.list_dataset`.
        split_file: with the subjects of the cases, and folds if they are to be as they are there.
        console: for the progress bar; ``None`` shows none.

    Raises:
        DatasetError: ``DATASET_BROKEN``, with every problem on a line of its own: ``FILE_MISSING``, ``CASE_TWICE``,
            ``LABEL_GRID``, ``LABEL_UNDECLARED``, ``IMAGE_TWICE``, ``SPLIT_LEAK``, ``SPLIT_INVALID``,
            ``SUBJECTS_TOO_FEW`` and the codes of whatever cannot be read (``VOLUME_NONFINITE``, …).
    """
    problems, warnings = _twice(listing.cases), list[Problem]()
    split = None
    if split_file is not None:
        try:
            split = read_split(split_file)
        except DatasetError as error:
            problems.append(Problem(error.code, Path(split_file).name, error.message))
    facts = []
    shown = track(listing.cases, "reading cases", console=console, disable=console is None, transient=True)
    for case in shown:
        found = _read(case, listing, problems)
        if found is not None:
            subject = found.subject if split is None else split.subject(found.case, found.subject)
            facts.append(replace(found, subject=subject))
    problems += _leaks(split, facts)
    modality = _modality(listing, facts)
    kept = [fact for fact in facts if fact.modality == modality] if not listing.channels else facts
    for fact in facts:
        if not any(fact is one for one in kept):
            message = f"left out: it looks like {fact.modality}, most others like {modality}"
            warnings.append(Problem("MODALITY_MIXED", fact.case, message))
    labels = dict(listing.labels) or _names_for(modality, listing)
    labels = _check_labels(labels, kept, listing, problems, warnings)
    problems += _same_images(facts)
    trained = trained_on(kept, split)
    if len({fact.subject for fact in trained}) < 2 and not problems:
        message = f"{len(trained)} cases of fewer than two subjects: nobody is left to validate on"
        problems.append(Problem("SUBJECTS_TOO_FEW", listing.name, message))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DatasetError("DATASET_BROKEN", f"{count}:\n{lines}", path=listing.path)
    warnings += _oddities(kept)
    subjects = len({fact.subject for fact in kept})
    if split is None and subjects == len(kept):
        message = "no subjects are given, so each case is one; name those with several in a split file or a table"
        warnings.append(Problem("SUBJECTS_ASSUMED", "dataset", message))
    if subjects < FEW_SUBJECTS:
        message = f"{subjects} subjects: enough to see that training works, not to know how well it does on others"
        warnings.append(Problem("SUBJECTS_FEW", "dataset", message))
    names = {fact.case for fact in kept}
    cases = tuple(case for case in listing.cases if case["case"] in names)
    return Examination(replace(listing, cases=cases, labels=labels), tuple(kept), tuple(warnings), modality, split)


def trained_on(facts: Sequence[CaseFacts], split: Split | None) -> list[CaseFacts]:
    """Those that folds may be drawn from: without the parts that a split holds out."""
    cases = [{"case": fact.case, "subject": fact.subject} for fact in facts]
    names = {case["case"] for case in cases_for_folds(cases, {} if split is None else split.parts)}
    return [fact for fact in facts if fact.case in names]


def _read(case: Mapping[str, Any], listing: Listing, problems: list[Problem]) -> CaseFacts | None:
    """The facts of a case, or what is wrong with it added to the problems."""
    name = str(case["case"])
    missing = [key for key in case if key not in NAMES and not Path(case[key]).exists()]
    problems += [Problem("FILE_MISSING", name, f"its {key} {Path(case[key]).name} is not there") for key in missing]
    if any(key != "label" for key in missing):
        return None
    channels = _opened(name, problems, read_channels, case["image"], listing.image_channels)
    if channels is None or "label" in missing:
        return None
    image: Volume = channels[0]
    label: Volume | None = _opened(name, problems, read_labels_of, case["label"], image)
    if label is None:
        return None
    difference = _difference(image, label)
    if difference:
        problems.append(Problem("LABEL_GRID", name, difference))
        return None
    return measure(case, image, label, listing.ignore_label)


def _opened(name: str, problems: list[Problem], read: Any, *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except AccunetError as error:
        problems.append(Problem(error.code, name, f"{Path(arguments[0]).name}: {error.message}"))
        return None


def _difference(image: Volume, label: Volume) -> str | None:
    if image.shape != label.shape:
        return f"label of size {_times(label.shape)} on an image of {_times(image.shape)}"
    if same_placement(image.affine_ras, label.affine_ras, image.shape):
        return None
    if image.axcodes != label.axcodes:
        return f"label oriented {''.join(label.axcodes)} on an image oriented {''.join(image.axcodes)}"
    return f"label lies up to {largest_shift_mm(image.affine_ras, label.affine_ras, image.shape):.3g} mm off its image"


def _twice(cases: Sequence[Mapping[str, Any]]) -> list[Problem]:
    counts = Counter(str(case["case"]) for case in cases)
    return [Problem("CASE_TWICE", name, f"{n} cases of this name") for name, n in counts.items() if n > 1]


def _leaks(split: Split | None, facts: Sequence[CaseFacts]) -> list[Problem]:
    """Whether the split leaks with the subjects that the dataset itself names."""
    if split is None:
        return []
    try:
        split.check_leak({fact.case: fact.subject for fact in facts})
    except DatasetError as error:
        return [Problem(error.code, split.path.name, error.message)]
    return []


def _same_images(facts: Sequence[CaseFacts]) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for fact in facts:
        earlier = first.setdefault(fact.digest, fact.case)
        if earlier != fact.case:
            problems.append(Problem("IMAGE_TWICE", fact.case, f"its image has the voxels of {earlier}'s"))
    return problems


def _modality(listing: Listing, facts: Sequence[CaseFacts]) -> str:
    """As declared, else what most images are or look like."""
    if listing.channels:
        return "CT" if all("CT" in channel.upper().split() for channel in listing.channels) else "MR"
    counts = Counter(fact.modality for fact in facts)
    return counts.most_common(1)[0][0] if counts else "MR"


def _names_for(modality: str, listing: Listing) -> dict[int, str]:
    """Of several groups of names the one that is said to be for the modality."""
    return next((dict(names) for what, names in listing.names.items() if f"({modality})" in what), {})


def _check_labels(
    labels: Mapping[int, str],
    facts: Sequence[CaseFacts],
    listing: Listing,
    problems: list[Problem],
    warnings: list[Problem],
) -> dict[int, str]:
    """Names of all labels; values that nobody declared are problems, or are named by their number if nothing is."""
    present: Counter[int] = Counter()
    declared = {*labels, *(value for region in listing.regions for value in region.values)}
    for fact in facts:
        values = {value: count for value, count in fact.counts.items() if value not in (0, listing.ignore_label)}
        present.update(values)
        if not values:
            warnings.append(Problem("LABEL_EMPTY", fact.case, "its label map has no label"))
        for value, count in values.items():
            if labels and value not in declared:
                message = f"label value {value} ({count} voxels) is not declared"
                problems.append(Problem("LABEL_UNDECLARED", fact.case, message))
    if not labels:
        labels = {value: f"label {value}" for value in sorted(present)}
        names = "the dataset names no labels; a labels.json beside it can"
        warnings.append(Problem("LABEL_UNNAMED", "dataset", names))
    absent = [name for value, name in labels.items() if value not in present]
    if absent and present:
        message = f"{len(absent)} of {len(labels)} declared labels are in no case: {', '.join(absent[:3])}"
        warnings.append(Problem("LABEL_ABSENT", "dataset", message + (" …" if len(absent) > 3 else "")))
    if not present and facts:
        problems.append(Problem("LABEL_EMPTY", "dataset", "no case has any label"))
    return dict(labels)


def _oddities(facts: Sequence[CaseFacts]) -> list[Problem]:
    """Things that are allowed and often mistakes."""
    found = []
    orientations = Counter(fact.axcodes for fact in facts)
    if len(orientations) > 1:
        told = ", ".join(f"{count} × {axcodes}" for axcodes, count in orientations.most_common())
        found.append(Problem("ORIENTATION_MIXED", "dataset", f"{told}; the bundle turns all to RAS"))
    middle = [sorted(fact.spacing[axis] for fact in facts)[len(facts) // 2] for axis in range(3)]
    for fact in facts:
        tilt = fact.ranges["tilt_degrees"][0][0]
        if tilt > OBLIQUE_DEGREES:
            found.append(Problem("IMAGE_OBLIQUE", fact.case, f"its axes are {tilt:.0f} degrees off the patient's"))
        ratios = [max(one / usual, usual / one) for one, usual in zip(fact.spacing, middle, strict=True)]
        if max(ratios) > ODD_SPACING:
            shown = " × ".join(f"{one:.3g}" for one in fact.spacing)
            message = f"spacing {shown} mm; half of the cases have up to {' × '.join(f'{one:.3g}' for one in middle)}"
            found.append(Problem("SPACING_ODD", fact.case, message))
        if not fact.ranges["relative_deviation"][0][0] > 0:
            found.append(Problem("IMAGE_CONSTANT", fact.case, "all voxels have one value"))
    return found


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
