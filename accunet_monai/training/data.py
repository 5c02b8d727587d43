"""Labelled volumes for training: the list of cases, the split by subject, and their slices in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from accunet_monai.errors import DatasetError
from accunet_monai.inferers.slice_inferer import plane_size
from accunet_monai.training.augmentation import BatchAugmentation
from accunet_monai.volumes import read_grid
from accunet_monai.volumes.geometry import same_placement

Case = dict[str, Any]


def decathlon_cases(
    dataset_dir: str | os.PathLike[str],
    split_file: str | os.PathLike[str] | None = None,
    part: str | None = None,
    limit: int | None = None,
    label_key: str = "label",
) -> list[Case]:
    """Cases of a dataset in the Medical Segmentation Decathlon's layout (``dataset.json``, ``imagesTr``, ``labelsTr``).

    Args:
        dataset_dir: folder that holds ``dataset.json``.
        split_file: JSON with ``subjects`` (case name → subject) and one list of case names per part.
        part: the part of the split to take, e.g. ``"training"`` or ``"validation"``; ``None`` takes all cases.
        limit: take only the first so many, for trials.
        label_key: key under which the label's path is given.

    Returns:
        One ``{"image": path, label_key: path, "case": name}`` per case, in the order of the split or of the dataset.

    Raises:
        DatasetError: ``DATASET_MISSING``, ``DATASET_INVALID``, ``SPLIT_INVALID``, ``SPLIT_LEAK`` (one subject in two
            parts), ``DATASET_FILES`` (missing files named) or ``LABEL_GRID`` (labels not on their image's grid).
    """
    folder = Path(dataset_dir)
    cases = {case["case"]: case for case in _listed_cases(folder, label_key)}
    names = list(cases) if part is None else _split_part(split_file, part, cases)
    chosen = [cases[name] for name in names][:limit]
    missing = [str(case[key]) for case in chosen for key in ("image", label_key) if not Path(case[key]).is_file()]
    if missing:
        raise DatasetError(
            "DATASET_FILES", f"{len(missing)} listed files are missing: {', '.join(missing[:5])}.", path=folder
        )
    if not missing:
        _check_grids(chosen, label_key)
    if not chosen:
        raise DatasetError("DATASET_INVALID", f"no cases{f' in part {part!r}' if part else ''}.", path=folder)
    return chosen


def download_decathlon(dataset_dir: str | os.PathLike[str], task: str) -> None:
    """Fetch a Decathlon task into ``dataset_dir`` through MONAI's own ``DecathlonDataset`` unless it is there.

    Args:
        dataset_dir: the task's folder, as the archive names it, e.g. ``data/Task04_Hippocampus``.
        task: the Decathlon's name of the task, e.g. ``Task04_Hippocampus``.

    Raises:
        DatasetError: ``DATASET_FOLDER_NAME`` when the folder's name is not the task's.
    """
    folder = Path(dataset_dir)
    if (folder / "dataset.json").is_file():
        return
    if folder.name != task:
        raise DatasetError(
            "DATASET_FOLDER_NAME",
            f"the archive unpacks into a folder named {task}.",
            path=folder,
            hint=f"Use --dataset_dir {folder.parent / task}",
        )
    from monai.apps import DecathlonDataset

    folder.parent.mkdir(parents=True, exist_ok=True)
    DecathlonDataset(root_dir=folder.parent, task=task, section="training", download=True, cache_num=0, val_frac=0.0)


class SliceDataset(Dataset[dict[str, Tensor]]):
    """All slices of labelled volumes, preprocessed once and kept in memory.

    Args:
        cases: mappings with ``image`` and ``label`` paths.
        preprocessing: the bundle's preprocessing, giving ``image`` (C, X, Y, Z) and ``label`` (1, X, Y, Z).
        roi_size: size (rows, columns) of the slices given out, or (x, y, z), of which the axis along which a slice is
            taken is left out: smaller slices are padded by their edge values, of larger ones a random part is taken.
        spatial_dim: the spatial axis along which slices are taken, or several: then each volume is sliced along all
            of them, and ``SliceBatches`` keeps slices of one axis together.
        context_slices: neighbours on either side given as channels, as in ``SliceInferer``.
        skip_empty: leave out slices whose label is 0 everywhere.
        progress: show a progress bar while reading.

    Returns (per item):
        ``image`` (C * (2 * context_slices + 1), rows, columns) float32, ``label`` (1, rows, columns) int64.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        preprocessing: Callable[[Any], Any] | Transform,
        roi_size: Sequence[int],
        spatial_dim: int | Sequence[int] = 2,
        context_slices: int = 0,
        skip_empty: bool = False,
        progress: bool = True,
    ) -> None:
        dims = (spatial_dim,) if isinstance(spatial_dim, int) else tuple(spatial_dim)
        self.roi_size = {dim: plane_size(roi_size, dim) for dim in dims}
        self.context_slices = context_slices
        self._volumes: list[tuple[Tensor, Tensor]] = []
        self._index: list[tuple[int, int, int]] = []
        for number, case in enumerate(track(cases, "reading volumes", disable=not progress, transient=True)):
            data: Any = preprocessing(dict(case))
            image = torch.as_tensor(data["image"].as_tensor(), dtype=torch.float32)
            label = torch.as_tensor(data["label"].as_tensor())
            if image.shape[1:] != label.shape[1:]:
                raise DatasetError(
                    "LABEL_GRID",
                    f"image and label have sizes {tuple(image.shape[1:])} and {tuple(label.shape[1:])}.",
                    path=str(case["label"]),
                )
            self._volumes.append((image, label))
            for dim in dims:
                wanted = [not skip_empty or bool((one != 0).any()) for one in label.unbind(dim + 1)]
                self._index.extend((number, dim, position) for position, keep in enumerate(wanted) if keep)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number, dim, position = self._index[index]
        image, label = (array.movedim(dim + 1, 0) for array in self._volumes[number])
        last = len(image) - 1
        around = range(-self.context_slices, self.context_slices + 1)
        stack = torch.cat([image[min(max(position + offset, 0), last)] for offset in around])
        joined = self._fit(torch.cat([stack, label[position].to(stack.dtype)]), self.roi_size[dim])
        return {"image": joined[:-1], "label": joined[-1:].long()}

    def spatial_dim(self, index: int) -> int:
        """The axis along which the slice of this index is taken."""
        return self._index[index][1]

    def slice_weights(self, empty: float) -> list[float]:
        """One weight per slice for ``WeightedRandomSampler``: 1 with any label in it, ``empty`` without."""
        weights = []
        for number, dim, position in self._index:
            label = self._volumes[number][1]
            weights.append(1.0 if bool((label.select(dim + 1, position) != 0).any()) else empty)
        return weights

    def _fit(self, plane: Tensor, roi_size: tuple[int, int]) -> Tensor:
        """Pad (evenly, edge values) or crop (at random) rows and columns to ``roi_size``."""
        for axis, size in zip((1, 2), roi_size, strict=True):
            found = plane.shape[axis]
            if found < size:
                before = (size - found) // 2
                positions = (torch.arange(size) - before).clamp(0, found - 1)
                plane = plane.index_select(axis, positions)
            elif found > size:
                plane = plane.narrow(axis, int(torch.randint(found - size + 1, ())), size)
        return plane


