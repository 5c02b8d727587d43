"""Pictures with masks as a training takes them: read and resized once, kept in memory, drawn as slices are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Transform
from rich.console import Console

from accunet_monai.datasets import Case, picture_set, read_picture_case
from accunet_monai.training.slices import Pick


class LoadPictureCased(Transform):
    """A case of :func:`~accunet_monai.datasets.picture_cases` → ``image`` (3, H, W) of 0 to 255, ``label`` (1, H, W).

    Args:
        name: of the set of pictures.
    """

    def __init__(self, name: str) -> None:
        self.threshold = picture_set(name).threshold

    def __call__(self, case: Case) -> dict[str, Any]:
        """Reads the files; ``case`` and ``subject`` stay."""
        image, label = read_picture_case(case, self.threshold)
        tensors = {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}
        return {**tensors, "case": case["case"], "subject": case["subject"]}


class PictureDataset(CacheDataset):
    """Labelled pictures of one size, for validation and, with :class:`SliceSampler`, for training.

    Args:
        cases: of :func:`~accunet_monai.datasets.picture_cases`.
        preprocessing: MONAI transforms without random ones that give ``image`` (C, H, W) and ``label`` (1, H, W).
        workers: threads that read.

    Returns (per item, of an index or a :class:`Pick`):
        ``image`` float32, ``label`` int64, ``case``, ``subject``; of a pick also ``draw``, its number.
    """

    def __init__(self, cases: Sequence[Case], preprocessing: Transform, workers: int = 4) -> None:
        with Console().status(f"reading {len(cases)} pictures"):
            super().__init__(list(cases), preprocessing, num_workers=workers, progress=False, copy_cache=False)

    def __getitem__(self, pick: Any) -> Any:
        item: Mapping[str, Any] = super().__getitem__(pick.index if isinstance(pick, Pick) else pick)
        draw = {"draw": pick.draw} if isinstance(pick, Pick) else {}
        image, label = (torch.as_tensor(item[key]).as_subclass(torch.Tensor) for key in ("image", "label"))
        names = {key: item[key] for key in ("case", "subject")}
        return {"image": image.float(), "label": label.long(), **names, **draw}

    def spatial_dim(self, index: int) -> int:
        """0: pictures are all of one kind, as slices along one axis are."""
        return 0

    def labels(self, index: int) -> frozenset[int]:
        """{1} of a picture with anything in its mask."""
        return frozenset({1} if bool(self[index]["label"].any()) else ())
