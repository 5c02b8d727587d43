"""The five sets of pictures that ACC-UNet was published with, read as they come out of their archives.

| set | what lies in the dataset's folder |
|---|---|
| ``glas`` | ``train_1.bmp`` with ``train_1_anno.bmp`` (glands are numbered), ``testA_…``, ``testB_…``, ``Grade.csv`` |
| ``clinicdb`` | ``Original/1.tif`` with ``Ground Truth/1.tif``, or both as ``.png`` |
| ``busi`` | ``benign/benign (1).png`` with ``benign (1)_mask.png``, ``benign (1)_mask_1.png`` …; ``malignant/`` likewise |
| ``isic2018`` | ``ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg``, ``ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png`` |
| ``covid`` | ``tr_im.nii.gz`` with ``tr_mask.nii.gz``: a stack of axial CT slices |

All this may also lie one folder deeper, as archives tend to have it. Other files (superpixels, lung masks, BUSI's normal
pictures) are passed over.
"""  # noqa: E501 (a table)

from __future__ import annotations

import csv
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from accunet_monai.datasets.cases import Case
from accunet_monai.errors import DatasetError, did_you_mean
from accunet_monai.volumes import read_grid, read_label_map, read_volume

LUNG_WINDOW = (-1250.0, 250.0)
"""HU that become black and white: level -500 and width 1500, as lungs are looked at."""

PARTS = ("training", "validation", "test")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_STACKS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class PictureSet:
    """A set of pictures with masks, as it is published.

    Attributes:
        title: as the paper calls it.
        image: pattern of the pictures' paths in the folder, in which ``name`` is that of the case.
        mask: pattern of the masks' paths; several of one name are joined.
        pictures: how many the paper has.
        tested: how many of them it tests on.
        threshold: mask values above this one are foreground.
        official_test: how the names of the set's own test pictures begin; "" where it has none and they are drawn.
    """

    title: str
    image: str
    mask: str
    pictures: int
    tested: int
    threshold: int = 127
    official_test: str = ""


PICTURE_SETS: Mapping[str, PictureSet] = {
    "isic2018": PictureSet(
        "ISIC-18",
        r"ISIC2018_Task1-2_Training_Input/(?P<name>ISIC_\d+)\.jpg",
        r"ISIC2018_Task1_Training_GroundTruth/(?P<name>ISIC_\d+)_segmentation\.png",
        pictures=2594,
        tested=519,
    ),
    "clinicdb": PictureSet(
        "ClinicDB",
        r"Original/(?P<name>\d+)\.(tif|png)",
        r"Ground Truth/(?P<name>\d+)\.(tif|png)",
        pictures=612,
        tested=122,
    ),
    "busi": PictureSet(
        "BUSI",
        r"(?P<kind>benign|malignant)/(?P<name>(?P=kind) \(\d+\))\.png",
        r"(?P<kind>benign|malignant)/(?P<name>(?P=kind) \(\d+\))_mask(_\d+)?\.png",
        pictures=647,
        tested=129,
    ),
    "covid": PictureSet(
        "COVID",
        r"(?P<name>tr)_im\.nii(\.gz)?",
        r"(?P<name>tr)_mask\.nii(\.gz)?",
        pictures=100,
        tested=20,
        threshold=0,  # 1 ground-glass opacity, 2 consolidation, 3 pleural effusion
    ),
    "glas": PictureSet(
        "GlaS",
        r"(?P<name>(train|testA|testB)_\d+)\.bmp",
        r"(?P<name>(train|testA|testB)_\d+)_anno\.bmp",
        pictures=165,
        tested=80,
        threshold=0,  # each gland has a number of its own
        official_test="test",
    ),
}
"""Name → set, in the order of the paper's table."""


def picture_cases(
    name: str,
    dataset_dir: str | os.PathLike[str],
    part: str | None = None,
    split: int = 0,
    limit: int | None = None,
) -> list[Case]:
    """The pictures of a set, or of a part of one of its splits.

    Args:
        name: of the set, see :data:`PICTURE_SETS`.
        dataset_dir: folder that the set's archive unpacks into, or the one above.
        part: ``"training"``, ``"validation"``, ``"test"``, or ``None`` for all; see :func:`split_pictures`.
        split: number of the split.
        limit: only the first so many of the part, for trials.

    Returns:
        One ``{"image": path, "label": path, "case": name, "subject": subject}`` each, by name; further masks of a
        picture are ``label_2`` and so on. The subject is the patient where the set tells (``Grade.csv`` of GlaS), else
        the picture. A slice of a stack is a case with the stack's files, called after its position.

    Raises:
        DatasetError: ``DATASET_UNKNOWN``, ``DATASET_MISSING`` (nothing of the set is there), ``DATASET_FILES``
            (pictures without masks, or masks without pictures), ``SPLIT_INVALID`` or ``DATASET_TOO_SMALL`` (an empty
            part).
    """
    known = picture_set(name)
    folder, images, masks = _found(known, Path(dataset_dir))
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired:
        message = f"{len(unpaired)} pictures lack a mask or masks a picture, e.g. {', '.join(unpaired[:3])}."
        raise DatasetError("DATASET_FILES", message, path=folder, hint="Unpack the archive again.")
    subjects = _patients(folder / "Grade.csv")
    cases = [
        {
            "image": str(images[found][0]),
            **{f"label_{number}" if number > 1 else "label": str(path) for number, path in enumerate(masks[found], 1)},
            "case": found,
            "subject": subjects.get(found, found),
        }
        for found in sorted(images)
    ]
    cases = [case for each in cases for case in _slices(each)]
    if part is None:
        return cases[:limit]
    if part not in PARTS:
        raise DatasetError("SPLIT_INVALID", f"there is no part {part!r}.", hint=f"There are {', '.join(PARTS)}.")
    chosen = set(split_pictures([case["case"] for case in cases], split, known.official_test)[part])
    if not chosen:
        raise DatasetError("DATASET_TOO_SMALL", f"{len(cases)} pictures leave none for {part}.", path=folder)
    return [case for case in cases if case["case"] in chosen][:limit]


