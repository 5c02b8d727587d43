"""The cases of a labelled dataset, or of a part of its split."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accunet_monai.datasets.digest import NAMES
from accunet_monai.datasets.splits import read_split
from accunet_monai.errors import DatasetError
from accunet_monai.volumes import is_dicom, read_grid, volume_stem
from accunet_monai.volumes.geometry import same_placement

Case = dict[str, Any]
"""``image`` and ``label`` (paths), ``case`` (its name) and ``subject`` (whose it is); ``image_1``, … are the files of
further channels, where each has its own."""


def decathlon_cases(
    dataset_dir: str | os.PathLike[str],
    split_file: str | os.PathLike[str] | None = None,
    part: str | None = None,
    limit: int | None = None,
    label_key: str = "label",
    fold: int | None = None,
) -> list[Case]:
    """Cases of a dataset in the Medical Segmentation Decathlon's layout (``dataset.json``, ``imagesTr``, ``labelsTr``).

    Args:
        dataset_dir: folder that holds ``dataset.json``.
        split_file: JSON with ``subjects`` (case name → subject), one list of case names per part in ``parts``, and
            lists of case names in ``folds``; see :func:`~accunet_monai.datasets.read_split`.
        part: the part of the split to take, e.g. ``"training"`` or ``"validation"``; ``None`` takes all cases.
        limit: take only the first so many, for trials.
        label_key: key under which the label's path is given.
        fold: of cross-validation: ``"validation"`` is this fold and ``"training"`` all others.

    Returns:
        One ``{"image": path, label_key: path, "case": name, "subject": subject}`` per case, in the order of the split
        or of the dataset. Without a split file each case is a subject of its own.

    Raises:
        DatasetError: ``DATASET_MISSING``, ``DATASET_INVALID``, ``SPLIT_INVALID``, ``SPLIT_LEAK`` (one subject in two
            parts), ``DATASET_FILES`` (missing files named) or ``LABEL_GRID`` (labels not on their image's grid).
    """
    folder = Path(dataset_dir)
    return chosen_cases(_listed_cases(folder), folder, split_file, part, limit, label_key, fold)


def chosen_cases(
    listed: Sequence[Case],
    dataset: Path,
    split_file: str | os.PathLike[str] | None,
    part: str | None,
    limit: int | None,
    label_key: str,
    fold: int | None,
) -> list[Case]:
    """Those of a dataset's cases that a part of a split names, with their subjects, checked to be there; as above."""
    cases = {case["case"]: case for case in listed}
    names: Sequence[str] = list(cases)
    if part is not None and split_file is None:
        raise DatasetError("SPLIT_INVALID", f"part {part!r} was asked for without a split file.")
    if split_file is not None:
        split = read_split(split_file)
        for name, case in cases.items():
            case["subject"] = split.subject(name, case["subject"])
        split.check_leak({name: case["subject"] for name, case in cases.items()})
        if part is not None:
            names = _known(split.part(part, fold), cases, part, split_file)
    chosen = [cases[name] for name in names][:limit]
    if not chosen:
        raise DatasetError("DATASET_INVALID", f"no cases{f' in part {part!r}' if part else ''}.", path=dataset)
    files = [str(case[key]) for case in chosen for key in case if key not in NAMES]
    missing = [path for path in files if not Path(path).exists()]
    if missing:
        raise DatasetError(
            "DATASET_FILES", f"{len(missing)} listed files are missing: {', '.join(missing[:5])}.", path=dataset
        )
    _check_grids(chosen, dataset)
    return [{label_key if key == "label" else key: value for key, value in case.items()} for case in chosen]


def case_name(path: str | os.PathLike[str]) -> str:
    """The name of a case: that of its image file without the format's ending."""
    return volume_stem(path)


def _listed_cases(folder: Path) -> list[Case]:
    listing = folder / "dataset.json"
    if not listing.is_file():
        raise DatasetError(
            "DATASET_MISSING",
            "no dataset.json: not a dataset in the Decathlon's layout.",
            path=folder,
            hint="Give the folder that holds dataset.json as --dataset_dir, or --download true where there is network.",
        )
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))["training"]
        return [_case(folder / entry["image"], folder / entry["label"]) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        message = f"dataset.json is not as the Decathlon has it ({error!r})."
        raise DatasetError("DATASET_INVALID", message, path=listing) from error


def _case(image: Path, label: Path) -> Case:
    name = case_name(image)
    return {"image": str(image), "label": str(label), "case": name, "subject": name}


def _known(
    names: Sequence[str], cases: Mapping[str, Case], part: str, split_file: str | os.PathLike[str]
) -> Sequence[str]:
    absent = sorted(set(names) - set(cases))
    if absent:
        raise DatasetError(
            "SPLIT_INVALID",
            f"{len(absent)} cases of part {part!r} are not in the dataset, e.g. {', '.join(absent[:3])}.",
            path=split_file,
        )
    return names


def _check_grids(cases: Sequence[Case], dataset: Path) -> None:
    """Refuse labels that do not lie on their image's grid: shape or placement."""
    problems = []
    for case in cases:
        if is_dicom(Path(case["image"])):
            continue  # its grid is known when its planes are read; a SEG is put on these
        image, label = read_grid(case["image"], time_point=0), read_grid(case["label"])  # of channels the first
        if image.shape != label.shape:
            problems.append(f"{case['case']} (sizes {image.shape} and {label.shape})")
        elif not same_placement(image.affine_ras, label.affine_ras, image.shape):
            problems.append(f"{case['case']} (orientation or position)")
    if problems:
        raise DatasetError(
            "LABEL_GRID",
            f"{len(problems)} labels are not on their image's grid: {', '.join(problems[:5])}.",
            path=dataset,
            hint="Resample these labels onto their images.",
        )
