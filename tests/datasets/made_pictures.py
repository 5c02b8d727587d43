"""Small folders laid out as the archives of the paper's five sets are, with discs to be found in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

COUNT = 10


def disc(seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(picture (H, W, 3) uint8, mask (H, W) bool): a bright disc in noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices((size, size))
    row, column = random.uniform(0.3 * size, 0.7 * size, 2)
    mask = (rows - row) ** 2 + (columns - column) ** 2 < (size * random.uniform(0.15, 0.3)) ** 2
    picture = random.normal(90, 12, (size, size, 3)) + 70 * mask[..., np.newaxis]
    return picture.clip(0, 255).astype(np.uint8), mask


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def glas(folder: Path, count: int = COUNT, size: int = 32) -> Path:
    """``count`` pictures to train on and a fifth as many in each test part; two pictures of each patient."""
    lines = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    parts = {"train": count, "testA": count // 5, "testB": count // 5}
    names = [f"{part}_{number}" for part, many in parts.items() for number in range(1, many + 1)]
    for seed, name in enumerate(names):
        picture, mask = disc(seed, size)
        numbers = mask.astype(np.uint8)
        numbers[mask & (np.arange(size) >= size // 2)] = 2  # a second gland
        save(folder / f"{name}.bmp", picture)
        save(folder / f"{name}_anno.bmp", numbers)
        lines.append(f"{name},{seed // 2}, benign, adenomatous")
    (folder / "Grade.csv").write_text("\n".join(lines) + "\n")
    return folder


def clinicdb(folder: Path, count: int = COUNT, size: int = 32, ending: str = "tif") -> Path:
    for number in range(1, count + 1):
        picture, mask = disc(number, size)
        save(folder / "Original" / f"{number}.{ending}", picture)
        save(folder / "Ground Truth" / f"{number}.{ending}", np.where(mask, 250, 3).astype(np.uint8))
    return folder


def busi(folder: Path, count: int = COUNT, size: int = 32) -> Path:
    """Grey pictures stored as RGB; the first benign one has three masks; normal ones with empty masks."""
    for seed in range(count):
        kind, number = ("benign", "malignant")[seed % 2], seed // 2 + 1
        picture, mask = disc(seed, size)
        columns = np.flatnonzero(mask.any(0))
        thirds = (np.arange(size) - columns[0]) * 3 // len(columns)
        masks = [mask & (thirds == third) for third in range(3)] if seed == 0 else [mask]
        save(folder / kind / f"{kind} ({number}).png", np.repeat(picture[..., :1], 3, axis=-1))
        for extra, part in enumerate(masks):
            ending = f"_{extra}" if extra else ""
            save(folder / kind / f"{kind} ({number})_mask{ending}.png", part)
    save(folder / "normal" / "normal (1).png", disc(99, size)[0])
    save(folder / "normal" / "normal (1)_mask.png", np.zeros((size, size), dtype=bool))
    return folder


def isic2018(folder: Path, count: int = COUNT, size: int = 32) -> Path:
    """With what else comes in these folders: superpixels, licences, the challenge's pictures without task-1 masks."""
    inputs, truth = folder / "ISIC2018_Task1-2_Training_Input", folder / "ISIC2018_Task1_Training_GroundTruth"
    for seed in range(count):
        picture, mask = disc(seed, size)
        save(inputs / f"ISIC_{seed:07d}.jpg", picture)
        save(inputs / f"ISIC_{seed:07d}_superpixels.png", picture)
        save(truth / f"ISIC_{seed:07d}_segmentation.png", np.where(mask, 255, 0).astype(np.uint8))
    for other in (inputs, truth):
        (other / "LICENSE.txt").write_text("CC-0")
    save(folder / "ISIC2018_Task1-2_Validation_Input" / "ISIC_0012255.jpg", disc(0)[0])
    return folder


def covid(folder: Path, count: int = COUNT, size: int = 32) -> Path:
    """HU around -800, lesions of three kinds around 0."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [disc(seed, size) for seed in range(count)]
    hounsfield = np.stack([picture[..., 0] * 10.0 - 1700 for picture, _ in pairs], axis=-1).astype(np.float32)
    kinds = np.stack([mask * (1 + seed % 3) for seed, (_, mask) in enumerate(pairs)], axis=-1).astype(np.uint8)
    for name, array in (("tr_im", hounsfield), ("tr_mask", kinds), ("tr_lungmasks_updated", kinds)):
        nib.save(nib.Nifti1Image(array.transpose(1, 0, 2), np.eye(4)), folder / f"{name}.nii.gz")
    nib.save(nib.Nifti1Image(hounsfield[..., :2], np.eye(4)), folder / "val_im.nii.gz")
    return folder


MAKERS: dict[str, Callable[..., Path]] = {
    "glas": glas,
    "clinicdb": clinicdb,
    "busi": busi,
    "isic2018": isic2018,
    "covid": covid,
}