def picture_set(name: str) -> PictureSet:
    """The set of this name.

    Raises:
        DatasetError: ``DATASET_UNKNOWN``.
    """
    if name not in PICTURE_SETS:
        hint = did_you_mean(name, PICTURE_SETS) or f"There are {', '.join(PICTURE_SETS)}."
        raise DatasetError("DATASET_UNKNOWN", f"there is no set of pictures {name!r}.", hint=hint)
    return PICTURE_SETS[name]


def split_pictures(names: Sequence[str], split: int = 0, official_test: str = "") -> dict[str, list[str]]:
    """Part → names: a fifth for the test, a fifth for validation, the rest for training, all drawn anew in each split.

    With an official test part all other pictures are divided, four fifths for training. Pictures are drawn one by one,
    as published, whosever they are. A split is a pure function of the names and its number.

    Example:
        >>> split_pictures([f"{number}" for number in range(10)], split=1)["test"]
        ['4', '8']
    """
    test = [name for name in sorted(names) if official_test and name.startswith(official_test)]
    drawn = sorted(set(names) - set(test))
    random.Random(f"split {split}").shuffle(drawn)
    fifth = round(len(drawn) / 5)
    if not official_test:
        test, drawn = sorted(drawn[:fifth]), drawn[fifth:]
    return {"training": sorted(drawn[fifth:]), "validation": sorted(drawn[:fifth]), "test": test}


def read_picture_case(
    case: Mapping[str, Any], threshold: int = 127
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """A case of :func:`picture_cases` as arrays.

    Args:
        case: of any set.
        threshold: the set's: mask values above it are foreground.

    Returns:
        Red, green and blue (3, H, W) of 0 to 255, three times the same for grey pictures and for CT, of which
        :data:`LUNG_WINDOW` is shown; and the mask (1, H, W) of 0 and 1, joined from all masks of the picture.

    Raises:
        DatasetError: ``PICTURE_UNREADABLE``, or ``LABEL_GRID`` for a mask of another size.
    """
    masks = [case[key] for key in sorted(case) if key.startswith("label")]
    if str(case["image"]).endswith(_STACKS):
        position = int(case["case"].rsplit("_", 1)[1])
        low, high = LUNG_WINDOW
        grey = (np.clip(_stack(case["image"], False)[..., position].T, low, high) - low) * (255 / (high - low))
        pixels = np.repeat(grey[np.newaxis], 3, axis=0)
        values = [_stack(path, True)[..., position].T for path in masks]
    else:
        pixels = np.moveaxis(_decoded(case["image"], "RGB"), -1, 0)
        values = [_decoded(path, "L", numbered=threshold == 0) for path in masks]
    for value, path in zip(values, masks, strict=True):
        if value.shape != pixels.shape[1:]:
            message = f"the mask is {value.shape}, its picture {pixels.shape[1:]}."
            raise DatasetError("LABEL_GRID", message, path=path)
    mask = np.any([value > threshold for value in values], axis=0)
    return np.ascontiguousarray(pixels, dtype=np.float32), mask[np.newaxis].astype(np.uint8)


def _found(known: PictureSet, dataset: Path) -> tuple[Path, dict[str, list[Path]], dict[str, list[Path]]]:
    """The folder the set lies in, and the paths of pictures and masks by name."""
    inside = sorted(path for path in dataset.iterdir() if path.is_dir()) if dataset.is_dir() else []
    for folder in (dataset, *inside):
        images = _matching(folder, known.image)
        if images:
            return folder, images, _matching(folder, known.mask)
    raise DatasetError(
        "DATASET_MISSING",
        f"no pictures of {known.title} here or one folder deeper.",
        path=dataset,
        hint=f"Their paths there match {known.image}",
    )


def _matching(folder: Path, pattern: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*.*"), *folder.glob("*/*.*")]):
        match = re.fullmatch(pattern, path.relative_to(folder).as_posix())
        if match:
            found.setdefault(match["name"], []).append(path)
    return found


def _patients(grades: Path) -> dict[str, str]:
    """Picture → patient, of GlaS."""
    if not grades.is_file():
        return {}
    with grades.open(encoding="utf-8-sig", newline="") as file:
        rows = [{str(key).strip(): str(value).strip() for key, value in row.items()} for row in csv.DictReader(file)]
    return {row["name"]: f"patient {row['patient ID']}" for row in rows if row.get("name") and row.get("patient ID")}


def _slices(case: Case) -> Iterator[Case]:
    """The case itself, or one for each slice of its stack."""
    if not case["image"].endswith(_STACKS):
        yield case
        return
    for position in range(read_grid(case["image"]).shape[2]):
        name = f"{case['case']}_{position:03d}"
        yield {**case, "case": name, "subject": name}


@lru_cache(maxsize=2)
def _stack(path: str, labels: bool) -> npt.NDArray[Any]:
    """(X, Y, slices) of a file that every one of its slices asks for."""
    return read_label_map(path).array if labels else read_volume(path).array


def _decoded(path: str, mode: str, numbered: bool = False) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path, formats=_FORMATS) as file:
            as_it_is = numbered and file.mode == "P"  # a palette only colours the numbers
            return np.asarray(file if as_it_is else file.convert(mode), dtype=np.uint8)
    except Exception as error:  # Pillow's decoders raise many types on damaged bytes
        raise DatasetError("PICTURE_UNREADABLE", f"not a readable picture ({error}).", path=path) from error
