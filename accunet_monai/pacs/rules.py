"""Which bundles a series goes to: every rule judged over every instance, with the reason in codes that never change.

Outcomes: ``chosen``; ``not_chosen`` (the condition does not hold, or too few instances); ``refused`` (it holds, but the
series cannot be read, by the codes of :mod:`accunet_monai.volumes.dicom_series`, or pixels may show who the patient
is); ``ambiguous`` (the condition holds for some instances only, or the series holds several volumes, or several series
of the study are meant where one is wanted). Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydicom.dataelem import DataElement
from pydicom.filereader import dcmread
from pydicom.multival import MultiValue

from accunet_monai.errors import SeriesError
from accunet_monai.pacs.conditions import Condition, Tags
from accunet_monai.pacs.settings import BundleRule
from accunet_monai.volumes import FoundSeries, find_series

Outcome = Literal["chosen", "not_chosen", "refused", "ambiguous"]

DAMAGED = ("DICOM_UNREADABLE", "PIXEL_TOO_LARGE", "FILE_MISSING")
NO_GRID = ("GEOM_MISSING_SLICE", "GEOM_NONUNIFORM", "GEOM_TILT")
"""As in :mod:`accunet_monai.batch.sources`, whose import brings torch; a test holds them equal."""

MAX_VALUE_CHARACTERS = 1024
MAX_ELEMENT_BYTES = 1 << 16
"""Values longer than that are not compared."""


@dataclass(frozen=True)
class Decision:
    """What became of one rule for one revision.

    Args:
        bundle: the rule's name.
        outcome, code: see the module; a code goes with all outcomes but ``chosen``.
        detail: counts for each test of the condition, and words of ours; never a value of an instance.
    """

    bundle: str
    outcome: Outcome
    code: str | None
    detail: dict[str, Any]


def decide_all(rules: Sequence[BundleRule], folder: Path) -> list[Decision]:
    """Judge every rule over the series whose files a folder holds, and nothing else."""
    keywords = wanted_tags(rules)
    tags = [read_tags(file, keywords) for file in sorted(folder.iterdir())]
    return [decide(rule, tags, folder) for rule in rules]


def decide(rule: BundleRule, tags: Sequence[Tags], folder: Path) -> Decision:
    """Judge a rule over a series.

    Args:
        rule: of the site.
        tags: of each instance, from :func:`read_tags`.
        folder: as of :func:`decide_all`; looked into only where the condition holds.
    """
    detail: dict[str, Any] = {"instances": len(tags), "tests": tests_of(rule.when, tags)}
    met = sum(rule.when.holds(one) for one in tags)
    if met == 0:
        return Decision(rule.name, "not_chosen", "RULE_NOT_MET", detail)
    if met < len(tags):
        detail["met"] = met
        return Decision(rule.name, "ambiguous", "RULE_MIXED", detail)
    if len(tags) < rule.min_instances:
        return Decision(rule.name, "not_chosen", "RULE_TOO_FEW", {**detail, "wanted": rule.min_instances})
    if not rule.allow_burned_in and any("YES" in map(str.upper, one.get("BurnedInAnnotation", ())) for one in tags):
        return Decision(rule.name, "refused", "BURNED_IN", detail)
    outcome, code, words = readable(find_series(folder), planes=rule.planes)
    return Decision(rule.name, outcome, code, {**detail, **words})


def readable(found: FoundSeries, *, planes: bool) -> tuple[Outcome, str | None, dict[str, Any]]:
    """Whether what lies in a folder is one volume, or why not: outcome, code and words."""
    damaged = [skipped.code for skipped in found.skipped if skipped.code in DAMAGED]
    if damaged:
        return "refused", damaged[0], {"files": len(damaged)}
    problems = [part.problem for part in found if part.problem is not None and not _by_planes(part.problem, planes)]
    if len(found) > 1:
        words = {"parts": len(found), "differ_by": sorted({name for part in found for name in part.split})}
        return "ambiguous", "SERIES_AMBIGUOUS", {**words, "problems": sorted({error.code for error in problems})}
    if problems:
        return "refused", problems[0].code, {"concerned": len(problems[0].instances)}
    if not len(found):
        return "refused", "SERIES_NOT_IMAGE" if found.skipped else "SERIES_NONE", {"files": len(found.skipped)}
    return "chosen", None, {}


def tests_of(condition: Condition, tags: Sequence[Tags]) -> list[dict[str, Any]]:
    """For every part of a condition, how many instances meet it; inner parts follow outer ones, deeper."""

    def walk(part: Condition, depth: int) -> list[dict[str, Any]]:
        entry = {"depth": depth, "test": part.describe(), "met": sum(part.holds(one) for one in tags)}
        return [entry, *(deeper for inner in part.inner() for deeper in walk(inner, depth + 1))]

    return walk(condition, 0)


def wanted_tags(rules: Sequence[BundleRule]) -> list[str]:
    """The keywords that any rule looks at."""
    return sorted({"BurnedInAnnotation", *(part.tag for rule in rules for part in rule.when.parts() if part.tag)})


def read_tags(file: Path, keywords: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """These tags of a file's top level as texts; what is absent, too long or unreadable has no values."""
    try:
        ds = dcmread(file, stop_before_pixels=True, specific_tags=list(keywords), defer_size=MAX_ELEMENT_BYTES)
        return {keyword: _texts(ds[keyword]) for keyword in keywords if keyword in ds}
    except MemoryError:  # ends the child that reads, and the series is refused
        raise
    except Exception:  # pydicom raises many types on damaged bytes; find_series then says what is wrong
        return {}


def _texts(element: DataElement) -> tuple[str, ...]:
    value = element.value
    values = list(value) if isinstance(value, MultiValue) else [value]
    texts = ("" if one is None else str(one).strip(" \0") for one in values)
    return tuple(text for text in texts if 0 < len(text) <= MAX_VALUE_CHARACTERS)


def _by_planes(problem: SeriesError, planes: bool) -> bool:
    return planes and problem.code in NO_GRID
