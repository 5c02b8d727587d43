"""Datasets as people have them on disk, found out by what lies there.

| layout | what it is |
|---|---|
| Decathlon | ``dataset.json`` with ``training``, ``imagesTr``, ``labelsTr`` |
| nnU-Net raw | ``dataset.json`` with ``channel_names``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz`` |
| table | a CSV file with columns ``image``, ``label`` and, if wanted, ``case`` and ``subject`` |
| case folders | a folder for each case, with ``image`` and ``label`` files (or ``ct`` and ``mri`` for the image) |

An image is a NIfTI, MetaImage or NRRD file, or a folder of one DICOM series; a label is such a file or a DICOM SEG.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accunet_monai.datasets.cases import Case, case_name, chosen_cases
from accunet_monai.errors import DatasetError
from accunet_monai.volumes import VOLUME_ENDINGS, channel_files, volume_stem

IMAGE_NAMES = ("image", "ct", "mri", "mr")
LABEL_NAMES = ("label", "labels", "segmentation", "seg")
NAMES_FILES = ("labels.json", "label_names.json")


@dataclass(frozen=True)
class Region:
    """One of several regions that may overlap: a network has a sigmoid for each.

    Args:
        name: say ``whole tumour``.
        values: of the label map that are in it.
        label: that its voxels become, unless a later region lies on top.
    """

    name: str
    values: tuple[int, ...]
    label: int


@dataclass(frozen=True)
class Listing:
    """A dataset as it describes itself; whether that is true, its files have to tell.

    Args:
        path: of the dataset: a folder or a CSV file.
        layout: ``Decathlon``, ``nnU-Net raw``, ``table`` or ``case folders``.
        cases: with ``image``, ``label``, ``case`` and ``subject``.
        labels: value → name of every declared label without the background; empty where nothing is declared.
        names: groups of such names, by what they are said to be for (``"total (CT)"``), where there are several.
        channels: what the images show, say ``["CT"]``; empty where nothing is said.
        ignore_label: value that stands for "not annotated".
        regions: that overlap, in the order in which they are written into a label map; empty for plain labels.
        name, licence: of the dataset.
    """

    path: Path
    layout: str
    cases: tuple[Case, ...]
    labels: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    ignore_label: int | None = None
    regions: tuple[Region, ...] = ()
    name: str = ""
    licence: str = ""

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return max(1, len(self.channels))


def labelled_cases(
    dataset: str | os.PathLike[str],
    split_file: str | os.PathLike[str] | None = None,
    part: str | None = None,
    limit: int | None = None,
    label_key: str = "label",
    fold: int | None = None,
) -> list[Case]:
    """Cases of a dataset in any layout: :func:`~accunet_monai.datasets.decathlon_cases` for all of them.

    Raises:
        DatasetError: ``DATASET_MISSING``, ``DATASET_INVALID`` or ``DATASET_LAYOUT``, and as ``decathlon_cases``.
    """
    listing = list_dataset(dataset)
    return chosen_cases(listing.cases, listing.path, split_file, part, limit, label_key, fold)


def list_dataset(dataset: str | os.PathLike[str]) -> Listing:
    """Find out a dataset's layout and list its cases. No image is opened.

    Raises:
        DatasetError: ``DATASET_MISSING``, ``DATASET_LAYOUT`` (none of those above, or one that this package cannot
            use), ``DATASET_INVALID`` (a description that is not as its layout asks).
    """
    path = Path(dataset).absolute()
    if not path.exists():
        raise DatasetError("DATASET_MISSING", "no such file or folder.", path=path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _table(path)
    if (path / "dataset.json").is_file():
        return _described(path)
    if path.is_dir() and (listing := _case_folders(path)).cases:
        return listing
    raise DatasetError(
        "DATASET_LAYOUT",
        "no dataset.json, no CSV file and no folders with an image and a label each.",
        path=path,
        hint="A CSV file with the columns image and label describes any dataset.",
    )


def _described(folder: Path) -> Listing:
    path = folder / "dataset.json"
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        raw = "training" not in stated
        channels = stated["channel_names"] if raw else stated.get("modality", {})
        regions = _regions(stated, path)
        labels, ignored = (
            _labels(stated.get("labels", {}), path) if not regions else _labels_of_regions(stated, regions)
        )
        cases = tuple(_raw_cases(folder, stated) if raw else _decathlon_cases(folder, stated))
        return Listing(
            folder,
            "nnU-Net raw" if raw else "Decathlon",
            tuple(_with_channels(case, max(1, len(channels))) for case in cases),
            labels,
            channels=tuple(str(name) for name in channels.values()),
            ignore_label=ignored,
            regions=regions,
            name=str(stated.get("name", "")),
            licence=str(stated.get("licence", stated.get("license", ""))),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        message = f"dataset.json is neither the Decathlon's nor nnU-Net's ({error!r})."
        raise DatasetError("DATASET_INVALID", message, path=path) from error


def _labels(stated: Mapping[str, Any], path: Path) -> tuple[dict[int, str], int | None]:
    """Value → name, and the value to ignore, from the Decathlon's {value: name} or nnU-Net's {name: value}."""
    pairs = [(int(key), str(name)) if str(key).isdigit() else (int(name), str(key)) for key, name in stated.items()]
    ignored = next((value for value, name in pairs if name == "ignore"), None)
    return {value: name for value, name in sorted(pairs) if value != 0 and name != "ignore"}, ignored


def _regions(stated: Mapping[str, Any], path: Path) -> tuple[Region, ...]:
    """Overlapping regions of nnU-Net's dataset.json, each with its label; none where labels exclude each other."""
    labels = stated.get("labels", {})
    if not any(isinstance(value, list) for value in labels.values()):
        return ()
    found = {
        name: tuple(sorted(value if isinstance(value, list) else [value]))
        for name, value in labels.items()
        if value != 0 and name != "ignore"
    }
    order = stated.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(found):
        raise DatasetError(
            "DATASET_REGIONS",
            f"{len(found)} regions, but regions_class_order does not say which label each of them becomes.",
            path=path,
            hint="As nnU-Net: a list with one label value for each region, in the order of labels.",
        )
    return tuple(Region(name, values, int(label)) for (name, values), label in zip(found.items(), order, strict=True))