class SliceBatches(Sampler[list[int]]):
    """Batches of slices in random order, each batch of one slicing axis, for ``DataLoader(batch_sampler=…)``.

    Args:
        dataset: whose slices are drawn, each once an epoch but for the remainders that fill no batch.
        batch_size: slices per batch.
    """

    def __init__(self, dataset: SliceDataset, batch_size: int) -> None:
        self.batch_size = batch_size
        self._of_axis: dict[int, list[int]] = {}
        for index in range(len(dataset)):
            self._of_axis.setdefault(dataset.spatial_dim(index), []).append(index)

    def __len__(self) -> int:
        return sum(len(indices) // self.batch_size for indices in self._of_axis.values())

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = []
        for indices in self._of_axis.values():
            shuffled = [indices[i] for i in torch.randperm(len(indices)).tolist()]
            whole = len(indices) // self.batch_size
            batches += [shuffled[n * self.batch_size : (n + 1) * self.batch_size] for n in range(whole)]
        yield from (batches[i] for i in torch.randperm(len(batches)).tolist())


class AugmentedBatch:
    """``prepare_batch`` of a MONAI trainer: augment the batch, then move it to the device.

    Args:
        augmentation: called with image (N, C, H, W) and label (N, 1, H, W); ``None`` changes nothing.
    """

    def __init__(self, augmentation: BatchAugmentation | None = None) -> None:
        self.augmentation = augmentation

    def __call__(
        self, batch: Mapping[str, Tensor], device: torch.device | str, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Batch of a ``SliceDataset`` → (image, label) on the device, channels last."""
        image, label = batch["image"], batch["label"]
        if self.augmentation is not None:
            image, label = self.augmentation(image, label)
        image = image.to(device, non_blocking=non_blocking, memory_format=torch.channels_last, **kwargs)
        return image, label.to(device, non_blocking=non_blocking)


def _listed_cases(folder: Path, label_key: str) -> list[Case]:
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
        return [
            {"image": str(folder / e["image"]), label_key: str(folder / e["label"]), "case": _case_name(e["image"])}
            for e in entries
        ]
    except (ValueError, KeyError, TypeError) as error:
        message = f"dataset.json is not as the Decathlon has it ({error!r})."
        raise DatasetError("DATASET_INVALID", message, path=listing) from error


def _check_grids(cases: Sequence[Case], label_key: str) -> None:
    """Refuse labels that do not lie on their image's grid: shape or placement."""
    problems = []
    for case in cases:
        image, label = read_grid(case["image"]), read_grid(case[label_key])
        if image.shape != label.shape:
            problems.append(f"{case['case']} (sizes {image.shape} and {label.shape})")
        elif not same_placement(image.affine_ras, label.affine_ras, image.shape):
            problems.append(f"{case['case']} (orientation or position)")
    if problems:
        raise DatasetError(
            "LABEL_GRID",
            f"{len(problems)} labels are not on their image's grid: {', '.join(problems[:5])}.",
            path=str(Path(cases[0]["image"]).parents[1]),
            hint="Resample these labels onto their images.",
        )


def _case_name(path: str) -> str:
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def _split_part(split_file: str | os.PathLike[str] | None, part: str, cases: Mapping[str, Case]) -> list[str]:
    if split_file is None:
        raise DatasetError("SPLIT_INVALID", f"part {part!r} was asked for without a split file.")
    try:
        split = json.loads(Path(split_file).read_text(encoding="utf-8"))
        parts: dict[str, list[str]] = split["parts"]
        subjects: dict[str, str] = split["subjects"]
        names = parts[part]
        if not isinstance(subjects, dict) or not all(isinstance(members, list) for members in parts.values()):
            raise TypeError("subjects must be a mapping, parts lists of case names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError("SPLIT_INVALID", f"no part {part!r} to be read ({error!r}).", path=split_file) from error
    owner: dict[str, str] = {}
    for other, members in parts.items():
        for name in members:
            subject = str(subjects.get(name, name))
            if owner.setdefault(subject, other) != other:
                raise DatasetError(
                    "SPLIT_LEAK", f"subject {subject} is in {owner[subject]!r} and in {other!r}.", path=split_file
                )
    present = [name for name in names if name in cases]
    if len(present) != len(names):
        absent = sorted(set(names) - set(cases))
        raise DatasetError(
            "SPLIT_INVALID",
            f"{len(absent)} cases of part {part!r} are not in the dataset, e.g. {', '.join(absent[:3])}.",
            path=split_file,
        )
    return present
