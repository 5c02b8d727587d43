"""A public dataset from its own host, where there is network."""

from __future__ import annotations

import os
from pathlib import Path

from accunet_monai.errors import DatasetError


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