def _labels_of_regions(stated: Mapping[str, Any], regions: Sequence[Region]) -> tuple[dict[int, str], int | None]:
    """The label values with names: what is left of a region where later ones lie on top, and the value to ignore."""
    names = {}
    for place, region in enumerate(regions):
        covered = any(set(other.values) & set(region.values) for other in regions[place + 1 :])
        names[region.label] = f"{region.name} only" if covered else region.name
    ignored = stated["labels"].get("ignore")
    return dict(sorted(names.items())), None if ignored is None else int(ignored)


def _with_channels(case: Case, channels: int) -> Case:
    """With nnU-Net's further files as ``image_1`` and so on: they are read by way of the first, and are data too."""
    further = channel_files(case["image"], channels)[1:]
    return case | {f"image_{number}": str(path) for number, path in enumerate(further, 1)}


def _decathlon_cases(folder: Path, stated: Mapping[str, Any]) -> list[Case]:
    cases = []
    for entry in stated["training"]:
        image = folder / entry["image"]
        raw = image.with_name(f"{volume_stem(image)}_0000{image.name[len(volume_stem(image)) :]}")
        cases.append(
            _case(case_name(image), raw if raw.is_file() and not image.is_file() else image, entry["label"], folder)
        )
    return cases


def _raw_cases(folder: Path, stated: Mapping[str, Any]) -> list[Case]:
    ending = str(stated.get("file_ending", ".nii.gz"))
    listed = stated.get("dataset")
    if listed:
        return [_case(name, folder / entry["images"][0], entry["label"], folder) for name, entry in listed.items()]
    found = {path.name.removesuffix(ending) for path in (folder / "labelsTr").glob(f"*{ending}")}
    found |= {path.name.removesuffix(f"_0000{ending}") for path in (folder / "imagesTr").glob(f"*_0000{ending}")}
    images, labels = folder / "imagesTr", folder / "labelsTr"
    return [_case(name, images / f"{name}_0000{ending}", labels / f"{name}{ending}", folder) for name in sorted(found)]


def _table(path: Path) -> Listing:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    if not {"image", "label"} <= columns:
        told = ", ".join(sorted(map(str, columns))) or "none"
        message = f"a table of cases has the columns image and label, found {told}."
        raise DatasetError("DATASET_INVALID", message, path=path)
    names = _names_of([row["image"] for row in rows])
    cases = [
        _case(row.get("case") or name, path.parent / row["image"], row["label"], path.parent, row.get("subject"))
        for name, row in zip(names, rows, strict=True)
    ]
    labels, groups = _name_groups(path.parent)
    return Listing(path, "table", tuple(cases), labels, groups, name=path.stem)


def _names_of(images: Sequence[str]) -> list[str]:
    """Names of cases from the paths of their images: the file's, or with the folder's where files have one name."""
    names = [case_name(image) for image in images]
    if len(set(names)) == len(names):
        return names
    return [f"{Path(image).parent.name}_{name}" for image, name in zip(images, names, strict=True)]


def _case_folders(folder: Path) -> Listing:
    cases = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        image, label = _named(child, IMAGE_NAMES), _named(child, LABEL_NAMES)
        if image and label:
            cases.append(_case(child.name, image, label, folder))
        elif image and (child / "segmentations").is_dir():
            raise DatasetError(
                "DATASET_LAYOUT",
                "one mask file for each organ; labels are expected as one label map for each case.",
                path=child,
                hint="TotalSegmentator writes one file with --ml; its totalseg_combine_masks joins those of a dataset.",
            )
    labels, groups = _name_groups(folder)
    return Listing(folder, "case folders", tuple(cases), labels, groups, name=folder.name)


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    """The file or DICOM folder of one of some names."""
    candidates = [folder / f"{name}{ending}" for name in names for ending in (*VOLUME_ENDINGS, ".dcm", "")]
    return next((path for path in candidates if path.exists()), None)


def _name_groups(folder: Path) -> tuple[dict[int, str], dict[str, Mapping[int, str]]]:
    """Names of labels from a file beside the data: ``{"1": "liver"}``, or several such by what they are for."""
    path = next((folder / name for name in NAMES_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}, {}
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(value, Mapping) for value in stated.values()):
            return {}, {str(name): _labels(group, path)[0] for name, group in stated.items()}
        return _labels(stated, path)[0], {}
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError("DATASET_INVALID", f"not names of labels ({error!r}).", path=path) from error


def _case(name: str, image: Path, label: str | Path, folder: Path, subject: str | None = None) -> Case:
    return {"image": str(image), "label": str(folder / label), "case": name, "subject": subject or name}
