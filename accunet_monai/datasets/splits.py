"""Who is trained on and who is not: splits and folds, always by subject."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accunet_monai.errors import DatasetError

TRAINED = ("training", "validation")
"""The parts that folds take the place of; all others are held out."""

_Case = TypeVar("_Case", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Split:
    """A split as a file states it; no subject is in two of its parts or in two of its folds.

    Args:
        path: of the file.
        subjects: case name → subject.
        parts: name → case names, e.g. ``training`` and ``validation``.
        folds: the validation cases of each fold of cross-validation.
    """

    path: Path
    subjects: Mapping[str, str]
    parts: Mapping[str, Sequence[str]]
    folds: Sequence[Sequence[str]] = ()

    def subject(self, case: str, otherwise: str) -> str:
        """Whose case it is."""
        return str(self.subjects.get(case, otherwise))

    def part(self, name: str, fold: int | None = None) -> Sequence[str]:
        """The case names of a part; with ``fold`` "validation" is that fold and "training" all others.

        Raises:
            DatasetError: ``SPLIT_INVALID``.
        """
        if fold is not None and name in TRAINED:
            if not 0 <= fold < len(self.folds):
                hint = f"It has {len(self.folds)} folds, counted from 0."
                raise DatasetError("SPLIT_INVALID", f"there is no fold {fold}.", path=self.path, hint=hint)
            if name == "validation":
                return self.folds[fold]
            return [case for other, members in enumerate(self.folds) if other != fold for case in members]
        if name not in self.parts:
            hint = f"It has {', '.join(self.parts)}."
            raise DatasetError("SPLIT_INVALID", f"there is no part {name!r}.", path=self.path, hint=hint)
        return self.parts[name]

    def check_leak(self, subjects: Mapping[str, str] | None = None) -> None:
        """Refuse a subject that is in two parts or in two folds, or in a fold and in a part that is held out.

        Args:
            subjects: case name → subject where the dataset itself names them; by default those of the file.

        Raises:
            DatasetError: ``SPLIT_LEAK``.
        """
        known = self.subjects if subjects is None else {**self.subjects, **subjects}
        folds = [(f"fold {number}", members) for number, members in enumerate(self.folds)]
        held_out = [(name, members) for name, members in self.parts.items() if name not in TRAINED]
        _check_leak(self.parts.items(), known, self.path)
        _check_leak([*folds, *held_out], known, self.path)


def read_split(path: str | os.PathLike[str]) -> Split:
    """Read a split file::

        {"subjects": {"case_1": "a", "case_2": "a", "case_3": "b"},
         "parts": {"training": ["case_1", "case_2"], "validation": ["case_3"]},
         "folds": [["case_1", "case_2"], ["case_3"]]}

    ``folds`` may be missing; a case that ``subjects`` does not name is a subject of its own.

    Raises:
        DatasetError: ``SPLIT_INVALID``, or ``SPLIT_LEAK`` when one subject is in two parts or in two folds.
    """  # noqa: D415 (ends in an example)
    file = Path(path)
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
        subjects, parts, folds = stated["subjects"], stated["parts"], stated.get("folds", [])
        if not isinstance(subjects, dict) or not all(_names(members) for members in parts.values()):
            raise TypeError("subjects must be a mapping, parts lists of case names")
        if not isinstance(folds, list) or not all(_names(members) for members in folds):
            raise TypeError("folds must be lists of case names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError("SPLIT_INVALID", f"not a split file ({error!r}).", path=file) from error
    split = Split(file, subjects, parts, folds)
    split.check_leak()
    return split


def cases_for_folds(cases: Sequence[_Case], parts: Mapping[str, Sequence[str]]) -> list[_Case]:
    """The cases that folds may be drawn from: those of training and validation.

    Where these are not given: all but those of subjects that another part, say ``test``, holds out.

    Args:
        cases: with ``case`` and ``subject``.
        parts: name → case names.
    """
    if set(TRAINED) <= parts.keys():
        trained = {name for part in TRAINED for name in parts[part]}
        return [case for case in cases if case["case"] in trained]
    elsewhere = {name for part, members in parts.items() if part not in TRAINED for name in members}
    held_out = {case["subject"] for case in cases if case["case"] in elsewhere}
    return [case for case in cases if case["subject"] not in held_out]


def folds_by_subject(cases: Iterable[Mapping[str, Any]], folds: int = 5, seed: int = 0) -> list[list[str]]:
    """Case names of each fold's validation: every case in one fold, all cases of a subject in the same.

    Subjects are shuffled by the seed and dealt, those with most cases first, to the fold with the fewest cases so far.
    The result depends on names, subjects and seed, not on the order of the cases.

    Raises:
        DatasetError: ``FOLDS_TOO_MANY``: fewer subjects than folds.

    Example:
        >>> folds_by_subject([{"case": f"c{i}", "subject": f"s{i // 2}"} for i in range(6)], folds=3)
        [['c0', 'c1'], ['c4', 'c5'], ['c2', 'c3']]
    """
    of_subject: dict[str, list[str]] = {}
    for case in cases:
        of_subject.setdefault(str(case.get("subject", case["case"])), []).append(str(case["case"]))
    if folds < 2 or len(of_subject) < folds:
        raise DatasetError(
            "FOLDS_TOO_MANY", f"{folds} folds of {len(of_subject)} subjects: 2 or more, one subject each."
        )
    subjects = sorted(of_subject)
    random.Random(seed).shuffle(subjects)
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for subject in sorted(subjects, key=lambda name: -len(of_subject[name])):
        min(dealt, key=len).extend(of_subject[subject])
    return [sorted(members) for members in dealt]


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _check_leak(parts: Iterable[tuple[str, Sequence[str]]], subjects: Mapping[str, str], path: Path) -> None:
    owner: dict[str, str] = {}
    for part, members in parts:
        for name in members:
            subject = str(subjects.get(name, name))
            if owner.setdefault(subject, part) != part:
                message = f"subject {subject} is in {owner[subject]!r} and in {part!r}."
                raise DatasetError("SPLIT_LEAK", message, path=path)
