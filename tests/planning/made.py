"""Small labelled datasets in every layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (20, 24, 18)


def volume(seed: int, shape: Sequence[int] = SHAPE, ct: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Noise with two blocks, labels 1 and 2, brighter than what is around them; air of -1000 HU around a CT."""
    random = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    x, y, z = (size // 4 for size in shape)
    label[x : 3 * x, y : 2 * y, z : 3 * z] = 1
    label[x : 3 * x, 2 * y : 3 * y, z : 3 * z] = 2
    image = random.normal(0, 5, shape) + 50.0 * label
    if ct:
        image[:2], image[-2:], image[:, :2] = -1000, -1000, -1000
    return image.astype(np.float32), label


def save(path: Path, array: np.ndarray, spacing: Sequence[float] = (1, 1, 1), affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    placed = np.diag([*spacing, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(array, placed), path)
    return path


def decathlon(folder: Path, cases: int = 4, ct: bool = False, spacings: Sequence[Sequence[float]] = ()) -> Path:
    """``dataset.json`` with labels left kidney and tumour."""
    entries = []
    for number in range(cases):
        image, label = volume(number, ct=ct)
        spacing = spacings[number % len(spacings)] if spacings else (1, 1, 1)
        save(folder / "imagesTr" / f"case_{number}.nii.gz", image, spacing)
        save(folder / "labelsTr" / f"case_{number}.nii.gz", label, spacing)
        names = (f"./imagesTr/case_{number}.nii.gz", f"./labelsTr/case_{number}.nii.gz")
        entries.append(dict(zip(("image", "label"), names, strict=True)))
    labels = {"0": "background", "1": "liver", "2": "tumour"}
    described = {"name": "Made", "labels": labels, "modality": {"0": "CT" if ct else "MRI"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(described | {"licence": "CC0-1.0"}))
    return folder


def nnunet(folder: Path, cases: int = 3) -> Path:
    """nnU-Net's raw layout, version 2, with an ignore label."""
    for number in range(cases):
        image, label = volume(number)
        label[0, 0, 0] = 3
        save(folder / "imagesTr" / f"made_{number:03}_0000.nii.gz", image)
        save(folder / "labelsTr" / f"made_{number:03}.nii.gz", label)
    labels = {"background": 0, "kidney_left": 1, "tumour": 2, "ignore": 3}
    described = {"channel_names": {"0": "T1"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def tumours(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Two images of one brain, and shells 1, 2 and 3 around a point: the second image shows the outermost alone."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    distance = np.linalg.norm(grid - np.reshape([10, 12, 9], (3, 1, 1, 1)), axis=0)
    label = np.digitize(-distance, [-7, -5, -3]).astype(np.uint8)
    images = [50.0 * (label >= 2) + 50.0 * (label == 3), 80.0 * (label == 1) + 1000]
    return [(image + random.normal(0, 5, SHAPE)).astype(np.float32) for image in images], label


def regions(folder: Path, cases: int = 3) -> Path:
    """nnU-Net's raw layout with two files a case and regions that overlap."""
    for number in range(cases):
        images, label = tumours(number)
        for channel, image in enumerate(images):
            save(folder / "imagesTr" / f"made_{number:03}_{channel:04}.nii.gz", image)
        save(folder / "labelsTr" / f"made_{number:03}.nii.gz", label)
    labels = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    described = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(described | {"file_ending": ".nii.gz", "numTraining": cases}))
    return folder


def four_dimensional(folder: Path, cases: int = 3) -> Path:
    """The Decathlon's layout with several modalities as the volumes of one file."""
    entries = []
    for number in range(cases):
        images, label = tumours(number)
        names = {key: f"./{part}/brain_{number}.nii.gz" for key, part in (("image", "imagesTr"), ("label", "labelsTr"))}
        save(folder / names["image"], np.stack(images, -1))
        save(folder / names["label"], label)
        entries.append(names)
    labels = {"0": "background", "1": "oedema", "2": "core", "3": "enhancing"}
    described = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": labels, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def table(folder: Path, cases: int = 4) -> Path:
    """A CSV file: two scans of each subject, files of one name in folders."""
    rows = []
    for number in range(cases):
        image, label = volume(number)
        save(folder / f"scan_{number}" / "t1.nii.gz", image)
        save(folder / f"scan_{number}" / "mask.nii.gz", label)
        rows.append((f"scan_{number}/t1.nii.gz", f"scan_{number}/mask.nii.gz", f"patient_{number // 2}"))
    path = folder / "cases.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "subject"), *rows])
    return path
